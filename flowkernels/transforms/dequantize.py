"""Whole numbers made continuous, by uniform or by learned noise."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints

from flowkernels._arguments import check_tensor, count
from flowkernels._arguments import event_dims as event_dims_of

from .base import Transform
from .composite import checked

# How far a level may be off: data were divided by `levels` and multiplied again, in float32.
ROUNDING = 1e-3


class Dequantize(Transform):
    r"""Adds uniform noise to whole numbers 0 … levels - 1 and scales them to (0, 1).

    .. math:: y = (x + u)/\mathrm{levels}, \quad u \sim \mathcal U(0, 1)^D, \qquad
        \mathrm{ladj} = -D \log \mathrm{levels}

    in nats. It is not a bijection, but in one respect as good as one: as the first layer of a flow it makes
    ``log_prob(x)`` an unbiased estimate of a lower bound of the log-probability of the whole numbers,
    :math:`\log P(x) \ge \mathrm E_u \log p(x + u)`, with p the density of the flow on [0, levels]; average it over
    draws. ``inverse`` rounds down, and puts what is outside on the nearest level.

    A number that is no level (by more than rounding, 1e-3) has no probability: ladj, and the log_prob of a flow, are
    ``-inf`` in its row.

    ``x [..., D]``, or signals or images with 2 or 3 event dims, of whole numbers in any dtype, uint8 too; ``y`` in its
    dtype but float32 at least (a 16-bit type cannot hold a level and its noise); ``ladj [...]``. ``context`` is
    ignored.

    Args:
        levels: how many there are, e.g. 256.
        event_dims: 1 for features, 2 for signals, 3 for images.

    Raises:
        ValueError: ``levels`` is less than 2; ``event_dims`` is not 1, 2 or 3.

    Reference:
        Theis, van den Oord, Bethge: A note on the evaluation of generative models, ICLR 2016, arXiv:1511.01844.

    Example:
        >>> import torch
        >>> from flowkernels.transforms import Dequantize
        >>> pixels = torch.tensor([0, 7, 255], dtype=torch.uint8)
        >>> y, ladj = Dequantize(256)(pixels)
        >>> Dequantize(256).inverse(y)[0]
        tensor([  0.,   7., 255.])
    """

    noisy = True

    def __init__(self, levels: int = 256, event_dims: int = 1) -> None:
        super().__init__()
        self.levels = count(f"transforms.{type(self).__name__}", "levels", levels, least=2)
        self.event_dims = event_dims_of(f"transforms.{type(self).__name__}", "event_dims", event_dims, (1, 2, 3))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_tensor(f"transforms.{type(self).__name__}", "x", x)
        wide = torch.promote_types(x.dtype if x.is_floating_point() else torch.get_default_dtype(), torch.float32)
        given = x.to(wide)
        # Whatever is drawn beside a number that is no level, its y and its gradients are finite.
        x = given.clamp(-0.5, self.levels - 0.5)
        u, log_q = self._noise(x)
        missed = (given - x.round().clamp(0, self.levels - 1)).abs() > max(ROUNDING, self._margin(x))
        ladj = (-log_q - self._log_volume(x)).masked_fill(missed.flatten(-self.event_dims).any(-1), -math.inf)
        return (x + self._inside(u)) / self.levels, ladj

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_tensor(f"transforms.{type(self).__name__}", "y", y)
        scaled = y.to(torch.promote_types(y.dtype, torch.float32)) * self.levels
        x = scaled.floor().clamp(0, self.levels - 1)
        return x, self._log_density(x, self._inside(scaled - x)) + self._log_volume(x)

    def _noise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Noise in (0, 1) like x, and its log-density ``[...]``."""
        return torch.rand(x.shape, dtype=x.dtype, device=x.device), self._log_density(x, x)

    def _log_density(self, x: Tensor, u: Tensor) -> Tensor:
        """Of noise u for x, ``[...]``."""
        return x.new_zeros(x.shape[: x.dim() - self.event_dims])

    def _inside(self, u: Tensor) -> Tensor:
        """Away from 0 and 1 by what rounding may add, so that no number comes back as its neighbour."""
        margin = self._margin(u)
        return u.clamp(margin, 1 - margin)

    def _margin(self, x: Tensor) -> float:
        return 2 * self.levels * torch.finfo(x.dtype).eps

    @property
    def domain(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.levels - 1)

    def _log_volume(self, x: Tensor) -> float:
        return math.log(self.levels) * math.prod(x.shape[x.dim() - self.event_dims :])

    def extra_repr(self) -> str:
        return f"levels={self.levels}, event_dims={self.event_dims}"


class VariationalDequantize(Dequantize):
    r"""Adds noise that a flow has learned, given the whole numbers, and scales to (0, 1).

    .. math:: y = (x + u)/\mathrm{levels}, \quad u = \sigma(v), \quad v = g^{-1}(\varepsilon; x), \quad
        \varepsilon \sim \mathcal N(0, 1)^D, \qquad \mathrm{ladj} = -\log q(u \mid x) - D \log \mathrm{levels}

    in nats, :math:`\log q(u \mid x) = \log\mathcal N(\varepsilon) + \log|\det \partial g/\partial v| -
    \sum_D \log \sigma'(v)`. As the first layer of a flow it makes ``log_prob(x)`` an unbiased estimate of the bound
    :math:`\log P(x) \ge \mathrm E_q[\log p(x + u) - \log q(u \mid x)]`, which training with the rest of the flow makes
    tighter than that of uniform noise: the flow need not model the sharp walls of a histogram. Gradients flow through
    the noise. Shapes and dtypes as in `Dequantize`.

    Args:
        noise: g, a transform from v to :math:`\varepsilon` whose context is x, scaled to [-1/2, 1/2]: ``[..., D]``, or
            images ``[..., C, H, W]``. Its inverse is the direction that training takes.
        levels, event_dims: as in `Dequantize`.

    Raises:
        ValueError: as `Dequantize`.
        TypeError: ``noise`` is not a `Transform`.

    Reference:
        Ho, Chen, Srinivas, Duan, Abbeel: Flow++, ICML 2019, arXiv:1902.00275, section 3.1.

    Example:
        >>> import functools, torch
        >>> from flowkernels.nets import ConvNet
        >>> from flowkernels.transforms import Affine, ImageCoupling, VariationalDequantize, checkerboard
        >>> net = functools.partial(ConvNet, hidden=(16, 16), context=1, context_dims=3)
        >>> noise = ImageCoupling(checkerboard(1, 4, 4), net, Affine("tanh"))
        >>> y, ladj = VariationalDequantize(noise, 256, event_dims=3)(torch.zeros(5, 1, 4, 4))
        >>> y.shape, ladj.shape
        (torch.Size([5, 1, 4, 4]), torch.Size([5]))
    """

    def __init__(self, noise: Transform, levels: int = 256, event_dims: int = 1) -> None:
        super().__init__(levels, event_dims)
        self.noise = checked("VariationalDequantize", noise)

    def _noise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = self.noise.latent_shape(x.shape[x.dim() - self.event_dims :])
        given = self._given(x)
        lead = x.shape[: x.dim() - self.event_dims]
        epsilon = torch.randn(*lead, *shape, dtype=given.dtype, device=x.device)
        v, ladj = self.noise.inverse(epsilon, given)
        v = v.to(x.dtype)
        return torch.sigmoid(v), _log_normal(epsilon.to(x.dtype), len(shape)) - ladj - self._log_slope(v)

    def _log_density(self, x: Tensor, u: Tensor) -> Tensor:
        given, v = self._given(x), torch.logit(u)
        epsilon, ladj = self.noise(v.to(given.dtype), given)
        dims = len(self.noise.latent_shape(x.shape[x.dim() - self.event_dims :]))
        return _log_normal(epsilon.to(x.dtype), dims) + ladj - self._log_slope(v)

    def _given(self, x: Tensor) -> Tensor:
        """The numbers as the noise sees them, in the dtype of its weights."""
        dtypes = [p.dtype for p in self.noise.parameters()]
        return (x / (self.levels - 1) - 0.5).to(dtypes[0] if dtypes else x.dtype)

    def _log_slope(self, v: Tensor) -> Tensor:
        """Of the sigmoid."""
        return (2 * F.logsigmoid(v) - v).sum(tuple(range(-self.event_dims, 0)))


def _log_normal(x: Tensor, event_dims: int) -> Tensor:
    return (-0.5 * math.log(2 * math.pi) - 0.5 * x.square()).sum(tuple(range(-event_dims, 0)))

"""Pixels of an image, each mapped given the pixels before it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import constraints

from flowkernels._arguments import count
from flowkernels.nets import PixelCNN
from flowkernels.ops import Mixture
from flowkernels.ops.univariate import Univariate, n_params_of

from .base import Transform, check_images
from .coupling import as_conditioner
from .dequantize import ROUNDING
from .univariate import check_univariate

_NAME = "transforms.PixelAutoregressive"


class PixelAutoregressive(Transform):
    r"""Maps every number of an image, with parameters computed from the pixels before it, row by row.

    .. math:: y_{cij} = f(x_{cij}; \mathrm{conditioner}_{cij}(x_{\text{before}}, \mathrm{context}))

    where those before are all of the rows above and to the left, and the earlier channels of the same pixel; ``ladj``
    is the sum of :math:`\log|f'|` in nats. ``forward`` (data → latent: densities) is one pass of the conditioner.
    ``inverse`` (latent → data: samples) finds a number at a time, C H W steps, in each of which a layer of the
    conditioner computes one group of channels of one pixel: together the arithmetic of one pass, in small calls.

    With ``levels`` the data are whole numbers 0 … levels - 1, of which :math:`s = 2 x / (\mathrm{levels} - 1) - 1` is
    what the conditioner sees. The map is that of a mixture F of logistics, whose first and last level have its tails,

    .. math:: P(x) = F(s + h) - F(s - h), \quad h = 1/(\mathrm{levels} - 1), \qquad
        y = \operatorname{logit}\big(F(s - h) + u\,P(x)\big), \quad u \sim \mathcal U(0, 1)

    and ``ladj`` such that in front of a standard logistic base the density is exactly :math:`P(x)`, whatever u is: no
    bound. ``inverse`` rounds to the nearest level. A number that is no level has ladj ``-inf`` in its row.

    ``x [..., C, H, W]`` in the dtype of the conditioner's weights, or under autocast (of levels in any dtype, uint8
    too); ``y`` the same, of levels float32 at least; ``ladj [...]``.

    Args:
        conditioner: a `flowkernels.nets.PixelCNN` that returns P C channels; or a function ``(in_channels,
            out_channels) -> module`` that makes one, with ``channels``.
        univariate: the map of one number and its P parameters; with ``levels`` a `Mixture` of logistics in front of a
            logit.
        channels: C; None: as the conditioner has them.
        levels: how many whole numbers there are, e.g. 256; 0: real numbers.

    Raises:
        ValueError: an argument breaks its contract; the conditioner has other channels; ``x`` does not have C.
        TypeError: ``conditioner`` is no `flowkernels.nets.PixelCNN`, nor a function to one.

    Reference:
        van den Oord, Kalchbrenner, Kavukcuoglu: Pixel Recurrent Neural Networks, ICML 2016, arXiv:1601.06759; Salimans,
        Karpathy, Chen, Kingma: PixelCNN++, ICLR 2017, arXiv:1701.05517 (mixtures of logistics on levels).

    Example:
        >>> import torch
        >>> from flowkernels.nets import PixelCNN
        >>> from flowkernels.transforms import Mixture, PixelAutoregressive
        >>> mixture = Mixture(4)
        >>> layer = PixelAutoregressive(PixelCNN(1, mixture.n_params, hidden=8, blocks=1), mixture, levels=16)
        >>> x = torch.randint(16, (5, 1, 4, 4))
        >>> y, ladj = layer(x)
        >>> torch.equal(layer.inverse(y)[0], x.float()), ladj.shape
        (True, torch.Size([5]))
    """

    def __init__(
        self,
        conditioner: nn.Module | Callable[[int, int], nn.Module],
        univariate: Univariate,
        channels: int | None = None,
        *,
        levels: int = 0,
    ) -> None:
        super().__init__()
        check_univariate(_NAME, univariate)
        self.univariate, self.n_params = univariate, n_params_of(univariate)
        self.levels = count(_NAME, "levels", levels, least=0)
        if levels == 1:
            raise ValueError(f"{_NAME}: levels must be 0 or at least 2, got 1")
        if levels and not _is_of_logistics(univariate):
            given = f"{univariate!r:.60}"
            raise ValueError(f"{_NAME}: univariate must be a Mixture of logistics beside levels, got {given}")
        if channels is None:
            if not isinstance(conditioner, PixelCNN):
                raise ValueError(f"{_NAME}: channels must be given beside a function, got None")
            channels = conditioner.in_channels
        self.channels = count(_NAME, "channels", channels)
        net = as_conditioner(_NAME, conditioner, channels, channels * self.n_params)
        if not isinstance(net, PixelCNN):
            raise TypeError(f"{_NAME}: conditioner must be a flowkernels.nets.PixelCNN, got {type(net).__name__}")
        if (net.in_channels, net.out_channels) != (channels, channels * self.n_params):
            wanted, given = f"{channels} to {channels * self.n_params}", f"{net.in_channels} to {net.out_channels}"
            raise ValueError(f"{_NAME}: conditioner must be of {wanted} channels, got {given}")
        self.conditioner = net
        self.noisy = levels > 0

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_images(_NAME, x, self.channels)
        if not self.levels:
            return self.univariate(x, self._params(x, context), False, 3)
        given = x.to(self._wide())
        # Whatever is seen in place of a number that is no level, its y and its gradients are finite.
        x = given.clamp(-0.5, self.levels - 0.5)
        missed = (given - x.round().clamp(0, self.levels - 1)).abs() > ROUNDING
        scaled = self._scaled(x)
        params = self._params(scaled.to(self._like().dtype), context)
        noise = torch.rand(x.shape, dtype=x.dtype, device=x.device)
        y, ladj = self._cells(x, scaled, params).forward(noise)
        return y, ladj.sum((-3, -2, -1)).masked_fill(missed.flatten(-3).any(-1), -math.inf)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_images(_NAME, y, self.channels)
        wide = torch.promote_types(y.dtype, torch.float32)
        seen = self._like().dtype if self.levels else y.dtype
        net = self.conditioner
        # Whatever asks to be called is, in as many passes as there are numbers.
        steps = net.steps(y.to(seen), context) if net.can_step else _Passes(self._params, y.to(seen), context)
        images = (y.to(wide) if self.levels else y).reshape(-1, *y.shape[-3:])
        n, C, H, W = images.shape
        ladj, found, given = images.new_zeros(n, dtype=wide), [], []
        latents = images.movedim(1, -1).reshape(n, C * H * W)  # in the order in which numbers are found
        for latent in latents.unbind(1):
            params = steps.params()
            value, part = self._number(latent[:, None], params[:, None])
            steps.put((self._scaled(value) if self.levels else value)[:, 0].to(seen))
            found.append(value[:, 0])
            if self.levels:
                given.append(params)
            else:
                ladj = ladj + part
        if not found:
            return y.to(images.dtype), ladj.reshape(y.shape[:-3])
        x = torch.stack(found, 1)
        if self.levels:  # of all numbers at once
            ladj = -self._cells(x, self._scaled(x), torch.stack(given, 1)).ladj(latents).sum(1)
        x = x.view(n, H, W, C).movedim(-1, 1).reshape(y.shape).to(images.dtype)
        return x, ladj.reshape(y.shape[:-3])

    def _number(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """``y [N, 1]``, ``params [N, 1, P]`` → the number ``[N, 1]`` and the ladj ``[N]`` of the map's y → x."""
        if not self.levels:
            return self.univariate(y, params, True)
        scaled, part = self.univariate(y, params.to(torch.promote_types(params.dtype, torch.float32)), True)
        level = ((scaled + 1) * ((self.levels - 1) / 2)).round().clamp(0, self.levels - 1)
        return level + 0.0, part  # no negative zero

    def _params(self, x: Tensor, context: Tensor | None) -> Tensor:
        """The conditioner's output as ``[..., C, H, W, P]``: a view of it."""
        return self.conditioner(x, context).unflatten(-3, (self.channels, self.n_params)).movedim(-3, -1)

    def _cells(self, x: Tensor, scaled: Tensor, params: Tensor) -> _Cells:
        return _Cells(self.univariate, self.levels, x, scaled, params.to(x.dtype))

    def _scaled(self, x: Tensor) -> Tensor:
        return x * (2 / (self.levels - 1)) - 1

    def _like(self) -> Tensor:
        return self.conditioner.final_layer.weight

    def _wide(self) -> torch.dtype:
        return torch.promote_types(self._like().dtype, torch.float32)

    @property
    def domain(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.levels - 1) if self.levels else constraints.real

    def extra_repr(self) -> str:
        univariate = "" if isinstance(self.univariate, nn.Module) else f", univariate={self.univariate}"
        return f"{self.channels}, levels={self.levels}{univariate}"


class _Passes:
    """What `flowkernels.nets.PixelCNN.steps` returns, by a pass of the network for each number."""

    def __init__(self, run: Callable[[Tensor, Tensor | None], Tensor], like: Tensor, context: Tensor | None) -> None:
        self.run, self.x, self.context, self.at = run, torch.zeros_like(like), context, 0

    def params(self) -> Tensor:
        C, W = self.x.shape[-3], self.x.shape[-1]
        pixel, c = divmod(self.at, C)
        found = self.run(self.x, self.context)[..., c, pixel // W, pixel % W, :]
        return found.reshape(-1, found.shape[-1])

    def put(self, value: Tensor) -> None:
        """Takes the number ``[N]``; in a copy, as the last pass needs its own x in backward."""
        C, W = self.x.shape[-3], self.x.shape[-1]
        pixel, c = divmod(self.at, C)
        x = self.x.clone()
        x[..., c, pixel // W, pixel % W] = value.reshape(x.shape[:-3])
        self.x, self.at = x, self.at + 1


def _is_of_logistics(univariate: object) -> bool:
    if not isinstance(univariate, Mixture) or univariate.inverse:
        return False
    return (univariate.kernel, univariate.outer, univariate.parametrization) == ("logistic", "logit", "weights")


class _Cells:
    """What a mixture of logistics has below, in and above the cell of each level, in logarithms."""

    def __init__(self, mixture: Any, levels: int, x: Tensor, scaled: Tensor, params: Tensor) -> None:
        logits, means, log_scales = params.unflatten(-1, (3, mixture.components)).unbind(-2)
        per_scale = torch.exp(-log_scales.clamp(mixture.min_log_scale, mixture.max_log_scale))
        log_weights, half = logits.log_softmax(-1), 1 / (levels - 1)
        low = (scaled[..., None] - half - means) * per_scale
        high = (scaled[..., None] + half - means) * per_scale
        first, last = x < 0.5, x > levels - 1.5
        below, above = F.logsigmoid(low), F.logsigmoid(-high)
        # sigma(b) - sigma(a) = sigma(b) sigma(-a) (1 - e^(a - b)): no digits are lost, however far out.
        inner = F.logsigmoid(high) + F.logsigmoid(-low) + torch.log(-torch.expm1(-2 * half * per_scale))
        mass = torch.where(last[..., None], F.logsigmoid(-low), inner)
        mass = torch.where(first[..., None], F.logsigmoid(high), mass)
        self.mass = torch.logsumexp(log_weights + mass, -1)
        self.below = torch.where(first, -math.inf, torch.logsumexp(log_weights + below, -1))
        self.above = torch.where(last, -math.inf, torch.logsumexp(log_weights + above, -1))

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The latent of a place in the cell, from 0 to 1, and the ladj of each number."""
        margin = 4 * torch.finfo(noise.dtype).eps  # so that no level comes back as its neighbour
        noise = noise.clamp(margin, 1 - margin)
        low = torch.logaddexp(self.below, noise.log() + self.mass)
        high = torch.logaddexp(self.above, torch.log1p(-noise) + self.mass)
        y = low - high
        return y, self.ladj(y)

    def ladj(self, y: Tensor) -> Tensor:
        """Log of the mass over the density of a standard logistic at y."""
        return self.mass - F.logsigmoid(y) - F.logsigmoid(-y)

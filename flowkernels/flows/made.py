"""A MADE used alone as a density."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkernels import nets
from flowkernels._arguments import count
from flowkernels.distributions import Distribution, Size, StandardNormal
from flowkernels.distributions.base import check_no_temperature
from flowkernels.nets import Activation
from flowkernels.nets.degrees import Seed
from flowkernels.transforms import Affine, Autoregressive, Composite

from .flow import Flow

_MIN_SCALE = 1e-3


class MixtureMADE(Distribution):
    r"""Autoregressive density whose conditionals are mixtures of K normals; a base of flows, or a density of its own.

    .. math:: \log p(x) = \sum_D \log \sum_k \pi_{dk}(x_{<d})\,\mathcal N(x_d; \mu_{dk}(x_{<d}), \sigma_{dk}(x_{<d}))

    in nats, in one pass of the network, with :math:`\pi` = softmax and :math:`\sigma` = softplus + 1e-3 of its outputs.
    Samples are drawn feature by feature, D passes. ``rsample`` has exact first derivatives, by implicit
    reparameterisation: :math:`\partial x = -\partial F(x) / p(x)` with F the distribution function of a conditional.
    Shapes and dtypes as in `Distribution`; unlike the others this one looks at the context.

    Args:
        net: a `flowkernels.nets.MADE` with ``3 * components`` parameters per feature: logits | means | scales.

    Raises:
        ValueError: the number of parameters is no multiple of 3; ``x`` does not have D features; a temperature is asked
            for.

    Reference:
        Papamakarios, Pavlakou, Murray, arXiv:1705.07057 (MADE MoG); Figurnov, Mohamed, Mnih: Implicit
        Reparameterization Gradients, NeurIPS 2018, arXiv:1805.08498.

    Example:
        >>> import torch
        >>> from flowkernels.flows import MAF, MixtureMADE
        >>> from flowkernels.nets import MADE
        >>> flow = MAF(3, transforms=2, base=MixtureMADE(MADE(3, 3 * 10)))
        >>> flow.sample(5).shape, flow.log_prob(torch.randn(7, 3)).shape
        (torch.Size([5, 3]), torch.Size([7]))
    """

    def __init__(self, net: nets.MADE) -> None:
        super().__init__()
        if not isinstance(net, nets.MADE):
            raise TypeError(f"flows.MixtureMADE: net must be a flowkernels.nets.MADE, got {type(net).__name__}")
        self.components, rest = divmod(net.params_per_feature, 3)
        if rest:
            given = net.params_per_feature
            raise ValueError(f"flows.MixtureMADE: net must have 3 * components parameters per feature, got {given}")
        self.features, self.net = net.features, net
        # Means apart from each other: equal components would learn the same.
        start = torch.zeros(3, self.components)
        start[1] = torch.linspace(-1, 1, self.components) if self.components > 1 else 0.0
        start[2] = math.log(math.expm1(1 - _MIN_SCALE))
        net.start_at(start.flatten().repeat(self.features))

    def _conditionals(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means and scales, ``[..., D, K]``."""
        params = self.net(x, context)
        params = params.to(torch.promote_types(params.dtype, torch.float32))
        logits, means, scales = params.unflatten(-1, (self.features, 3, self.components)).unbind(-2)
        return F.log_softmax(logits, dim=-1), means, F.softplus(scales) + _MIN_SCALE

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        wide = self._wide(x)
        return _log_density(wide, *self._conditionals(x, context)).sum(-1)

    def rsample(self, n: Size, context: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        check_no_temperature("flows.MixtureMADE", temperature)
        like = self.net.final_layer.bias
        x = torch.zeros(self._shape(n, context), dtype=like.dtype, device=like.device)
        for d in self.net.order.tolist():
            log_weights, means, scales = (t[..., d, :] for t in self._conditionals(x, context))
            with torch.no_grad():
                # Gumbel's trick: no shape that torch.multinomial would not take.
                k = (log_weights - torch.empty_like(log_weights).exponential_().log()).argmax(-1, keepdim=True)
                mean, scale = means.gather(-1, k)[..., 0], scales.gather(-1, k)[..., 0]
                value = mean + scale * torch.randn_like(mean)
            if torch.is_grad_enabled():
                mass = (log_weights.exp() * torch.special.ndtr((value[..., None] - means) / scales)).sum(-1)
                density = _log_density(value, log_weights, means, scales).detach().exp()
                value = value - (mass - mass.detach()) / density  # the value as it is, with the right derivative
            x = x.slice_scatter(value[..., None].to(x.dtype), -1, d, d + 1)
        return x


def _log_density(x: Tensor, log_weights: Tensor, means: Tensor, scales: Tensor) -> Tensor:
    """Of mixtures ``[..., K]`` at ``x [...]``."""
    z = (x[..., None] - means) / scales
    return torch.logsumexp(log_weights - 0.5 * z.square() - scales.log(), dim=-1) - 0.5 * math.log(2 * math.pi)


class MADE(Flow):
    r"""The density of a masked autoencoder used alone: normal or mixture conditionals.

    :math:`\log p(x) = \sum_d \log p(x_d \mid x_{<d})` in nats, in one pass of the network. With one component a
    conditional is normal, which is one affine layer of a `MAF`; with more it is a mixture (see `MixtureMADE`). Sampling
    is ancestral. An untrained model is near the standard normal. Shapes, dtypes and context: see `Flow`.

    ``flow.net.shuffle_order()`` and ``flow.net.resample_masks()`` between steps train it for any order and
    connectivity.

    Args:
        features: D.
        components: normals per conditional.
        context: C, the number of context features the network sees (after ``embedding``), 0 for none.
        hidden: widths of the hidden layers, a number for one; with ``residual`` one equal width per residual block.
        residual, activation, dropout, order, degrees, seed: see `flowkernels.nets.MADE`.
        embedding: a module applied to the context first.

    Raises:
        ValueError: ``components`` is less than 1; or as `flowkernels.nets.MADE`.

    Reference:
        Germain, Gregor, Murray, Larochelle: MADE: Masked Autoencoder for Distribution Estimation, ICML 2015,
        arXiv:1502.03509.

    Example:
        >>> import torch
        >>> from flowkernels.flows import MADE
        >>> flow = MADE(3, components=5, hidden=(64,))
        >>> flow.log_prob(torch.randn(10, 3)).shape, flow.sample(4).shape
        (torch.Size([10]), torch.Size([4, 3]))
    """

    def __init__(
        self,
        features: int,
        components: int = 1,
        context: int = 0,
        hidden: int | Sequence[int] = (128, 128),
        *,
        residual: bool = False,
        activation: Activation = "relu",
        dropout: float = 0.0,
        order: str | Sequence[int] | Tensor = "natural",
        degrees: str = "sequential",
        seed: Seed = None,
        embedding: nn.Module | None = None,
    ) -> None:
        for name, value in (("features", features), ("components", components)):
            count("flows.MADE", name, value)
        affine = Affine("softplus", _MIN_SCALE)
        net = nets.MADE(
            features, affine.n_params if components == 1 else 3 * components, hidden, residual=residual,
            context=context, activation=activation, dropout=dropout, order=order, degrees=degrees, seed=seed,
        )  # fmt: skip
        if components == 1:
            net.start_at(torch.tensor(affine.identity).repeat(features))
            super().__init__(Autoregressive(net, affine), StandardNormal(features), embedding)
        else:
            super().__init__(Composite([]), MixtureMADE(net), embedding)

    @property
    def net(self) -> nets.MADE:
        """The network."""
        owner = self.base.net if isinstance(self.base, MixtureMADE) else self.transform.conditioner
        return owner  # type: ignore[return-value]

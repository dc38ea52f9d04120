"""zuko's Gaussianization: a mean of normal distribution functions, drawn towards 1/2, and its normal quantile."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkernels._arguments import flag, is_number
from flowkernels.ops.mixture import Mixture
from flowkernels.ops.mixture.spec import WIDEST
from flowkernels.ops.univariate import Map

__all__ = ["ShrunkMixture"]

_LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class ShrunkMixture(Map):
    r"""zuko's Gaussianization: K normal distribution functions of equal weight, and the normal quantile of their mean.

    .. math:: y = \Phi^{-1}\Big(\tfrac12 + (1 - \delta)\big(\tfrac1K \sum_k \Phi(e^{a_k} x + b_k) - \tfrac12\big)\Big)

    :math:`\delta` = ``shrink`` ends y at a finite quantile, ±4.9 for 1e-6. ``ladj`` is :math:`\sum_D \log |dy/dx|` in
    nats. The inverse is the root, not beyond ±``bound``, where it stays for all y that lie further out.
    ``x [..., D]``, float32, float64, bfloat16 or float16; ``params [..., D, 2K]``, shifts b | log-scales a, of which
    those beyond ±20 count as 20. Frozen, hashable, equal by value. It runs `flowkernels.ops.mixture`, on the fastest
    backend that can, and a few functions of its result. `flowkernels.ops.Mixture` is the map with weights and without
    :math:`\delta`.

    Args:
        components: K, from 1 to 128.
        shrink: :math:`\delta`, above 0 and below 1.
        bound: where an inverse ends, positive.
        inverse: this is the map y → x.

    Raises:
        TypeError: an input is not a floating-point tensor.
        ValueError: a setting or shape breaks its contract.

    Reference:
        Chen, Gopinath: Gaussianization, NeurIPS 2000. Meng, Song, Song, Ermon: Gaussianization Flows, AISTATS 2020,
        arXiv:2003.01941.

    Example:
        >>> import torch
        >>> from flowkernels.ops import ShrunkMixture
        >>> f = ShrunkMixture(4)
        >>> x, params = torch.randn(5, 2), torch.randn(5, 2, f.n_params)
        >>> y, ladj = f(x, params)
        >>> back, neg = f.inverted()(y, params)
        >>> torch.allclose(back, x, atol=1e-3), torch.allclose(ladj, -neg, atol=1e-2)
        (True, True)
    """

    components: int = 8
    shrink: float = 1e-6
    bound: float = 10.0
    inverse: bool = False

    def _settle(self) -> None:
        if not is_number(self.shrink) or not 1e-12 <= self.shrink <= 0.5:
            raise ValueError(f"ops.ShrunkMixture: shrink must be a number from 1e-12 to 0.5, got {self.shrink!r}")
        if not is_number(self.bound) or not 1e-30 <= self.bound <= 1e30:
            raise ValueError(f"ops.ShrunkMixture: bound must be positive, from 1e-30 to 1e30, got {self.bound!r}")
        flag("ops.ShrunkMixture", "inverse", self.inverse)
        self._set(("shrink", "bound"), (float(self.shrink), float(self.bound)))
        object.__setattr__(self, "n_params", 2 * self._mixture(False).components)

    def _derived(self) -> dict[str, Any]:
        K, spread = self.components, Mixture.kept(components=self.components, kernel="normal", outer="probit").identity
        log_scale = -spread[-1]
        return {"identity": tuple(-m * math.exp(log_scale) for m in spread[K : 2 * K]) + (log_scale,) * K}

    def _mixture(self, inverse: bool) -> Mixture:
        return Mixture.kept(
            components=self.components, kernel="normal", outer="logit", min_log_scale=-WIDEST, max_log_scale=WIDEST,
            inverse=inverse,
        )  # fmt: skip

    def reference(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(x, params, "reference")

    def _run(self, x: Tensor, params: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
        out_dtype = torch.promote_types(x.dtype, params.dtype)
        dtype = torch.promote_types(out_dtype, torch.float32)
        x, parts = x.to(dtype), self._weighted(params.to(dtype))
        if not self.inverse:
            y, ladj = self._forward(x, parts, backend)
            return y.to(out_dtype), ladj
        found, _ = self._mixture(True)(self._target(x), parts, backend=backend)
        found = found.clamp(-self.bound, self.bound)
        return found.to(out_dtype), -self._forward(found, parts, backend)[1]

    def _weighted(self, params: Tensor) -> Tensor:
        """The params of a mixture with weights. Where all rows have the same, those of one are enough."""
        shape = params.shape[:-1]
        for dim, stride in enumerate(params.stride()[:-2]):
            if stride == 0 and params.shape[dim] > 1:
                params = params.narrow(dim, 0, 1)
        shift, log_scale = params.split(self.components, -1)
        log_scale = -log_scale.clamp(-WIDEST, WIDEST)
        parts = torch.cat((torch.zeros_like(shift), -shift * torch.exp(log_scale), log_scale), -1)
        return parts.expand(*shape, parts.shape[-1])

    def _forward(self, x: Tensor, parts: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
        logit, ladj = self._mixture(False)(x, parts, backend=backend)
        # Of the smaller side, which has all its digits; of the logit's derivative the density is what is left.
        size = logit.abs()
        log_large = F.logsigmoid(size)
        log_small = log_large - size
        quantile = torch.special.ndtri(torch.exp(log_small) * (1 - self.shrink) + 0.5 * self.shrink)
        of_each = torch.addcmul(log_small + log_large, quantile, quantile, value=0.5).sum(-1)
        y = torch.where(logit < 0, quantile, -quantile)
        return y, ladj + of_each + x.shape[-1] * (math.log1p(-self.shrink) + _LOG_ROOT_2PI)

    def _target(self, y: Tensor) -> Tensor:
        """The logit of the mean that y asks for: beyond what it has, that of the smallest number or of the largest."""
        side = (torch.special.ndtr(-y.abs()) - 0.5 * self.shrink) / (1 - self.shrink)
        side = side.clamp_min(torch.finfo(y.dtype).tiny)
        logit = torch.log1p(-side) - torch.log(side)
        return torch.where(y < 0, -logit, logit)

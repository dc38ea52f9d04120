"""The sinh-arcsinh map: two parameters for skewness and weight of the tails, on the whole line."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowkernels._arguments import flag, is_number
from flowkernels.ops.univariate import Map

__all__ = ["SinhArcsinh"]


def _log_cosh(v: Tensor) -> Tensor:
    return torch.logaddexp(v, -v) - math.log(2)


@dataclass(frozen=True)
class SinhArcsinh(Map):
    r"""The sinh-arcsinh map of every element of x, with its own logit :math:`u` and shift :math:`t`.

    .. math:: y = \sinh(s\,\mathrm{arcsinh}(x) + t), \qquad \log s = c \tanh(u/c)

    c = ``clamp``. ``ladj`` is :math:`\sum_D \log |dy/dx|` in nats. The shift makes a distribution lean to one side,
    :math:`s > 1` makes its tails heavier and :math:`s < 1` lighter, from the normal ones at :math:`s = 1`.
    ``x [..., D]``, float32, float64, bfloat16 or float16; ``params [..., D, 2]``, logit | shift. Frozen, hashable,
    equal by value. Plain PyTorch: no backend has a kernel for it yet.

    Args:
        clamp: largest \|log s\|.
        inverse: this is the map y → x.

    Raises:
        TypeError: an input is not a floating-point tensor.
        ValueError: ``clamp`` is not positive, from 1e-30 to 1e30, or a shape breaks its contract.

    Reference:
        Jones, Pewsey: Sinh-arcsinh distributions, Biometrika 96(4), 2009, doi:10.1093/biomet/asp053.

    Example:
        >>> import torch
        >>> from flowkernels.ops import SinhArcsinh
        >>> heavy = SinhArcsinh()
        >>> x, params = torch.randn(4, 2), torch.randn(4, 2, heavy.n_params)
        >>> y, ladj = heavy(x, params)
        >>> back, neg = heavy.inverted()(y, params)
        >>> torch.allclose(back, x, atol=1e-4), torch.allclose(ladj, -neg, atol=1e-4)
        (True, True)
    """

    clamp: float = 2.0
    inverse: bool = False

    n_params: ClassVar[int] = 2
    identity: ClassVar[tuple[float, ...]] = (0.0, 0.0)

    def _settle(self) -> None:
        name, clamp = type(self).__name__, self.clamp
        if not is_number(clamp) or not 1e-30 <= clamp <= 1e30:
            raise ValueError(f"ops.{name}: clamp must be positive, from 1e-30 to 1e30, got {clamp!r}")
        flag(f"ops.{name}", "inverse", self.inverse)

    def reference(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        out_dtype = torch.promote_types(x.dtype, params.dtype)
        dtype = torch.promote_types(out_dtype, torch.float32)
        u, shift = params.to(dtype).unbind(-1)
        log_s = self.clamp * torch.tanh(u / self.clamp)
        w = torch.asinh(x.to(dtype))
        if self.inverse:
            log_s = -log_s
            v = torch.exp(log_s) * (w - shift)
        else:
            v = torch.exp(log_s) * w + shift
        # dy/dx = cosh(v) s / cosh(w), without a square of x.
        return torch.sinh(v).to(out_dtype), (_log_cosh(v) - _log_cosh(w) + log_s).sum(-1)

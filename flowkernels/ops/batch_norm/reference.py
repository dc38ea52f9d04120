"""The definition of batch norm with an activation in plain PyTorch, differentiable any number of times."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flowkernels.ops.net.activations import FUNCTIONS

IS_SLOW = False


def fwd(spec: Any, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, D] → y [B, D], mean and (biased) variance [D]."""
    wide = x.float() if x.dtype.itemsize < 4 else x
    mean = wide.mean(0)
    var = (wide - mean).square().mean(0)
    y = FUNCTIONS[spec.activation]((wide - mean) * (var + spec.eps).rsqrt() * weight + bias)
    return y.to(x.dtype), mean.to(x.dtype), var.to(x.dtype)

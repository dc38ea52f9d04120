"""The definition of the affine map in plain PyTorch: any dtype, any device, differentiable any number of times."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkernels.ops._logistic import logistic

if TYPE_CHECKING:
    from .spec import Affine, AffineCall

IS_SLOW = False


def _bound(dtype: torch.dtype) -> float:
    """Logits at which a scale stops, e^87 or e^708: beyond, it or its inverse would be inf, and inf * 0 NaN."""
    return 87.0 if dtype == torch.float32 else 708.0


def _scale(spec: Affine, u: Tensor) -> tuple[Tensor, Tensor]:
    """The scale, never 0 nor inf for a finite logit, and its logarithm, which does not stop with it."""
    bound = _bound(u.dtype)
    if spec.scale == "exp":
        return torch.exp(u.clamp(-bound, bound)), u
    if spec.scale == "tanh":
        log_s = spec.bound * torch.tanh(u / spec.bound)
        return torch.exp(log_s.clamp(-bound, bound)), log_s
    if spec.scale == "atan":
        unit = spec.bound * 2 / math.pi
        log_s = unit * torch.atan(u / unit)
        return torch.exp(log_s.clamp(-bound, bound)), log_s
    if spec.scale == "clip":
        # The value that stopped, the gradient of u. (u + (stopped - u) would lose it to rounding.)
        log_s = u.detach().clamp(spec.low, spec.high) + torch.where(u.isfinite(), u - u.detach(), torch.zeros_like(u))
        return torch.exp(log_s), log_s
    if spec.scale == "soft_clip":
        log_s = u / (1 + (u / spec.bound).abs())
        return torch.exp(log_s.clamp(-bound, bound)), log_s
    if spec.scale == "softplus":
        s = F.softplus(u if spec.floor > 0 else u.clamp_min(-bound), threshold=50.0) + spec.floor
        # Below -37 a softplus is e^u, to the last bit of a double.
        return s, torch.log(s) if spec.floor > 0 else torch.where(u < -37, u, torch.log(s))
    z = u + 2
    if spec.scale == "reciprocal_sigmoid":
        return 1 + torch.exp(-z.clamp_min(-bound)), -F.logsigmoid(z)
    if spec.floor > 0:
        s = logistic(z) + spec.floor
        return s, torch.log(s)
    return logistic(z.clamp_min(-bound)), F.logsigmoid(z)


def fwd(
    spec: AffineCall, x: Tensor, params: Tensor, shift: Tensor | None = None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x [..., *event], params [..., *event, P], or logit and shift like x; mask over the event → y and ladj [...]."""
    f, layout = spec
    y, ladj = _map(f, layout.event_dims, layout.mapped(x), params, shift, mask)
    if layout.in_part():
        y = x.to(y.dtype).slice_scatter(y, -layout.event_dims, layout.start, layout.stop, layout.step)
    return y, ladj


def _map(
    spec: Affine, event_dims: int, x: Tensor, params: Tensor, shift: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    if shift is not None:
        u, t = params, shift
    elif spec.scale == "additive":
        u, t = None, params[..., 0]
    else:
        u, t = params[..., int(spec.shift_first)], params[..., int(not spec.shift_first)]
    out_dtype = torch.promote_types(x.dtype, params.dtype)
    dtype = torch.promote_types(out_dtype, torch.float32)
    v, t = x.to(dtype), t.to(dtype)

    def masked(value: Tensor, other: Tensor) -> Tensor:
        return value if mask is None else torch.where(mask, value, other)

    # Before the formula, so that what stands at the other places reaches no gradient; and after it.
    zero = v.new_zeros(())
    t = masked(t, zero)
    if u is None:
        y, log_s = v - t if spec.inverse else v + t, torch.zeros_like(v)
    else:
        s, log_s = _scale(spec, masked(u.to(dtype), zero))
        y = (v - t) / s if spec.inverse else v * s + t
        log_s = masked(-log_s if spec.inverse else log_s, zero)
    return masked(y, v).to(out_dtype), log_s.sum(tuple(range(-event_dims, 0)))

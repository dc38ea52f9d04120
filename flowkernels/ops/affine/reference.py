"""The definition of the affine map in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .spec import AffineSpec

IS_SLOW = False


def why_not(spec: AffineSpec, x: Tensor, params: Tensor) -> str | None:
    return None


def _scale(spec: AffineSpec, u: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and its logarithm."""
    if spec.scale == "exp":
        return torch.exp(u), u
    if spec.scale == "softplus":
        s = F.softplus(u) + spec.min_scale
        return s, torch.log(s)
    s = torch.sigmoid(u + 2) + spec.min_scale
    return s, F.logsigmoid(u + 2) if spec.min_scale == 0 else torch.log(s)


def fwd(spec: AffineSpec, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., D], params [..., D, P] → y [..., D] and ladj [...]."""
    out_dtype = torch.promote_types(x.dtype, params.dtype)
    dtype = torch.promote_types(out_dtype, torch.float32)
    v, p = x.to(dtype), params.to(dtype)
    if spec.scale == "additive":
        y = v - p[..., 0] if spec.inverse else v + p[..., 0]
        return y.to(out_dtype), torch.zeros_like(v).sum(-1)
    s, log_s = _scale(spec, p[..., 0])
    if spec.inverse:
        return ((v - p[..., 1]) / s).to(out_dtype), -log_s.sum(-1)
    return (v * s + p[..., 1]).to(out_dtype), log_s.sum(-1)

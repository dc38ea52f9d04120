"""The affine map as a differentiable op. Saves its inputs for backward, and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkernels.ops._routing import Op

from . import native, reference, triton
from .spec import AffineSpec


def _fake(
    spec: AffineSpec, x: Tensor, params: Tensor, shift: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, params.dtype)
    ladj_dtype = torch.promote_types(dtype, torch.float32)
    return (
        torch.empty_like(x, dtype=dtype),
        torch.empty(x.shape[: x.dim() - spec.event_dims], dtype=ladj_dtype, device=x.device),
    )


def _sample() -> tuple[AffineSpec, tuple[Tensor | None, ...]]:
    return AffineSpec("exp", 0.0, False), (torch.zeros(1, 1), torch.zeros(1, 1, 2), None, None)


op = Op(
    "affine",
    spec_type=AffineSpec,
    reference=reference.fwd,
    table={"cpu": native.cpu, "cuda": native.cuda, "triton": triton, "reference": reference},
    inputs=("x", "params", "shift?", "mask?"),
    n_outputs=2,
    fake=_fake,
    sample=_sample,
    grad_like=torch.empty_like,
)

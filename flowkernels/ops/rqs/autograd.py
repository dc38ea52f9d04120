"""The spline as a differentiable op. Saves x and params for backward, and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkernels.ops._routing import Op

from . import native, reference, triton
from .spec import RqsSpec


def _fake(spec: RqsSpec, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, params.dtype)
    ladj_dtype = torch.promote_types(dtype, torch.float32)
    return (
        torch.empty(x.shape, dtype=dtype, device=x.device),
        torch.empty(x.shape[:-1], dtype=ladj_dtype, device=x.device),
    )


op = Op(
    "rqs",
    spec_type=RqsSpec,
    reference=reference.fwd,
    table={"cpu": native.cpu, "cuda": native.cuda, "triton": triton, "reference": reference},
    inputs=("x", "params"),
    n_outputs=2,
    fake=_fake,
)

"""The spline as a differentiable op. Saves x and params for backward, and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkernels.ops._routing import Op

from . import native, reference, triton
from .spec import RqsSpec, make_spec


def _fake(spec: RqsSpec, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, params.dtype)
    ladj_dtype = torch.promote_types(dtype, torch.float32)
    return (
        torch.empty(x.shape, dtype=dtype, device=x.device),
        torch.empty(x.shape[:-1], dtype=ladj_dtype, device=x.device),
    )


def _sample() -> tuple[RqsSpec, tuple[Tensor, ...]]:
    spec = make_spec(8, "linear", 3.0, None, 1e-3, 1e-3, 1e-3, 1.0, "softmax", 1e-3, False)
    return spec, (torch.zeros(1, 1), torch.zeros(1, 1, spec.n_params))


op = Op(
    "rqs",
    spec_type=RqsSpec,
    reference=reference.fwd,
    table={"cpu": native.cpu, "cuda": native.cuda, "triton": triton, "reference": reference},
    inputs=("x", "params"),
    n_outputs=2,
    fake=_fake,
    sample=_sample,
)

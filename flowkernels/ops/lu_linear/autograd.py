"""The LU linear map as a differentiable op."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkernels.ops import _channels
from flowkernels.ops._routing import Op

from . import native, reference, triton
from .reference import LuSpec


def _fake(spec: LuSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    x, *parameters, _, bias = tensors
    return _channels.fake(x, spec.channel_dim, (x, *parameters, bias))


def _sample() -> tuple[LuSpec, tuple[Tensor, ...]]:
    square, vector = torch.zeros(1, 1), torch.zeros(1)
    return LuSpec(-1, False), (square, square, square, vector, vector, torch.zeros(1).long(), vector)


op = Op(
    "lu_linear",
    spec_type=LuSpec,
    reference=reference.fwd,
    table={"cpu": native.cpu, "cuda": native.cuda, "triton": triton, "reference": reference},
    inputs=("x", "lower", "upper", "log_s", "sign_s", "permutation", "bias"),
    n_outputs=2,
    fake=_fake,
    sample=_sample,
)

"""The LU linear map as a differentiable op."""

from __future__ import annotations

from torch import Tensor

from flowkernels.ops import _channels
from flowkernels.ops._routing import Op

from . import native, reference, triton
from .reference import LuSpec


def _fake(spec: LuSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    x, *parameters, _, bias = tensors
    return _channels.fake(x, spec.channel_dim, (x, *parameters, bias))


op = Op(
    "lu_linear",
    spec_type=LuSpec,
    reference=reference.fwd,
    table={"cpu": native.cpu, "cuda": native.cuda, "triton": triton, "reference": reference},
    inputs=("x", "lower", "upper", "log_s", "sign_s", "permutation", "bias"),
    n_outputs=2,
    fake=_fake,
)

"""The definition of a masked layer in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from flowkernels.ops.made.activations import FUNCTIONS
from flowkernels.ops.made.plan import LayerPlan

IS_SLOW = False


class MaskedLinearSpec(NamedTuple):
    plan: LayerPlan
    activation: str
    has_bias: bool
    has_residual: bool


def why_not(spec: MaskedLinearSpec, *tensors: Tensor) -> str | None:
    return None


def unpack(spec: MaskedLinearSpec, tensors: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
    """x, weight, and bias and residual or None; or what is told of each."""
    x, weight, *rest = tensors  # of which torch 2.11 traces no pop
    return x, weight, rest[0] if spec.has_bias else None, rest[-1] if spec.has_residual else None


def fwd(spec: MaskedLinearSpec, *tensors: Tensor) -> tuple[Tensor]:
    x, weight, bias, residual = unpack(spec, tensors)
    z = F.linear(x, spec.plan.apply(weight), bias)
    return (FUNCTIONS[spec.activation](z if residual is None else z + residual),)

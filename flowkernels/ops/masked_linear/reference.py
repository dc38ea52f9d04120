"""The definition of a masked layer in plain PyTorch."""

from __future__ import annotations

from typing import NamedTuple

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


def fwd(spec: MaskedLinearSpec, *tensors: Tensor) -> tuple[Tensor]:
    """x, weight, [bias], [residual]."""
    x, weight, *rest = tensors
    z = F.linear(x, spec.plan.apply(weight), rest[0] if spec.has_bias else None)
    return (FUNCTIONS[spec.activation](z + rest[-1] if spec.has_residual else z),)

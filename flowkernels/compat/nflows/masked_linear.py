"""nflows' MaskedLinear, and its copies, where no accelerated MADE runs it: as one masked product on its own weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flowkernels.compat.engine import thresholds
from flowkernels.compat.engine.patch import FastMethods, or_theirs
from flowkernels.compat.engine.reads import CachedRead
from flowkernels.compat.reading.masks import read_layer
from flowkernels.nets.reading import may_read
from flowkernels.ops import LayerPlan, masked_linear

_plan_of = CachedRead[LayerPlan | str](read_layer)


def _plan(layer: Any, x: Tensor) -> LayerPlan | None:
    """The plan of a call that pays, or None."""
    weight = layer._parameters.get("weight")  # None where it is parametrised
    least = thresholds.MASKED_LINEAR * (4 if thresholds.may_train() else 1)
    if (
        weight is None
        or weight.numel() < thresholds.MASKED_WEIGHT
        or not thresholds.is_enough(x.numel() * weight.shape[0], least)
    ):
        return None
    if x.dim() == 0 or x.shape[-1] != weight.shape[1] or not may_read((), weight, x, weight):
        return None
    plan = _plan_of(layer, (layer._buffers["mask"],))
    return plan if isinstance(plan, LayerPlan) else None


class MaskedLinear(FastMethods):
    """The methods of an accelerated MaskedLinear."""

    @or_theirs
    def forward(self: Any, x: Tensor) -> Any:
        plan = _plan(self, x)
        return None if plan is None else masked_linear(x, self.weight, self.bias, plan)


def masked_linear_refusal(layer: Any) -> LayerPlan | str | None:
    """Why a layer would run as before on every call, if that is a string."""
    if layer.weight.numel() < thresholds.MASKED_WEIGHT:
        return f"a product with {layer.weight.numel()} weights is as fast with those that the mask hides"
    return _plan_of(layer, (layer.mask,))

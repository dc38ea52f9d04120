"""The transform that an accelerated ConditionalSpline of Pyro returns."""

from __future__ import annotations

import functools
from typing import Any

from pyro.distributions.transforms.spline import ConditionedSpline
from torch import Tensor

from .layers import conditioned


class Conditioned(ConditionedSpline):
    """Pyro's spline of a context, evaluated by the kernel."""

    def __init__(self, layer: Any, context: Tensor) -> None:
        super().__init__(functools.partial(layer._params, context), bound=layer.bound, order=layer.order)
        self.layer, self.context = layer, context

    def spline_op(self, x: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        return conditioned(self.layer, self.context, x, inverse)

"""The definition of a flow in plain PyTorch: its layers one after another, and the sum of their log-determinants."""

from __future__ import annotations

from torch import Tensor

from flowkernels.ops.flow_layer import reference
from flowkernels.ops.flow_layer.reference import FlowLayerSpec

from . import steps
from .spec import FlowSpec, Order


def fwd(spec: FlowSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    x, parts, total = tensors[0], iter(spec.parts(tensors[1:])), None
    for step in spec.steps:
        if isinstance(step, Order):
            x = x[..., list(step.order)]
            continue
        define = reference.fwd if isinstance(step, FlowLayerSpec) else steps.fwd
        x, ladj = define(step, x, *next(parts))  # type: ignore[arg-type]
        total = ladj if total is None else total + ladj
    assert total is not None  # a flow has a layer
    return x, total

"""The definition of a flow in plain PyTorch: its layers one after another, and the sum of their log-determinants."""

from __future__ import annotations

from torch import Tensor

from flowkernels.ops.autoregressive_inverse import reference as sweep
from flowkernels.ops.autoregressive_inverse.reference import SweepSpec
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
        layer = reference if isinstance(step, FlowLayerSpec) else sweep if isinstance(step, SweepSpec) else None
        define = steps.fwd if layer is None else layer.fwd
        x, ladj = define(step, x, *next(parts))  # type: ignore[arg-type]
        total = ladj if total is None else total + ladj
    assert total is not None  # a flow has a layer
    return x, total

"""The definition of a flow in plain PyTorch: its layers one after another, and the sum of their log-determinants."""

from __future__ import annotations

from torch import Tensor

from flowkernels.ops.flow_layer import reference

from .spec import FlowSpec, Order


def fwd(spec: FlowSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    x, parts, total = tensors[0], iter(spec.parts(tensors[1:])), None
    for step in spec.steps:
        if isinstance(step, Order):
            x = x[..., list(step.order)]
            continue
        x, ladj = reference.fwd(step, x, *next(parts))
        total = ladj if total is None else total + ladj
    assert total is not None  # a flow has a layer
    return x, total

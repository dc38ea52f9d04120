"""The definition of a flow layer in plain PyTorch: a net, a univariate map, and the features put back in place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkernels.ops.made.activations import FUNCTIONS

from .spec import FlowLayerSpec


def why_not(spec: FlowLayerSpec, *tensors: Tensor) -> str | None:
    return None


def _net(spec: FlowLayerSpec, x: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
    n = (len(tensors) - sum(spec.adds) - sum(spec.gates)) // 2
    terms = iter(tensors[2 * n :])
    adds = [next(terms) if has else None for has in spec.adds] + [None] * (n - len(spec.adds))
    gates = [next(terms) if has else None for has in spec.gates] + [None] * (n - len(spec.gates))
    act = FUNCTIONS[spec.activation]

    def linear(i: int, a: Tensor) -> Tensor:
        weight = tensors[2 * i] if spec.plan is None else spec.plan.layers[i].apply(tensors[2 * i])
        z = F.linear(a, weight, tensors[2 * i + 1])
        add, gate = adds[i], gates[i]
        z = z if add is None else z + add
        return z if gate is None else z * gate

    h = linear(0, x)
    if spec.residual:
        for i in range(1, n - 1, 2):
            h = h + linear(i + 1, act(linear(i, act(h))))
        return linear(n - 1, h)
    for i in range(1, n):
        h = linear(i, act(h))
    return h


def fwd(spec: FlowLayerSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    x, *rest = tensors
    inputs, outputs = list(spec.columns.inputs), list(spec.columns.outputs)
    params = _net(spec, x[..., inputs], tuple(rest))
    params = params.unflatten(-1, (len(outputs), spec.n_params))
    mapped, ladj = spec.univariate.reference(x[..., outputs], params)
    kept = [i for i in range(spec.columns.features) if i not in set(outputs)]
    place = [0] * spec.columns.features  # in Python: a compiler cannot read a tensor
    for i, at in enumerate(kept + outputs):
        place[at] = i
    return torch.cat((x[..., kept], mapped), dim=-1)[..., place], ladj

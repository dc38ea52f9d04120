"""The definition of MADE in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from .activations import FUNCTIONS
from .plan import MadePlan

Layers = Sequence[tuple[Tensor, Tensor]]
IS_SLOW = False


class MadeSpec(NamedTuple):
    plan: MadePlan
    activation: str
    adds: tuple[bool, ...]  # which layers have something added, one flag per layer
    gates: tuple[bool, ...] = ()  # which have a gate; empty: none


def why_not(spec: MadeSpec, *tensors: Tensor) -> str | None:
    return None


def unpack(
    adds: Sequence[bool], tensors: Sequence[Tensor], gates: Sequence[bool] = ()
) -> tuple[Tensor, Layers, list[Tensor | None], list[Tensor | None]]:
    """x, then (weight, bias) per layer, then what is added, then the gates, in the order of the layers."""
    x, *rest = tensors
    n = 2 * len(adds)
    present = iter(rest[n:])
    added = [next(present) if a else None for a in adds]
    return x, list(zip(rest[:n:2], rest[1:n:2], strict=True)), added, [next(present) if g else None for g in gates]


def masked(plan: MadePlan, layers: Layers) -> Layers:
    """The layers with W∘M for W."""
    return [(layer.apply(w), b) for layer, (w, b) in zip(plan.layers, layers, strict=True)]


def network(
    plan: MadePlan,
    activation: str,
    x: Tensor,
    layers: Layers,
    adds: Sequence[Tensor | None],
    gates: Sequence[Tensor | None],
) -> Tensor:
    """x through layers that are masked already."""
    act, last = FUNCTIONS[activation], len(layers) - 1

    def linear(i: int, h: Tensor) -> Tensor:
        z, add, gate = F.linear(h, *layers[i]), adds[i], gates[i] if gates else None
        z = z if add is None else z + add
        return z if gate is None else z * gate

    h = linear(0, x)
    if plan.residual:
        for i in range(1, last, 2):
            h = h + linear(i + 1, act(linear(i, act(h))))
        return linear(last, h)
    for i in range(1, last + 1):
        h = linear(i, act(h))
    return h


def fwd(spec: MadeSpec, *tensors: Tensor) -> tuple[Tensor]:
    x, layers, adds, gates = unpack(spec.adds, tensors, spec.gates)
    return (network(spec.plan, spec.activation, x, masked(spec.plan, layers), adds, gates),)

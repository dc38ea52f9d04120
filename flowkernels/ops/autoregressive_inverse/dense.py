"""The dense products on both sides of a GPU's sweep back: activations at the solution, and gradients of the weights.

Only the triangular solve is a sequence. What it reads is one pass of the network at x, and what it leaves becomes
gradients of weights in one product a layer: all rows at once, by the library. Everything is ``[units, rows]``, in
memory's order of units, as the sweep wants it; a product may be given either operand turned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flowkernels.ops import _net
from flowkernels.ops.made.activations import FUNCTIONS
from flowkernels.ops.made.plan import MadePlan

from . import schedule
from .reference import SweepSpec


class Units(NamedTuple):
    """Of every layer: what enters it, ``LayerUnits`` of csrc/autoregressive_inverse/autoregressive_inverse.h."""

    inputs: list[Tensor]
    values: list[Tensor | None]
    grads: list[Tensor | None]
    joined: tuple[Tensor, Tensor | None] | None  # values and gradients of all layers, one after the other

    def pairs(self) -> list[tuple[Tensor | None, Tensor | None]]:
        """Value and gradient of each layer."""
        return list(zip(self.values, self.grads, strict=True))


def forward(spec: SweepSpec, net: _net.Net, x: Tensor, *, join: bool = False) -> Units:
    """The network at x ``[rows, D]``, and room for the gradients that are wanted.

    ``join``: in one tensor, for a kernel that takes no list of them; values are then those before the activation, which
    a product can write to where they are to be.
    """
    act, keeps_input = FUNCTIONS[spec.activation], join or spec.activation in _net.SLOPE_NEEDS_INPUT
    last, residual = len(net.layers) - 1, spec.plan.residual
    joined = _joined(net, x) if join else None
    values, grads = ([None] * (last + 1) if t is None else _by_layer(net, t) for t in joined or (None, None))
    units, a, stream = Units([], [], [], joined), x.t(), None
    for i, (layer, plan) in enumerate(zip(net.layers, spec.plan.layers, strict=True)):
        assert layer.bias is not None
        units.inputs.append(a)
        z = torch.addmm(layer.bias[:, None], plan.apply(layer.weight), a, out=values[i])
        if layer.add is not None:
            z += layer.add.t()
        if residual and i < last and i % 2 == 0:
            z = stream = z if stream is None else z.add_(stream)
        if residual and i == last - 1:  # the last layer reads the stream itself
            a = z
            units.values.append(None)
        else:
            a = z if i == last else act(z)
            units.values.append(z if keeps_input else a)
        units.grads.append(_room(layer, z, schedule.computes_all(spec.plan)[i], grads[i]))
    return units


def _joined(net: _net.Net, x: Tensor) -> tuple[Tensor, Tensor | None]:
    n = sum(layer.weight.shape[0] for layer in net.layers)
    values = x.new_empty(n, x.shape[0])
    return values, torch.empty_like(values) if any(map(_wants, net.layers)) else None


def _by_layer(net: _net.Net, joined: Tensor) -> Sequence[Tensor]:
    return joined.split([layer.weight.shape[0] for layer in net.layers])


def _wants(layer: _net.Layer) -> bool:
    return layer.need_weight or layer.need_bias or layer.need_add


def _room(layer: _net.Layer, z: Tensor, computed: bool, given: Tensor | None) -> Tensor | None:
    if not _wants(layer):
        return None
    room = torch.empty_like(z) if given is None else given
    return room if computed else room.zero_()  # nobody sees a unit that no step computes


def gradients(net: _net.Net, plan: MadePlan, units: Units) -> None:
    """Fills the gradients of the layers from those of what they compute."""
    for layer, mask, a, g in zip(net.layers, plan.layers, units.inputs, units.grads, strict=True):
        if g is None:
            continue
        layer.grad_weight = mask.apply(g @ a.t()) if layer.need_weight else None
        layer.grad_bias = g.sum(1) if layer.need_bias else None
        layer.grad_add = g.t().contiguous() if layer.need_add else None

"""The dense products on both sides of a GPU's sweep back: activations at the solution, and gradients of the weights.

Only the triangular solve is a sequence. What it reads is one pass of the network at x, and what it leaves becomes
gradients of weights in one product a layer: all rows at once, by the library. Everything is ``[units, rows]``, in
memory's order of units, as the sweep wants it; a product may be given either operand transposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flowkernels.ops.net.activations import FUNCTIONS, SLOPE_NEEDS_INPUT
from flowkernels.ops.net.native import flat, rows_dense
from flowkernels.ops.net.plan import LayerPlan
from flowkernels.ops.net.spec import unpack

from . import schedule
from .reference import SweepSpec


class Layer(NamedTuple):
    """A layer of a call, and which of its gradients are wanted."""

    mask: LayerPlan
    weight: Tensor
    bias: Tensor
    add: Tensor | None  # [rows, n_out]
    need_weight: bool
    need_bias: bool
    need_add: bool

    @property
    def is_wanted(self) -> bool:
        return self.need_weight or self.need_bias or self.need_add


def layers_of(spec: SweepSpec, tensors: Sequence[Tensor], needs: Sequence[bool]) -> list[Layer]:
    """The layers of a call; z is the first of the tensors."""
    (z, parts), (_, need) = unpack(spec.net, tensors), unpack(spec.net, needs)
    lead, found = z.shape[:-1], []
    for i, mask in enumerate(spec.net.masks()):
        add = parts.adds[i]
        add = None if add is None else flat(add.expand(*lead, add.shape[-1]))
        weight, bias = rows_dense(parts.weights[i]), rows_dense(parts.biases[i])
        found.append(Layer(mask, weight, bias, add, need.weights[i], need.biases[i], bool(need.adds[i])))
    return found


class Units(NamedTuple):
    """Of every layer: what enters it, ``LayerUnits`` of csrc/autoregressive_inverse/autoregressive_inverse.h."""

    inputs: list[Tensor]
    values: list[Tensor | None]
    grads: list[Tensor | None]
    joined: tuple[Tensor, Tensor | None] | None  # values and gradients of all layers, one after the other

    def pairs(self) -> list[tuple[Tensor | None, Tensor | None]]:
        """Value and gradient of each layer."""
        return list(zip(self.values, self.grads, strict=True))


def forward(spec: SweepSpec, layers: Sequence[Layer], x: Tensor, *, join: bool = False) -> Units:
    """The network at x ``[rows, D]``, and room for the gradients that are wanted.

    ``join``: in one tensor, for a kernel that takes no list of them; values are then those before the activation, which
    a product can write to where they are to be.
    """
    act, keeps_input = FUNCTIONS[spec.net.activation], join or spec.net.activation in SLOPE_NEEDS_INPUT
    last, residual = len(layers) - 1, spec.net.residual
    joined = _joined(layers, x) if join else None
    values, grads = ([None] * (last + 1) if t is None else _by_layer(layers, t) for t in joined or (None, None))
    units, a, stream = Units([], [], [], joined), x.t(), None
    for i, layer in enumerate(layers):
        units.inputs.append(a)
        z = torch.addmm(layer.bias[:, None], layer.mask.apply(layer.weight), a, out=values[i])
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
        units.grads.append(_room(layer, z, schedule.computes_all(spec.plan())[i], grads[i]))
    return units


def _joined(layers: Sequence[Layer], x: Tensor) -> tuple[Tensor, Tensor | None]:
    n = sum(layer.mask.n_out for layer in layers)
    values = x.new_empty(n, x.shape[0])
    return values, torch.empty_like(values) if any(layer.is_wanted for layer in layers) else None


def _by_layer(layers: Sequence[Layer], joined: Tensor) -> Sequence[Tensor]:
    return joined.split([layer.mask.n_out for layer in layers])


def _room(layer: Layer, z: Tensor, computed: bool, given: Tensor | None) -> Tensor | None:
    if not layer.is_wanted:
        return None
    room = torch.empty_like(z) if given is None else given
    return room if computed else room.zero_()  # nobody sees a unit that no step computes


def gradients(layers: Sequence[Layer], units: Units) -> list[Tensor | None]:
    """The gradients of weights and biases, and then of what is added, from those of what the layers compute."""
    found: list[Tensor | None] = []
    of_terms: list[Tensor | None] = []
    for layer, a, g in zip(layers, units.inputs, units.grads, strict=True):
        found.append(layer.mask.apply(g @ a.t()) if g is not None and layer.need_weight else None)
        found.append(g.sum(1) if g is not None and layer.need_bias else None)
        if layer.add is not None:
            of_terms.append(g.t().contiguous() if g is not None and layer.need_add else None)
    return [*found, *of_terms]

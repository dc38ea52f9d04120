"""nflows' ResidualNet, and its copies, as one op on its own weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkernels.compat.engine.patch import FastMethods, or_theirs
from flowkernels.compat.reading.operands import mixed
from flowkernels.nets.dense_reading import Dense, read_residual
from flowkernels.nets.reading import Kept, Walk
from flowkernels.ops.net import run_residual_net
from flowkernels.ops.net.activations import name_of

from .classes import kind


def read(walk: Walk, net: Any, has_context: bool) -> Dense | None:
    """None where the network, or a block that was put in, must be called."""
    for block in net._modules["blocks"]._modules.values():
        if kind(type(block)) != "ResidualBlock":
            return None
    return read_residual(walk, net, has_context)


_kept = Kept[Dense](read)


def run(net: Any, x: Tensor, context: Tensor | None) -> Tensor | None:
    """The network's output; None where it must be called.

    The library joins a context to x row by row and refuses one of other rows, which the op would share among them.
    """
    if torch.compiler.is_compiling() or x.dim() != 2:
        return None
    if context is not None and (context.dim() != 2 or context.shape[0] != x.shape[0]):
        return None
    layers = _kept(net, context is not None)
    if layers is not None and layers.wants_layers(x.shape[:-1]):
        return None if net._modules.get("preprocessing") is not None else layers.run_layers(x, context)
    found = None if layers is None else layers.net(x.shape[:-1], context)
    if found is None or mixed(x, found.tensors[0]):
        return None
    preprocessing = net._modules.get("preprocessing")  # of normflows
    x = x if preprocessing is None else preprocessing(x)
    return run_residual_net(x, found) if x.shape[-1] == found.n_in() else None


def residual_refusal(net: Any) -> str | None:
    """Why a network would run as before on every call, or None. Hooks, dropout and training may come and go."""
    for block in net.blocks:
        if kind(type(block)) != "ResidualBlock":
            return f"a block is a {type(block).__name__}, not a ResidualBlock"
        activation = block.activation  # one that works in place changes the stream that the block adds to
        if name_of(activation) is None:
            return f"its activation is {getattr(activation, '__name__', repr(activation))}, which no kernel has"
    return None


class Residual(FastMethods):
    """The methods of an accelerated ResidualNet."""

    @or_theirs
    def forward(self: Any, inputs: Tensor, context: Tensor | None = None) -> Any:
        return run(self, inputs, context)

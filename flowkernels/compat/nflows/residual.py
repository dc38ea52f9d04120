"""nflows' ResidualNet, and its copies, as one op on its own weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowkernels.compat.engine.patch import FastMethods, original_class
from flowkernels.compat.reading.operands import mixed
from flowkernels.ops import residual_net
from flowkernels.ops.residual_net import layers_of

from .classes import kind

_RELU = (nn.functional.relu, torch.relu)


def layers(net: Any, x: Tensor, context: Tensor | None) -> list[tuple[Tensor, Tensor]] | None:
    """The network's layers for one op; None where it, or a block that was put in, must be called.

    The library joins a context to x row by row and refuses one of other rows, which the op would share among them.
    """
    if context is not None and (context.dim() != 2 or context.shape[0] != x.shape[0]):
        return None
    blocks = net._modules["blocks"]._modules.values()
    found = layers_of(net, context) if all(kind(type(block)) == "ResidualBlock" for block in blocks) else None
    return found if found is None or found[0][0].dtype is x.dtype else None


def run(net: Any, x: Tensor, context: Tensor | None) -> Tensor | None:
    """The network's output; None where it must be called."""
    found = None if torch.compiler.is_compiling() or x.dim() != 2 else layers(net, x, context)
    if found is None or mixed(x, found[0][0]):
        return None
    preprocessing = getattr(net, "preprocessing", None)  # of normflows
    x = x if preprocessing is None else preprocessing(x)
    return residual_net(x, found, blocks=len(net.blocks), context=context)


def residual_refusal(net: Any) -> str | None:
    """Why a network would run as before on every call, or None. Hooks and dropout may come and go."""
    for block in net.blocks:
        if kind(type(block)) != "ResidualBlock":
            return f"a block is a {type(block).__name__}, not a ResidualBlock"
        if block.use_batch_norm:
            return "it has batch norm"
        activation = block.activation  # one that works in place changes the stream that the block adds to
        if activation not in _RELU and not (type(activation) is nn.ReLU and not activation.inplace):
            return f"its activation is {getattr(activation, '__name__', repr(activation))}, not relu"
    return None


class Residual(FastMethods):
    """The methods of an accelerated ResidualNet."""

    def forward(self: Any, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        outputs = run(self, inputs, context)
        return original_class(self).forward(self, inputs, context) if outputs is None else outputs

"""nflows' ConvResidualNet with its modules called, but channels last, in place, and large batches in pieces."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from flowkernels.compat.convolutions import pays
from flowkernels.compat.engine.patch import FastMethods, or_theirs
from flowkernels.nets.common import channels_last
from flowkernels.nets.conv_reading import activation_of, enter_conv, in_pieces
from flowkernels.nets.reading import Kept, Walk, is_bare, may_compute, passes
from flowkernels.ops.conv_net.fused_torch import overwrite

from .classes import kind


def _read(walk: Walk, net: Any) -> tuple[Tensor, str] | None:
    """A weight and the activation, where nobody else has what convolutions and norms return; None where they may."""
    names: set[str | None] = set()
    convs = [net.initial_layer, net.final_layer]
    if not walk.enter(net, is_called=True) or not walk.enter(net.blocks):
        return None
    for block in net.blocks:
        if kind(type(block)) != "ConvResidualBlock" or not walk.enter(block, attributes=("activation",)):
            return None
        names.add(activation_of(walk, block.activation))
        convs += block.conv_layers
        convs += [block.context_layer] if hasattr(block, "context_layer") else []
        norms = list(block.batch_norm_layers) if block.use_batch_norm else []
        if not walk.enter(block.conv_layers) or any(type(m) is not nn.BatchNorm2d or not walk.enter(m) for m in norms):
            return None
    if None in names or len(names) != 1 or not all(enter_conv(walk, m) for m in convs):
        return None
    return net.final_layer.weight, names.pop()  # type: ignore[return-value]


_kept = Kept[tuple[Tensor, str]](_read)


def _block(block: Any, act: str, x: Tensor, context: Tensor | None) -> Tensor:
    """The block's formula; what it is given is another's until the end."""
    h = overwrite(act, block.batch_norm_layers[0](x)) if block.use_batch_norm else block.activation(x)
    h = block.conv_layers[0](h)
    h = overwrite(act, block.batch_norm_layers[1](h) if block.use_batch_norm else h)
    h = block.conv_layers[1](block.dropout(h))
    if context is not None:
        h = nn.functional.glu(torch.cat((h, block.context_layer(context)), 1), 1)
    return h.add_(x)


def _net(net: Any, act: str, x: Tensor, context: Tensor | None) -> Tensor:
    if x.dtype is not torch.float64:  # of which torch's library for CPUs runs no convolutions, in any order
        x, context = channels_last(x), None if context is None else channels_last(context)
    h = net.initial_layer(x if context is None else torch.cat((x, context), 1))
    for block in net.blocks:
        h = _block(block, act, h, context)
    return net.final_layer(h)


def run(net: Any, x: Tensor, context: Tensor | None) -> Tensor | None:
    """The network's output; None where it must be called."""
    found = _kept(net)
    if found is None or not pays(x, found[0].shape[1]) or not may_compute(found[0], x, context):
        return None
    if context is not None and (context.dim() != 4 or len(context) != len(x)):
        return None
    # A dropout that drops draws in the order of memory, which would be another one.
    if not all(is_bare(b.dropout) and passes(b.dropout) for b in net.blocks):
        return None
    step = functools.partial(_net, net, found[1])
    if any(b.use_batch_norm and b.batch_norm_layers[0].training for b in net.blocks):
        return step(x, context).contiguous()  # images depend on each other
    return in_pieces(step, found[0].shape[1], x, context)


def conv_refusal(net: Any) -> str | None:
    """Why a network would run as before on every call, or None. Hooks and dropout may come and go."""
    for block in net.blocks:
        if kind(type(block)) != "ConvResidualBlock":
            return f"a block is a {type(block).__name__}, not a ConvResidualBlock"
        if activation_of(Walk(), block.activation) is None:
            activation = block.activation
            return f"its activation is {getattr(activation, '__name__', repr(activation))}, which is not known"
    return None


class ConvResidual(FastMethods):
    """The methods of an accelerated ConvResidualNet."""

    @or_theirs
    def forward(self: Any, inputs: Tensor, context: Tensor | None = None) -> Any:
        return run(self, inputs, context)

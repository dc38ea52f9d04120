"""nflows' MADE as one op on its own weights.

The masks of the op come from the `degrees` of the layers, the inputs' being those of the outputs, and only where every
`mask` is what these degrees say. A network that has been edited, or does more than its arithmetic, runs as nflows runs
it: with batch norm, active dropout, hooks, replaced layers or an activation that the op does not know; under autocast,
which chooses the dtype of every product; and under compilers and torch.func, where buffers cannot be read.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowkernels.compat.engine import thresholds
from flowkernels.compat.engine.patch import FastMethods, or_theirs
from flowkernels.compat.engine.reads import CachedRead
from flowkernels.nets.reading import Kept, Walk, is_bare, linear, may_compute, of_parameters
from flowkernels.ops._checks import expands
from flowkernels.ops.net import MadePlan, Net, run_made
from flowkernels.ops.net.activations import name_of
from flowkernels.ops.net.net import fitting, made_net

from .classes import kind

# ---- the parts of a network ----


class Parts(NamedTuple):
    residual: bool
    linears: list[Any]  # in the order of the op
    skipped: list[Any]  # every module that one op does not call
    dropouts: list[Any]
    activation: str
    merged: bool  # the first two linears have nothing between them, and are one layer of the op


def parts_of(net: Any) -> Parts | str:
    """What a MADE is made of, or why it is not made of what one op computes."""
    # Read through the dicts of nn.Module: this runs on every call, and its attributes cost a microsecond each.
    modules = net._modules
    blocks = list(modules["blocks"]._modules.values())
    if "preprocessing" in modules:  # normflows' copy
        residual = not blocks or kind(type(blocks[0])) != "MaskedFeedforwardBlock"
        function = _activation_of(blocks[0]) if blocks else torch.relu
    else:
        residual, function = net.use_residual_blocks, _activation_of(net)
    activation = name_of(function)
    if activation is None:
        return f"its activation is {_shown(function)}"
    block_class = "MaskedResidualBlock" if residual else "MaskedFeedforwardBlock"
    linears: list[Any] = [modules["initial_layer"]]
    skipped: list[Any] = [function]
    dropouts: list[Any] = []
    for block in blocks:
        if kind(type(block)) != block_class:
            return f"a block is a {type(block).__name__}, not a {block_class}"
        inner, own = block._modules, _activation_of(block)
        if own is not function and name_of(own) != activation:
            return f"the activation of a block is {_shown(own)}, the first one {_shown(function)}"
        if "batch_norm_layers" in inner or inner.get("batch_norm") is not None:
            return "it has batch norm"
        layers = [*inner["linear_layers"]._modules.values()] if residual else [inner["linear"]]
        if len(layers) != 1 + residual:
            return f"a residual block has {len(layers)} layers, not 2"
        dropout = inner["dropout"]
        if type(dropout) is not nn.Dropout:
            return f"a dropout is a {type(dropout).__name__}"
        linears += layers
        dropouts.append(dropout)
        skipped += [block, dropout, own]
    linears.append(modules["final_layer"])
    for layer in linears:
        if kind(type(layer)) != "MaskedLinear":
            return f"a layer is a {type(layer).__name__}, not a MaskedLinear"
        if not of_parameters(layer):
            return "a layer has no weight or no bias as a parameter"  # pruned, computed by a hook, taken away
    skipped = [*linears, *(m for m in skipped if isinstance(m, nn.Module))]
    return Parts(residual, linears, skipped, dropouts, activation, "preprocessing" in modules and not residual)


def _activation_of(module: Any) -> Any:
    """A module's activation, which is a module too or a function."""
    return module._modules.get("activation") or module.__dict__.get("activation")


def _shown(activation: Any) -> str:
    return repr(activation) if isinstance(activation, nn.Module) else getattr(activation, "__name__", repr(activation))


def preprocessing_of(net: Any) -> nn.Module | None:
    """What normflows' copy puts in front of the first layer, if that does anything."""
    found = net._modules.get("preprocessing")
    return None if found is None or (type(found) is nn.Identity and is_bare(found)) else found


# ---- its plan ----


def _read_plan(*buffers_and_kind: Any) -> MadePlan | str:
    """The plan of the degrees and the mask of every layer, the first two as one where merged; why there is none."""
    *buffers, residual, merged = buffers_and_kind
    degrees, masks = buffers[::2], buffers[1::2]
    rows, features = [d.tolist() for d in degrees], masks[0].shape[1]
    rows.insert(0, rows[-1][:: max(1, len(rows[-1]) // features)])  # those of the features' first output
    try:
        plan = MadePlan(rows, residual=residual)
    except ValueError as error:
        return str(error)
    for i, (given, by_degrees) in enumerate(zip(masks, plan.layers, strict=True)):
        ins, outs = by_degrees.degrees_in, by_degrees.degrees_out[:, None]
        mask = outs > ins if by_degrees.strict else outs >= ins
        if not torch.equal(given, mask.to(given)):
            return f"the mask of layer {i} is not the one of its degrees"
    return MadePlan([rows[0], *rows[2:]]) if merged else plan


_plan = CachedRead[MadePlan | str](_read_plan)


def _plan_of(net: Any, parts: Parts) -> MadePlan | str | None:
    """The plan; why the masks have none; or None where their values cannot be read now."""
    buffers = [layer._buffers[name] for layer in parts.linears for name in ("degrees", "mask")]
    return _plan(net, buffers, parts.residual, parts.merged)


# ---- the network as one op ----


class Read(NamedTuple):
    """What was read of a network: as a call without a context has it, but for what `merged` layers are."""

    net: Net
    merged: bool  # its first layer is made of two, anew in every call

    def of_call(self, net: Any) -> Net | None:
        if not self.merged:
            return self.net
        first, second = net._modules["initial_layer"], net._modules["blocks"]._modules["0"]._modules["linear"]
        return fitting(self.net.with_layers([_merged(first, second), *self.net.layers()[1:]]))


def read(walk: Walk, net: Any) -> Read | None:
    """None where the modules must be called. Hooks of the network itself are the caller's business."""
    parts = parts_of(net)
    if isinstance(parts, str) or not walk.enter(net, attributes=_OF_NET, is_called=True):
        return None
    walk.enter(net._modules["blocks"])
    layers = [linear(walk, m, type(m), buffers=("degrees", "mask")) for m in parts.linears]
    rest = [m for m in parts.skipped if m not in parts.linears]
    if None in layers or not all(walk.enter(m, attributes=_OF_PARTS) for m in rest):
        return None
    for block in net._modules["blocks"]._modules.values():
        inner = block._modules.get("linear_layers")
        if inner is not None:
            walk.enter(inner)
    if any(d.training and d.p > 0 for d in parts.dropouts):
        return None
    plan = _plan_of(net, parts)
    if not isinstance(plan, MadePlan):
        return None
    found = made_net(layers[parts.merged :], plan, parts.activation)
    return Read(found, parts.merged) if parts.merged or fitting(found) is not None else None


_OF_NET = ("activation", "use_residual_blocks", "preprocessing")
_OF_PARTS = ("activation", "training", "p", "inplace", "negative_slope", "alpha", "approximate", "batch_norm")
_kept = Kept[Read](read)


def as_net(
    net: Any, x: Tensor, context: Tensor | None, *, preprocessed: bool = False, inverse: bool = False
) -> Net | None:
    """The network as an op takes it; None where the modules must be called.

    normflows' networks may have a map in front of their first layer: `preprocessed` says that x has been through it,
    `inverse` that it is for a sweep. Hooks of the network itself are the caller's business.
    """
    if not preprocessed and preprocessing_of(net) is not None:
        return None
    found = _kept(net)
    if found is None or not may_compute(found.net.tensors[0], x, context):
        return None
    plan: Any = found.net.spec.plan
    if x.dim() == 0 or x.shape[-1] != plan.features:
        return None
    if found.merged and not inverse and thresholds.is_few(math.prod(x.shape[:-1]), thresholds.MERGED_ROWS):
        return None
    result = found.of_call(net)
    return result if context is None or result is None else _with_context(net, context, x, result)


def _merged(first: Any, second: Any) -> tuple[Tensor, Tensor]:
    """Two masked layers without an activation between them as one; it sees what the second may see of the inputs."""
    weight = second.weight * second.mask
    return weight @ (first.weight * first.mask), torch.addmv(second.bias, weight, first.bias)


def _with_context(net: Any, context: Tensor, x: Tensor, plain: Net) -> Net | None:
    """The network with what a context adds; None where the library refuses."""
    plan: Any = plain.spec.plan
    found = terms_of(net, context, x, plain)
    return None if found is None else made_net(plain.layers(), plan, plain.spec.activation, *found)


def terms_of(
    net: Any, context: Tensor, x: Tensor, plain: Net
) -> tuple[list[Tensor | None], list[Tensor | None]] | None:
    """What a context adds to layers, and the gates that normflows' copy makes of it; None where the library refuses."""
    if "context_layer" not in net._modules:
        return None
    plan: Any = plain.spec.plan
    adds: list[Tensor | None] = [None] * plain.spec.n
    gates: list[Tensor | None] = [None] * plain.spec.n
    if "preprocessing" in net._modules:
        if context.shape[:-1] != x.shape[:-1] or x.dim() < 2 or not plan.residual:
            return None
        adds[0] = net.context_layer(context)
        gates[2:-1:2] = [torch.sigmoid(block.context_layer(context)) for block in net.blocks]
    else:
        if context.dim() == 0 or not expands(context.shape[:-1], x.shape[:-1]):
            return None
        adds[0] = net.activation(net.context_layer(context))
        if plan.residual:
            adds[1:-1:2] = [block.context_layer(context) for block in net.blocks]
    return adds, gates


def made_refusal(net: Any) -> str | None:
    """Why a MADE would run as before on every call, or None. Hooks and dropout may come and go."""
    try:
        parts = parts_of(net)
        plan = parts if isinstance(parts, str) else _plan_of(net, parts)
    except Exception as error:  # edited beyond recognition, or another version of nflows
        return f"its layout is not the one that flowkernels knows ({error})"
    return plan if isinstance(plan, str) else None


class Made(FastMethods):
    """The methods of an accelerated MADE."""

    runs_its_parts = True

    @or_theirs
    def forward(self: Any, inputs: Tensor, context: Tensor | None = None) -> Any:
        preprocessing = preprocessing_of(self)
        x = inputs if preprocessing is None else preprocessing(inputs)
        found = as_net(self, x, context, preprocessed=preprocessing is not None)
        return None if found is None else run_made(x, found)

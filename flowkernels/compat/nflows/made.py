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
from flowkernels.compat.engine.patch import FastMethods, original_class
from flowkernels.compat.engine.reads import CachedRead
from flowkernels.compat.reading import is_bare, may_read, of_parameters
from flowkernels.ops._checks import expands
from flowkernels.ops.made import FUNCTIONS, MadePlan, made

from .classes import kind

# ---- the parts of a network ----

_FUNCTIONS = (*FUNCTIONS.items(), ("relu", torch.relu), ("tanh", nn.functional.tanh))
# Module class → name, and the settings that the op's activation has. One that works in place, in a residual block,
# changes the stream that the block adds to: another function.
_MODULES: dict[type, tuple[str, dict[str, Any]]] = {
    nn.ReLU: ("relu", {"inplace": False}),
    nn.LeakyReLU: ("leaky_relu", {"inplace": False, "negative_slope": 0.01}),
    nn.ELU: ("elu", {"inplace": False, "alpha": 1.0}),
    nn.GELU: ("gelu", {"approximate": "none"}),
    nn.SiLU: ("silu", {"inplace": False}),
    nn.Tanh: ("tanh", {}),
    nn.Identity: ("identity", {}),
}


def _activation(activation: Any) -> str | None:
    """Its name in the table of the ops, or None."""
    if isinstance(activation, nn.Module):
        if type(activation) is nn.LeakyReLU and activation.negative_slope == 0 and not activation.inplace:
            return "relu"  # of normflows' MLP
        name, settings = _MODULES.get(type(activation), (None, {}))
        return name if all(getattr(activation, n) == value for n, value in settings.items()) else None
    return next((name for name, function in _FUNCTIONS if function is activation), None)


class _Parts(NamedTuple):
    residual: bool
    linears: list[Any]  # in the order of the op
    skipped: list[Any]  # every module that one op does not call
    dropouts: list[Any]
    activation: str
    merged: bool  # the first two linears have nothing between them, and are one layer of the op


def _parts(net: Any) -> _Parts | str:
    """What a MADE is made of, or why it is not made of what one op computes."""
    # Read through the dicts of nn.Module: this runs on every call, and its attributes cost a microsecond each.
    modules = net._modules
    blocks = list(modules["blocks"]._modules.values())
    if "preprocessing" in modules:  # normflows' copy
        residual = not blocks or kind(type(blocks[0])) != "MaskedFeedforwardBlock"
        function = _activation_of(blocks[0]) if blocks else torch.relu
    else:
        residual, function = net.use_residual_blocks, _activation_of(net)
    activation = _activation(function)
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
        if own is not function and _activation(own) != activation:
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
    return _Parts(residual, linears, skipped, dropouts, activation, _is_merged(modules))


def _is_merged(modules: dict[str, Any]) -> bool:
    """Whether the first two layers of a network of these modules have nothing between them."""
    blocks = modules["blocks"]._modules
    return "preprocessing" in modules and "0" in blocks and kind(type(blocks["0"])) == "MaskedFeedforwardBlock"


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


def _plan_of(net: Any, parts: _Parts) -> MadePlan | str | None:
    """The plan; why the masks have none; or None where their values cannot be read now."""
    buffers = [layer._buffers[name] for layer in parts.linears for name in ("degrees", "mask")]
    return _plan(net, buffers, parts.residual, parts.merged)


# ---- the network as one op ----


def arguments(
    net: Any, x: Tensor, context: Tensor | None, *, preprocessed: bool = False, inverse: bool = False
) -> dict[str, Any] | None:
    """What `ops.made` and `ops.autoregressive_inverse` take beside x; None where the modules must be called.

    normflows' networks may have a map in front of their first layer: `preprocessed` says that x has been through it,
    `inverse` that it is for a sweep. Hooks of the network itself are the caller's business.
    """
    if not inverse and thresholds.is_few(math.prod(x.shape[:-1]), thresholds.MERGED_ROWS) and _is_merged(net._modules):
        return None
    if not preprocessed and preprocessing_of(net) is not None:
        return None
    parts = _parts(net)
    if isinstance(parts, str) or not may_read(parts.skipped, parts.linears[0]._parameters["weight"], x):
        return None
    if any(d.training and d.p > 0 for d in parts.dropouts):
        return None
    plan = _plan_of(net, parts)
    if not isinstance(plan, MadePlan) or x.dim() == 0 or x.shape[-1] != plan.features:
        return None
    layers = [(layer._parameters["weight"], layer._parameters["bias"]) for layer in parts.linears]
    if parts.merged:
        layers[:2] = [_merged(*parts.linears[:2])]
    found: dict[str, Any] = {"layers": layers, "plan": plan, "activation": parts.activation}
    if context is None:
        return found
    terms = _of_context(net, context, x, parts)
    return None if terms is None else found | terms


def _merged(first: Any, second: Any) -> tuple[Tensor, Tensor]:
    """Two masked layers without an activation between them as one; it sees what the second may see of the inputs."""
    weight = second.weight * second.mask
    return weight @ (first.weight * first.mask), torch.addmv(second.bias, weight, first.bias)


def _of_context(net: Any, context: Tensor, x: Tensor, parts: _Parts) -> dict[str, Any] | None:
    """What a context adds to layers, and the gates that normflows' copy makes of it; None where the library refuses."""
    if "context_layer" not in net._modules:
        return None
    n = len(parts.linears)
    adds: list[Tensor | None] = [None] * n
    if "preprocessing" in net._modules:
        if context.shape[:-1] != x.shape[:-1] or x.dim() < 2:
            return None
        gates: list[Tensor | None] = [None] * n
        adds[0] = net.context_layer(context)
        gates[2:-1:2] = [torch.sigmoid(block.context_layer(context)) for block in net.blocks]
        return {"adds": adds, "gates": gates}
    if not _broadcasts(context, x):
        return None
    adds[0] = net.activation(net.context_layer(context))
    if parts.residual:
        adds[1:-1:2] = [block.context_layer(context) for block in net.blocks]
    return {"adds": adds}


def _broadcasts(context: Tensor, x: Tensor) -> bool:
    return context.dim() > 0 and expands(context.shape[:-1], x.shape[:-1])


def made_refusal(net: Any) -> str | None:
    """Why a MADE would run as before on every call, or None. Hooks and dropout may come and go."""
    try:
        parts = _parts(net)
        plan = parts if isinstance(parts, str) else _plan_of(net, parts)
    except Exception as error:  # edited beyond recognition, or another version of nflows
        return f"its layout is not the one that flowkernels knows ({error})"
    return plan if isinstance(plan, str) else None


class Made(FastMethods):
    """The methods of an accelerated MADE."""

    runs_its_parts = True

    def forward(self: Any, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        preprocessing = preprocessing_of(self)
        if preprocessing is None:
            found = arguments(self, inputs, context)
            return original_class(self).forward(self, inputs, context) if found is None else made(inputs, **found)
        x = preprocessing(inputs)
        found = arguments(self, x, context, preprocessed=True)
        return original_class(self).forward(self, inputs, context) if found is None else made(x, **found)

"""Reads the layers of a residual net off its modules, where calling them would do nothing but their arithmetic."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as _module

# Not those that work in place: they change the stream that a block adds to.
_RELU = (F.relu, torch.relu)


# Read through __dict__: this runs on every call of every layer, and nn.Module's attributes cost a microsecond each.
def hooked(m: nn.Module) -> bool:
    """Whether calling this module does more than its class's forward, or runs a forward of its own."""
    d = m.__dict__
    return bool(
        d["_forward_hooks"]
        or d["_forward_pre_hooks"]
        or d["_backward_hooks"]
        or d["_backward_pre_hooks"]
        or "forward" in d
    )


def hooked_globally() -> bool:
    """Whether hooks are registered on all modules. torch has this function too, but not torch 2.6."""
    return bool(
        _module._global_forward_hooks
        or _module._global_forward_pre_hooks
        or _module._global_backward_hooks
        or _module._global_backward_pre_hooks
    )


def _is_relu(activation: Any) -> bool:
    if isinstance(activation, nn.Module):
        return type(activation) is nn.ReLU and not activation.inplace and not hooked(activation)
    return activation in _RELU


def passes(dropout: Any) -> bool:
    """Whether a dropout, or what was put in its place, returns its input now."""
    if dropout is None:
        return True
    if hooked(dropout):
        return False
    return type(dropout) is nn.Identity or (type(dropout) is nn.Dropout and (not dropout.training or dropout.p == 0))


def _add(layers: list[tuple[Tensor, Tensor]], m: Any) -> bool:
    """Appends a linear layer, unless it is anything more: weight norm, parametrizations, LoRA, hooks."""
    if type(m) is not nn.Linear or hooked(m):
        return False
    parameters = m.__dict__["_parameters"]
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if weight is None or bias is None:
        return False
    layers.append((weight, bias))
    return True


def plain_layers_of(linears: list[nn.Module], dropout: nn.Module | None, net: nn.Module) -> list | None:
    """The layers of a net of linear layers with an activation between them; None where it must be called."""
    if hooked_globally() or hooked(net) or not passes(dropout):
        return None
    layers: list[tuple[Tensor, Tensor]] = []
    return layers if all(_add(layers, m) for m in linears) else None


def layers_of(net: Any, context: Tensor | None) -> list[tuple[Tensor, Tensor]] | None:
    """The layers of a net built like nflows' ResidualNet, for `ops.residual_net`; None where it must be called.

    It must be called where it has hooks, another activation than relu, batch norm, active dropout, replaced layers,
    a forward of an instance's own, or a context it was not built for (or the other way round).
    """
    if hooked_globally() or hooked(net):
        return None
    layers: list[tuple[Tensor, Tensor]] = []
    parts = net.__dict__["_modules"]
    plain = _add(layers, parts["initial_layer"])
    for block in parts["blocks"]._modules.values():
        inner = block.__dict__["_modules"]
        act = inner.get("activation", block.__dict__.get("activation"))
        dropout, gate = inner.get("dropout"), inner.get("context_layer")
        linears = list(inner["linear_layers"]._modules.values())
        plain = (
            plain
            and len(linears) == 2
            and not hooked(block)
            and _is_relu(act)
            and inner.get("batch_norm_layers") is None
            and passes(dropout)
            and _add(layers, linears[0])
            and _add(layers, linears[1])
            and ((gate is None) == (context is None))
            and (gate is None or _add(layers, gate))
        )
        if not plain:
            return None
    return layers if plain and _add(layers, parts["final_layer"]) else None

"""Reads the layers of a residual net off its modules, where calling them would do nothing but their arithmetic."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as _module

_RELU = (F.relu, torch.relu, F.relu_)


def _hooked(m: nn.Module) -> bool:
    return bool(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)


def _add(layers: list[tuple[Tensor, Tensor]], m: Any) -> bool:
    """Appends a linear layer, unless it is anything more: weight norm, parametrizations, LoRA, hooks."""
    if type(m) is not nn.Linear or m.bias is None or _hooked(m):
        return False
    layers.append((m.weight, m.bias))
    return True


def layers_of(net: Any, context: Tensor | None) -> list[tuple[Tensor, Tensor]] | None:
    """The layers of a net built like nflows' ResidualNet, for `ops.residual_net`; None where it must be called.

    It must be called where it has hooks, another activation than relu, batch norm, active dropout, replaced layers,
    or a context it was not built for (or the other way round).
    """
    if _module._has_any_global_hook() or _hooked(net):
        return None
    layers: list[tuple[Tensor, Tensor]] = []
    plain = _add(layers, net.initial_layer)
    for block in net.blocks:
        act, dropout, gate = block.activation, block.dropout, getattr(block, "context_layer", None)
        plain = (
            plain
            and not _hooked(block)
            and (act in _RELU or (type(act) is nn.ReLU and not _hooked(act)))
            and getattr(block, "batch_norm_layers", None) is None
            and (dropout is None or not dropout.training or dropout.p == 0)
            and _add(layers, block.linear_layers[0])
            and _add(layers, block.linear_layers[1])
            and ((gate is None) == (context is None))
            and (gate is None or _add(layers, gate))
        )
        if not plain:
            return None
    return layers if plain and _add(layers, net.final_layer) else None

"""Dense networks read off their modules: plain ones, and residual ones built like nflows' ResidualNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from flowkernels.ops.net.checks import check_widths
from flowkernels.ops.net.net import Layers, Net, dense_net

from .reading import Walk, activation, linear, no_dropout


class Dense:
    """The layers of a dense network, those of a context among them; and the network of a call without one."""

    def __init__(self, layers: Layers, residual: bool, activation: str) -> None:
        self.layers, self.residual, self.activation = layers, residual, activation
        self._plain: Net | None = None

    def net(self, lead: Sequence[int], context: Tensor | None) -> Net:
        """The network of a call on an x with these leading dims."""
        if context is not None:
            features = self.layers[0][0].shape[1] - context.shape[-1]
            return dense_net(self.layers, self.residual, self.activation, features, lead, context)
        if self._plain is None:
            self._plain = dense_net(self.layers, self.residual, self.activation, 0, lead, None)
        return self._plain


def _dense(layers: list[Any], residual: bool, act: str, has_context: bool) -> Dense | None:
    """None where the layers do not fit each other: called, torch says so."""
    (first, _), n_context = layers[0], layers[3][0].shape[1] if has_context and residual and len(layers) > 4 else 0
    try:
        check_widths("nets", first.shape[1] - n_context, n_context, layers, residual, 3 if has_context else 2)
    except ValueError:
        return None
    return Dense(layers, residual, act)


def read_plain(
    walk: Walk, owner: nn.Module, linears: Sequence[Any], dropout: Any, widest: int, name: str = "activation"
) -> Dense | None:
    """Linear layers with an activation (and dropout) between them; None where they must be called, or better are."""
    act = activation(walk, owner, name)
    if act is None or not no_dropout(walk, dropout):
        return None
    layers = [linear(walk, m) for m in linears]
    if None in layers or any(len(bias) > widest for _, bias in layers[:-1]):
        return None
    return _dense(layers, False, act, False)


def read_residual(walk: Walk, net: Any, has_context: bool) -> Dense | None:
    """A net built like nflows' ResidualNet; None where it must be called.

    It must be called where it has hooks, an activation that no kernel knows, batch norm, active dropout, replaced
    layers, a forward of an instance's own, or a context it was not built for (or the other way round).
    """
    if not walk.enter(net):
        return None
    parts = net.__dict__["_modules"]
    if not walk.enter(parts["blocks"]):
        return None
    layers, acts = [linear(walk, parts["initial_layer"])], set()
    for block in parts["blocks"]._modules.values():
        inner = block.__dict__["_modules"]
        linears = list(inner["linear_layers"]._modules.values())
        gate = inner.get("context_layer")
        if not (
            len(linears) == 2
            and inner.get("batch_norm_layers") is None
            and (gate is not None) == has_context
            and walk.enter(block, attributes=("activation", "batch_norm_layers", "dropout", "context_layer"))
            and walk.enter(inner["linear_layers"])
            and no_dropout(walk, inner.get("dropout"))
        ):
            return None
        acts.add(activation(walk, block))
        layers += [linear(walk, m) for m in linears]
        if gate is not None:
            layers.append(linear(walk, gate))
    layers.append(linear(walk, parts["final_layer"]))
    if None in layers or None in acts or len(acts) > 1:
        return None
    return _dense(layers, True, acts.pop() if acts else "relu", has_context)

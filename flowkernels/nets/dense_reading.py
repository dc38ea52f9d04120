"""Dense networks read off their modules: plain ones, and residual ones built like nflows' ResidualNet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from flowkernels.ops.net.checks import check_widths
from flowkernels.ops.net.net import Layers, Net, dense_net

from .batch_norms import BatchNorms, read_norms
from .reading import Walk, activation, linear, no_dropout


class Dense:
    """The layers of a dense network, those of a context among them; and the network of a call without one."""

    def __init__(self, layers: Layers, residual: bool, activation: str, norm: BatchNorms | None = None) -> None:
        self.layers, self.residual, self.activation, self.norm = layers, residual, activation, norm
        self._plain: Net | None = None

    def net(self, lead: Sequence[int], context: Tensor | None) -> Net:
        """The network of a call on an x with these leading dims."""
        features = 0 if context is None else self.layers[0][0].shape[1] - context.shape[-1]
        given = self.layers, self.residual, self.activation, features, lead, context
        if context is not None or self.norm is not None:
            return dense_net(*given, () if self.norm is None else self.norm.pairs())
        if self._plain is None:
            self._plain = dense_net(*given)
        return self._plain

    @property
    def looks_at_its_batch(self) -> bool:
        """Whether rows depend on each other, by batch norm in training: it is then no `Net`."""
        return self.norm is not None and self.norm.training

    def wants_layers(self, lead: Sequence[int]) -> bool:
        """Whether it is to run layer by layer now, by `run_layers`, on an x with these leading dims."""
        return self.norm is not None and self.norm.want_layers(self.layers, math.prod(lead))

    def run_layers(self, x: Tensor, context: Tensor | None) -> Tensor | None:
        """The output of a network that wants layers; None where it must be called."""
        assert self.norm is not None
        return self.norm.run(self.layers, self.activation, x, context)

    def fixed(self, has_context: bool) -> Net | None:
        """The network of all calls, where its tensors are the same in each."""
        return None if has_context or self.norm is not None else self.net((), None)

    def statistics(self) -> list[Tensor]:
        """What its batch norms own."""
        return [] if self.norm is None else self.norm.tensors()


def _dense(
    layers: list[Any], residual: bool, act: str, has_context: bool, norm: BatchNorms | None = None
) -> Dense | None:
    """None where the layers do not fit each other: called, torch says so."""
    (first, _), n_context = layers[0], layers[3][0].shape[1] if has_context and residual and len(layers) > 4 else 0
    try:
        check_widths("nets", first.shape[1] - n_context, n_context, layers, residual, 3 if has_context else 2)
    except ValueError:
        return None
    of_stream = layers[0][1]
    if norm is not None and any(t.shape != of_stream.shape or t.dtype != of_stream.dtype for t in norm.tensors()):
        return None
    return Dense(layers, residual, act, norm)


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


_OF_BLOCKS = ("activation", "batch_norm_layers", "use_batch_norm", "dropout", "context_layer")


def read_residual(walk: Walk, net: Any, has_context: bool) -> Dense | None:
    """A net built like nflows' ResidualNet; None where it must be called.

    It must be called where it has hooks, an activation that no kernel knows, active dropout, replaced layers, a forward
    of an instance's own, or a context it was not built for (or the other way round). Where its batch norms look at
    their batch, it is no `Net`, and `Dense.run_layers` runs it.
    """
    if not walk.enter(net):
        return None
    parts = net.__dict__["_modules"]
    if not walk.enter(parts["blocks"]):
        return None
    layers, acts, norms = [linear(walk, parts["initial_layer"])], set(), []
    for block in parts["blocks"]._modules.values():
        inner = block.__dict__["_modules"]
        linears = list(inner["linear_layers"]._modules.values())
        gate = inner.get("context_layer")
        if not (
            len(linears) == 2
            and read_norms(walk, block, norms)
            and (gate is not None) == has_context
            and walk.enter(block, attributes=_OF_BLOCKS)
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
    norm = BatchNorms(norms) if norms else None
    if norm is not None and not (norm.agree() and len(norms) == 2 * len(parts["blocks"]._modules)):
        return None
    return _dense(layers, True, acts.pop() if acts else "relu", has_context, norm)

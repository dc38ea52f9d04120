"""A layer of nflows as a part: read once, and run as one op by itself or with its neighbours (`transforms.parts`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from flowkernels.compat.engine import thresholds
from flowkernels.compat.engine.patch import layer_of
from flowkernels.compat.engine.runs import or_called
from flowkernels.compat.layer import Layer, in_our_order, native_last
from flowkernels.nets.dense_reading import Dense
from flowkernels.nets.reading import Walk
from flowkernels.ops.flow_layer import every
from flowkernels.ops.net import Net
from flowkernels.ops.net.net import made_net
from flowkernels.ops.net.spec import NetSpec
from flowkernels.transforms.parts import Part, part_of

from . import classes, made, residual

# What their `describe` reads of a layer and of its network, but for parts and buffers.
_SETTINGS = (
    "features", "tails", "tail_bound", "num_bins", "min_bin_width", "min_bin_height", "min_derivative", "_epsilon",
    "scale_activation", "unconditional_transform",
)  # fmt: skip
_WIDTHS = ("hidden_features", "hidden_channels")


class _Dense:
    """A dense network of a coupling, as a run asks for it in every call."""

    def __init__(self, found: Dense) -> None:
        self.found = found

    def as_net(self, x: Tensor, context: Tensor | None) -> Net | None:
        if context is not None and (context.dim() != 2 or context.shape[0] != x.shape[0]):
            return None  # nflows joins them row by row
        if self.found.norm is not None and self.found.wants_layers(x.shape[:-1]):
            return None
        return self.found.net(x.shape[:-1], context)


class _Masked:
    """A masked network, as a run asks for it in every call."""

    def __init__(self, net: Any, found: made.Read, sweeps: bool) -> None:
        self.net, self.found, self.sweeps = net, found, sweeps
        self.spec: NetSpec | None = None

    def as_net(self, x: Tensor, context: Tensor | None) -> Net | None:
        if self.found.merged and not self.sweeps and thresholds.is_few(x.shape[0], thresholds.MERGED_ROWS):
            return None
        plain = self.found.of_call(self.net)
        if context is None or plain is None:
            return plain
        found = made.terms_of(self.net, context, x, plain)
        if found is None:
            return None
        if self.spec is None:  # which terms there are is told by the modules, not by the call
            plan: Any = plain.spec.plan
            self.spec = made_net(plain.layers(), plan, plain.spec.activation, *found).spec
        return Net(self.spec, (*plain.tensors, *[t for terms in found for t in terms if t is not None]))


def _described(walk: Walk, layer: Any, name: str, buffers: Sequence[str] = ()) -> Layer | None:
    """A layer with a network of this name, whose features share one map; None where the library must be called."""
    net = layer._modules.get(name)
    if net is None or not walk.enter(layer, attributes=_SETTINGS, buffers=buffers):
        return None
    if not walk.enter(net, attributes=_WIDTHS):
        return None
    what = layer._flowkernels_layer.describe(layer)
    return None if what.own is not None else what


@or_called
def coupling(walk: Walk, layer: Any, inverse: bool, has_context: bool) -> Part | None:
    """A coupling, but for its unconditional transform, as one op with its network."""
    what = _described(walk, layer, "transform_net", ("identity_features", "transform_features"))
    if what is None or what.map is None or what.split is None or classes.kind(type(what.net)) != "ResidualNet":
        return None
    if what.net._modules.get("preprocessing") is not None:
        return None
    found = residual.read(walk, what.net, has_context)
    if found is None or found.looks_at_its_batch:
        return None
    univariate: Any = in_our_order(what.map)[0] if what.groups else what.map
    net, turned = found.fixed(has_context), univariate.inverted() if inverse else univariate
    last, more = native_last(what), found.statistics()
    return part_of(turned, _Dense(found), found.layers, net, what.split, last, more)


@or_called
def autoregressive(walk: Walk, layer: Any, inverse: bool, has_context: bool) -> Part | None:
    """An autoregressive layer as one op with its network, from latents to data a sweep."""
    what = _described(walk, layer, "autoregressive_net")
    before = None if what is None else what.net._modules.get("preprocessing")
    if before is not None and not walk.enter(before):
        return None
    if (
        what is None
        or what.map is None
        or layer_of(what.net) is not made.Made
        or made.preprocessing_of(what.net) is not None
    ):
        return None
    found = made.read(walk, what.net)
    if found is None or (has_context and "context_layer" not in what.net._modules):
        return None
    plan: Any = found.net.spec.plan
    net = None if has_context or found.merged else found.net
    masked, layers = _Masked(what.net, found, inverse), found.net.layers()
    return part_of(what.map, masked, layers, net, every(plan.features), sweeps=inverse)

"""A layer of zuko as a part: read once, and run as one op by itself or with its neighbours (`transforms.parts`)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from zuko.nn import MLP, Linear

from flowkernels.compat.engine.runs import or_called
from flowkernels.compat.reading import dense
from flowkernels.nets.dense_reading import Dense
from flowkernels.nets.reading import Walk
from flowkernels.ops.flow_layer import every
from flowkernels.ops.net import Net
from flowkernels.transforms.parts import Part, part_of

from . import describe

_SETTINGS = ("univariate", "shapes", "total", "passes")  # what `describe` reads of a layer


class _Masked:
    """A masked network of features and a context, as a run asks for it in every call."""

    def __init__(self, found: Net, features: int) -> None:
        self.found, self.features = found, features

    def as_net(self, x: Tensor, context: Tensor | None) -> Net | None:
        return describe.of_call(self.found, self.features, context)


class _Dense:
    """A dense one."""

    def __init__(self, found: Dense) -> None:
        self.found = found

    def as_net(self, x: Tensor, context: Tensor | None) -> Net | None:
        return self.found.net(x.shape[:-1], context)


@or_called
def autoregressive(walk: Walk, layer: Any, inverse: bool, has_context: bool) -> Part | None:
    """An autoregressive layer as one op with its network, from latents to data a sweep."""
    net = layer._modules.get("hyper")
    if net is None or not walk.enter(layer, attributes=_SETTINGS) or not walk.enter(net, attributes=("out_features",)):
        return None
    what, features = describe.describe(layer), net.out_features // layer.total
    found = None if isinstance(what, str) else describe.read_net(walk, net, features)
    if found is None:
        return None
    plan: Any = found.spec.plan
    if inverse and layer.passes < len(plan.groups):  # which is not the inverse
        return None
    fixed = None if has_context else describe.of_call(found, features, None)
    if fixed is None and not has_context:
        return None
    given = _Masked(found, features), found.layers(), fixed, every(features)
    return part_of(what.map, *given, sweeps=inverse)  # type: ignore[union-attr]


@or_called
def coupling(walk: Walk, layer: Any, inverse: bool, has_context: bool) -> Part | None:
    """A coupling as one op with its network."""
    net = layer._modules.get("hyper")
    if net is None or not walk.enter(layer, attributes=_SETTINGS, buffers=("mask",)):
        return None
    mask = describe.mask_of(layer, (layer.mask,))
    what = None if mask is None else describe.describe(layer, mask.split)
    if mask is None or what is None or isinstance(what, str):
        return None
    found = dense.read(walk, net, MLP, Linear)
    if found is None:
        return None
    univariate: Any = what.map
    fixed = None if has_context else found.net((), None)
    turned = univariate.inverted() if inverse else univariate
    return part_of(turned, _Dense(found), found.layers, fixed, mask.split)

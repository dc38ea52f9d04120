"""Which neighbouring layers of a `Composite` run as one op, read off their modules once and kept until they change.

Describing a layer takes Python ten times as long as a small batch takes the kernel. What was read is kept with all
that it was read from (`nets.reading.Walk`); a warm call asks whether that is as it was, and hands the parameters over.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowkernels import backends
from flowkernels._native import C
from flowkernels.nets import MADE
from flowkernels.nets.reading import Walk, hooked_globally, may_compute, still_holds
from flowkernels.ops._routing import _PLAIN
from flowkernels.ops.flow import Order, op, spec_of
from flowkernels.ops.flow.spec import Step
from flowkernels.ops.flow_layer import every
from flowkernels.ops.flow_layer.reference import FlowLayerSpec
from flowkernels.ops.net.net import Net
from flowkernels.ops.split import Split
from flowkernels.ops.univariate import Map, can_fuse, check_univariate

from .autoregressive import Autoregressive
from .base import Transform
from .coupling import Coupling
from .own_steps import AS_IT_IS, OwnPart
from .own_steps import READERS as OWN_READERS
from .permutation import Permutation
from .split import FeatureSplit

_KERNELS = (torch.float32, torch.float64)
_MAX_LAYERS = 64  # of a network: kMaxLayers of csrc/net/net.h
# Weights of a run: all of them are packed at once, and every thread sums gradients of all. Nets so large lose nothing
# by running layer by layer.
_MOST_WEIGHTS = 1 << 22


class _Part(NamedTuple):
    """A layer as it was read: a map, a conditioner, its network where there is no context, and the split."""

    univariate: Map
    conditioner: Any
    net: Net | None
    split: Split
    weights: int


class Run:
    """Neighbouring layers as one op: called as a transform is, it returns None where they must be called now."""

    def __init__(self, leaves: list[Leaf], parts: Sequence[_AnyPart]) -> None:
        self.leaves, self.parts, self.features = leaves, parts, _features(parts[0])
        self._layers = [p for p in parts if isinstance(p, _Part)]
        self._checked: set[torch.dtype] = set()
        self._spec: Any = None
        self._tensors: tuple[Tensor, ...] = ()
        nets = [p.net for p in self._layers if p.net is not None]
        if len(nets) == len(self._layers):  # without a context
            self._spec, self._tensors = self._described(nets)

    def _described(self, nets: Sequence[Net]) -> tuple[Any, tuple[Tensor, ...]]:
        """The spec of these networks, and all tensors in its order."""
        rest = iter(nets)
        steps: list[Step] = []
        tensors: list[Tensor] = []
        for p in self.parts:
            if isinstance(p, Order):
                steps.append(p)
            elif isinstance(p, OwnPart):
                steps.append(p.spec)
                tensors += p.tensors
            else:
                net = next(rest)
                steps.append(FlowLayerSpec(p.split, p.univariate, net.spec))
                tensors += net.tensors
        return spec_of(self.features, tuple(steps)), tuple(tensors)

    def __call__(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor] | None:
        if backends.default() not in ("auto", "cpu") or x.dim() == 0 or x.shape[-1] != self.features:
            return None
        spec, tensors = self._spec, self._tensors
        if spec is None:
            described = self._with_context(x, context)
            if described is None:
                return None
            spec, tensors = described
        dtype = x.dtype
        if not x.is_cpu or dtype not in _KERNELS or not may_compute(tensors[0], x, context):
            return None
        for t in tensors:  # whose `data` may be another, of another dtype, or elsewhere
            if t.dtype is not dtype or not t.is_cpu:
                return None
        if dtype not in self._checked:
            for layer in self._layers:
                check_univariate("ops.flow", layer.univariate, dtype)
            self._checked.add(dtype)
        return op.run(op.backend("cpu"), spec, (x, *tensors))  # type: ignore[return-value]

    def _with_context(self, x: Tensor, context: Tensor | None) -> tuple[Any, tuple[Tensor, ...]] | None:
        nets = []
        for layer in self._layers:
            net = layer.conditioner.as_net(x, context)
            n_out = len(layer.split.outputs) * layer.univariate.n_params
            if net is None or net.n_in() != len(layer.split.inputs) or net.n_out() != n_out:
                return None
            nets.append(net)
        return self._described(nets)


_AnyPart = _Part | OwnPart | Order


def _features(part: _AnyPart) -> int:
    if isinstance(part, Order):
        return len(part.order)
    return part.features() if isinstance(part, OwnPart) else part.split.features


def _dtype(part: _AnyPart) -> torch.dtype | None:
    """Of the tensors that a part has now: a network that sees a context is made in each call."""
    if isinstance(part, OwnPart):
        return part.tensors[0].dtype
    return None if isinstance(part, Order) or part.net is None else part.net.tensors[0].dtype


class Leaf(NamedTuple):
    """A transform to be called in one of its directions."""

    transform: Transform
    inverse: bool

    def run(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.transform.inverse(x, context) if self.inverse else self.transform(x, context)


Piece = Run | Leaf
_kept: weakref.WeakKeyDictionary[nn.Module, dict[tuple[bool, bool], tuple[Walk, list[Piece]]]]
_kept = weakref.WeakKeyDictionary()


def pieces(owner: nn.Module, transforms: nn.Module, inverse: bool, has_context: bool) -> list[Piece] | None:
    """What `owner`, which applies the modules of `transforms` one after another, runs now; None: these, one by one."""
    if C is None or torch.compiler.is_compiling() or hooked_globally():
        return None
    known = _kept.get(owner)
    if known is None:
        known = _kept[owner] = {}
    found = known.get((inverse, has_context))
    if found is not None and still_holds(found[0].modules):
        return found[1]
    walk = Walk()
    walk.enter(owner, is_called=True)
    walk.enter(transforms, is_called=True)
    listed = list(transforms._modules.values())
    said, is_settled = _read(walk, listed[::-1] if inverse else listed, inverse, has_context)
    if is_settled:
        known[inverse, has_context] = (walk, said)
    return said


def _read(walk: Walk, transforms: Sequence[Any], inverse: bool, has_context: bool) -> tuple[list[Piece], bool]:
    """The pieces, and whether they stay as they are while the walk holds: a hook that goes would be seen by none."""
    found: list[Piece] = []
    leaves: list[Leaf] = []
    parts: list[_AnyPart] = []
    is_settled = True

    def close() -> None:
        if any(isinstance(p, _Part) for p in parts):
            found.append(Run(list(leaves), list(parts)))
        else:
            found.extend(leaves)
        leaves.clear()
        parts.clear()

    for transform in transforms:
        leaf = _unwrapped(walk, transform, inverse)
        reader = _READERS.get(type(leaf.transform))
        part = None if reader is None else reader(walk, leaf.transform, leaf.inverse, has_context)
        if part is None or part == AS_IT_IS:
            is_settled = is_settled and (reader is None or part == AS_IT_IS)
            close()
            found.append(Leaf(transform, inverse))
            continue
        weights = sum(p.weights for p in (*parts, part) if not isinstance(p, Order))
        dtypes = {_dtype(p) for p in (*parts, part)} - {None}
        if parts and (_features(part) != _features(parts[0]) or len(dtypes) > 1 or weights > _MOST_WEIGHTS):
            close()
        leaves.append(leaf)
        parts.append(part)
    close()
    return found, is_settled


def _unwrapped(walk: Walk, transform: Any, inverse: bool) -> Leaf:
    """What an `Inverse` turns round, in the other direction."""
    from .composite import Inverse  # which imports this

    if type(transform) is Inverse:
        inner = transform._modules.get("transform")
        if type(inner) in _READERS and walk.enter(transform):
            return Leaf(inner, not inverse)  # type: ignore[arg-type]
    return Leaf(transform, inverse)


# ---- one layer ----


def _permutation(walk: Walk, layer: Permutation, inverse: bool, has_context: bool) -> Order | None:
    if layer.channel_dim != -1 or not walk.enter(
        layer, attributes=("channel_dim", "features"), buffers=("order", "inverse_order")
    ):
        return None
    order = layer.inverse_order if inverse else layer.order
    if not order.is_cpu:
        return None
    found = tuple(order.tolist())
    return Order(found) if sorted(found) == list(range(layer.features)) else None


def _coupling(walk: Walk, layer: Coupling, inverse: bool, has_context: bool) -> _Part | None:
    parts: Any = layer._modules
    split = parts.get("split")
    if type(split) is not FeatureSplit or split.value is None:
        return None
    walk.enter(split, attributes=("value",), is_called=True)
    if not walk.enter(layer, attributes=("univariate",)):
        return None
    univariate: Any = layer.__dict__.get("univariate")
    turned = univariate.inverted() if inverse and can_fuse(type(univariate)) else univariate
    return _part(walk, turned, parts.get("conditioner"), split.value, has_context)


def _autoregressive(walk: Walk, layer: Autoregressive, inverse: bool, has_context: bool) -> _Part | None:
    made = layer._modules.get("conditioner")
    if inverse or type(made) is not MADE or not walk.enter(layer, attributes=("univariate", "features")):
        return None
    return _part(walk, layer.__dict__.get("univariate"), made, every(layer.features), has_context)


_READERS: dict[type, Callable[..., Any]] = {
    Permutation: _permutation, Coupling: _coupling, Autoregressive: _autoregressive, **OWN_READERS,
}  # fmt: skip


def _part(walk: Walk, univariate: Any, conditioner: Any, split: Split, has_context: bool) -> _Part | None:
    read = getattr(type(conditioner), "read", None)
    if read is None or not can_fuse(type(univariate)):
        return None
    if univariate.circle_shift or univariate.zero_outside or univariate.why_not("cpu") is not None:
        return None
    if (conditioner.context_features > 0) != has_context:
        return None
    found = read(conditioner, walk, has_context)
    if found is None:
        return None
    layers = found.layers() if isinstance(found, Net) else found.layers
    if len(layers) > _MAX_LAYERS:
        return None
    tensors = [t for layer in layers for t in layer]
    if any(type(t) not in _PLAIN for t in tensors):
        return None
    weights = sum(t.numel() for t in tensors)
    if has_context:
        return _Part(univariate, conditioner, None, split, weights)
    net = found if isinstance(found, Net) else found.net((), None)
    if net.n_in() != len(split.inputs) or net.n_out() != len(split.outputs) * univariate.n_params:
        return None
    return _Part(univariate, conditioner, net, split, weights)

"""Which neighbouring layers of a container run as one op, read off their modules once and kept until they change.

Describing a layer takes Python ten times as long as a small batch takes the kernel. What was read is kept with all
that it was read from (`nets.reading.Walk`); a warm call asks whether that is as it was, and hands the parameters over.

A container of ours is a `Composite`; those of other libraries (`compat`) bring readers of their own, a `Kind`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from flowkernels import backends
from flowkernels._native import C
from flowkernels.nets import MADE
from flowkernels.nets.reading import Walk, hooked_globally, may_compute, still_holds
from flowkernels.ops._kept import made_to_stay
from flowkernels.ops._routing import _PLAIN, in_transform
from flowkernels.ops.flow import Order, op, spec_of
from flowkernels.ops.flow.spec import Step
from flowkernels.ops.flow_layer import every
from flowkernels.ops.flow_layer.reference import FlowLayerSpec
from flowkernels.ops.net.net import Layers, Net
from flowkernels.ops.net.spec import NetSpec
from flowkernels.ops.split import Split
from flowkernels.ops.univariate import Map, can_fuse, check_univariate

from .autoregressive import Autoregressive
from .coupling import Coupling
from .own_steps import AS_IT_IS, OwnPart
from .own_steps import READERS as OWN_READERS
from .permutation import Permutation
from .split import FeatureSplit

KERNELS = (torch.float32, torch.float64)  # of the op's kernels
_MAX_LAYERS = 64  # of a network: kMaxLayers of csrc/net/net.h
# Weights of a run: all of them are packed at once, and every thread sums gradients of all. Nets so large lose nothing
# by running layer by layer.
_MOST_WEIGHTS = 1 << 22


class Part(NamedTuple):
    """A layer as it was read: a map, a network, the split, and how many weights.

    Where the tensors of the network are other ones in every call, as those of a context are, there is no `net`, and
    ``as_net(x, context)`` of the conditioner makes it: None where the modules must be called.
    """

    univariate: Map
    conditioner: Any
    net: Net | None
    split: Split
    weights: int
    sizes: tuple[int, int]  # what the network takes and returns


class Run:
    """Neighbouring layers as one op: called as a transform is, it returns None where they must be called now."""

    def __init__(self, leaves: list[Leaf], parts: Sequence[AnyPart], flat: bool = False) -> None:
        self.leaves, self.parts, self.features, self.flat = leaves, parts, _features(parts[0]), flat
        self._layers = [p for p in parts if isinstance(p, Part)]
        self._has_own = any(isinstance(p, OwnPart) for p in parts)
        self._checked: set[torch.dtype] = set()
        self._spec: Any = None
        self._tensors: tuple[Tensor, ...] = ()
        self._last: tuple[list[NetSpec], Any] = ([], None)
        nets = [p.net for p in self._layers if p.net is not None]
        if len(nets) == len(self._layers):  # without a context
            self._spec, self._tensors = self._spec_of([net.spec for net in nets]), self._tensors_of(nets)

    @property
    def described(self) -> tuple[Any, tuple[Tensor, ...]] | None:
        """Its spec and tensors, which without a context are the same in every call."""
        return None if self._spec is None else (self._spec, self._tensors)

    def __len__(self) -> int:
        """How many layers it has, apart from reorderings."""
        return len(self._layers)

    def _spec_of(self, nets: Sequence[NetSpec]) -> Any:
        rest = iter(nets)
        steps: list[Step] = [
            p if isinstance(p, Order) else p.spec if isinstance(p, OwnPart)
            else FlowLayerSpec(p.split, p.univariate, next(rest)) for p in self.parts
        ]  # fmt: skip
        return spec_of(self.features, tuple(steps), self.flat)

    def _tensors_of(self, nets: Sequence[Net]) -> tuple[Tensor, ...]:
        """Those of all parts, in their order."""
        if not self._has_own:
            return tuple([t for net in nets for t in net.tensors])
        rest, found = iter(nets), []
        for p in self.parts:
            if not isinstance(p, Order):
                found += p.tensors if isinstance(p, OwnPart) else next(rest).tensors
        return tuple(found)

    def __call__(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor] | None:
        if backends.default() not in ("auto", "cpu") or x.dim() == 0 or x.shape[-1] != self.features:
            return None
        spec, tensors = self._spec, self._tensors
        if spec is None:
            described = self._of_call(x, context)
            if described is None:
                return None
            spec, tensors = described
        dtype = x.dtype
        if not x.is_cpu or dtype not in KERNELS or not may_compute(tensors[0], x, context):
            return None
        for t in tensors:  # whose `data` may be another, of another dtype, or elsewhere
            if t.dtype is not dtype or not t.is_cpu:
                return None
        if dtype not in self._checked:
            for layer in self._layers:
                check_univariate("ops.flow", layer.univariate, dtype)
            self._checked.add(dtype)
        return op.run(op.backend("cpu"), spec, (x, *tensors))  # type: ignore[return-value]

    def _of_call(self, x: Tensor, context: Tensor | None) -> tuple[Any, tuple[Tensor, ...]] | None:
        nets = []
        for layer in self._layers:
            net = layer.net or layer.conditioner.as_net(x, context)
            if net is None:
                return None
            weight, bias = net.tensors[0], net.tensors[2 * net.spec.n - 1]
            if (weight.shape[1], bias.shape[0]) != layer.sizes:
                return None
            nets.append(net)
        specs, spec = [net.spec for net in nets], self._last[1]
        if self._last[0] != specs:  # a comparison takes less time than the words of a flow, which `spec_of` looks up
            spec = self._spec_of(specs)
            self._last = specs, spec
        return spec, self._tensors_of(nets)


AnyPart = Part | OwnPart | Order


def _features(part: AnyPart) -> int:
    if isinstance(part, Order):
        return len(part.order)
    return part.features() if isinstance(part, OwnPart) else part.split.features


def _dtype(part: AnyPart) -> torch.dtype | None:
    """Of the tensors that a part has now: a network that sees a context is made in each call."""
    if isinstance(part, OwnPart):
        return part.tensors[0].dtype
    return None if isinstance(part, Order) or part.net is None else part.net.tensors[0].dtype


class Leaf(NamedTuple):
    """A transform to be called in one of its directions."""

    transform: Any
    inverse: bool

    def run(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.transform.inverse(x, context) if self.inverse else self.transform(x, context)


Piece = Run | Leaf


def each(found: Sequence[Piece], x: Tensor, context: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """What pieces make of x, one after another, and the log-determinant of each."""
    for piece in found:
        done = piece(x, context) if isinstance(piece, Run) else None
        if done is not None:
            x = done[0]
            yield done
            continue
        for leaf in piece.leaves if isinstance(piece, Run) else (piece,):
            done = leaf.run(x, context)
            x = done[0]
            yield done


def run_pieces(found: Sequence[Piece], x: Tensor, context: Tensor | None, total: Tensor | None = None) -> Any:
    """What pieces make of x, and the sum of their log-determinants behind `total`; None of no pieces and no total."""
    for x, ladj in each(found, x, context):  # noqa: B007, B020
        total = ladj if total is None else total + ladj
    return x, total


Said = Part | OwnPart | Order | list[Part] | Literal["called"] | None
_kept: weakref.WeakKeyDictionary[nn.Module, dict[tuple[bool, bool], tuple[Walk, list[Piece]]]]
_kept = weakref.WeakKeyDictionary()


class Kind(NamedTuple):
    """How the transforms of a container are read.

    ``leaves(walk, transform, inverse, is_first)``: what a transform that holds others runs, one after another, or
    itself. ``is_first``: there is no other before it.
    ``read(walk, transform, inverse, has_context)``: a layer, the layers that it is made of, or an order; None where it
    must be called now.
    """

    leaves: Callable[[Walk, Any, bool, bool], Sequence[Leaf]]
    read: Callable[[Walk, Any, bool, bool], Said]


def pieces(owner: nn.Module, transforms: nn.Module, inverse: bool, has_context: bool, kind: Kind) -> list[Piece] | None:
    """What `owner`, which applies the modules of `transforms` one after another, runs now; None: these, one by one."""
    if C is None or torch.compiler.is_compiling() or hooked_globally():
        return None
    known = _kept.get(owner)
    if known is None:
        known = _kept[owner] = {}
    found = known.get((inverse, has_context))
    if found is not None:
        walk, said = found
        if still_holds(walk.modules) and (not walk.hooked or walk.still_refused()):
            return said
    walk, said = read_pieces(owner, transforms, inverse, has_context, kind)
    if not in_transform(()):  # where some buffers cannot be read that can be elsewhere
        known[inverse, has_context] = walk, said
    return said


def read_pieces(
    owner: nn.Module, transforms: nn.Module, inverse: bool, has_context: bool, kind: Kind
) -> tuple[Walk, list[Piece]]:
    """What there is to run, read anew, and what was looked at."""
    walk = Walk()
    memory = owner.__dict__.get("memory")  # of a container of ours
    walk.enter(owner, attributes=() if memory is None else ("memory",), is_called=True)
    walk.enter(transforms, is_called=True)
    listed = list(transforms._modules.values())[:: -1 if inverse else 1]
    return walk, made_to_stay(_read, walk, listed, inverse, has_context, kind, memory == "flat")


def forget() -> None:
    """Lets every container be read again."""
    _kept.clear()


def _read(
    walk: Walk, transforms: Sequence[Any], inverse: bool, has_context: bool, kind: Kind, flat: bool
) -> list[Piece]:
    found: list[Piece] = []
    leaves: list[Leaf] = []
    parts: list[AnyPart] = []

    def close() -> None:
        if any(isinstance(p, Part) for p in parts):
            found.append(Run(list(leaves), list(parts), flat))
        else:
            found.extend(leaves)
        leaves.clear()
        parts.clear()

    listed = [kind.leaves(walk, transform, inverse, i == 0) for i, transform in enumerate(transforms)]
    for leaf in (leaf for inner in listed for leaf in inner):
        said = kind.read(walk, leaf.transform, leaf.inverse, has_context)
        if said is None or said == AS_IT_IS:
            if said is None:
                walk.refuse(leaf.transform)
            close()
            found.append(leaf)
            continue
        more = said if isinstance(said, list) else [said]
        weights = sum(p.weights for p in (*parts, *more) if not isinstance(p, Order))
        dtypes = {_dtype(p) for p in (*parts, *more)} - {None}
        if parts and (_features(more[0]) != _features(parts[0]) or len(dtypes) > 1 or weights > _MOST_WEIGHTS):
            close()
        leaves.append(leaf)
        parts += more
    close()
    return found


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


def _coupling(walk: Walk, layer: Coupling, inverse: bool, has_context: bool) -> Part | None:
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


def _autoregressive(walk: Walk, layer: Autoregressive, inverse: bool, has_context: bool) -> Part | None:
    made = layer._modules.get("conditioner")
    if inverse or type(made) is not MADE or not walk.enter(layer, attributes=("univariate", "features")):
        return None
    return _part(walk, layer.__dict__.get("univariate"), made, every(layer.features), has_context)


_READERS: dict[type, Callable[..., Said]] = {
    Permutation: _permutation, Coupling: _coupling, Autoregressive: _autoregressive, **OWN_READERS,
}  # fmt: skip


def _unwrapped(walk: Walk, transform: Any, inverse: bool, is_first: bool) -> list[Leaf]:
    """What an `Inverse` turns round, in the other direction."""
    from .composite import Inverse  # which imports this

    if type(transform) is Inverse:
        inner = transform._modules.get("transform")
        if type(inner) in _READERS and walk.enter(transform):
            return [Leaf(inner, not inverse)]
    return [Leaf(transform, inverse)]


def _native(walk: Walk, layer: Any, inverse: bool, has_context: bool) -> Said:
    reader = _READERS.get(type(layer))
    return None if reader is None else reader(walk, layer, inverse, has_context)


NATIVE = Kind(_unwrapped, _native)


def _part(walk: Walk, univariate: Any, conditioner: Any, split: Split, has_context: bool) -> Part | None:
    read = getattr(type(conditioner), "read", None)
    if read is None or not can_fuse(type(univariate)) or (conditioner.context_features > 0) != has_context:
        return None
    found = read(conditioner, walk, has_context)
    if found is None:
        return None
    if has_context:
        return part_of(univariate, conditioner, found.layers() if isinstance(found, Net) else found.layers, None, split)
    net = found if isinstance(found, Net) else found.net((), None)
    return part_of(univariate, conditioner, net.layers(), net, split)


def part_of(univariate: Any, conditioner: Any, layers: Layers, net: Net | None, split: Split) -> Part | None:
    """A layer of this map and network, whose weights and biases are `layers`; None where the op does not take it."""
    if univariate.circle_shift or univariate.zero_outside or univariate.why_not("cpu") is not None:
        return None
    if len(layers) > _MAX_LAYERS:
        return None
    tensors = [t for layer in layers for t in layer]
    if any(type(t) not in _PLAIN for t in tensors):
        return None
    sizes = len(split.inputs), len(split.outputs) * univariate.n_params
    if net is not None and (net.n_in(), net.n_out()) != sizes:
        return None
    return Part(univariate, conditioner, net, split, sum(t.numel() for t in tensors), sizes)

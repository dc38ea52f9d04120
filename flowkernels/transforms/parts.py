"""Layers as they were read off their modules, and what runs them: several as one op, or one by itself.

Describing a layer takes Python ten times as long as a small batch takes the kernel. What was read is kept with all
that it was read from (`nets.reading.Walk`); a warm call asks whether that is as it was, and hands the parameters over.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from flowkernels import _native, backends
from flowkernels._flat import all_in_one
from flowkernels.nets.reading import Walk, hooked_globally, still_holds
from flowkernels.ops._checks import DTYPES
from flowkernels.ops._kept import made_to_stay
from flowkernels.ops._routing import _PLAIN, Op, in_transform
from flowkernels.ops.autoregressive_inverse.reference import SweepSpec
from flowkernels.ops.flow import Order, direct, op, spec_of
from flowkernels.ops.flow.spec import Step, count_of
from flowkernels.ops.flow_layer import FlowLayerSpec, kernel_of
from flowkernels.ops.flow_layer import op as layer_op
from flowkernels.ops.net.net import Layers, Net, dense_net
from flowkernels.ops.net.spec import NetSpec
from flowkernels.ops.split import Split
from flowkernels.ops.univariate import Map, can_fuse, check_univariate

from .last_rows import LastRows, Turn
from .own_steps import OwnPart, normal

T = TypeVar("T")
KERNELS = (torch.float32, torch.float64)  # of the kernels of several layers
_MAX_LAYERS = 64  # of a network: kMaxLayers of csrc/net/net.h

# ---- one layer ----


class Source(NamedTuple):
    """What a compiler traces to make the network of a call with a context: tensors of modules, and what they are.

    Either the layers of a dense network, residual or not, with this activation, or those of a `MADE` behind its masks.
    """

    tensors: tuple[Tensor, ...]  # weight and bias of each layer
    width: int  # of the context
    residual: bool
    activation: str
    made: Any = None

    def given(self, lead: Sequence[int], context: Tensor) -> tuple[Tensor, ...]:
        """The tensors of the network of a call on an x with these leading dims."""
        if self.made is None:
            return self._dense(lead, context).tensors
        adds = self.made.adds_of(len(self.tensors) // 2, context)
        return (*self.tensors, *[t for t in adds if t is not None])

    def spec(self) -> NetSpec:
        """That network but for its tensors; no module is called."""
        if self.made is None:
            return self._dense((1,), self.tensors[0].new_zeros(1, self.width)).spec
        plan, n = self.made.plan, len(self.tensors) // 2
        return NetSpec(n, plan, plan.residual, self.activation, adds=tuple(self.made.has_adds(n)))

    def _dense(self, lead: Sequence[int], context: Tensor) -> Net:
        layers = list(zip(self.tensors[::2], self.tensors[1::2], strict=True))
        features = layers[0][0].shape[1] - context.shape[-1]
        return dense_net(layers, self.residual, self.activation, features, lead, context)


class Part(NamedTuple):
    """A layer as it was read: a map, a network, the split, and how many weights.

    One that `sweeps` is the other direction of an autoregressive layer of this map and network.

    Where the tensors of the network are other ones in every call, as those of a context are, there is no `net`, and
    ``as_net(x, context)`` of the conditioner makes it: None where the modules must be called.
    """

    univariate: Map
    conditioner: Any
    net: Net | None
    split: Split
    weights: int
    sizes: tuple[int, int]  # what the network takes and returns
    last: LastRows | None = None  # how its last layer's rows are turned; None: not at all
    sweeps: bool = False
    source: Source | None = None  # of the network of a call with a context; None: it is not to be traced

    def spec(self, net: NetSpec) -> Step:
        """The step of a run, of this network of a call."""
        return SweepSpec(net, self.univariate) if self.sweeps else FlowLayerSpec(self.split, self.univariate, net)


def is_taken(univariate: Any) -> bool:
    """Whether the op takes a map."""
    return not (univariate.circle_shift or univariate.zero_outside or univariate.why_not("cpu") is not None)


def part_of(
    univariate: Any, conditioner: Any, layers: Layers, net: Net | None, split: Split, last: LastRows | None = None,
    more: Sequence[Tensor] = (), sweeps: bool = False,
) -> Part | None:  # fmt: skip
    """A layer of this map and network, whose weights and biases are `layers`; None where the op does not take it.

    ``more``: what else the network's modules own. ``sweeps``: it is to run in its slow direction.
    """
    if not is_taken(univariate) or len(layers) > _MAX_LAYERS or (sweeps and univariate.inverse):
        return None
    tensors = [*_flat(layers), *more]
    if any(type(t) not in _PLAIN for t in tensors):
        return None
    sizes = len(split.inputs), len(split.outputs) * univariate.n_params if last is None else last.given
    if net is not None and (net.n_in(), net.n_out()) != sizes:
        return None
    return Part(univariate, conditioner, net, split, sum(t.numel() for t in tensors), sizes, last, sweeps)


def read_part(
    walk: Walk, univariate: Any, conditioner: Any, split: Split, has_context: bool, sweeps: bool = False
) -> Part | None:
    """A layer of this map, whose conditioner says of itself what may be read of it, as those of `nets` do."""
    read = getattr(type(conditioner), "read", None)
    if read is None or not can_fuse(type(univariate)) or (conditioner.context_features > 0) != has_context:
        return None
    found = read(conditioner, walk, has_context)
    if found is None:
        return None
    width = conditioner.context_features
    if isinstance(found, Net):
        layers, net, more = found.layers(), None if has_context else found, ()
        source = Source(_flat(layers), width, False, found.spec.activation, conditioner)
    else:
        layers, net, more = found.layers, found.fixed(has_context), found.statistics()
        source = Source(_flat(layers), width, found.residual, found.activation)
    part = part_of(univariate, conditioner, layers, net, split, None, more, sweeps)
    return part if part is None or not has_context or more else part._replace(source=source)


def _flat(layers: Layers) -> tuple[Tensor, ...]:
    return tuple([t for layer in layers for t in layer])


# ---- layers as one op ----


class Leaf(NamedTuple):
    """A transform to be called in one of its directions."""

    transform: Any
    inverse: bool

    def run(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.transform.inverse(x, context) if self.inverse else self.transform(x, context)


class Run:
    """Neighbouring layers as one op: called as a transform is, it returns None where they must be called now."""

    op: ClassVar[Op] = op
    dtypes: ClassVar[Sequence[torch.dtype]] = KERNELS

    def __init__(self, leaves: list[Leaf], parts: Sequence[AnyPart], flat: bool = False) -> None:
        self.leaves, self.parts, self.features, self.flat = leaves, parts, features_of(parts[0]), flat
        self._layers = [p for p in parts if isinstance(p, Part)]
        self._has_own = any(isinstance(p, OwnPart) for p in parts)
        self._is_made = any(isinstance(p, OwnPart) and p.make is not None for p in parts)
        self._checked: set[torch.dtype] = set()
        self._backend = self.op.backend("cpu")
        self._spec: Any = None
        self._tensors: tuple[Tensor, ...] = ()
        self._last: tuple[list[NetSpec], Any] = ([], None)
        self._turn = Turn([p.last for p in self._layers]) if any(p.last for p in self._layers) else None
        self._places: list[int] = []  # of the last weights that are turned
        self._nets = [p.net for p in self._layers if p.net is not None]
        if len(self._nets) == len(self._layers):  # without a context
            self._spec = self._described_by([net.spec for net in self._nets])
            self._tensors = () if self._is_made else self._tensors_of(self._nets)

    @property
    def described(self) -> tuple[Any, tuple[Tensor, ...]] | None:
        """Its spec and tensors, if these are the same in every call: without a context, and what is made in each."""
        same = self._spec is not None and not self._is_made and self._turn is None
        return (self._spec, self._tensors) if same else None

    @property
    def sources(self) -> list[Source | tuple[Tensor, ...]]:
        """What a compiler needs of each part that has tensors: these, or what makes them of a context."""
        found: list[Any] = []
        for p in self.parts:
            if not isinstance(p, Order):
                found.append(p.fixed if isinstance(p, OwnPart) else p.source or p.net.tensors)  # type: ignore[union-attr]
        return found

    @functools.cached_property
    def of_context(self) -> tuple[int, Any] | None:
        """How wide a context is, and the spec of a call with one, if a compiler can trace what is made of it."""
        sources = [p.source for p in self._layers]
        if self._is_made or self._turn is not None or not sources or None in sources:
            return None
        widths = {s.width for s in sources}  # type: ignore[union-attr]
        if len(widths) > 1:
            return None
        with torch.no_grad():
            return widths.pop(), self._spec_of([s.spec() for s in sources])  # type: ignore[union-attr]

    @functools.cached_property
    def sweeps(self) -> bool:
        """Whether a layer of it is a sweep."""
        return any(p.sweeps for p in self._layers)

    def __len__(self) -> int:
        """How many layers it has, apart from reorderings."""
        return len(self._layers)

    @property
    def mean_weights(self) -> float:
        """How many weights a layer has."""
        return sum(p.weights for p in self._layers) / max(len(self._layers), 1)

    @functools.cached_property
    def with_normal(self) -> Run:
        """The same, and the log-density of the standard normal at what comes out."""
        return Run(self.leaves, [*self.parts, normal(self.features)], self.flat)

    def _spec_of(self, nets: Sequence[NetSpec]) -> Any:
        rest = iter(nets)
        steps: list[Step] = [
            p if isinstance(p, Order) else p.spec if isinstance(p, OwnPart)
            else p.spec(next(rest)) for p in self.parts
        ]  # fmt: skip
        return spec_of(self.features, tuple(steps), self.flat)

    def _described_by(self, nets: Sequence[NetSpec]) -> Any:
        """The spec of these networks, whose last weights' places are kept."""
        rest, at = iter(nets), 0
        self._places = []
        for p in self.parts if self._turn is not None else ():
            if isinstance(p, Part):
                net = next(rest)
                if p.last is not None:
                    self._places.append(at + net.n_weights() - 2)
                at += count_of(net)
            elif isinstance(p, OwnPart):
                at += p.spec.count()
        return self._spec_of(nets)

    def _tensors_of(self, nets: Sequence[Net]) -> tuple[Tensor, ...]:
        """Those of all parts, in their order."""
        if not self._has_own:
            return tuple([t for net in nets for t in net.tensors])
        rest, found = iter(nets), []
        for p in self.parts:
            if not isinstance(p, Order):
                found += p.tensors() if isinstance(p, OwnPart) else next(rest).tensors
        return tuple(found)

    def __call__(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor] | None:
        dtype, default = x.dtype, backends.default()
        if dtype not in self.dtypes or x.dim() == 0 or x.shape[-1] != self.features or in_transform((x, context)):
            return None
        if not x.is_cpu or default == "triton":
            return self._on_gpu(x, context)
        if default not in ("auto", "cpu") or torch.is_autocast_enabled("cpu"):
            return None
        spec, tensors = self._spec, self._tensors
        if spec is None:
            described = self._of_call(x, context)
            if described is None:
                return None
            spec, tensors = described
        elif self._is_made:
            tensors = self._tensors_of(self._nets)
        if not _native.C.are_like(tensors, dtype):  # their `data` may be another, of another dtype, or elsewhere
            return None
        if dtype not in self._checked:
            for layer in self._layers:
                check_univariate(f"ops.{self.op.name}", layer.univariate, dtype)
            self._checked.add(dtype)
        if self._turn is not None:
            turned = self._turn(tensors, self._places)
            if turned is None:
                return None
            tensors = turned
        if torch.is_grad_enabled() and tensors is self._tensors:
            flat = self._flat_parameter()
            if flat is not None:
                return direct.run(op, self._backend, spec, *flat, x, tensors)
        return self.op.run(self._backend, spec, (x, *tensors))  # type: ignore[return-value]

    def _flat_parameter(self) -> tuple[Tensor, tuple[int, ...]] | None:
        """The flat parameter that takes all gradients, and where each tensor lies in it; None: there is none."""
        if self._in_one is None or self.op is not op:
            return None
        flat, places = self._in_one
        learns = flat.requires_grad and [t.requires_grad for t in self._tensors] == [at >= 0 for at in places]
        return self._in_one if learns and _native.C.are_at(self._tensors, flat, places) else None

    @functools.cached_property
    def _in_one(self) -> tuple[Tensor, tuple[int, ...]] | None:
        return all_in_one(self._tensors)

    def _on_gpu(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Of several layers there is no kernel there."""
        return None

    def _of_call(self, x: Tensor, context: Tensor | None) -> tuple[Any, tuple[Tensor, ...]] | None:
        if context is not None and (context.dtype is not x.dtype or context.device != x.device):
            return None
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
            spec = self._described_by(specs)
            self._last = specs, spec
        return spec, self._tensors_of(nets)


AnyPart = Part | OwnPart | Order


def features_of(part: AnyPart) -> int:
    """How many features enter it."""
    if isinstance(part, Order):
        return len(part.order)
    return part.features if isinstance(part, OwnPart) else part.split.features


def runs_alone(part: AnyPart) -> bool:
    """Whether a part is worth an op, and not only beside others."""
    return isinstance(part, Part) or (isinstance(part, OwnPart) and part.runs_alone)


def dtype_of(part: AnyPart) -> torch.dtype | None:
    """Of the tensors that a part has now: a network that sees a context is made in each call."""
    if isinstance(part, OwnPart):
        return part.dtype
    return None if isinstance(part, Order) or part.net is None else part.net.tensors[0].dtype


# ---- one layer as one op ----


class _Alone(Run):
    """A layer by itself: in the op of a layer, which has 16 bits too, and keeps what it did for the backward pass."""

    op: ClassVar[Op] = layer_op
    dtypes: ClassVar[Sequence[torch.dtype]] = DTYPES

    def _spec_of(self, nets: Sequence[NetSpec]) -> Step:
        (layer,), (net,) = self._layers, nets
        return layer.spec(net)

    def _on_gpu(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor] | None:
        if self.sweeps:
            return None
        described = (self._spec, self._tensors) if self._spec is not None else self._of_call(x, context)
        if described is None:
            return None
        spec, tensors = described
        kernel = kernel_of(spec, (x, *tensors))
        if kernel is None:
            return None
        if self._turn is not None:
            turned = self._turn(tensors, self._places)
            if turned is None:
                return None
            tensors = turned
        check_univariate(f"ops.{self.op.name}", self._layers[0].univariate, x.dtype)
        return self.op.run(kernel, spec, (x, *tensors))  # type: ignore[return-value]


Reader = Callable[[Walk, Any, bool, bool], Part | OwnPart | None]


def run_alone(
    layer: nn.Module, x: Tensor, context: Tensor | None, inverse: bool, read: Reader
) -> tuple[Tensor, Tensor] | None:
    """y and ladj of a layer as one op; None where its network and its map are to be run in turn now.

    ``read(walk, layer, inverse, has_context)``: the layer, or None. Its own hooks have had their way.
    """
    found = kept(layer, (inverse, context is not None), _read_alone, layer, inverse, context is not None, read)
    return None if found is None else found(x, context)


def _read_alone(layer: nn.Module, inverse: bool, has_context: bool, read: Reader) -> tuple[Walk, Run | None]:
    walk = Walk(running=layer)
    part = made_to_stay(read, walk, layer, inverse, has_context)
    if part is not None:
        return walk, _Alone([], [part]) if isinstance(part, Part) else Run([], [part])
    walk.refuse(layer)
    return walk, None


# ---- what was read, kept ----

Way = tuple[Any, ...]  # whether it is the inverse, whether there is a context, and what else a library asks
_kept: weakref.WeakKeyDictionary[nn.Module, dict[Way, tuple[Walk, Any]]] = weakref.WeakKeyDictionary()


def kept(owner: nn.Module, way: Way, read: Callable[..., tuple[Walk, T]], *given: Any) -> T | None:
    """What ``read(*given)`` said of a module, until it would say something else; None: the module is to be called."""
    if torch.compiler.is_compiling() or _native.C is None or hooked_globally():
        return None
    known = _kept.get(owner)
    if known is None:
        known = _kept[owner] = {}
    found = known.get(way)
    if found is not None:
        walk, said = found
        if still_holds(walk.modules) and (not walk.hooked or walk.still_refused()):
            return said
    walk, said = read(*given)
    if not in_transform(()):  # where some buffers cannot be read that can be elsewhere
        known[way] = walk, said
    return said


forgotten: list[Any] = [_kept]  # what is kept of modules that may have other methods by the next call


def forget() -> None:
    """Lets every module be read again."""
    for kept_of_modules in forgotten:
        kept_of_modules.clear()

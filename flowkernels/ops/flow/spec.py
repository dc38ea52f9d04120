"""What a flow is, apart from its tensors: layers and reorderings of features, one after another."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from flowkernels.ops._kept import made_to_stay
from flowkernels.ops._routing import _dispatch_modes
from flowkernels.ops.autoregressive_inverse.reference import SweepSpec
from flowkernels.ops.flow_layer.reference import FlowLayerSpec
from flowkernels.ops.net import native
from flowkernels.ops.net.net import Net
from flowkernels.ops.net.plan import LayerPlan, MadePlan
from flowkernels.ops.net.spec import NetSpec
from flowkernels.ops.split import Split, split_of
from flowkernels.ops.univariate import Map

from .steps import ElementwiseSpec, LUSpec, NormalSpec, OwnSpec, ScaleSpec


class Layer(NamedTuple):
    """A layer of a flow: a map of some features, whose parameters a net makes from others.

    Attributes:
        univariate: the map, forward or inverse.
        net: its spec and tensors; of a masked one the split sees and maps every feature.
        split: which features the net sees, and which are mapped.
    """

    univariate: Map
    net: Net
    split: Split


class Sweep(NamedTuple):
    """The other direction of an autoregressive layer, as `flowkernels.ops.autoregressive_inverse` solves it.

    Attributes:
        univariate: the layer's map, of its own direction.
        net: what ``flowkernels.ops.net.net.made_net`` returns.
    """

    univariate: Map
    net: Net


class Order(NamedTuple):
    """A reordering: feature i is then what feature ``order[i]`` was. It costs nothing."""

    order: tuple[int, ...]


NetStep = FlowLayerSpec | SweepSpec
NET_STEPS = (FlowLayerSpec, SweepSpec)  # which have a net
Step = NetStep | Order | OwnSpec
# Flows that a graph holds by a name: what they are now; see `flowkernels.transforms.compiled`.
named: dict[str, Callable[[], FlowSpec]] = {}


def count_tensors(step: NetStep | OwnSpec) -> int:
    """How many tensors a step has behind x."""
    return count_of(step.net) if isinstance(step, NET_STEPS) else step.count()


def count_of(net: NetSpec) -> int:
    """How many tensors a network of a flow has."""
    return net.n_weights() + net.n_terms()


class FlowSpec:
    """Layers, and orders between them, of so many features. Equal to itself only: made once, and kept.

    Attributes:
        features, steps: how many; what comes one after another, nearest to x first.
        layers: the steps that are layers, forward or swept.
        flat: whether backward computes what enters the layers again, and nothing is kept that grows with their number.
        full: the steps that compute: all but the orders.
        has_terms: whether a network has more tensors than weights and biases.
    """

    schema: ClassVar[dict[str, type]] = {"text": str}

    def __init__(self, features: int, steps: Sequence[Step], flat: bool = False) -> None:
        self.features, self.steps, self.flat = features, tuple(steps), flat
        self.layers = tuple(s for s in self.steps if isinstance(s, NET_STEPS))
        self.full = tuple(s for s in self.steps if not isinstance(s, Order))
        self.counts = tuple(count_tensors(s) for s in self.full)
        self.has_terms = any(s.net.n_terms() > 0 for s in self.layers)
        self._handles: dict[Any, Any] = {}

    def handle(self, module: Any) -> Any:
        """The flow as this compiled module takes it; made once."""
        found = self._handles.get(module)
        if found is None:
            found = module.Flow(self.features)
            for step in self.steps:
                if isinstance(step, Order):
                    found.add_order(step.order)
                elif isinstance(step, FlowLayerSpec):
                    net = native.spec_handle(step.net, module)
                    found.add_layer(net, step.univariate.handle(module), step.split.handle(module))
                elif isinstance(step, SweepSpec):
                    net = native.spec_handle(step.net, module)
                    found.add_sweep(net, step.univariate.inverted().handle(module))
                else:
                    step.add_to(found, module)
            self._handles[module] = found
        return found

    def parts(self, tensors: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """The tensors behind x, one step that has any after another."""
        found, at = [], 0
        for n in self.counts:
            found.append(tensors[at : at + n])
            at += n
        return found

    # ---- as a library op's schema has it ----

    def packed(self) -> tuple[str]:
        return (self.text,)

    @functools.cached_property
    def text(self) -> str:
        """The spec in words, for graphs that hold no Python objects; `from_packed` reads it."""
        return json.dumps([self.features, [_as_list(step) for step in self.steps], self.flat])

    @staticmethod
    def from_packed(text: str) -> FlowSpec:
        if text in named:
            return named[text]()
        return _parsed(text) if _dispatch_modes() > 0 else _from_text(text)  # where plans hold fake tensors


def _as_list(step: Step) -> list[Any]:
    if isinstance(step, Order):
        return list(step.order)
    if isinstance(step, (LUSpec, ScaleSpec, NormalSpec)):
        return [type(step).__name__, *step]
    if isinstance(step, ElementwiseSpec):
        return [type(step).__name__, _settings(step.univariate), step.outputs]
    if isinstance(step, SweepSpec):
        return [type(step).__name__, _settings(step.univariate), _words_of(step.net)]
    split, f, net = step
    return [_settings(f), _words_of(net), list(split.inputs), list(split.outputs)]


def _words_of(net: NetSpec) -> list[Any]:
    plan = net.plan
    texts = None if plan is None else [layer.text for layer in net.masks()]
    rest = [net.n, texts, isinstance(plan, MadePlan), net.residual, net.activation, net.last]
    return [*rest, list(net.adds), list(net.gates), net.has_bias, *([list(net.scales)] if net.scales else [])]


def _net_of(
    n: int,
    texts: Any,
    is_made: bool,
    residual: bool,
    act: str,
    last: str,
    adds: Any,
    gates: Any,
    bias: bool,
    *scales: Any,
) -> NetSpec:
    plan: Any = None
    if texts is not None:
        sides = [[int(d) for d in side.split(",")] for t in (texts[0], *texts) for side in t.split(" ")[::2]]
        plan = MadePlan([sides[0], *sides[3::2]], residual=residual) if is_made else LayerPlan.from_text(texts[0])
    return NetSpec(n, plan, residual, act, last, tuple(adds), tuple(gates), bias, False, tuple(*scales))


def _settings(f: Map) -> list[Any]:
    return [type(f).__name__, {field.name: getattr(f, field.name) for field in dataclasses.fields(f) if field.init}]  # type: ignore[arg-type]


def _map_of(kind: str, settings: dict[str, Any]) -> Map:
    from flowkernels import ops  # which has every map, and imports this

    return getattr(ops, kind).kept(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})


@functools.lru_cache(maxsize=256)
def _from_text(text: str) -> FlowSpec:
    return made_to_stay(_parsed, text)


def _parsed(text: str) -> FlowSpec:
    features, listed, flat = json.loads(text)
    steps: list[Step] = []
    for given in listed:
        if isinstance(given[0], int):
            steps.append(Order(tuple(given)))
            continue
        if isinstance(given[0], str):
            steps.append(_own(*given))
            continue
        f, net, inputs, outputs = given
        split = split_of(features, tuple(inputs), tuple(outputs))
        steps.append(FlowLayerSpec(split, _map_of(*f), _net_of(*net)))
    return FlowSpec(features, steps, flat)


def _own(kind: str, first: Any = None, second: Any = None, *third: Any) -> SweepSpec | OwnSpec:
    if kind == "SweepSpec":
        return SweepSpec(_net_of(*second), _map_of(*first))
    if kind == "NormalSpec":
        return NormalSpec()
    if kind == "LUSpec":
        return LUSpec(first, tuple(second), *third)
    if kind == "ScaleSpec":
        return ScaleSpec(first, second, *third)
    return ElementwiseSpec(_map_of(*first), tuple(second))

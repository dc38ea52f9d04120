"""nflows' `CompositeTransform`: neighbouring couplings, autoregressive layers and permutations as one op.

Composites inside of it are read as if their parts were its own, and what an `InverseTransform` holds in the other
direction. A part that wants to be called (another class, hooks, active dropout, a context that it has none of) splits
the run there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from flowkernels.compat.engine import thresholds
from flowkernels.compat.engine.patch import FastMethods, layer_of, or_theirs
from flowkernels.compat.engine.runs import kind, may_run
from flowkernels.compat.layer import Layer, in_our_order, native_rows
from flowkernels.nets.dense_reading import Dense
from flowkernels.nets.reading import Walk
from flowkernels.ops.flow import Order
from flowkernels.ops.flow_layer import every
from flowkernels.ops.net import Net
from flowkernels.ops.net.net import made_net
from flowkernels.ops.net.spec import NetSpec
from flowkernels.transforms.runs import AS_IT_IS, Leaf, Part, Piece, Run, Said, part_of, pieces, run_pieces

from . import classes, made, residual
from .autoregressive import AffineAutoregressive, SplineAutoregressive
from .coupling import AdditiveCoupling, AffineCoupling, Coupling

_PERMUTATIONS = frozenset(
    f"{root}.transforms.permutations.{name}Permutation"
    for root in ("nflows", "glasflow.nflows") for name in ("", "Random", "Reverse")
)  # fmt: skip
_INVERSES = frozenset(f"{root}.transforms.base.InverseTransform" for root in ("nflows", "glasflow.nflows"))
_COUPLINGS = (Coupling, AffineCoupling, AdditiveCoupling)
_AUTOREGRESSIVE = (SplineAutoregressive, AffineAutoregressive)
# What their `describe` reads of a layer and of its network, but for parts and buffers.
_SETTINGS = (
    "features", "tails", "tail_bound", "num_bins", "min_bin_width", "min_bin_height", "min_derivative", "_epsilon",
    "scale_activation", "unconditional_transform",
)  # fmt: skip
_WIDTHS = ("hidden_features", "hidden_channels")


def _name(module: nn.Module) -> str:
    cls = type(module)
    return f"{cls.__module__}.{cls.__qualname__}"


def leaves(walk: Walk, transform: Any, inverse: bool, is_first: bool) -> Sequence[Leaf]:
    """What a part of a composite runs, one after another: its own parts, or itself.

    A composite adds up the log-determinants of its parts alone. It is taken apart where the sum has the same bits.
    """
    if layer_of(transform) is Composite:
        listed = transform._modules.get("_transforms")
        if type(listed) is nn.ModuleList and walk.enter(transform) and walk.enter(listed):
            parts = list(listed._modules.values())
            found: list[Leaf] = []
            for t in parts[::-1] if inverse else parts:
                found += leaves(walk, t, inverse, is_first and not found)
            if is_first or len([leaf for leaf in found if _name(leaf.transform) not in _PERMUTATIONS]) <= 1:
                return found
    elif _name(transform) in _INVERSES and "inverse" not in transform.__dict__:
        inner = transform._modules.get("_transform")
        if inner is not None and walk.enter(transform, attributes=("inverse",)):
            return leaves(walk, inner, not inverse, is_first)
    return [Leaf(transform, inverse)]


# ---- one layer ----


class _Dense:
    """A dense network of a coupling, as a run asks for it in every call."""

    def __init__(self, layer: Layer, found: Dense) -> None:
        self.found = found
        assert layer.map is not None and layer.split is not None
        # One op each, where `by_feature` has several: in every call, and for its gradient.
        features = len(layer.split.outputs)
        self.rows = native_rows(layer.map, features, layer.groups).cpu() if layer.groups else None

    def as_net(self, x: Tensor, context: Tensor | None) -> Net | None:
        if context is not None and (context.dim() != 2 or context.shape[0] != x.shape[0]):
            return None  # nflows joins them row by row
        net = self.found.net(x.shape[:-1], context)
        if self.rows is None:
            return net
        at = 2 * net.spec.n
        last = [t.index_select(0, self.rows) for t in net.tensors[at - 2 : at]]
        return Net(net.spec, (*net.tensors[: at - 2], *last, *net.tensors[at:]))


class _Masked:
    """A masked network, as a run asks for it in every call."""

    def __init__(self, net: Any, found: made.Read) -> None:
        self.net, self.found = net, found
        self.spec: NetSpec | None = None

    def as_net(self, x: Tensor, context: Tensor | None) -> Net | None:
        if self.found.merged and thresholds.is_few(x.shape[0], thresholds.MERGED_ROWS):
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


def _permutation(walk: Walk, layer: Any, inverse: bool) -> Order | None:
    own = layer.__dict__
    if own.get("_dim") != 1 or own.keys() & {"inverse", "_permute"}:
        return None
    if not walk.enter(layer, attributes=("_dim", "inverse", "_permute"), buffers=("_permutation",)):
        return None
    order = own["_buffers"]["_permutation"]
    if not order.is_cpu or order.dim() != 1:
        return None
    found = order.tolist()
    if sorted(found) != list(range(len(found))):
        return None
    return Order(tuple(sorted(range(len(found)), key=found.__getitem__) if inverse else found))


def _described(walk: Walk, layer: Any, name: str, buffers: Sequence[str] = ()) -> Layer | None:
    """A layer with a network of this name, whose features share one map; None where the library must be called."""
    net = layer._modules.get(name)
    if net is None or layer._modules.get("unconditional_transform") is not None:
        return None
    if not walk.enter(layer, attributes=_SETTINGS, buffers=buffers) or not walk.enter(net, attributes=_WIDTHS):
        return None
    what = layer._flowkernels_layer.describe(layer)
    return None if what.own is not None else what


def _coupling(walk: Walk, layer: Any, inverse: bool, has_context: bool) -> Part | None:
    what = _described(walk, layer, "transform_net", ("identity_features", "transform_features"))
    if what is None or what.map is None or what.split is None or classes.kind(type(what.net)) != "ResidualNet":
        return None
    if what.net._modules.get("preprocessing") is not None:
        return None
    found = residual.read(walk, what.net, has_context)
    if found is None:
        return None
    univariate: Any = in_our_order(what.map)[0] if what.groups else what.map
    net = None if what.groups or has_context else found.net((), None)
    return part_of(univariate.inverted() if inverse else univariate, _Dense(what, found), found.layers, net, what.split)


def _autoregressive(walk: Walk, layer: Any, has_context: bool) -> Part | None:
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
    return part_of(what.map, _Masked(what.net, found), found.net.layers(), net, every(plan.features))


def read(walk: Walk, layer: Any, inverse: bool, has_context: bool) -> Said:
    """A layer or a permutation; None where it must be called."""
    methods = layer_of(layer)
    if methods in _COUPLINGS:
        return _coupling(walk, layer, inverse, has_context)
    if methods in _AUTOREGRESSIVE:
        return AS_IT_IS if inverse else _autoregressive(walk, layer, has_context)
    if methods is Composite:  # which runs its own
        return AS_IT_IS
    return _permutation(walk, layer, inverse) if _name(layer) in _PERMUTATIONS else None


KIND = kind(leaves, read)


# ---- the container ----


def _pieces(composite: Any, inverse: bool, has_context: bool) -> Sequence[Piece] | None:
    listed = composite._modules.get("_transforms")
    return pieces(composite, listed, inverse, has_context, KIND) if type(listed) is nn.ModuleList else None


def _run(composite: Any, x: Any, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor] | None:
    found = _pieces(composite, inverse, context is not None) if may_run(x) else None
    if found is None:
        return None
    if len(found) == 1:
        return found[0](x, context) if isinstance(found[0], Run) else None
    if not any(isinstance(piece, Run) for piece in found):
        return None
    return run_pieces(found, x, context, x.new_zeros(x.shape[0]))


class Composite(FastMethods):
    """The methods of an accelerated CompositeTransform."""

    is_container = True

    @or_theirs
    def forward(self: Any, inputs: Tensor, context: Tensor | None = None) -> Any:
        return _run(self, inputs, context, False)

    @or_theirs
    def inverse(self: Any, inputs: Tensor, context: Tensor | None = None) -> Any:
        return _run(self, inputs, context, True)

    pieces = staticmethod(_pieces)

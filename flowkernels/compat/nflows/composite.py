"""nflows' `CompositeTransform`: neighbouring couplings, autoregressive layers, and what stands between them, as one op.

Composites inside of it are read as if their parts were its own, and what an `InverseTransform` holds in the other
direction. A part that wants to be called (another class, hooks, active dropout, a context that it has none of) splits
the run there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from flowkernels.compat.engine.patch import FastMethods, layer_of, or_theirs
from flowkernels.compat.engine.runs import kind, may_run
from flowkernels.nets.reading import Walk
from flowkernels.ops.flow import Order
from flowkernels.transforms.own_steps import OwnPart
from flowkernels.transforms.parts import Leaf, Run
from flowkernels.transforms.runs import AS_IT_IS, Piece, Said, pieces, run_pieces

from . import own_steps, part
from .autoregressive import AffineAutoregressive, SplineAutoregressive
from .coupling import AdditiveCoupling, AffineCoupling, Coupling

_PERMUTATIONS = frozenset(
    f"{root}.transforms.permutations.{name}Permutation"
    for root in ("nflows", "glasflow.nflows") for name in ("", "Random", "Reverse")
)  # fmt: skip
_INVERSES = frozenset(f"{root}.transforms.base.InverseTransform" for root in ("nflows", "glasflow.nflows"))
_COUPLINGS = (Coupling, AffineCoupling, AdditiveCoupling)
_AUTOREGRESSIVE = (SplineAutoregressive, AffineAutoregressive)


def _name(module: nn.Module) -> str:
    cls = type(module)
    return f"{cls.__module__}.{cls.__qualname__}"


def _adds(leaf: Leaf) -> bool:
    """Whether the log-determinant differs from row to row, or trains: the order in which such are added is nflows'."""
    return _name(leaf.transform) not in _PERMUTATIONS and not own_steps.is_fixed(leaf.transform)


def leaves(walk: Walk, transform: Any, inverse: bool, before: Sequence[Leaf]) -> Sequence[Leaf]:
    """What a part of a composite runs, one after another: its own parts, or itself.

    A composite adds up the log-determinants of its parts alone. It is taken apart where the sum has the same bits, or
    but for a constant that is added first: that of data which sbi standardises.
    """
    if layer_of(transform) is Composite:
        listed = transform._modules.get("_transforms")
        if type(listed) is nn.ModuleList and walk.enter(transform) and walk.enter(listed):
            parts = list(listed._modules.values())
            found: list[Leaf] = []
            for t in parts[::-1] if inverse else parts:
                found += leaves(walk, t, inverse, [*before, *found])
            if not any(map(_adds, before)) or sum(map(_adds, found)) <= 1:
                return found
    elif _name(transform) in _INVERSES and "inverse" not in transform.__dict__:
        inner = transform._modules.get("_transform")
        if inner is not None and walk.enter(transform, attributes=("inverse",)):
            return leaves(walk, inner, not inverse, before)
    return [Leaf(transform, inverse)]


# ---- one layer ----


def permutation(walk: Walk, layer: Any, inverse: bool) -> Order | None:
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


def _coupling(walk: Walk, layer: Any, inverse: bool, has_context: bool) -> Said:
    """A coupling, and what it does to the features that it sees."""
    found, unconditional = part.coupling(walk, layer, inverse, has_context), layer.unconditional_transform
    if found is None or unconditional is None:
        return found
    of_seen = own_steps.spline(walk, unconditional, found.split.inputs, found.split.features, inverse)
    if not isinstance(of_seen, OwnPart):
        return of_seen
    return [of_seen, found] if inverse else [found, of_seen]


def read(walk: Walk, layer: Any, inverse: bool, has_context: bool) -> Said:
    """A layer, a step without a network or a permutation; None where it must be called."""
    methods = layer_of(layer)
    if methods in _COUPLINGS:
        return _coupling(walk, layer, inverse, has_context)
    if methods in _AUTOREGRESSIVE:
        return part.autoregressive(walk, layer, inverse, has_context)
    if methods is Composite:  # which runs its own
        return AS_IT_IS
    name = _name(layer)
    if name in own_steps.READERS:
        return own_steps.READERS[name](walk, layer, inverse)
    return permutation(walk, layer, inverse) if name in _PERMUTATIONS else None


KIND = kind(leaves, read)._replace(mixes=False)


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

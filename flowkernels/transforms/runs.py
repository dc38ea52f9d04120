"""Which neighbouring layers of a container run as one op, read off their modules once and kept until they change.

A container of ours is a `Composite`; those of other libraries (`compat`) bring readers of their own, a `Kind`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from flowkernels.nets.reading import Walk
from flowkernels.ops._kept import made_to_stay
from flowkernels.ops.flow import Order

from . import autoregressive, coupling
from .own_steps import AS_IT_IS, OwnPart
from .own_steps import READERS as OWN_READERS
from .parts import AnyPart, Leaf, Part, Run, dtype_of, features_of, kept, runs_alone
from .permutation import Permutation

# Weights of a run: all of them are packed at once, and every thread sums gradients of all. Nets so large lose nothing
# by running layer by layer.
_MOST_WEIGHTS = 1 << 22

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


Said = Part | OwnPart | Order | list[Part] | list[AnyPart] | Literal["called"] | None


class Kind(NamedTuple):
    """How the transforms of a container are read.

    ``leaves(walk, transform, inverse, before)``: what a transform that holds others runs, one after another, or
    itself; ``before``: what runs before it.
    ``read(walk, transform, inverse, has_context)``: a layer, the layers that it is made of, or an order; None where it
    must be called now. ``mixes``: whether a run may have both sweeps and other layers; its log-determinants are added
    up in another order than those of the runs that it is made of, which changes their last digits.
    """

    leaves: Callable[[Walk, Any, bool, Sequence[Leaf]], Sequence[Leaf]]
    read: Callable[[Walk, Any, bool, bool], Said]
    mixes: bool = True


def pieces(owner: nn.Module, transforms: nn.Module, inverse: bool, has_context: bool, kind: Kind) -> list[Piece] | None:
    """What `owner`, which applies the modules of `transforms` one after another, runs now; None: these, one by one."""
    way = inverse, has_context
    return kept(owner, way, read_pieces, owner, transforms, inverse, has_context, kind)


def read_pieces(
    owner: nn.Module, transforms: nn.Module, inverse: bool, has_context: bool, kind: Kind
) -> tuple[Walk, list[Piece]]:
    """What there is to run, read anew, and what was looked at."""
    walk = Walk()
    memory = owner.__dict__.get("memory")  # of a container of ours
    walk.enter(owner, attributes=() if memory is None else ("memory",), is_called=True)
    walk.enter(transforms, is_called=True)
    listed = list(transforms._modules.values())[:: -1 if inverse else 1]
    return walk, made_to_stay(read_listed, walk, listed, inverse, has_context, kind, memory == "flat")


def read_listed(
    walk: Walk, transforms: Sequence[Any], inverse: bool, has_context: bool, kind: Kind, flat: bool = False
) -> list[Piece]:
    """What runs for these transforms, which are listed as they are called."""
    found: list[Piece] = []
    leaves: list[Leaf] = []
    parts: list[AnyPart] = []

    def close() -> None:
        if any(map(runs_alone, parts)):
            found.append(Run(list(leaves), list(parts), flat))
        else:
            found.extend(leaves)
        leaves.clear()
        parts.clear()

    listed: list[Leaf] = []
    for transform in transforms:
        listed += kind.leaves(walk, transform, inverse, listed)
    for leaf in listed:
        said = kind.read(walk, leaf.transform, leaf.inverse, has_context)
        if said is None or said == AS_IT_IS:
            if said is None:
                walk.refuse(leaf.transform)
            close()
            found.append(leaf)
            continue
        more = said if isinstance(said, list) else [said]
        weights = sum(p.weights for p in (*parts, *more) if not isinstance(p, Order))
        dtypes = {dtype_of(p) for p in (*parts, *more)} - {None}
        ways = {p.sweeps for p in (*parts, *more) if isinstance(p, Part)}
        apart = len(dtypes) > 1 or weights > _MOST_WEIGHTS or (len(ways) > 1 and not kind.mixes)
        if parts and (features_of(more[0]) != features_of(parts[0]) or apart):
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


_READERS: dict[type, Callable[..., Said]] = {
    Permutation: _permutation, coupling.Coupling: coupling.read, autoregressive.Autoregressive: autoregressive.read,
    **OWN_READERS,
}  # fmt: skip


def _unwrapped(walk: Walk, transform: Any, inverse: bool, before: Sequence[Leaf]) -> list[Leaf]:
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

"""zuko's composed transforms: neighbouring autoregressive layers, couplings, elementwise layers, rotations as one op.

A `LazyComposedTransform` makes the transforms of its parts in every call. Of layers that run as one op none is made
before somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.transforms import AffineTransform, Transform
from torch.distributions.utils import _sum_rightmost
from zuko import transforms
from zuko.lazy import LazyInverse, UnconditionalTransform
from zuko.transforms import RotationTransform

from flowkernels.compat.engine.patch import layer_of
from flowkernels.compat.engine.runs import kind
from flowkernels.nets.reading import Walk
from flowkernels.transforms import own_steps
from flowkernels.transforms.parts import Leaf, Run
from flowkernels.transforms.runs import AS_IT_IS, Piece, Said, pieces

from . import LIBRARY
from .part import autoregressive, coupling, elementwise, rotation
from .transforms import AutoregressiveTransform, CouplingTransform, DependentTransform, expanded

_COUPLING = LIBRARY.targets["flows.coupling.GeneralCouplingTransform"].layer
_AUTOREGRESSIVE = LIBRARY.targets["flows.autoregressive.MaskedAutoregressiveTransform"].layer
_ELEMENTWISE = LIBRARY.targets["flows.gaussianization.ElementWiseTransform"].layer
_MADE: dict[Any, Any] = {
    _COUPLING: CouplingTransform, _AUTOREGRESSIVE: AutoregressiveTransform, _ELEMENTWISE: DependentTransform
}  # fmt: skip


def _made(layer: Any) -> Any:
    """What makes its transform, also of one that was given back since."""
    methods = _COUPLING if hasattr(layer, "mask") else _AUTOREGRESSIVE if hasattr(layer, "passes") else _ELEMENTWISE
    return _MADE[methods]


# ---- one layer ----


def leaves(walk: Walk, transform: Any, inverse: bool, before: Sequence[Leaf]) -> Sequence[Leaf]:
    """What a part of a composed transform runs: what a lazy inverse holds, in the other direction, or itself."""
    if type(transform) is LazyInverse:
        inner = transform._modules.get("transform")
        if inner is not None and walk.enter(transform):
            return leaves(walk, inner, not inverse, before)
    return [Leaf(transform, inverse)]


def _unconditional(walk: Walk, layer: Any, inverse: bool) -> Said:
    """A rotation, or a scale and a shift of each feature, as sbi standardises data; None where it must be called."""
    own = layer.__dict__
    if own.get("f") is RotationTransform:
        return rotation(walk, layer, inverse)
    looked_at = {"attributes": ("f", "_nargs", "_keys"), "buffers": [*own["_buffers"]]}
    if own.get("f") is not AffineTransform or not walk.enter(layer, parameters=[*own["_parameters"]], **looked_at):
        return None
    made = layer()
    loc, scale = made.loc, made.scale
    if made.event_dim != 0 or not isinstance(loc, Tensor) or not isinstance(scale, Tensor):
        return AS_IT_IS
    return own_steps.scale(scale, loc, inverse)


def read(walk: Walk, layer: Any, inverse: bool, has_context: bool) -> Said:
    """A layer, a rotation or a scale; None where it must be called."""
    methods = layer_of(layer)
    if methods is _AUTOREGRESSIVE:
        return autoregressive(walk, layer, inverse, has_context)
    if methods is not None and methods.is_container:  # which runs its own
        return AS_IT_IS
    if type(layer) is UnconditionalTransform:
        return _unconditional(walk, layer, inverse)
    if methods is _ELEMENTWISE:
        return elementwise(walk, layer, inverse, has_context)
    return coupling(walk, layer, inverse, has_context) if methods is _COUPLING else None


KIND = kind(leaves, read)

# ---- the container ----


def pieces_of(lazy: Any, inverse: bool, has_context: bool) -> Sequence[Piece] | None:
    """What a lazy composed transform runs now; None where its parts are no list of modules."""
    listed = lazy._modules.get("transforms")
    if torch.compiler.is_compiling() or type(listed) is not nn.ModuleList:
        return None
    return pieces(lazy, listed, inverse, has_context, KIND)


def composed(lazy: Any, context: Tensor | None) -> Composed | None:
    """What a lazy composed transform returns; None where its parts are to be called one by one."""
    found = pieces_of(lazy, False, context is not None)
    if found is None or not any(isinstance(piece, Run) for piece in found):
        return None
    parts = Parts([*lazy.transforms], context)
    dims: list[tuple[int, int]] = []  # of the events that a part takes and returns
    for piece in found:
        if isinstance(piece, Run):
            parts.layers += piece.leaves
            dims += [(1, 1)] * len(piece.leaves)
        else:
            parts.layers.append(None)
            made = parts.made(len(dims))  # now, as zuko does
            dims.append((made.domain.event_dim, made.codomain.event_dim))
    return Composed(lazy, parts, *_event_dims(dims), inverse=False)


def _event_dims(dims: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Of the whole, as zuko works them out."""
    of_x = 0
    for given, returned in reversed(dims):
        of_x = given + max(of_x - returned, 0)
    return of_x, of_x + sum(returned - given for given, returned in dims)


class Parts:
    """The parts that a composed transform had when it was made, and the transforms of those that were asked for.

    A part that was a layer of a run is not called: hooks that it has since are none of its call's.
    """

    def __init__(self, listed: list[Any], context: Tensor | None) -> None:
        self.listed, self.context = listed, context
        self.layers: list[Leaf | None] = []
        self._made: list[Any] = [None] * len(listed)

    def made(self, i: int) -> Any:
        if self._made[i] is None:
            leaf = self.layers[i]
            if leaf is None or type(leaf.transform) is UnconditionalTransform:
                self._made[i] = self.listed[i](self.context)
            else:
                found = _made(leaf.transform)(leaf.transform, self.context)
                self._made[i] = found.inv if leaf.inverse else found
        return self._made[i]


class Composed(transforms.ComposedTransform):
    """`zuko.transforms.ComposedTransform`, some neighbours of which run as one op.

    The parts that it had when it was made are what it runs, as in zuko, with the weights and settings of the call.
    Those that are layers of a run make their transforms when somebody asks for one.
    """

    def __init__(self, lazy: Any, parts: Parts, domain_dim: int, codomain_dim: int, inverse: bool) -> None:
        Transform.__init__(self)
        self.domain_dim, self.codomain_dim = domain_dim, codomain_dim
        self.lazy, self.parts, self.inverse = lazy, parts, inverse

    def _part(self, i: int) -> Any:
        return self.parts.made(len(self.parts.listed) - 1 - i).inv if self.inverse else self.parts.made(i)

    @property
    def transforms(self) -> list[Transform]:  # type: ignore[override]
        return [self._part(i) for i in range(len(self.parts.listed))]

    @property
    def inv(self) -> Transform:
        return Composed(self.lazy, self.parts, self.codomain_dim, self.domain_dim, not self.inverse)

    @property
    def codomain(self) -> constraints.Constraint:
        """zuko asks for it in every call; a layer's need not be made for it."""
        last = self.parts.listed[0 if self.inverse else -1]
        is_vector = self.codomain_dim == 1 and layer_of(last) in _MADE
        return constraints.real_vector if is_vector else super().codomain

    def _pieces(self) -> Sequence[Piece] | None:
        if [*self.lazy._modules["transforms"]._modules.values()] != self.parts.listed:
            return None
        return pieces_of(self.lazy, self.inverse, self.parts.context is not None)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self._pieces()
        if found is None:
            return super().call_and_ladj(x)
        total: Any = 0
        i, event_dim = 0, self.domain_dim
        for piece in found:
            done = piece(*expanded(x, self.parts.context)) if isinstance(piece, Run) else None
            n = len(piece.leaves) if isinstance(piece, Run) else 1
            if done is not None:
                x, ladj = done
                total = total + _sum_rightmost(ladj, event_dim - 1)
            for part in () if done is not None else map(self._part, range(i, i + n)):
                x, ladj = part.call_and_ladj(x)
                total = total + _sum_rightmost(ladj, event_dim - part.domain.event_dim)
                event_dim += part.codomain.event_dim - part.domain.event_dim
            i += n
        return x, total

    def _call(self, x: Tensor) -> Tensor:
        found, i = self._pieces(), 0
        if found is None:
            return super()._call(x)
        for piece in found:
            done = piece(*expanded(x, self.parts.context)) if isinstance(piece, Run) else None
            n = len(piece.leaves) if isinstance(piece, Run) else 1
            if done is not None:
                x = done[0]
            for part in () if done is not None else map(self._part, range(i, i + n)):
                x = part(x)
            i += n
        return x

"""FrEIA's blocks as steps of a run: couplings, permutations, the scale and the offset of an all-in-one block."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn

from flowkernels.compat.engine.patch import layer_of
from flowkernels.compat.reading.halves import parts_of
from flowkernels.compat.reading.masks import read_order
from flowkernels.nets.reading import Walk
from flowkernels.ops.flow import Order, Scale
from flowkernels.transforms import own_steps
from flowkernels.transforms.own_steps import AS_IT_IS, OwnPart
from flowkernels.transforms.runs import Said

from . import describe
from .couplings import Coupling
from .layers import AllInOne, Permute

# What their `describe` reads of a block, but for its networks.
_SETTINGS = ("f_clamp", "clamp", "split_len1", "split_len2", "channels", "conditional", "dims_in")
_OF_ALL_IN_ONE = (
    "clamp", "GIN", "householder", "input_rank", "reverse_pre_permute", "in_channels", "splits", "conditional",
    "global_scale_activation",
)  # fmt: skip


class Link(NamedTuple):
    """A module of a chain, and the conditions that it is called with."""

    module: Any
    keys: tuple[Any, ...]  # which of the call's
    columns: tuple[range, ...] | None  # where these lie among all conditions, side by side; None: not known
    node: Any = None  # of a graph

    def modules(self) -> Iterable[nn.Module]:
        return self.module.modules()


def sees_conditions(module: Any) -> bool:
    """Whether a module's conditions may be those of a run."""
    methods = layer_of(module)
    return methods is AllInOne or (methods is not None and issubclass(methods, Coupling))


def _coupling(walk: Walk, link: Link, inverse: bool) -> Said:
    block = link.module
    if not walk.enter(block, attributes=_SETTINGS) or len(block.dims_in[0]) != 1:
        return None
    halves = block._flowkernels_layer.describe(block)
    if isinstance(halves, str):
        return None
    found: list[Any] = []
    for half in reversed(halves) if inverse else halves:
        parts = parts_of(walk, half, block.channels, inverse, link.columns if block.conditional else ())
        if parts is None:
            return None
        found += parts
    return found


def _order(matrix: Any) -> Order | None:
    found = read_order(matrix) if matrix.is_cpu else ""
    return None if isinstance(found, str) else Order(tuple(found.tolist()))


def _scale(block: Any, inverse: bool) -> Scale:
    return Scale(block.global_scale_activation(block.global_scale)[0], block.global_offset[0], inverse, is_log=False)


def _all_in_one(walk: Walk, link: Link, inverse: bool) -> Said:
    """A coupling, a scale and an offset, and a permutation, which may stand before the coupling too, turned round."""
    block = link.module
    if not walk.enter(block, attributes=_OF_ALL_IN_ONE, frozen=("w_perm", "w_perm_inv")):
        return None  # a permutation that is learned, among others
    activation = getattr(block.global_scale_activation, "__qualname__", "")
    if block.householder or block.input_rank > 0 or activation != "AllInOneBlock.__init__.<locals>.<lambda>":
        return None
    halves = describe.all_in_one(block)
    there, back = _order(block.w_perm), _order(block.w_perm_inv)
    if isinstance(halves, str) or there is None or back is None:
        return None
    columns = link.columns if block.conditional else ()
    coupling = parts_of(walk, halves[0], block.in_channels, inverse, columns)
    scale = own_steps.made(functools.partial(_scale, block, inverse), block.in_channels)
    if coupling is None or scale is None or block.w_perm.dtype is not scale.dtype:
        return None
    found: list[Any] = [*coupling, scale, there]
    if inverse:
        found = [back, scale, *coupling]
    if block.reverse_pre_permute:
        found = [*found, there] if inverse else [back, *found]
    return found


def _permutation(walk: Walk, link: Link, inverse: bool) -> Said:
    if link.keys or not walk.enter(link.module, frozen=("perm", "perm_inv")):
        return None
    order = link.module.perm_inv if inverse else link.module.perm
    if not order.is_cpu or order.dim() != 1:
        return None
    found = order.tolist()
    return Order(tuple(found)) if sorted(found) == list(range(len(found))) else None


def read(walk: Walk, link: Link, inverse: bool, has_context: bool) -> Said:
    """The layers that a module is made of, or a permutation; None where it must be called."""
    methods = layer_of(link.module)
    if methods is None:
        return None
    if methods.is_container:  # which runs its own
        return AS_IT_IS
    if methods is AllInOne:
        return _all_in_one(walk, link, inverse)
    if methods is Permute:
        return _permutation(walk, link, inverse)
    return _coupling(walk, link, inverse) if issubclass(methods, Coupling) else None


def is_number(step: Any) -> bool:
    """Whether FrEIA's log-determinant of a step is the number 0."""
    return not isinstance(step, OwnPart) and (isinstance(step, Order) or step.univariate.n_params == 1)

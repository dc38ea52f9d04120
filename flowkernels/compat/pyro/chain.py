"""Pyro's `ComposeTransformModule`: neighbouring couplings and the permutations between them as one op.

Of what was computed last it keeps x, y and the log-determinant, as every layer of Pyro does, so that a sample is scored
without an inverse. A list of transforms in a `TransformedDistribution` is no such chain: see the package.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions.transforms import ComposeTransform, Transform

from flowkernels.compat.engine import thresholds
from flowkernels.compat.engine.patch import FastMethods, layer_of, or_theirs, original_class
from flowkernels.compat.engine.runs import kind, pays_with_graph
from flowkernels.nets.reading import Walk
from flowkernels.ops._kept import made_to_stay
from flowkernels.transforms.parts import KERNELS, Leaf, Run, forgotten, kept
from flowkernels.transforms.runs import Piece, read_listed

from .part import Link, is_permutation, read

KIND = kind(lambda walk, link, inverse, before: [Leaf(link, inverse)], read)
_last: weakref.WeakKeyDictionary[nn.Module, tuple[Tensor, Tensor, Tensor]] = weakref.WeakKeyDictionary()
forgotten.append(_last)
_inverses: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()


def _versions(parts: Sequence[Any]) -> tuple[Any, ...]:
    """What of transforms that are no modules may change, and which transforms there are."""
    return tuple([
        (id(t), t.dim, id(t.permutation), t.permutation._version) if is_permutation(t) else id(t) for t in parts
    ])  # fmt: skip


def _pieces(whole: Any, inverse: bool, has_context: bool) -> list[Piece] | None:
    parts = whole.parts
    return kept(whole, (inverse, _versions(parts)), _read, whole, parts, inverse)


def _read(whole: Any, parts: Sequence[Any], inverse: bool) -> tuple[Walk, list[Piece]]:
    walk, links = Walk(), [Link(t) for t in parts]
    walk.enter(whole, is_called=True)
    return walk, made_to_stay(read_listed, walk, links[::-1] if inverse else links, inverse, False, KIND)


def _event_dim(t: Any) -> int:
    return max(t.domain.event_dim, t.codomain.event_dim)


def _run(whole: Any, x: Any, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """What the transforms make of x, and the log-determinant; None where they run one by one."""
    if torch.compiler.is_compiling() or not isinstance(x, Tensor) or x.dim() == 0 or x.numel() == 0:
        return None
    if not x.is_cpu or x.dtype not in KERNELS:
        return None
    found = _pieces(whole, inverse, False)
    if found is None or not any(isinstance(piece, Run) for piece in found):
        return None
    total: Any = None
    for piece in found:
        done = piece(x, None) if isinstance(piece, Run) and _pays(piece, x) else None
        if done is not None:
            x, total = done[0], done[1] if total is None else total + done[1]
            continue
        for leaf in piece.leaves if isinstance(piece, Run) else (piece,):
            t = leaf.transform.transform
            if _event_dim(t) > 1:
                return None
            y = t.inv(x) if inverse else t(x)
            ladj = -t.log_abs_det_jacobian(y, x) if inverse else t.log_abs_det_jacobian(x, y)
            ladj = ladj.sum(-1) if t.domain.event_dim == 0 else ladj
            x, total = y, ladj if total is None else total + ladj
    return x, total


def _pays(run: Run, x: Tensor) -> bool:
    return not thresholds.may_train() or pays_with_graph(run, x.numel() // x.shape[-1])


def _inverse(whole: Any, y: Any) -> Tensor | None:
    last = _last.get(whole)
    if last is not None and last[1] is y:
        return last[0]
    found = _run(whole, y, True)
    if found is None:
        return None
    _last[whole] = found[0], y, -found[1]
    return found[0]


class Inverse(ComposeTransform):
    """The inverse of an accelerated `ComposeTransformModule`."""

    def __init__(self, whole: Any) -> None:
        Transform.__init__(self)
        self.whole = whole

    @property
    def parts(self) -> list[Transform]:  # type: ignore[override]
        return [t.inv for t in reversed(self.whole.parts)]

    @property
    def inv(self) -> Transform:
        return self.whole

    def __call__(self, y: Tensor) -> Any:
        found = _inverse(self.whole, y) if layer_of(self.whole) is Compose else None
        return super().__call__(y) if found is None else found

    def log_abs_det_jacobian(self, y: Tensor, x: Tensor) -> Tensor:
        last = _last.get(self.whole) if layer_of(self.whole) is Compose else None
        if last is not None and last[0] is x and last[1] is y:
            return -last[2]
        return super().log_abs_det_jacobian(y, x)


class Compose(FastMethods):
    """The methods of an accelerated ComposeTransformModule."""

    is_container = True
    pieces = staticmethod(_pieces)

    @or_theirs
    def __call__(self: Any, x: Any) -> Any:
        last = _last.get(self)
        if last is not None and last[0] is x:
            return last[1]
        found = _run(self, x, False)
        if found is None:
            return None
        _last[self] = x, *found
        return found[0]

    @or_theirs
    def log_abs_det_jacobian(self: Any, x: Any, y: Any) -> Any:
        last = _last.get(self)
        return last[2] if last is not None and last[0] is x and last[1] is y else None

    @property
    def inv(self: Any) -> Any:
        if torch.compiler.is_compiling():
            return original_class(self).inv.fget(self)
        known = _inverses.get(self)
        found = None if known is None else known()
        if found is None:
            found = Inverse(self)
            _inverses[self] = weakref.ref(found)
        return found

    def clear_cache(self: Any) -> None:
        _last.pop(self, None)
        original_class(self).clear_cache(self)

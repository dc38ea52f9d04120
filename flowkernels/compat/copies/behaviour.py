"""What a copied function does on a few fixed inputs, compared with the reference of `ops.rqs`, once per function."""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from flowkernels.ops import rqs

from .call import BOXES, EDGES, MINIMA, TAILS, Means, Way, fused, settings_of
from .signature import LOGITS, Signature, signature_of

_BINS, _ROWS = 5, (24, 4)
_WITHIN = 1e-9  # both compute in float64; what a copy adds to a logarithm or cuts off near its ends is larger
_LEAST = (1e-3, 0.0, 1e-2, 1e-4)  # the smallest sizes and slopes of copies that take none
_OTHER_MINIMA = (0.02, 0.03, 0.05)
_BY_BOX = {
    "number": ({"tail_bound": 1.5}, {"tail_bound": 2.25}),
    "pair": ({"tail_bound": [-1.5, 0.75]}, {"tail_bound": [0.25, 2.0]}),
    "sides": (  # in y within those in x, against which nflows holds the inputs of an inverse too
        {"left": -1.5, "right": 2.0, "bottom": -1.0, "top": 0.75},
        {"left": -2.25, "right": 2.25, "bottom": -1.5, "top": 2.0},
    ),
    "ends": ({"lower": -1.5, "upper": 0.75}, {"lower": 0.25, "upper": 2.0}),
    "none": ({}, {}),
}


class _Difference(Exception):
    """Why a way of calling is not ours; of several ways the one is told that came furthest."""

    def __init__(self, stage: int, reason: str) -> None:
        super().__init__(reason)
        self.stage = stage


class _Found(NamedTuple):
    """A call and what it returned: y, ladj and the gradients of inputs and logits."""

    values: dict[str, Any]
    returned: tuple[Tensor, ...]


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Where modes, devices and generators of the caller are not seen, and left as they are."""
    numpy = sys.modules.get("numpy")
    python, state = random.getstate(), None if numpy is None else numpy.random.get_state()
    try:
        with (
            _disable_current_modes(), torch.device("cpu"), torch.inference_mode(False), torch.enable_grad(),
            torch.random.fork_rng(devices=[]),
        ):  # fmt: skip
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(state)


def _logits(more: int) -> dict[str, Tensor]:
    generator = torch.Generator(device="cpu").manual_seed(more + 1)
    scale = torch.tensor([0.3, 1.0, 1.0, 3.0], dtype=torch.float64)[:, None]  # by column
    sizes = zip(LOGITS, (_BINS, _BINS, _BINS + more), strict=True)
    return {role: scale * torch.randn(*_ROWS, n, generator=generator, dtype=torch.float64) for role, n in sizes}


def _ends(values: dict[str, Any], means: Means) -> tuple[float, float]:
    """The sides of the box that the inputs of a call may lie between."""
    bound = values.get("tail_bound")
    if bound is not None and values.get("tails", "") is not None:
        return (-bound, bound) if isinstance(bound, float) else tuple(bound)
    names = ("bottom", "top") if values.get("inverse") and "bottom" in values else ("left", "right")
    for low, high in (names, ("lower", "upper")):
        if low in values:
            return values[low], values[high]
    return means.box


def _inputs(low: float, high: float, outside: bool) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(7)
    share = torch.rand(_ROWS, generator=generator, dtype=torch.float64)
    share[0] = torch.tensor([1e-8, 1 - 1e-8, 1e-4, 1 - 1e-4], dtype=torch.float64)  # where some copies cut off
    if outside:
        share[1::3] = 3 * share[1::3] - 1
    return low + (high - low) * share


def _with_gradients(call: Callable[[dict[str, Tensor]], Any], tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
    leaves = {role: t.clone().requires_grad_() for role, t in tensors.items()}
    given = {role: t.clone() for role, t in leaves.items()}  # no leaves: what writes in place may, and is seen
    versions = [t._version for t in given.values()]
    returned = call(given)
    if [t._version for t in given.values()] != versions:
        raise _Difference(5, "writes to its arguments in place")
    x = tensors["inputs"]
    pair = isinstance(returned, (tuple, list)) and len(returned) == 2
    if not pair or not all(isinstance(t, Tensor) and (t.shape, t.dtype) == (x.shape, x.dtype) for t in returned):
        raise _Difference(1, "does not return outputs and log-determinants of every element")
    y, ladj = returned
    of_y, of_ladj = torch.linspace(-1, 1.5, x.numel(), dtype=x.dtype), torch.linspace(1, -0.5, x.numel(), dtype=x.dtype)
    total = (y * of_y.view_as(y)).sum() + (ladj * of_ladj.view_as(ladj)).sum()
    if not total.requires_grad:
        raise _Difference(4, "has no gradients")
    gradients = torch.autograd.grad(total, [*leaves.values()], allow_unused=True)
    wanted = zip(gradients, leaves.values(), strict=True)
    return (y.detach(), ladj.detach(), *(torch.zeros_like(t) if g is None else g for g, t in wanted))


def _theirs(theirs: Callable[..., Any], signature: Signature, values: dict[str, Any]) -> _Found:
    tensors = {role: values[role] for role in ("inputs", *LOGITS)}

    def call(tensors: dict[str, Tensor]) -> Any:
        args, kwargs = signature.arguments(values | tensors)
        try:
            return theirs(*args, **kwargs)
        except Exception as error:
            line = (str(error).splitlines() or [""])[0]
            raise _Difference(0, f"raises {type(error).__name__}: {line}") from None

    return _Found(values, _with_gradients(call, tensors))


def _reference(settings: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    x, *logits = tensors.values()
    params = torch.cat(logits, -1).unsqueeze(-2)
    y, ladj = rqs(x.unsqueeze(-1), params, bins=_BINS, backend="reference", **settings)
    return y.squeeze(-1), ladj


def _is_close(found: Tensor, wanted: Tensor, within: float) -> bool:
    return bool((found - wanted).abs().max() <= within * max(1.0, float(wanted.abs().max())))


def _compare(found: _Found, way: Way, means: Means) -> None:
    """Raises where ours is another function."""
    settings = settings_of(found.values, {way: means})
    if settings is None:
        raise _Difference(0, "is called in a way that is not known")
    tensors = {role: found.values[role] for role in ("inputs", *LOGITS)}
    with torch.no_grad():  # most candidates differ here already
        pair = _reference(settings, tensors)
    what = ("inverse" if found.values.get("inverse") else "values", "log-determinants")
    for i, name in enumerate(what):
        if not _is_close(found.returned[i], pair[i], _WITHIN):
            raise _Difference(2 + i, f"has other {name} than nflows' spline")
    ours = _with_gradients(functools.partial(_reference, settings), tensors)
    if not all(_is_close(a, b, 100 * _WITHIN) for a, b in zip(found.returned[2:], ours[2:], strict=True)):
        raise _Difference(4, "has other gradients than nflows' spline")


def _calls(theirs: Callable[..., Any], signature: Signature, way: Way, means: Means) -> Iterator[_Found]:
    """Its calls: both directions, with two settings of everything that it takes."""
    has = set(signature.roles.values())
    for settings, minima in zip(_BY_BOX[way.box], ((1e-3, 1e-3, 1e-3), _OTHER_MINIMA), strict=True):
        values: dict[str, Any] = _logits(way.more) | settings | dict(zip(MINIMA, minima, strict=True))
        values |= {"tails": way.tails, "bins": _BINS, "tail_bound": settings.get("tail_bound", 1.5)}
        values = {role: value for role, value in values.items() if role in has}
        for inverse in (False, True) if "inverse" in has else (False,):
            if inverse:
                values = values | {"inverse": True}
            ends = _ends(values, means)
            for outside in (True, False):  # the latter if it raises, as nflows' function without tails
                tensors = {role: values[role] for role in LOGITS}
                tensors["inputs"] = _inputs(*ends, outside)
                if means.flat:
                    tensors = {role: t.flatten(0, 1) for role, t in tensors.items()}
                try:
                    found = _theirs(theirs, signature, values | tensors)
                except _Difference as difference:
                    if difference.stage > 0 or not outside:
                        raise
                else:
                    yield found
                    break


def _candidates(signature: Signature, way: Way, box: tuple[float, float], flat: bool) -> Iterator[Means]:
    has = set(signature.roles.values())
    sizes = _LEAST if not {"min_bin_width", "min_bin_height"} <= has else _LEAST[:1]
    slopes = _LEAST if "min_derivative" not in has else _LEAST[:1]
    edges = range(len(EDGES)) if TAILS[way.more] == "linear" else (0,)
    for edge, size, slope in itertools.product(edges, sizes, slopes):
        yield Means(edge, (size, size, slope), box, flat)


def _means(theirs: Callable[..., Any], signature: Signature, way: Way, box: tuple[float, float], flat: bool) -> Means:
    """The settings that are left open by what it is called with, such that all calls agree; raises where none do."""
    candidates = [*_candidates(signature, way, box, flat)]
    furthest: _Difference | None = None
    for found in _calls(theirs, signature, way, candidates[0]):
        left = []
        for means in candidates:
            try:
                _compare(found, way, means)
            except _Difference as difference:
                furthest = difference if furthest is None or difference.stage > furthest.stage else furthest
            else:
                left.append(means)
        if not left:
            assert furthest is not None
            raise furthest
        candidates = left
    return candidates[0]


def _ways(signature: Signature) -> Iterator[tuple[Way, tuple[float, float]]]:
    has = set(signature.roles.values())
    for tails in ("linear", None, "circular") if "tails" in has else (None,):
        if "tail_bound" in has and not ("tails" in has and tails is None):
            boxes = ["number", "pair"]
        else:
            boxes = ["sides" if "left" in has else "ends" if "lower" in has else "none"]
        free = tails is None and boxes[0] != "number"  # the way that is likely comes first, whose reason is told
        for box, more in itertools.product(boxes, sorted(TAILS, reverse=free)):
            for ends in BOXES if box == "none" else BOXES[:1]:
                yield Way(tails, more, box), ends


@functools.lru_cache(maxsize=256)
def copy_of(theirs: Callable[..., Any]) -> Callable[..., Any] | str | None:
    """The fused function of a copy, why one that looks like a spline is none, or None: it looks like none."""
    signature = signature_of(theirs)
    if signature is None or isinstance(signature, str):
        return signature
    if not all({"left": {"left", "right", "bottom", "top"}, "lower": {"lower", "upper"}}.get(r, set())
               <= set(signature.roles.values()) for r in signature.roles.values()):  # fmt: skip
        return f"its {theirs.__name__} is given a part of its box only"
    plain = getattr(theirs, "_torchdynamo_orig_callable", theirs)  # nothing is compiled for this
    known: dict[Way, Means] = {}
    furthest = _Difference(-1, "")
    with _alone():
        for flat, (way, box) in itertools.product((False, True), _ways(signature)):
            if way in known:
                continue
            try:
                known[way] = _means(plain, signature, way, box, flat)
            except _Difference as difference:
                furthest = difference if difference.stage > furthest.stage else furthest
            except Exception as error:  # of a backward of its own, say
                raised = _Difference(0, f"cannot be compared: {type(error).__name__}")
                furthest = raised if raised.stage > furthest.stage else furthest
    return fused(theirs, signature, known) if known else f"its {theirs.__name__} {furthest}"

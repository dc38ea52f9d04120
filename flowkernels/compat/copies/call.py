"""A call of a copied spline function, in the words of `ops.rqs`."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from flowkernels.compat.reading.spline_of_parts import spline_of_parts

from .signature import LOGITS, Signature

TAILS = {-1: "linear", 0: "circular", 1: None}  # slopes beyond the bins → tails, as `ops.rqs` counts its parameters
MINIMA = ("min_bin_width", "min_bin_height", "min_derivative")
BOXES = ((0.0, 1.0), (-1.0, 1.0))  # of functions that are given none

# The slope at both ends that linear tails leave inside of the box: 1, with the smallest one forgotten, or the slope of
# a logit that is 0 or 1.
EDGES: tuple[Callable[[float], float], ...] = (
    lambda least: 1.0,
    lambda least: 1.0 - least,
    lambda least: least + math.log(2.0),
    lambda least: least + math.log1p(math.e),
)


class Way(NamedTuple):
    """One of the ways in which a function can be called."""

    tails: Any  # what it is given as tails, if it takes any
    more: int  # slopes beyond the bins
    box: str  # how it is given its box: "number", "pair", "sides", "ends", "none"


class Means(NamedTuple):
    """What a way of calling does that its arguments do not say."""

    edge: int  # in EDGES
    minima: tuple[float, float, float]  # where they are no parameters
    box: tuple[float, float]  # where it has no parameter
    flat: bool = False  # it is right for inputs of one dimension only, as some are that index [:, -1]


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _box_of(values: Mapping[str, Any]) -> tuple[str, tuple[Any, ...]] | None:
    """How the box is given, and its bound, ends or sides; None: by no numbers."""
    inside = "tails" in values and values["tails"] is None  # tail_bound is not read then
    if "tail_bound" in values and not inside:
        bound = values["tail_bound"]
        if isinstance(bound, (list, tuple)):
            return ("pair", tuple(bound)) if len(bound) == 2 and all(map(_is_number, bound)) else None
        return ("number", (bound,)) if _is_number(bound) else None
    for kind, names in (("sides", ("left", "right", "bottom", "top")), ("ends", ("lower", "upper"))):
        if names[0] in values:
            given = tuple(values.get(name) for name in names)
            return (kind, given) if all(map(_is_number, given)) else None
    return ("none", ())


def settings_of(values: Mapping[str, Any], means: Mapping[Way, Means]) -> dict[str, Any] | None:
    """The keywords of `ops.rqs` for a call, or None where it is not known to do the same."""
    x, *logits = (values[role] for role in ("inputs", *LOGITS))
    if not all(isinstance(t, Tensor) for t in (x, *logits)) or logits[0].dim() == 0:
        return None
    bins, leading = logits[0].shape[-1], x.shape
    if any(t.dim() == 0 or t.shape[:-1] != leading for t in logits) or logits[1].shape[-1] != bins:
        return None
    if "bins" in values and values["bins"] != bins:
        return None
    box, tails = _box_of(values), values.get("tails")
    if box is None or not (tails is None or isinstance(tails, str)):
        return None
    kind, given = box
    way = Way(tails, logits[2].shape[-1] - bins, kind)
    known = means.get(way)
    if known is None or (known.flat and x.dim() != 1):
        return None
    found = {name: values.get(name, fixed) for name, fixed in zip(MINIMA, known.minima, strict=True)}
    if not all(map(_is_number, found.values())):
        return None
    found |= {"tails": TAILS[way.more], "inverse": values.get("inverse", False)}
    if known.edge:
        found["edge_slope"] = EDGES[known.edge](found["min_derivative"])
    if kind == "number":
        return found | {"tail_bound": given[0]}
    if kind == "sides":
        return found | {"box": given}
    return found | {"box": 2 * (known.box if kind == "none" else given)}


def fused(theirs: Callable[..., Any], signature: Signature, means: Mapping[Way, Means]) -> Callable[..., Any]:
    """The function for its callers: fused, and itself for calls that the kernels do not take or it would refuse."""

    @functools.wraps(theirs)
    def spline(*args: Any, **kwargs: Any) -> Any:
        values = signature.read(args, kwargs)
        settings = None if values is None else settings_of(values, means)
        if values is not None and settings is not None:
            try:
                return spline_of_parts(values["inputs"], tuple(values[role] for role in LOGITS), **settings)  # type: ignore[arg-type]
            except (TypeError, ValueError):  # an argument that is refused
                pass
        return theirs(*args, **kwargs)

    return spline

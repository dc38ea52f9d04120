"""Which map of one feature a lazy transform of zuko builds, as the kernels take it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from zuko.flows.spline import CircularRQSTransform
from zuko.transforms import MonotonicAffineTransform, MonotonicRQSTransform

from flowkernels.ops import RQS, Affine

_SLOPE = 1e-3  # zuko's default, of splines and of affine maps


def univariate_of(layer: Any) -> RQS | Affine | str:
    """The map of a layer's ``univariate`` and ``shapes``, or why no kernel has it."""
    function, settings = layer.univariate, {}
    if isinstance(function, functools.partial):
        if function.args:
            return "its univariate binds parameters by position"
        function, settings = function.func, function.keywords
    try:
        known = _read if torch.compiler.is_compiling() else _known
        return known(function, tuple(settings.items()), tuple(tuple(s) for s in layer.shapes))
    except (TypeError, ValueError) as error:  # a setting that no kernel has, or that is no number
        return f"its univariate is not one that flowkernels knows ({error})"


def _read(function: Any, items: tuple[tuple[str, Any], ...], shapes: tuple[Sequence[int], ...]) -> RQS | Affine | str:
    settings = dict(items)
    slope = settings.pop("slope", _SLOPE)
    if function is MonotonicAffineTransform and not settings and shapes == ((), ()):
        return Affine("soft_clip", clamp=-math.log(slope), shift_first=True)
    circular = function is CircularRQSTransform
    if function is not MonotonicRQSTransform and not circular:
        return f"no kernel for its univariate, {getattr(function, '__name__', type(function).__name__)}"
    bound = math.pi if circular else settings.pop("bound", 5.0)
    if settings:
        return f"its univariate is given {', '.join(settings)}"
    K = shapes[0][0] if len(shapes) == 3 and len(shapes[0]) == 1 else 0
    if shapes != ((K,), (K,), (K - 1,)):
        return f"the parameters of its spline have shapes {shapes}"
    return RQS(K, tail_bound=bound, parametrization="soft_clip", slope=slope, circle_shift=circular)


_known = functools.lru_cache(maxsize=256)(_read)

"""Which map of one feature a lazy transform of zuko builds, as the kernels take it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from zuko.flows.spline import CircularRQSTransform
from zuko.transforms import MonotonicAffineTransform, MonotonicRQSTransform

from flowkernels.ops import affine, rqs
from flowkernels.ops.affine.spec import AffineSpec
from flowkernels.ops.affine.spec import make_spec as affine_spec
from flowkernels.ops.rqs.spec import RqsSpec
from flowkernels.ops.rqs.spec import make_spec as rqs_spec
from flowkernels.ops.rqs.turn import half_turn

_SLOPE = 1e-3  # zuko's default, of splines and of affine maps


class Univariate(NamedTuple):
    """``univariate(*phi)`` of zuko as one call; ``circular``: x goes half a turn round first."""

    spec: RqsSpec | AffineSpec
    settings: dict[str, Any]
    circular: bool = False

    def __call__(self, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """``x [..., D]``, ``params [..., D, P]`` → y and ladj ``[...]``."""
        if isinstance(self.spec, AffineSpec):
            return affine(x, params, inverse=inverse, **self.settings)
        turned = half_turn(x, self.spec) if self.circular and not inverse else x
        y, ladj = rqs(turned, params, inverse=inverse, **self.settings)
        return (half_turn(y, self.spec) if self.circular and inverse else y), ladj


def univariate_of(layer: Any) -> Univariate | str:
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


def _read(function: Any, items: tuple[tuple[str, Any], ...], shapes: tuple[Sequence[int], ...]) -> Univariate | str:
    settings = dict(items)
    slope = settings.pop("slope", _SLOPE)
    if function is MonotonicAffineTransform and not settings and shapes == ((), ()):
        chosen = {"scale": "soft_clip", "clamp": -math.log(slope), "shift_first": True}
        return Univariate(affine_spec("soft_clip", 0.0, False, chosen["clamp"], 1, True), chosen)
    circular = function is CircularRQSTransform
    if function is not MonotonicRQSTransform and not circular:
        return f"no kernel for its univariate, {getattr(function, '__name__', type(function).__name__)}"
    bound = math.pi if circular else settings.pop("bound", 5.0)
    if settings:
        return f"its univariate is given {', '.join(settings)}"
    K = shapes[0][0] if len(shapes) == 3 and len(shapes[0]) == 1 else 0
    if shapes != ((K,), (K,), (K - 1,)):
        return f"the parameters of its spline have shapes {shapes}"
    chosen = {"bins": K, "tail_bound": bound, "parametrization": "soft_clip", "slope": slope}
    spec = rqs_spec(K, "linear", bound, None, 0.0, 0.0, 0.0, 1.0, "soft_clip", slope, False)
    return Univariate(spec, chosen, circular)


_known = functools.lru_cache(maxsize=256)(_read)

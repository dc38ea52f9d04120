"""What a lazy transform of zuko is, as map, net and split; its masked network as the ops take it.

This needs zuko, and the table of its classes must not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from zuko.flows.polynomial import ShiftedSOSPTransform
from zuko.flows.spline import CircularRQSTransform
from zuko.nn import MaskedLinear, MaskedMLP
from zuko.transforms import (
    BernsteinTransform,
    BoundedBernsteinTransform,
    GaussianizationTransform,
    MonotonicAffineTransform,
    MonotonicRQSTransform,
    SOSPolynomialTransform,
)

from flowkernels.compat.engine.reads import CachedRead
from flowkernels.compat.layer import Layer
from flowkernels.compat.reading.dense import read_sequence
from flowkernels.compat.reading.masks import read_plan, with_context
from flowkernels.nets.reading import Kept, Walk, may_compute
from flowkernels.ops import RQS, Affine, Mixture, Polynomial
from flowkernels.ops.mixture.spec import WIDEST
from flowkernels.ops.net import MadePlan, Net
from flowkernels.ops.net.net import fitting, made_net
from flowkernels.ops.split import Split, split_of
from flowkernels.ops.univariate import Map

from . import monotone

_SLOPE = 1e-3  # zuko's default, of splines and of affine maps

# ---- maps ----


def univariate_of(layer: Any) -> Any:
    """The map of a layer's ``univariate`` and ``shapes``, a `Map` or a `MonotoneMap`, or why no kernel has it."""
    function, settings = layer.univariate, {}
    if monotone.is_network(function):
        return monotone.read(function, layer.shapes)
    if isinstance(function, functools.partial):
        if function.args:
            return "its univariate binds parameters by position"
        function, settings = function.func, function.keywords
    try:
        known = _read if torch.compiler.is_compiling() else _known
        return known(function, tuple(settings.items()), tuple(tuple(s) for s in layer.shapes))
    except (TypeError, ValueError) as error:  # a setting that no kernel has, or that is no number
        return f"its univariate is not one that flowkernels knows ({error})"


def _read(function: Any, items: tuple[tuple[str, Any], ...], shapes: tuple[Sequence[int], ...]) -> Map | str:
    settings = dict(items)
    if function in _POLYNOMIALS:
        return _polynomial(function, settings, shapes)
    if function is GaussianizationTransform:
        return _gaussianization(settings, shapes)
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


_POLYNOMIALS = (ShiftedSOSPTransform, SOSPolynomialTransform, BernsteinTransform, BoundedBernsteinTransform)
_EPS = 1e-6  # zuko's default: where tails of Bernstein polynomials begin, and how far bisection goes


def _polynomial(function: Any, settings: dict[str, Any], shapes: tuple[Sequence[int], ...]) -> Map | str:
    of_squares, shifted = function in _POLYNOMIALS[:2], function is ShiftedSOSPTransform
    taken = {"slope"} if shifted else {"bound", "eps", *(["slope"] if of_squares else [])}
    if settings.keys() - taken:
        return f"its univariate is given {', '.join(settings.keys() - taken)}"
    if [len(s) for s in shapes] != ([2, 0] if shifted else [2] if of_squares else [1]):
        return f"the parameters of its polynomial have shapes {shapes}"
    edge = settings.pop("eps", _EPS)
    if of_squares:  # bisection stops at the bound; its tolerance is none of ours
        terms, n = shapes[0]
        return Polynomial("sos", n - 1, terms, shift=shifted, bounded=True, **settings)
    tails = "identity" if function is BoundedBernsteinTransform else "linear"
    return Polynomial("bernstein", shapes[0][0] - 1, tails=tails, edge=edge, **settings)


# A mixture as zuko's `GaussianizationTransform` has it, but for its components and how far it is inverted.
GAUSSIANIZATION: dict[str, Any] = {
    "kernel": "normal", "outer": "probit", "min_log_scale": -WIDEST, "max_log_scale": WIDEST,
    "parametrization": "shifts", "shrink": 1e-6,
}  # fmt: skip


def _gaussianization(settings: dict[str, Any], shapes: tuple[Sequence[int], ...]) -> Map | str:
    bound, _ = settings.pop("bound", 10.0), settings.pop("eps", None)  # how far its bisection goes is not ours
    if settings:
        return f"its univariate is given {', '.join(settings)}"
    K = shapes[0][0] if len(shapes) == 2 and len(shapes[0]) == 1 else 0
    if shapes != ((K,), (K,)):
        return f"the parameters of its mixture have shapes {shapes}"
    return Mixture(K, bound=bound, **GAUSSIANIZATION)


_known = functools.lru_cache(maxsize=256)(_read)


# ---- layers ----


class Mask(NamedTuple):
    """The features that a coupling's mask keeps and maps, as zuko has them and as the ops do."""

    kept: Tensor
    mapped: Tensor
    split: Split


def _read_mask(mask: Tensor) -> Mask:
    kept, mapped = mask.nonzero().squeeze(-1), (~mask).nonzero().squeeze(-1)
    return Mask(kept, mapped, split_of(len(mask), tuple(kept.tolist()), tuple(mapped.tolist())))


mask_of = CachedRead[Mask](_read_mask)


def describe(layer: Any, split: Split | None = None) -> Layer | str:
    """A layer with or without a network; of a coupling, with the split of its mask, if that can be read now."""
    found = univariate_of(layer)
    return found if isinstance(found, str) else Layer(found, getattr(layer, "hyper", None), split)


def elementwise_refusal(layer: Any) -> object:
    """Why an elementwise layer gains nothing, if that is a string."""
    found = univariate_of(layer)
    # A product and a sum.
    return found if isinstance(found, str) or found.n_params > 2 else "its affine map alone is as fast in zuko"


def own_params(layer: Any) -> Tensor:
    """The parameters ``[D, P]`` of an elementwise layer without a context."""
    return joined(layer.phi)


def joined(phi: Iterable[Tensor]) -> Tensor:
    """Those of a feature side by side."""
    return torch.cat([p.flatten(1) if p.dim() > 1 else p.unsqueeze(-1) for p in phi], dim=-1)


# ---- masked networks ----


def _read_masks(*masks_and_features: Any) -> MadePlan | str:
    *masks, features = masks_and_features
    return read_plan(masks, slice(features))


plan_of = CachedRead[MadePlan | str](_read_masks)


def read_net(walk: Walk, net: Any, features: int) -> Net | None:
    """A masked network and all that its context adds to, for a reader that keeps it; None where it must be called."""
    found = read_sequence(walk, net, MaskedMLP, MaskedLinear, buffers=("mask",))
    if found is None:
        return None
    plan = plan_of(net, [net._modules[name]._buffers["mask"] for name in [*net._modules][::2]], features)
    return made_net(found[0], plan, found[1]) if isinstance(plan, MadePlan) else None


_kept = Kept[Net](read_net)


def masked_net(net: Any, features: int, x: Tensor, context: Tensor | None) -> Net | None:
    """A masked network as an op takes it, of a call without a context kept; None where the modules must be called."""
    found = _kept(net, features)
    if found is None or x.shape[-1] != features or not may_compute(found.tensors[0], x, context):
        return None
    return of_call(found, features, context)


def of_call(found: Net, features: int, context: Tensor | None) -> Net | None:
    """What was read of a masked network as a call with this context has it; None where it has another context."""
    n_context = 0 if context is None else context.shape[-1]
    if found.tensors[0].shape[1] != features + n_context:
        return None
    return fitting(found if context is None else with_context(found, context, slice(features)))

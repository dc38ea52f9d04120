"""nflows' layers without a network as steps of a run: LU layers, actnorm, scales, splines of each feature."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from flowkernels.compat.engine.patch import layer_of
from flowkernels.nets.reading import Walk
from flowkernels.ops.flow import LU, Elementwise, Scale
from flowkernels.transforms import own_steps
from flowkernels.transforms.own_steps import AS_IT_IS, Said
from flowkernels.transforms.parts import is_taken

from . import describe
from .elementwise import ElementwiseSpline
from .linear import LU as LULayer
from .linear import Norm, factors

# Methods that an instance may have of its own.
_METHODS = (
    "inverse", "forward_no_cache", "inverse_no_cache", "_create_lower_upper", "logabsdet", "_batch_logabsdet",
    "_spline",
)  # fmt: skip


def enter(walk: Walk, layer: Any, *, attributes: tuple[str, ...] = (), **looked_at: Any) -> bool:
    """Looks at a layer; False where it, or one of its methods, wants to be called."""
    return not layer.__dict__.keys() & set(_METHODS) and walk.enter(
        layer, attributes=(*_METHODS, *attributes), **looked_at
    )


def _factors(layer: Any, inverse: bool) -> LU:
    return LU(*factors(layer), None, layer.bias, inverse)


def lu(walk: Walk, layer: Any, inverse: bool) -> Said:
    names = ("lower_entries", "upper_entries", "unconstrained_upper_diag", "bias")
    settings = ("features", "eps", "using_cache", "training")
    if layer_of(layer) is not LULayer or not enter(walk, layer, parameters=names, attributes=settings):
        return None
    if layer.features > own_steps.MOST_FEATURES or (layer.using_cache and not layer.training):
        return AS_IT_IS
    return own_steps.made(functools.partial(_factors, layer, inverse), layer.features)


def _norm(walk: Walk, layer: Any, inverse: bool) -> Said:
    names = ("log_scale", "shift")
    if layer_of(layer) is not Norm or not enter(
        walk, layer, parameters=names, attributes=("training",), buffers=("initialized",)
    ):
        return None
    if layer.training and not inverse and not layer.initialized:
        return AS_IT_IS  # the first batch sets it
    return own_steps.part(Scale(layer.log_scale, layer.shift, inverse), len(layer.shift))


def _affine(walk: Walk, layer: Any, inverse: bool) -> Said:
    if not enter(walk, layer, buffers=("_shift", "_scale")):
        return None
    return own_steps.scale(layer._scale, layer._shift, inverse)


def _of_features(layer: Any, univariate: Any, outputs: tuple[int, ...]) -> Elementwise:
    parts = layer.unnormalized_widths, layer.unnormalized_heights, layer.unnormalized_derivatives
    return Elementwise(univariate, torch.cat(parts, dim=-1), outputs)


def spline(walk: Walk, layer: Any, outputs: tuple[int, ...], features: int, inverse: bool) -> Said:
    """The spline of each of some features, by parameters of their own."""
    names = ("unnormalized_widths", "unnormalized_heights", "unnormalized_derivatives")
    settings = ("tails", "tail_bound", "min_bin_width", "min_bin_height", "min_derivative")
    if layer_of(layer) is not ElementwiseSpline or not enter(walk, layer, parameters=names, attributes=settings):
        return None
    if describe.own_tails(layer) is not None:
        return AS_IT_IS
    univariate: Any = describe.spline(layer)
    univariate = univariate.inverted() if inverse else univariate
    if not is_taken(univariate) or layer.unnormalized_widths.shape[:-1] != (len(outputs),):
        return None
    return own_steps.made(functools.partial(_of_features, layer, univariate, outputs), features)


def readers(*roots: str) -> dict[str, Callable[[Walk, Any, bool], Said]]:
    """Class → what reads its layers."""
    names: dict[str, Callable[[Walk, Any, bool], Said]] = {
        "lu.LULinear": lu, "normalization.ActNorm": _norm, "standard.PointwiseAffineTransform": _affine,
        "standard.AffineTransform": _affine,
    }  # fmt: skip
    return {f"{root}.transforms.{name}": read for root in roots for name, read in names.items()}


def is_fixed(module: nn.Module) -> bool:
    """Whether its log-determinant is the same number in every row, of tensors that do not train."""
    return _affine is READERS.get(f"{type(module).__module__}.{type(module).__qualname__}")


READERS = readers("nflows", "glasflow.nflows")

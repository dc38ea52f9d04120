"""Layers without a network as steps of a run: LU layers, actnorm, scales. Read as `runs` reads others.

Those of other libraries are too: what they keep is seldom what a step has, and is made anew in each call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from flowkernels.nets.reading import Walk
from flowkernels.ops._routing import _PLAIN
from flowkernels.ops.flow import LU, Elementwise, Scale
from flowkernels.ops.flow.steps import NormalSpec, Own, OwnSpec, spec_and_tensors
from flowkernels.ops.univariate import Map

from .actnorm import ActNorm
from .diagonal import DiagonalScale
from .linear import LULinear
from .standardize import Standardize

# An LU layer of more features fills a core by itself, and a tile of its rows the cache.
MOST_FEATURES = 128
AS_IT_IS: Literal["called"] = "called"  # said of a transform that is called whatever becomes of what is in it


class OwnPart(NamedTuple):
    """A step as it was read: what it is, and its tensors, or what makes the step in each call."""

    spec: OwnSpec
    fixed: tuple[Tensor, ...]
    make: Callable[[], Own] | None
    weights: int
    features: int
    dtype: torch.dtype | None
    runs_alone: bool = False  # whether it is worth an op of its own, where no layer is beside it

    def tensors(self) -> tuple[Tensor, ...]:
        """Those of a call."""
        return self.fixed if self.make is None else spec_and_tensors(self.make(), self.features)[1]


def normal(features: int) -> OwnPart:
    """The base at the end of a flow."""
    return OwnPart(NormalSpec(), (), None, 0, features, None)


Said = OwnPart | Literal["called"] | None


def part(step: Own, features: int) -> OwnPart | None:
    """A step whose tensors stay what they are; None where it has others than the kernels read."""
    spec, tensors = spec_and_tensors(step, features)
    if any(type(t) not in _PLAIN or not t.is_cpu for t in tensors):
        return None
    return OwnPart(spec, tensors, None, sum(t.numel() for t in tensors), features, tensors[0].dtype)


def made(make: Callable[[], Own], features: int) -> OwnPart | None:
    """A step that is made in each call, of tensors that are its library's."""
    with torch.no_grad():
        found = part(make(), features)
    return None if found is None else found._replace(fixed=(), make=make)


def elementwise(
    univariate: Map, params: Callable[[], Tensor], features: int, outputs: tuple[int, ...]
) -> OwnPart | None:
    """A map of each of some features by parameters ``[n, P]`` of its own, which are put together in each call."""
    found = made(lambda: Elementwise(univariate, params(), outputs), features)
    return None if found is None else found._replace(runs_alone=True)


def scale(scale: Tensor, shift: Tensor, inverse: bool) -> Said:
    """A scale and a shift of each feature, by tensors that stay what they are."""
    if scale.dim() != 1 or shift.shape != scale.shape:
        return AS_IT_IS
    return part(Scale(scale, shift, inverse, is_log=False), len(scale))


def _lu(walk: Walk, layer: LULinear, inverse: bool, has_context: bool) -> Said:
    if not walk.enter(
        layer, parameters=("lower", "upper", "log_s", "bias"), attributes=("channel_dim", "features"),
        buffers=("permutation", "sign_s"),
    ):  # fmt: skip
        return None
    if layer.channel_dim != -1 or layer.features > MOST_FEATURES:
        return AS_IT_IS
    if not layer.permutation.is_cpu:
        return None
    order = tuple(layer.permutation.tolist())
    if sorted(order) != list(range(layer.features)):
        return None
    factors = layer.lower, layer.upper, layer.log_s, layer.sign_s
    return part(LU(*factors, order, layer.bias, inverse), layer.features)


def _actnorm(walk: Walk, layer: ActNorm, inverse: bool, has_context: bool) -> Said:
    names = ("channel_dim", "features", "training")
    if not walk.enter(layer, parameters=("log_scale", "shift"), attributes=names, buffers=("initialised",)):
        return None
    if layer.channel_dim != -1:
        return AS_IT_IS
    if not layer.initialised.is_cpu or (layer.training and not layer.initialised.item()):
        return None  # the first batch sets it
    return part(Scale(layer.log_scale, layer.shift, inverse), layer.features)


def _diagonal(walk: Walk, layer: DiagonalScale, inverse: bool, has_context: bool) -> Said:
    if not walk.enter(layer, parameters=("log_scale",)):
        return None
    if layer.log_scale.dim() != 1:
        return AS_IT_IS
    return part(Scale(layer.log_scale, None, inverse), layer.log_scale.shape[0])


def _standardize(walk: Walk, layer: Standardize, inverse: bool, has_context: bool) -> Said:
    if not walk.enter(layer, buffers=("mean", "std")):
        return None
    return scale(layer.std, layer.mean, not inverse)


READERS: dict[type, Callable[..., Said]] = {
    LULinear: _lu, ActNorm: _actnorm, DiagonalScale: _diagonal, Standardize: _standardize,
}  # fmt: skip

"""Layers without a network as steps of a run: LU layers, actnorm, scales. Read as `runs` reads others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor

from flowkernels.nets.reading import Walk
from flowkernels.ops._routing import _PLAIN
from flowkernels.ops.flow import LU, Scale
from flowkernels.ops.flow.steps import Own, OwnSpec, spec_and_tensors

from .actnorm import ActNorm
from .diagonal import DiagonalScale
from .linear import LULinear
from .standardize import Standardize

# An LU layer of more features fills a core by itself, and a tile of its rows the cache.
_MOST_FEATURES = 128
AS_IT_IS: Literal["called"] = "called"  # said of a transform that is called whatever becomes of what is in it


class OwnPart(NamedTuple):
    """A step as it was read: what it is, and its tensors."""

    spec: OwnSpec
    tensors: tuple[Tensor, ...]
    weights: int

    def features(self) -> int:
        return self.tensors[0].shape[-1]


Said = OwnPart | Literal["called"] | None


def _part(step: Own, features: int) -> Said:
    spec, tensors = spec_and_tensors(step, features)
    if any(type(t) not in _PLAIN or not t.is_cpu for t in tensors):
        return None
    return OwnPart(spec, tensors, sum(t.numel() for t in tensors))


def _lu(walk: Walk, layer: LULinear, inverse: bool, has_context: bool) -> Said:
    if not walk.enter(
        layer, parameters=("lower", "upper", "log_s", "bias"), attributes=("channel_dim", "features"),
        buffers=("permutation", "sign_s"),
    ):  # fmt: skip
        return None
    if layer.channel_dim != -1 or layer.features > _MOST_FEATURES:
        return AS_IT_IS
    if not layer.permutation.is_cpu:
        return None
    order = tuple(layer.permutation.tolist())
    if sorted(order) != list(range(layer.features)):
        return None
    factors = layer.lower, layer.upper, layer.log_s, layer.sign_s
    return _part(LU(*factors, order, layer.bias, inverse), layer.features)


def _actnorm(walk: Walk, layer: ActNorm, inverse: bool, has_context: bool) -> Said:
    names = ("channel_dim", "features", "training")
    if not walk.enter(layer, parameters=("log_scale", "shift"), attributes=names, buffers=("initialised",)):
        return None
    if layer.channel_dim != -1:
        return AS_IT_IS
    if not layer.initialised.is_cpu or (layer.training and not layer.initialised.item()):
        return None  # the first batch sets it
    return _part(Scale(layer.log_scale, layer.shift, inverse), layer.features)


def _diagonal(walk: Walk, layer: DiagonalScale, inverse: bool, has_context: bool) -> Said:
    if not walk.enter(layer, parameters=("log_scale",)):
        return None
    if layer.log_scale.dim() != 1:
        return AS_IT_IS
    return _part(Scale(layer.log_scale, None, inverse), layer.log_scale.shape[0])


def _standardize(walk: Walk, layer: Standardize, inverse: bool, has_context: bool) -> Said:
    if not walk.enter(layer, buffers=("mean", "std")):
        return None
    if layer.mean.dim() != 1:
        return AS_IT_IS
    return _part(Scale(layer.std, layer.mean, not inverse, is_log=False), layer.mean.shape[0])


READERS: dict[type, Callable[..., Said]] = {
    LULinear: _lu, ActNorm: _actnorm, DiagonalScale: _diagonal, Standardize: _standardize,
}  # fmt: skip

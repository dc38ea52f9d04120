"""Steps of a flow that have no net: linear maps by LU factors, scales, maps of each feature, the base."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkernels.ops import _channels
from flowkernels.ops._channels import ChannelSpec
from flowkernels.ops.lu_linear import reference as lu_reference
from flowkernels.ops.univariate import Map

# ---- with their tensors ----


class LU(NamedTuple):
    """A linear map of all features by its LU factors, as `flowkernels.ops.lu_linear` has it.

    Attributes:
        lower, upper: ``[D, D]``, of which the strict triangles are read.
        log_s, sign_s: ``[D]``, of the diagonal.
        permutation: feature i of P v is feature ``permutation[i]`` of v; None: the identity.
        bias: ``[D]`` or None.
        inverse: the map of the other direction.
    """

    lower: Tensor
    upper: Tensor
    log_s: Tensor
    sign_s: Tensor
    permutation: tuple[int, ...] | None = None
    bias: Tensor | None = None
    inverse: bool = False


class Scale(NamedTuple):
    """A scale, and a shift, of every feature: ``x * scale + shift``, or its inverse ``(x - shift) / scale``.

    Attributes:
        scale: ``[D]``, or its logarithm.
        shift: ``[D]`` or None.
        inverse: the map of the other direction.
        is_log: whether it is the logarithm that is given, as `flowkernels.ops.actnorm` has it.
    """

    scale: Tensor
    shift: Tensor | None = None
    inverse: bool = False
    is_log: bool = True


class Elementwise(NamedTuple):
    """A map of some features by parameters of their own, the same for every row.

    Attributes:
        univariate: the map, forward or inverse.
        params: ``[n, P]``, as a net would return them.
        outputs: which n features are mapped; None: all.
    """

    univariate: Map
    params: Tensor
    outputs: tuple[int, ...] | None = None


class Normal(NamedTuple):
    """The base of a flow, its last step: x stays, and its ladj is the log-density of the standard normal there."""


# ---- and without ----


class LUSpec(NamedTuple):
    """An `LU` but its tensors; without a permutation there are no numbers of one."""

    inverse: bool
    permutation: tuple[int, ...]
    has_bias: bool

    def count(self) -> int:
        """How many tensors there are."""
        return 5 if self.has_bias else 4

    def add_to(self, flow: Any, module: Any) -> None:
        """Adds the step to a compiled module's flow."""
        flow.add_lu(self.inverse, self.permutation, self.has_bias)


class ScaleSpec(NamedTuple):
    """A `Scale` but its tensors."""

    inverse: bool
    is_log: bool
    has_shift: bool

    def count(self) -> int:
        return 2 if self.has_shift else 1

    def add_to(self, flow: Any, module: Any) -> None:
        flow.add_scale(self.inverse, self.is_log, self.has_shift)


class ElementwiseSpec(NamedTuple):
    """An `Elementwise` but its parameters."""

    univariate: Map
    outputs: tuple[int, ...]

    def count(self) -> int:
        return 1

    def add_to(self, flow: Any, module: Any) -> None:
        flow.add_elementwise(self.univariate.handle(module), self.outputs)


class NormalSpec(NamedTuple):
    """A `Normal`."""

    def count(self) -> int:
        return 0

    def add_to(self, flow: Any, module: Any) -> None:
        flow.add_normal()


Own = LU | Scale | Elementwise | Normal
OwnSpec = LUSpec | ScaleSpec | ElementwiseSpec | NormalSpec


def spec_and_tensors(step: Own, features: int) -> tuple[OwnSpec, tuple[Tensor, ...]]:
    """A step as what it is, and its tensors."""
    if isinstance(step, LU):
        permutation, bias = step.permutation, step.bias
        order = () if permutation is None else tuple(permutation)
        found = (step.lower, step.upper, step.log_s, step.sign_s)
        return LUSpec(step.inverse, order, bias is not None), found if bias is None else (*found, bias)
    if isinstance(step, Scale):
        shift = step.shift
        spec = ScaleSpec(step.inverse, step.is_log, shift is not None)
        return spec, (step.scale,) if shift is None else (step.scale, shift)
    if isinstance(step, Normal):
        return NormalSpec(), ()
    outputs = range(features) if step.outputs is None else step.outputs
    return ElementwiseSpec(step.univariate, tuple(outputs)), (step.params,)


# ---- their definition ----


def fwd(spec: OwnSpec, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., D] → y and ladj, in plain PyTorch."""
    if isinstance(spec, LUSpec):
        return _lu(spec, x, *tensors)
    if isinstance(spec, ScaleSpec):
        return _scale(spec, x, *tensors)
    if isinstance(spec, NormalSpec):
        wide = x.to(_channels.wide(x.dtype))
        return x, -0.5 * wide.square().sum(-1) - 0.5 * x.shape[-1] * math.log(2 * math.pi)
    (params,) = tensors
    outputs = list(spec.outputs)
    mapped, ladj = spec.univariate.reference(x[..., outputs], params.expand(*x.shape[:-1], *params.shape))
    columns = list(x.unbind(-1))
    for i, column in zip(outputs, mapped.unbind(-1), strict=True):
        columns[i] = column
    return torch.stack(columns, -1), ladj


def _lu(
    spec: LUSpec, x: Tensor, lower: Tensor, upper: Tensor, log_s: Tensor, sign_s: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    order = list(spec.permutation)
    back = sorted(range(len(order)), key=order.__getitem__)
    none = log_s.new_empty(0)
    if spec.inverse:
        x = x if bias is None else x - bias
        x = x[..., back] if order else x
    y, ladj = lu_reference.fwd(
        ChannelSpec(-1, spec.inverse), x, lower, upper, log_s, sign_s, none.to(torch.int64), none
    )
    if not spec.inverse:
        y = y[..., order] if order else y
        y = y if bias is None else y + bias
    return y, ladj


def _scale(spec: ScaleSpec, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
    wide = _channels.wide(x.dtype)
    v, scale = x.to(wide), scale.to(wide)
    shift = scale.new_zeros(()) if shift is None else shift.to(wide)
    ladj = (scale if spec.is_log else scale.abs().log()).sum()
    if not spec.inverse:
        y = v * (scale.exp() if spec.is_log else scale) + shift
    elif spec.is_log:
        y, ladj = (v - shift) * (-scale).exp(), -ladj
    else:
        y, ladj = (v - shift) / scale, -ladj
    return y.to(x.dtype), ladj.expand(x.shape[:-1]).clone()

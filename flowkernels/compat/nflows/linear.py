"""nflows' layers of one matrix or one scale per channel on the fused kernels: LULinear, its 1 × 1 convolution, ActNorm.

A layer that keeps its matrix, as `using_cache` asks in evaluation, is nflows' own then: one product is all there is.
What is small stays nflows' too, see `thresholds`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkernels.compat.engine import thresholds
from flowkernels.compat.engine.patch import FastMethods, or_theirs
from flowkernels.compat.reading.operands import mixed
from flowkernels.ops import actnorm, lu_linear
from flowkernels.ops._kept import kept
from flowkernels.ops._routing import in_transform


def _positions(features: int, lower: bool, device: torch.device) -> Tensor:
    """Where a triangle's entries, row by row, lie in the matrix."""
    i, j = (torch.tril_indices if lower else torch.triu_indices)(features, features, -1 if lower else 1, device=device)
    return i * features + j


_kept_positions = kept(maxsize=64)(_positions)


def _dense(entries: Tensor, features: int, lower: bool) -> Tensor:
    """A triangle's entries in a matrix of zeros."""
    # What compilers and fake modes make must not stay.
    positions = (_positions if in_transform((entries,)) else _kept_positions)(features, lower, entries.device)
    return entries.new_zeros(features * features).index_copy(0, positions, entries).view(features, features)


def factors(layer: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """lower, upper, log s and the sign of s, as `ops.lu_linear` has them."""
    D, log_s = layer.features, layer.upper_diag.log()
    lower, upper = _dense(layer.lower_entries, D, True), _dense(layer.upper_entries, D, False)
    return lower, upper, log_s, torch.ones_like(log_s)


def _linear(layer: Any, x: Tensor, inverse: bool, channel_dim: int) -> tuple[Tensor, Tensor]:
    return lu_linear(x, *factors(layer), bias=layer.bias, channel_dim=channel_dim, inverse=inverse)


def _lu(layer: Any, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """None where x is small, or nflows broadcasts it, refuses it, or gives one ladj per entry of its first dim."""
    if x.dim() != 2 or x.shape[1] != layer.features or not x.is_floating_point():
        return None
    if thresholds.may_train() and thresholds.is_few(x.numel(), thresholds.LU):
        return None
    return _linear(layer, x, inverse, -1)


class LU(FastMethods):
    """The methods of an accelerated LULinear."""

    @or_theirs
    def forward_no_cache(self, inputs: Tensor) -> Any:
        return _lu(self, inputs, False)

    @or_theirs
    def inverse_no_cache(self, inputs: Tensor) -> Any:
        return _lu(self, inputs, True)


def _is_theirs(layer: Any, inputs: Tensor) -> bool:
    """No images of floats, or a product with the matrix that is kept."""
    return inputs.dim() != 4 or not inputs.is_floating_point() or (layer.using_cache and not layer.training)


class Conv1x1(FastMethods):
    """The methods of an accelerated OneByOneConvolution: images stay as they lie."""

    @or_theirs
    def forward(self: Any, inputs: Tensor, context: Tensor | None = None) -> Any:
        return None if _is_theirs(self, inputs) else _linear(self, self.permutation(inputs)[0], False, 1)

    @or_theirs
    def inverse(self: Any, inputs: Tensor, context: Tensor | None = None) -> Any:
        if _is_theirs(self, inputs):
            return None
        outputs, ladj = _linear(self, inputs, True, 1)
        return self.permutation.inverse(outputs)[0], ladj


def _norm(layer: Any, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """None where x is small, or of a shape or dtype that nflows broadcasts, promotes or refuses."""
    if x.dim() not in (2, 4) or not thresholds.is_enough(x.numel(), thresholds.NORM):
        return None
    if x.shape[1] != layer.shift.shape[0] or mixed(x, layer.shift):
        return None
    return actnorm(x, layer.log_scale, layer.shift, channel_dim=1, inverse=inverse)


class Norm(FastMethods):
    """The methods of an accelerated ActNorm."""

    @or_theirs
    def forward(self: Any, inputs: Tensor, context: Tensor | None = None) -> Any:
        return None if self.training and not self.initialized else _norm(self, inputs, False)

    @or_theirs
    def inverse(self: Any, inputs: Tensor, context: Tensor | None = None) -> Any:
        return _norm(self, inputs, True)

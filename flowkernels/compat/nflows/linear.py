"""nflows' layers of one matrix or one scale per channel on the fused kernels: LULinear, its 1 × 1 convolution, ActNorm.

A layer that keeps its matrix, as `using_cache` asks in evaluation, is nflows' own then: one product is all there is.
What is small stays nflows' too, see `thresholds`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkernels.compat.engine import thresholds
from flowkernels.compat.engine.patch import FastMethods, original_class
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


def _linear(layer: Any, x: Tensor, inverse: bool, channel_dim: int) -> tuple[Tensor, Tensor]:
    D = layer.features
    log_s = layer.upper_diag.log()
    lower, upper = _dense(layer.lower_entries, D, True), _dense(layer.upper_entries, D, False)
    ones = torch.ones_like(log_s)
    return lu_linear(x, lower, upper, log_s, ones, bias=layer.bias, channel_dim=channel_dim, inverse=inverse)


def _is_theirs(layer: Any, inputs: Tensor) -> bool:
    """Small, or of a shape that nflows gives one log determinant per entry of the first dim, broadcasts or refuses."""
    if inputs.dim() != 2 or inputs.shape[1] != layer.features or not inputs.is_floating_point():
        return True
    return torch.is_grad_enabled() and thresholds.is_few(inputs.numel(), thresholds.LU)


class LU(FastMethods):
    """The methods of an accelerated LULinear."""

    def forward_no_cache(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        theirs = original_class(self).forward_no_cache
        return theirs(self, inputs) if _is_theirs(self, inputs) else _linear(self, inputs, False, -1)

    def inverse_no_cache(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        theirs = original_class(self).inverse_no_cache
        return theirs(self, inputs) if _is_theirs(self, inputs) else _linear(self, inputs, True, -1)


def _leaves_conv(layer: Any, inputs: Tensor) -> bool:
    """No images of floats, or a product with the matrix that is kept."""
    return inputs.dim() != 4 or not inputs.is_floating_point() or (layer.using_cache and not layer.training)


class Conv1x1(FastMethods):
    """The methods of an accelerated OneByOneConvolution: images stay as they lie."""

    def forward(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if _leaves_conv(self, inputs):
            return original_class(self).forward(self, inputs, context)
        return _linear(self, self.permutation(inputs)[0], False, 1)

    def inverse(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if _leaves_conv(self, inputs):
            return original_class(self).inverse(self, inputs, context)
        outputs, ladj = _linear(self, inputs, True, 1)
        return self.permutation.inverse(outputs)[0], ladj


def _leaves_norm(layer: Any, inputs: Tensor) -> bool:
    """Small, or of a shape or dtype that nflows broadcasts, promotes or refuses."""
    if inputs.dim() not in (2, 4) or not thresholds.is_enough(inputs.numel(), thresholds.NORM):
        return True
    return inputs.shape[1] != layer.shift.shape[0] or mixed(inputs, layer.shift)


class Norm(FastMethods):
    """The methods of an accelerated ActNorm."""

    def forward(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if _leaves_norm(self, inputs) or (self.training and not self.initialized):
            return original_class(self).forward(self, inputs, context)
        return actnorm(inputs, self.log_scale, self.shift, channel_dim=1)

    def inverse(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if _leaves_norm(self, inputs):
            return original_class(self).inverse(self, inputs, context)
        return actnorm(inputs, self.log_scale, self.shift, channel_dim=1, inverse=True)

"""nflows' elementwise rational-quadratic spline on the fused kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkernels.compat.engine.patch import FastMethods, or_theirs
from flowkernels.compat.reading.operands import mixed

from . import describe
from .spline import spline


def _cdf(layer: Any, inputs: Tensor, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """inputs [B, *shape], the same spline for every row of the batch."""
    widths, heights, slopes = layer.unnormalized_widths, layer.unnormalized_heights, layer.unnormalized_derivatives
    if mixed(inputs, widths):  # some copies cast, others raise
        return None
    params = torch.cat((widths, heights, slopes), dim=-1)
    if inputs.shape[1:] != params.shape[:-1]:
        expected, given = ["B", *params.shape[:-1]], list(inputs.shape)
        raise ValueError(f"compat.nflows: inputs must be [B, *shape] = {expected}, got {given}")
    P = params.shape[-1]
    D = params.numel() // P
    x = inputs.reshape(inputs.shape[0], D)
    params = params.view(D, P).expand(inputs.shape[0], D, P)
    y, ladj = spline(describe.spline(layer), describe.own_tails(layer), x, params, inverse)
    return y.view(inputs.shape), ladj


class ElementwiseSpline(FastMethods):
    """The methods of an accelerated PiecewiseRationalQuadraticCDF."""

    @or_theirs
    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Any:
        return _cdf(self, inputs, inverse=False)

    @or_theirs
    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> Any:
        return _cdf(self, inputs, inverse=True)

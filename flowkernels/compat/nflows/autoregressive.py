"""nflows' masked autoregressive layers, affine and rational-quadratic, on the fused kernels.

Their networks are accelerated as modules of their own. The inverse is one sweep where one op can run the network, and
otherwise D passes of it, as in nflows, around the fused map of a feature.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkernels.compat.engine.patch import FastMethods, layer_of, original_class, overridden
from flowkernels.compat.layer import Layer, or_reason
from flowkernels.compat.reading.operands import mixed
from flowkernels.nets.reading import is_bare
from flowkernels.transforms.parts import run_alone

from . import circular, describe, part
from .classes import made_class
from .made import Made, as_net, made_refusal
from .spline import spline


def _in_parts(
    layer: Any, what: Layer, x: Tensor, context: Tensor | None, seen: Tensor, inverse: bool
) -> tuple[Tensor, Tensor]:
    """The map of x by what the network returns for `seen`."""
    params = what.net(seen, context)
    if x.dim() != 2 or mixed(x, params):  # nflows says what is wrong with it
        return (layer._elementwise_inverse if inverse else layer._elementwise_forward)(x, params)
    return spline(what.map, what.own, x, params.reshape(*x.shape, layer._output_dim_multiplier()), inverse)


def _fused(what: Layer, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """A sweep, or a layer whose features have tails of their own, as one op; None where its parts are run in turn."""
    net, own = what.net, what.own
    # Of this layer: `accelerate` has seen that the network's forward is nflows'.
    if x.dim() != 2 or layer_of(net) is not Made or not is_bare(net):
        return None
    if own is None:
        found = as_net(net, x, context, inverse=True) if inverse else None
        return None if found is None else what.run(x, found, inverse, or_none=True)
    if not x.is_cpu or (own.is_scaled and own.bound.dtype is not x.dtype):
        return None  # a CPU alone has kernels for it
    found = as_net(net, x, context, preprocessed=True)
    return None if found is None else circular.run(what, x, found, inverse)


def affine_refusal(layer: Any) -> Layer | str:
    """Why an affine layer gains nothing: its map alone is as fast in nflows; or the layer, which is no reason."""
    net = layer.autoregressive_net
    made = made_class(net)
    if made is None:
        return f"its network is a {type(net).__name__}, not nflows' MADE"
    reason = None if layer_of(net) is Made else overridden(net, made, frozenset({"forward"})) or made_refusal(net)
    if reason is not None:
        return f"its network is left alone: {reason}"
    return or_reason(describe.affine_autoregressive, layer)  # it may have an epsilon of the user's own


class SplineAutoregressive(FastMethods):
    """The methods of an accelerated MaskedPiecewiseRationalQuadraticAutoregressiveTransform; other maps' derive."""

    describe = staticmethod(describe.spline_autoregressive)

    def forward(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        alone = run_alone(self, inputs, context, False, part.autoregressive) if inputs.dim() == 2 else None
        if alone is not None:
            return alone
        what = self._flowkernels_layer.describe(self)
        fused = _fused(what, inputs, context, False)
        return _in_parts(self, what, inputs, context, inputs, False) if fused is None else fused

    def inverse(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if inputs.dim() != 2 or inputs.shape[1] == 0:
            return original_class(self).inverse(self, inputs, context)
        what = self._flowkernels_layer.describe(self)
        fused = _fused(what, inputs, context, True)
        if fused is not None:
            return fused
        x, ladj = torch.zeros_like(inputs), inputs.new_zeros(inputs.shape[0])
        for _ in range(inputs.shape[1]):
            x, ladj = _in_parts(self, what, inputs, context, x, True)
        return x, ladj


class AffineAutoregressive(SplineAutoregressive):
    """The methods of an accelerated MaskedAffineAutoregressiveTransform."""

    describe = staticmethod(describe.affine_autoregressive)

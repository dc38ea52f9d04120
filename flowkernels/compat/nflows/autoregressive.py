"""nflows' masked autoregressive layers, affine and rational-quadratic, on the fused kernels.

Their networks are accelerated as modules of their own. The inverse is one sweep where one op can run the network, and
otherwise D passes of it, as in nflows, around the fused map of a feature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowkernels.compat.engine.patch import FastMethods, layer_of, original_class, overridden
from flowkernels.compat.reading.operands import mixed
from flowkernels.nets.reading import is_bare
from flowkernels.ops import RQS, Affine, affine
from flowkernels.ops.autoregressive_inverse import run_inverse
from flowkernels.ops.flow_layer import run_autoregressive_layer
from flowkernels.ops.net import Net
from flowkernels.ops.univariate import Map

from . import circular
from .classes import made_class
from .made import Made, as_net, made_refusal
from .settings import spline_of
from .spline import per_feature, spline

# (layer, x [B, D], params, inverse) → y and ladj [B]
Univariate = Callable[[Any, Tensor, Tensor, bool], tuple[Tensor, Tensor]]


def _network(layer: Any, x: Tensor, context: Tensor | None, **direction: bool) -> Net | None:
    """The network as the ops that fuse it with the map take it; None where it must be called."""
    net = layer.autoregressive_net
    # Of this layer: `accelerate` has seen that the network's forward is nflows'.
    return as_net(net, x, context, **direction) if layer_of(net) is Made and is_bare(net) else None


def _forward(
    layer: Any,
    x: Tensor,
    context: Tensor | None,
    univariate: Univariate,
    spec_of: Callable[[Any], Map | None],
) -> tuple[Tensor, Tensor]:
    spec = spec_of(layer)
    found = _network(layer, x, context) if x.dim() == 2 and spec is not None else None
    fused = None if found is None or spec is None else run_autoregressive_layer(x, found, spec)
    if fused is not None:
        return fused
    params = layer.autoregressive_net(x, context)
    if x.dim() != 2:
        return layer._elementwise_forward(x, params)  # nflows says what is wrong with it
    return univariate(layer, x, params, False)


def _inverse(
    layer: Any,
    z: Tensor,
    context: Tensor | None,
    univariate: Univariate,
    spec_of: Callable[[Any], Map | None],
) -> tuple[Tensor, Tensor]:
    if z.dim() != 2 or z.shape[1] == 0:
        return original_class(layer).inverse(layer, z, context)
    spec = spec_of(layer)
    found = None if spec is None else _network(layer, z, context, inverse=True)
    fused = None if found is None or spec is None else run_inverse(z, found, spec, or_none=True)
    if fused is not None:
        return fused
    x, ladj = torch.zeros_like(z), z.new_zeros(z.shape[0])
    for _ in range(z.shape[1]):
        x, ladj = univariate(layer, z, layer.autoregressive_net(x, context), True)
    return x, ladj


# ---- affine ----


_DEFAULT = "MaskedAffineAutoregressiveTransform.__init__.<locals>.<lambda>"


def _scale(layer: Any) -> tuple[str, float]:
    """The scale of the map and its smallest value."""
    if not hasattr(layer, "_epsilon"):  # normflows
        return "sigmoid", 1e-3
    given = getattr(layer, "scale_activation", None)  # of glasflow, whose default is a function of its own
    if given is not None and getattr(given, "__qualname__", "") != _DEFAULT:
        raise ValueError("its scale_activation is not the default one")
    return "softplus", layer._epsilon


def _theirs(layer: Any, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    return (layer._elementwise_inverse if inverse else layer._elementwise_forward)(x, params)


def _affine(layer: Any, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    if mixed(x, params):
        return _theirs(layer, x, params, inverse)
    scale, least = _scale(layer)
    return affine(x, params.reshape(*x.shape, 2), scale=scale, min_scale=least, inverse=inverse)


def _affine_map(layer: Any) -> Affine:
    scale, least = _scale(layer)
    return Affine.kept(scale=scale, min_scale=least)


def affine_refusal(layer: Any) -> str | None:
    """Why an affine layer gains nothing, or None: its map alone is as fast in nflows."""
    net = layer.autoregressive_net
    made = made_class(net)
    if made is None:
        return f"its network is a {type(net).__name__}, not nflows' MADE"
    reason = None if layer_of(net) is Made else overridden(net, made, frozenset({"forward"})) or made_refusal(net)
    if reason is not None:
        return f"its network is left alone: {reason}"
    try:
        _affine_map(layer)
    except Exception as error:  # an epsilon of the user's own
        return str(error)
    return None


class AffineAutoregressive(FastMethods):
    """The methods of an accelerated MaskedAffineAutoregressiveTransform."""

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _forward(self, inputs, context, _affine, _affine_map)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _inverse(self, inputs, context, _affine, _affine_map)


# ---- rational-quadratic ----


def _logit_scale(layer: Any) -> float:
    """1 for nflows' own MADE, which has no `hidden_features`."""
    width = getattr(layer.autoregressive_net, "hidden_features", None)
    return 1.0 if width is None else 1 / math.sqrt(width)


def _spline(layer: Any, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    if mixed(x, params):
        return _theirs(layer, x, params, inverse)
    params = params.reshape(*x.shape, layer._output_dim_multiplier())
    return spline(layer, layer.num_bins, x, params, _logit_scale(layer), inverse)


def _spline_map(layer: Any) -> RQS | None:
    return None if per_feature(layer) else spline_of(layer, layer.num_bins, _logit_scale(layer))


def _of_own_tails(layer: Any, x: Tensor, context: Tensor | None, run: Callable[..., Any]) -> Any:
    """What `run` makes of a layer whose features have tails or bounds of their own; None where it does nothing."""
    if x.dim() != 2 or not per_feature(layer) or not x.is_cpu:  # where alone it has kernels
        return None
    if isinstance(layer.tail_bound, Tensor) and layer.tail_bound.dtype is not x.dtype:
        return None
    found = _network(layer, x, context, preprocessed=True)
    return None if found is None else run(layer, x, found, _logit_scale(layer))


class SplineAutoregressive(FastMethods):
    """The methods of an accelerated MaskedPiecewiseRationalQuadraticAutoregressiveTransform."""

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        fused = _of_own_tails(self, inputs, context, circular.forward)
        return _forward(self, inputs, context, _spline, _spline_map) if fused is None else fused

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        fused = _of_own_tails(self, inputs, context, circular.inverse)
        return _inverse(self, inputs, context, _spline, _spline_map) if fused is None else fused

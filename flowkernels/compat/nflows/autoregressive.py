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
from flowkernels.ops import Affine
from flowkernels.ops.autoregressive_inverse import run_inverse
from flowkernels.ops.flow_layer import run_autoregressive_layer
from flowkernels.ops.net import Net
from flowkernels.ops.univariate import Map

from . import circular
from .classes import made_class
from .made import Made, as_net, made_refusal
from .spline import spline, spline_of


def _network(layer: Any, x: Tensor, context: Tensor | None, **direction: bool) -> Net | None:
    """The network as the ops that fuse it with the map take it; None where it must be called."""
    net = layer.autoregressive_net
    # Of this layer: `accelerate` has seen that the network's forward is nflows'.
    return as_net(net, x, context, **direction) if layer_of(net) is Made and is_bare(net) else None


def _in_parts(layer: Any, x: Tensor, context: Tensor | None, seen: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """The map of x by what the network returns for `seen`."""
    params = layer.autoregressive_net(seen, context)
    if x.dim() != 2 or mixed(x, params):  # nflows says what is wrong with it
        return (layer._elementwise_inverse if inverse else layer._elementwise_forward)(x, params)
    params = params.reshape(*x.shape, layer._output_dim_multiplier())
    return layer._flowkernels_layer.run(layer, x, params, inverse)


def _fused(layer: Any, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """The layer as one op; None where network and map must be run in turn."""
    if x.dim() != 2:
        return None
    univariate = layer._flowkernels_layer.map_of(layer)
    if univariate is None:
        return _of_own_tails(layer, x, context, circular.inverse if inverse else circular.forward)
    found = _network(layer, x, context, inverse=inverse)
    if found is None:
        return None
    if inverse:
        return run_inverse(x, found, univariate, or_none=True)
    return run_autoregressive_layer(x, found, univariate)


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
        AffineAutoregressive.map_of(layer)
    except Exception as error:  # an epsilon of the user's own
        return str(error)
    return None


# ---- rational-quadratic ----


def _logit_scale(layer: Any) -> float:
    """1 for nflows' own MADE, which has no `hidden_features`."""
    width = getattr(layer.autoregressive_net, "hidden_features", None)
    return 1.0 if width is None else 1 / math.sqrt(width)


def _of_own_tails(layer: Any, x: Tensor, context: Tensor | None, run: Callable[..., Any]) -> Any:
    """What `run` makes of a layer whose features have tails or bounds of their own; None where it does nothing."""
    if not x.is_cpu or (isinstance(layer.tail_bound, Tensor) and layer.tail_bound.dtype is not x.dtype):
        return None  # a CPU alone has kernels for it
    found = _network(layer, x, context, preprocessed=True)
    return None if found is None else run(layer, x, found, _logit_scale(layer))


# ---- the layers ----


class SplineAutoregressive(FastMethods):
    """The methods of an accelerated MaskedPiecewiseRationalQuadraticAutoregressiveTransform; other maps' derive."""

    @staticmethod
    def map_of(layer: Any) -> Map | None:
        """The map, if one serves all features."""
        return spline_of(layer, layer.num_bins, _logit_scale(layer))

    @staticmethod
    def run(layer: Any, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """x ``[B, D]``, params ``[B, D, P]`` → y like x, ladj ``[B]``."""
        return spline(layer, layer.num_bins, x, params, _logit_scale(layer), inverse)

    def forward(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        fused = _fused(self, inputs, context, False)
        return _in_parts(self, inputs, context, inputs, False) if fused is None else fused

    def inverse(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if inputs.dim() != 2 or inputs.shape[1] == 0:
            return original_class(self).inverse(self, inputs, context)
        fused = _fused(self, inputs, context, True)
        if fused is not None:
            return fused
        x, ladj = torch.zeros_like(inputs), inputs.new_zeros(inputs.shape[0])
        for _ in range(inputs.shape[1]):
            x, ladj = _in_parts(self, inputs, context, x, True)
        return x, ladj


class AffineAutoregressive(SplineAutoregressive):
    """The methods of an accelerated MaskedAffineAutoregressiveTransform."""

    @staticmethod
    def map_of(layer: Any) -> Map:
        scale, least = _scale(layer)
        return Affine.kept(scale=scale, min_scale=least)

    @staticmethod
    def run(layer: Any, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        return AffineAutoregressive.map_of(layer)(x, params, inverse)

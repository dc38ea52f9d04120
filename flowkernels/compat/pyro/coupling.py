"""Pyro's couplings as one op with their dense network: of splines, and affine ones where no graph is recorded.

With one, Pyro's own affine couplings took as long: between 0.9 and 1.4 times on batches of 512 and 4096.
"""

from __future__ import annotations

import functools
import importlib
import math
from typing import Any

import torch
from torch import Tensor, nn

from flowkernels.compat.engine import thresholds
from flowkernels.compat.engine.patch import FastMethods, layer_of, original_class, swap
from flowkernels.compat.reading.dense import too_wide
from flowkernels.nets.reading import of_parameters
from flowkernels.ops.flow_layer import run_layer, split_of
from flowkernels.ops.net.activations import name_of
from flowkernels.ops.net.net import dense_net
from flowkernels.ops.univariate import Map

from .layers import ConditionalSpline, _feature_major, affine_of, layers_of, spline_of


def _network(layer: Any) -> tuple[Any, Tensor | None]:
    """The coupling's network and the context that a conditional one has bound to it."""
    net = layer.nn
    if isinstance(net, functools.partial) and not net.args and [*net.keywords] == ["context"]:
        return net.func, net.keywords["context"]
    return net, None


def _network_refusal(net: Any, known: str) -> str | None:
    """Why no op can run a network, or None."""
    if type(net) is not getattr(importlib.import_module("pyro.nn"), known):
        return f"its network is a {type(net).__name__}, not Pyro's {known}, and its map alone is as fast in Pyro"
    if name_of(net.f) is None or not all(type(m) is nn.Linear and of_parameters(m) for m in net.layers):
        return "its network has an activation or a layer that the ops do not know"
    return too_wide([*net.layers])


def _run(
    x: Tensor, net: Any, layers: list[Any], seen: int, context: Tensor | None, univariate: Map, inverse: bool
) -> tuple[Tensor, Tensor] | None:
    """y and ladj of a coupling whose network, of these layers, sees so many features, the first."""
    split = split_of(x.shape[-1], tuple(range(seen)), tuple(range(seen, x.shape[-1])))
    found = dense_net(layers, False, name_of(net.f) or "", seen, x.shape[:-1], context)
    return run_layer(x, found, univariate.inverted() if inverse else univariate, split)


# ---- affine ----


def coupling_refusal(layer: Any) -> str | None:
    """Why a coupling would run as before on every call, or None."""
    net, context = _network(layer)
    if layer.dim != -1:
        return f"its event has {-layer.dim} dims"
    why = _network_refusal(net, "DenseNN" if context is None else "ConditionalDenseNN")
    if why is not None:
        return why
    if len(net.param_dims) != 2 or net.param_dims[0] != net.param_dims[1]:
        return f"its network returns parameters of sizes {net.param_dims}"
    try:
        affine_of(layer)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def conditional_coupling_refusal(layer: Any) -> str | None:
    """The same of a conditional coupling: of what it returns, for any context."""
    return coupling_refusal(original_class(layer).condition(layer, torch.empty(0)))


def _fused(layer: Any, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """y and the log-determinant of the direction; None where Pyro's own way is called for, or is as fast."""
    (net, context), seen = _network(layer), layer.split_dim
    rows = math.prod(x.shape[:-1])
    least = thresholds.COUPLING_ROWS if context is None else thresholds.CONDITIONAL_COUPLING_ROWS
    if x.dim() == 0 or torch.is_grad_enabled() or not thresholds.is_enough(rows, least):
        return None
    layers = layers_of(net, x, context) if coupling_refusal(layer) is None else None
    if layers is None:
        return None
    mapped, given = x.shape[-1] - seen, 0
    if context is not None:  # the network's first columns; the op's last
        if not isinstance(context, Tensor) or context.dim() == 0:
            return None
        given = context.shape[-1]
        try:
            context = context.expand(*x.shape[:-1], given)
        except RuntimeError:  # Pyro says what is wrong with it
            return None
        layers[0] = layers[0][0].roll(-given, dims=1), layers[0][1]
    if layers[0][0].shape[1] != seen + given or layers[-1][0].shape[0] != 2 * mapped or not 0 < seen < x.shape[-1]:
        return None
    layers[-1] = _feature_major(layers[-1][0], mapped), _feature_major(layers[-1][1], mapped)
    return _run(x, net, layers, seen, context, affine_of(layer), inverse)


class AffineCoupling(FastMethods):
    """The methods of an accelerated AffineCoupling; its log-scales are kept summed, as one number a row."""

    def _call(self: Any, x: Tensor) -> Tensor:
        fused = _fused(self, x, False)
        if fused is None:
            return original_class(self)._call(self, x)
        self._cached_log_scale = fused[1].unsqueeze(-1)
        return fused[0]

    def _inverse(self: Any, y: Tensor) -> Tensor:
        fused = _fused(self, y, True)
        if fused is None:
            return original_class(self)._inverse(self, y)
        self._cached_log_scale = -fused[1].unsqueeze(-1)
        return fused[0]


class ConditionalAffineCoupling(FastMethods):
    """The methods of an accelerated ConditionalAffineCoupling: what it returns is accelerated."""

    def condition(self: Any, context: Tensor) -> Any:
        transform = original_class(self).condition(self, context)
        swap(transform, AffineCoupling)
        return transform


# ---- splines ----


def _by_feature(rows: Tensor, features: int, sizes: list[int]) -> Tensor:
    """Pyro's dense networks return a parameter of all features, feature by feature, before the next parameter."""
    parts = rows.split([features * n for n in sizes])
    return torch.cat([p.unflatten(0, (features, n)) for p, n in zip(parts, sizes, strict=True)], dim=1).flatten(0, 1)


def _fused_spline(layer: Any, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """The upper spline of a coupling, beside what it sees, and its ladj; None where its parts are to be called."""
    upper, seen = layer.upper_spline, layer.split_dim
    net, mapped, K = upper.nn, upper.input_dim, upper.count_bins
    if layer_of(upper) is not ConditionalSpline or _network_refusal(net, "DenseNN") is not None:
        return None
    sizes = [K, K, K - 1, *([K] if upper.order == "linear" else [])]
    layers = layers_of(net, x)
    if layers is None or x.dim() == 0 or x.shape[-1] != seen + mapped or layers[0][0].shape[1] != seen or seen == 0:
        return None
    if [*net.param_dims] != [mapped * n for n in sizes]:
        return None
    layers[-1] = _by_feature(layers[-1][0], mapped, sizes), _by_feature(layers[-1][1], mapped, sizes)
    return _run(x, net, layers, seen, None, spline_of(upper), inverse)


class SplineCoupling(FastMethods):
    """The methods of an accelerated SplineCoupling; its upper spline's log-slopes are kept summed, one number a row."""

    def _call(self: Any, x: Tensor) -> Tensor:
        fused = _fused_spline(self, x, False)
        if fused is None:
            return original_class(self)._call(self, x)
        y, slopes = fused[0], fused[1].unsqueeze(-1)
        if not self.identity:
            lower = self.lower_spline(x[..., : self.split_dim])
            y = torch.cat([lower, y[..., self.split_dim :]], dim=-1)
            slopes = torch.cat([slopes, self.lower_spline._cache_log_detJ], dim=-1)
        self._cache_log_detJ = slopes
        return y

    def _inverse(self: Any, y: Tensor) -> Tensor:
        z, of_lower = y, None
        if not self.identity:
            lower = self.lower_spline._inv_call(y[..., : self.split_dim])
            z, of_lower = torch.cat([lower, y[..., self.split_dim :]], dim=-1), self.lower_spline._cache_log_detJ
        fused = _fused_spline(self, z, True)
        if fused is None:
            return original_class(self)._inverse(self, y)
        slopes = -fused[1].unsqueeze(-1)
        self._cache_log_detJ = slopes if of_lower is None else torch.cat([slopes, of_lower], dim=-1)
        return fused[0]

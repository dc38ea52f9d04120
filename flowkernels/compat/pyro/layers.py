"""Pyro's rational splines, of either order, and affine autoregressive layers on the fused kernels."""

from __future__ import annotations

import importlib
import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkernels.compat.engine.patch import FastMethods, original_class, swap
from flowkernels.compat.engine.reads import CachedRead
from flowkernels.compat.reading.masks import read_plan
from flowkernels.compat.reading.operands import mixed
from flowkernels.nets.reading import may_read, of_parameters
from flowkernels.ops import RQS, Affine, rqs
from flowkernels.ops._checks import expands
from flowkernels.ops.autoregressive_inverse import run_inverse
from flowkernels.ops.flow_layer import run_autoregressive_layer
from flowkernels.ops.net import MadePlan, Net
from flowkernels.ops.net.activations import name_of
from flowkernels.ops.net.net import fitting, made_net

_LEAST = 1e-3  # Pyro's minimum sizes and slope, which its layers do not let one set


def _settings(layer: Any) -> dict[str, Any]:
    """Of a module with `count_bins` and `bound`, in the words of `ops.rqs`."""
    bound = float(layer.bound)
    return {"bins": layer.count_bins, "tail_bound": bound, "edge_slope": 1 - _LEAST, "order": layer.order}


def spline_of(layer: Any) -> RQS:
    return RQS.kept(**_settings(layer))


def _elementwise(layer: Any, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """x ``[..., D]``, params ``[..., D, P]`` → y and log-slopes, both like x."""
    params = params.expand(*x.shape, params.shape[-1])
    y, ladj = rqs(x.unsqueeze(-1), params.unsqueeze(-2), inverse=inverse, **_settings(layer))
    return y.squeeze(-1), ladj


def _fits(x: Tensor, params: Tensor) -> bool:
    """Whether x has an element for each spline, of their dtype; otherwise Pyro says what is wrong with it."""
    return expands(params.shape[:-1], x.shape) and not mixed(x, params)


# ---- splines alone and of a context ----


class Spline(FastMethods):
    """The methods of an accelerated Spline."""

    def spline_op(self: Any, x: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        parts = [self.unnormalized_widths, self.unnormalized_heights, self.unnormalized_derivatives]
        if self.order == "linear":
            parts.append(self.unnormalized_lambdas)
        params = torch.cat(parts, dim=-1)
        if not _fits(x, params):
            return original_class(self).spline_op(self, x, inverse=inverse)
        return _elementwise(self, x, params, inverse)


class ConditionalSpline(FastMethods):
    """The methods of an accelerated ConditionalSpline; `Conditioned` is a transform that holds on to it."""

    def condition(self, context: Tensor) -> Any:
        from .transforms import Conditioned

        return Conditioned(self, context)


def conditioned(layer: Any, context: Tensor, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """The spline of a ConditionalSpline at x."""
    params = _params(layer, layer.nn(context))
    if not _fits(x, params):
        return _theirs("ConditionalSpline").condition(layer, context).spline_op(x, inverse=inverse)
    return _elementwise(layer, x, params, inverse)


def _params(layer: Any, parts: tuple[Tensor, ...]) -> Tensor:
    """What a network returns as one tensor ``[..., D, P]``: parts of autoregressive ones are ``[..., K, D]``."""
    if parts[0].shape[-1] == layer.input_dim:
        return torch.cat(parts, dim=-2).mT
    return torch.cat([p.unflatten(-1, (layer.input_dim, p.shape[-1] // layer.input_dim)) for p in parts], dim=-1)


def _theirs(name: str) -> Any:
    return getattr(importlib.import_module("pyro.distributions.transforms"), name)


def refusal(layer: Any) -> str | None:
    """Why a spline has no kernel, or None."""
    if hasattr(layer, "unnormalized_widths") and layer._params.__func__ is not _theirs("Spline")._params:
        return "its parameters are its own"
    try:
        spline_of(layer)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


# ---- autoregressive ----


def _feature_major(rows: Tensor, features: int) -> Tensor:
    """Pyro's networks return all features' first parameter first."""
    return rows.unflatten(0, (-1, features)).transpose(0, 1).flatten(0, 1)


def _read(*masks_and_sizes: Any) -> MadePlan | str:
    """The plan of a network whose outputs are made feature-major."""
    *masks, context, features = masks_and_sizes
    if context and not bool(masks[0][:, :context].all()):
        return "some units do not see the whole context"
    return read_plan([masks[0][:, context:], *masks[1:-1], _feature_major(masks[-1], features)])


_plan_of = CachedRead[MadePlan | str](_read)


def _network_refusal(net: Any) -> str | None:
    """Why a network is none that one op can run, or None."""
    from pyro.nn.auto_reg_nn import AutoRegressiveNN, ConditionalAutoRegressiveNN, MaskedLinear

    if type(net) not in (AutoRegressiveNN, ConditionalAutoRegressiveNN):
        return f"a {type(net).__name__}, not Pyro's AutoRegressiveNN"
    if net.skip_layer is not None:
        return "it has skip connections"
    if name_of(net.f) is None or not all(type(m) is MaskedLinear for m in net.layers):
        return "it has an activation or a layer that the ops do not know"
    return None


def layers_of(net: Any, x: Tensor, context: Tensor | None = None) -> list[Any] | None:
    """Weights and biases of a network that is not refused, where calling it now would do nothing but its arithmetic."""
    if not all(map(of_parameters, net.layers)):
        return None
    modules = [net, *net.layers, *([net.f] if isinstance(net.f, nn.Module) else [])]
    pairs = [(m._parameters["weight"], m._parameters["bias"]) for m in net.layers]
    return pairs if may_read(modules, x, x, context, *(t for pair in pairs for t in pair)) else None


def _as_net(net: Any, x: Tensor, n_params: int) -> Net | None:
    """The network as an op takes it; None where it must be called."""
    context = None
    if hasattr(net, "func"):  # a network with its context, as `condition` binds it
        net, context = net.func, net.keywords["context"]
        context = context.expand(*x.shape[:-1], context.shape[-1])
    if _network_refusal(net) is not None or (context is None) != (net.context_dim == 0):
        return None
    pairs, features = layers_of(net, x, context), net.input_dim
    if pairs is None:
        return None
    plan = _plan_of(net, [m.mask for m in net.layers], net.context_dim, features)
    if not isinstance(plan, MadePlan) or x.shape[-1] != features or plan.params_per_feature != n_params:
        return None
    adds = None
    if context is not None:
        of_context, of_x = pairs[0][0].split_with_sizes((net.context_dim, features), dim=1)
        pairs[0] = (of_x, pairs[0][1])
        adds = [F.linear(context, of_context), *[None] * (len(pairs) - 1)]
    pairs[-1] = _feature_major(pairs[-1][0], features), _feature_major(pairs[-1][1], features)
    return fitting(made_net(pairs, plan, name_of(net.f) or "", adds))


class SplineAutoregressive(FastMethods):
    """The methods of an accelerated SplineAutoregressive; its log-slopes are kept summed, as one number a row."""

    def _call(self: Any, x: Tensor) -> Tensor:
        spline = spline_of(self.spline)
        found = _as_net(self.arn, x, spline.n_params)
        fused = None if found is None else run_autoregressive_layer(x, found, spline)
        if fused is None:
            y, slopes = conditioned(self.spline, x, x, False)
        else:
            y, slopes = fused[0], fused[1].unsqueeze(-1)
        self._cache_log_detJ = slopes
        return y

    def _inverse(self: Any, y: Tensor) -> Tensor:
        spline = spline_of(self.spline)
        found = _as_net(self.arn, y, spline.n_params)
        solved = None if found is None else run_inverse(y, found, spline)
        if solved is not None:
            self._cache_log_detJ = -solved[1].unsqueeze(-1)
            return solved[0]
        if y.dim() == 0 or y.shape[-1] != self.spline.input_dim:  # no pass of the network would say so
            raise ValueError(f"compat.pyro: y must be [..., {self.spline.input_dim}], got {list(y.shape)}")
        x = slopes = torch.zeros_like(y)
        for _ in range(y.shape[-1]):
            x, slopes = conditioned(self.spline, x, y, True)
        self._cache_log_detJ = -slopes
        return x


class ConditionalSplineAutoregressive(FastMethods):
    """The methods of an accelerated ConditionalSplineAutoregressive: what it returns is accelerated."""

    def condition(self: Any, context: Tensor) -> Any:
        transform = _theirs("ConditionalSplineAutoregressive").condition(self, context)
        swap(transform.spline, ConditionalSpline)
        swap(transform, SplineAutoregressive)
        return transform


# ---- affine ----


class AffineAutoregressive(FastMethods):
    """The methods of an accelerated AffineAutoregressive; of an inverse, log-scales are kept summed, one number a row.

    Forward is Pyro's: on small batches the layer as one op took a quarter longer, on large ones a tenth less.
    """

    def _inverse(self: Any, y: Tensor) -> Tensor:
        found = _as_net(self.arn, y, 2)
        solved = None if found is None else run_inverse(y, found, affine_of(self))
        if solved is None:
            return _theirs("AffineAutoregressive")._inverse(self, y)
        self._cached_log_scale = -solved[1].unsqueeze(-1)
        return solved[0]


class ConditionalAffineAutoregressive(FastMethods):
    """The methods of an accelerated ConditionalAffineAutoregressive: what it returns is accelerated."""

    def condition(self: Any, context: Tensor) -> Any:
        transform = _theirs("ConditionalAffineAutoregressive").condition(self, context)
        if not transform.stable:
            swap(transform, AffineAutoregressive)
        return transform


def affine_of(layer: Any) -> Affine:
    return _clipped(layer.log_scale_min_clip, layer.log_scale_max_clip)


def _clipped(low: float, high: float) -> Affine:
    return Affine.kept(scale="clip", log_bounds=(low, high), shift_first=True)  # Pyro has means | log-scales


def affine_refusal(layer: Any) -> str | None:
    """Why an affine autoregressive layer gains nothing, or None: its map alone is as fast in Pyro."""
    settings = getattr(layer, "kwargs", {})
    if settings.get("stable", getattr(layer, "stable", False)):
        return "no kernel for its stable map"
    net = getattr(layer, "arn", None) or layer.nn
    why = _network_refusal(net)
    if why is not None:
        return f"its network is called: {why}"
    bounds = (settings.get("log_scale_min_clip", -5.0), settings.get("log_scale_max_clip", 3.0))
    if hasattr(layer, "log_scale_min_clip"):
        bounds = (layer.log_scale_min_clip, layer.log_scale_max_clip)
    try:
        _clipped(*bounds)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


# ---- what may be accelerated ----


def autoregressive_refusal(layer: Any) -> str | None:
    """Why an autoregressive spline has no kernel, or None."""
    if hasattr(layer, "kwargs"):  # a conditional one makes its splines later, of these settings
        return refusal(types.SimpleNamespace(**{"count_bins": 8, "bound": 3.0, "order": "linear", **layer.kwargs}))
    return refusal(layer.spline)

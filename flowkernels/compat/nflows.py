"""nflows: its rational-quadratic spline layers on the fused kernel.

Where nflows refuses its input, these layers go on, so that no call has to read a tensor's values:

| input                                                     | nflows                     | here                 |
|-----------------------------------------------------------|----------------------------|----------------------|
| outside the box, `tails=None`                             | raises InputOutsideDomain  | y = x, ladj = 0      |
| inverse where rounding makes the discriminant negative    | AssertionError             | the root, at disc = 0 |
| a batch of no rows                                        | RuntimeError               | no rows              |
| float16 and bfloat16                                      | ladj in that type          | ladj in float32      |

nflows also divides the conditioner's output by the root of its hidden width in place; here that is a setting of the
kernel, and the conditioner's output stays as it was.
"""

from __future__ import annotations

import math
import warnings
import weakref
from typing import Any, NamedTuple

import torch
from nflows.nn.nets.resnet import ResidualNet
from nflows.transforms.base import CompositeTransform, InverseTransform, MultiscaleCompositeTransform, Transform
from nflows.transforms.coupling import PiecewiseRationalQuadraticCouplingTransform
from nflows.transforms.nonlinearities import PiecewiseRationalQuadraticCDF
from torch import Tensor, nn

from flowkernels.ops import residual_net, rqs
from flowkernels.ops._routing import _jit_tracing, _opaque, _transforms_active
from flowkernels.ops.flow_layer import Columns as FusedColumns
from flowkernels.ops.flow_layer import columns as fused_columns
from flowkernels.ops.flow_layer import try_flow_layer
from flowkernels.ops.residual_net import layers_of
from flowkernels.ops.rqs.spec import cached_spec, make_spec

from .columns import Columns, Indexed, columns_of
from .nflows_functions import (
    patch_functions,
    rational_quadratic_spline,
    unconstrained_rational_quadratic_spline,
)
from .swap import PureLayer, overridden

__all__ = ["match", "patch_functions", "rational_quadratic_spline", "unconstrained_rational_quadratic_spline"]

_CONTAINERS = (CompositeTransform, InverseTransform, MultiscaleCompositeTransform)


def _conditioner(net: nn.Module, x: Tensor, context: Tensor | None) -> Tensor:
    """The conditioner's output; a plain ResidualNet runs as one op on its own weights."""
    if type(net) is ResidualNet and not torch.compiler.is_compiling():
        layers = layers_of(net, context)
        if layers is not None:
            return residual_net(x, layers, blocks=len(net.blocks), context=context)
    return net(x, context)


def _spline_settings(layer: Any, bins: int) -> dict[str, Any]:
    if layer.tails is not None and layer.tails != "linear":
        raise RuntimeError(f"{layer.tails} tails are not implemented.")
    settings = {
        "bins": bins,
        "tails": layer.tails,
        "min_bin_width": layer.min_bin_width,
        "min_bin_height": layer.min_bin_height,
        "min_derivative": layer.min_derivative,
    }
    if layer.tails is None:
        settings["box"] = (0.0, 1.0, 0.0, 1.0)
    else:
        settings["tail_bound"] = layer.tail_bound
    return settings


def _n_params(layer: Any, bins: int) -> int:
    return 3 * bins - 1 if layer.tails == "linear" else 3 * bins + 1


# ---- the coupling layer ----


class _Split(NamedTuple):
    """How a layer parts its features; decided once, until its index buffers are replaced or written to."""

    identity: Tensor
    identity_version: int
    transformed: Tensor
    transformed_version: int
    columns: Columns
    fused: FusedColumns | None  # None where the features are not a partition of all


_splits: weakref.WeakKeyDictionary[nn.Module, _Split] = weakref.WeakKeyDictionary()


def _split_of(layer: Any) -> _Split | None:
    """The layer's split, or None where its buffers' values cannot be read now."""
    identity, transformed = layer.identity_features, layer.transform_features
    if torch.compiler.is_compiling() or _transforms_active():  # values cannot be read, and may differ per model
        return None
    known = _splits.get(layer)
    if known is not None and known.identity is identity and known.transformed is transformed:
        if known.identity_version == identity._version and known.transformed_version == transformed._version:
            return known
        if not identity.is_cpu:  # something writes to the buffers on every call, as DDP does: stop reading a GPU's
            return None
    if _opaque((identity, transformed)) or _jit_tracing() or identity.is_inference() or transformed.is_inference():
        return None
    columns, first, second = columns_of(identity, transformed), identity.tolist(), transformed.tolist()
    partition = sorted(first + second) == list(range(layer.features)) and bool(first and second)
    fused = fused_columns(layer.features, tuple(first), tuple(second)) if partition else None
    split = _Split(identity, identity._version, transformed, transformed._version, columns, fused)
    _splits[layer] = split
    return split


def _columns_of(layer: Any) -> Columns:
    split = _split_of(layer)
    return Indexed(layer.identity_features, layer.transform_features) if split is None else split.columns


def _fused(layer: Any, inputs: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """The whole layer as one op on its own weights, or None where it must be run in parts."""
    net = layer.transform_net
    if type(net) is not ResidualNet or inputs.dim() != 2 or layer.unconditional_transform is not None:
        return None
    split = _split_of(layer)
    if split is None or split.fused is None:
        return None
    layers = layers_of(net, context)
    if layers is None:
        return None
    s = _spline_settings(layer, layer.num_bins)
    spec = cached_spec(
        s["bins"], s["tails"], s.get("tail_bound", 1.0), s.get("box"), s["min_bin_width"], s["min_bin_height"],
        s["min_derivative"], _logit_scale(net), "softmax", 1e-3, inverse,
    )  # fmt: skip
    return try_flow_layer(inputs, layers, spec, split.fused, context)


def _check(layer: Any, inputs: Tensor) -> None:
    if inputs.dim() not in (2, 4):
        raise ValueError("Inputs must be a 2D or a 4D tensor.")
    if inputs.shape[1] != layer.features:
        raise ValueError(f"Expected features = {layer.features}, got {inputs.shape[1]}.")


def _logit_scale(net: Any) -> float:
    for name in ("hidden_features", "hidden_channels"):
        if hasattr(net, name):
            return 1 / math.sqrt(getattr(net, name))
    if not torch.compiler.is_compiling():
        warnings.warn("Inputs to the softmax are not scaled down: initialization might be bad.")
    return 1.0


def _spline(layer: Any, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """x [B, D] or [B, C, H, W] with the conditioner's output as nflows lays it out → y like x, ladj [B]."""
    K, shape = layer.num_bins, x.shape
    P = _n_params(layer, K)
    if len(shape) == 4:
        B, C, H, W = shape
        params = params.reshape(B, C, P, H, W).permute(0, 1, 3, 4, 2).reshape(B, C * H * W, P)
        x = x.reshape(B, C * H * W)
    else:
        params = params.reshape(*shape, P)
    scale = _logit_scale(layer.transform_net)
    y, ladj = rqs(x, params, logit_scale=scale, inverse=inverse, **_spline_settings(layer, K))
    return y.view(shape), ladj


class Coupling(PureLayer):
    """The methods of an accelerated PiecewiseRationalQuadraticCouplingTransform."""

    def forward(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _check(self, inputs)
        fused = _fused(self, inputs, context, inverse=False)
        if fused is not None:
            return fused
        columns = _columns_of(self)
        identity, x = columns.split(inputs)
        y, ladj = _spline(self, x, _conditioner(self.transform_net, identity, context), inverse=False)
        if self.unconditional_transform is not None:
            identity, ladj_identity = self.unconditional_transform(identity, context)
            ladj = ladj + ladj_identity
        return columns.merge(identity, y), ladj

    def inverse(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _check(self, inputs)
        fused = _fused(self, inputs, context, inverse=True)
        if fused is not None:
            return fused
        columns = _columns_of(self)
        identity, y = columns.split(inputs)
        ladj_identity = None
        if self.unconditional_transform is not None:
            identity, ladj_identity = self.unconditional_transform.inverse(identity, context)
        x, ladj = _spline(self, y, _conditioner(self.transform_net, identity, context), inverse=True)
        return columns.merge(identity, x), ladj if ladj_identity is None else ladj + ladj_identity


# ---- the elementwise layer ----


def _cdf(layer: Any, inputs: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """inputs [B, *shape], the same spline for every row of the batch."""
    widths, heights, slopes = layer.unnormalized_widths, layer.unnormalized_heights, layer.unnormalized_derivatives
    params = torch.cat((widths, heights, slopes), dim=-1)
    if inputs.shape[1:] != params.shape[:-1]:
        expected, given = ["B", *params.shape[:-1]], list(inputs.shape)
        raise ValueError(f"compat.nflows: inputs must be [B, *shape] = {expected}, got {given}")
    P = params.shape[-1]
    D = params.numel() // P
    x = inputs.reshape(inputs.shape[0], D)
    params = params.view(D, P).expand(inputs.shape[0], D, P)
    y, ladj = rqs(x, params, inverse=inverse, **_spline_settings(layer, widths.shape[-1]))
    return y.view(inputs.shape), ladj


class ElementwiseSpline(PureLayer):
    """The methods of an accelerated PiecewiseRationalQuadraticCDF."""

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _cdf(self, inputs, inverse=False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _cdf(self, inputs, inverse=True)


# ---- which module gets which layer ----

_COUPLING_METHODS = frozenset({
    "forward", "inverse", "_coupling_transform", "_coupling_transform_forward", "_coupling_transform_inverse",
    "_piecewise_cdf", "_transform_dim_multiplier", "num_identity_features", "num_transform_features",
})  # fmt: skip

# class → our layer, the methods of the class that the layer bypasses, how many bins a module has
_LAYERS = {
    PiecewiseRationalQuadraticCouplingTransform: (Coupling, _COUPLING_METHODS, lambda m: m.num_bins),
    PiecewiseRationalQuadraticCDF: (
        ElementwiseSpline,
        frozenset({"forward", "inverse", "_spline"}),
        lambda m: m.unnormalized_widths.shape[-1],
    ),
}


def match(module: nn.Module) -> type[PureLayer] | str | None:
    """The layer of fast methods for a module of nflows, why it is left alone, or None: not a transform of nflows."""
    for base, (layer, methods, bins) in _LAYERS.items():
        if isinstance(module, base):
            return overridden(module, base, methods) or _refusal(module, bins) or layer
    if isinstance(module, Transform) and not isinstance(module, _CONTAINERS):
        return "no fused path for this class"
    return None


def _refusal(module: Any, bins: Any) -> str | None:
    """Why the kernel would not take the module's settings, or None."""
    try:
        s = _spline_settings(module, bins(module))
        make_spec(
            s["bins"], s["tails"], s.get("tail_bound", 1.0), s.get("box"), s["min_bin_width"], s["min_bin_height"],
            s["min_derivative"], 1.0, "softmax", 1e-3, False,
        )  # fmt: skip
    except Exception as error:  # whatever is wrong with the settings, nflows is the one to say so when it is called
        return str(error)
    return None

"""nflows' rational-quadratic spline coupling layer on the fused kernels."""

from __future__ import annotations

import math
import warnings
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowkernels.ops import residual_net, rqs
from flowkernels.ops._routing import _jit_tracing, _opaque, _transforms_active
from flowkernels.ops.flow_layer import Columns as FusedColumns
from flowkernels.ops.flow_layer import columns as fused_columns
from flowkernels.ops.flow_layer import try_flow_layer
from flowkernels.ops.residual_net import layers_of

from .columns import Columns, Indexed, columns_of
from .nflows_classes import kind
from .nflows_settings import n_params, spline_settings, spline_spec
from .swap import PureLayer


def _conditioner(net: Any, x: Tensor, context: Tensor | None) -> Tensor:
    """The conditioner's output; a plain ResidualNet runs as one op on its own weights."""
    if not torch.compiler.is_compiling() and kind(type(net)) == "ResidualNet":
        layers = layers_of(net, context)
        if layers is not None:
            return residual_net(x, layers, blocks=len(net.blocks), context=context)
    return net(x, context)


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
    if inputs.dim() != 2 or layer.unconditional_transform is not None:
        return None
    split = _split_of(layer)
    if split is None or split.fused is None or kind(type(net)) != "ResidualNet":
        return None
    layers = layers_of(net, context)
    if layers is None:
        return None
    spec = spline_spec(layer, layer.num_bins, _logit_scale(net), inverse)
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
    P = n_params(layer, K)
    if len(shape) == 4:
        B, C, H, W = shape
        params = params.reshape(B, C, P, H, W).permute(0, 1, 3, 4, 2).reshape(B, C * H * W, P)
        x = x.reshape(B, C * H * W)
    else:
        params = params.reshape(*shape, P)
    scale = _logit_scale(layer.transform_net)
    y, ladj = rqs(x, params, logit_scale=scale, inverse=inverse, **spline_settings(layer, K))
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

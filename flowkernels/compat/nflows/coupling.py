"""nflows' coupling layers on the fused kernels: how any of them runs, and the rational-quadratic spline.

Where the network is a ResidualNet of relu, conditioner and map are one op on the layer's own weights; otherwise, or
where something in the network asks to be called, they are run one by one.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from flowkernels.compat.engine.patch import FastMethods
from flowkernels.compat.engine.reads import CachedRead
from flowkernels.compat.reading.operands import mixed
from flowkernels.ops._routing import _transforms_active
from flowkernels.ops.flow_layer import run_layer
from flowkernels.ops.net import Net
from flowkernels.ops.split import Split, merge_by_index, split_by_index, split_of
from flowkernels.ops.univariate import Map

from . import residual
from .classes import kind
from .spline import spline, spline_of


def _conditioner(net: Any, x: Tensor, context: Tensor | None) -> Tensor:
    """The conditioner's output; a plain ResidualNet runs as one op on its own weights, accelerated itself or not."""
    outputs = residual.run(net, x, context) if kind(type(net)) == "ResidualNet" else None
    return net(x, context) if outputs is None else outputs


def _read_split(identity: Tensor, transformed: Tensor, features: int) -> Split | str:
    first, second = identity.tolist(), transformed.tolist()
    partition = sorted(first + second) == list(range(features)) and first and second
    return split_of(features, tuple(first), tuple(second)) if partition else "its features are not parted"


_split = CachedRead[Split | str](_read_split)


def _split_of(layer: Any) -> Split | None:
    """The layer's split, or None where its buffers' values cannot be read now, may differ per model, or are none."""
    if torch.compiler.is_compiling() or _transforms_active():
        return None
    found = _split(layer, (layer.identity_features, layer.transform_features), layer.features)
    return found if isinstance(found, Split) else None


def _parted(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer sees and what it maps; the first a copy, as a conditioner may write into its input."""
    at, split = (layer.identity_features, layer.transform_features), _split_of(layer)
    if split is None or split.by_index:
        return split_by_index(x, 1, at)
    identity, transformed = split.split(x, 1)
    return identity.clone(memory_format=torch.contiguous_format), transformed


def _merged(layer: Any, identity: Tensor, transformed: Tensor) -> Tensor:
    at, split = (layer.identity_features, layer.transform_features), _split_of(layer)
    if split is None:
        return merge_by_index(identity, transformed, 1, at)
    return split.merge(identity, transformed, 1, at)


def _fused(layer: Any, inputs: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """The coupling as one op on its own weights, or None where it must be run in parts."""
    net, kind_of_coupling = layer.transform_net, layer._flowkernels_layer
    if inputs.dim() != 2:
        return None
    split = _split_of(layer)
    if split is None or kind(type(net)) != "ResidualNet":
        return None
    found = residual.as_net(net, inputs, context)
    if found is None or net._modules.get("preprocessing") is not None:
        return None
    univariate = kind_of_coupling.map_of(layer, inverse)
    return None if univariate is None else run_layer(inputs, kind_of_coupling.by_feature(found), univariate, split)


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


def _map_identity(layer: Any, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
    """The layer's unconditional transform of the features that choose the map of the others."""
    unconditional = layer.unconditional_transform
    identity, rest = _parted(layer, x)
    identity, ladj = unconditional.inverse(identity, context) if inverse else unconditional(identity, context)
    return _merged(layer, identity, rest), ladj


def _couple(layer: Any, inputs: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
    fused = _fused(layer, inputs, context, inverse)
    if fused is not None:
        return fused
    identity, x = _parted(layer, inputs)
    params = _conditioner(layer.transform_net, identity, context)
    if mixed(x, params):
        theirs = layer._coupling_transform_inverse if inverse else layer._coupling_transform_forward
        y, ladj = theirs(inputs=x, transform_params=params)
    else:
        y, ladj = layer._flowkernels_layer.run(layer, x, params, inverse)
    return _merged(layer, identity, y), ladj


class Coupling(FastMethods):
    """The methods of an accelerated PiecewiseRationalQuadraticCouplingTransform; couplings of other maps derive."""

    @staticmethod
    def map_of(layer: Any, inverse: bool) -> Map | None:
        """The map as the whole-layer op takes it; None where it has no such map."""
        return spline_of(layer, layer.num_bins, _logit_scale(layer.transform_net), inverse)

    @staticmethod
    def by_feature(net: Net) -> Net:
        """The network with its outputs feature by feature, as that op wants them."""
        return net

    @staticmethod
    def run(layer: Any, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """x ``[B, D]`` or ``[B, C, H, W]`` and the network's output → y like x, ladj ``[B]``."""
        shape, P = x.shape, layer._transform_dim_multiplier()
        if len(shape) == 4:
            B, C, H, W = shape
            params = params.reshape(B, C, P, H, W).permute(0, 1, 3, 4, 2).reshape(B, C * H * W, P)
            x = x.reshape(B, C * H * W)
        else:
            params = params.reshape(*shape, P)
        y, ladj = spline(layer, layer.num_bins, x, params, _logit_scale(layer.transform_net), inverse)
        return y.view(shape), ladj

    def forward(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _check(self, inputs)
        y, ladj = _couple(self, inputs, context, False)
        if self.unconditional_transform is None:
            return y, ladj
        y, of_identity = _map_identity(self, y, context, False)
        return y, ladj + of_identity

    def inverse(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _check(self, inputs)
        of_identity = None
        if self.unconditional_transform is not None:
            inputs, of_identity = _map_identity(self, inputs, context, True)
        x, ladj = _couple(self, inputs, context, True)
        return x, ladj if of_identity is None else ladj + of_identity

"""nflows' coupling layers on the fused kernels, of splines, affine and additive ones.

Where the network is a ResidualNet of relu, conditioner and map are one op on the layer's own weights; otherwise, or
where something in the network asks to be called, they are run one by one. A scale that no kernel knows, such as
glasflow's softplus clamped to 3, is left to the library; columns and conditioner still run fused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkernels.compat.engine.patch import FastMethods
from flowkernels.compat.layer import Layer
from flowkernels.compat.reading.operands import mixed
from flowkernels.ops.split import Split, merge_by_index, split_by_index
from flowkernels.transforms.parts import run_alone

from . import describe, part, residual
from .classes import kind
from .spline import spline


def _conditioner(net: Any, x: Tensor, context: Tensor | None) -> Tensor:
    """The conditioner's output; a plain ResidualNet runs as one op on its own weights, accelerated itself or not."""
    outputs = residual.run(net, x, context) if kind(type(net)) == "ResidualNet" else None
    return net(x, context) if outputs is None else outputs


def _parted(layer: Any, split: Split | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer sees and what it maps; the first a copy, as a conditioner may write into its input."""
    if split is None or split.by_index:
        return split_by_index(x, 1, (layer.identity_features, layer.transform_features))
    identity, transformed = split.split(x, 1)
    return identity.clone(memory_format=torch.contiguous_format), transformed


def _merged(layer: Any, split: Split | None, identity: Tensor, transformed: Tensor) -> Tensor:
    merge, at = merge_by_index if split is None else split.merge, (layer.identity_features, layer.transform_features)
    return merge(identity, transformed, 1, at)


def _mapped(what: Layer, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """x ``[B, D]`` or ``[B, C, H, W]`` and the network's output → y like x, ladj ``[B]``."""
    univariate: Any = what.map
    if univariate.n_params == 1:  # a sum is as fast as it is
        y = x - params if inverse else x + params
        return y, y.new_zeros(y.shape[0])
    if what.groups:
        params = params.unflatten(1, (len(what.groups), x.shape[1])).movedim(1, -1)
        return univariate(x, params, inverse, event_dims=x.dim() - 1)
    params = params.unflatten(1, (x.shape[1], -1)).movedim(2, -1).flatten(1, -2)
    y, ladj = spline(univariate, what.own, x.flatten(1), params, inverse)
    return y.view(x.shape), ladj


def _check(layer: Any, inputs: Tensor) -> None:
    if inputs.dim() not in (2, 4):
        raise ValueError("Inputs must be a 2D or a 4D tensor.")
    if inputs.shape[1] != layer.features:
        raise ValueError(f"Expected features = {layer.features}, got {inputs.shape[1]}.")


def _map_identity(layer: Any, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
    """The layer's unconditional transform of the features that choose the map of the others."""
    unconditional, split = layer.unconditional_transform, layer._flowkernels_layer.describe(layer).split
    identity, rest = _parted(layer, split, x)
    identity, ladj = unconditional.inverse(identity, context) if inverse else unconditional(identity, context)
    return _merged(layer, split, identity, rest), ladj


def _couple(layer: Any, inputs: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
    fused = run_alone(layer, inputs, context, inverse, part.coupling) if inputs.dim() == 2 else None
    if fused is not None:
        return fused
    _check(layer, inputs)
    what = layer._flowkernels_layer.describe(layer)
    identity, x = _parted(layer, what.split, inputs)
    params = _conditioner(what.net, identity, context)
    if what.map is None or mixed(x, params):
        theirs = layer._coupling_transform_inverse if inverse else layer._coupling_transform_forward
        y, ladj = theirs(inputs=x, transform_params=params)
    else:
        y, ladj = _mapped(what, x, params, inverse)
    return _merged(layer, what.split, identity, y), ladj


class Coupling(FastMethods):
    """The methods of an accelerated PiecewiseRationalQuadraticCouplingTransform; couplings of other maps derive."""

    describe = staticmethod(describe.spline_coupling)

    def forward(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, ladj = _couple(self, inputs, context, False)
        if self.unconditional_transform is None:
            return y, ladj
        y, of_identity = _map_identity(self, y, context, False)
        return y, ladj + of_identity

    def inverse(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        of_identity = None
        if self.unconditional_transform is not None:
            _check(self, inputs)
            inputs, of_identity = _map_identity(self, inputs, context, True)
        x, ladj = _couple(self, inputs, context, True)
        return x, ladj if of_identity is None else ladj + of_identity


class AffineCoupling(Coupling):
    """The methods of an accelerated AffineCouplingTransform."""

    describe = staticmethod(describe.affine_coupling)


class AdditiveCoupling(Coupling):
    """The methods of an accelerated AdditiveCouplingTransform."""

    describe = staticmethod(describe.additive_coupling)

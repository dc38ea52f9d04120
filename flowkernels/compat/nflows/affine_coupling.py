"""nflows' affine and additive coupling layers on the fused kernels, glasflow's choices of a scale among them.

A scale that no kernel knows, such as glasflow's softplus clamped to 3, is left to the library; columns and conditioner
still run fused.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor

from flowkernels.ops import Affine, affine
from flowkernels.ops.net import Net

from .coupling import Coupling

_LEAST = 1e-3  # nflows: sigmoid(u + 2) + 1e-3


def _has_known_scale(layer: Any) -> bool:
    """Whether the scale is nflows'; its forks let the user give a function instead."""
    given = getattr(layer, "scale_activation", None)
    if given is None:
        return True
    named = getattr(sys.modules.get("glasflow.transforms.utils"), "SCALE_ACTIVATIONS", {})
    return given in (type(layer).DEFAULT_SCALE_ACTIVATION, named.get("nflows"))


class AffineCoupling(Coupling):
    """The methods of an accelerated AffineCouplingTransform."""

    @staticmethod
    def map_of(layer: Any, inverse: bool) -> Affine | None:
        return Affine.kept(scale="sigmoid", min_scale=_LEAST, inverse=inverse) if _has_known_scale(layer) else None

    @staticmethod
    def by_feature(net: Net) -> Net:
        """From shifts and then scale logits to a logit and a shift per feature."""
        weight, bias = net.layers()[-1]
        n = weight.shape[0] // 2
        rows = weight.unflatten(0, (2, n)).flip(0).transpose(0, 1).flatten(0, 1)
        return net.with_last(rows, bias.view(2, n).flip(0).t().flatten())

    @staticmethod
    def run(layer: Any, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        if not _has_known_scale(layer):
            theirs = layer._coupling_transform_inverse if inverse else layer._coupling_transform_forward
            return theirs(inputs=x, transform_params=params)
        params = params.unflatten(1, (2, x.shape[1])).movedim(1, -1)
        return affine(
            x, params, scale="sigmoid", min_scale=_LEAST, shift_first=True, event_dims=x.dim() - 1, inverse=inverse
        )


class AdditiveCoupling(Coupling):
    """The methods of an accelerated AdditiveCouplingTransform."""

    @staticmethod
    def map_of(layer: Any, inverse: bool) -> Affine:
        return Affine.kept(scale="additive", inverse=inverse)

    @staticmethod
    def run(layer: Any, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        y = x - params if inverse else x + params
        return y, y.new_zeros(y.shape[0])

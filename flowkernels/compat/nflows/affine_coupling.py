"""nflows' affine and additive coupling layers on the fused kernels, glasflow's choices of a scale among them.

A scale that no kernel knows, such as glasflow's softplus clamped to 3, is left to the library; columns and conditioner
still run fused.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor

from flowkernels.compat.engine.patch import FastMethods
from flowkernels.compat.reading.operands import mixed
from flowkernels.ops import Affine, affine

from . import coupling

_LEAST = 1e-3  # nflows: sigmoid(u + 2) + 1e-3


def _has_known_scale(layer: Any) -> bool:
    """Whether the scale is nflows'; its forks let the user give a function instead."""
    given = getattr(layer, "scale_activation", None)
    if given is None:
        return True
    named = getattr(sys.modules.get("glasflow.transforms.utils"), "SCALE_ACTIVATIONS", {})
    return given in (type(layer).DEFAULT_SCALE_ACTIVATION, named.get("nflows"))


def _map(layer: Any, net: Any, inverse: bool) -> Affine | None:
    return Affine.kept(scale="sigmoid", min_scale=_LEAST, inverse=inverse) if _has_known_scale(layer) else None


def _last(layer: Any, last: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """From shifts and then scale logits to a logit and a shift per feature."""
    weight, bias = last
    n = weight.shape[0] // 2
    return weight.unflatten(0, (2, n)).flip(0).transpose(0, 1).flatten(0, 1), bias.view(2, n).flip(0).t().flatten()


def _run(layer: Any, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    if not _has_known_scale(layer) or mixed(x, params):
        theirs = layer._coupling_transform_inverse if inverse else layer._coupling_transform_forward
        return theirs(inputs=x, transform_params=params)
    params = params.unflatten(1, (2, x.shape[1])).movedim(1, -1)
    return affine(
        x, params, scale="sigmoid", min_scale=_LEAST, shift_first=True, event_dims=x.dim() - 1, inverse=inverse
    )


AFFINE = coupling.Univariate(_map, _last, _run)


class AffineCoupling(FastMethods):
    """The methods of an accelerated AffineCouplingTransform."""

    def forward(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return coupling.forward(self, inputs, context, AFFINE)

    def inverse(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return coupling.inverse(self, inputs, context, AFFINE)


# ---- additive ----


def _add(layer: Any, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    y = x - params if inverse else x + params
    return y, y.new_zeros(y.shape[0])


ADDITIVE = coupling.Univariate(lambda layer, net, inverse: Affine.kept(scale="additive", inverse=inverse), None, _add)


class AdditiveCoupling(FastMethods):
    """The methods of an accelerated AdditiveCouplingTransform."""

    def forward(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return coupling.forward(self, inputs, context, ADDITIVE)

    def inverse(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return coupling.inverse(self, inputs, context, ADDITIVE)

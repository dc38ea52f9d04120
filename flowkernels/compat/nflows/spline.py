"""The rational-quadratic spline of a layer of nflows, or of normflows' copy, where each feature may have its own tails.

normflows' circular layers have a list of tails, one per feature, and bounds that may be a tensor. The kernel supports
one kind of tails and one box per call. Per-feature bounds are handled by dividing x by the bound; per-feature tails by
using free end slopes and writing the required slope logits into the parameters. Outside the box of such a list
normflows returns 0 for every feature, whatever its tails; so does this, except that a NaN stays a NaN.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flowkernels.ops import RQS, rqs

from .settings import spline_settings


def is_listed(layer: Any) -> bool:
    """Whether each feature has tails of its own."""
    return isinstance(layer.tails, (list, tuple))


def per_feature(layer: Any) -> bool:
    """Whether tails or bounds differ from feature to feature; without tails there is no bound."""
    return is_listed(layer) or (layer.tails is not None and isinstance(layer.tail_bound, Tensor))


def spline(
    layer: Any, bins: int, x: Tensor, params: Tensor, logit_scale: float, inverse: bool
) -> tuple[Tensor, Tensor]:
    """x [B, D], params [B, D, P] → y [B, D], ladj [B]."""
    if not per_feature(layer):
        return rqs(x, params, logit_scale=logit_scale, inverse=inverse, **spline_settings(layer, bins))
    bound, listed = layer.tail_bound, is_listed(layer)
    settings = {"min_bin_width": layer.min_bin_width, "min_bin_height": layer.min_bin_height,
                "min_derivative": layer.min_derivative, "logit_scale": logit_scale, "inverse": inverse}  # fmt: skip
    tails = layer.tails
    if listed:
        tails, params = None, _with_ends(params, layer.tails, bins, layer.min_derivative)
    if isinstance(bound, Tensor):
        y, ladj = rqs(x / bound, params, bins=bins, tails=tails, tail_bound=1.0, **settings)
        y = y * bound
    else:
        y, ladj = rqs(x, params, bins=bins, tails=tails, tail_bound=bound, **settings)
    return torch.where(x.abs() > bound, 0 if listed else x, y), ladj


def _with_ends(params: Tensor, tails: Any, bins: int, min_derivative: float) -> Tensor:
    """The slope logits at the ends of the box as the tails want them: slope 1, or equal ones."""
    linear = torch.tensor([t == "linear" for t in tails], device=params.device)
    one = math.log(math.expm1(1 - min_derivative))
    first = torch.where(linear, one, params[..., 2 * bins])
    last = torch.where(linear, one, first)
    return torch.cat((params[..., : 2 * bins], first[..., None], params[..., 2 * bins + 1 : -1], last[..., None]), -1)


def spline_refusal(layer: Any, bins: int) -> str | None:
    """Why the kernel would not take the settings of a layer of normflows, or None."""
    tails = set(layer.tails) if is_listed(layer) else {layer.tails}
    unknown = tails - {None, "linear", "circular"}
    if unknown or (None in tails and len(tails) > 1):
        return f"{layer.tails} tails are not implemented"
    tails_of_all: Any = None if is_listed(layer) else layer.tails
    bound = 1.0 if isinstance(layer.tail_bound, Tensor) else layer.tail_bound
    try:
        RQS(
            bins, tails_of_all, bound, min_bin_width=layer.min_bin_width, min_bin_height=layer.min_bin_height,
            min_derivative=layer.min_derivative,
        )  # fmt: skip
    except Exception as error:  # normflows is the one to say what is wrong with them, when it is called
        return str(error)
    return None

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


def is_listed(layer: Any) -> bool:
    """Whether each feature has tails of its own."""
    return isinstance(layer.tails, (list, tuple))


def per_feature(layer: Any) -> bool:
    """Whether tails or bounds differ from feature to feature; without tails there is no bound."""
    tails = layer.tails
    return isinstance(tails, (list, tuple)) or (tails is not None and isinstance(layer.tail_bound, Tensor))


def spline_settings(layer: Any, bins: int) -> dict[str, Any]:
    """The keywords of `ops.rqs`, without the scale of the logits; those of free ends where features have own tails."""
    settings = {"bins": bins, "tails": None if is_listed(layer) else layer.tails, "min_bin_width": layer.min_bin_width,
                "min_bin_height": layer.min_bin_height, "min_derivative": layer.min_derivative}  # fmt: skip
    # The compiler of torch 2.6 knows no | of dicts.
    return {**settings, **({"box": (0.0, 1.0, 0.0, 1.0)} if layer.tails is None else {"tail_bound": layer.tail_bound})}


def shared_settings(layer: Any, bins: int) -> dict[str, Any]:
    """The same in a box that all features share: x is divided by a bound that is a tensor."""
    bounded = layer.tails is not None and isinstance(layer.tail_bound, Tensor)
    return {**spline_settings(layer, bins), **({"tail_bound": 1.0} if bounded else {})}


def spline_of(layer: Any, bins: int, logit_scale: float, inverse: bool = False) -> RQS | None:
    """The same as a map, if one map serves all features."""
    if per_feature(layer):
        return None
    return RQS.kept(**spline_settings(layer, bins), logit_scale=logit_scale, inverse=inverse)


def spline(
    layer: Any, bins: int, x: Tensor, params: Tensor, logit_scale: float, inverse: bool
) -> tuple[Tensor, Tensor]:
    """x [B, D], params [B, D, P] → y [B, D], ladj [B]."""
    settings = {**shared_settings(layer, bins), "logit_scale": logit_scale, "inverse": inverse}
    if not per_feature(layer):
        return rqs(x, params, **settings)
    bound, listed = layer.tail_bound, is_listed(layer)
    if listed:
        params = _with_ends(params, layer.tails, bins, layer.min_derivative)
    if isinstance(bound, Tensor):
        y, ladj = rqs(x / bound, params, **settings)
        y = y * bound
    else:
        y, ladj = rqs(x, params, **settings)
    return torch.where(x.abs() > bound, 0 if listed else x, y), ladj


def _with_ends(params: Tensor, tails: Any, bins: int, min_derivative: float) -> Tensor:
    """The slope logits at the ends of the box as the tails want them: slope 1, or equal ones."""
    linear = torch.tensor([t == "linear" for t in tails], device=params.device)
    one = math.log(math.expm1(1 - min_derivative))
    first = torch.where(linear, one, params[..., 2 * bins])
    last = torch.where(linear, one, first)
    return torch.cat((params[..., : 2 * bins], first[..., None], params[..., 2 * bins + 1 : -1], last[..., None]), -1)


def _refusal(settings: dict[str, Any]) -> str | None:
    try:
        RQS(**settings)
    except Exception as error:  # whatever is wrong with them, the library is the one to say so when it is called
        return str(error)
    return None


def _bins(layer: Any) -> int:
    """K, of a layer with a network or of one whose parameters are its own."""
    return layer.num_bins if hasattr(layer, "num_bins") else layer.unnormalized_widths.shape[-1]


def spline_refusal(layer: Any) -> str | None:
    """Why the kernel would not take the settings of a layer of nflows, or None."""
    if layer.tails not in (None, "linear"):  # the kernel knows circular ones too, but nflows has no parameters for them
        return f"{layer.tails} tails are not implemented"
    return _refusal(spline_settings(layer, _bins(layer)))


def listed_refusal(layer: Any) -> str | None:
    """Why it would not take those of a layer of normflows, or None."""
    tails = set(layer.tails) if is_listed(layer) else {layer.tails}
    if tails - {None, "linear", "circular"} or (None in tails and len(tails) > 1):
        return f"{layer.tails} tails are not implemented"
    return _refusal(shared_settings(layer, _bins(layer)))

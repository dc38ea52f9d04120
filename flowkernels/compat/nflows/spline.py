"""The rational-quadratic spline of a layer of nflows by itself, where each feature may have its own tails.

Per-feature bounds are handled by dividing x by the bound; per-feature tails by using free end slopes and writing the
required slope logits into the parameters. Outside the box of a list of tails normflows returns 0 for every feature,
whatever its tails; so does this, except that a NaN stays a NaN.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .describe import OwnTails


def spline(univariate: Any, own: OwnTails | None, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """x [B, D], params [B, D, P] → y [B, D], ladj [B]."""
    if own is None:
        return univariate(x, params, inverse)
    if own.tails is not None:
        params = _with_ends(params, own.tails, univariate)
    y, ladj = univariate(x / own.bound if own.is_scaled else x, params, inverse)
    y = y * own.bound if own.is_scaled else y
    return torch.where(x.abs() > own.bound, x if own.tails is None else 0, y), ladj


def logit_of_one(univariate: Any) -> float:
    """The logit of slope 1."""
    return math.log(math.expm1(1 - univariate.min_derivative))


def _with_ends(params: Tensor, tails: tuple[str, ...], univariate: Any) -> Tensor:
    """The slope logits at the ends of the box as the tails want them: slope 1, or equal ones."""
    K = univariate.bins
    linear = torch.tensor([t == "linear" for t in tails], device=params.device)
    first = torch.where(linear, logit_of_one(univariate), params[..., 2 * K])
    last = torch.where(linear, logit_of_one(univariate), first)
    return torch.cat((params[..., : 2 * K], first[..., None], params[..., 2 * K + 1 : -1], last[..., None]), -1)

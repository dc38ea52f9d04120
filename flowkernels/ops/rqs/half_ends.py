"""Bins of which the first and the last are halves of one entry: as a logit for each bin, which every kernel knows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .spec import RQS


def logits_of_bins(params: Tensor, spline: RQS) -> Tensor:
    """K-1 width entries | K-1 height entries | the rest → the logarithms of K widths | those of K heights | the rest.

    A softmax of the logarithms of sizes is the sizes, so minimum sizes are in them, and the spline that reads them
    needs none. In float32 at the least: a rounded logarithm is a bin of another size.

    Example:
        >>> from flowkernels.ops import RQS
        >>> spline = RQS(3, None, parametrization="half_ends", min_bin_width=0.1)
        >>> logits_of_bins(torch.zeros(1, spline.n_params), spline)[0, :3].softmax(-1)
        tensor([0.2500, 0.5000, 0.2500])
    """
    p, n = params.to(torch.promote_types(params.dtype, torch.float32)), spline.bins - 1
    widths = _logits(p[..., :n] * spline.logit_scale, spline.min_bin_width)
    heights = _logits(p[..., n : 2 * n] * spline.logit_scale, spline.min_bin_height)
    return torch.cat((widths, heights, p[..., 2 * n :]), -1)


def _logits(entries: Tensor, least: float) -> Tensor:
    if least > 0:
        logs = torch.log(least + (1 - least * entries.shape[-1]) * F.softmax(entries, -1))
    else:  # entries that are no numbers have logarithms still
        logs = F.log_softmax(entries, -1)
    half = logs[..., :1] - math.log(2)
    return torch.cat((half, logs[..., 1:], half), -1)

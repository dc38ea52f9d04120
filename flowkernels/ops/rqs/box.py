"""The box of a spline as a circle, and as all there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .spec import RQS


def shifted(x: Tensor, spline: RQS) -> Tensor:
    """Shifts x by half a period, with the box's side [left, right) in x as a circle; derivative 1.

    Twice is the identity on the circle. What lies outside of the box comes into it.

    Example:
        >>> from flowkernels.ops import RQS
        >>> shifted(torch.tensor([-3.0, -1.0, 0.0, 2.0, 3.5]), RQS(tail_bound=3.0))
        tensor([ 0.0000,  2.0000, -3.0000, -1.0000,  0.5000])
    """
    middle = (spline.left + spline.right) / 2
    return torch.remainder(x - middle, spline.right - spline.left) + spline.left


def zeroed(of: Tensor, v: Tensor, spline: RQS) -> Tensor:
    """0 where v is outside of the box that the spline takes it from; a NaN there is inside."""
    low, high = (spline.bottom, spline.top) if spline.inverse else (spline.left, spline.right)
    return torch.where((v < low) | (v > high), 0, of)

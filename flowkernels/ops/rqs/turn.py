"""Half a turn of the circle that a spline's box is."""

from __future__ import annotations

import torch
from torch import Tensor

from .spec import RqsSpec


def half_turn(x: Tensor, spec: RqsSpec) -> Tensor:
    """``x`` half the way round, into [left, right) of the box; derivative 1. Twice is the identity on the circle.

    Example:
        >>> from flowkernels.transforms import RQS
        >>> half_turn(torch.tensor([-3.0, -1.0, 0.0, 2.0, 3.5]), RQS(tail_bound=3.0).spec)
        tensor([ 0.0000,  2.0000, -3.0000, -1.0000,  0.5000])
    """
    middle = (spec.left + spec.right) / 2
    return torch.remainder(x - middle, spec.right - spec.left) + spec.left

"""The root of an increasing function of each element: Newton's steps within a bracket, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Steps of float32 and of float64. Newton takes 4 to 8; where it would do worse the bracket is halved, or its logarithm
# is. Thousands of maps with logits up to 1e4 were found to be done in 32 and 40.
_STEPS = {torch.float32: 40, torch.float64: 48}


def root(
    value: Callable[[Tensor], tuple[Tensor, Tensor]],
    target: Tensor,
    low: Tensor,
    high: Tensor,
    start: Tensor,
    middle: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Where ``value``, which returns f and its slope, is the target; f(low) <= target <= f(high).

    Always so many steps, so that nothing is read; the best of the points visited is returned, as rounding makes f a
    staircase near the root. NaN where the target is.
    """
    m = best = start
    least = torch.full_like(target, torch.inf)
    before = high - low
    for _ in range(_STEPS[target.dtype]):
        f, slope = value(m)
        off = f - target
        nearer = off.abs() < least
        best, least = torch.where(nearer, m, best), torch.where(nearer, off.abs(), least)
        low, high = torch.where(off > 0, low, m), torch.where(off > 0, m, high)
        newton = m - off / slope
        # Newton's step must stay inside and be half of the one before; at the root it is neither, and is taken.
        halves = 2 * (newton - m).abs() <= before.abs()
        following = torch.where((newton >= low) & (newton <= high) & halves, newton, middle(low, high))
        following = torch.where(off == 0, m, following)
        before, m = following - m, following
    return torch.where(target.isnan(), target, best)

"""The root of an increasing function of each element in Triton: Newton's steps within a bracket, as those of
csrc/univariate/root.h. A kernel evaluates the function in a loop of its own, as none can be handed over."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def newton_step(
    off, slope, target, at, low, high, best, least, before, active, LOGS: tl.constexpr
):  # fmt: skip
    """From how far f is above its target at `at`, and its slope there: the point to look at next, the bracket, the best
    point so far and its residual, the last step, and which elements go on. LOGS: a bracket that spans many powers of
    ten is halved in its logarithm."""
    is_double: tl.constexpr = at.dtype == tl.float64
    ulp: tl.constexpr = 2.0**-52 if is_double else 2.0**-23
    size = tl.abs(off)
    nearer = (size < least) & active
    best = tl.where(nearer, at, best)
    low = tl.where((off <= 0.0) & active, at, low)
    high = tl.where((off > 0.0) & active, at, high)
    if LOGS:
        smallest: tl.constexpr = 1e-300 if is_double else 1e-37
        middle = tl.sqrt(tl.maximum(low, smallest)) * tl.sqrt(high)
    else:
        middle = 0.5 * (low + high)
    newton = at - off / slope
    # Newton's step must stay inside and be half of the one before.
    good = (newton >= low) & (newton <= high) & (2.0 * tl.abs(newton - at) <= tl.abs(before))
    following = tl.where(good, newton, middle)
    before = following - at
    # There, or as near as rounding lets one come: no step improves on what is a few ulps off.
    there = (tl.abs(before) <= ulp * tl.abs(at)) | (off == 0.0) | (off != off)
    there = there | ((size >= least) & (size <= 64.0 * ulp * tl.abs(target)))
    least = tl.where(nearer, size, least)
    active = active & (there == 0)
    return tl.where(active, following, at), low, high, best, least, before, active

"""The settings of a spline, checked once per distinct set."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

TAILS = ("none", "linear", "circular")  # the order of csrc/rqs/rqs.h
MAX_BINS = 128


class RqsSpec(NamedTuple):
    bins: int
    tails: str
    left: float
    right: float
    bottom: float
    top: float
    min_bin_width: float
    min_bin_height: float
    min_derivative: float
    logit_scale: float
    slope: float  # of the soft-clipped parametrisation; 0: softmax with minimum sizes
    inverse: bool

    @property
    def clipped(self) -> bool:
        return self.slope > 0

    @property
    def n_params(self) -> int:
        """P: 3K-1 (linear tails), 3K (circular), 3K+1 (none)."""
        return 3 * self.bins + {"linear": -1, "circular": 0, "none": 1}[self.tails]

    @property
    def edge_logit(self) -> float:
        """The slope logit that gives slope 1; only linear tails, whose min_derivative is below 1, need one."""
        return 0.0 if self.clipped or self.min_derivative >= 1 else math.log(math.expm1(1 - self.min_derivative))


def _fail(name: str, contract: str, given: object) -> None:
    raise ValueError(f"ops.rqs: {name} must be {contract}, got {given!r}")


def make_spec(
    bins: int,
    tails: str | None,
    tail_bound: float,
    box: tuple[float, float, float, float] | None,
    min_bin_width: float,
    min_bin_height: float,
    min_derivative: float,
    logit_scale: float,
    parametrization: str,
    slope: float,
    inverse: bool,
) -> RqsSpec:
    """Checks every setting of `ops.rqs` and returns them in the form the kernels take."""
    if isinstance(bins, bool) or not isinstance(bins, int) or not 1 <= bins <= MAX_BINS:
        _fail("bins", f"an integer from 1 to {MAX_BINS}", bins)
    if tails is not None and tails not in TAILS[1:]:
        _fail("tails", '"linear", "circular" or None', tails)
    if box is None:
        if not 0 < tail_bound < math.inf:
            _fail("tail_bound", "positive and finite", tail_bound)
        box = (-tail_bound, tail_bound, -tail_bound, tail_bound)
    left, right, bottom, top = (float(b) for b in box)
    if not (-math.inf < left < right < math.inf and -math.inf < bottom < top < math.inf):
        _fail("box", "(left, right, bottom, top) with left < right and bottom < top, finite", box)
    if not 0 < logit_scale < math.inf:
        _fail("logit_scale", "positive and finite", logit_scale)
    if parametrization == "softmax":
        if not 0 <= min_bin_width * bins <= 1:
            _fail("min_bin_width", f"from 0 to 1/bins = {1 / bins:g}", min_bin_width)
        if not 0 <= min_bin_height * bins <= 1:
            _fail("min_bin_height", f"from 0 to 1/bins = {1 / bins:g}", min_bin_height)
        if not 0 <= min_derivative < (1 if tails == "linear" else math.inf):
            _fail("min_derivative", "from 0 to 1 (exclusive)", min_derivative)
        slope = 0.0
    elif parametrization == "soft_clip":
        if not 0 < slope < 1:
            _fail("slope", "between 0 and 1", slope)
        min_bin_width = min_bin_height = min_derivative = 0.0
    else:
        _fail("parametrization", '"softmax" or "soft_clip"', parametrization)
    return RqsSpec(
        bins, tails or "none", left, right, bottom, top, float(min_bin_width), float(min_bin_height),
        float(min_derivative), float(logit_scale), float(slope), bool(inverse),
    )  # fmt: skip


cached_spec = functools.lru_cache(maxsize=1024)(make_spec)

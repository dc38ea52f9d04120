"""The settings of a spline, checked once per distinct set."""

from __future__ import annotations

import functools
import math
import numbers
from typing import Any, NamedTuple, NoReturn

from flowkernels.ops._checks import check_flag

TAILS = ("none", "linear", "circular")  # the order of csrc/rqs/rqs.h
MAX_BINS = 128
MIN_LAMBDA = 0.025  # of linear splines; Pyro's
NO_LINEAR = 'no kernel for splines of order "linear" there yet'


def count_params(bins: int, tails: str, splits: bool = False) -> int:
    return (4 if splits else 3) * bins + {"linear": -1, "circular": 0, "none": 1}[tails]


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
    edge_slope: float = 1.0  # at both ends under linear tails
    min_lambda: float = 0.0  # the smallest share of a bin on either side of its split; 0: none is split, order 2

    @property
    def splits(self) -> bool:
        """Whether the spline is linear rational: two pieces a bin, and K logits of their shares among its params."""
        return self.min_lambda > 0

    @property
    def clipped(self) -> bool:
        return self.slope > 0

    @property
    def n_params(self) -> int:
        """P: 3K-1 (linear tails), 3K (circular), 3K+1 (none); K more of a linear spline."""
        return count_params(self.bins, self.tails, self.splits)

    @property
    def edge_logit(self) -> float:
        """The slope logit that gives `edge_slope`; only linear tails, whose min_derivative is below it, need one."""
        if self.clipped or self.min_derivative >= self.edge_slope:
            return 0.0
        softplus = self.edge_slope - self.min_derivative
        return softplus if softplus > 50 else math.log(math.expm1(softplus))


def _fail(name: str, contract: str, given: object) -> NoReturn:
    raise ValueError(f"ops.rqs: {name} must be {contract}, got {given!r}")


def _number(name: str, given: Any) -> float:
    """A setting as a Python float; numpy's numbers count as numbers, strings do not. NaN and infinity are refused even
    where the parametrization has no use for the setting. By comparisons: with dynamic shapes torch.compile makes a
    setting symbolic, and cannot trace math.isfinite of it."""
    if isinstance(given, numbers.Real) and not isinstance(given, bool) and -math.inf < given < math.inf:  # type: ignore[operator]
        return float(given)
    _fail(name, "a finite number", given)


def _box(tail_bound: float, box: tuple[float, float, float, float] | None) -> tuple[float, float, float, float]:
    if box is None:
        bound = _number("tail_bound", tail_bound)
        if not 0 < bound < math.inf:
            _fail("tail_bound", "positive and finite", tail_bound)
        return -bound, bound, -bound, bound
    contract = "(left, right, bottom, top) with left < right and bottom < top, finite"
    if not isinstance(box, (tuple, list)) or len(box) != 4:
        _fail("box", contract, box)
    left, right, bottom, top = (_number("box", b) for b in box)
    if not (-math.inf < left < right < math.inf and -math.inf < bottom < top < math.inf):
        _fail("box", contract, box)
    return left, right, bottom, top


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
    edge_slope: float = 1.0,
    order: str = "quadratic",
) -> RqsSpec:
    """Checks every setting of `ops.rqs` and returns them in the form the kernels take."""
    if isinstance(bins, bool) or not isinstance(bins, numbers.Integral) or not 1 <= bins <= MAX_BINS:
        _fail("bins", f"an integer from 1 to {MAX_BINS}", bins)
    if not (isinstance(order, str) and order in ("quadratic", "linear")):
        _fail("order", '"quadratic" or "linear"', order)
    if not (tails is None or (isinstance(tails, str) and tails in TAILS[1:])):
        _fail("tails", '"linear", "circular" or None', tails)
    left, right, bottom, top = _box(tail_bound, box)
    min_bin_width, min_bin_height = _number("min_bin_width", min_bin_width), _number("min_bin_height", min_bin_height)
    min_derivative, slope = _number("min_derivative", min_derivative), _number("slope", slope)
    logit_scale, edge_slope = _number("logit_scale", logit_scale), _number("edge_slope", edge_slope)
    # Bounded far beyond what has a use, and where gradients of float32 are numbers still.
    if not 1e-15 <= logit_scale <= 1e15:
        _fail("logit_scale", "positive, from 1e-15 to 1e15", logit_scale)
    if edge_slope != 1 and not (tails == "linear" and parametrization == "softmax" and 1e-30 <= edge_slope <= 1e30):
        _fail("edge_slope", 'positive, from 1e-30 to 1e30, and 1 except for linear tails and "softmax"', edge_slope)
    if parametrization == "softmax":
        if not 0 <= min_bin_width * bins <= 1:
            _fail("min_bin_width", f"from 0 to 1/bins = {1 / bins:g}", min_bin_width)
        if not 0 <= min_bin_height * bins <= 1:
            _fail("min_bin_height", f"from 0 to 1/bins = {1 / bins:g}", min_bin_height)
        most = edge_slope if tails == "linear" else 1e30
        if not 0 <= min_derivative < most:
            _fail("min_derivative", f"from 0 to {most:g} (exclusive)", min_derivative)
        if order == "linear" and min_derivative < 1e-30:  # its formulas divide by the roots of slopes
            _fail("min_derivative", 'positive, from 1e-30 on, where order is "linear"', min_derivative)
        slope = 0.0
    elif parametrization == "soft_clip":
        if not 1e-30 <= slope < 1:
            _fail("slope", "between 0 and 1, from 1e-30 on", slope)
        min_bin_width = min_bin_height = min_derivative = 0.0
    else:
        _fail("parametrization", '"softmax" or "soft_clip"', parametrization)
    return RqsSpec(
        int(bins), tails or "none", left, right, bottom, top, min_bin_width, min_bin_height, min_derivative,
        logit_scale, slope, check_flag("ops.rqs", "inverse", inverse), edge_slope,
        MIN_LAMBDA if order == "linear" else 0.0,
    )  # fmt: skip


def check_box(spec: RqsSpec, wide: bool) -> None:
    """Raises where the box, its bins or their slopes have no numbers in the type that is computed in, float32 or (wide)
    float64: what lies far from 1 has no squares. Compiled kernels ask the same, in csrc/rqs/rqs_args.cpp."""
    power, least = (1010, 1e-24) if wide else (120, 1e-12)
    tiny, huge, steep = 2.0**-power, 2.0**power, 2.0 ** (power // 2)
    box = (spec.left, spec.right, spec.bottom, spec.top)
    width, height = spec.right - spec.left, spec.top - spec.bottom
    thin, flat = width * max(spec.min_bin_width, least), height * max(spec.min_bin_height, least)
    ordered = wide or (width > 2.0**-23 * max(map(abs, box[:2])) and height > 2.0**-23 * max(map(abs, box[2:])))
    in_range = max(map(abs, (*box, width, height))) <= huge and min(thin, flat) >= tiny
    if not (ordered and in_range and height <= steep * thin and width <= steep * flat):
        dtype = "float64" if wide else "float32"
        _fail("tail_bound or box", f"one whose bins and their slopes are numbers of {dtype}, far from its ends", box)


check_box_once = functools.lru_cache(maxsize=1024)(check_box)


def make_spec_for(wide: bool, *settings: Any) -> RqsSpec:
    """`make_spec` for tensors of float64 (wide), or of a type that is computed in float32."""
    spec = make_spec(*settings)
    check_box(spec, wide)
    return spec


# typed: 8.0 must not pass because 8 has.
cached_spec_for = functools.lru_cache(maxsize=1024, typed=True)(make_spec_for)
cached_spec = functools.lru_cache(maxsize=1024, typed=True)(make_spec)

"""The settings of an affine map, checked once per distinct set."""

from __future__ import annotations

import functools
import math
import numbers
from typing import NamedTuple, NoReturn

from torch import Tensor

from flowkernels.ops._checks import check_flag

# The order of csrc/affine/affine.h.
SCALES = ("exp", "softplus", "sigmoid", "tanh", "additive", "soft_clip", "clip", "per_sigmoid", "atan")
CLAMP = 2.0
LOW, HIGH = -5.0, 3.0
CLAMPED = ("tanh", "soft_clip", "atan")


class AffineSpec(NamedTuple):
    scale: str
    min_scale: float
    inverse: bool
    clamp: float = CLAMP  # of CLAMPED
    event_dims: int = 1
    shift_first: bool = False
    # Which features (channels) are mapped, as a slice; stop 0: all of them.
    start: int = 0
    stop: int = 0
    step: int = 1
    low: float = LOW  # of "clip"
    high: float = HIGH

    @property
    def n_params(self) -> int:
        """P: scale logit and shift, or the shift alone."""
        return 1 if self.scale == "additive" else 2

    @property
    def in_part(self) -> bool:
        return self.stop > 0

    def mapped(self, x: Tensor) -> Tensor:
        """The part of x, or of anything shaped like it, that is mapped."""
        if not self.in_part:
            return x
        return x[(..., slice(self.start, self.stop, self.step), *(slice(None),) * (self.event_dims - 1))]

    def others(self, x: Tensor) -> list[Tensor]:
        """The rest of x; all of it, the mapped part as well, where the rest is not a view or two."""
        n, dim = x.shape[-self.event_dims], x.dim() - self.event_dims
        if self.step == 1:
            ends = ((0, self.start), (self.stop, n - self.stop))
            return [x.narrow(dim, start, length) for start, length in ends if length > 0]
        last = self.start + (self.stop - 1 - self.start) // self.step * self.step
        if self.step == 2 and self.start < 2 and last + 2 >= n:  # nothing but what alternates with the part
            return [self._replace(start=1 - self.start, stop=n).mapped(x)]
        return [x]


def _fail(name: str, contract: str, given: object) -> NoReturn:
    raise ValueError(f"ops.affine: {name} must be {contract}, got {given!r}")


def _is_number(given: object) -> bool:
    return isinstance(given, numbers.Real) and not isinstance(given, bool)


def _pair(given: object) -> tuple[float, float]:
    """Two numbers, as floats; NaN where they are not."""
    if isinstance(given, (tuple, list)) and len(given) == 2 and _is_number(given[0]) and _is_number(given[1]):
        return float(given[0]), float(given[1])
    return math.nan, math.nan


def make_spec(
    scale: str,
    min_scale: float,
    inverse: bool,
    clamp: float | None = None,
    event_dims: int = 1,
    shift_first: bool = False,
    start: int = 0,
    stop: int = 0,
    step: int = 1,
    log_bounds: tuple[float, float] | None = None,
) -> AffineSpec:
    """Checks every setting of `ops.affine` and returns them in the form the backends take."""
    if not (isinstance(scale, str) and scale in SCALES):
        _fail("scale", f"one of {', '.join(SCALES)}", scale)
    if not _is_number(min_scale) or not 0 <= min_scale <= 1e30:  # float32 has no square of more
        _fail("min_scale", "a number from 0 to 1e30", min_scale)
    if min_scale > 0 and scale not in ("softplus", "sigmoid"):
        _fail("min_scale", f"0 where scale is {scale!r}", min_scale)
    if clamp is not None and scale not in CLAMPED:
        _fail("clamp", f"None where scale is {scale!r}", clamp)
    if clamp is not None and not (_is_number(clamp) and 1e-30 <= clamp <= 1e30):
        _fail("clamp", "positive, from 1e-30 to 1e30", clamp)
    if log_bounds is not None and scale != "clip":
        _fail("log_bounds", f"None where scale is {scale!r}", log_bounds)
    low, high = _pair((LOW, HIGH) if log_bounds is None else log_bounds)
    if not -1e30 <= low < high <= 1e30:
        _fail("log_bounds", "two finite numbers from -1e30 to 1e30, the lower one first", log_bounds)
    if isinstance(event_dims, bool) or not isinstance(event_dims, numbers.Integral) or event_dims < 1:
        _fail("event_dims", "an integer from 1 on", event_dims)
    return AffineSpec(
        scale, float(min_scale), check_flag("ops.affine", "inverse", inverse),
        CLAMP if clamp is None else float(clamp), int(event_dims),
        check_flag("ops.affine", "shift_first", shift_first), start, stop, step, low, high,
    )  # fmt: skip


# typed: True must not pass because 1 has.
cached_spec = functools.lru_cache(maxsize=256, typed=True)(make_spec)

"""The settings of an affine map, checked once per distinct set."""

from __future__ import annotations

import functools
import math
import numbers
from typing import NamedTuple, NoReturn

SCALES = ("exp", "softplus", "sigmoid", "tanh", "additive")  # the order of csrc/affine/affine.h
CLAMP = 2.0


class AffineSpec(NamedTuple):
    scale: str
    min_scale: float
    inverse: bool
    clamp: float = CLAMP  # of "tanh"
    event_dims: int = 1
    shift_first: bool = False

    @property
    def n_params(self) -> int:
        """P: scale logit and shift, or the shift alone."""
        return 1 if self.scale == "additive" else 2


def _fail(name: str, contract: str, given: object) -> NoReturn:
    raise ValueError(f"ops.affine: {name} must be {contract}, got {given!r}")


def _is_number(given: object) -> bool:
    return isinstance(given, numbers.Real) and not isinstance(given, bool)


def make_spec(
    scale: str,
    min_scale: float,
    inverse: bool,
    clamp: float | None = None,
    event_dims: int = 1,
    shift_first: bool = False,
) -> AffineSpec:
    """Checks every setting of `ops.affine` and returns them in the form the backends take."""
    if scale not in SCALES:
        _fail("scale", f"one of {', '.join(SCALES)}", scale)
    if not _is_number(min_scale) or not 0 <= min_scale < math.inf:
        _fail("min_scale", "a finite number from 0 on", min_scale)
    if min_scale > 0 and scale not in ("softplus", "sigmoid"):
        _fail("min_scale", f"0 where scale is {scale!r}", min_scale)
    if clamp is not None and scale != "tanh":
        _fail("clamp", f"None where scale is {scale!r}", clamp)
    if clamp is not None and not (_is_number(clamp) and 0 < clamp < math.inf):
        _fail("clamp", "positive and finite", clamp)
    if isinstance(event_dims, bool) or not isinstance(event_dims, numbers.Integral) or event_dims < 1:
        _fail("event_dims", "an integer from 1 on", event_dims)
    return AffineSpec(
        scale, float(min_scale), bool(inverse), CLAMP if clamp is None else float(clamp), int(event_dims),
        bool(shift_first),
    )  # fmt: skip


# typed: True must not pass because 1 has.
cached_spec = functools.lru_cache(maxsize=256, typed=True)(make_spec)

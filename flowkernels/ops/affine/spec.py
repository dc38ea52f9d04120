"""The settings of an affine map, checked once per distinct set."""

from __future__ import annotations

import functools
import math
import numbers
from typing import NamedTuple

SCALES = ("exp", "softplus", "sigmoid", "additive")


class AffineSpec(NamedTuple):
    scale: str
    min_scale: float
    inverse: bool

    @property
    def n_params(self) -> int:
        """P: scale logit and shift, or the shift alone."""
        return 1 if self.scale == "additive" else 2


def make_spec(scale: str, min_scale: float, inverse: bool) -> AffineSpec:
    """Checks every setting of `ops.affine` and returns them in the form the backends take."""
    if scale not in SCALES:
        raise ValueError(f"ops.affine: scale must be one of {', '.join(SCALES)}, got {scale!r}")
    if not isinstance(min_scale, numbers.Real) or isinstance(min_scale, bool) or not 0 <= min_scale < math.inf:
        raise ValueError(f"ops.affine: min_scale must be a finite number from 0 on, got {min_scale!r}")
    if min_scale > 0 and scale not in ("softplus", "sigmoid"):
        raise ValueError(f"ops.affine: min_scale must be 0 where scale is {scale!r}, got {min_scale!r}")
    return AffineSpec(scale, float(min_scale), bool(inverse))


# typed: True must not pass because 1 has.
cached_spec = functools.lru_cache(maxsize=256, typed=True)(make_spec)

"""Old name of `flowkernels.compat.copies`, for one more release."""

from __future__ import annotations

import warnings

from .copies import LIBRARY, piecewise_rational_quadratic_transform, unconstrained_rational_quadratic_spline

__all__ = ["LIBRARY", "piecewise_rational_quadratic_transform", "unconstrained_rational_quadratic_spline"]

warnings.warn(
    "flowkernels: compat.vits is called compat.copies now; the old spelling works for one more release",
    DeprecationWarning,
    stacklevel=2,
)

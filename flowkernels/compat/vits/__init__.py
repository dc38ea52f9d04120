"""Copies of VITS' spline function, which speech models of its family carry, in whatever package.

Such a model has no package of its own to be known by; its modules are known by the function that they call. What
differs by design is what differs for nflows' function, whose copy it is: outside the box without tails y = x where it
raises, and an inverse never asserts.
"""

from __future__ import annotations

from .copies import Copies
from .functions import piecewise_rational_quadratic_transform, unconstrained_rational_quadratic_spline

__all__ = ["LIBRARY", "piecewise_rational_quadratic_transform", "unconstrained_rational_quadratic_spline"]

LIBRARY = Copies()

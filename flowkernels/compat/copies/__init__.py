"""Copies of nflows' rational-quadratic spline function, which models carry under any name, in whatever package.

Such a model has no package of its own to be known by; its modules are known by the function that their methods call:
speech models of the VITS family have it as ``piecewise_rational_quadratic_transform``, many others as ``RQS`` and
``unconstrained_RQS``. It is known by its parameters (inputs; logits of widths, heights and slopes; a direction, a
bound or the sides of a box, smallest sizes; in any order, of many names) and then, once, by what it returns on a few
fixed inputs in float64: outputs, log-determinants and gradients, both ways, with two settings of all that it takes.
What it is seen to do differently by design, slopes at the ends that are not 1, or smallest sizes that are no
parameters, are settings of the kernels. A function that looks like a spline and does something else is left alone, and
the report says why.

Methods are found by the names that they read: of functions, of functions in modules, and of their own package's
functions that call the copy in turn. Not found are functions that are kept in attributes or imported inside of a
method.

A call that the kernels do not take, say with a bound that is a tensor, goes to the copy itself. What differs by design
is what differs for nflows' function: outside the box without tails y = x where it raises, and an inverse never asserts.
"""

from __future__ import annotations

from .functions import piecewise_rational_quadratic_transform, unconstrained_rational_quadratic_spline
from .library import Copies

__all__ = ["LIBRARY", "piecewise_rational_quadratic_transform", "unconstrained_rational_quadratic_spline"]

LIBRARY = Copies()

"""Copies of VITS' spline function, in whatever package; `flowkernels.compat.vits` states what differs by design."""

from __future__ import annotations

from flowkernels.compat.vits import Copies

LIBRARY = Copies()

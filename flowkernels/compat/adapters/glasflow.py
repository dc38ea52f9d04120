"""glasflow's copy of nflows. Its own flows are made of these classes."""

from __future__ import annotations

from flowkernels.compat.library import Library

from .nflows import LIBRARY as NFLOWS

LIBRARY = Library(
    "glasflow.nflows",
    NFLOWS.entries,
    base=NFLOWS.base,
    left_alone=NFLOWS.left_alone,
    containers=NFLOWS.containers,
)

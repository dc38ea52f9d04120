"""Trains flows: one call with validation, early stopping, checkpoints and exact resume, on one process or many."""

from .loop import fit
from .result import Epoch, Fit
from .standardise import standardised

__all__ = ["Epoch", "Fit", "fit", "standardised"]

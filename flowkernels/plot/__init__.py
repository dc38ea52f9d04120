"""Pictures of flows, on matplotlib alone (``pip install 'flowkernels[plot]'``), which is imported when one is drawn."""

from .corner import corner
from .coverage import Coverage, coverage
from .losses import losses

__all__ = ["Coverage", "corner", "coverage", "losses"]

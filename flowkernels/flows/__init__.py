"""Ready models, and the `Flow` that they are."""

from .distribution import FlowDistribution
from .flow import Flow
from .nsf import NSF

__all__ = ["NSF", "Flow", "FlowDistribution"]

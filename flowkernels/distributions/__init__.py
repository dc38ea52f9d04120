"""Base distributions of flows, as modules: they move, cast, train and save with the flow."""

from .base import Distribution, Size
from .location_scale import DiagonalLogistic, DiagonalNormal, StandardLogistic, StandardNormal
from .uniform import UniformBox

__all__ = [
    "DiagonalLogistic",
    "DiagonalNormal",
    "Distribution",
    "Size",
    "StandardLogistic",
    "StandardNormal",
    "UniformBox",
]

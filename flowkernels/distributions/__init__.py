"""Base distributions of flows, as modules: they move, cast, train and save with the flow."""

from .base import Base, Distribution, Size
from .from_torch import FromTorch
from .location_scale import DiagonalLogistic, DiagonalNormal, StandardLogistic, StandardNormal
from .uniform import UniformBox

__all__ = [
    "Base",
    "DiagonalLogistic",
    "DiagonalNormal",
    "Distribution",
    "FromTorch",
    "Size",
    "StandardLogistic",
    "StandardNormal",
    "UniformBox",
]

"""Conditioners: networks that turn features and the context into parameters."""

from .common import Activation
from .dense import MLP, Constant, ResidualNet
from .made import MADE, MaskedLinear

__all__ = ["MADE", "MLP", "Activation", "Constant", "MaskedLinear", "ResidualNet"]

"""Conditioners: networks that turn features and the context into parameters."""

from .common import Activation
from .conv import ConvNet, ConvResNet
from .dense import MLP, Constant, ResidualNet
from .made import MADE, MaskedLinear

__all__ = ["MADE", "MLP", "Activation", "Constant", "ConvNet", "ConvResNet", "MaskedLinear", "ResidualNet"]

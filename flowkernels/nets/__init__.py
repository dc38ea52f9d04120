"""Conditioners: networks that turn features and the context into parameters."""

from .common import Activation
from .concat_squash import ConcatSquash
from .conv import ConvNet, ConvResNet
from .dense import MLP, Constant, ResidualNet
from .gated import GatedConvNet, GatedNet
from .made import MADE, MaskedLinear
from .masked_conv import MaskedConv2d
from .pixel_cnn import PixelCNN
from .recurrent import RecurrentNet
from .row_conv import RowConvNet
from .upsampler import Upsampler
from .wavenet import WaveNet

__all__ = [
    "MADE",
    "MLP",
    "Activation",
    "ConcatSquash",
    "Constant",
    "ConvNet",
    "ConvResNet",
    "GatedConvNet",
    "GatedNet",
    "MaskedConv2d",
    "MaskedLinear",
    "PixelCNN",
    "RecurrentNet",
    "ResidualNet",
    "RowConvNet",
    "Upsampler",
    "WaveNet",
]

"""Invertible modules: `forward` is data → latent, `inverse` is latent → data, both give (y, ladj)."""

from .actnorm import ActNorm
from .autoregressive import Autoregressive
from .base import Transform
from .batch_norm import BatchNorm
from .block_autoregressive import BlockAutoregressive
from .composite import Composite, Inverse
from .continuous import Continuous
from .coupling import Coupling
from .dequantize import Dequantize, VariationalDequantize
from .diagonal import DiagonalScale
from .free_form import FreeForm
from .image_coupling import ImageCoupling, checkerboard
from .linear import LUConv1x1, LULinear
from .logit import Logit
from .low_rank import Planar, Radial, Sylvester
from .mint import Mint
from .monotone_net import MonotoneNet
from .multiscale import MultiScale
from .permutation import Permutation
from .pixel_autoregressive import PixelAutoregressive
from .reshape import Squeeze, Unsqueeze
from .residual import Residual
from .row_autoregressive import RowAutoregressive
from .signal_autoregressive import SignalAutoregressive
from .softclip import Softclip
from .standardize import Standardize
from .torch_transform import TorchTransform
from .univariate import RQS, Affine, Mixture, MixtureAffine, Polynomial, SinhArcsinh, Univariate

__all__ = [
    "RQS",
    "ActNorm",
    "Affine",
    "Autoregressive",
    "BatchNorm",
    "BlockAutoregressive",
    "Composite",
    "Continuous",
    "Coupling",
    "Dequantize",
    "DiagonalScale",
    "FreeForm",
    "ImageCoupling",
    "Inverse",
    "LUConv1x1",
    "LULinear",
    "Logit",
    "Mint",
    "Mixture",
    "MixtureAffine",
    "MonotoneNet",
    "MultiScale",
    "Permutation",
    "PixelAutoregressive",
    "Planar",
    "Polynomial",
    "Radial",
    "Residual",
    "RowAutoregressive",
    "SignalAutoregressive",
    "SinhArcsinh",
    "Softclip",
    "Squeeze",
    "Standardize",
    "Sylvester",
    "TorchTransform",
    "Transform",
    "Univariate",
    "Unsqueeze",
    "VariationalDequantize",
    "checkerboard",
]

"""Invertible modules: `forward` is data → latent, `inverse` is latent → data, both give (y, ladj)."""

from .actnorm import ActNorm
from .autoregressive import Autoregressive
from .base import Transform
from .composite import Composite, Inverse
from .coupling import Coupling
from .diagonal import DiagonalScale
from .linear import LUConv1x1, LULinear
from .permutation import Permutation
from .univariate import RQS, Affine, Univariate

__all__ = [
    "RQS",
    "ActNorm",
    "Affine",
    "Autoregressive",
    "Composite",
    "Coupling",
    "DiagonalScale",
    "Inverse",
    "LUConv1x1",
    "LULinear",
    "Permutation",
    "Transform",
    "Univariate",
]

"""Invertible modules: `forward` is data → latent, `inverse` is latent → data, both give (y, ladj)."""

from .autoregressive import Autoregressive
from .base import Transform
from .composite import Composite, Inverse
from .coupling import Coupling
from .diagonal import DiagonalScale
from .permutation import Permutation
from .univariate import RQS, Affine, Univariate

__all__ = [
    "RQS",
    "Affine",
    "Autoregressive",
    "Composite",
    "Coupling",
    "DiagonalScale",
    "Inverse",
    "Permutation",
    "Transform",
    "Univariate",
]

"""Differentiable functions: tensors in, (y, ladj) out; networks give their output alone."""

from .actnorm import actnorm
from .affine import Affine, affine
from .autoregressive_inverse import autoregressive_inverse
from .lu_linear import lu_linear
from .made import LayerPlan, MadePlan, made
from .masked_linear import masked_linear
from .residual_net import residual_net
from .rqs import RQS, rqs
from .sinh_arcsinh import SinhArcsinh

__all__ = [
    "RQS",
    "Affine",
    "LayerPlan",
    "MadePlan",
    "SinhArcsinh",
    "actnorm",
    "affine",
    "autoregressive_inverse",
    "lu_linear",
    "made",
    "masked_linear",
    "residual_net",
    "rqs",
]

"""Differentiable functions: tensors in, (y, ladj) out; networks give their output alone."""

from .actnorm import actnorm
from .affine import affine
from .autoregressive_inverse import autoregressive_inverse
from .lu_linear import lu_linear
from .net import LayerPlan, MadePlan, layer_plan, made, masked_linear, residual_net
from .rqs import rqs

__all__ = [
    "LayerPlan",
    "MadePlan",
    "actnorm",
    "affine",
    "autoregressive_inverse",
    "layer_plan",
    "lu_linear",
    "made",
    "masked_linear",
    "residual_net",
    "rqs",
]

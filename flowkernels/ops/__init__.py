"""Differentiable functions: tensors in, (y, ladj) out; networks give their output alone."""

from .actnorm import actnorm
from .affine import Affine, affine
from .autoregressive_inverse import autoregressive_inverse
from .batch_norm import batch_norm
from .block_made import block_made
from .conv_net import conv_net
from .flow import flow
from .low_rank import low_rank
from .lu_linear import lu_linear
from .mixture import Mixture, mixture
from .mixture_affine import MixtureAffine
from .monotone_net import monotone_net
from .net import LayerPlan, MadePlan, layer_plan, made, masked_linear, residual_net
from .ode_flow import ode_flow
from .polynomial import Polynomial, polynomial
from .recurrent_inverse import recurrent_inverse
from .residual_flow import residual_flow
from .rqs import RQS, rqs
from .sinh_arcsinh import SinhArcsinh

__all__ = [
    "RQS",
    "Affine",
    "LayerPlan",
    "MadePlan",
    "Mixture",
    "MixtureAffine",
    "Polynomial",
    "SinhArcsinh",
    "actnorm",
    "affine",
    "autoregressive_inverse",
    "batch_norm",
    "block_made",
    "conv_net",
    "flow",
    "layer_plan",
    "low_rank",
    "lu_linear",
    "made",
    "masked_linear",
    "mixture",
    "monotone_net",
    "ode_flow",
    "polynomial",
    "recurrent_inverse",
    "residual_flow",
    "residual_net",
    "rqs",
]

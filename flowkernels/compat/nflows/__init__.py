"""nflows on the fused kernels: its classes, and what `accelerate` changes by design.

`patch_functions` and nflows' two spline functions, fused, are here too, and load nflows when they are asked for.

Where nflows refuses its input, these layers go on, so that no call has to read a tensor's values:

| input                                                      | nflows                     | here                  |
|------------------------------------------------------------|----------------------------|-----------------------|
| outside the box, `tails=None`                              | raises InputOutsideDomain  | y = x, ladj = 0       |
| inverse where rounding makes the discriminant negative     | AssertionError             | the root, at disc = 0 |
| a batch of no rows, splines                                | RuntimeError               | no rows               |
| float16 and bfloat16                                       | ladj in that type          | ladj in float32       |
| LU layers: another dtype than that of the weights          | RuntimeError               | the wider of the two  |
| LU layers under autocast                                   | products in its type       | in that of the inputs |
| scale logits above 20, MaskedAffineAutoregressiveTransform | softplus(u) = u            | softplus(u)           |

nflows also divides the conditioner's output by the root of its hidden width in place; here that is a setting of the
kernel, and the conditioner's output stays as it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowkernels.compat.engine.registry import Library, Target

from .autoregressive import AffineAutoregressive, SplineAutoregressive, affine_refusal
from .composite import Composite
from .conv import ConvResidual, conv_refusal
from .coupling import AdditiveCoupling, AffineCoupling, Coupling
from .describe import spline_refusal
from .elementwise import ElementwiseSpline
from .linear import LU, Conv1x1, Norm
from .made import Made, made_refusal
from .masked_linear import MaskedLinear, masked_linear_refusal
from .residual import Residual, residual_refusal

if TYPE_CHECKING:
    from .functions import patch_functions, rational_quadratic_spline, unconstrained_rational_quadratic_spline

__all__ = ["LIBRARY", "patch_functions", "rational_quadratic_spline", "unconstrained_rational_quadratic_spline"]

_FORWARD, _BOTH = frozenset({"forward"}), frozenset({"forward", "inverse"})
_COUPLING = _BOTH | {
    "_coupling_transform_forward", "_coupling_transform_inverse", "_transform_dim_multiplier", "num_identity_features",
    "num_transform_features",
}  # fmt: skip
_SPLINE_COUPLING = _COUPLING | {"_coupling_transform", "_piecewise_cdf"}
_AFFINE_COUPLING = _COUPLING | {"_scale_and_shift"}
_AUTOREGRESSIVE = _BOTH | {"_elementwise_forward", "_elementwise_inverse", "_output_dim_multiplier"}
_LU_LINEAR = frozenset({"forward_no_cache", "inverse_no_cache", "_create_lower_upper", "upper_diag", "logabsdet"})

TARGETS = {
    "transforms.coupling.PiecewiseRationalQuadraticCouplingTransform": Target(
        Coupling, _SPLINE_COUPLING, "residual network, spline and feature split run as one op", spline_refusal
    ),
    "transforms.coupling.AdditiveCouplingTransform": Target(
        AdditiveCoupling, _AFFINE_COUPLING, "residual network, shift and feature split run as one op"
    ),
    "transforms.coupling.AffineCouplingTransform": Target(
        AffineCoupling, _AFFINE_COUPLING, "residual network, affine map and feature split run as one op"
    ),
    "transforms.nonlinearities.PiecewiseRationalQuadraticCDF": Target(
        ElementwiseSpline, _BOTH | {"_spline"}, "spline", spline_refusal
    ),
    "transforms.autoregressive.MaskedPiecewiseRationalQuadraticAutoregressiveTransform": Target(
        SplineAutoregressive,
        _AUTOREGRESSIVE | {"_elementwise"},
        "spline and network as one op; inverse in one sweep",
        spline_refusal,
    ),
    "transforms.autoregressive.MaskedAffineAutoregressiveTransform": Target(
        AffineAutoregressive,
        _AUTOREGRESSIVE | {"_unconstrained_scale_and_shift"},
        "affine map and network as one op; inverse in one sweep",
        affine_refusal,
    ),
    "transforms.made.MADE": Target(Made, _FORWARD, "network as one op", made_refusal),
    "transforms.made.MaskedLinear": Target(
        MaskedLinear,
        _FORWARD,
        (
            "stand-alone masked layers, from 2²² multiply-adds on; inside an accelerated MADE the MADE's own op "
            "already covers them"
        ),
        masked_linear_refusal,
    ),
    "nn.nets.resnet.ResidualNet": Target(
        Residual, _FORWARD, "one op; in training with batch norm, layer by layer", residual_refusal
    ),
    "nn.nets.resnet.ConvResidualNet": Target(
        ConvResidual, _FORWARD, "channels last, in place, large batches in pieces", conv_refusal
    ),
    "transforms.conv.OneByOneConvolution": Target(
        Conv1x1, _LU_LINEAR | _BOTH | {"_lu_forward_inverse"}, "product or solves on the image as it lies"
    ),
    "transforms.lu.LULinear": Target(LU, _LU_LINEAR, "product or triangular solves, without a dense matrix"),
    "transforms.normalization.ActNorm": Target(
        Norm, _BOTH | {"scale", "_broadcastable_scale_shift"}, "one pass over large batches, once it is initialised"
    ),
}

LIBRARY = Library(
    "nflows",
    TARGETS,
    base="transforms.base.Transform",
    containers={
        "transforms.base.CompositeTransform": Target(
            Composite,
            _BOTH | {"_cascade"},
            "its parts; neighbouring couplings and autoregressive layers in one call, with the permutations, LU "
            "layers, ActNorms and standardisations between them",
        ),
        "transforms.base.InverseTransform": "its part",
        "transforms.base.MultiscaleCompositeTransform": "its parts",
    },
    left_alone={
        "transforms.permutations.Permutation": "a permutation is one copy, and nothing is gained on it",
        "transforms.normalization.BatchNorm": "in training its time goes into the statistics of the batch",
    },
)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import functions  # which needs nflows, and the table must not

    return getattr(functions, name)

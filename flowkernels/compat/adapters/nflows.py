"""nflows' classes; `flowkernels.compat.nflows` states where accelerated ones differ by design."""

from __future__ import annotations

from flowkernels.compat.library import Entry, Library
from flowkernels.compat.nflows_affine_coupling import AdditiveCoupling, AffineCoupling
from flowkernels.compat.nflows_autoregressive import AffineAutoregressive, SplineAutoregressive, affine_refusal
from flowkernels.compat.nflows_coupling import Coupling
from flowkernels.compat.nflows_elementwise import ElementwiseSpline
from flowkernels.compat.nflows_linear import LU, Conv1x1, Norm
from flowkernels.compat.nflows_made import Made, made_refusal
from flowkernels.compat.nflows_masked_linear import MaskedLinear, masked_linear_refusal
from flowkernels.compat.nflows_residual import Residual, residual_refusal
from flowkernels.compat.nflows_settings import spline_refusal

_BOTH = frozenset({"forward", "inverse"})
_COUPLING = _BOTH | {
    "_coupling_transform_forward", "_coupling_transform_inverse", "_transform_dim_multiplier", "num_identity_features",
    "num_transform_features",
}  # fmt: skip
SPLINE_COUPLING = _COUPLING | {"_coupling_transform", "_piecewise_cdf"}
AFFINE_COUPLING = _COUPLING | {"_scale_and_shift"}
AFFINE_AUTOREGRESSIVE = _BOTH | {
    "_elementwise_forward", "_elementwise_inverse", "_output_dim_multiplier", "_unconstrained_scale_and_shift",
}  # fmt: skip
SPLINE_AUTOREGRESSIVE = _BOTH | {
    "_elementwise", "_elementwise_forward", "_elementwise_inverse", "_output_dim_multiplier",
}  # fmt: skip
LU_LINEAR = frozenset({"forward_no_cache", "inverse_no_cache", "_create_lower_upper", "upper_diag", "logabsdet"})

ENTRIES = {
    "transforms.coupling.PiecewiseRationalQuadraticCouplingTransform": Entry(
        Coupling,
        SPLINE_COUPLING,
        "spline, columns and a residual network of relu as one op",
        lambda m: spline_refusal(m, m.num_bins),
    ),
    "transforms.coupling.AdditiveCouplingTransform": Entry(
        AdditiveCoupling, AFFINE_COUPLING, "shift, columns and a residual network of relu as one op"
    ),
    "transforms.coupling.AffineCouplingTransform": Entry(
        AffineCoupling, AFFINE_COUPLING, "affine map, columns and a residual network of relu as one op"
    ),
    "transforms.nonlinearities.PiecewiseRationalQuadraticCDF": Entry(
        ElementwiseSpline,
        _BOTH | {"_spline"},
        "spline",
        lambda m: spline_refusal(m, m.unnormalized_widths.shape[-1]),
    ),
    "transforms.autoregressive.MaskedPiecewiseRationalQuadraticAutoregressiveTransform": Entry(
        SplineAutoregressive,
        SPLINE_AUTOREGRESSIVE,
        "spline and network as one op; inverse in one sweep",
        lambda m: spline_refusal(m, m.num_bins),
    ),
    "transforms.autoregressive.MaskedAffineAutoregressiveTransform": Entry(
        AffineAutoregressive,
        AFFINE_AUTOREGRESSIVE,
        "affine map and network as one op; inverse in one sweep",
        affine_refusal,
    ),
    "transforms.made.MADE": Entry(Made, frozenset({"forward"}), "network as one op", made_refusal),
    "transforms.made.MaskedLinear": Entry(
        MaskedLinear,
        frozenset({"forward"}),
        "masked product of large batches, where no accelerated MADE runs it",
        masked_linear_refusal,
    ),
    "nn.nets.resnet.ResidualNet": Entry(
        Residual, frozenset({"forward"}), "network of relu without batch norm as one op", residual_refusal
    ),
    "transforms.conv.OneByOneConvolution": Entry(
        Conv1x1, LU_LINEAR | _BOTH | {"_lu_forward_inverse"}, "product or solves on the image as it lies"
    ),
    "transforms.lu.LULinear": Entry(LU, LU_LINEAR, "product or triangular solves, without a dense matrix"),
    "transforms.normalization.ActNorm": Entry(
        Norm,
        _BOTH | {"scale", "_broadcastable_scale_shift"},
        "one pass over large batches, once it is initialised",
    ),
}

LIBRARY = Library(
    "nflows",
    ENTRIES,
    base="transforms.base.Transform",
    containers={
        "transforms.base.CompositeTransform": "its parts",
        "transforms.base.InverseTransform": "its part",
        "transforms.base.MultiscaleCompositeTransform": "its parts",
    },
    left_alone={
        "transforms.permutations.Permutation": "a permutation is one copy, and nothing is gained on it",
        "transforms.normalization.BatchNorm": "in training its time goes into the statistics of the batch",
    },
)

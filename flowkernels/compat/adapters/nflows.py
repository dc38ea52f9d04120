"""nflows' classes; `flowkernels.compat.nflows` states where accelerated ones differ by design."""

from __future__ import annotations

from flowkernels.compat.library import Entry, Library
from flowkernels.compat.nflows_autoregressive import AffineAutoregressive, SplineAutoregressive, affine_refusal
from flowkernels.compat.nflows_coupling import Coupling
from flowkernels.compat.nflows_elementwise import ElementwiseSpline
from flowkernels.compat.nflows_made import Made, made_refusal
from flowkernels.compat.nflows_settings import spline_refusal

_BOTH = frozenset({"forward", "inverse"})
_AUTOREGRESSIVE = _BOTH | {"_elementwise_forward", "_elementwise_inverse", "_output_dim_multiplier"}

ENTRIES = {
    "transforms.coupling.PiecewiseRationalQuadraticCouplingTransform": Entry(
        Coupling,
        _BOTH | {
            "_coupling_transform", "_coupling_transform_forward", "_coupling_transform_inverse", "_piecewise_cdf",
            "_transform_dim_multiplier", "num_identity_features", "num_transform_features",
        },
        "spline, columns and a residual network of relu as one op",
        lambda m: spline_refusal(m, m.num_bins),
    ),
    "transforms.nonlinearities.PiecewiseRationalQuadraticCDF": Entry(
        ElementwiseSpline,
        _BOTH | {"_spline"},
        "spline",
        lambda m: spline_refusal(m, m.unnormalized_widths.shape[-1]),
    ),
    "transforms.autoregressive.MaskedPiecewiseRationalQuadraticAutoregressiveTransform": Entry(
        SplineAutoregressive,
        _AUTOREGRESSIVE | {"_elementwise"},
        "spline and network as one op; inverse in one sweep",
        lambda m: spline_refusal(m, m.num_bins),
    ),
    "transforms.autoregressive.MaskedAffineAutoregressiveTransform": Entry(
        AffineAutoregressive,
        _AUTOREGRESSIVE | {"_unconstrained_scale_and_shift"},
        "affine map and network as one op; inverse in one sweep",
        affine_refusal,
    ),
    "transforms.made.MADE": Entry(Made, frozenset({"forward"}), "network as one op", made_refusal),
}  # fmt: skip

LIBRARY = Library(
    "nflows",
    ENTRIES,
    base="transforms.base.Transform",
    containers=(
        "transforms.base.CompositeTransform",
        "transforms.base.InverseTransform",
        "transforms.base.MultiscaleCompositeTransform",
    ),
)

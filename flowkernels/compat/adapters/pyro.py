"""Pyro's classes; `flowkernels.compat.pyro_layers` states where accelerated ones differ by design."""

from __future__ import annotations

from flowkernels.compat.library import Entry, Library
from flowkernels.compat.pyro_coupling import (
    AffineCoupling,
    ConditionalAffineCoupling,
    SplineCoupling,
    conditional_coupling_refusal,
    coupling_refusal,
)
from flowkernels.compat.pyro_layers import (
    AffineAutoregressive,
    ConditionalAffineAutoregressive,
    ConditionalSpline,
    ConditionalSplineAutoregressive,
    Spline,
    SplineAutoregressive,
    affine_refusal,
    autoregressive_refusal,
    refusal,
)

_COUPLING = "affine map, columns and network as one op; in training and small batches as before"
_AUTOREGRESSIVE = "splines of both orders and network as one op; inverse in one sweep"
_AFFINE = "inverse, in one sweep"

LIBRARY = Library(
    "pyro",
    {
        "distributions.transforms.spline.Spline": Entry(
            Spline, frozenset({"_call", "_inverse", "spline_op"}), "splines of both orders", refusal
        ),
        "distributions.transforms.spline.ConditionalSpline": Entry(
            ConditionalSpline, frozenset({"condition", "_params"}), "splines of both orders", refusal
        ),
        "distributions.transforms.spline_autoregressive.SplineAutoregressive": Entry(
            SplineAutoregressive,
            frozenset({"_call", "_inverse", "log_abs_det_jacobian"}),
            _AUTOREGRESSIVE,
            autoregressive_refusal,
        ),
        "distributions.transforms.spline_autoregressive.ConditionalSplineAutoregressive": Entry(
            ConditionalSplineAutoregressive,
            frozenset({"condition"}),
            _AUTOREGRESSIVE,
            autoregressive_refusal,
        ),
        "distributions.transforms.affine_autoregressive.AffineAutoregressive": Entry(
            AffineAutoregressive, frozenset({"_inverse", "log_abs_det_jacobian"}), _AFFINE, affine_refusal
        ),
        "distributions.transforms.affine_autoregressive.ConditionalAffineAutoregressive": Entry(
            ConditionalAffineAutoregressive, frozenset({"condition"}), _AFFINE, affine_refusal
        ),
        "distributions.transforms.spline_coupling.SplineCoupling": Entry(
            SplineCoupling,
            frozenset({"_call", "_inverse", "log_abs_det_jacobian"}),
            "its two splines; the upper one, columns and dense network as one op",
        ),
        "distributions.transforms.affine_coupling.AffineCoupling": Entry(
            AffineCoupling,
            frozenset({"_call", "_inverse", "log_abs_det_jacobian"}),
            _COUPLING,
            coupling_refusal,
        ),
        "distributions.transforms.affine_coupling.ConditionalAffineCoupling": Entry(
            ConditionalAffineCoupling, frozenset({"condition"}), _COUPLING, conditional_coupling_refusal
        ),
    },
    base="distributions.torch_transform.TransformModule",
    containers={
        "distributions.torch_transform.ComposeTransformModule": "",
        "distributions.conditional.ConditionalComposeTransformModule": "",
    },
)

"""Pyro's classes.

What differs by design: Pyro looks for a spline's bin with knots moved by 1e-6, and gives the two outer knots slope
1 - 1e-3. The second is a setting of the kernel; the first is not followed: within 1e-6 of a knot the neighbouring bin
is taken.
"""

from __future__ import annotations

from flowkernels.compat.engine.registry import Library, Target

from .coupling import (
    AffineCoupling,
    ConditionalAffineCoupling,
    SplineCoupling,
    conditional_coupling_refusal,
    coupling_refusal,
)
from .layers import (
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

_COUPLING = (
    "network, affine map and feature split run as one op where no graph is recorded, from 256 rows on; elsewhere "
    "Pyro's own code runs"
)
_AUTOREGRESSIVE = "splines of both orders and network as one op; inverse in one sweep"
_AFFINE = "inverse, in one sweep"
_CONDITION, _CALLS = frozenset({"condition"}), frozenset({"_call", "_inverse", "log_abs_det_jacobian"})

LIBRARY = Library(
    "pyro",
    {
        "distributions.transforms.spline.Spline": Target(
            Spline, frozenset({"_call", "_inverse", "spline_op"}), "splines of both orders", refusal
        ),
        "distributions.transforms.spline.ConditionalSpline": Target(
            ConditionalSpline, frozenset({"condition", "_params"}), "splines of both orders", refusal
        ),
        "distributions.transforms.spline_autoregressive.SplineAutoregressive": Target(
            SplineAutoregressive, _CALLS, _AUTOREGRESSIVE, autoregressive_refusal
        ),
        "distributions.transforms.spline_autoregressive.ConditionalSplineAutoregressive": Target(
            ConditionalSplineAutoregressive, _CONDITION, _AUTOREGRESSIVE, autoregressive_refusal
        ),
        "distributions.transforms.affine_autoregressive.AffineAutoregressive": Target(
            AffineAutoregressive, frozenset({"_inverse", "log_abs_det_jacobian"}), _AFFINE, affine_refusal
        ),
        "distributions.transforms.affine_autoregressive.ConditionalAffineAutoregressive": Target(
            ConditionalAffineAutoregressive, _CONDITION, _AFFINE, affine_refusal
        ),
        "distributions.transforms.spline_coupling.SplineCoupling": Target(
            SplineCoupling,
            _CALLS,
            "both splines are fused; the upper one runs as one op with its dense network and the feature split",
        ),
        "distributions.transforms.affine_coupling.AffineCoupling": Target(
            AffineCoupling, _CALLS, _COUPLING, coupling_refusal
        ),
        "distributions.transforms.affine_coupling.ConditionalAffineCoupling": Target(
            ConditionalAffineCoupling, _CONDITION, _COUPLING, conditional_coupling_refusal
        ),
    },
    base="distributions.torch_transform.TransformModule",
    containers={
        "distributions.torch_transform.ComposeTransformModule": "",
        "distributions.conditional.ConditionalComposeTransformModule": "",
    },
)

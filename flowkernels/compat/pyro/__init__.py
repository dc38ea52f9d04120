"""Pyro's classes.

What differs by design: Pyro looks for a spline's bin with knots moved by 1e-6, and gives the two outer knots slope
1 - 1e-3. The second is a setting of the kernel; the first is not followed: within 1e-6 of a knot the neighbouring bin
is taken. The inverse of an accelerated `ComposeTransformModule` follows its `parts`; that of torch has those of when it
was first asked for.

In a `ComposeTransformModule` neighbouring couplings are one op: it hands x from part to part itself. In a list, as in
``TransformedDistribution(base, [t1, t2])``, it is the distribution that does, and asks each transform for its value and
its log-determinant by itself, with a cache of the last pair in each. One call would have to replace the class of the
distribution, which is the user's and is mostly made anew in each call of a model; so lists run layer by layer.

Pyro's Polynomial, BlockAutoregressive, NeuralAutoregressive, Planar and Radial have no inverse but of what they have
just returned; accelerated they have one. In a `ComposeTransformModule` these run one by one, between the couplings that
are one op. A Planar whose w is 0 leaves u as it is, where Pyro returns NaN.
"""

from __future__ import annotations

from flowkernels.compat.engine.registry import Library, Target

from . import block, chain, coupling, describe, layers, low_rank, neural

_COUPLING = (
    "network, affine map and feature split run as one op where no graph is recorded, from 256 rows on; elsewhere "
    "Pyro's own code runs"
)
_AUTOREGRESSIVE = "splines of both orders and network as one op; inverse in one sweep"
_AFFINE = "inverse, in one sweep"
_NEURAL = "inverse, which Pyro lacks, of sigmoid and tanh: a pass of the network for each feature"
_LOW_RANK = "one op in place of some ten; inverse, which Pyro lacks"
_CONDITION, _CALLS = frozenset({"condition"}), frozenset({"_call", "_inverse", "log_abs_det_jacobian"})

_SPLINES = "splines of both orders"

LIBRARY = Library(
    "pyro",
    {
        "distributions.transforms.spline.Spline": Target(
            layers.Spline, frozenset({"_call", "_inverse", "spline_op"}), _SPLINES, describe.refusal
        ),
        "distributions.transforms.spline.ConditionalSpline": Target(
            layers.ConditionalSpline, _CONDITION | {"_params"}, _SPLINES, describe.refusal
        ),
        "distributions.transforms.spline_autoregressive.SplineAutoregressive": Target(
            layers.SplineAutoregressive, _CALLS, _AUTOREGRESSIVE, describe.autoregressive_refusal
        ),
        "distributions.transforms.spline_autoregressive.ConditionalSplineAutoregressive": Target(
            layers.ConditionalSplineAutoregressive, _CONDITION, _AUTOREGRESSIVE, describe.autoregressive_refusal
        ),
        "distributions.transforms.affine_autoregressive.AffineAutoregressive": Target(
            layers.AffineAutoregressive, _CALLS - {"_call"}, _AFFINE, describe.affine_refusal
        ),
        "distributions.transforms.affine_autoregressive.ConditionalAffineAutoregressive": Target(
            layers.ConditionalAffineAutoregressive, _CONDITION, _AFFINE, describe.affine_refusal
        ),
        "distributions.transforms.polynomial.Polynomial": Target(
            layers.Polynomial,
            frozenset({"_call", "_inverse"}),
            "sums of squares and network as one op; inverse, which Pyro lacks, in one sweep",
            describe.polynomial_refusal,
        ),
        "distributions.transforms.neural_autoregressive.NeuralAutoregressive": Target(
            neural.NeuralAutoregressive, frozenset({"_inverse"}), _NEURAL, describe.neural_refusal
        ),
        "distributions.transforms.neural_autoregressive.ConditionalNeuralAutoregressive": Target(
            neural.ConditionalNeuralAutoregressive, _CONDITION, _NEURAL, describe.neural_refusal
        ),
        "distributions.transforms.block_autoregressive.BlockAutoregressive": Target(
            block.BlockAutoregressive,
            frozenset({"_call", "_inverse", "log_abs_det_jacobian"}),
            "masked layers, their norms and the Jacobian as one op; inverse, which Pyro lacks, in one sweep",
            describe.block_refusal,
        ),
        "distributions.transforms.planar.Planar": Target(low_rank.Planar, _CALLS | {"u_hat"}, _LOW_RANK),
        "distributions.transforms.planar.ConditionalPlanar": Target(
            low_rank.ConditionalPlanar, _CONDITION | {"_params"}, _LOW_RANK
        ),
        "distributions.transforms.radial.Radial": Target(low_rank.Radial, _CALLS, _LOW_RANK),
        "distributions.transforms.radial.ConditionalRadial": Target(
            low_rank.ConditionalRadial, _CONDITION | {"_params"}, _LOW_RANK
        ),
        "distributions.transforms.spline_coupling.SplineCoupling": Target(
            coupling.SplineCoupling,
            _CALLS,
            "both splines are fused; the upper one runs as one op with its dense network and the feature split",
        ),
        "distributions.transforms.affine_coupling.AffineCoupling": Target(
            coupling.AffineCoupling, _CALLS, _COUPLING, describe.affine_coupling
        ),
        "distributions.transforms.affine_coupling.ConditionalAffineCoupling": Target(
            coupling.ConditionalAffineCoupling, _CONDITION, _COUPLING, describe.conditional_coupling
        ),
    },
    base="distributions.torch_transform.TransformModule",
    containers={
        "distributions.torch_transform.ComposeTransformModule": Target(
            chain.Compose,
            frozenset({"__call__", "log_abs_det_jacobian", "inv"}),
            "its parts; neighbouring couplings in one call, with the permutations between them",
        ),
        "distributions.conditional.ConditionalComposeTransformModule": "",
    },
    left_alone={
        "distributions.transforms.sylvester.Sylvester": (
            "its log-determinant is not that of what it returns; flows.Sylvester is the paper's map, with its own"
        ),
    },
)

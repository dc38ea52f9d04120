"""normflows' classes. Its splines, autoregressive and LU layers are copies of nflows', its networks too.

What `flowkernels.compat.nflows` says of inputs that nflows refuses holds for normflows' copies. What differs by design
in its affine layers and 1 × 1 convolutions:

| input                                                   | normflows             | here                             |
|---------------------------------------------------------|-----------------------|----------------------------------|
| `MaskedAffineFlow`: a network returns an infinity        | NaN there             | an exponential that saturates    |
| the same: a network returns NaN where the mask is 1     | NaN in ladj           | nothing: nothing is mapped there |
| features: a hidden unit of its MLP is minus infinity    | NaN there             | 0, what a relu returns           |
"""

from __future__ import annotations

from flowkernels.compat.engine.registry import Library, Target
from flowkernels.compat.nflows import AFFINE_AUTOREGRESSIVE, LU_LINEAR, SPLINE_AUTOREGRESSIVE, SPLINE_COUPLING
from flowkernels.compat.nflows.autoregressive import AffineAutoregressive, SplineAutoregressive, affine_refusal
from flowkernels.compat.nflows.coupling import Coupling
from flowkernels.compat.nflows.elementwise import ElementwiseSpline
from flowkernels.compat.nflows.linear import LU
from flowkernels.compat.nflows.made import Made, made_refusal
from flowkernels.compat.nflows.masked_linear import MaskedLinear, masked_linear_refusal
from flowkernels.compat.nflows.residual import Residual, residual_refusal
from flowkernels.compat.nflows.spline import listed_refusal

from . import affine

_BOTH = frozenset({"forward", "inverse"})

LIBRARY = Library(
    "normflows",
    {
        "flows.neural_spline.coupling.PiecewiseRationalQuadraticCoupling": Target(
            Coupling,
            SPLINE_COUPLING,
            "residual network, spline and feature split run as one op; with circular tails the spline alone is fused",
            lambda m: listed_refusal(m, m.num_bins),
        ),
        "flows.neural_spline.coupling.PiecewiseRationalQuadraticCDF": Target(
            ElementwiseSpline,
            _BOTH | {"_spline"},
            "spline",
            lambda m: listed_refusal(m, m.unnormalized_widths.shape[-1]),
        ),
        "flows.neural_spline.autoregressive.MaskedPiecewiseRationalQuadraticAutoregressive": Target(
            SplineAutoregressive,
            SPLINE_AUTOREGRESSIVE,
            "spline and network as one op; inverse in one sweep",
            lambda m: listed_refusal(m, m.num_bins),
        ),
        "flows.affine.autoregressive.MaskedAffineAutoregressive": Target(
            AffineAutoregressive,
            AFFINE_AUTOREGRESSIVE,
            "affine map and network as one op, inverse in one sweep",
            affine_refusal,
        ),
        "nets.resnet.ResidualNet": Target(
            Residual, frozenset({"forward"}), "network without batch norm runs as one op", residual_refusal
        ),
        "nets.made.MADE": Target(Made, frozenset({"forward"}), "network as one op", made_refusal),
        "nets.made.MaskedLinear": Target(
            MaskedLinear,
            frozenset({"forward"}),
            (
                "stand-alone masked layers, from 2²² multiply-adds on; inside an accelerated MADE the MADE's own op "
                "already covers them"
            ),
            masked_linear_refusal,
        ),
        "flows.affine.coupling.AffineCoupling": Target(
            affine.AffineCoupling,
            _BOTH,
            "affine map of large inputs",
            affine.coupling_refusal,
        ),
        "flows.affine.coupling.AffineCouplingBlock": Target(
            affine.CouplingBlock,
            _BOTH,
            (
                "affine map with the channel split and merge fused in; on feature vectors, with a plain MLP, the whole "
                "block is one op"
            ),
            affine.block_refusal,
        ),
        "flows.affine.coupling.MaskedAffineFlow": Target(
            affine.MaskedAffine,
            _BOTH,
            "affine map under its mask; features with networks of plain layers as one op a network",
            affine.masked_refusal,
        ),
        "flows.normalization.ActNorm": Target(
            affine.Norm, _BOTH, "one pass over large batches, once it is initialised", affine.norm_refusal
        ),
        "flows.mixing.Invertible1x1Conv": Target(
            affine.Conv1x1,
            _BOTH | {"_assemble_W"},
            "with use_lu: product or solves on the image as it lies, without a dense inverse",
            affine.conv_refusal,
        ),
        "flows.mixing._LULinear": Target(LU, LU_LINEAR, "product or triangular solves, without a dense matrix"),
    },
    base="flows.base.Flow",
    containers={
        "flows.neural_spline.wrapper.CoupledRationalQuadraticSpline": "its PiecewiseRationalQuadraticCoupling",
        "flows.neural_spline.wrapper.CircularCoupledRationalQuadraticSpline": "the same, circular",
        "flows.neural_spline.wrapper.AutoregressiveRationalQuadraticSpline": (
            "its MaskedPiecewiseRationalQuadraticAutoregressive"
        ),
        "flows.neural_spline.wrapper.CircularAutoregressiveRationalQuadraticSpline": "the same, circular",
        "flows.affine.glow.GlowBlock": "its Invertible1x1Conv, ActNorm and coupling",
        "flows.mixing.LULinearPermute": "its LU layer",
        "flows.base.Composite": "",
        "flows.base.Reverse": "",
    },
    left_alone={
        "flows.mixing.Permute": "a permutation is one copy, and nothing is gained on it",
        "flows.mixing._Permutation": "a permutation is one copy, and nothing is gained on it",
        "flows.reshape.Split": "two views or one copy, and nothing is gained on it",
        "flows.reshape.Squeeze": "one copy, and nothing is gained on it",
    },
)

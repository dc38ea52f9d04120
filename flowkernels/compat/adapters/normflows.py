"""normflows' classes. Its splines, autoregressive and LU layers are copies of nflows', its networks too.

What `flowkernels.compat.nflows` says of inputs that nflows refuses holds for normflows' copies; see also
`flowkernels.compat.normflows_affine`.
"""

from __future__ import annotations

from flowkernels.compat import normflows_affine as affine
from flowkernels.compat.library import Entry, Library
from flowkernels.compat.nflows_autoregressive import AffineAutoregressive, SplineAutoregressive, affine_refusal
from flowkernels.compat.nflows_coupling import Coupling
from flowkernels.compat.nflows_elementwise import ElementwiseSpline
from flowkernels.compat.nflows_linear import LU
from flowkernels.compat.nflows_made import Made, made_refusal
from flowkernels.compat.nflows_masked_linear import MaskedLinear, masked_linear_refusal
from flowkernels.compat.nflows_residual import Residual, residual_refusal
from flowkernels.compat.nflows_spline import spline_refusal

from .nflows import AFFINE_AUTOREGRESSIVE, LU_LINEAR, SPLINE_AUTOREGRESSIVE, SPLINE_COUPLING

_BOTH = frozenset({"forward", "inverse"})

LIBRARY = Library(
    "normflows",
    {
        "flows.neural_spline.coupling.PiecewiseRationalQuadraticCoupling": Entry(
            Coupling,
            SPLINE_COUPLING,
            "spline, columns and a residual network of relu as one op; with circular tails the spline",
            lambda m: spline_refusal(m, m.num_bins),
        ),
        "flows.neural_spline.coupling.PiecewiseRationalQuadraticCDF": Entry(
            ElementwiseSpline,
            _BOTH | {"_spline"},
            "spline",
            lambda m: spline_refusal(m, m.unnormalized_widths.shape[-1]),
        ),
        "flows.neural_spline.autoregressive.MaskedPiecewiseRationalQuadraticAutoregressive": Entry(
            SplineAutoregressive,
            SPLINE_AUTOREGRESSIVE,
            "spline and network as one op; inverse in one sweep",
            lambda m: spline_refusal(m, m.num_bins),
        ),
        "flows.affine.autoregressive.MaskedAffineAutoregressive": Entry(
            AffineAutoregressive,
            AFFINE_AUTOREGRESSIVE,
            "affine map and network as one op, inverse in one sweep",
            affine_refusal,
        ),
        "nets.resnet.ResidualNet": Entry(
            Residual, frozenset({"forward"}), "network of relu without batch norm as one op", residual_refusal
        ),
        "nets.made.MADE": Entry(Made, frozenset({"forward"}), "network as one op", made_refusal),
        "nets.made.MaskedLinear": Entry(
            MaskedLinear,
            frozenset({"forward"}),
            "masked product of large batches, where no accelerated MADE runs it",
            masked_linear_refusal,
        ),
        "flows.affine.coupling.AffineCoupling": Entry(
            affine.AffineCoupling,
            _BOTH,
            "affine map of large inputs",
            affine.coupling_refusal,
        ),
        "flows.affine.coupling.AffineCouplingBlock": Entry(
            affine.CouplingBlock,
            _BOTH,
            "the same, split and merge of channels; features with a network of plain layers as one op",
            affine.block_refusal,
        ),
        "flows.affine.coupling.MaskedAffineFlow": Entry(
            affine.MaskedAffine,
            _BOTH,
            "affine map under its mask; features with networks of plain layers as one op a network",
            affine.masked_refusal,
        ),
        "flows.normalization.ActNorm": Entry(
            affine.Norm, _BOTH, "one pass over large batches, once it is initialised", affine.norm_refusal
        ),
        "flows.mixing.Invertible1x1Conv": Entry(
            affine.Conv1x1,
            _BOTH | {"_assemble_W"},
            "with use_lu: product or solves on the image as it lies, without a dense inverse",
            affine.conv_refusal,
        ),
        "flows.mixing._LULinear": Entry(LU, LU_LINEAR, "product or triangular solves, without a dense matrix"),
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

"""normflows' classes. Its splines, autoregressive and LU layers are copies of nflows', its networks too.

What `flowkernels.compat.nflows` says of inputs that nflows refuses holds for normflows' copies. What differs by design
in its affine layers and 1 × 1 convolutions:

| input                                                   | normflows             | here                             |
|---------------------------------------------------------|-----------------------|----------------------------------|
| `MaskedAffineFlow`: a network returns an infinity        | NaN there             | an exponential that saturates    |
| the same: a network returns NaN where the mask is 1     | NaN in ladj           | nothing: nothing is mapped there |
| features: a hidden unit of its MLP is minus infinity    | NaN there             | 0, what a relu returns           |
| `Planar`: w is 0                                        | NaN                   | u as it is                       |
| `Planar`, `Radial`: a logit above 88 of a softplus      | infinite, or NaN      | the logit                        |
| `Residual`: log-determinant                             | a random estimate     | exact, and nothing is drawn      |
| the same, a step of training of a large layer           | no log-determinant    | an unbiased estimate of it       |
| the same in evaluation                                  | often no gradient     | its gradient                     |
| the same, gradients of a loss that weights rows         | the first row's weight | each row's own                  |
| the same: the inverse                                   | to steps of 0.003     | to rounding                      |
| the same: inputs that ask for no gradient               | are made to           | stay as they are                 |
"""

from __future__ import annotations

from flowkernels.compat.convolutions import WHAT
from flowkernels.compat.engine.registry import Library, Target
from flowkernels.compat.nflows import TARGETS as NFLOWS
from flowkernels.compat.nflows.describe import listed_refusal

from . import affine, conv, describe, flow, low_rank, residual

_BOTH = frozenset({"forward", "inverse"})

LIBRARY = Library(
    "normflows",
    {
        "flows.neural_spline.coupling.PiecewiseRationalQuadraticCoupling": NFLOWS[
            "transforms.coupling.PiecewiseRationalQuadraticCouplingTransform"
        ]._replace(
            what="residual network, spline and feature split run as one op; with circular tails the spline alone is "
            "fused",
            refusal=listed_refusal,
        ),
        "flows.neural_spline.coupling.PiecewiseRationalQuadraticCDF": NFLOWS[
            "transforms.nonlinearities.PiecewiseRationalQuadraticCDF"
        ]._replace(refusal=listed_refusal),
        "flows.neural_spline.autoregressive.MaskedPiecewiseRationalQuadraticAutoregressive": NFLOWS[
            "transforms.autoregressive.MaskedPiecewiseRationalQuadraticAutoregressiveTransform"
        ]._replace(refusal=listed_refusal),
        "flows.affine.autoregressive.MaskedAffineAutoregressive": NFLOWS[
            "transforms.autoregressive.MaskedAffineAutoregressiveTransform"
        ],
        "nets.resnet.ResidualNet": NFLOWS["nn.nets.resnet.ResidualNet"],
        "nets.cnn.ConvNet2d": Target(conv.ConvNet, frozenset({"forward"}), WHAT, conv.conv_refusal),
        "nets.made.MADE": NFLOWS["transforms.made.MADE"],
        "nets.made.MaskedLinear": NFLOWS["transforms.made.MaskedLinear"],
        "flows.affine.coupling.AffineCoupling": Target(
            affine.AffineCoupling, _BOTH, "affine map of large inputs", describe.coupling
        ),
        "flows.affine.coupling.AffineCouplingBlock": Target(
            affine.CouplingBlock,
            _BOTH,
            (
                "affine map with the channel split and merge fused in; on feature vectors, with a plain MLP, the whole "
                "block is one op"
            ),
            describe.block_refusal,
        ),
        "flows.affine.coupling.MaskedAffineFlow": Target(
            affine.MaskedAffine,
            _BOTH,
            "affine map under its mask; features with networks of plain layers as one op a network",
            describe.mask_of,
        ),
        "flows.normalization.ActNorm": Target(
            affine.Norm, _BOTH, "one pass over large batches, once it is initialised", describe.norm_refusal
        ),
        "flows.mixing.Invertible1x1Conv": Target(
            affine.Conv1x1,
            _BOTH | {"_assemble_W"},
            "with use_lu: product or solves on the image as it lies, without a dense inverse",
            describe.order_of,
        ),
        "flows.mixing._LULinear": NFLOWS["transforms.lu.LULinear"],
        "flows.planar.Planar": Target(
            low_rank.Planar,
            _BOTH,
            "one op in place of some twenty; inverse, which normflows has of leaky_relu alone",
            low_rank.planar_refusal,
        ),
        "flows.radial.Radial": Target(low_rank.Radial, _BOTH, "one op; inverse, which normflows lacks"),
        "flows.residual.Residual": Target(
            residual.Residual,
            _BOTH,
            "of a LipschitzMLP: one op with the exact log-determinant (an estimate in training large ones), and the "
            "inverse to rounding",
            residual.refusal,
        ),
    },
    base="flows.base.Flow",
    containers={
        "core.NormalizingFlow": Target(
            flow.NormalizingFlow,
            _BOTH
            | {
                "forward_and_log_det",
                "inverse_and_log_det",
                "forward_kld",
                "reverse_kld",
                "sample",
                "log_prob",
            },
            "its layers; neighbouring couplings and autoregressive layers in one call, with the permutations, LU "
            "layers and ActNorms between them",
        ),
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

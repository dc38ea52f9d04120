"""FrEIA's classes; what remains of them calls networks that are the user's own, in any case."""

from __future__ import annotations

from flowkernels.compat import freia_couplings as couplings
from flowkernels.compat.freia_layers import AllInOne, Permute, refusal
from flowkernels.compat.library import Entry, Library

_SIDES = frozenset({"forward", "_coupling1", "_coupling2"})
_WHAT = "features: map, clamp, columns and network of plain layers as one op a half; small batches as before"
_BOX = "in no release; each element learns its box and the slope beyond it, where the kernel has one box for all"

LIBRARY = Library(
    "FrEIA.modules",
    {
        "all_in_one_block.AllInOneBlock": Entry(
            AllInOne,
            frozenset({"forward", "_affine", "_permute", "_pre_permute"}),
            "features: coupling and network of plain layers as one op; hard permutation, of images or many features",
            refusal,
        ),
        "coupling_layers.GLOWCouplingBlock": Entry(couplings.GLOWCoupling, _SIDES, _WHAT, couplings.glow_refusal),
        "coupling_layers.RNVPCouplingBlock": Entry(
            couplings.RNVPCoupling, _SIDES, "the same as two ops a half, one a network", couplings.rnvp_refusal
        ),
        "coupling_layers.AffineCouplingOneSided": Entry(
            couplings.OneSidedCoupling, frozenset({"forward"}), _WHAT, couplings.one_sided_refusal
        ),
        "coupling_layers.NICECouplingBlock": Entry(
            couplings.NICECoupling, _SIDES, "features: sum, columns and network as one op", couplings.nice_refusal
        ),
        "coupling_layers.ConditionalAffineTransform": Entry(
            couplings.ConditionalAffine,
            frozenset({"forward"}),
            "features: map, clamp and network of plain layers as one op",
            couplings.conditional_refusal,
        ),
        "fixed_transforms.PermuteRandom": Entry(Permute, frozenset({"forward"}), "permutation"),
    },
    left_alone={
        "coupling_layers.GINCouplingBlock": "its log-scales are centred, which no kernel does",
        "splines.rational_quadratic.RationalQuadraticSpline": _BOX,
        "splines.rational_quadratic.ElementwiseRationalQuadraticSpline": _BOX,
    },
    base="base.InvertibleModule",
)

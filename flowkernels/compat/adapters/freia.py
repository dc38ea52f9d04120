"""FrEIA's classes, and why most of them gain nothing: their networks are the user's own, and called in any case."""

from __future__ import annotations

from flowkernels.compat.freia_layers import AllInOne, Permute, refusal
from flowkernels.compat.library import Entry, Library

_MAP = "its map in one op beside a network that is called was slower than FrEIA's own, 0.7 to 0.95 times"

LIBRARY = Library(
    "FrEIA.modules",
    {
        "all_in_one_block.AllInOneBlock": Entry(
            AllInOne, frozenset({"_permute", "_pre_permute"}), "hard permutation, of images or many features", refusal
        ),
        "fixed_transforms.PermuteRandom": Entry(Permute, frozenset({"forward"}), "permutation"),
    },
    left_alone={
        "coupling_layers.RNVPCouplingBlock": _MAP,
        "coupling_layers.GLOWCouplingBlock": _MAP,
        "coupling_layers.AffineCouplingOneSided": _MAP,
        "coupling_layers.NICECouplingBlock": "it adds, which is one operation already",
        "coupling_layers.GINCouplingBlock": "its log-scales are centred, which no kernel does",
        "splines.rational_quadratic.RationalQuadraticSpline": "the box of each element is learned, which no kernel has",
    },
    base="base.InvertibleModule",
)

"""FrEIA's classes; what remains of them calls networks that are the user's own, in any case.

Of images the networks are accelerated, where they are an `nn.Sequential` of convolutions, and couplings are FrEIA's own
code; `accelerate_library`, which sees blocks alone, leaves both as they are.

In a `SequenceINN`, and in a `GraphINN` whose nodes have one input and one output each, neighbouring blocks of features
are one op; one by one they run where a graph is recorded of a few rows of wide networks, or of so many rows that more
than 32 MB would be kept for backward.

What differs by design in its couplings: exponentials of clamps beyond 87 (708 in float64) saturate, and do not become
infinities; log-determinants of 16-bit inputs are float32. In its permutations nothing differs but the time.
In its i-ResNet blocks the log-determinant is exact, where FrEIA's is a series of 20 terms with noise; it has a
gradient, which FrEIA's lacks, so that training by it is maximum likelihood; that of the inverse is the inverse's, where
FrEIA's is taken at y, the wrong end. The inverse goes to rounding and has its own gradient, in place of 50 steps and
the gradient of the last.
"""

from __future__ import annotations

import functools

from flowkernels.compat.engine.registry import Library, Target

from . import describe
from .chain import GraphINN, SequenceINN
from .couplings import AdditiveCoupling, Coupling
from .layers import AllInOne, Permute, refusal
from .residual import IResNet
from .residual import refusal as residual_refusal

_FORWARD, _SIDES = frozenset({"forward"}), frozenset({"forward", "_coupling1", "_coupling2"})
_WHAT = (
    "on feature vectors each half (network, soft clamp, affine map, feature split) runs as one fused op if its network "
    "is plain `Linear` + activation; outside of a chain, batches below 1,024 rows use FrEIA's own code"
)
_BOX = (
    "it is only on FrEIA's main branch, and it learns a box and an outer slope per element; the kernel supports one "
    "box per call"
)


def _coupling(
    how: describe.Describe, what: str, layer: type[Coupling] = Coupling, bypassed: frozenset[str] = _SIDES
) -> Target:
    made = type(layer.__name__, (layer,), {"describe": staticmethod(how)})
    return Target(made, bypassed, what, functools.partial(describe.refusal_of, how))


LIBRARY = Library(
    "FrEIA",
    {
        "modules.all_in_one_block.AllInOneBlock": Target(
            AllInOne,
            frozenset({"forward", "_affine", "_permute", "_pre_permute"}),
            "features: coupling and network of plain layers as one op; hard permutation, of images or many features",
            refusal,
        ),
        "modules.coupling_layers.GLOWCouplingBlock": _coupling(describe.glow, _WHAT),
        "modules.coupling_layers.RNVPCouplingBlock": _coupling(
            describe.rnvp, "the same as two ops a half, one a network"
        ),
        "modules.coupling_layers.AffineCouplingOneSided": _coupling(describe.one_sided, _WHAT, bypassed=_FORWARD),
        "modules.coupling_layers.NICECouplingBlock": _coupling(
            describe.nice, "on feature vectors network, sum and feature split run as one op", AdditiveCoupling
        ),
        "modules.coupling_layers.ConditionalAffineTransform": _coupling(
            describe.conditional, "features: map, clamp and network of plain layers as one op", bypassed=_FORWARD
        ),
        "modules.fixed_transforms.PermuteRandom": Target(Permute, _FORWARD, "permutation"),
        "modules.invertible_resnet.IResNetLayer": Target(
            IResNet,
            _FORWARD,
            "of features: one op with the exact log-determinant and its gradient, and the inverse to rounding",
            residual_refusal,
        ),
    },
    left_alone={
        "modules.coupling_layers.GINCouplingBlock": "it subtracts the mean log-scale (GIN); no kernel implements that",
        "modules.splines.rational_quadratic.RationalQuadraticSpline": _BOX,
        "modules.splines.rational_quadratic.ElementwiseRationalQuadraticSpline": _BOX,
    },
    containers={
        "framework.sequence_inn.SequenceINN": Target(
            SequenceINN,
            _FORWARD,
            "its parts; neighbouring couplings of features in one call, small batches too, with the conditions, hard "
            "permutations, global scales and offsets; not `ConditionalAffineTransform`, GIN, soft and learned "
            "permutations",
        ),
        "framework.graph_inn.GraphINN": Target(
            GraphINN, _FORWARD, "the same where each node has one input and one output"
        ),
    },
    base="modules.base.InvertibleModule",
)

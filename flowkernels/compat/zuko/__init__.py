"""zuko: its lazy masked autoregressive, coupling and elementwise transforms on the fused kernels.

A lazy transform returns a subclass of the transform of zuko that it returned before. What differs by design:

| what                                                | zuko                    | here                           |
|-----------------------------------------------------|-------------------------|--------------------------------|
| log-determinant of an inverse                       | of the forward map at x | of the inverse map at y        |
| inverse where rounding makes the discriminant < 0   | NaN                     | the root, at disc = 0          |
| a bin below what float32 can divide                 | NaN                     | a bin of 1e-12 of the box      |
| inverse of a polynomial or a mixture                | bisection, to 1e-6      | Newton, to the last ulp        |
| inverse of NAF's and UNAF's networks                | bisection, to 1e-6      | Newton, to the last ulps       |
| gradients of UMNN's weights in evaluation mode      | of the slope alone      | all of them                    |
| gradients of samples of NAF and UNAF to weights     | off by some per cent    | those of differences           |
| ladj of a mixture where its density underflows      | -inf                    | its logarithm                  |
| a batch of no rows                                  | RuntimeError            | no rows                        |
| CNF: steps of its solver                            | the batch's             | each row's own                 |
| CNF: gradients                                      | the adjoint's, solved   | exactly those of the steps     |
| CNF: multiples of pi in float64                     | of float32              | of float64                     |
| float16 and bfloat16                                | ladj in that type       | ladj in float32                |
| `base` of the transform of an elementwise layer     | built on every call     | built when it is asked for     |

A network is one op with its map where it is zuko's `MaskedMLP` or `MLP`, with an activation that the ops know, without
residual blocks, normalisation or hooks; the masks of the first are read off its buffers. Otherwise it is called, and
the map alone is fused. A circular spline sees another x than its network, which one op cannot give it forward: there
it takes two. Its inverse is one sweep like the others'.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flowkernels.compat.engine.patch import FastMethods, or_theirs, original_class
from flowkernels.compat.engine.registry import Library, Target


def _lazy(transform: str, what: str, refusal: str = "describe", bypassed: str = "forward meta") -> Target:
    """A lazy transform, which returns one of `.transforms`. zuko is imported when it is called, and not before."""

    def forward(self: Any, c: Tensor | None = None) -> Any:
        from . import transforms

        return getattr(transforms, transform)(self, c)

    def why(layer: Any) -> object:
        from . import describe

        return getattr(describe, refusal)(layer)

    return Target(type(transform, (FastMethods,), {"forward": forward}), frozenset(bypassed.split()), what, why)


class FreeForm(FastMethods):
    """The methods of an accelerated FFJTransform."""

    def forward(self: Any, c: Tensor | None = None) -> Any:
        from . import continuous

        return continuous.FreeFormTransform(self, c, original_class(self).forward(self, c))


def _free_form_refusal(layer: Any) -> object:
    from . import continuous

    return continuous.refusal(layer)


class Composed(FastMethods):
    """The methods of an accelerated LazyComposedTransform."""

    is_container = True

    @or_theirs
    def forward(self: Any, c: Tensor | None = None) -> Any:
        from . import composed

        return composed.composed(self, c)

    @staticmethod
    def pieces(container: Any, inverse: bool, has_context: bool) -> Any:
        from . import composed

        return composed.pieces_of(container, inverse, has_context)


LIBRARY = Library(
    "zuko",
    {
        "flows.autoregressive.MaskedAutoregressiveTransform": _lazy(
            "AutoregressiveTransform",
            "spline (circular ones too), affine map or polynomial and network as one op, MNN and UMNN as a second;"
            " inverse in one sweep",
        ),
        "flows.coupling.GeneralCouplingTransform": _lazy(
            "CouplingTransform",
            "network, map (spline, affine or polynomial) and feature split run as one op, MNN and UMNN as a second",
        ),
        "flows.gaussianization.ElementWiseTransform": _lazy(
            "DependentTransform", "spline, polynomial or mixture, MNN or UMNN", "elementwise_refusal", "forward"
        ),
        "flows.continuous.FFJTransform": Target(
            FreeForm,
            frozenset({"forward", "f"}),
            "field, trace and solver as one op, each row with steps of its own, forward and back",
            _free_form_refusal,
        ),
    },
    base="lazy.LazyTransform",
    containers={
        "lazy.LazyComposedTransform": Target(
            Composed,
            frozenset({"forward"}),
            "neighbouring autoregressive layers and couplings, elementwise layers without a context and rotations in"
            " one call",
        ),
        "lazy.LazyInverse": "",
    },
)

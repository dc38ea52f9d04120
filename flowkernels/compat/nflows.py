"""nflows: its rational-quadratic spline and masked autoregressive layers on the fused kernels.

Where nflows refuses its input, these layers go on, so that no call has to read a tensor's values:

| input                                                     | nflows                     | here                 |
|-----------------------------------------------------------|----------------------------|----------------------|
| outside the box, `tails=None`                             | raises InputOutsideDomain  | y = x, ladj = 0      |
| inverse where rounding makes the discriminant negative    | AssertionError             | the root, at disc = 0 |
| a batch of no rows                                        | RuntimeError               | no rows              |
| float16 and bfloat16                                      | ladj in that type          | ladj in float32      |

nflows also divides the conditioner's output by the root of its hidden width in place; here that is a setting of the
kernel, and the conditioner's output stays as it was.
"""

from __future__ import annotations

from nflows.transforms.autoregressive import (
    MaskedAffineAutoregressiveTransform,
    MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
)
from nflows.transforms.base import CompositeTransform, InverseTransform, MultiscaleCompositeTransform, Transform
from nflows.transforms.coupling import PiecewiseRationalQuadraticCouplingTransform
from nflows.transforms.made import MADE
from nflows.transforms.nonlinearities import PiecewiseRationalQuadraticCDF
from torch import nn

from .nflows_autoregressive import AffineAutoregressive, SplineAutoregressive, affine_refusal
from .nflows_coupling import Coupling
from .nflows_elementwise import ElementwiseSpline
from .nflows_functions import (
    patch_functions,
    rational_quadratic_spline,
    unconstrained_rational_quadratic_spline,
)
from .nflows_made import Made, made_refusal
from .nflows_settings import spline_refusal
from .swap import PureLayer, overridden

__all__ = ["match", "patch_functions", "rational_quadratic_spline", "unconstrained_rational_quadratic_spline"]

_CONTAINERS = (CompositeTransform, InverseTransform, MultiscaleCompositeTransform)
_BOTH = frozenset({"forward", "inverse"})
_AUTOREGRESSIVE = _BOTH | {"_elementwise_forward", "_elementwise_inverse", "_output_dim_multiplier"}

# class → our layer, the methods of the class that the layer bypasses, why a module cannot have the layer
_LAYERS = {
    PiecewiseRationalQuadraticCouplingTransform: (
        Coupling,
        _BOTH | {
            "_coupling_transform", "_coupling_transform_forward", "_coupling_transform_inverse", "_piecewise_cdf",
            "_transform_dim_multiplier", "num_identity_features", "num_transform_features",
        },
        lambda m: spline_refusal(m, m.num_bins),
    ),
    PiecewiseRationalQuadraticCDF: (
        ElementwiseSpline,
        _BOTH | {"_spline"},
        lambda m: spline_refusal(m, m.unnormalized_widths.shape[-1]),
    ),
    MaskedPiecewiseRationalQuadraticAutoregressiveTransform: (
        SplineAutoregressive,
        _AUTOREGRESSIVE | {"_elementwise"},
        lambda m: spline_refusal(m, m.num_bins),
    ),
    MaskedAffineAutoregressiveTransform: (
        AffineAutoregressive,
        _AUTOREGRESSIVE | {"_unconstrained_scale_and_shift"},
        affine_refusal,
    ),
    MADE: (Made, frozenset({"forward"}), made_refusal),
}  # fmt: skip


def match(module: nn.Module) -> type[PureLayer] | str | None:
    """The layer of fast methods for a module of nflows, why it is left alone, or None: not a transform of nflows."""
    for base, (layer, methods, refusal) in _LAYERS.items():
        if isinstance(module, base):
            return overridden(module, base, methods) or refusal(module) or layer
    if isinstance(module, Transform) and not isinstance(module, _CONTAINERS):
        return "no fused path for this class"
    return None

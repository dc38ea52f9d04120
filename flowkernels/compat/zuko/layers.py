"""The methods of accelerated lazy transforms of zuko: they return transforms that run on the fused kernels.

zuko is imported when one of them is called: the table of its classes is read without it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flowkernels.compat.engine.patch import FastMethods


class MaskedAutoregressive(FastMethods):
    """The methods of an accelerated MaskedAutoregressiveTransform."""

    def forward(self, c: Tensor | None = None) -> Any:
        from .transforms import AutoregressiveTransform

        return AutoregressiveTransform(self, c)


class GeneralCoupling(FastMethods):
    """The methods of an accelerated GeneralCouplingTransform."""

    def forward(self, c: Tensor | None = None) -> Any:
        from .transforms import CouplingTransform

        return CouplingTransform(self, c)


class ElementWise(FastMethods):
    """The methods of an accelerated ElementWiseTransform."""

    def forward(self, c: Tensor | None = None) -> Any:
        from .transforms import DependentTransform

        return DependentTransform(self, c)


def refusal(layer: Any) -> str | None:
    """Why a layer's map has no kernel, or None."""
    from .univariate import univariate_of

    univariate = univariate_of(layer)
    return univariate if isinstance(univariate, str) else None


def elementwise_refusal(layer: Any) -> str | None:
    """Why an elementwise layer gains nothing, or None."""
    from flowkernels.ops import Affine

    from .univariate import univariate_of

    univariate = univariate_of(layer)
    if isinstance(univariate, str):
        return univariate
    return "its affine map alone is as fast in zuko" if type(univariate) is Affine else None

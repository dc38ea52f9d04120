"""What a layer does to one feature: a monotone map with P parameters. The maps themselves are values of the ops."""

from __future__ import annotations

import inspect

from flowkernels._renamed import warn_renamed
from flowkernels.ops import RQS, Affine, Mixture, MixtureAffine, Polynomial, SinhArcsinh
from flowkernels.ops.univariate import Univariate

__all__ = [
    "RQS",
    "Affine",
    "Mixture",
    "MixtureAffine",
    "Polynomial",
    "SinhArcsinh",
    "Univariate",
    "check_univariate",
]


def check_univariate(name: str, univariate: object) -> None:
    """Raises unless it can be the map of a layer."""
    has_params = hasattr(univariate, "n_params")
    if not has_params and hasattr(univariate, "params_per_feature"):
        warn_renamed(f"{type(univariate).__name__}.params_per_feature", "n_params")
        has_params = True
    if inspect.isclass(univariate) or not callable(univariate) or not has_params:
        given = univariate.__qualname__ if inspect.isclass(univariate) else repr(univariate)
        raise TypeError(f"{name}: univariate must be a map of one feature, e.g. RQS() or Affine(), got {given:.60}")

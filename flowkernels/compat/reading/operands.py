"""Which inputs a fused map takes as they are: what a library would broadcast, promote or refuse is left to it."""

from __future__ import annotations

from torch import Tensor

from flowkernels.ops._checks import in_autocast


def mixed(x: Tensor, parameters: Tensor) -> bool:
    """Whether two dtypes meet: integers, or another precision. Under autocast floating ones always may."""
    if x.dtype is parameters.dtype:
        return False
    return not (x.is_floating_point() and in_autocast(x))

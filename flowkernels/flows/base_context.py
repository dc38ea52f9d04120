"""The context of flows of which only the base may take one."""

from __future__ import annotations

from torch import Tensor

from flowkernels.distributions import Base, StandardNormal


def check_taken(name: str, base: Base, embedded: Tensor | None) -> Tensor | None:
    """The context; raises where the base is known to take none."""
    # A context that is ignored would be a wrong density without a word; of a base of your own nothing is known.
    takes_none = type(base) is StandardNormal or getattr(base, "context_features", None) == 0
    if embedded is not None and takes_none:
        raise ValueError(f"{name}: context must be None where the base takes none, got {list(embedded.shape)}")
    return embedded

"""Markov chains that ran side by side."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from . import diagnostics


class Chains(NamedTuple):
    """States ``x [steps, chains, D]``, their log-targets ``[steps, chains]``, the share of accepted proposals, the step
    size (NaN where there is none) and how many proposals had no number for an energy."""

    x: Tensor
    log_target: Tensor
    rate: float
    step_size: float
    divergences: int

    @property
    def rhat(self) -> Tensor:
        """`rhat` of each feature."""
        return diagnostics.rhat(self.x)

    @property
    def ess(self) -> Tensor:
        """`ess` of each feature."""
        return diagnostics.ess(self.x)

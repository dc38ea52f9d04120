"""What a residual map is apart from its tensors."""

from __future__ import annotations

from typing import NamedTuple


class ResidualSpec(NamedTuple):
    activation: str
    preactivated: bool  # an activation in front of the first layer too
    has_betas: bool  # a tensor of numbers behind the layers
    log_det: str  # "exact" or "series", whose weights and noise are the last tensors
    neumann: bool
    lipschitz: float
    tolerance: float
    inverse: bool

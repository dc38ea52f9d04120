"""The activations that masked networks know, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def _identity(x: Tensor) -> Tensor:
    return x


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": _identity,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,  # slope 0.01
    "elu": F.elu,  # alpha 1
    "gelu": F.gelu,  # by erf, not its tanh approximation
    "silu": F.silu,
    "tanh": torch.tanh,
}


def check_activation(op: str, activation: object) -> None:
    """Raises unless `activation` is a name in the table."""
    if not isinstance(activation, str) or activation not in FUNCTIONS:
        raise ValueError(f"{op}: activation must be one of {', '.join(FUNCTIONS)}, got {activation!r}")

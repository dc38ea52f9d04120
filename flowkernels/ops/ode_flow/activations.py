"""The activations of a vector field: the value and the slope, both differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[Tensor, Tensor]


def _identity(z: Tensor) -> Pair:
    return z, torch.ones_like(z)


def _tanh(z: Tensor) -> Pair:
    h = torch.tanh(z)
    return h, 1 - h.square()


def _elu(z: Tensor) -> Pair:
    below = z.clamp(max=0)  # an exponential that is not used must not overflow: its gradient would be inf * 0
    return torch.where(z > 0, z, below.expm1()), torch.where(z > 0, torch.ones_like(z), below.exp())


def _softplus(z: Tensor) -> Pair:
    return F.softplus(z, threshold=40), torch.sigmoid(z)


def _silu(z: Tensor) -> Pair:
    s = torch.sigmoid(z)
    return z * s, s * (1 + z * (1 - s))


def _gelu(z: Tensor) -> Pair:
    below = 0.5 * torch.erfc(z * -math.sqrt(0.5))
    density = (-0.5 * z.square()).exp() / math.sqrt(2 * math.pi)
    return z * below, below + z * density


def _by_pieces(z: Tensor, negative: float) -> Pair:
    slope = torch.where(z > 0, z.new_ones(()), z.new_full((), negative))
    slope = torch.where(z.isnan(), z.detach(), slope)
    return torch.where(z > 0, z, negative * z), slope


def _relu(z: Tensor) -> Pair:
    return _by_pieces(z, 0.0)


def _leaky_relu(z: Tensor) -> Pair:
    return _by_pieces(z, 0.01)


# In the order of csrc/ode_flow/ode_flow.h.
TABLE: dict[str, Callable[[Tensor], Pair]] = {
    "identity": _identity, "relu": _relu, "leaky_relu": _leaky_relu, "elu": _elu, "gelu": _gelu, "silu": _silu,
    "tanh": _tanh, "softplus": _softplus,
}  # fmt: skip
NAMES = tuple(TABLE)

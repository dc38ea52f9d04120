"""The definition of the residual conditioner in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class ResidualNetSpec(NamedTuple):
    blocks: int
    context: bool

    @property
    def adds(self) -> tuple[bool, ...]:
        """Which layers have a term added: with a context, the first."""
        return (self.context,)

    @property
    def gates(self) -> tuple[bool, ...]:
        """Which layers have a gate: with a context, the second of each block."""
        return tuple(self.context and 0 < i <= 2 * self.blocks and i % 2 == 0 for i in range(2 * self.blocks + 2))


IS_SLOW = False  # its time is in the products; `backends.pick` does not warn


def why_not(spec: ResidualNetSpec, *tensors: Tensor) -> str | None:
    return None


def split(spec: ResidualNetSpec, tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], Tensor | None, list[Tensor]]:
    """x, the weights and biases in turn, the term added to the first layer, and the gates."""
    x, *rest = tensors
    n = 2 * (2 * spec.blocks + 2)
    if not spec.context:
        return x, rest, None, []
    return x, rest[:n], rest[n], rest[n + 1 :]


def fwd(spec: ResidualNetSpec, *tensors: Tensor) -> tuple[Tensor]:
    x, weights, add, gates = split(spec, tensors)
    layers = iter(zip(weights[::2], weights[1::2], strict=True))
    h = F.linear(x, *next(layers))
    if add is not None:
        h = h + add
    for block in range(spec.blocks):
        t = F.linear(F.relu(h), *next(layers))
        t = F.linear(F.relu(t), *next(layers))
        h = h + (t * gates[block] if gates else t)
    return (F.linear(h, *next(layers)),)

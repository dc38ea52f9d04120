"""The definition of the recurrent inverse in plain PyTorch: a cell, a product and the inverse of a map per feature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkernels.ops.univariate import Map

IS_SLOW = False


class RecurrentSpec(NamedTuple):
    univariate: Map  # of the direction x → z


def gru_step(read: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """torch's GRU cell; ``read [..., 3H]`` is what the input adds to the gates reset, update and new."""
    kept = F.linear(state, weight, bias)
    H = state.shape[-1]
    reset, update = torch.sigmoid(read[..., : 2 * H] + kept[..., : 2 * H]).chunk(2, -1)
    new = torch.tanh(read[..., 2 * H :] + reset * kept[..., 2 * H :])
    return new + update * (state - new)


def by_steps(
    order: Sequence[int],
    state: Tensor,
    solve: Callable[[int, Tensor], tuple[Tensor, Tensor]],
    step: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """x ``[..., D]`` and ladj: ``solve(d, state)`` is feature d, ``[..., 1]``, ``step`` the state that has read it."""
    found, ladj = {}, None
    for i, d in enumerate(order):
        found[d], part = solve(d, state)
        ladj = part if ladj is None else ladj + part
        if i + 1 < len(order):
            state = step(found[d], state)
    assert ladj is not None  # there is a feature
    return torch.cat([found[d] for d in range(len(order))], -1), ladj


def fwd(spec: RecurrentSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """z, state, gates, value, weight and bias of the cell and of the last layer → x and ladj."""
    z, state, gates, value, weight, bias, last, last_bias = tensors
    inverse = spec.univariate.inverted()

    def solve(d: int, state: Tensor) -> tuple[Tensor, Tensor]:
        x, ladj = inverse.reference(z[..., d : d + 1], F.linear(state, last, last_bias).unsqueeze(-2))
        return x.to(z.dtype), ladj

    def step(x: Tensor, state: Tensor) -> Tensor:
        return gru_step(gates + x * value, state, weight, bias)

    return by_steps(range(z.shape[-1]), state.expand(*z.shape[:-1], state.shape[-1]), solve, step)

"""The definition of the residual conditioner in plain PyTorch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class ResidualNetSpec(NamedTuple):
    blocks: int
    context: bool


IS_SLOW = False  # its time is in the products; `backends.pick` does not warn


def why_not(spec: ResidualNetSpec, *tensors: Tensor) -> str | None:
    return None


def fwd(spec: ResidualNetSpec, *tensors: Tensor) -> tuple[Tensor]:
    """x, [context,] then (weight, bias) of: initial, each block's (linear, linear [, gate]), final."""
    x, *rest = tensors
    context = rest.pop(0) if spec.context else None
    layers = iter(zip(rest[::2], rest[1::2], strict=True))
    h = F.linear(x if context is None else torch.cat((x, context), dim=-1), *next(layers))
    for _ in range(spec.blocks):
        t = F.linear(F.relu(h), *next(layers))
        t = F.linear(F.relu(t), *next(layers))
        if context is not None:
            t = t * torch.sigmoid(F.linear(context, *next(layers)))
        h = h + t
    return (F.linear(h, *next(layers)),)

"""The settings of a monotone network, and the plain network that one of positive weights is."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flowkernels.ops.polynomial.quadrature import nodes_and_weights

FORMS = ("integral", "positive")
SLOPES = ("integrand", "quadrature")
MAX_NODES = 128
MAX_LAYERS = 16  # kMaxMonotoneLayers of csrc/monotone_net/monotone_net.h
INCREASING = ("identity", "leaky_relu", "elu", "tanh")


class MonotoneSpec(NamedTuple):
    form: str
    activation: str
    nodes: int
    slope: str
    log_bound: float
    shift: bool  # the last number of the signal is added to y, and the net does not see it
    bound: float
    inverse: bool


@torch.compiler.assume_constant_result
@functools.lru_cache(maxsize=256)
def rule(nodes: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The nodes on [0, 1] of Gauss-Legendre quadrature, and their weights."""
    return nodes_and_weights(nodes)


def signs(units: int, like: Tensor) -> Tensor:
    """1 for the first half of the units, whose activation is convex below 0, -1 for the others, whose is concave."""
    return torch.where(torch.arange(units, device=like.device) < (units + 1) // 2, 1.0, -1.0).to(like.dtype)


def plain(spec: MonotoneSpec, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Weights and biases of the network as it is run, [D, out, in] and [D, out], or without D.

    That of positive weights: abs(W), with act(z) for the first half of the units and -act(-z) for the others. These are
    units of act with the signs of what comes in and of what goes out turned.
    """
    if spec.form == "integral":
        return list(tensors)
    found: list[Tensor] = []
    before = None
    n = len(tensors) // 2
    for k in range(n):
        weight, bias = tensors[2 * k].abs(), tensors[2 * k + 1]
        if before is not None:
            weight = weight * before
        before = None
        if k < n - 1:
            before = signs(bias.shape[-1], bias)
            weight, bias = weight * before.unsqueeze(-1), bias * before
        found += [weight, bias]
    return found


def plain_grads(spec: MonotoneSpec, tensors: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients of the weights and biases as they were given, of those of the network as it is run."""
    if spec.form == "integral":
        return list(grads)
    out: list[Tensor | None] = []
    before, n = None, len(tensors) // 2
    for k in range(n):
        weight, bias = tensors[2 * k], tensors[2 * k + 1]
        g_weight, g_bias = grads[2 * k], grads[2 * k + 1]
        after = signs(bias.shape[-1], bias) if k < n - 1 else None
        if g_weight is not None:
            g_weight = g_weight * weight.sign()
            g_weight = g_weight if before is None else g_weight * before
            g_weight = g_weight if after is None else g_weight * after.unsqueeze(-1)
        if g_bias is not None and after is not None:
            g_bias = g_bias * after
        out += [g_weight, g_bias]
        before = after
    return out

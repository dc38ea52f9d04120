"""Bernstein polynomials on a box: the formula in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkernels.ops._root import root

# Far below the spacing of y, and large enough that its logarithm is a number: softplus is 0 at -1e4.
LEAST = {torch.float32: 1e-12, torch.float64: 1e-24}


def differences(spec: Any, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The steps from coefficient to coefficient ``[..., N]``, all positive, and the first and the last coefficient."""
    if spec.tails == "identity":
        end = torch.full_like(params[..., :2], spec.end)
        steps = torch.softmax(params, dim=-1) * spec.free
        last = torch.full_like(params[..., 0], spec.bound)
        return torch.cat((end, steps, end), dim=-1), -last, last
    steps = F.softplus(params[..., 1:], threshold=50.0).clamp(min=LEAST[params.dtype])
    steps = torch.cat((steps[..., :1], steps, steps[..., -1:]), dim=-1)
    first = params[..., 0] - spec.lowered
    return steps, first, first + steps.sum(-1)


def value(spec: Any, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """y and dy/dx."""
    return _at(spec, x, *differences(spec, params))


def _at(spec: Any, x: Tensor, steps: Tensor, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    N, bound = steps.shape[-1], spec.bound
    # From the nearer end, at which everything is a sum of positive numbers: f(t) = -f(1 - t) with the steps reversed.
    mirrored = x > 0
    u = (bound - x.abs()) / (2 * bound)
    inside = u.clamp(min=spec.edge)
    steps = torch.where(mirrored.unsqueeze(-1), steps.flip(-1), steps)
    before = F.pad(steps.cumsum(-1)[..., :-1], (1, 0))
    rest = 1 - inside
    basis = _binomials(N - 1, x) * (inside / rest).unsqueeze(-1) ** torch.arange(N, device=x.device)
    low = rest ** (N - 1)
    slope = low * (basis * steps).sum(-1)
    y = torch.where(mirrored, -last, first) + (low * (basis * before).sum(-1) + inside * slope)
    slope = slope * N
    if spec.tails == "linear":
        y = y + slope * (u - inside)
    y = torch.where(mirrored, -y, y)
    slope = slope / (2 * bound)
    if spec.tails == "identity":
        outside = u <= spec.edge
        y = torch.where(outside, x + x.sign() * (2 * bound * spec.edge), y)
        slope = torch.where(outside, torch.ones_like(slope), slope)
    return y, slope


def _binomials(n: int, like: Tensor) -> Tensor:
    """n over k, k from 0 to n; whole numbers, where float64 has them."""
    k = torch.arange(n, device=like.device, dtype=torch.float64)
    return F.pad(((n - k) / (k + 1)).cumprod(-1).round(), (1, 0), value=1.0).to(like.dtype)


def solve(spec: Any, y: Tensor, params: Tensor) -> Tensor:
    """x."""
    parts = differences(spec, params)
    high = torch.full_like(y, spec.bound * (1 - 2 * spec.edge))
    low = -high

    def at(m: Tensor) -> tuple[Tensor, Tensor]:
        return _at(spec, m, *parts)

    if spec.tails == "identity":
        beyond = 2 * spec.bound * spec.edge
        below, above = y <= -spec.bound, y >= spec.bound
        under, over = y + beyond, y - beyond
    else:
        bottom, of_bottom = at(low)
        top, of_top = at(high)
        below, above = y <= bottom, y >= top
        under, over = low + (y - bottom) / of_bottom, high + (y - top) / of_top
    target = torch.where(below | above, torch.zeros_like(y), y)
    found = root(at, target, low, high, target.clamp(low, high), lambda a, b: 0.5 * (a + b))
    return torch.where(below, under, torch.where(above, over, found))

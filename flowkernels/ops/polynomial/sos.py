"""Sums of squared polynomials, integrated: the formula in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkernels.ops._root import root

from .quadrature import RULES


def _split(spec: Any, params: Tensor) -> tuple[Tensor, Tensor | float]:
    """Coefficients ``[..., K, L + 1]``, and what is added."""
    n = spec.terms * (spec.degree + 1)
    return params[..., :n].unflatten(-1, (spec.terms, spec.degree + 1)), params[..., n] if spec.shift else 0.0


def _at(spec: Any, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the density from 0 to x, and the density at x; both are sums of positive numbers."""
    nodes, weights = RULES[spec.degree]
    v = x / spec.bound
    u = torch.stack([v * t for t in (*nodes, 1.0)], dim=-1).unsqueeze(-2)
    p = a[..., -1:]
    for j in range(spec.degree - 1, -1, -1):
        p = p * u + a[..., j : j + 1]
    if spec.degree == 0:
        p = p.expand(*p.shape[:-1], 2)
    density = (p + spec.centre).square().sum(-2) * spec.weight + spec.slope
    mean = sum(w * density[..., i] for i, w in enumerate(weights))
    return mean, density[..., -1]  # type: ignore[return-value]


def value(spec: Any, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """y and dy/dx."""
    a, shift = _split(spec, params)
    far, end = (1e300, 1e290) if x.dtype is torch.float64 else (1e37, 1e30)
    x = x.clamp(-far, far)
    mean, density = _at(spec, x, a)
    return (x * mean.clamp(max=far) + shift).clamp(-end, end), density.clamp(max=far)


def solve(spec: Any, y: Tensor, params: Tensor) -> Tensor:
    """x. As y grows from ``shift`` at 0 with a slope of ``slope`` at the least, |x| <= |y - shift| / slope."""
    a, shift = _split(spec, params)
    off = y - shift
    size, sign = off.abs(), torch.where(off < 0, -1.0, 1.0).to(y.dtype)
    most = 1e300 if y.dtype is torch.float64 else 1e37
    high = (size / spec.slope).clamp(max=spec.bound if spec.bounded else most)
    least = 1 / most

    def at(m: Tensor) -> tuple[Tensor, Tensor]:
        mean, density = _at(spec, sign * m, a)
        return m * mean, density

    def middle(low: Tensor, high: Tensor) -> Tensor:  # of the logarithms: the bracket has many powers of ten
        return low.clamp(min=least).sqrt() * high.sqrt()

    found = root(at, size, torch.zeros_like(size), high, torch.minimum(size, high), middle)
    return sign * torch.where(size == 0, size, found)

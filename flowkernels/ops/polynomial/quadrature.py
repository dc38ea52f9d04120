"""Gauss-Legendre quadrature: n points that integrate polynomials of degree 2n - 1 exactly."""

from __future__ import annotations

import math

MOST_NODES = 16


def nodes_and_weights(n: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """On [0, 1], the nodes in ascending order; the weights are positive and sum to 1.

    >>> nodes_and_weights(1)
    ((0.5,), (1.0,))
    """
    nodes, weights = [], []
    for i in range(n):
        z = -math.cos(math.pi * (i + 0.75) / (n + 0.5))
        for _ in range(8):  # Newton on the Legendre polynomial, from a guess that is good to three digits
            value, slope = _legendre(n, z)
            z -= value / slope
        slope = _legendre(n, z)[1]
        nodes.append((1 + z) / 2)
        weights.append(1 / ((1 - z * z) * slope * slope))
    return tuple(nodes), tuple(weights)


def _legendre(n: int, z: float) -> tuple[float, float]:
    """P_n and its derivative at z, |z| < 1."""
    before, value = 1.0, z
    for k in range(2, n + 1):
        before, value = value, ((2 * k - 1) * z * value - (k - 1) * before) / k
    return value, n * (z * value - before) / (z * z - 1)


# By n - 1. Made here, as a compiler cannot see through a cache; it takes 2 ms.
RULES = [nodes_and_weights(n) for n in range(1, MOST_NODES + 1)]

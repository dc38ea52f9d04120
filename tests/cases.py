"""Shapes and settings that have broken kernels before, or would. Shared by tests and benchmarks."""

from __future__ import annotations

import itertools
from typing import NamedTuple


class Shape(NamedTuple):
    """Shape of x, [..., D], and why it is listed."""

    name: str
    x: tuple[int, ...]
    why: str


SHAPES = (
    Shape("one", (1, 1), "the smallest: every lane but one is padding"),
    Shape("vector", (5,), "no leading dim: ladj is a scalar"),
    Shape("no-rows", (0, 3), "an empty last batch"),
    Shape("no-rows-inside", (4, 0, 3), "an empty dim that is not the first"),
    Shape("no-features", (4, 0), "D = 0: ladj is a sum over nothing"),
    Shape("column", (37, 1), "D = 1: one row per lane"),
    Shape("one-row", (1, 37), "one row across several blocks of lanes"),
    *(
        Shape(f"lanes{lanes}{sign:+d}", (lanes + sign, 1), "one below, at or above a block of lanes")
        for lanes, sign in itertools.product((2, 4, 8, 16), (-1, 0, 1))
    ),
    Shape("prime-7", (11, 7), "rows that straddle blocks of lanes"),
    Shape("prime-33", (5, 33), "just longer than the widest block"),
    Shape("prime-129", (3, 129), "just longer than a power of two"),
    Shape("group-1", (2, 511), "one below the kernel's group of 512 elements"),
    Shape("group", (3, 512), "a row that fills a group exactly"),
    Shape("group+1", (3, 513), "a row longer than the buffer of ladj: summed on the way"),
    Shape("groups", (1030, 2), "several groups, the last one short"),
    Shape("threads", (2500, 3), "enough work for two threads"),
    Shape("two-leading", (3, 5, 4), "two leading dims"),
    Shape("many-leading", (2, 1, 3, 1, 2, 1, 2, 1, 3, 2), "nine leading dims, some of size one"),
)

# K: none to search, one knot, odd, usual, powers of two, both sides of the switch from
# accumulating selection to binary search (64), the largest.
BINS = (1, 2, 3, 5, 8, 16, 47, 48, 63, 64, 128)

TAILS = ("linear", "circular", None)
PARAMETRIZATIONS = ("softmax", "soft_clip")


# Every tail, and linear rational splines under the two ends of the list of params.
KINDS = {
    **{f"{tails}": {"tails": tails} for tails in TAILS},
    "order-linear": {"order": "linear"},
    "order-linear-circular": {"order": "linear", "tails": "circular"},
}


def n_params(bins: int, tails: str | None, order: str = "quadratic", parametrization: str = "softmax") -> int:
    """P: 3K-1 (linear tails), 3K (circular), 3K+1 (none); K more of order "linear", 2 fewer of "half_ends"."""
    found = (4 if order == "linear" else 3) * bins + {"linear": -1, "circular": 0, None: 1}[tails]
    return found - 2 if parametrization == "half_ends" else found

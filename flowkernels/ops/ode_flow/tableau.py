"""The Runge-Kutta methods, as tables."""

from __future__ import annotations

from typing import NamedTuple


class Tableau(NamedTuple):
    """x' = x + h sum b_i k_i, where k_i = f(t + c_i h, x + h sum_{j < i} a_ij k_j)."""

    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    error: tuple[float, ...] = ()  # of a pair: b less that of the other order, the slope at x' last


_B = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
_OTHER = (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)

SOLVERS = {
    "euler": Tableau(1, (0.0,), ((),), (1.0,)),
    "rk4": Tableau(
        4, (0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
    ),
    "dopri5": Tableau(
        5, (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
        ((), (1 / 5,), (3 / 40, 9 / 40), (44 / 45, -56 / 15, 32 / 9),
         (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
         (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656)),
        _B, tuple(b - o for b, o in zip((*_B, 0.0), _OTHER, strict=True)),
    ),
}  # fmt: skip

"""How far a row may be from the truth before its time means nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Distance(NamedTuple):
    """The largest error, as a fraction of the largest value, and its 2-norm, as a fraction of the value's."""

    largest: float | None = None
    norm: float | None = None

    def __str__(self) -> str:
        parts = ((self.largest, "of its largest value"), (self.norm, "of its 2-norm"))
        return " and ".join(f"{part:.1e} {of}" for part, of in parts if part is not None)


def distance(value: Tensor, target: Tensor, least: float = 0.0) -> Distance:
    """`least` is the smallest of largest values that counts: beside it every error is small."""
    error = value.double() - target
    return Distance(
        error.abs().max().item() / max(least, target.abs().max().item(), 1e-300),
        error.norm().item() / max(target.norm().item(), 1e-300),
    )


def assert_close(
    row: str, quantity: str, value: Tensor, target: Tensor, bound: Distance, least: float = 0.0
) -> Distance:
    """The distance of a row's value from the truth.

    Raises:
        AssertionError: the row is wrong: it has another shape, is not finite or beyond one of the bounds.
    """
    assert value.shape == target.shape, f"{row}: {quantity} must be {list(target.shape)}, got {list(value.shape)}"
    found = distance(value, target, least)
    limits = [(error, limit) for error, limit in zip(found, bound, strict=True) if limit is not None]
    if not all(error <= limit for error, limit in limits):  # a NaN is not
        raise AssertionError(f"{row}: {quantity} must be within {bound} of the float64 truth, got {found}")
    return found


def worst_of_map(
    row: str, outputs: Sequence[Tensor], truth: Sequence[Tensor], value: Distance, gradient: Distance
) -> float:
    """Asserts that y, ladj and gradients are close to the truth; → the largest relative error of y, ladj."""
    for i in range(2, len(outputs)):
        assert_close(row, f"gradient {i - 2}", outputs[i], truth[i], gradient, least=1.0)
    worst = 0.0
    for what, found, wanted in zip(("y", "ladj"), outputs[:2], truth[:2], strict=True):
        worst = max(worst, assert_close(row, what, found, wanted, value, least=1.0).largest or 0.0)
    return worst

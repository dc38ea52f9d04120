"""Numbers, shapes and memory layouts from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")
SIZES = (0, 1, 1, 2, 2, 3, 4, 5, 7, 8, 11, 13, 16, 17)
# Usual numbers; halves, whose sums are exact and tie; large, small and no numbers at all.
KINDS = ("usual",) * 12 + ("halves", "halves", "large", "small", "zero")
DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
GUARD = 16  # elements before and after a view that nobody may touch


class Draw:
    """A source of choices, and of one kind of numbers."""

    def __init__(self, name: str, seed: int) -> None:
        self._random = random.Random(f"{name} {seed}")
        self._numbers = np.random.Generator(np.random.SFC64(self._random.getrandbits(64)))
        self.kind = self.choice(KINDS)

    def choice(self, of: Sequence[T]) -> T:
        return of[int(self._random.random() * len(of))]

    def chance(self, p: float) -> bool:
        return self._random.random() < p

    def int(self, low: int, high: int) -> int:
        """One of low to high."""
        return low + int(self._random.random() * (high - low + 1))

    def uniform(self, low: float, high: float) -> float:
        return low + self._random.random() * (high - low)

    def shuffled(self, of: Sequence[T]) -> list[T]:
        return self._random.sample(of, len(of))

    def some(self, of: Sequence[T]) -> list[T]:
        """Any of these, perhaps none."""
        p = self._random.random()
        return [v for v in of if self._random.random() < p]

    def seed(self) -> int:
        return self._random.getrandbits(63)

    # ---- shapes ----

    def size(self, low: int = 0, most: int = 40) -> int:
        """Small, often 1 or prime; now and then any."""
        if self.chance(0.08):
            return self.int(low, most)
        return max(low, self.choice(SIZES))

    def lead(self) -> tuple[int, ...]:
        """Leading dims; a few times in a hundred enough rows for several tiles."""
        if self.chance(0.03):
            return (self.int(60, 300),)
        n = self.choice((0, 1, 1, 1, 1, 1, 2, 2, 3))
        return tuple(self.choice((0, 1, 2, 3, 5)) if n > 1 else self.size() for _ in range(n))

    # ---- values ----

    def values(self, *shape: int, scale: float = 1.0) -> Tensor:
        """float64 numbers of this draw's kind; sometimes the same all along one dim, which can then be expanded."""
        found = self._numbers.standard_normal(shape)
        if self.kind == "halves":
            found = np.round(2 * found) / 2
        elif self.kind == "zero":
            found = np.zeros(shape)
        else:
            found = found * (scale * {"usual": 1.0, "large": 10.0, "small": 1e-3}[self.kind])
        if shape and self.chance(0.1):
            dim = self.int(0, len(shape) - 1)
            if shape[dim] > 1:
                found = np.repeat(found.take([0], dim), shape[dim], dim)
        return torch.from_numpy(np.asarray(found))

    def noise(self, shape: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.asarray(self._numbers.standard_normal(shape)))

    def among(self, values: Sequence[float], shape: Sequence[int]) -> Tensor:
        """Each element one of these."""
        at = self._numbers.integers(0, len(values), shape)
        return torch.from_numpy(np.asarray(np.asarray(values, dtype=np.float64)[at]))

    # ---- memory ----

    def laid_out(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The same values somewhere in a larger memory, under any strides, and that memory."""
        if t.layout is not torch.strided or t.is_meta:
            return t, t
        if self.chance(0.3):
            base = t.detach().clone(memory_format=torch.contiguous_format)
            return base, base
        order = list(range(t.dim()))
        if t.dim() == 4 and self.chance(0.3):
            order = [0, 2, 3, 1]  # torch.channels_last
        elif self.chance(0.4):
            order = self.shuffled(order)
        strides, narrow, stride = [0] * t.dim(), t, self.choice((1, 1, 1, 2, 3))
        for dim in reversed(order):
            n = t.shape[dim]
            if n == 1:
                strides[dim] = self.choice((0, 1, stride, 1000))  # that of a single element has no say
            elif n > 1 and self.chance(0.7) and _constant(t, dim):
                narrow = narrow.narrow(dim, 0, 1)
            else:
                strides[dim] = stride
                stride = stride * max(n, 1) + self.choice((0, 0, 0, 1, 6))
        extent = 1 + sum((n - 1) * s for n, s in zip(t.shape, strides, strict=True) if n > 1)
        base = torch.full((extent + 2 * GUARD,), _filler(t.dtype), dtype=t.dtype)
        at, negative = GUARD - self.int(0, 3), t.is_floating_point() and self.chance(0.1)
        base.as_strided(narrow.shape, strides, at).copy_(-narrow if negative else narrow)
        view = base.as_strided(t.shape, strides, at)
        return (torch._neg_view(view) if negative else view), base


def _constant(t: Tensor, dim: int) -> bool:
    return bool((t == t.narrow(dim, 0, 1)).all())


def _filler(dtype: torch.dtype) -> Any:
    """What shows where it is read."""
    if dtype.is_floating_point:
        return float("nan")
    return True if dtype is torch.bool else torch.iinfo(dtype).max

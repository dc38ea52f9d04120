"""Where an affine map finds its elements in x: another value than the map."""

from __future__ import annotations

import numbers
from typing import NamedTuple

from torch import Tensor

from flowkernels._arguments import count


class Layout(NamedTuple):
    """How many of the last dims of x are the event, and which part of the event's first dim is mapped.

    >>> import torch
    >>> from flowkernels.ops.affine.layout import Layout
    >>> Layout(start=1, stop=4, step=2).mapped(torch.arange(4))
    tensor([1, 3])
    """

    event_dims: int = 1
    # Which features (channels) are mapped, as a slice; stop 0: all of them.
    start: int = 0
    stop: int = 0
    step: int = 1

    def in_part(self) -> bool:
        return self.stop > 0

    def mapped(self, x: Tensor) -> Tensor:
        """The part of x, or of anything shaped like it, that is mapped."""
        if not self.in_part():
            return x
        return x[(..., slice(self.start, self.stop, self.step), *(slice(None),) * (self.event_dims - 1))]

    def others(self, x: Tensor) -> list[Tensor]:
        """The rest of x; all of it, the mapped part as well, where the rest is not a view or two."""
        n, dim = x.shape[-self.event_dims], x.dim() - self.event_dims
        if self.step == 1:
            ends = ((0, self.start), (self.stop, n - self.stop))
            return [x.narrow(dim, start, length) for start, length in ends if length > 0]
        last = self.start + (self.stop - 1 - self.start) // self.step * self.step
        if self.step == 2 and self.start < 2 and last + 2 >= n:  # nothing but what alternates with the part
            return [Layout(self.event_dims, 1 - self.start, n, self.step).mapped(x)]
        return [x]


FEATURES = Layout()


def layout_of(x: Tensor, part: slice | None, event_dims: int) -> Layout:
    """The layout of a call, checked."""
    start, stop, step = (0, 0, 1) if part is None else _bounds(x, part, event_dims)
    return Layout(count("ops.affine", "event_dims", event_dims), start, stop, step)


def _bounds(x: Tensor, part: slice, event_dims: int) -> tuple[int, int, int]:
    if not isinstance(part, slice):
        raise TypeError(f"ops.affine: part must be a slice, got {type(part).__name__} {part!r:.60}")
    ends = (part.start, part.stop, part.step)
    if part.step == 0 or not all(e is None or isinstance(e, numbers.Integral) for e in ends):
        raise ValueError(f"ops.affine: part must be a slice of integers, its step not 0, got {part}")
    if not isinstance(x, Tensor) or not isinstance(event_dims, numbers.Integral) or not 1 <= event_dims <= x.dim():
        return 0, 0, 1  # said by the checks that follow
    n = x.shape[-event_dims]
    chosen = range(n)[part]  # not part.indices(n), which torch 2.11 does not trace
    start, stop, step = chosen.start, chosen.stop, chosen.step
    if step < 1 or start >= stop:
        raise ValueError(f"ops.affine: part must select some of {n} features, forwards, got {part}")
    return start, stop, step

"""Which features of a layer are seen by its net, and which are mapped: one value, from a mask to the kernel."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels.ops._checks import without_flags
from flowkernels.ops._kept import Handled

At = tuple[Tensor, ...]  # the features that are seen and those that are mapped, as index tensors; and the way back


def _are_distinct(given: object, features: int) -> bool:
    if not isinstance(given, (tuple, list)) or any(isinstance(i, bool) or not isinstance(i, int) for i in given):
        return False
    return 0 < len(given) == len(set(given)) and all(0 <= i < features for i in given)


def as_slice(indices: Sequence[int]) -> slice | None:
    """The slice that selects exactly these indices, if there is one."""
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    if step < 1 or list(indices) != list(range(indices[0], indices[-1] + 1, step)):
        return None
    return slice(indices[0], indices[-1] + 1, step)


class Split(Handled):
    """Features that are seen, and features that are mapped, of so many. Equal to itself only; see `split_of`.

    Where the two are all features there are, `split` parts a tensor and `merge` puts it together in the cheapest way:
    neighbouring blocks are views and one cat, alternating features views and one stack, strided ones views; anything
    else is gathered by index. Views, with their backward pass, take between a half and an eighth of the time of index
    tensors on [4096, 64].

    Attributes:
        features, inputs, outputs: how many, those that are seen, those that are mapped.
        part: the slice of those that are mapped, where it is one.
    """

    def __init__(self, features: int, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        if isinstance(features, bool) or not isinstance(features, int) or features < 1:
            raise ValueError(f"ops.flow_layer: features must be an integer from 1 on, got {features!r:.60}")
        for name, given in (("inputs", inputs), ("outputs", outputs)):
            if not _are_distinct(given, features):
                contract = f"distinct features below {features}, at least one"
                raise ValueError(f"ops.flow_layer: {name} must be {contract}, got {given!r:.60}")
        self.features, self.inputs, self.outputs = features, tuple(inputs), tuple(outputs)
        self.part = as_slice(outputs)
        # Not compared with all features there are before their number is right: it may be any.
        self.is_partition = len(inputs) + len(outputs) == features and not set(inputs) & set(outputs)
        every, evens = ([*range(0, features, s)] if self.is_partition else [] for s in (1, 2))
        self._seen_first = inputs[0] < outputs[0]
        first, second = (inputs, outputs) if self._seen_first else (outputs, inputs)
        in_order = self.is_partition and [*first, *second] == every
        self._blocks = (len(first), len(second)) if in_order else None
        self._alternates = self.is_partition and features % 2 == 0 and list(first) == evens and features > 2
        slices = as_slice(inputs), self.part
        self._slices = slices if self.is_partition and None not in slices else None
        self._handles: dict[Any, Any] = {}

    @property
    def by_index(self) -> bool:
        """Whether parting a tensor takes index tensors."""
        return self._blocks is None and self._slices is None

    def _handle(self, module: Any) -> Any:
        return module.Columns(self.features, self.inputs, self.outputs)

    def split(self, x: Tensor, dim: int = -1, at: At = ()) -> tuple[Tensor, Tensor]:
        """x along ``dim`` → what is seen and what is mapped; views, but of ``at``: index tensors, where there are no
        views."""
        dim = dim % x.dim()
        if self._blocks is not None:
            first, second = x.split_with_sizes(self._blocks, dim)
        elif self._alternates:
            first, second = x.unflatten(dim, (self.features // 2, 2)).unbind(dim + 1)
        elif self._slices is not None:
            lead = (slice(None),) * dim
            return x[(*lead, self._slices[0])], x[(*lead, self._slices[1])]
        else:
            return split_by_index(x, dim, at)
        return (first, second) if self._seen_first else (second, first)

    def merge(self, seen: Tensor, mapped: Tensor, dim: int = -1, at: At = ()) -> Tensor:
        """The two parts in the order of the features again."""
        dim = dim % mapped.dim()
        pair = (seen, mapped) if self._seen_first else (mapped, seen)
        if self._blocks is not None:
            return torch.cat(pair, dim)
        if self._alternates:
            if seen.dtype is not mapped.dtype:
                wide = torch.promote_types(seen.dtype, mapped.dtype)
                pair = (pair[0].to(wide), pair[1].to(wide))
            return torch.stack(pair, dim + 1).flatten(dim, dim + 1)
        if self._slices is None:
            return merge_by_index(seen, mapped, dim, at)
        y = _empty(seen, mapped, dim)
        for part, s in zip((seen, mapped), self._slices, strict=True):
            assert s is not None  # for the type checker: none of the two is
            y = y.slice_scatter(part.to(y.dtype), dim, s.start, s.stop, s.step)
        return y

    # A copy of something that never changes is itself; a pickle carries the features only.
    def __deepcopy__(self, memo: object) -> Split:
        return self

    def __reduce__(self) -> Any:
        return split_of, (self.features, self.inputs, self.outputs)

    def __repr__(self) -> str:
        return f"Split({self.features}, {self.inputs}, {self.outputs})"


def split_by_index(x: Tensor, dim: int, at: At) -> tuple[Tensor, Tensor]:
    """x → what is seen and what is mapped, copies, by two index tensors whose values are never read."""
    return x.index_select(dim, at[0]), x.index_select(dim, at[1])


def merge_by_index(seen: Tensor, mapped: Tensor, dim: int, at: At) -> Tensor:
    """The parts of `split_by_index` in their order again; a third index tensor says where each feature is in both."""
    back = at[2:]
    if back:
        return torch.cat((seen, mapped), dim).index_select(dim, back[0])
    y = _empty(seen, mapped, dim)
    return y.index_copy(dim, at[0], seen.to(y.dtype)).index_copy(dim, at[1], mapped.to(y.dtype))


def _empty(seen: Tensor, mapped: Tensor, dim: int) -> Tensor:
    shape = [*mapped.shape]
    shape[dim] += seen.shape[dim]
    return seen.new_empty(shape, dtype=torch.promote_types(seen.dtype, mapped.dtype))


@functools.lru_cache(maxsize=1024, typed=True)  # 3.0 must not pass because 3 has
def _kept(features: int, inputs: Sequence[int], outputs: Sequence[int]) -> Split:
    return Split(features, inputs, outputs)  # torch cannot trace a cached class


def split_of(features: int, inputs: Sequence[int], outputs: Sequence[int]) -> Split:
    """The `Split` of these features; the same one for equal ones, so that what hangs on it is made once."""
    try:
        return _kept(features, *(without_flags(tuple(i) if isinstance(i, list) else i) for i in (inputs, outputs)))
    except TypeError:  # what cannot be hashed is no feature: it says which
        return Split(features, inputs, outputs)

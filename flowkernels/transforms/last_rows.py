"""Last layers whose rows a library has in its own order, or with a factor before them, as the ops have them.

All last layers of a run are turned at once: some eight calls of torch's, however many layers there are. They are turned
in every call and not kept by the weights' versions, which do not count what is written to a parameter's ``data``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flowkernels.ops._checks import DTYPES
from flowkernels.ops._kept import made_to_stay


class LastRows(NamedTuple):
    """Which rows of a last layer the op is given, and what stands before each."""

    rows: tuple[int, ...]  # for each row of the op's the library's, or -1: a row of 0
    factors: tuple[float, ...]
    given: int  # how many the library's layer has


class Turn:
    """What turns the last layers of a run: weight and bias of each, at these places among its tensors."""

    def __init__(self, lasts: Sequence[LastRows | None]) -> None:
        self._lasts = lasts
        self._shapes: list[torch.Size] = []
        self._device: torch.device | None = None
        self._groups: list[_Group] = []

    def __call__(self, tensors: tuple[Tensor, ...], places: Sequence[int]) -> tuple[Tensor, ...] | None:
        """``places``: of the last weights, each with its bias behind it; None where sizes are not those that were
        read."""
        shapes, device = [tensors[at].shape for at in places], tensors[places[0]].device
        if shapes != self._shapes or device != self._device:
            lasts = [n for n in self._lasts if n is not None]
            if [s[0] for s in shapes] != [n.given for n in lasts]:
                return None
            self._groups, self._shapes, self._device = made_to_stay(_grouped, lasts, shapes, device), shapes, device
        found = list(tensors)
        for group in self._groups:
            at = [places[i] for i in group.members]
            biases = [tensors[i + 1] for i in at]
            if [len(b) for b in biases] != group.given:
                return None
            turned = zip(at, group.turned([tensors[i] for i in at]), group.turned(biases), strict=True)
            for i, weight, bias in turned:
                found[i], found[i + 1] = weight, bias
        return tuple(found)


class _Group(NamedTuple):
    """Last layers of one width: which of them, their rows one behind another, and what each gives and has then."""

    members: list[int]
    given: list[int]
    sizes: list[int]
    rows: Tensor
    factors: dict[torch.dtype, Tensor]  # empty: all are 1
    lacks: bool  # whether some rows are of 0

    def turned(self, parts: list[Tensor]) -> Sequence[Tensor]:
        if self.lacks:
            parts = [*parts, parts[0].new_zeros(1, *parts[0].shape[1:])]
        found = (parts[0] if len(parts) == 1 else torch.cat(parts)).index_select(0, self.rows)
        if self.factors:
            factors = self.factors[found.dtype]
            found = found * (factors if found.dim() == 1 else factors[:, None])
        return found.split_with_sizes(self.sizes)


def _grouped(lasts: Sequence[LastRows], shapes: Sequence[torch.Size], device: torch.device) -> list[_Group]:
    found = []
    for width in dict.fromkeys(s[1] for s in shapes):
        members = [i for i, s in enumerate(shapes) if s[1] == width]
        given, sizes = [lasts[i].given for i in members], [len(lasts[i].rows) for i in members]
        rows: list[int] = []
        for i, before in zip(members, [sum(given[:n]) for n in range(len(given))], strict=True):
            rows += [sum(given) if row < 0 else before + row for row in lasts[i].rows]
        numbers = [f for i in members for f in lasts[i].factors]
        factors = {} if set(numbers) <= {1.0} else {
            dtype: torch.tensor(numbers, dtype=dtype, device="cpu").to(device) for dtype in DTYPES
        }  # fmt: skip
        index = torch.tensor(rows, device="cpu").to(device)
        found.append(_Group(members, given, sizes, index, factors, sum(given) in rows))
    return found

"""The rows that a flow is trained on: checked, and split into those for training and those for validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkernels._arguments import check_tensor, is_number
from flowkernels.flows import Flow


class Rows(NamedTuple):
    """``x [N, ...]`` and, of conditional flows, their ``context [N, ...]``."""

    x: Tensor
    context: Tensor | None

    def __len__(self) -> int:  # type: ignore[override]
        return len(self.x)

    def at(self, index: Tensor) -> Rows:
        """These rows, in this order."""
        index = index.to(self.x.device)
        return Rows(self.x[index], None if self.context is None else self.context[index.to(self.context.device)])

    def to(self, device: torch.device) -> Rows:
        """Where the flow is."""
        x, context = self
        return Rows(x.to(device, non_blocking=True), None if context is None else context.to(device, non_blocking=True))


def checked(where: str, flow: Flow, x: object, context: object, prefix: str = "") -> Rows:
    """Raises unless ``x`` are finite rows of what the flow models, and ``context`` as many rows beside them."""
    event, dtype = flow.event_shape, _dtype(flow)
    shape = f"[N, {', '.join(map(str, event))}]"
    for name, value in ((f"{prefix}x", x), (f"{prefix}context", context)):
        if value is None and name.endswith("context"):
            continue
        check_tensor(where, name, value)
        assert isinstance(value, Tensor)
        if name.endswith("x") and (value.dim() != len(event) + 1 or value.shape[1:] != event or len(value) == 0):
            raise ValueError(f"{where}: {name} must be {shape} with at least one row, got {list(value.shape)}")
        if value.is_floating_point() and value.dtype != dtype:
            raise TypeError(
                f"{where}: {name} must be of the dtype of the weights, {dtype}, got {value.dtype} (try "
                f"{name}.to({dtype}) or flow.to({value.dtype}))"
            )
        bad = (~value.isfinite()).flatten(1).any(1) if value.dim() > 1 else ~value.isfinite()
        if bad.any():
            first = int(bad.nonzero()[0, 0])
            raise ValueError(
                f"{where}: {name} must be finite, got NaN or infinity in {int(bad.sum())} of {len(bad)} rows, first in "
                f"row {first}"
            )
    assert isinstance(x, Tensor)
    if isinstance(context, Tensor) and (context.dim() < 2 or len(context) != len(x)):
        raise ValueError(f"{where}: {prefix}context must be [N, C] with N = {len(x)} as x, got {list(context.shape)}")
    return Rows(x, context if isinstance(context, Tensor) else None)


def split(where: str, flow: Flow, rows: Rows, validation: Any, draws: torch.Generator) -> tuple[Rows, Rows | None]:
    """The training rows and the validation rows, which are a share of all, drawn at random, or rows of their own."""
    if validation is None:
        return rows, None
    if not is_number(validation):
        return rows, _given(where, flow, rows, validation)
    share = float(validation)
    if not 0 <= share < 1:
        raise ValueError(f"{where}: validation must be a share from 0 to below 1, or tensors, got {validation!r:.60}")
    if share == 0:
        return rows, None
    n = max(1, round(share * len(rows)))
    if n >= len(rows):
        raise ValueError(f"{where}: x must have rows for training beside {n} for validation, got {len(rows)}")
    order = torch.randperm(len(rows), generator=draws, device="cpu")
    return rows.at(order[n:]), rows.at(order[:n])


def _given(where: str, flow: Flow, rows: Rows, validation: object) -> Rows:
    """Validation rows that the user chose: x, or a pair of x and context."""
    pair: Sequence[object] = validation if isinstance(validation, (tuple, list)) else (validation, None)
    if len(pair) != 2:
        raise ValueError(f"{where}: validation must be a share, x or (x, context), got {len(pair)} things")
    found = checked(where, flow, pair[0], pair[1], "validation ")
    if (found.context is None) is not (rows.context is None):
        must, got = ("no context", "one") if rows.context is None else ("a context, as x has", "none")
        raise ValueError(f"{where}: validation must have {must}, got {got}")
    return found


def _dtype(flow: Flow) -> torch.dtype:
    found = next((p.dtype for p in flow.parameters() if p.is_floating_point()), None)
    return torch.get_default_dtype() if found is None else found

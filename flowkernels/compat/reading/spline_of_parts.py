"""The spline as nflows' functions and their copies are called: three tensors of logits for every element."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkernels.ops import rqs
from flowkernels.ops._routing import _jit_tracing, _opaque, _transforms_active


def _adjacent(parts: tuple[Tensor, Tensor, Tensor]) -> bool:
    """True where the three tensors are neighbouring slices of the last dim of one tensor, as callers make them."""
    first = parts[0]
    if torch.compiler.is_compiling() or _transforms_active() or _jit_tracing() or _opaque(parts):
        return False
    end, storage = first.storage_offset(), first.untyped_storage().data_ptr()
    for t in parts:
        if t.shape[:-1] != first.shape[:-1] or t.stride()[:-1] != first.stride()[:-1] or t.dtype != first.dtype:
            return False
        if t.stride(-1) != 1 or t.storage_offset() != end or t.untyped_storage().data_ptr() != storage:
            return False
        end += t.shape[-1]
    return True


def joined(widths: Tensor, heights: Tensor, slopes: Tensor) -> Tensor:
    """widths | heights | slopes as [..., 1, P]; without a copy where no gradient is wanted and they are neighbours."""
    parts = (widths, heights, slopes)
    wants_grad = torch.is_grad_enabled() and any(t.requires_grad for t in parts)
    if not wants_grad and _adjacent(parts):
        P = sum(t.shape[-1] for t in parts)
        return widths.as_strided((*widths.shape[:-1], P), widths.stride()).unsqueeze(-2)
    return torch.cat(parts, dim=-1).unsqueeze(-2)


def spline_of_parts(inputs: Tensor, parts: tuple[Tensor, Tensor, Tensor], **settings: Any) -> tuple[Tensor, Tensor]:
    """`ops.rqs` of every element of ``inputs [...]``; ladj ``[...]`` too. ``parts``: widths, heights, slopes."""
    y, ladj = rqs(inputs.unsqueeze(-1), joined(*parts), bins=parts[0].shape[-1], **settings)
    return y.squeeze(-1), ladj

"""Containers of other libraries: which neighbouring layers of theirs run as one op, and what a report says of it.

What is read, kept and run is as for native flows (`transforms.runs`); a library brings a `Kind`, its readers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from flowkernels.nets.reading import Walk
from flowkernels.transforms.parts import KERNELS, Leaf, Run, forget
from flowkernels.transforms.runs import Kind, Said

from . import patch, thresholds

T = TypeVar("T")
__all__ = ["forget", "kind", "may_run", "or_called", "pays_with_graph", "settle"]


def may_run(x: Any) -> bool:
    """Whether x is what runs of layers take, a batch of rows; whether they run on it now is theirs to say."""
    if torch.compiler.is_compiling() or not isinstance(x, Tensor):
        return False
    return x.dim() == 2 and x.dtype in KERNELS


def kind(leaves: Callable[..., Sequence[Leaf]], read: Callable[..., Said]) -> Kind:
    """A library's `Kind`."""
    return Kind(leaves, or_called(read))


def or_called(read: Callable[..., T]) -> Callable[..., T | None]:
    """A reader, by which modules that were edited beyond what it knows are called, and say what is wrong."""

    @functools.wraps(read)
    def tried(walk: Walk, layer: Any, inverse: bool, has_context: bool) -> T | None:
        try:
            return read(walk, layer, inverse, has_context)
        except Exception:
            return None

    return tried


def pays_with_graph(run: Run, rows: int) -> bool:
    """Whether so many rows are enough for a run that records a graph: of few, the gradients of the weights take most of
    the time, which a library computes as fast."""
    return rows * 1_000_000 >= (run.mean_weights - 25_000) * thresholds.CHAIN_ROWS


def settle(containers: Sequence[tuple[str, nn.Module]], swapped: list[nn.Module]) -> list[str]:
    """Puts those back that were swapped and have no accelerated part; the note of a report on the others."""
    for _, container in reversed(containers):
        if container in swapped and not any(map(patch.is_fast_layer, container.modules())):
            patch.unswap(container)
            swapped.remove(container)
    inner = {m for _, container in containers for m in container.modules() if m is not container}
    found = [(path, n) for path, container in containers if container not in inner for n in _longest(container)]
    if not found:
        return []
    layers = ", ".join([str(n) for _, n in found[:_MOST]]) + (" …" if len(found) > _MOST else "")
    each = " each" if len(found) > 1 else ""
    return [f"{layers} layers{each} in one call (at {found[0][0] or 'the model'})"]


_MOST = 8  # runs whose layers a note counts


def _longest(container: Any) -> list[int]:
    """How many layers the runs of a container have, forward or, where these are more, backwards; of two or more."""
    layer = patch.layer_of(container)
    if layer is None:
        return []
    ways = [layer.pieces(container, inverse, has_context) for inverse in (False, True) for has_context in (False, True)]
    found = [[len(p) for p in way or () if isinstance(p, Run) and len(p) > 1] for way in ways]
    return max(found, key=sum)

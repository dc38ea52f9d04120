"""A whole step of Glow: every row on the same images, checked against float64, then timed."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.report import memory
from bench.suites import glow, peers

SHAPES = ((64, 3, 32, 32), (64, 12, 16, 16))
ROWS = [(op, name) for op in glow.OPS for name in glow.NAMES] + [(glow.OPS[0], glow.FLOOR)]
PARAMS = [
    pytest.param(shape, op, name, id=peers.row_id("glow", "x".join(map(str, shape)), op, name))
    for shape in SHAPES
    for op, name in ROWS
]


@functools.lru_cache(maxsize=1)
def _images(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("shape", "op", "name"), PARAMS)
def bench_glow_step(
    shape: tuple[int, ...],
    op: str,
    name: str,
    checked: Callable[..., float],
    timed: Callable[..., None],
    quick: bool,
) -> None:
    library, compiled = name.split()[0], name.endswith("compiled")
    if library in ("nflows", "normflows") and not importlib.util.find_spec(library):
        pytest.skip(f"{library} is not installed")
    shape = (max(2, shape[0] // 32), *shape[1:]) if quick else shape
    x = _images(shape)
    place = ("Glow step", "x".join(map(str, shape)), op, name)
    if name == glow.FLOOR:
        timed(glow.conditioner_alone(shape[1], x), *place)
        return
    step = glow.build(name, shape[1], x)

    def error() -> float:
        return glow.worst_error(name, op, glow.values(step, op, x), glow.float64_truth(name, op, x))

    figures = {"error": checked(error, *place, compiled_peer=compiled)}
    if compiled:
        figures["graph_breaks"] = peers.graph_breaks()
    call = glow.bind(step, op, x)
    if op == glow.OPS[2]:
        figures |= {
            "saved_bytes": memory.saved_bytes(lambda: glow.loss(step, x), resident=tuple(step.module.parameters())),
            "peak_bytes": memory.peak_bytes(call),
        }
    timed(call, *place, compiled=compiled, **figures)
    assert call().isfinite().all()

"""Affine coupling without its network: every row on the same tensors, checked against float64, then timed."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
from torch import Tensor

from bench.report import memory
from bench.suites import affine as coupling
from bench.suites import peers

SHAPES = ((4096, 64), (64, 12, 16, 16), (64, 48, 32, 32))
PARAMS = [
    pytest.param(shape, op, name, id=peers.row_id("x".join(map(str, shape)), op, name))
    for shape in SHAPES
    for op in coupling.OPS
    for name in coupling.ROWS
]


@functools.lru_cache(maxsize=1)
def _inputs(shape: tuple[int, ...]) -> coupling.Inputs:
    return coupling.Inputs.make(shape)


@functools.lru_cache(maxsize=1)
def _truth(name: str, op: str, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    return coupling.float64_truth(name, _inputs(shape), op)


@pytest.mark.parametrize(("shape", "op", "name"), PARAMS)
def bench_affine_coupling(
    shape: tuple[int, ...],
    op: str,
    name: str,
    checked: Callable[..., float],
    timed: Callable[..., None],
    quick: bool,
) -> None:
    if reason := coupling.missing(name):
        pytest.skip(reason)
    shape = (max(1, shape[0] // 32), *shape[1:]) if quick else shape
    inputs, compiled = _inputs(shape), name.endswith("compiled")
    call = coupling.bind(coupling.ready(name, shape), inputs, op)
    place = ("affine coupling", "x".join(map(str, shape)), op, name)

    def error() -> float:
        return coupling.worst_error(name, call(), _truth(name, op, shape))

    figures = {"error": checked(error, *place, compiled_peer=compiled and coupling.ROWS[name].package is not None)}
    if compiled:
        figures["graph_breaks"] = peers.graph_breaks()
    if op == coupling.OPS[2]:
        figures["peak_bytes"] = memory.peak_bytes(call)
    timed(call, *place, compiled=compiled, least_bytes=inputs.least_bytes(op), **figures)

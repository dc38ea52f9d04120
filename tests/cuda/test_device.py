"""What only a GPU can show: no synchronisation, streams, capture by a CUDA graph. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flowkernels._machine import CUDA
from tests.cuda.test_bounds import CASES, SETTINGS

pytestmark = pytest.mark.skipif(
    CUDA.module is None or CUDA.devices == 0,
    reason=CUDA.why_missing or "no CUDA device: `make gpu-check` runs this on one",
)
EVERY = pytest.mark.parametrize(
    ("op", "settings"), [(op, s) for op, all_of in SETTINGS.items() for s in all_of if "mask" not in s], ids=str
)
SHAPE = (1000, 7)


def call(op: str, settings: dict[str, Any], dtype: torch.dtype) -> tuple[Callable[[], list[Tensor]], list[Tensor]]:
    """A forward and backward pass on the GPU, and its inputs."""
    torch.manual_seed(0)
    f, tensors = CASES[op](SHAPE, dtype, **settings)
    leaves = [t.cuda().requires_grad_() for t in tensors]
    ones = [torch.ones(SHAPE, dtype=dtype, device="cuda"), torch.ones(SHAPE[:-1], device="cuda")]
    ones[1] = ones[1].to(torch.promote_types(dtype, torch.float32))

    def run() -> list[Tensor]:
        y, ladj = f(*leaves, backend="cuda", **settings)
        outputs = [(t, g) for t, g in zip((y, ladj), ones, strict=True) if t.requires_grad]
        grads = torch.autograd.grad([t for t, _ in outputs], leaves, [g for _, g in outputs])
        return [t.detach() for t in (y, ladj, *grads)]

    return run, leaves


@EVERY
@pytest.mark.parametrize("dtype_", [torch.float32, torch.bfloat16], ids=str)
def test_no_pass_waits_for_the_device(op, settings, dtype_) -> None:
    run, _ = call(op, settings, dtype_)
    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@EVERY
@pytest.mark.parametrize("dtype_", [torch.float32, torch.bfloat16], ids=str)
def test_a_graph_replays_what_it_captured(op, settings, dtype_) -> None:
    run, leaves = call(op, settings, dtype_)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    with torch.no_grad():
        leaves[0].mul_(0.5)
    graph.replay()
    torch.cuda.synchronize()
    for mine, eager in zip(captured, run(), strict=True):
        assert torch.equal(mine, eager)


@EVERY
def test_two_streams_do_not_disturb_each_other(op, settings) -> None:
    run, _ = call(op, settings, torch.float32)
    expected = run()
    torch.cuda.synchronize()
    streams, found = [torch.cuda.Stream() for _ in range(2)], []
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                found.append(run())
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for r in found for a, b in zip(r, expected, strict=True))


@EVERY
def test_memory_is_that_of_the_results(op, settings) -> None:
    run, _ = call(op, settings, torch.float32)
    results = sum(-(-t.nbytes // 512) * 512 for t in run())
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = run()
    assert torch.cuda.max_memory_allocated() - before <= results, len(kept)

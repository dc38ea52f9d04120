"""What only a GPU can show: no synchronisation, streams, capture by a CUDA graph. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flowkernels import flows, graphed
from flowkernels._machine import CUDA
from tests.cuda.test_bounds import CASES, SETTINGS
from tests.cuda.test_channels import OPS, SHAPES
from tests.ops import masked as networks
from tests.ops import test_autoregressive_inverse as sweep
from tests.ops import test_made as made
from tests.ops.channels import cast
from tests.ops.masked import values_and_gradients

pytestmark = pytest.mark.skipif(
    CUDA.module is None or not CUDA.devices[0],
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


# ---- ops on channels, which take more launches than one and room beside their results; the sweep ----


def channels(
    op: str, shape: tuple[int, ...], dim: int, inverse: bool
) -> tuple[Callable[..., list[Tensor]], list[Tensor]]:
    f, draw = OPS[op]

    def run(tensors: list[Tensor], backend: str) -> list[Tensor]:
        leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in tensors]
        y, ladj = f(*leaves, channel_dim=dim, inverse=inverse, backend=backend)
        wanted = [t for t in leaves if t.requires_grad]
        grads = torch.autograd.grad([y, ladj], wanted, [torch.ones_like(y), torch.ones_like(ladj)])
        return [y.detach(), ladj.detach(), *grads]

    return run, draw(shape, dim)


def sampling(shape: str, name: str) -> tuple[Callable[..., list[Tensor]], list[Tensor]]:
    univariate = sweep.UNIVARIATES[name]
    problem = sweep.make(sweep.SHAPES[shape], univariate)

    def run(tensors: list[Tensor], backend: str) -> list[Tensor]:
        return values_and_gradients(lambda t: sweep.solve(problem, univariate, backend, t), tensors)

    return run, problem.tensors


def masked(shape: str, activation: str, backward: bool) -> tuple[Callable[..., list[Tensor]], list[Tensor]]:
    problem = networks.draw(networks.SHAPES[shape])

    def run(tensors: list[Tensor], backend: str) -> list[Tensor]:
        leaves = [t.detach().requires_grad_(backward) for t in tensors]
        y = made.call(problem, backend, leaves, activation)
        return [y.detach(), *(torch.autograd.grad(y, leaves, torch.ones_like(y)) if backward else ())]

    return run, problem.tensors


OTHERS = {
    **{f"{op} {shape} {'inverse' if inverse else 'forward'}": (channels, (op, shape, dim, inverse))
       for op in OPS for shape, dim in SHAPES for inverse in (False, True)},
    **{f"{name} {shape}": (sampling, (shape, name))
       for name in ("softplus", "spline") for shape in ("three features", "residual", "blocks")},
    **{f"made {shape} {activation} {'backward' if backward else 'forward'}": (masked, (shape, activation, backward))
       for shape in ("blocks", "many features, wide") for activation in ("tanh", "gelu") for backward in (False, True)},
}  # fmt: skip


@pytest.mark.usefixtures("narrow_blocks")
@pytest.mark.parametrize(("make", "arguments"), OTHERS.values(), ids=OTHERS)
def test_the_others_are_right_wait_for_nothing_and_can_be_captured(make, arguments) -> None:
    run, tensors = make(*arguments)
    given = [t.cuda() for t in cast(tensors, torch.float32)]
    exact = run([t.double() if t.is_floating_point() else t for t in given], "reference")
    found, eager = run(given, "cuda"), run(given, "reference")
    # What a chain of splines rounds is a lottery for gradients as a whole: the op's own tests give them several draws.
    compared = 2 if make is sampling else None
    for mine, its, right in zip(found[:compared], eager[:compared], exact[:compared], strict=True):
        ulps = 4 * torch.finfo(mine.dtype).eps * right.abs().max()
        error, of_eager = ((t.double() - right).abs().flatten() for t in (mine, its))
        # The largest errors of a chain of features are a lottery; the tests of the op hold them against several draws.
        for n in (-(-right.numel() // 2), -(-99 * right.numel() // 100)):
            assert error.kthvalue(n).values <= 2 * of_eager.kthvalue(n).values + ulps
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(given, "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(given, "cuda")
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, found, strict=True))


def test_a_graphed_step_is_the_loop_by_hand() -> None:
    """Forward, backward, clipping and Adam in one launch, under a schedule."""

    def make() -> tuple[flows.NSF, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        torch.manual_seed(0)
        flow = flows.NSF(4, transforms=2, bins=4, hidden=(16,)).cuda()
        rate = torch.tensor(1e-2, device="cuda")  # as a graph must have it, so that both round alike
        optimizer = torch.optim.Adam(flow.parameters(), rate, capturable=True)
        return flow, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.1)

    (ours, first, one), (theirs, second, two) = make(), make()
    draws = torch.Generator().manual_seed(1)
    step = graphed(ours, first, torch.empty(64, 4, device="cuda"), clip=1.0)
    for _ in range(10):
        x = torch.randn(64, 4, generator=draws).cuda()
        found = step(x)
        loss = -theirs.log_prob(x).mean()
        second.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        second.step()
        one.step(), two.step()
        torch.testing.assert_close(found, loss.detach())
    assert step.reason is None
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

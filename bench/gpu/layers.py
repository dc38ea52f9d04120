"""Times what maps.py does not: ops on channels, and samples of an autoregressive flow beside its own log_prob.

python -m bench.gpu.layers --json layers.json
python -m bench.gpu.layers --device cpu --quick     # does it still run?
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.gpu import timing as gpu_timing
from bench.gpu.timing import Call, Rows
from flowkernels import flows, ops, use_backend

CHANNELS, FEATURES, HIDDEN = (48, 12, 96, 24), 64, (256, 256)


def tensors_of(C: int, images: int, side: int, device: str) -> dict[str, list[Tensor]]:
    """What each op takes, on images of C channels: matrices near a rotation, as learned ones are."""
    g = torch.Generator(device).manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device=device)

    x, log_s, shift = randn(images, C, side, side), 0.3 * randn(C), randn(C)
    lower, upper = (0.3 * randn(C, C) / C**0.5 for _ in range(2))
    permutation = torch.randperm(C, generator=g, device=device)
    return {"actnorm": [x, log_s, shift], "lu_linear": [x, lower, upper, log_s, shift.sign(), permutation, shift]}


def bind(op: str, tensors: Sequence[Tensor], inverse: bool, backward: bool, backend: str) -> Call:
    """→ (y, ladj), or the gradients behind them."""
    f = functools.partial(getattr(ops, op), channel_dim=1, inverse=inverse, backend=backend)
    if not backward:
        return functools.partial(f, *tensors)
    leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in tensors]
    outputs, wanted = f(*leaves), [t for t in leaves if t.requires_grad]
    grads = [torch.ones_like(t) for t in outputs]
    return lambda: torch.autograd.grad(outputs, wanted, grads, retain_graph=True)


def channels(rows: Rows, C: int) -> None:
    images, side = (2, 4) if rows.quick else (64, 32)
    for op, tensors in tensors_of(C, images, side, rows.device).items():
        for inverse in (False, True):
            for backward in (False, True):
                for backend in gpu_timing.ours(rows.device):
                    ready = functools.partial(bind, op, inverse=inverse, backward=backward, backend=backend)

                    def checked(
                        ready: Any = ready, tensors: Sequence[Tensor] = tensors, backend: str = backend
                    ) -> Call:
                        few = [tensors[0][:2], *tensors[1:]]
                        wide = [t.double() if t.is_floating_point() else t for t in few]
                        eager, exact = (ready(t, backend="reference")() for t in (few, wide))
                        gpu_timing.assert_close(ready(few)(), eager, exact)
                        return ready(tensors)

                    what = f"{op} {'inverse' if inverse else 'forward'}{', backward' * backward}, C = {C}"
                    rows.add(checked, (3 if backward else 2) * tensors[0].nbytes, op=what, row=f"ours, {backend}")


def samples(rows: Rows) -> None:
    flow = flows.MAF(FEATURES, transforms=1, hidden=HIDDEN).to(rows.device)
    n = 64 if rows.quick else 65536
    x = torch.randn(n, FEATURES, device=rows.device)
    parameters = list(flow.parameters())

    def backward(forward: Call) -> Call:
        """The gradients of all parameters, without what is behind them."""
        y = forward()
        return functools.partial(torch.autograd.grad, y, parameters, torch.ones_like(y), retain_graph=True)

    def by_triton() -> Tensor:
        with use_backend("triton"):
            return flow.rsample(n)

    for name, prepare in (("", torch.no_grad()), (", backward", backward)):
        calls: dict[str, Call] = {"log_prob": lambda: flow.log_prob(x), "sample": lambda: flow.rsample(n)}
        density, drawn = (
            rows.add(functools.partial(prepare, call), op=f"MAF, D = {FEATURES}, {what}{name}", row="ours")
            for what, call in calls.items()
        )
        if density and drawn:
            rows.report["rows"][-1]["times_log_prob"] = drawn / density
        rows.add(functools.partial(prepare, by_triton), op=f"MAF, D = {FEATURES}, sample{name}", row="ours, triton")


def measure(rows: Rows) -> None:
    samples(rows)
    for C in CHANNELS[:1] if rows.quick else CHANNELS:
        channels(rows, C)


def _last(row: dict[str, Any]) -> str:
    if "share" in row:
        return f"{100 * row['share']:.0f} %"
    return f"{row['times_log_prob']:.1f} × log_prob" if "times_log_prob" in row else ""


def table(report: dict[str, Any]) -> str:
    return gpu_timing.table(report, ("op", "row"), _last, "share of copy")


def main(arguments: list[str] | None = None) -> int:
    return gpu_timing.main("gpu layers", __doc__, measure, table, arguments)


if __name__ == "__main__":
    sys.exit(main())

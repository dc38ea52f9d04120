"""Times what maps.py does not: ops on channels, and samples of an autoregressive flow beside its own log_prob.

python -m bench.gpu.layers --json layers.json
python -m bench.gpu.layers --device cpu --quick     # does it still run?
"""

from __future__ import annotations

import functools
import itertools
import sys
from typing import Any

import torch
from torch import Tensor

from bench.gpu import timing
from bench.gpu.timing import Bound, Call, Rows
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


def channels(rows: Rows, C: int) -> None:
    images, side = (2, 4) if rows.quick else (64, 32)
    for op, tensors in tensors_of(C, images, side, rows.device).items():
        for inverse, backward, backend in itertools.product((False, True), (False, True), timing.ours(rows.device)):

            def bound(backend: str, op: str = op, inverse: bool = inverse, backward: bool = backward) -> Bound:
                f = functools.partial(getattr(ops, op), channel_dim=1, inverse=inverse, backend=backend)
                return lambda given: timing.bind(f, given, backward)

            prepare = timing.checked(bound(backend), bound("reference"), [tensors[0][:2], *tensors[1:]], tensors)
            what = f"{op} {'inverse' if inverse else 'forward'}{', backward' * backward}, C = {C}"
            rows.add(prepare, (3 if backward else 2) * tensors[0].nbytes, op=what, row=f"ours, {backend}")


def samples(rows: Rows) -> None:
    flow = flows.MAF(FEATURES, transforms=1, hidden=HIDDEN).to(rows.device)
    n = 64 if rows.quick else 65536
    x = torch.randn(n, FEATURES, device=rows.device)
    parameters = list(flow.parameters())

    def backward(forward: Call) -> Call:
        """The gradients of all parameters, without what is behind them."""
        return timing.gradients([forward()], parameters)

    def by_triton() -> Tensor:
        with use_backend("triton"):
            return flow.rsample(n)

    for name, prepare in (("", torch.no_grad()), (", backward", backward)):
        op = f"MAF, D = {FEATURES}"
        density = rows.add(functools.partial(prepare, lambda: flow.log_prob(x)), op=f"{op}, log_prob{name}", row="ours")

        def beside(drawn: float, density: float | None = density) -> dict[str, float]:
            return {"times_log_prob": drawn / density} if density else {}

        op = f"{op}, sample{name}"
        rows.add(functools.partial(prepare, lambda: flow.rsample(n)), figures=beside, op=op, row="ours")
        rows.add(functools.partial(prepare, by_triton), op=op, row="ours, triton")


def measure(rows: Rows) -> None:
    samples(rows)
    for C in CHANNELS[:1] if rows.quick else CHANNELS:
        channels(rows, C)


def _last(row: dict[str, Any]) -> str:
    if "share" in row:
        return f"{100 * row['share']:.0f} %"
    return f"{row['times_log_prob']:.1f} × log_prob" if "times_log_prob" in row else ""


def table(report: dict[str, Any]) -> str:
    return timing.table(report, ("op", "row"), _last, "share of copy")


def main(arguments: list[str] | None = None) -> int:
    return timing.main("gpu layers", __doc__, measure, table, arguments)


if __name__ == "__main__":
    sys.exit(main())

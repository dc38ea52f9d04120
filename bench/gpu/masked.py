"""Times a masked layer, act(x (W∘M)ᵀ + b), in strips on CUDA and on Triton, beside the library's dense product; the
weight is masked in every call (what MADE does) and beforehand (what a frozen model may do). bfloat16, tf32, float32.
And a whole MADE, plain PyTorch beside strips.

    python -m bench.gpu.masked --json masked.json
    python -m bench.gpu.masked --device cpu --quick     # does it still run?
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu import timing
from bench.gpu.timing import Bound, Rows
from flowkernels import ops
from flowkernels.ops.net import MadePlan, layer_plan

SIZES, QUICK = ((4096, 1024), (65536, 1024), (512, 128)), (32, 40)  # (batch, units)
CHECKED = 4096  # rows of the comparison with plain PyTorch: enough to be cut
DTYPES = {"bfloat16": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32}
PASSES = {"forward": "identity", "forward, relu": "relu", "backward": "identity"}
MASKED, BEFORE, PLAIN = "F.linear(x, W * mask)", "F.linear, masked before", "plain PyTorch"
Layer = Callable[..., Tensor]


def layers(units: int, activation: str, like: Tensor, device: str) -> dict[str, Layer]:
    """Every row's layer; degrees 1, 2, …, units on both sides."""
    plan = layer_plan(range(1, units + 1), range(1, units + 1))
    mask, act = plan.mask(like), F.relu if activation == "relu" else lambda z: z

    def ours(backend: str) -> Layer:
        return lambda x, weight, bias: ops.masked_linear(x, weight, bias, plan, activation=activation, backend=backend)

    return {
        MASKED: lambda x, weight, bias: act(F.linear(x, weight * mask, bias)),
        BEFORE: lambda x, weight, bias: act(F.linear(x, weight, bias)),
        **{f"ours, {backend}": ours(backend) for backend in timing.ours(device)},
    }


def draw(batch: int, units: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    g = torch.Generator(device).manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=g, device=device) for s in ((batch, units), (units, units), (units,)))
    return [t.to(dtype) for t in (x, weight / units**0.5, bias)]


def beforehand(tensors: list[Tensor]) -> list[Tensor]:
    """Degrees that count up on both sides hide what lies above the diagonal."""
    x, weight, bias = tensors
    return [x, weight.tril(), bias]


class Product:
    """What rows of the same dense product have: TFLOP/s of it, and how many times as fast as the baseline they are."""

    def __init__(self, work: float) -> None:
        self.work, self._baseline = work, None

    def figures(self, took: float, baseline: bool) -> dict[str, float]:
        if baseline and self._baseline is None:  # not the baseline's graph
            self._baseline = took
        speedup = {} if self._baseline is None else {"speedup": self._baseline / took}
        return {"tflops": self.work / took / 1e12, **speedup}


def one(rows: Rows, batch: int, units: int, dtype: str, what: str) -> None:
    tensors = draw(batch, units, DTYPES[dtype], rows.device)
    backward = what == "backward"
    every = layers(units, PASSES[what], tensors[1], rows.device)

    def bound(name: str) -> Bound:
        return lambda tensors: timing.bind(lambda *t: (every[name](*t),), tensors, backward)

    product = Product((4 if backward else 2) * batch * units**2)
    for name in every:
        if name.startswith("ours"):
            prepare = timing.checked(bound(name), bound(MASKED), [tensors[0][:CHECKED], *tensors[1:]], tensors)
        else:
            prepare = functools.partial(bound(name), beforehand(tensors) if name == BEFORE else tensors)
        # 4096 rows do not hide what a launch costs the host, so that each is a graph too.
        rows.add(
            prepare, figures=functools.partial(product.figures, baseline=name == MASKED), graph=not backward,
            batch=batch, units=units, dtype=dtype, what=what, row=name,
        )  # fmt: skip


def network(rows: Rows, batch: int, units: int, dtype: str) -> None:
    """A whole MADE of 64 features and two hidden layers: of its three layers only the one in the middle is cut."""
    features = range(1, 65)
    hidden = [1 + i % 63 for i in range(units)]
    plan = MadePlan([features, hidden, hidden, [d for d in features for _ in range(2)]])
    g = torch.Generator(rows.device).manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device=rows.device).to(DTYPES[dtype])

    tensors = [randn(batch, 64)]
    for layer in plan.layers:
        tensors += [randn(layer.n_out, layer.n_in) / layer.n_in**0.5, randn(layer.n_out)]
    for what in ("network", "network, backward"):
        backward = what != "network"

        def bound(backend: str, backward: bool = backward) -> Bound:
            def run(x: Tensor, *t: Tensor) -> tuple[Tensor]:
                return (ops.made(x, list(zip(t[::2], t[1::2], strict=True)), plan, backend=backend),)

            return lambda tensors: timing.bind(run, tensors, backward)

        weights = sum(layer.n_in * layer.n_out for layer in plan.layers)
        product = Product((4 if backward else 2) * batch * weights)
        few = [tensors[0][:CHECKED], *tensors[1:]]
        names = {"batch": batch, "units": units, "dtype": dtype, "what": what}
        for backend in ("reference", *(b for b in timing.ours(rows.device) if b != "triton")):
            plain = backend == "reference"
            prepare = functools.partial(bound(backend), tensors)
            if not plain:
                prepare = timing.checked(bound(backend), bound("reference"), few, tensors)
            figures = functools.partial(product.figures, baseline=plain)
            rows.add(prepare, figures=figures, **names, row=PLAIN if plain else f"ours, {backend}")


def measure(rows: Rows) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        for dtype in DTYPES:
            torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")  # of the library's and of ours
            for batch, units in (QUICK,) if rows.quick else SIZES:
                for what in PASSES:
                    one(rows, batch, units, dtype, what)
                if batch != SIZES[-1][0]:
                    network(rows, batch, units, dtype)
    finally:
        torch.set_float32_matmul_precision(before)


def _last(row: dict[str, Any]) -> str:
    slow = PLAIN if row["what"].startswith("network") else MASKED
    speedup = f", {row['speedup']:.2f} × as fast as {slow}" if "speedup" in row else ""
    return f"{row['tflops']:.1f}{speedup}"


def table(report: dict[str, Any]) -> str:
    return timing.table(report, ("batch", "units", "dtype", "what", "row"), _last, "TFLOP/s of a dense product")


def main(arguments: list[str] | None = None) -> int:
    return timing.main("gpu masked", __doc__, measure, table, arguments)


if __name__ == "__main__":
    sys.exit(main())

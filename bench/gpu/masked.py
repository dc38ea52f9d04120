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

from bench.gpu import timing as gpu_timing
from bench.gpu.timing import Call, Rows
from flowkernels import ops
from flowkernels.ops.net import MadePlan, layer_plan

SIZES, QUICK = ((4096, 1024), (65536, 1024), (512, 128)), (32, 40)  # (batch, units)
CHECKED = 4096  # rows of the comparison with plain PyTorch: enough to be cut
DTYPES = {"bfloat16": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32}
PASSES = {"forward": "identity", "forward, relu": "relu", "backward": "identity"}
MASKED, BEFORE = "F.linear(x, W * mask)", "F.linear, masked before"
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
        **{f"ours, {backend}": ours(backend) for backend in gpu_timing.ours(device)},
    }


def bind(layer: Layer, tensors: list[Tensor], backward: bool) -> Call:
    """→ (y,), or the gradients of x, weight and bias."""
    if not backward:
        return lambda: (layer(*tensors),)
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = layer(*leaves)
    grad = torch.ones_like(y)
    return lambda: torch.autograd.grad(y, leaves, grad, retain_graph=True)


def draw(batch: int, units: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    g = torch.Generator(device).manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=g, device=device) for s in ((batch, units), (units, units), (units,)))
    return [t.to(dtype) for t in (x, weight / units**0.5, bias)]


def beforehand(tensors: list[Tensor]) -> list[Tensor]:
    """Degrees that count up on both sides hide what lies above the diagonal."""
    x, weight, bias = tensors
    return [x, weight.tril(), bias]


def one(rows: Rows, batch: int, units: int, dtype: str, what: str) -> None:
    tensors = draw(batch, units, DTYPES[dtype], rows.device)
    backward = what == "backward"
    every = layers(units, PASSES[what], tensors[1], rows.device)
    add = functools.partial(rows.add, batch=batch, units=units, dtype=dtype, what=what)
    baseline = None
    for name, layer in every.items():
        given = beforehand(tensors) if name == BEFORE else tensors

        def checked(name: str = name, layer: Layer = layer, given: list[Tensor] = given) -> Call:
            if name.startswith("ours"):
                few = [tensors[0][:CHECKED], *tensors[1:]]
                exact = bind(every[MASKED], [t.double() for t in few], backward)()
                gpu_timing.assert_close(bind(layer, few, backward)(), bind(every[MASKED], few, backward)(), exact)
            return bind(layer, given, backward)

        calls: dict[str, Callable[[], Call]] = {name: checked}
        if rows.device == "cuda" and not backward:  # 4096 rows do not hide what a launch costs the host
            calls[f"{name}, graph"] = lambda layer=layer, given=given: gpu_timing.captured(bind(layer, given, False))
        for row, prepare in calls.items():
            took = add(prepare, row=row)
            baseline = took if row == MASKED else baseline
            if took is not None:
                rows.report["rows"][-1] |= {"tflops": (4 if backward else 2) * batch * units**2 / took / 1e12}
                if baseline is not None:
                    rows.report["rows"][-1]["speedup"] = baseline / took


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
        backward, baseline = what != "network", None
        for backend in ("reference", *(b for b in gpu_timing.ours(rows.device) if b != "triton")):

            def run(*t: Tensor, backend: str = backend) -> Tensor:
                return ops.made(t[0], list(zip(t[1::2], t[2::2], strict=True)), plan, backend=backend)

            def checked(run: Layer = run, backend: str = backend, backward: bool = backward) -> Call:
                if backend != "reference":
                    few, plain = [tensors[0][:CHECKED], *tensors[1:]], functools.partial(run, backend="reference")
                    exact = bind(plain, [t.double() for t in few], backward)()
                    gpu_timing.assert_close(bind(run, few, backward)(), bind(plain, few, backward)(), exact)
                return bind(run, tensors, backward)

            name = "plain PyTorch" if backend == "reference" else f"ours, {backend}"
            took = rows.add(checked, batch=batch, units=units, dtype=dtype, what=what, row=name)
            baseline = took if backend == "reference" else baseline
            if took is not None:
                work = 2 * batch * sum(layer.n_in * layer.n_out for layer in plan.layers) * (2 if backward else 1)
                rows.report["rows"][-1] |= {"tflops": work / took / 1e12}
                if baseline is not None:
                    rows.report["rows"][-1]["speedup"] = baseline / took


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
    slow = "plain PyTorch" if row["what"].startswith("network") else MASKED
    speedup = f", {row['speedup']:.2f} × as fast as {slow}" if "speedup" in row else ""
    return f"{row['tflops']:.1f}{speedup}"


def table(report: dict[str, Any]) -> str:
    return gpu_timing.table(report, ("batch", "units", "dtype", "what", "row"), _last, "TFLOP/s of a dense product")


def main(arguments: list[str] | None = None) -> int:
    return gpu_timing.main("gpu masked", __doc__, measure, table, arguments)


if __name__ == "__main__":
    sys.exit(main())

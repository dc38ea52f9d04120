"""Times the CUDA kernels beside nflows and plain PyTorch, compiled and not: CUDA events, L2 flushed, median; the share
of the copy bandwidth measured in the same run. Rows come in order of interest until the time is up.

    python bench/gpu_bench.py --json bench.json --seconds 110
    python bench/gpu_bench.py --device cpu --quick     # does it still run?
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkernels import ops

FEATURES, BINS = 64, 8
P = 3 * BINS - 1
BATCHES = (65536, 512, 4096, 1048576)
QUICK = (64,)
FLUSH_BYTES = 256 << 20  # more than any L2
Pass = Callable[[], tuple[Tensor, ...]]


class Op(NamedTuple):
    """An op's call on a batch, and the bytes that any implementation has to move."""

    function: Callable[..., tuple[Tensor, Tensor]]  # x, params, backend
    n_params: int
    nflows: Callable[..., tuple[Tensor, Tensor]] | None

    def tensors(self, rows: int, device: str) -> tuple[Tensor, Tensor]:
        g = torch.Generator(device).manual_seed(0)
        x = torch.randn(rows, FEATURES, generator=g, device=device)
        return x, torch.randn(rows, FEATURES, self.n_params, generator=g, device=device)

    def bytes_of(self, rows: int, direction: str) -> int:
        forward = rows * (4 * FEATURES * (self.n_params + 2) + 4)
        backward = rows * (4 * FEATURES * (2 * self.n_params + 3) + 4)
        return backward if direction == "backward" else forward


def _rqs(x: Tensor, params: Tensor, backend: str | None, inverse: bool = False) -> tuple[Tensor, Tensor]:
    return ops.rqs(x, params, bins=BINS, inverse=inverse, backend=backend)


def _affine(x: Tensor, params: Tensor, backend: str | None, inverse: bool = False) -> tuple[Tensor, Tensor]:
    return ops.affine(x, params, scale="sigmoid", inverse=inverse, backend=backend)


def _nflows_rqs() -> Callable[..., tuple[Tensor, Tensor]] | None:
    try:
        from nflows.transforms.splines import unconstrained_rational_quadratic_spline as spline
    except ImportError:
        return None

    def run(x: Tensor, params: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        w, h, d = params[..., :BINS], params[..., BINS : 2 * BINS], params[..., 2 * BINS :]
        y, ladj = spline(x, w, h, d, inverse=inverse, tails="linear", tail_bound=3.0)
        return y, ladj.sum(-1)

    return run


def operations() -> dict[str, Op]:
    return {"rqs": Op(_rqs, P, _nflows_rqs()), "affine": Op(_affine, 2, None)}


# ---- time ----


def median_seconds(run: Callable[[], object], device: str, repeats: int, flush: Tensor) -> float:
    """Median of `repeats`, each with nothing of its tensors left in L2."""
    for _ in range(2):
        run()
    times = []
    for _ in range(repeats):
        flush.zero_()
        if device == "cpu":
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
            continue
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def copy_gbps(device: str, n_bytes: int, repeats: int, flush: Tensor) -> float:
    """Bytes read and written by a second of copying."""
    source = torch.ones(n_bytes // 4, device=device)
    target = torch.empty_like(source)
    return 2 * n_bytes / median_seconds(lambda: target.copy_(source), device, repeats, flush) / 1e9


def captured(run: Pass) -> Callable[[], object]:
    """The same as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def direction_of(f: Callable[..., tuple[Tensor, Tensor]], x: Tensor, params: Tensor, direction: str) -> Pass:
    if direction != "backward":
        return functools.partial(f, x, params, inverse=direction == "inverse")
    leaves = [x.detach().requires_grad_(), params.detach().requires_grad_()]
    outputs = f(*leaves)
    grads = [torch.ones_like(t) for t in outputs]
    return lambda: torch.autograd.grad(outputs, leaves, grads, retain_graph=True)


def rows_of(op: Op, quick: bool, device: str) -> dict[str, Callable[..., tuple[Tensor, Tensor]]]:
    kernel = functools.partial(op.function, backend="cuda" if device == "cuda" else None)
    reference = functools.partial(op.function, backend="reference")
    rows: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"ours": kernel}
    if op.nflows is not None:
        rows["nflows eager"] = op.nflows
    if not quick:
        rows["torch compiled"] = torch.compile(reference, dynamic=False)
        rows["torch max-autotune"] = torch.compile(reference, mode="max-autotune-no-cudagraphs", dynamic=False)
    return rows


def assert_close(f: Callable[..., tuple[Tensor, Tensor]], op: Op, x: Tensor, params: Tensor, inverse: bool) -> None:
    """On the first rows, at the median and the 99th percentile: twice eager PyTorch's error at most, and a few ulp."""
    x, params = x[:1024], params[:1024]
    exact = op.function(x.double(), params.double(), "reference", inverse)
    eager = op.function(x, params, "reference", inverse)
    for mine, its, right in zip(f(x, params, inverse=inverse), eager, exact, strict=True):
        ulps = 4 * torch.finfo(mine.dtype).eps * right.abs().max()
        found, of_eager = ((t - right).abs().flatten() for t in (mine, its))
        for n in (right.numel() // 2, -(-99 * right.numel() // 100)):
            assert found.kthvalue(n).values <= 2 * of_eager.kthvalue(n).values + ulps


def measure(device: str, quick: bool, seconds: float) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    repeats = 3 if quick else 30
    flush = torch.empty((1 << 20 if quick else FLUSH_BYTES) // 4, device=device)
    bandwidth = copy_gbps(device, 1 << 20 if quick else 1 << 30, repeats, flush)
    found: list[dict[str, Any]] = []
    left_out: list[str] = []
    for batch in QUICK if quick else BATCHES:
        for name, op in operations().items():
            x, params = op.tensors(batch, device)
            for row, f in rows_of(op, quick, device).items():
                for direction in ("forward", "inverse", "backward"):
                    what = f"{name} {batch} {direction}: {row}"
                    if time.monotonic() > deadline:
                        left_out.append(what + ": no time left")
                        continue
                    try:
                        if row == "ours":
                            assert_close(f, op, x, params, direction == "inverse")
                        run = direction_of(f, x, params, direction)
                        cells = {"eager" if row == "ours" else "": run}
                        if device == "cuda" and row == "ours" and direction != "backward":
                            cells["CUDA graph"] = captured(run)
                        for how, call in cells.items():
                            took = median_seconds(call, device, repeats, flush)
                            gbps = op.bytes_of(batch, direction) / took / 1e9
                            found.append({"op": name, "batch": batch, "pass": direction, "row": f"{row} {how}".strip(),
                                          "us": took * 1e6, "gbps": gbps, "share": gbps / bandwidth})  # fmt: skip
                    except Exception as error:  # one row's failure is a row, not the end
                        left_out.append(f"{what}: {type(error).__name__} {error!s:.80}")
    gpu = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {"gpu": gpu, "torch": torch.__version__, "copy_gbps": bandwidth, "rows": found, "left_out": left_out}


def table(report: dict[str, Any]) -> str:
    """The short table, for the end of a log."""
    lines = [f"{report['gpu']}, torch {report['torch']}, copy {report['copy_gbps']:.0f} GB/s",
             "| op | batch | pass | row | µs | share of copy |", "|---|---|---|---|---|---|"]  # fmt: skip
    for r in report["rows"]:
        lines.append(
            f"| {r['op']} | {r['batch']} | {r['pass']} | {r['row']} | {r['us']:.1f} | {100 * r['share']:.0f} % |"
        )
    return "\n".join([*lines, *report["left_out"]])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=110.0)
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"gpu-bench: torch {torch.__version__} sees no CUDA device")
        return 1
    report = measure(options.device, options.quick, options.seconds)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))
    return int(not report["rows"] or any("AssertionError" in line for line in report["left_out"]))


if __name__ == "__main__":
    sys.exit(main())

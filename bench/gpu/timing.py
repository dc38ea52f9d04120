"""What the benchmarks of a GPU share: CUDA events with nothing left in L2, a deadline, JSON that grows row by row."""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FLUSH_BYTES = 256 << 20  # more than any L2
ROW_SECONDS = 1.0  # of timing: slow rows get fewer repeats
REPEATS = (5, 30)
Call = Callable[[], Any]
Prepare = Callable[[], Call]
Bound = Callable[[Sequence[Tensor]], Call]  # tensors → the call on them


def ours(device: str) -> tuple[str, ...]:
    """Backends whose rows a table has; on the CPU a run shows only that the rows run."""
    return (device, "triton")


def captured(run: Call) -> Call:
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


def gradients(outputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> Call:
    """The gradients of what is wanted, without the pass forward that is behind them."""
    grads = [torch.ones_like(t) for t in outputs]
    return lambda: torch.autograd.grad(outputs, wanted, grads, retain_graph=True)


def bind(function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor], backward: bool) -> Call:
    """→ what the function gives, or the gradients of all tensors behind it."""
    if not backward:
        return functools.partial(function, *tensors)
    leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in tensors]
    return gradients(function(*leaves), [t for t in leaves if t.requires_grad])


def assert_close(found: Sequence[Tensor], eager: Sequence[Tensor], exact: Sequence[Tensor]) -> None:
    """Of each result at the median and the 99th percentile: twice eager PyTorch's error at most, and a few ulp."""
    for mine, its, right in zip(found, eager, exact, strict=True):
        ulps = 4 * torch.finfo(mine.dtype).eps * right.abs().max()
        error, of_eager = ((t.double() - right).abs().flatten() for t in (mine, its))
        for n in (-(-right.numel() // 2), -(-99 * right.numel() // 100)):
            assert error.kthvalue(n).values <= 2 * of_eager.kthvalue(n).values + ulps


def checked(mine: Bound, plain: Bound, few: Sequence[Tensor], tensors: Sequence[Tensor]) -> Prepare:
    """Prepares ours on these tensors, once it is close to plain PyTorch on few rows of them."""

    def prepare() -> Call:
        wide = [t.double() if t.is_floating_point() else t for t in few]
        assert_close(mine(few)(), plain(few)(), plain(wide)())
        return mine(tensors)

    return prepare


class Report:
    """The rows of one run, and what was left out of it and why, in JSON as soon as it is known."""

    def __init__(self, to: Path | None, **facts: Any) -> None:
        self._to = to
        self.report: dict[str, Any] = {**facts, "rows": [], "left_out": []}

    def keep(self, row: dict[str, Any] | str) -> None:
        """A row, or why there is none."""
        self.report["left_out" if isinstance(row, str) else "rows"].append(row)
        if self._to:  # at once: a phase that is stopped keeps what it has
            self._to.write_text(json.dumps(self.report, indent=1) + "\n")


class Rows(Report):
    """Rows that are timed on a device until the time is up."""

    def __init__(self, device: str, quick: bool, seconds: float, to: Path | None = None) -> None:
        self.device, self.quick, self.graphs = device, quick, device == "cuda"
        self._deadline = time.monotonic() + seconds
        self._flush = torch.empty((1 << 20 if quick else FLUSH_BYTES) // 4, device=device)
        gpu = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        copy = self._copy_gbps(1 << 20 if quick else 1 << 30)
        super().__init__(to, gpu=gpu, torch=torch.__version__, copy_gbps=copy)

    def add(
        self,
        prepare: Prepare,
        n_bytes: int | None = None,
        *,
        figures: Callable[[float], dict[str, float]] | None = None,
        graph: bool = False,
        **names: Any,
    ) -> float | None:
        """Times what `prepare` returns; → seconds. A row that fails or comes too late is left out and says why.

        Args:
            n_bytes: what the call must move, of which GB/s and the share of a copy are.
            figures: what else the row has, given its seconds.
            graph: on a GPU, adds a row of the same call as one CUDA graph.
        """
        what = " ".join(str(n) for n in names.values())
        if time.monotonic() > self._deadline:
            self.keep(f"{what}: no time left")
            return None
        try:
            run = prepare()
            took = self.median_seconds(run)
        except Exception as error:  # one row's failure is a row, not the end
            self.keep(f"{what}: {type(error).__name__} {error!s:.80}")
            return None
        row = {**names, "us": took * 1e6}
        if n_bytes is not None:
            row["gbps"] = n_bytes / took / 1e9
            row["share"] = row["gbps"] / self.report["copy_gbps"]
        self.keep(row | (figures(took) if figures else {}))
        if graph and self.graphs:
            self.add(lambda: captured(run), n_bytes, figures=figures, **{**names, "row": f"{names['row']}, graph"})
        return took

    def median_seconds(self, run: Call) -> float:
        """Median of repeats, each with nothing of its tensors left in L2."""
        for _ in range(2):
            run()
        times: list[float] = []
        least, most = (1, 3) if self.quick else REPEATS
        start = time.monotonic()
        while len(times) < least or (len(times) < most and time.monotonic() - start < ROW_SECONDS):
            self._flush.zero_()
            if self.device == "cpu":
                begin = time.perf_counter()
                run()
                times.append(time.perf_counter() - begin)
                continue
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            run()
            last.record()
            last.synchronize()
            times.append(first.elapsed_time(last) / 1e3)
        return statistics.median(times)

    def _copy_gbps(self, n_bytes: int) -> float:
        """Bytes read and written by a second of copying."""
        source = torch.ones(n_bytes // 4, device=self.device)
        target = torch.empty_like(source)
        return 2 * n_bytes / self.median_seconds(lambda: target.copy_(source)) / 1e9


def table(report: dict[str, Any], columns: Sequence[str], last: Callable[[dict[str, Any]], str], of: str) -> str:
    """The short table, for the end of a log: `columns`, µs, and what `last` says of a row."""
    lines = [f"{report['gpu']}, torch {report['torch']}, copy {report['copy_gbps']:.0f} GB/s",
             f"| {' | '.join(columns)} | µs | {of} |", "|---" * (len(columns) + 2) + "|"]  # fmt: skip
    for r in report["rows"]:
        lines.append(f"| {' | '.join(str(r[c]) for c in columns)} | {r['us']:.1f} | {last(r)} |")
    return "\n".join([*lines, *report["left_out"]])


def options_of(doc: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark of a GPU has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does it still run?")
    parser.add_argument("--json", type=Path)
    return parser


def main(
    name: str, doc: str | None, measure: Callable[[Rows], None], table: Callable[[dict[str, Any]], str],
    arguments: list[str] | None,
) -> int:  # fmt: skip
    """Reads the options, measures, prints; fails where no row could be measured or one was wrong."""
    parser = options_of(doc)
    parser.add_argument("--seconds", type=float, default=110.0)
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"{name}: torch {torch.__version__} sees no CUDA device")
        return 1
    rows = Rows(options.device, options.quick, options.seconds, options.json)
    measure(rows)
    print(table(rows.report))
    return int(not rows.report["rows"] or any("AssertionError" in line for line in rows.report["left_out"]))

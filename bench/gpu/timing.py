"""What the benchmarks of a GPU share: CUDA events with nothing left in L2, a deadline, JSON that grows row by row."""

from __future__ import annotations

import argparse
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


class Rows:
    """The rows of one run, and what was left out of it and why."""

    def __init__(self, device: str, quick: bool, seconds: float, to: Path | None = None) -> None:
        self.device, self.quick, self._to = device, quick, to
        self._deadline = time.monotonic() + seconds
        self._flush = torch.empty((1 << 20 if quick else FLUSH_BYTES) // 4, device=device)
        self.report: dict[str, Any] = {
            "gpu": torch.cuda.get_device_name() if device == "cuda" else "cpu", "torch": torch.__version__,
            "copy_gbps": self._copy_gbps(1 << 20 if quick else 1 << 30), "rows": [], "left_out": [],
        }  # fmt: skip

    def add(self, prepare: Callable[[], Call], n_bytes: int | None = None, **names: Any) -> float | None:
        """Times what `prepare` returns; → seconds. A row that fails or comes too late is left out and says why."""
        what = " ".join(str(n) for n in names.values())
        took = None
        if time.monotonic() > self._deadline:
            self.report["left_out"].append(f"{what}: no time left")
        else:
            try:
                took = self.median_seconds(prepare())
            except Exception as error:  # one row's failure is a row, not the end
                self.report["left_out"].append(f"{what}: {type(error).__name__} {error!s:.80}")
            else:
                row = {**names, "us": took * 1e6}
                if n_bytes is not None:
                    row["gbps"] = n_bytes / took / 1e9
                    row["share"] = row["gbps"] / self.report["copy_gbps"]
                self.report["rows"].append(row)
        if self._to:  # at once: a phase that is stopped keeps what it has
            self._to.write_text(json.dumps(self.report, indent=1) + "\n")
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


def assert_close(found: Sequence[Tensor], eager: Sequence[Tensor], exact: Sequence[Tensor]) -> None:
    """Of each result at the median and the 99th percentile: twice eager PyTorch's error at most, and a few ulp."""
    for mine, its, right in zip(found, eager, exact, strict=True):
        ulps = 4 * torch.finfo(mine.dtype).eps * right.abs().max()
        error, of_eager = ((t.double() - right).abs().flatten() for t in (mine, its))
        for n in (-(-right.numel() // 2), -(-99 * right.numel() // 100)):
            assert error.kthvalue(n).values <= 2 * of_eager.kthvalue(n).values + ulps


def table(report: dict[str, Any], columns: Sequence[str], last: Callable[[dict[str, Any]], str], of: str) -> str:
    """The short table, for the end of a log: `columns`, µs, and what `last` says of a row."""
    lines = [f"{report['gpu']}, torch {report['torch']}, copy {report['copy_gbps']:.0f} GB/s",
             f"| {' | '.join(columns)} | µs | {of} |", "|---" * (len(columns) + 2) + "|"]  # fmt: skip
    for r in report["rows"]:
        lines.append(f"| {' | '.join(str(r[c]) for c in columns)} | {r['us']:.1f} | {last(r)} |")
    return "\n".join([*lines, *report["left_out"]])


def main(
    name: str, doc: str | None, measure: Callable[[Rows], None], table: Callable[[dict[str, Any]], str],
    arguments: list[str] | None,
) -> int:  # fmt: skip
    """Reads the options, measures, prints; fails where no row could be measured or one was wrong."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=110.0)
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"{name}: torch {torch.__version__} sees no CUDA device")
        return 1
    rows = Rows(options.device, options.quick, options.seconds, options.json)
    measure(rows)
    print(table(rows.report))
    return int(not rows.report["rows"] or any("AssertionError" in line for line in rows.report["left_out"]))

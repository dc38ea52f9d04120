"""What the first call of a Triton kernel costs: compiled and tuned with an empty cache, then from disk.

python -m bench.gpu.first_call --json first.json
TRITON_INTERPRET=1 python -m bench.gpu.first_call --device cpu --quick     # does it still run?
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.gpu.timing import Report, options_of
from flowkernels import flows, ops, use_backend
from flowkernels.ops.net.plan import layer_plan

CACHES = ("compiled", "from disk")


def calls(device: str) -> dict[str, Callable[[], Any]]:
    """One of each family, float32; the tiles of masked_linear are tuned."""
    rows = 4 if device == "cpu" else 4096
    x, square, vector = (
        torch.randn(rows, 64, device=device),
        torch.eye(64, device=device),
        torch.ones(64, device=device),
    )
    plan = layer_plan(range(1, 65), range(1, 65))
    flow = flows.MAF(8, transforms=1, hidden=(16,)).to(device)
    return {
        "rqs": lambda: ops.rqs(x, torch.zeros(rows, 64, 23, device=device), bins=8),
        "affine": lambda: ops.affine(x, torch.zeros(rows, 64, 2, device=device), scale="sigmoid"),
        "lu_linear": lambda: ops.lu_linear(x, square, square, vector, vector, torch.arange(64, device=device), vector),
        "masked_linear": lambda: ops.masked_linear(x, square, vector, plan, activation="relu"),
        "masked_linear, another batch": lambda: ops.masked_linear(x[:-1], square, vector, plan, activation="relu"),
        "autoregressive_inverse": lambda: flow.sample(rows),
    }


def child(device: str, quick: bool) -> None:
    """A row per call as soon as it is known: ms of the first call, and of a second one."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    with torch.no_grad(), use_backend("triton"):
        for name, call in calls(device).items() if not quick else [("affine", calls(device)["affine"])]:
            times = []
            for _ in range(2):
                wait()
                begin = time.perf_counter()
                call()
                wait()
                times.append(1e3 * (time.perf_counter() - begin))
            print(json.dumps({"op": name, "first_ms": times[0], "second_ms": times[1]}), flush=True)


def table(report: dict[str, Any]) -> str:
    lines = ["| Triton | cache | first call, ms | second call, ms |", "|---|---|---|---|"]
    lines += [f"| {r['op']} | {r['cache']} | {r['first_ms']:.1f} | {r['second_ms']:.2f} |" for r in report["rows"]]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = options_of(__doc__)
    parser.add_argument("--child", action="store_true", help="the process whose first calls are timed")
    options = parser.parse_args(arguments)
    if options.child:
        child(options.device, options.quick)
        return 0
    report = Report(options.json)
    with tempfile.TemporaryDirectory() as cache:
        for state in CACHES:
            command = [sys.executable, "-m", "bench.gpu.first_call", "--child", "--device", options.device]
            with subprocess.Popen(
                command + ["--quick"] * options.quick, stdout=subprocess.PIPE, text=True,
                env={**os.environ, "TRITON_CACHE_DIR": cache},
            ) as process:  # fmt: skip
                assert process.stdout is not None  # for the type checker
                for line in process.stdout:
                    if line.startswith("{"):
                        report.keep({**json.loads(line), "cache": state})
            if process.returncode != 0:
                return 1
    print(table(report.report))
    return 0


if __name__ == "__main__":
    sys.exit(main())

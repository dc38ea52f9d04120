"""`make gpu-check`: builds, tests, sanitizes and times the CUDA and Triton kernels on this machine's GPU, python and
torch, in under nine minutes and without a network.

    python bench/gpu_check.py            # exits with 1, in one line, where there is no GPU
    python bench/gpu_check.py --dry-run  # what each phase would run
    python bench/gpu_check.py --fetch    # with a network, beforehand: the wheels it needs, into wheels/

Results go to $OUT, or bench/results/<gpu>/: gpu_check.json, and a log of every phase. A phase that runs out of its
time, which is its own and what the phases before it left, is stopped, and the next one begins.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # for the tables of the benchmarks
WHEELS = ROOT / "wheels"
PACKAGES = ("pybind11", "cmake", "ninja", "setuptools", "pytest", "pytest-benchmark", "hypothesis", "nflows", "zuko")
TOTAL_SECONDS = 530
ON_DEVICE = tuple(f"tests/ops/test_{name}.py" for name in ("affine", "rqs", "rqs_edges"))  # draw their inputs there
# Of the others that do, what a GPU alone can say: the rest asks how an op is called.
NUMBERS = (
    "tests/ops/test_actnorm.py::test_numbers",
    "tests/ops/test_lu_linear.py::test_numbers",
    "tests/ops/test_autoregressive_inverse.py::test_numbers_of_every_activation",
    "tests/ops/test_autoregressive_inverse.py::test_gradient_is_that_of_the_implicit_function",
    "tests/ops/test_autoregressive_inverse.py::test_bad_row_stays_in_its_row",
)
TESTS = ("tests/cuda/test_device.py", "tests/cuda/test_small.py", *ON_DEVICE, *NUMBERS)
BENCHMARKS = {"gpu_bench": 75, "gpu_layers": 30, "gpu_masked": 25}  # seconds of measuring
FIRST_CALL = "gpu_first_call"
STARTUP_SECONDS = 10  # of a benchmark: torch, the device, and the row that the deadline finds running


class Phase(NamedTuple):
    name: str
    seconds: int
    command: list[str]
    needs: str | None = None  # a tool, without which the phase is left out


def triton_tests() -> list[str]:
    """All of tests/ops/test_triton.py, and of Triton's list what draws its inputs on the device: few settings of each
    kind, as every one is a compilation."""
    listed = (ROOT / "tests" / "interpreted.txt").read_text().splitlines()
    return ["tests/ops/test_triton.py", "tests/ops/test_masked_linear.py::test_dtypes",
            *(line for line in listed if line.startswith(ON_DEVICE))]  # fmt: skip


def phases(site: Path, out: Path, python: str = sys.executable) -> list[Phase]:
    """What runs, in order. `site` holds what the wheels install."""
    pytest = [python, "-m", "pytest", "-q", "--device", "cuda"]
    sanitizers = [
        Phase(tool, 40, ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *pytest, "-x",
                         "tests/cuda/test_small.py"], "compute-sanitizer")
        for tool in ("memcheck", "racecheck")
    ]  # fmt: skip
    benchmarks = [
        Phase(name, seconds + STARTUP_SECONDS,
              [python, f"bench/{name}.py", "--json", str(out / f"{name}.json"), "--seconds", str(seconds)])
        for name, seconds in BENCHMARKS.items()
    ]  # fmt: skip
    return [
        Phase(
            "install", 15,
            [python, "-m", "pip", "install", "--quiet", "--no-index", f"--find-links={WHEELS}", f"--target={site}",
             "--no-deps", *sorted(str(w) for w in WHEELS.glob("*.whl"))],
        ),
        Phase("build", 100, [python, "setup.py", "--quiet", "build_ext", "--inplace"], "nvcc"),
        Phase("info", 10, [python, "-m", "flowkernels.info"]),
        Phase("tests", 75, [*pytest, *TESTS]),
        Phase("triton", 75, ["env", "FLOWKERNELS_BACKEND=triton", *pytest, *triton_tests()]),
        *sanitizers,
        *benchmarks,
        Phase(FIRST_CALL, 15, [python, f"bench/{FIRST_CALL}.py", "--json", str(out / f"{FIRST_CALL}.json")]),
    ]  # fmt: skip


def environment(site: Path) -> dict[str, str]:
    paths = [str(site), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PATH": os.pathsep.join([str(site / "bin"), "/usr/local/cuda/bin", os.environ.get("PATH", "")]),
        "FLOWKERNELS_CUDA": "ON",
    }


def run(phase: Phase, seconds: float, env: dict[str, str], log: Path) -> dict[str, object]:
    """Runs a phase for so long at most; its row of the table."""
    if phase.needs and shutil.which(phase.needs, path=env["PATH"]) is None:
        return {"phase": phase.name, "status": f"left out: no {phase.needs}", "seconds": 0.0, "last": ""}
    start = time.monotonic()
    with log.open("w") as to:
        try:
            done = subprocess.run(
                phase.command, cwd=ROOT, env=env, stdout=to, stderr=subprocess.STDOUT, timeout=max(1.0, seconds)
            )
            status = "ok" if done.returncode == 0 else f"failed ({done.returncode})"
        except subprocess.TimeoutExpired:
            status = f"stopped after {seconds:.0f} s"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return {
        "phase": phase.name, "status": status, "seconds": round(time.monotonic() - start, 1),
        "last": lines[-1][:100] if lines else "",
    }  # fmt: skip


def allowance(todo: Sequence[Phase], i: int, spent: float) -> float:
    """Seconds of the i-th phase: its own, and what the phases before it did not need."""
    return TOTAL_SECONDS - spent - sum(phase.seconds for phase in todo[i + 1 :])


def print_tables(out: Path) -> None:
    """Of every benchmark that came to its first row."""
    for name in (*BENCHMARKS, FIRST_CALL):
        if (measured := out / f"{name}.json").exists():
            print(importlib.import_module(name).table(json.loads(measured.read_text())))


def fetch() -> int:
    """Downloads the wheels that the other machine will not find."""
    WHEELS.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--dest", str(WHEELS), "--no-deps", *PACKAGES,
               "iniconfig", "pluggy", "py-cpuinfo", "sortedcontainers", "attrs"]  # fmt: skip
    return subprocess.run(command).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="print the phases and their budgets")
    parser.add_argument("--fetch", action="store_true", help="download the wheels")
    options = parser.parse_args()
    if options.fetch:
        return fetch()
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    folder = re.sub(r"\W+", "-", (gpu or "none").lower()).strip("-")
    out = Path(os.environ.get("OUT") or ROOT / "bench" / "results" / folder).resolve()
    site = ROOT / "build" / "gpu_site"
    todo = phases(site, out)
    if not WHEELS.exists():
        todo = [p for p in todo if p.name != "install"]
    if options.dry_run:
        for phase in todo:
            print(f"{phase.name:10} {phase.seconds:4} s  {' '.join(phase.command)}")
        return 0
    if gpu is None:
        print(f"gpu-check: torch {torch.__version__} sees no CUDA device")
        return 1
    out.mkdir(parents=True, exist_ok=True)
    for name in BENCHMARKS:  # what an earlier run left is not this one's
        (out / f"{name}.json").unlink(missing_ok=True)
    begin, rows = time.monotonic(), []
    for i, phase in enumerate(todo):
        seconds = allowance(todo, i, time.monotonic() - begin)
        rows.append(run(phase, seconds, environment(site), out / f"{phase.name}.log"))
        print(f"{rows[-1]['phase']:10} {rows[-1]['status']}, {rows[-1]['seconds']} s", flush=True)
    report = {"gpu": gpu, "torch": torch.__version__, "seconds": round(time.monotonic() - begin, 1), "phases": rows}
    (out / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n")
    print_tables(out)
    for row in rows:
        print(f"| {row['phase']:9} | {row['seconds']:6} s | {row['status']} | {row['last']} |")
    return int(any(str(row["status"]) != "ok" and not str(row["status"]).startswith("left out") for row in rows))


if __name__ == "__main__":
    sys.exit(main())

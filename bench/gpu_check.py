"""`make gpu-check`: builds, tests, sanitizes and times the CUDA kernels on this machine's GPU, python and torch, in
under nine minutes and without a network.

    python bench/gpu_check.py            # exits with 1, in one line, where there is no GPU
    python bench/gpu_check.py --dry-run  # what each phase would run
    python bench/gpu_check.py --fetch    # with a network, beforehand: the wheels it needs, into wheels/

Results go to $OUT, or bench/results/<gpu>/: gpu_check.json, and a log of every phase. A phase that runs out of its time
is stopped, and the next one begins.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ROOT / "wheels"
PACKAGES = ("pybind11", "cmake", "ninja", "setuptools", "pytest", "pytest-benchmark", "hypothesis", "nflows")
TOTAL_SECONDS = 530
TESTS = ("tests/cuda/test_device.py", *(f"tests/ops/test_{name}.py" for name in ("affine", "rqs", "rqs_edges")))


class Phase(NamedTuple):
    name: str
    seconds: int
    command: list[str]
    needs: str | None = None  # a tool, without which the phase is left out


def phases(site: Path, out: Path, python: str = sys.executable) -> list[Phase]:
    """What runs, in order. `site` holds what the wheels install."""
    sanitize = ["-m", "pytest", "-q", "-x", "tests/cuda/test_device.py", "-k", "waits and float32"]
    return [
        Phase(
            "install", 30,
            [python, "-m", "pip", "install", "--quiet", "--no-index", f"--find-links={WHEELS}", f"--target={site}",
             "--no-deps", *sorted(str(w) for w in WHEELS.glob("*.whl"))],
        ),
        Phase("build", 150, [python, "setup.py", "--quiet", "build_ext", "--inplace"], "nvcc"),
        Phase("info", 20, [python, "-m", "flowkernels.info"]),
        Phase("tests", 110, [python, "-m", "pytest", "-q", "--device", "cuda", *TESTS]),
        Phase("memcheck", 50, ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", python, *sanitize],
              "compute-sanitizer"),
        Phase("racecheck", 50, ["compute-sanitizer", "--tool", "racecheck", "--error-exitcode", "9", python, *sanitize],
              "compute-sanitizer"),
        Phase("bench", 120, [python, "bench/gpu_bench.py", "--json", str(out / "bench.json"), "--seconds", "95"]),
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
    begin, rows = time.monotonic(), []
    for phase in todo:
        left = TOTAL_SECONDS - (time.monotonic() - begin)
        rows.append(run(phase, min(phase.seconds, left), environment(site), out / f"{phase.name}.log"))
        print(f"{rows[-1]['phase']:10} {rows[-1]['status']}, {rows[-1]['seconds']} s", flush=True)
    report = {"gpu": gpu, "torch": torch.__version__, "seconds": round(time.monotonic() - begin, 1), "phases": rows}
    (out / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n")
    if (bench := out / "bench.json").exists():
        import gpu_bench

        print(gpu_bench.table(json.loads(bench.read_text())))
    for row in rows:
        print(f"| {row['phase']:9} | {row['seconds']:6} s | {row['status']} | {row['last']} |")
    return int(any(str(row["status"]) != "ok" and not str(row["status"]).startswith("left out") for row in rows))


if __name__ == "__main__":
    sys.exit(main())

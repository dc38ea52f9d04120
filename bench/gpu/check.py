"""`make gpu-check`: builds, tests, sanitizes and times the CUDA and Triton kernels on this machine's GPU, python and
torch, in under nine minutes and without a network.

    python -m bench.gpu.check            # exits with 1, in one line, where there is no GPU
    python -m bench.gpu.check --dry-run  # what each phase would run
    python -m bench.gpu.check --fetch 3.12  # with a network, beforehand: what that Python needs, into wheels/

Run it from the root of the checkout. Results go to $OUT, or bench/results/<gpu>/: gpu_check.json, gpu_check.log with
what every phase printed, and a file for each benchmark; all grow on the way. A phase that runs out of its time, which
is its own and what the phases before it left, is stopped with all that it started, and the next one begins.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
WHEELS = ROOT / "wheels"
PACKAGES = ("pybind11", "cmake", "ninja", "setuptools", "pytest", "iniconfig", "pluggy", "packaging", "pygments",
            "hypothesis", "sortedcontainers", "zuko")  # fmt: skip
SOURCES = ("nflows",)  # of which there is no wheel
# Without one of them no phase says anything.
BUILDING = ("pybind11", "cmake", "ninja", "setuptools", "pytest", "hypothesis")
TOTAL_SECONDS = 530
INTERRUPTED = 2  # what pytest exits with
GRACE_SECONDS = 8  # in which pytest prints the failures that it has seen when it is interrupted
ON_DEVICE = tuple(f"tests/ops/test_{name}.py" for name in ("affine", "rqs", "rqs_edges"))  # draw their inputs there
# Of the others that do, what a GPU alone can say: the rest asks how an op is called.
NUMBERS = (
    "tests/ops/test_actnorm.py::test_numbers",
    "tests/ops/test_lu_linear.py::test_numbers",
    "tests/ops/test_autoregressive_inverse.py::test_numbers_of_every_activation",
    "tests/ops/test_autoregressive_inverse.py::test_gradient_is_that_of_the_implicit_function",
    "tests/ops/test_autoregressive_inverse.py::test_bad_row_stays_in_its_row",
)
LAYERS = tuple(
    f"tests/ops/test_flow_layer_triton.py::{name}"
    for name in ("test_numbers[forward-float32-usual]", "test_a_coupling_is_one_launch[inverse-3]")
)
TESTS = ("tests/cuda/test_device.py", "tests/cuda/test_small.py", *ON_DEVICE, *NUMBERS)
BENCHMARKS = {"maps": 75, "layers": 30, "masked": 25}  # seconds of measuring
FIRST_CALL = "first_call"
STARTUP_SECONDS = 10  # of a benchmark: torch, the device, and the row that the deadline finds running


class Phase(NamedTuple):
    name: str
    seconds: int
    command: list[str]
    needs: str | None = None  # a tool, without which the phase is left out
    ran: Path | None = None  # where the tests that ran are listed, for another process to go on


def phases(site: Path, out: Path, python: str = sys.executable) -> list[Phase]:
    """What runs, in order. `site` holds what the wheels install."""
    pytest = [python, "-m", "pytest", "-q", "--device", "cuda"]
    triton = ["env", "FLOWKERNELS_BACKEND=triton", *pytest]

    def tests(name: str, seconds: int, command: list[str]) -> Phase:
        ran = site.with_name(f"gpu_{name}.ran")
        return Phase(name, seconds, [*command, "--ran", str(ran)], None, ran)

    # Torch takes longer to start under a sanitizer than our kernels to run: their calls are written down, and made
    # again without it, each tensor an allocation of its own.
    calls = str(site.with_name("gpu_calls.jsonl"))
    sanitizers = [
        Phase(tool, 25, ["compute-sanitizer", "--tool", tool, "--report-api-errors", "no", "--error-exitcode", "9",
                         python, "tests/cuda/replay.py", "flowkernels", calls], "compute-sanitizer")
        for tool in ("memcheck", "racecheck")
    ]  # fmt: skip
    benchmarks = [
        Phase(name, seconds + STARTUP_SECONDS,
              [python, "-m", f"bench.gpu.{name}", "--json", str(out / f"{name}.json"), "--seconds", str(seconds)])
        for name, seconds in BENCHMARKS.items()
    ]  # fmt: skip
    wheels = [w for w in sorted(WHEELS.glob("*.whl")) if not is_there(w)]
    return [
        *([Phase(
            "install", 15,
            [python, "-m", "pip", "install", "--quiet", "--no-index", f"--target={site}", "--upgrade", "--no-deps",
             *map(str, wheels)],
        )] if wheels else []),
        Phase("build", 100, [python, "setup.py", "--quiet", "build_ext", "--inplace"], "nvcc"),
        Phase("info", 10, [python, "-m", "flowkernels.info"]),
        tests("tests", 75, [*pytest, *TESTS]),
        # Few settings of each kind, as every one is a compilation: what Triton's interpreter runs, too.
        tests("triton", 50, [*triton, "-m", "interpreted", "tests/ops/test_triton.py", *ON_DEVICE, *LAYERS]),
        tests("triton_dtypes", 25, [*triton, "tests/ops/test_masked_linear.py::test_dtypes"]),
        Phase("record", 30, [python, "-m", "tests.cuda.recording", calls, "--device", "cuda"]),
        *sanitizers,
        *benchmarks,
        Phase(FIRST_CALL, 15, [python, "-m", f"bench.gpu.{FIRST_CALL}", "--json", str(out / f"{FIRST_CALL}.json")]),
    ]  # fmt: skip


def is_there(wheel: Path) -> bool:
    """Whether this Python has the package already; another version of pytest may not suit the plugins beside it."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.version(wheel.name.split("-")[0]))
    return False


def missing() -> list[str]:
    """What builds the module and runs its tests, and neither this Python has nor wheels/."""
    brought = {wheel.name.split("-")[0].lower() for wheel in WHEELS.glob("*.whl")}
    return [
        name for name in BUILDING
        if name not in brought and importlib.util.find_spec(name) is None and shutil.which(name) is None
    ]  # fmt: skip


def environment(site: Path) -> dict[str, str]:
    paths = [str(site), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PATH": os.pathsep.join(
            [
                str(site / "bin"),
                str(Path(sys.executable).parent),
                "/usr/local/cuda/bin",
                os.environ.get("PATH", ""),
            ]
        ),
        "FLOWKERNELS_CUDA": "ON",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # of whatever else that Python has
    }


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and what it started: a compiler or a sanitizer's target would run on beside the next phase."""
    for number in (signal.SIGINT, signal.SIGKILL):
        until = time.monotonic() + GRACE_SECONDS
        with contextlib.suppress(ProcessLookupError):  # none is left
            os.killpg(process.pid, number)
            while time.monotonic() < until:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.05)


def _by_itself() -> None:
    """In a phase's process, before its command: a group of its own, which SIGINT stops also where nohup ignores it."""
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(phase: Phase, seconds: float, env: dict[str, str], log: Path) -> dict[str, object]:
    """Runs a phase for so long at most, its output at the end of the log; its row of the table."""
    if phase.needs and shutil.which(phase.needs, path=env["PATH"]) is None:
        return {"phase": phase.name, "status": f"left out: no {phase.needs}", "seconds": 0.0, "last": ""}
    start = time.monotonic()
    if phase.ran:
        phase.ran.parent.mkdir(parents=True, exist_ok=True)
        phase.ran.write_text("")
    with log.open("ab") as to:
        to.write(f"\n==== {phase.name}: {' '.join(phase.command)}\n".encode())
        to.flush()
        begin, first = to.tell(), None
        while True:
            before = phase.ran.read_text() if phase.ran else ""
            process = subprocess.Popen(
                phase.command, cwd=ROOT, env=env, stdout=to, stderr=subprocess.STDOUT, preexec_fn=_by_itself
            )
            try:
                code = process.wait(max(1.0, seconds - (time.monotonic() - start)))
            except subprocess.TimeoutExpired:
                status = f"stopped after {seconds:.0f} s"
                break
            finally:
                stop(process)
            first = code if first is None else first or code
            status = "ok" if first == 0 else f"failed ({first})"
            # A test lost the GPU's context: a new process has one, for those after it.
            if not (phase.ran and code == INTERRUPTED and phase.ran.read_text() != before):
                break
    lines = [line for line in log.read_bytes()[begin:].decode(errors="replace").splitlines() if line.strip()]
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
            print(importlib.import_module(f"bench.gpu.{name}").table(json.loads(measured.read_text())))


def fetch(version: str) -> int:
    """Downloads the wheels that a Python of this version will not find on the other machine."""
    pip = [sys.executable, "-m", "pip"]
    platforms = [f"--platform=manylinux_2_{n}_x86_64" for n in (28, 27, 26, 17)] + ["--platform=manylinux2014_x86_64"]
    download = [*pip, "download", "--dest", str(WHEELS), "--no-deps", "--only-binary=:all:",
                f"--python-version={version}", *platforms, *PACKAGES]  # fmt: skip
    WHEELS.mkdir(exist_ok=True)
    return max(
        subprocess.run(command).returncode
        for command in (download, [*pip, "wheel", "--wheel-dir", str(WHEELS), "--no-deps", *SOURCES])
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="print the phases and their budgets")
    parser.add_argument("--fetch", metavar="VERSION", help="download the wheels for that version of Python")
    options = parser.parse_args()
    if options.fetch:
        return fetch(options.fetch)
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    folder = re.sub(r"\W+", "-", (gpu or "none").lower()).strip("-")
    out = Path(os.environ.get("OUT") or ROOT / "bench" / "results" / folder).resolve()
    site = ROOT / "build" / "gpu_site"
    todo = phases(site, out)
    if options.dry_run:
        for phase in todo:
            print(f"{phase.name:10} {phase.seconds:4} s  {' '.join(phase.command)}")
        return 0
    if gpu is None:
        print(f"gpu-check: torch {torch.__version__} sees no CUDA device")
        return 1
    if lacking := missing():  # said before minutes are spent
        version = "{}.{}".format(*sys.version_info)
        print(
            f"gpu-check: needs {', '.join(BUILDING)}, got no {', '.join(lacking)} in {sys.executable} nor in wheels/, "
            f"which `python -m bench.gpu.check --fetch {version}` fills where there is a network (git ignores it)"
        )
        return 1
    out.mkdir(parents=True, exist_ok=True)
    log = out / "gpu_check.log"
    for old in (log, *(out / f"{name}.json" for name in (*BENCHMARKS, FIRST_CALL))):  # of an earlier run
        old.unlink(missing_ok=True)
    env = environment(site)
    env.setdefault("FLOWKERNELS_CUDA_ARCHS", "{}{}-real".format(*torch.cuda.get_device_capability()))
    begin, rows = time.monotonic(), []
    for i, phase in enumerate(todo):
        rows.append(run(phase, allowance(todo, i, time.monotonic() - begin), env, log))
        print(f"{rows[-1]['phase']:10} {rows[-1]['status']}, {rows[-1]['seconds']} s", flush=True)
        report = {"gpu": gpu, "torch": torch.__version__, "seconds": round(time.monotonic() - begin, 1), "phases": rows}
        (out / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n")
    print_tables(out)
    for row in rows:
        print(f"| {row['phase']:9} | {row['seconds']:6} s | {row['status']} | {row['last']} |")
    return int(any(str(row["status"]) != "ok" and not str(row["status"]).startswith("left out") for row in rows))


if __name__ == "__main__":
    sys.exit(main())

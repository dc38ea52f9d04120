"""The CPU module under sanitizers: `python -m tests.sanitize address|thread [--short] [--calls N]`; `make sanitize`.

A copy of the tree is built with `FK_SANITIZE` in build/sanitize/. There the tests of the ops and the fuzzer run over
it, with the sanitizer's library loaded before everything else: it then watches torch's memory as well. The first find
ends the process, and with it the run. `--short` leaves out most tests and all instruction sets but the smallest.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("csrc", "cmake", "flowkernels", "tests", "CMakeLists.txt", "pyproject.toml")
BUILT = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd")

SUPPRESSIONS = ROOT / "tests" / "thread_sanitizer.supp"

# kind: FK_SANITIZE, what is loaded first, options of its run time.
# Leaks are Python's and torch's, which end without cleaning up. libgomp is not instrumented: under ThreadSanitizer
# csrc/common/parallel.h starts threads of its own, and what torch does in its pool is not watched.
SANITIZERS = {
    "address": (
        "address,undefined",
        ("libasan.so", "libubsan.so", "libstdc++.so"),
        {
            "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
    ),
    "thread": (
        "thread",
        ("libtsan.so", "libstdc++.so"),
        {"TSAN_OPTIONS": f"halt_on_error=1:report_signal_unsafe=0:suppressions={SUPPRESSIONS}"},
    ),
}
# The emulator is compiled by itself, with AddressSanitizer by tests/cuda. Compilers, which start processes and watch
# for memory themselves, need minutes here, and what they call is the same kernels.
LEFT_OUT = "not emulated and not compile and not export and not triton"
# Under ThreadSanitizer, which takes twenty times as long, those of several threads: one sees no race.
CHOSEN = {"address": LEFT_OUT, "thread": f"(threads or same_bits_twice) and {LEFT_OUT}"}
TESTS = ("tests/ops",)
SHORT = "tests/ops/test_residual_net.py", "tests/ops/test_actnorm.py"


def copied(to: Path) -> None:
    """Brings the copy up to date; what has not changed keeps its time, so that little is built again."""
    for name in COPIED:
        source, target = ROOT / name, to / name
        if source.is_file():
            _copy(source, target)
            continue
        for old in [p for p in target.rglob("*") if p.is_file() and p.suffix != ".so"]:
            if not (source / old.relative_to(target)).exists():
                old.unlink()
        shutil.copytree(source, target, ignore=BUILT, copy_function=_copy, dirs_exist_ok=True)


def _copy(source: str | Path, target: str | Path) -> None:
    source, target = Path(source), Path(target)
    if not target.exists() or target.read_bytes() != source.read_bytes():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def build(tree: Path, sanitize: str, short: bool) -> None:
    """Compiles the CPU module of a copy into it."""
    import pybind11

    folder = tree / "build"
    folder.mkdir(exist_ok=True)
    configure = [
        "cmake", str(tree), "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={tree / 'flowkernels'}",
        f"-DFK_SANITIZE={sanitize}", f"-DFK_BASELINE_ONLY={'ON' if short else 'OFF'}", "-DFLOWKERNELS_CUDA=OFF",
        *os.environ.get("CMAKE_ARGS", "").split(),
    ]  # fmt: skip
    subprocess.run(configure, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", ".", "--parallel"], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def environment(tree: Path, kind: str) -> dict[str, str]:
    """What a process needs whose module is sanitized."""
    _, libraries, options = SANITIZERS[kind]
    compiler = os.environ.get("CXX", "g++")

    def place(library: str) -> str:
        done = subprocess.run([compiler, f"-print-file-name={library}"], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    return {**os.environ, **options, "LD_PRELOAD": " ".join(map(place, libraries)), "PYTHONPATH": str(tree)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sanitize", description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=SANITIZERS)
    parser.add_argument("--short", action="store_true", help="one instruction set and a choice of tests")
    parser.add_argument("--calls", type=int, help="calls of the fuzzer; default: 100000, short 1000")
    parser.add_argument("--seed", type=int, default=0, help="of the fuzzer's first call")
    parser.add_argument("--tests", nargs="*", help="in place of the choice of tests; none: only the fuzzer")
    given = parser.parse_args()
    tree = ROOT / "build" / "sanitize" / (given.kind + "-short" * given.short)
    copied(tree)
    build(tree, SANITIZERS[given.kind][0], given.short)
    env = environment(tree, given.kind)
    # Where the kernel spreads addresses wider than ThreadSanitizer's map of memory, it asks for none of that.
    fixed = ["setarch", platform.machine(), "-R"] if given.kind == "thread" and shutil.which("setarch") else []
    calls = given.calls if given.calls is not None else 1000 if given.short else 100_000
    tests = given.tests if given.tests is not None else SHORT if given.short else TESTS
    runs = [["-m", "tests.fuzz", "--calls", str(calls), "--seed", str(given.seed)]]
    if tests:
        # A sanitizer's report goes to the file descriptor, which pytest would keep for itself, and lose.
        runs.insert(
            0, ["-m", "pytest", "-q", "-x", "--capture=sys", "-p", "no:cacheprovider", "-k", CHOSEN[given.kind], *tests]
        )
    return max(subprocess.run([*fixed, sys.executable, *r], cwd=tree, env=env).returncode for r in runs)


if __name__ == "__main__":
    sys.exit(main())

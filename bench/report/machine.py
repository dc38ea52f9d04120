"""What the benchmark ran on: the names that matter, and the bandwidth measured in the same run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

BUFFER_BYTES = 256 << 20  # far beyond any last-level cache of a laptop or a cluster node's slice
REPEATS = 7
PACKAGES = ("torch", "nflows", "glasflow", "normflows", "zuko", "pytest-benchmark")


def _best_seconds(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):  # the first touches the pages
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def bandwidth(n_bytes: int = BUFFER_BYTES, repeats: int = REPEATS) -> dict[str, float]:
    """Read and copy bandwidth in GB/s (1e9 bytes), best of `repeats`, on torch's current number of threads.

    Read is `sum` over float32, which keeps nothing but a few registers. Copy counts the bytes read and the bytes
    written, not the lines that a store may fetch first.
    """
    source = torch.ones(n_bytes // 4)
    target = torch.empty_like(source)
    return {
        "read_gbps": n_bytes / _best_seconds(source.sum, repeats) / 1e9,
        "copy_gbps": 2 * n_bytes / _best_seconds(lambda: target.copy_(source), repeats) / 1e9,
    }


def cpu_model() -> str:
    """The processor's name as the kernel or the platform gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def last_level_cache_bytes() -> int | None:
    """Size of the largest cache that a core sees; None where the system does not say."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[text[-1]])
    return max(sizes, default=None)


def commit() -> str | None:
    """Short hash of the checkout, with `+` where files differ from it; None outside a checkout."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def instruction_set() -> str | None:
    """The instruction set that the compiled kernels chose; None where they did not load."""
    from flowkernels import _native

    return None if _native.C is None else _native.C.isa()


def describe() -> dict[str, Any]:
    """Everything about the machine that a reader needs to judge a figure, and no name of host, user or folder."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": instruction_set(),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "commit": commit(),
        **{package: _version(package) for package in PACKAGES},
    }

"""The numbers tests of every CPU op on an emulated ARM processor: `python -m tests.neon [--each N] [tests]`.

The module is cross-compiled, and the tests run as they are: under qemu's user mode, in Debian's Python and a torch of
that architecture, all of it unpacked in build/neon. Needs no root, but a Debian with
`apt install g++-aarch64-linux-gnu qemu-user`. `make neon`, or `make neon EACH=4`: so many cases of each
test, spread over its table. The tests are dealt out to `--processes`, one a core, each of which prints a summary of its
own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "build" / "neon"
SYSTEM, SITE, MODULES = HOME / "system", HOME / "site", HOME / "modules"
NEEDED = ("aarch64-linux-gnu-g++", "qemu-aarch64", "apt-get", "dpkg-deb", "cmake", "ninja")
PYTHON = SYSTEM / "usr" / "bin" / "python3.11"
PLATFORMS = [f"manylinux_{v}_aarch64" for v in ("2_28", "2_27", "2_17")] + ["manylinux2014_aarch64"]
# The emulator of CUDA would have to be compiled there, and needs no ARM.
INSIDE = """
import contextlib, sys
import pytest
from flowkernels import _native
from tests import emulator

assert _native.C is not None and _native.C.isas() == ["neon"], _native.why_missing
maps = open("/proc/self/maps").read()
pools = {line.split()[-1] for line in maps.splitlines() if "libgomp" in line}
assert len(pools) == 1 and "torch.libs" in pools.pop(), maps
emulator.available = emulator.running = contextlib.nullcontext

each, process, processes = map(int, sys.argv[1:4])

class Dealt:
    @pytest.hookimpl(trylast=True)  # after -k has chosen
    def pytest_collection_modifyitems(self, items):
        cases = {}
        for item in items:
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
        wanted = [c[i * len(c) // n] for c in cases.values() for n in [min(each or len(c), len(c))] for i in range(n)]
        items[:] = wanted[process::processes]

options = ["-q", "-p", "no:cacheprovider", "-k", "numbers and not emulated and not triton"]
sys.exit(pytest.main([*options, *sys.argv[4:]], [Dealt()]))
"""


def system() -> None:
    """Debian's Python and its libraries, unpacked beside the machine's own packages, which stay as they are."""
    if PYTHON.exists():
        return
    apt = HOME / "apt"
    for folder in ("lists/partial", "archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    options = {
        "APT::Architecture": "arm64", "APT::Architectures": "arm64", "Dir::State::Lists": apt / "lists",
        "Dir::State::status": apt / "status", "Dir::Cache": apt, "Dir::Cache::archives": apt / "archives",
        "Debug::NoLocking": 1, "APT::Sandbox::User": "root",
    }  # fmt: skip
    command = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    subprocess.run([*command, "update"], check=True)
    # Apt unpacks nothing here: it only follows the dependencies.
    wanted = ["python3.11", "python3.11-dev", "libgomp1", "libstdc++6"]
    subprocess.run([*command, "install", "-y", "--no-install-recommends", "--download-only", *wanted], check=True)
    for package in sorted((apt / "archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(package), str(SYSTEM)], check=True)


def site() -> None:
    listed = ROOT / "requirements" / "neon.txt"
    done = SITE / "installed.txt"
    if done.exists() and done.read_bytes() == listed.read_bytes():
        return
    shutil.rmtree(SITE, ignore_errors=True)
    chosen = ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--abi=cp311"]
    chosen += [f"--platform={p}" for p in PLATFORMS]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", f"--target={SITE}", *chosen]
    subprocess.run([*pip, "-r", str(listed), *os.environ.get("PIP_ARGS", "").split()], check=True)
    shutil.copy(listed, done)


def build() -> None:
    import pybind11

    configure = [
        "cmake", "-S", str(ROOT), "-B", str(HOME / "build"), "-G", "Ninja", "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
        f"-DPython_EXECUTABLE={sys.executable}", f"-DPython_INCLUDE_DIR={SYSTEM / 'usr/include/python3.11'}",
        f"-DCMAKE_CXX_FLAGS=-idirafter {SYSTEM / 'usr/include'}",
        "-DPYTHON_MODULE_EXTENSION=.cpython-311-aarch64-linux-gnu.so", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={MODULES / 'flowkernels'}", "-DFLOWKERNELS_CUDA=OFF",
        "-DFLOWKERNELS_LINK_OPENMP=OFF",  # as in wheels
        *os.environ.get("CMAKE_ARGS", "").split(),
    ]  # fmt: skip
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(HOME / "build"), "--parallel"], check=True)
    for name in ("flowkernels", "tests", "csrc"):
        ignore = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, MODULES / name, ignore=ignore, dirs_exist_ok=True)


def run(each: int, processes: int, arguments: list[str]) -> int:
    env = {**os.environ, "PYTHONPATH": f"{MODULES}:{SITE}", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    env.pop("LD_PRELOAD", None)
    command = ["qemu-aarch64", "-L", str(SYSTEM), str(PYTHON), "-c", INSIDE, str(each)]
    started = [
        subprocess.Popen([*command, str(p), str(processes), *arguments], cwd=MODULES, env=env) for p in range(processes)
    ]
    return max(p.wait() for p in started)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.neon", description=__doc__.splitlines()[0])
    parser.add_argument("--each", type=int, default=0, help="cases of each test; 0: all")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("tests", nargs="*", default=["tests/ops"])
    given = parser.parse_args()
    if absent := [name for name in NEEDED if shutil.which(name) is None]:
        packages = "apt install g++-aarch64-linux-gnu qemu-user cmake ninja-build"
        print(f"make neon needs {', '.join(NEEDED)}, got no {', '.join(absent)}; Debian: {packages}")
        return 1
    system()
    site()
    build()
    return run(given.each, given.processes, given.tests)


if __name__ == "__main__":
    sys.exit(main())

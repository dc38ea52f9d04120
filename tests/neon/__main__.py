"""The numbers tests of every CPU op on an emulated ARM processor: `python -m tests.neon [tests]`.

The module is cross-compiled, and runs under qemu's user mode in Debian's Python of that architecture, without torch:
the tests, their references and torch run on this machine (`host.py`, `guest.py`), dealt out to `--processes`, one a
core. A few then run there as a whole, with a torch of that architecture, as users load the module (`inside.py`). All of
it is unpacked in build/neon. Other options are pytest's. Needs no root, but a Debian with
`apt install g++-aarch64-linux-gnu qemu-user`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
HOME = ROOT / "build" / "neon"
SYSTEM, SITE, MODULES = HOME / "system", HOME / "site", HOME / "modules"
SUFFIX = ".cpython-311-aarch64-linux-gnu.so"
MODULE = MODULES / "flowkernels" / f"_C{SUFFIX}"
NEEDED = ("aarch64-linux-gnu-g++", "qemu-aarch64", "apt-get", "dpkg-deb", "cmake", "ninja")
PYTHON = SYSTEM / "usr" / "bin" / "python3.11"
PLATFORMS = [f"manylinux_{v}_aarch64" for v in ("2_28", "2_27", "2_17")] + ["manylinux2014_aarch64"]
CHOSEN = "numbers and not emulated and not triton and not gate"


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
        f"-DPYTHON_MODULE_EXTENSION={SUFFIX}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={MODULES / 'flowkernels'}", "-DFLOWKERNELS_CUDA=OFF",
        "-DFLOWKERNELS_LINK_OPENMP=OFF",  # as in wheels
        *os.environ.get("CMAKE_ARGS", "").split(),
    ]  # fmt: skip
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(HOME / "build"), "--parallel"], check=True)
    # Configured again, by another Python, pybind11 calls it as a module of that one.
    max(MODULE.parent.glob("_C.*.so"), key=lambda built: built.stat().st_mtime).replace(MODULE)
    for name in ("flowkernels", "tests", "csrc"):
        ignore = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, MODULES / name, ignore=ignore, dirs_exist_ok=True)


def emulated(*command: str) -> list[str]:
    return ["qemu-aarch64", "-L", str(SYSTEM), str(PYTHON), *command]


def run(processes: int, arguments: list[str]) -> int:
    guest = json.dumps(emulated("-m", "tests.neon.guest", str(MODULE)))
    command = [sys.executable, "-m", "tests.neon.host", guest]
    # A guest takes as many threads as torch has here; they shall not wait for each other by spinning.
    env = {**os.environ, "OMP_WAIT_POLICY": "passive", "FLOWKERNELS_BACKEND": "auto"}
    started = [
        subprocess.Popen([*command, str(p), str(processes), "-k", CHOSEN, *arguments], cwd=ROOT, env=env)
        for p in range(processes)
    ]
    return max(p.wait() for p in started)


def run_inside() -> int:
    env = {**os.environ, "PYTHONPATH": f"{MODULES}:{SITE}", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    env.pop("LD_PRELOAD", None)
    return subprocess.run(emulated(str(HERE / "inside.py")), cwd=MODULES, env=env).returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.neon", description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("tests", nargs="*", default=["tests/ops"])
    given, of_pytest = parser.parse_known_args()
    if absent := [name for name in NEEDED if shutil.which(name) is None]:
        packages = "apt install g++-aarch64-linux-gnu qemu-user cmake ninja-build"
        print(f"make neon needs {', '.join(NEEDED)}, got no {', '.join(absent)}; Debian: {packages}")
        return 1
    system()
    build()
    if failed := run(given.processes, [*of_pytest, *given.tests]):
        return failed
    site()
    return run_inside()


if __name__ == "__main__":
    sys.exit(main())

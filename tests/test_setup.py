"""A build that cannot be says so in one sentence, last; and the package can be had without kernels."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("setuptools")
pytest.importorskip("pybind11")

ROOT = Path(__file__).resolve().parents[1]
OLD = """CMake Error at CMakeLists.txt:1 (cmake_minimum_required):
  CMake 3.20 or higher is required.  You are running version 3.18.4


-- Configuring incomplete, errors occurred!"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What a build reads before it compiles."""
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "cmake", tree / "cmake")
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    (tree / "flowkernels").mkdir()
    shutil.copy(ROOT / "flowkernels" / "__init__.py", tree / "flowkernels")
    return tree


def built(tree: Path, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FLOWKERNELS", "CMAKE", "CXX", "CC"))}
    return subprocess.run(
        [sys.executable, "setup.py", "--quiet", *command], cwd=tree, capture_output=True, text=True, timeout=120,
        env={**clean, **env},
    )  # fmt: skip


def last_words(tree: Path, **env: str) -> str:
    done = built(tree, "build_ext", "--inplace", **env)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_without_a_compiler(tree) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("no cmake")
    assert last_words(tree, CXX="/nowhere/c++", FLOWKERNELS_CUDA="OFF") == (
        "flowkernels: the build needs a C++17 compiler (Debian: apt install g++) on PATH or in CXX, got none that "
        "runs; FLOWKERNELS_PURE=ON installs the package without kernels, as plain PyTorch"
    )


def test_without_cmake(tree, tmp_path) -> None:
    said = last_words(tree, PATH=str(tmp_path))
    assert said.startswith("flowkernels: the build needs CMake 3.20 or newer, got no cmake on PATH; ")


def test_an_old_cmake(tree, tmp_path) -> None:
    cmake = tmp_path / "bin" / "cmake"
    cmake.parent.mkdir()
    cmake.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{OLD}\nEND\nexit 1\n")
    cmake.chmod(cmake.stat().st_mode | stat.S_IXUSR)
    said = last_words(tree, PATH=f"{cmake.parent}:{os.environ['PATH']}")
    assert said.startswith("flowkernels: CMake 3.20 or higher is required. You are running version 3.18.4; ")


def test_the_package_without_kernels(tree) -> None:
    """One for every machine, as nothing in it is compiled."""
    done = built(tree, "bdist_wheel", FLOWKERNELS_PURE="ON")
    assert done.returncode == 0, done.stderr
    (wheel,) = (tree / "dist").iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")

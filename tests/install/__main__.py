"""Builds the sdist, a wheel from it, and installs that where nothing else is: `python -m tests.install --help`.

Every Python gets a wheel of its own; every pair of a Python and a torch gets an environment in build/install/, where
smoke.py and README's blocks run. PIP_ARGS goes to pip. Ends with a table, and with 1 where a row of it failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from . import blocks, package

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "build" / "install"
HERE = Path(__file__).parent
# Of torch, without CUDA's libraries.
PLAIN = ("filelock", "fsspec", "jinja2", "networkx", "sympy", "typing_extensions", "setuptools")


class Failed(Exception):
    """What one step said that failed."""


def call(*command: str | Path, cwd: Path | None = None, **env: str) -> str:
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env={**os.environ, **env}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode:
        raise Failed(f"{' '.join(str(c) for c in command[:6])}\n{done.stdout[-3000:]}")
    return done.stdout


def pip(python: Path | str, *arguments: str | Path) -> None:
    call(python, "-m", "pip", "--disable-pip-version-check", *arguments, *os.environ.get("PIP_ARGS", "").split())


def sdist() -> Path:
    """Of the tree as git would hand it over: what is listed and what is not ignored, no built module."""
    out = HOME / "sdist"
    shutil.rmtree(out, ignore_errors=True)
    code = f"import setuptools.build_meta as b; b.build_sdist({str(out)!r})"
    out.mkdir(parents=True)
    shutil.rmtree(ROOT / "flowkernels.egg-info", ignore_errors=True)  # what it lists would be taken along
    call(sys.executable, "-c", code, cwd=ROOT)
    (made,) = out.glob("*.tar.gz")
    with tarfile.open(made) as tar:
        inside = {name.partition("/")[2] for name in tar.getnames()}
    listed = subprocess.run(["git", "ls-files", *package.IN_SDIST], cwd=ROOT, capture_output=True, text=True)
    if absent := sorted(set(listed.stdout.split()) - inside):
        raise Failed(f"the sdist lacks {len(absent)} files: {', '.join(absent[:5])}")
    return made


def wheel(python: str, made: Path, version: str, short: bool) -> Path:
    """From the sdist, with what pyproject.toml asks for and nothing else."""
    out = HOME / f"wheel-{version}"
    shutil.rmtree(out, ignore_errors=True)
    arguments = os.environ.get("CMAKE_ARGS", "") + " -DFK_BASELINE_ONLY=ON" * short
    env = {"CMAKE_ARGS": arguments, "FLOWKERNELS_CUDA": os.environ.get("FLOWKERNELS_CUDA", "OFF")}
    # Pip builds in a new folder every time; a compiler cache then needs names that begin there.
    env |= {"CCACHE_BASEDIR": os.environ.get("TMPDIR", "/tmp"), "CCACHE_NOHASHDIR": "true"}
    call(
        python,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "wheel",
        "--quiet",
        "--no-deps",
        f"--wheel-dir={out}",
        made,
        **env,
    )
    (built,) = out.glob("*.whl")
    package.check_wheel(built)
    return built


def environment(python: str, version: str, torch: str, stub_cuda: bool) -> Path:
    """An empty one with torch alone; kept, as it is what takes longest."""
    venv = HOME / f"env-{version}-torch{torch}"
    inside = venv / "bin" / "python"
    if (venv / "ready").exists():
        pip(inside, "uninstall", "--quiet", "--yes", "flowkernels")
        return inside
    shutil.rmtree(venv, ignore_errors=True)
    call(python, "-m", "venv", venv)
    if stub_cuda:
        pip(inside, "install", "--quiet", "--no-deps", f"torch=={torch}")
        pip(inside, "install", "--quiet", *PLAIN)
        from . import stubs

        (lib,) = venv.glob("lib/python*/site-packages/torch/lib")
        stubs.write(lib)
    else:
        pip(inside, "install", "--quiet", f"torch=={torch}")
    (venv / "ready").touch()
    return inside


def check(inside: Path, built: Path, folder: Path) -> str:
    """Installs the wheel and uses it, in a folder that holds nothing."""
    readme = ROOT / "README.md"
    pins = (ROOT / "requirements" / "dev.txt").read_text()
    peers = [re.search(rf"^{name}==\S+", pins, re.MULTILINE) for name in sorted(blocks.imported(readme.read_text()))]
    pip(inside, "install", "--quiet", built, "numpy", *(p[0] for p in peers if p))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    said = [
        call(inside, HERE / "smoke.py", cwd=folder),
        call(inside, HERE / "blocks.py", readme, cwd=folder),
    ]
    info = call(inside, "-m", "flowkernels.info", cwd=folder)
    if "compiled module: absent" in info:
        raise Failed(info)
    return "; ".join(text.strip().splitlines()[-1] for text in said)


def version_of(python: str) -> str:
    return call(python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()


def pinned() -> str:
    return re.search(r"^torch==(\S+)", (ROOT / "requirements" / "torch.txt").read_text(), re.MULTILINE)[1]  # type: ignore[index]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.install", description=__doc__.splitlines()[0])
    parser.add_argument("--python", nargs="*", default=[sys.executable], help="interpreters; default: this one")
    parser.add_argument(
        "--torch", nargs="*", default=[pinned()], help="versions; default: that of requirements/torch.txt"
    )
    parser.add_argument("--short", action="store_true", help="kernels of the smallest instruction set alone")
    parser.add_argument("--stub-cuda", action="store_true", help="a torch built for CUDA, without CUDA's libraries")
    given = parser.parse_args()
    rows, failed = [], False
    try:
        made = sdist()
    except Failed as error:
        print(f"sdist: {error}")
        return 1
    print(f"{made.name}: {made.stat().st_size / 1e6:.2f} MB", flush=True)
    for python in given.python:
        begin = time.monotonic()
        try:
            version = version_of(python)
            built = wheel(python, made, version, given.short)
        except Failed as error:
            failed = True
            print(f"{python}: {error}", flush=True)
            continue
        size = f"{built.stat().st_size / 1e6:.2f} MB"
        print(f"{built.name}: {size}, {time.monotonic() - begin:.0f} s", flush=True)
        for torch in given.torch:
            begin = time.monotonic()
            try:
                said = check(environment(python, version, torch, given.stub_cuda), built, HOME / "empty")
            except Failed as error:
                failed = True
                said = "FAILED"
                print(error, flush=True)
            rows.append(f"python {version}, torch {torch}: {said} ({time.monotonic() - begin:.0f} s)")
            print(rows[-1], flush=True)
    print("\n".join(["", *rows]))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

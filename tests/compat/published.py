"""Runs the tests that a library publishes, with acceleration switched on."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def sdist(config: pytest.Config, name: str) -> Path:
    """The unpacked sdist of the installed version, kept in pytest's cache; skips where it cannot be had."""
    assert config.cache is not None
    folder = Path(str(config.cache.mkdir("sdists")))
    release = f"{name}-{importlib.metadata.version(name)}"
    if not (folder / release).is_dir():
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-binary", name, "--dest", str(folder)]
        command = [sys.executable, "-m", "pip", "download", *options, release.replace("-", "==")]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip(f"the sdist of {release} was not there after 60 s")
        if done.returncode:
            pytest.skip(f"no sdist of {release}: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
        with tarfile.open(next(folder.glob(f"{release}.tar*"))) as archive:
            archive.extractall(folder, filter="data")
    return folder / release


def run_published(library: str, folder: Path, tests: list[str], *options: str) -> tuple[int, set[str]]:
    """Runs these test files of a folder with `library` accelerated: how many passed, and which classes were."""
    here = Path(__file__).parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(here), str(ROOT))), "FLOWKERNELS_ACCELERATE": library}
    plugins = ["-p", "accelerate_when_made", "-p", "no:cacheprovider"]
    modes = ["--import-mode=importlib", "-c", os.devnull, "--rootdir", str(folder), "-o", f"pythonpath={folder.parent}"]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, *modes, *options, *tests]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    made = re.search(r"accelerated when made: (.*)", done.stdout)
    assert passed is not None and made is not None, done.stdout[-5000:]
    return int(passed[1]), set(made[1].split(", "))

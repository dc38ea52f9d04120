"""Runs the tests that a library publishes in its sdist, with acceleration switched on."""

from __future__ import annotations

import importlib.metadata
import os
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


def run_published(tests: list[str], folder: Path, classes: list[str], *options: str) -> str:
    """Runs these test files of a folder with `classes` accelerated when made; returns what pytest printed."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FLOWKERNELS_ACCELERATE": ",".join(classes)}
    plugins = ["-p", "tests.compat.accelerate_when_made", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, *options, *tests]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    return done.stdout

"""The libraries' own unit tests, with every module of an accelerated class accelerated as soon as it is built.

normflows installs its tests; nflows has them in its sdist, fetched here. glasflow publishes none: `test_parity.py` and
`test_libraries.py` have tests of its flows, written anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# What nflows' tests ask for and these layers do not do, by design.
BY_DESIGN = ["tests.transforms.nonlinearities_test.TestPiecewiseCDF.test_raises_domain_exception"]


def run(library: str, *folders: Path) -> dict:
    command = [sys.executable, str(HERE / "own_tests.py"), library, *map(str, folders)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_normflows():
    found = run("normflows")
    assert found["tests"] == 21
    assert found["fail without"] == 0
    assert found["fail only with"] == []
    assert {"MADE", "PiecewiseRationalQuadraticCoupling", "Invertible1x1Conv", "_LULinear"} <= set(found["built"])


def test_nflows(tmp_path):
    pytest.importorskip("torchtestcase", reason="nflows' tests need torchtestcase")
    from importlib.metadata import version

    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation", "--no-binary",
               ":all:", "--dest", str(tmp_path), f"nflows=={version('nflows')}"]  # fmt: skip
    fetched = subprocess.run(command, capture_output=True, text=True, timeout=120)
    archives = list(tmp_path.glob("*.tar.gz"))
    if fetched.returncode or not archives:
        pytest.skip(f"the sdist of nflows cannot be fetched: {fetched.stderr.strip()[-200:]}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(tmp_path, filter="data")
    found = run("nflows", tmp_path / archives[0].name.removesuffix(".tar.gz"))
    assert found["tests"] > 50
    assert found["fail only with"] == BY_DESIGN
    assert {"MADE", "PiecewiseRationalQuadraticCouplingTransform", "LULinear", "ActNorm"} <= set(found["built"])

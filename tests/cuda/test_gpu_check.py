"""The parts of `make gpu-check` that need no GPU: its phases, their time, and what it says without a device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.emulator import ROOT

sys.path.insert(0, str(ROOT / "bench"))
import gpu_bench
import gpu_check
import gpu_layers


def test_without_a_gpu_it_says_so_in_one_line(tmp_path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, "bench/gpu_check.py"], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, "OUT": str(tmp_path), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout.splitlines() == [f"gpu-check: torch {torch.__version__} sees no CUDA device"]
    assert not list(tmp_path.iterdir())


def test_the_phases_fit_their_time_and_name_files_that_exist(tmp_path) -> None:
    phases = gpu_check.phases(tmp_path / "site", tmp_path)
    assert sum(p.seconds for p in phases) <= gpu_check.TOTAL_SECONDS < 9 * 60
    for phase in phases:
        for word in phase.command:
            if word.endswith(".py") and not word.startswith("/"):
                assert (ROOT / word).exists(), word


def test_a_phase_is_stopped_and_its_last_line_kept(tmp_path) -> None:
    env = gpu_check.environment(tmp_path)
    sleeps = gpu_check.Phase(
        "sleep", 1, [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"]
    )
    row = gpu_check.run(sleeps, 2.0, env, tmp_path / "log")
    assert row["status"] == "stopped after 2 s" and row["last"] == "begun"
    fails = gpu_check.Phase("fails", 9, [sys.executable, "-c", "raise SystemExit(3)"])
    assert gpu_check.run(fails, 60.0, env, tmp_path / "log")["status"] == "failed (3)"
    missing = gpu_check.Phase("missing", 9, ["a-tool"], "a-tool-that-nobody-has")
    assert str(gpu_check.run(missing, 60.0, env, tmp_path / "log")["status"]).startswith("left out")


def test_the_benchmark_runs_its_rows_and_counts_their_bytes(tmp_path, capsys) -> None:
    out = Path(tmp_path) / "bench.json"
    assert gpu_bench.main(["--device", "cpu", "--quick", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert out.exists() and "| rqs | 64 | inverse | ours eager |" in text and "| affine | 64 | backward |" in text
    rqs = gpu_bench.operations()["rqs"]
    assert rqs.bytes_of(65536, "forward") == 65536 * (64 * 25 * 4 + 4)
    assert rqs.bytes_of(65536, "backward") == 65536 * (64 * 49 * 4 + 4)


def test_a_row_that_is_wrong_fails_the_benchmark(monkeypatch) -> None:
    right = gpu_bench.operations()
    wrong = right["affine"]._replace(
        function=lambda x, p, backend, inverse=False: (
            x if backend is None else right["affine"].function(x, p, backend, inverse)[0], x.sum(-1)
        )
    )  # fmt: skip
    monkeypatch.setattr(gpu_bench, "operations", lambda: {"affine": wrong})
    assert gpu_bench.main(["--device", "cpu", "--quick"]) == 1


def test_the_benchmark_of_layers_runs_its_rows(capsys) -> None:
    assert gpu_layers.main(["--device", "cpu", "--quick"]) == 0
    text = capsys.readouterr().out
    assert "| lu_linear inverse, backward, C = 12 |" in text and "× log_prob |" in text

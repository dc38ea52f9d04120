"""Calls of the CUDA module that were recorded are made again without torch; here on the emulator."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import emulator

TESTS = [
    f"tests/cuda/test_small.py::test_{name}"
    for name in ("channels[float32-actnorm-forward-planes]", "sweep[float32-softplus-residual]")
]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("calls") / "calls.jsonl"
    command = [sys.executable, "-m", "tests.cuda.recording", str(path), *TESTS]
    done = subprocess.run(command, cwd=emulator.ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return path


def replayed(path: Path) -> tuple[int, list[str]]:
    module = emulator.compile_module("all", emulator.sources())
    command = [sys.executable, "-S", "tests/cuda/replay.py", str(module), str(path), "--host"]  # -S: no torch to find
    done = subprocess.run(command, cwd=emulator.ROOT, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_they_leave_the_same_bytes_again(recorded) -> None:
    lines = [json.loads(line) for line in recorded.read_text().splitlines()]
    calls = [line["call"] for line in lines if "call" in line]
    assert {"actnorm_fwd", "actnorm_bwd", "sweep_fwd", "sweep_bwd"} <= set(calls)
    code, said = replayed(recorded)
    assert (code, said) == (0, [f"{len(calls)} calls, 0 of them wrong"])


def test_other_bytes_and_other_arguments_are_said(recorded, tmp_path) -> None:
    lines = [json.loads(line) for line in recorded.read_text().splitlines()]
    forward, backward = (next(n for n in lines if n.get("call") == f"actnorm_{way}") for way in ("fwd", "bwd"))
    forward["after"][3] = "0" * 16
    backward["arguments"]["tuple"].pop()
    path = tmp_path / "calls.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, said = replayed(path)
    assert code == 1 and "actnorm_fwd: other bytes in tensors [3]" in said[0]
    assert "actnorm_bwd: " in said[1] and "incompatible function arguments" in "\n".join(said)
    assert said[-1].endswith(" 2 of them wrong")

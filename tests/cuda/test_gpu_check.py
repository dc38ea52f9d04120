"""The parts of `make gpu-check` that need no GPU: its phases, their time, and what it says without a device."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.gpu import check as gpu_check
from bench.gpu import first_call as gpu_first_call
from bench.gpu import layers as gpu_layers
from bench.gpu import maps as gpu_maps
from bench.gpu import masked as gpu_masked
from bench.gpu import timing as gpu_timing
from tests.emulator import ROOT


def test_without_a_gpu_it_says_so_in_one_line(tmp_path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu.check"], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, "OUT": str(tmp_path), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout.splitlines() == [f"gpu-check: torch {torch.__version__} sees no CUDA device"]
    assert not list(tmp_path.iterdir())


def test_the_phases_fit_their_time_and_name_files_that_exist(tmp_path) -> None:
    phases = gpu_check.phases(tmp_path / "site", tmp_path)
    assert sum(p.seconds for p in phases) <= gpu_check.TOTAL_SECONDS < 9 * 60
    for phase in phases:
        assert all((ROOT / f"{m.replace('.', '/')}.py").exists() for m in phase.command if m.startswith("bench."))
        for word in phase.command:
            file, _, test = word.partition("::")
            if file.endswith(".py") and not file.startswith("/"):
                assert f"def {test.partition('[')[0]}" in (ROOT / file).read_text(), word
    of = {p.name: p.command for p in phases}
    calls = of["record"][of["record"].index("tests.cuda.recording") + 1]
    assert all(of[tool][-3:] == ["tests/cuda/replay.py", "flowkernels", calls] for tool in ("memcheck", "racecheck"))
    assert of["triton"][:2] == ["env", "FLOWKERNELS_BACKEND=triton"] and "tests/ops/test_triton.py" in of["triton"]
    assert {word.partition("::")[0] for word in of["triton"]} >= set(gpu_check.ON_DEVICE)


def test_a_phase_may_take_what_those_before_it_left() -> None:
    todo = [gpu_check.Phase(name, seconds, []) for name, seconds in (("a", 100), ("b", 200), ("c", 230))]
    assert gpu_check.TOTAL_SECONDS == 530
    assert [gpu_check.allowance(todo, i, spent) for i, spent in ((0, 0.0), (1, 40.0), (2, 300.0))] == [100, 260, 230]


def test_a_phase_is_stopped_with_all_it_started_and_says_what_it_saw(tmp_path, monkeypatch) -> None:
    """A compiler or a sanitizer's target that ran on would spoil the times of the next phase."""
    env, log = gpu_check.environment(tmp_path), tmp_path / "log"
    monkeypatch.setattr(gpu_check, "GRACE_SECONDS", 3)
    waits = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('a failure', flush=True); time.sleep(60)"
    program = (  # silent when it is stopped: a traceback would fall between the other's words
        "import subprocess, sys; p = subprocess.Popen(sys.argv[1:]); print(p.pid, flush=True)\n"
        "try: p.wait()\nexcept KeyboardInterrupt: p.wait()"
    )
    starts = gpu_check.Phase("starts", 1, [sys.executable, "-c", program, sys.executable, "-c", waits])
    row = gpu_check.run(starts, 10.0, env, log)  # seconds in which a busy machine starts two Pythons
    assert row["status"] == "stopped after 10 s" and "a failure" in log.read_text().splitlines()
    started = next(int(line) for line in log.read_text().splitlines() if line.isdigit())
    state = Path(f"/proc/{started}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"
    fails = gpu_check.Phase("fails", 9, [sys.executable, "-c", "print('last'); raise SystemExit(3)"])
    row = gpu_check.run(fails, 60.0, env, log)
    assert row["status"] == "failed (3)" and row["last"] == "last"
    assert [line[:11] for line in log.read_text().splitlines() if line[:4] == "===="] == ["==== starts", "==== fails:"]
    missing = gpu_check.Phase("missing", 9, ["a-tool"], "a-tool-that-nobody-has")
    assert str(gpu_check.run(missing, 60.0, env, log)["status"]).startswith("left out")


@pytest.mark.slow
def test_tests_after_one_that_lost_the_context_run_in_a_new_process(tmp_path) -> None:
    """On a machine without a GPU: torch.cuda.synchronize is what says that the context is lost."""
    lines = [
        "import torch", "def lost(): raise RuntimeError('illegal access')", "torch.cuda.synchronize = lambda: None",
        "def test_a(): pass", "def test_b(): torch.cuda.synchronize = lost", "def test_c(): assert False",
        "def test_d(): pass",
    ]  # fmt: skip
    file, ran, log = tmp_path / "test_it.py", tmp_path / "ran", tmp_path / "log"
    file.write_text("\n".join(lines))
    options = ["-q", "-p", "tests.conftest", "--device", "cuda", "--ran", str(ran), str(file)]
    phase = gpu_check.Phase("tests", 60, [sys.executable, "-m", "pytest", *options], None, ran)
    row = gpu_check.run(phase, 60.0, gpu_check.environment(tmp_path), log)
    assert row["status"] == f"failed ({gpu_check.INTERRUPTED})" and "context is lost: illegal access" in log.read_text()
    assert [line.partition("::")[2] for line in ran.read_text().splitlines()] == [f"test_{x}" for x in "abcd"]
    assert "1 failed, 1 passed, 2 deselected" in str(row["last"])


def test_wheels_are_installed_where_the_package_is_missing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(gpu_check, "WHEELS", tmp_path)
    assert gpu_check.phases(tmp_path, tmp_path)[0].name == "build"
    for name in ("pytest-1-py3-none-any.whl", "nobodys_package-1-py3-none-any.whl"):
        (tmp_path / name).touch()
    install = gpu_check.phases(tmp_path, tmp_path)[0]
    assert install.name == "install" and install.command[-1] == str(tmp_path / "nobodys_package-1-py3-none-any.whl")
    assert not any("pytest" in Path(word).name for word in install.command)


def test_what_it_cannot_do_without_is_said_first(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(gpu_check, "WHEELS", tmp_path)
    monkeypatch.setattr(gpu_check, "BUILDING", ("pytest", "nobodys_package", "brought_along"))
    (tmp_path / "brought_along-1-py3-none-any.whl").touch()
    assert gpu_check.missing() == ["nobodys_package"]
    for name, found in (("is_available", True), ("get_device_name", "A GPU")):
        monkeypatch.setattr(torch.cuda, name, lambda found=found: found)
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setattr(sys, "argv", ["check"])
    assert gpu_check.main() == 1
    said = capsys.readouterr().out
    assert "got no nobodys_package in" in said and "--fetch 3." in said and not (tmp_path / "out").exists()


def test_programs_of_this_python_are_found(tmp_path) -> None:
    assert str(Path(sys.executable).parent) in gpu_check.environment(tmp_path)["PATH"].split(os.pathsep)


@pytest.fixture
def quick(one_thread) -> list[str]:
    """The options of a run that ends soon."""
    return ["--device", "cpu", "--quick"]


NO_TRITON = "ours, triton: BackendUnavailableError"  # outside of its interpreter


def test_the_benchmark_runs_its_rows_and_counts_their_bytes(tmp_path, capsys, quick) -> None:
    out = Path(tmp_path) / "bench.json"
    assert gpu_maps.main([*quick, "--json", str(out)]) == 0
    text, report = capsys.readouterr().out, json.loads(out.read_text())
    assert f"affine 64 backward {NO_TRITON}" in text and text.strip() == gpu_maps.table(report)
    found = {(r["op"], r["direction"], r["row"]) for r in report["rows"]}
    rows = [("rqs", row) for row in ("ours, cpu", "nflows eager", "zuko eager")]
    rows += [("affine", row) for row in ("ours, cpu", "nflows eager")]
    assert found == {(op, direction, row) for op, row in rows for direction in gpu_maps.DIRECTIONS}
    rqs = gpu_maps.operations()["rqs"]
    assert rqs.bytes_of(65536, "forward") == 65536 * (64 * 25 * 4 + 4)
    assert rqs.bytes_of(65536, "backward") == 65536 * (64 * 49 * 4 + 4)


@pytest.mark.parametrize("inverse", [False, True])
def test_the_affine_map_of_nflows_is_ours_in_its_order_of_params(inverse) -> None:
    affine = gpu_maps.operations()["affine"]
    x, params = affine.tensors(5, "cpu")
    found = affine.peers["nflows"](x, torch.stack([params[..., 1], params[..., 0]], 1), inverse=inverse)
    torch.testing.assert_close(found, affine.function(x, params, "reference", inverse))


def test_compiled_rows_are_made_anew_for_every_pass(monkeypatch, one_thread) -> None:
    """torch.compile, without asking for its minutes: what it is given, and in which modes."""
    given = []
    monkeypatch.setattr(torch, "compile", lambda f, mode, dynamic: given.append((mode, dynamic)) or f)
    rows = gpu_timing.Rows("cpu", True, 60.0)
    gpu_maps.compiled(rows, 4, "rqs", gpu_maps.operations()["rqs"])
    names = [r["row"] for r in rows.report["rows"]]
    assert names == [f"{who} {how}" for how in gpu_maps.MODES for who in ("torch", "zuko") for _ in range(3)]
    assert given == [(mode, False) for mode in gpu_maps.MODES.values() for _ in range(6)]


@pytest.mark.parametrize("wrong", ["y", "backward"])
def test_a_row_that_is_wrong_fails_the_benchmark(wrong, monkeypatch, quick) -> None:
    right = gpu_maps.operations()["affine"]

    def function(x, params, backend, inverse=False):
        y, ladj = right.function(x, params, backend, inverse)
        if backend == "cpu":
            y = y * 1.001 if wrong == "y" else y.detach() + 1.001 * (y - y.detach())
        return y, ladj

    monkeypatch.setattr(gpu_maps, "operations", lambda: {"affine": right._replace(function=function, peers={})})
    assert gpu_maps.main(quick) == 1


def test_tables_are_printed_by_a_python_that_has_no_flowkernels_installed(tmp_path) -> None:
    """As `make gpu-check` starts it."""
    for name in gpu_check.BENCHMARKS:
        report = {"gpu": name, "torch": "2", "copy_gbps": 1.0, "rows": [], "left_out": ["late"]}
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
    first = [{"op": "rqs", "cache": "from disk", "first_ms": 3.0, "second_ms": 0.1}]
    (tmp_path / f"{gpu_check.FIRST_CALL}.json").write_text(json.dumps({"rows": first}))
    program = f"from bench.gpu import check; import pathlib; check.print_tables(pathlib.Path({str(tmp_path)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| rqs | from disk | 3.0 | 0.10 |" in done.stdout
    assert [line for line in done.stdout.splitlines() if ", torch 2, copy 1 GB/s" in line] == [
        f"{name}, torch 2, copy 1 GB/s" for name in gpu_check.BENCHMARKS
    ]


def test_what_comes_too_late_or_fails_is_left_out_and_the_rest_kept(tmp_path) -> None:
    out = Path(tmp_path) / "rows.json"
    rows = gpu_timing.Rows("cpu", True, 60.0, out)
    assert rows.add(lambda: lambda: None, 1000, op="a", row="b")
    assert rows.add(lambda: 1 / 0, op="a", row="c") is None  # type: ignore[arg-type, return-value]
    rows._deadline = 0.0
    assert rows.add(lambda: lambda: None, op="a", row="d") is None
    kept = json.loads(out.read_text())
    assert [r["row"] for r in kept["rows"]] == ["b"]
    assert kept["left_out"] == ["a c: ZeroDivisionError division by zero", "a d: no time left"]


def test_a_graph_is_a_row_beside_its_call(monkeypatch, one_thread) -> None:
    """On a machine without a GPU: its capture is what runs."""
    captured = []
    monkeypatch.setattr(gpu_timing, "captured", lambda run: captured.append(run) or run)
    rows = gpu_timing.Rows("cpu", True, 60.0)
    rows.graphs = True
    product = gpu_masked.Product(1e12)
    for name, baseline in (("a", True), ("b", False)):
        figures = functools.partial(product.figures, baseline=baseline)
        rows.add(lambda: lambda: None, 1000, figures=figures, graph=baseline, what="x", row=name)
    assert [(r["what"], r["row"]) for r in rows.report["rows"]] == [("x", "a"), ("x", "a, graph"), ("x", "b")]
    assert len(captured) == 1
    first = rows.report["rows"][0]
    for row in rows.report["rows"]:
        assert row["speedup"] == pytest.approx(first["us"] / row["us"])
        assert (row["tflops"], row["gbps"]) == pytest.approx((1e6 / row["us"], 1 / row["us"]))
    late = gpu_masked.Product(1e12)  # whose baseline was left out
    assert late.figures(0.5, baseline=False) == {"tflops": 2.0}


def test_the_benchmark_of_layers_runs_its_rows(capsys, quick) -> None:
    assert gpu_layers.main(quick) == 0
    text = capsys.readouterr().out
    assert "| lu_linear inverse, backward, C = 48 | ours, cpu |" in text
    samples = [line for line in text.splitlines() if line.endswith("× log_prob |")]
    assert [line.split(" | ")[0] for line in samples] == ["| MAF, D = 64, sample", "| MAF, D = 64, sample, backward"]
    assert f"actnorm forward, C = 48 {NO_TRITON}" in text


def test_the_benchmark_of_masked_layers_runs_its_rows(tmp_path, capsys, quick) -> None:
    before, out = torch.get_float32_matmul_precision(), Path(tmp_path) / "masked.json"
    assert gpu_masked.main([*quick, "--json", str(out)]) == 0
    assert torch.get_float32_matmul_precision() == before
    report = json.loads(out.read_text())
    found = [(r["dtype"], r["what"], r["row"]) for r in report["rows"]]
    names = (gpu_masked.MASKED, gpu_masked.BEFORE, "ours, cpu")
    assert found == [
        row for d in gpu_masked.DTYPES
        for row in (
            *((d, what, name) for what in gpu_masked.PASSES for name in names),
            *((d, what, name) for what in ("network", "network, backward") for name in ("plain PyTorch", "ours, cpu")),
        )
    ]  # fmt: skip
    assert len(report["left_out"]) == 9 and NO_TRITON in report["left_out"][0]
    row = report["rows"][1]
    assert row["tflops"] == pytest.approx(2 * 32 * 40 * 40 / row["us"] / 1e6)
    assert row["speedup"] == pytest.approx(report["rows"][0]["us"] / row["us"])


def test_masked_beforehand_is_masked_in_the_call() -> None:
    tensors = gpu_masked.draw(3, 12, torch.float64, "cpu")
    plan_mask = gpu_masked.layer_plan(range(1, 13), range(1, 13)).mask(tensors[1])
    assert torch.equal(gpu_masked.beforehand(tensors)[1], tensors[1] * plan_mask)


def test_rows_of_triton_run_in_its_interpreter() -> None:
    """bfloat16 is wrong there."""
    program = (
        "from bench.gpu import masked; import torch; torch.set_num_threads(1); del masked.DTYPES['bfloat16'];"
        " raise SystemExit(masked.main(['--device', 'cpu', '--quick']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=200,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    assert all(f"| tf32 | {what} | ours, triton |" in done.stdout for what in gpu_masked.PASSES)


@pytest.mark.slow
def test_first_calls_are_timed_with_an_empty_cache_and_from_disk(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    out = Path(tmp_path) / "first.json"
    assert gpu_first_call.main(["--device", "cpu", "--quick", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [r["cache"] for r in rows] == ["compiled", "from disk"]
    assert all(r["first_ms"] > 0 and r["second_ms"] > 0 for r in rows)
    assert capsys.readouterr().out.strip() == gpu_first_call.table({"rows": rows})

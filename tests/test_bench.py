"""The benchmark on tiny sizes: its rows agree, a wrong row is caught, bytes are counted exactly, its JSON is clean."""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import traces
from bench.bench_suites import SUITES
from bench.report import compare, machine, memory
from bench.suite import BACKWARD, FORWARD, INVERSE
from bench.suites import affine, dropin, glue, masked, model, ode_flow, residual_flow, rqs, sample
from bench.suites.dropin_models import MODELS
from flowkernels import _native

BENCH = Path(__file__).parents[1] / "bench"

pytestmark = pytest.mark.skipif(_native.C is None, reason=f"the benchmark times the kernels: {_native.why_missing}")


# ---- closeness ----


@pytest.mark.parametrize("op", rqs.OPS)
@pytest.mark.parametrize("name", list(rqs.ROWS))
def test_rows_agree_with_the_truth(name: str, op: str) -> None:
    row = rqs.ROWS[name]
    if reason := row.missing():
        pytest.skip(reason)
    inputs = rqs.Inputs.make(64, 5, 8)
    truth = rqs.float64_truth(row.truth, inputs, op, chunk=24)  # in pieces, the last one short
    # The function itself, not compiled: compiling takes longer than all of this file.
    assert 0 < rqs.worst_error(name, rqs.bind(row.of, inputs, op)(), truth, 8) < 1e-4


def _with(outputs: tuple[torch.Tensor, ...], i: int, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (*outputs[:i], value, *outputs[i + 1 :])


def test_a_wrong_row_is_caught() -> None:
    inputs = rqs.Inputs.make(32, 5, 8)
    truth = rqs.float64_truth(rqs.ROWS["flowkernels"].truth, inputs, rqs.OPS[2])
    right = tuple(t.float() for t in truth)
    rqs.worst_error("right", right, truth, 8)
    y, ladj, grad_x, grad_params = right
    one_element = y.clone()
    one_element[3, 2] += 0.01
    no_slopes = grad_params.clone()
    no_slopes[..., 16:] = 0
    swapped = torch.cat([grad_params[..., 8:16], grad_params[..., :8], grad_params[..., 16:]], -1)
    wrong = {
        "y": _with(right, 0, one_element),
        "ladj": _with(right, 1, -ladj),
        "grad x": _with(right, 2, grad_x * 1.05),
        "grad slopes": _with(right, 3, no_slopes),
        "grad widths": _with(right, 3, swapped),
    }
    for quantity, outputs in wrong.items():
        with pytest.raises(AssertionError, match=f"wrong: {quantity} must be"):
            rqs.worst_error("wrong", outputs, truth, 8)
    for bad in (float("nan"), float("inf")):
        y = right[0].clone()
        y[0, 0] = bad
        with pytest.raises(AssertionError, match="y must be"):
            rqs.worst_error("wrong", _with(right, 0, y), truth, 8)


def test_inputs_stay_off_the_knots() -> None:
    bins = 32
    inputs = rqs.Inputs.make(512, 16, bins)
    for parametrization in ("softmax", "soft_clip"):
        spec = rqs.spec_of(bins, parametrization)
        logits = inputs.params[..., :bins].double()
        knots, _ = rqs.reference._knots(logits, spec.left, spec.right, spec.least_width, spec)
        assert (inputs.x[..., None] - knots).abs().min() > 0.4 * rqs.KNOT_MARGIN


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("row", dropin.ROWS)
@pytest.mark.parametrize("name", MODELS)
def test_models_of_the_libraries_agree_before_and_after(name: str, row: str) -> None:
    pytest.importorskip(MODELS[name].library)
    inputs, built = model.Inputs.make(5, 24), dropin.build(name, row, 5, 16, 2)
    for op in model.OPS:
        assert model.worst_error(built, op, inputs, dropin.float64_truth(name, inputs, op, 16, 2)) < 1e-4
        assert model.bind(built, op, inputs.x)().isfinite().all()


@pytest.mark.parametrize("op", model.OPS)
@pytest.mark.parametrize("name", [n for n in model.ROWS if "compiled" not in n])
def test_models_agree_with_the_truth(name: str, op: str) -> None:
    pytest.importorskip("nflows", reason="nflows is not installed")
    inputs, built = model.Inputs.make(6, 16), model.build(name, 6)
    truth = model.float64_truth(model.ROWS[name].truth, inputs, op)
    assert 0 < model.worst_error(built, op, inputs, truth) < 1e-4
    before = [p.clone() for p in built.module.parameters()]
    assert model.bind(built, op, inputs.x)().isfinite().all()
    moved = any(not torch.equal(a, b) for a, b in zip(before, built.module.parameters(), strict=True))
    assert moved == (op == "training step")
    with torch.no_grad():
        for weight in built.module.parameters():
            weight *= 1.01
    with pytest.raises(AssertionError, match="of the float64 truth"):
        model.worst_error(built, op, inputs, truth)


@pytest.mark.parametrize("op", masked.OPS)
@pytest.mark.parametrize("name", [n for n in masked.ROWS if "compiled" not in n])
def test_masked_layers_agree_with_the_truth(name: str, op: str) -> None:
    for size in ((16, 64, 70), (33, 70, 40)):  # from features, and from another layer's units
        inputs = masked.Inputs.make(*size)
        truth, outputs = masked.float64_truth(None, inputs, op), masked.bind(masked.ROWS[name], inputs, op)()
        assert masked.worst_error(name, inputs, outputs, truth) < 1e-5
        for i in range(len(outputs)):
            with pytest.raises(AssertionError, match="of the float64 truth"):
                masked.worst_error(name, inputs, _with(outputs, i, 1.01 * outputs[i]), truth)


@pytest.mark.parametrize("op", affine.OPS)
@pytest.mark.parametrize("name", [n for n in affine.ROWS if "compiled" not in n])
def test_couplings_agree_with_the_truth(name: str, op: str) -> None:
    row = affine.ROWS[name]
    if reason := row.missing():
        pytest.skip(reason)
    for shape in ((7, 6), (3, 4, 5, 2)):
        inputs = affine.Inputs.make(*shape)
        truth = affine.float64_truth(row.truth, inputs, op)
        outputs = affine.bind(row.of(shape[1]), inputs, op)()
        assert len(outputs) == (4 if op == "forward + backward" else 2)
        assert affine.worst_error(name, outputs, truth) < 1e-5
        for i in range(len(outputs)):
            with pytest.raises(AssertionError, match="of the float64 truth"):
                affine.worst_error(name, _with(outputs, i, 1.01 * outputs[i]), truth)


def test_masked_layers_have_the_degrees_of_nflows() -> None:
    made = pytest.importorskip("nflows.transforms.made", reason="nflows is not installed")
    first = made.MaskedLinear(torch.arange(1, 65), 70, 64, random_mask=False, is_output=False)
    second = made.MaskedLinear(first.degrees, 40, 64, random_mask=False, is_output=False)
    for theirs, ours in ((first, masked.plan_of(64, 70)), (second, masked.plan_of(70, 40))):
        assert torch.equal(theirs.mask, ours.mask(theirs.mask))


@pytest.mark.parametrize("kind", sample.KINDS)
@pytest.mark.parametrize("name", list(sample.ROWS))
def test_samplers_agree_with_the_truth(name: str, kind: str) -> None:
    row = sample.ROWS[name]
    if reason := row.missing():
        pytest.skip(reason)
    inputs = sample.Inputs.make(kind, 5, 16, 9)
    sampler, exact = sample.build(name, *inputs.net), sample.exact_latent(row.truth, *inputs.net)
    assert sample.worst_error(name, sampler, inputs.z, exact) < 1e-5
    assert sample.bind(name, sampler, inputs.z)().isfinite().all()
    data, latent = sampler.data, sampler.latent
    wrong = sampler._replace(data=lambda z: 1.01 * data(z), latent=lambda x: (latent(x)[0], 1.01 * latent(x)[1]))
    with pytest.raises(AssertionError, match="of the float64 truth"):
        sample.worst_error(name, wrong, inputs.z, exact)


def test_rows_of_minutes_are_skipped() -> None:
    nflows, density = sample.ROWS["nflows eager"], sample.ROWS[sample.DENSITY]
    assert sample.too_slow(nflows, "spline", 784, 1024, 1024)
    assert sample.too_slow(nflows, "affine", 784, 1024, 64) is None
    assert sample.too_slow(density, "spline", 784, 1024, 1024) is None


@pytest.mark.parametrize("name", glue.CALLS)
def test_glue_calls_no_kernel_and_mends_what_it_replaced(name: str) -> None:
    pytest.importorskip("nflows", reason="nflows is not installed")
    entries = {entry: getattr(_native.C, entry) for entry in dir(_native.C) if entry.endswith("_fwd")}
    with glue.alone():
        assert torch.get_num_threads() == 1 and not torch.is_grad_enabled()
        ours, theirs = glue.CALLS[name](2)
        right = ours()
        assert glue.worst_error(right, theirs()) < 1e-4
        with pytest.raises(AssertionError):
            glue.worst_error(_with(right, 0, 1.01 * right[0]), theirs())
        with glue.without_kernels(ours):
            assert not any(getattr(_native.C, entry) is kernel for entry, kernel in entries.items())
        with pytest.raises(AssertionError, match="one entry must be called"), glue.without_kernels(theirs):
            pass
        assert all(getattr(_native.C, entry) is kernel for entry, kernel in entries.items())
        assert all(torch.equal(a, b) for a, b in zip(ours(), right, strict=True))


# ---- the suites ----


def test_every_row_has_a_name_of_its_own_and_a_truth() -> None:
    names = [suite.id(*point) for suite in SUITES for point in suite.points]
    assert len(set(names)) == len(names) and all(re.fullmatch(r"\w+", name) for name in names)
    places = {(suite.title, suite.label(*point.size), *point[1:]) for suite in SUITES for point in suite.points}
    assert len(places) == len(names)
    assert all(point.row in suite.rows for suite in SUITES for point in suite.points)


def test_published_results_are_rows_of_the_suites() -> None:
    """So that a run can be compared with them."""
    known = {
        (suite.title, suite.label(*point.size), point.op, row)
        for suite in SUITES
        for point in suite.points
        for row in (point.row, suite.beside)
    }
    for path in (BENCH / "results").glob("*/results.json"):
        published = {(r["suite"], r["case"], r["op"], r["row"]) for r in compare.load(path).rows}
        assert published and not published - known


# ---- bytes ----


def test_saved_bytes_are_exact() -> None:
    x = torch.randn(1000, requires_grad=True)
    weight = torch.randn(1000, requires_grad=True)
    assert memory.saved_bytes(x.exp) == 4000  # its result
    assert memory.saved_bytes(lambda: x.exp().sin()) == 4000  # which is also the input of sin
    assert memory.saved_bytes(lambda: x * weight) == 8000
    assert memory.saved_bytes(lambda: x * weight, resident=[weight]) == 4000
    assert memory.saved_bytes(lambda: (x.exp(), x)[1]) == 0  # dropped on the way


def test_our_spline_saves_its_inputs_only() -> None:
    inputs = rqs.Inputs.make(64, 5, 8)
    forward, _ = rqs.bind_graph(rqs.ROWS["flowkernels"].of, inputs)
    assert memory.saved_bytes(forward) == inputs.x.nbytes + inputs.params.nbytes


def test_peak_bytes_are_exact() -> None:
    x = torch.randn(100_000)
    assert memory.peak_bytes(x.clone) == x.nbytes
    assert memory.peak_bytes(lambda: x.clone().clone()) == 2 * x.nbytes
    assert memory.peak_bytes(lambda: [x.clone() is None for _ in range(3)]) == x.nbytes  # one at a time


def test_least_bytes() -> None:
    inputs = rqs.Inputs.make(10, 3, 8)
    forward = 4 * (30 + 30 * 23 + 30 + 10)
    assert inputs.least_bytes("forward") == inputs.least_bytes("inverse") == forward
    assert inputs.least_bytes("forward + backward") == 2 * forward + 4 * (30 + 30 * 23)


# ---- results ----


def _run(speed: float) -> dict[str, Any]:
    """A run as pytest-benchmark writes it, with what must not be published."""
    medians = {"nflows eager": 0.5, "zuko compiled": 0.1, "plain torch compiled": 0.05, "flowkernels": 0.02}
    shared = {
        "suite": "spline", "case": "8x8 K=8", "op": "forward", "gbps": 10.0, "share_of_read": 0.5,
        "saved_bytes": 3_000_000, "peak_bytes": 5_000_000, "secret": "/home/someone",
    }  # fmt: skip
    benchmarks = [
        {
            "fullname": "/home/someone/bench/bench_rqs.py",
            "stats": {"median": t / speed, "iqr": t / 100, "rounds": 5, "iterations": 1, "data": [t] * 5},
            "extra_info": {**shared, "row": row},
        }
        for row, t in medians.items()
    ]
    machine_info = {"node": "a-host-name", "cpu": "AMD EPYC(TM) 7", "isa": "avx2", "threads": 2, "read_gbps": 20.0}
    refused = {"suite": "spline", "case": "8x8 K=8", "op": "forward", "row": "nflows compiled", "reason": "is wrong"}
    return {
        "machine_info": {**machine_info, "copy_gbps": 15.0},
        "commit_info": {"project": "/home/someone"},
        "benchmarks": benchmarks,
        "refused": [refused],
    }


def test_results_are_small_clean_and_complete(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    raw = tmp_path / "run.json"
    raw.write_text(json.dumps(_run(1.0)))
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- bench:begin -->\nold figures\n<!-- bench:end -->\nafter\n")
    compare.main([str(raw), "--out", str(tmp_path), "--page", str(page)])
    folder = tmp_path / "amd-epyc-7-avx2-2-threads"
    assert sorted(p.name for p in folder.iterdir()) == ["plot-spline.png", "results.json", "table.md"]
    assert "![ratios](plot-spline.png)" in (folder / "table.md").read_text()
    text = (folder / "results.json").read_text()
    assert not any(word in text for word in ("a-host-name", "/home", "secret", "data"))
    assert compare.load(folder / "results.json") == compare.load(raw)
    cells = "spline, 8x8 K=8|forward|500 ms|50.0 ms|20.0 ms|25.0×|2.50×|10.0|50%|3.00 → 3.00|5.00 → 5.00"
    lines = [re.sub(r" *\| *", "|", line).strip("|") for line in page.read_text().splitlines()]
    assert cells in lines
    assert "old figures" not in page.read_text() and page.read_text().endswith("after\n")
    assert "Not timed: is wrong." in (folder / "table.md").read_text()


def test_plots_are_a_page_per_suite(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from bench.report.plot import FEWEST_ROWS, draw

    machine_info = compare.load(_written(tmp_path)).machine
    names = (compare.BASELINE, "zuko compiled", "flowkernels", "plain torch")
    rows = [
        {"suite": suite, "case": case, "op": "forward", "row": row, "median_s": 1e-3 * (i + 1)}
        for suite, cases in (("one layer", "abcde"), ("LU 1x1", "a"), ("few rows", "a"))
        for case in cases
        for i, row in enumerate(names[: FEWEST_ROWS - 1 if suite == "few rows" else None])
    ]
    (tmp_path / "plot.png").write_text("of an earlier run")
    assert draw(compare.Result(machine_info, rows, []), tmp_path) == ["plot-one-layer.png", "plot-lu-1x1.png"]
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["plot-lu-1x1.png", "plot-one-layer.png"]
    for name in ("plot-one-layer.png", "plot-lu-1x1.png"):
        width, height = struct.unpack(">II", (tmp_path / name).read_bytes()[16:24])
        assert 900 <= width <= 2000 and height <= 1.5 * width


def _written(folder: Path) -> Path:
    (folder / "run.json").write_text(json.dumps(_run(1.0)))
    return folder / "run.json"


def test_two_runs_are_compared_row_by_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, head = tmp_path / "base.json", tmp_path / "head.json"
    base.write_text(json.dumps(_run(1.0)))
    head.write_text(json.dumps(_run(2.0)))
    compare.main(["--base", str(base), "--head", str(head)])
    printed = capsys.readouterr().out
    assert printed.count("faster") == 4 and "geometric mean 2.00× over 4 rows" in printed


def test_machine_names_no_host() -> None:
    described = machine.describe()
    assert described["threads"] == torch.get_num_threads() and described["isa"] in _native.C.isas()
    assert platform.node() not in described.values()
    assert set(described) <= set(compare.MACHINE_FIELDS)


def test_bandwidth_counts_what_is_read_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(machine.time, "perf_counter", lambda: float(next(ticks)))  # every call takes a second
    assert machine.bandwidth(4000, repeats=2) == pytest.approx({"read_gbps": 4e-6, "copy_gbps": 8e-6})


def test_the_command_runs(tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    selected = "(64x8 or 512x6_K8_forward_backward) and flowkernels or zuko_Real_NVP_D21_batch_512_log_prob"
    command = [sys.executable, "-m", "pytest", str(BENCH), "--quick", "--threads=1", "-k", selected]
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}  # under which nothing is timed
    done = subprocess.run([*command, f"--benchmark-json={out}"], capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "**spline, 4x6 K=8, forward + backward**" in done.stdout
    result = compare.load(out)
    *together, first, second = result.rows
    assert [first["op"], second["op"]] == ["forward + backward", "forward"]
    assert first["saved_bytes"] == 4 * 4 * 6 * 24 and result.machine["read_gbps"] > 0
    assert [row["row"] for row in together] == ["before", "accelerated"]  # timed turn by turn
    assert together[0]["rounds"] == together[1]["rounds"] > 0 and all(row["median_s"] > 0 for row in together)


# ---- traces ----


@pytest.mark.slow
def test_traces_are_measured_and_plotted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "ROWS", 4)
    monkeypatch.setattr(traces, "TURNS", 1)
    assert traces.main(["--folder", str(tmp_path), "--most", "4"]) == 0
    found = json.loads((tmp_path / "traces.json").read_text())
    assert [*found["forward"]["exact"]] == ["2", "4"] and found["forward + backward"]["hutchinson"]["4"] > 0
    assert (tmp_path / "plot-traces.png").stat().st_size > 1000


@pytest.mark.parametrize("op", [FORWARD, INVERSE, BACKWARD])
@pytest.mark.parametrize(
    "suite",
    [
        pytest.param(ode_flow.SUITE, id="continuous", marks=pytest.mark.slow),
        pytest.param(residual_flow.SUITE, id="residual"),
    ],
)
def test_rows_of_fields_agree_with_the_truth(suite: Any, op: str) -> None:
    point = next(p for p in suite.points if p.op == op)
    inputs = suite.inputs(*suite.smaller(*point.size))
    for name in [p.row for p in suite.points if p.op == op and p.size == point.size]:
        row = suite.rows[name]
        assert suite.ready(row, inputs, op).error(suite.truth(row.truth, inputs, op)) < 1e-2

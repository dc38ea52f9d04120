"""The grid of whole models, on tiny sizes: rows agree with their truth, a file is whole, a page says what is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.grid import cells, page
from bench.grid.rivals import BY_TENSOR, MODELS, OPS, OURS, RIVALS
from bench.suite import STEP
from flowkernels import _native

pytestmark = pytest.mark.skipif(_native.C is None, reason=f"the benchmark times the kernels: {_native.why_missing}")

EAGER = [(m, r) for r in RIVALS.values() for m in r.models if not r.name.endswith(("compiled", "jit"))]


@pytest.mark.parametrize(("model", "rival"), EAGER, ids=[f"{m}-{r.name}" for m, r in EAGER])
def test_rows_agree_with_the_truth(model: str, rival: cells.Found) -> None:
    if rival.package is not None:
        pytest.importorskip(rival.package)
    try:
        entry = rival.make(model, 5, 8)
    except LookupError as why:  # what accelerate leaves to the library
        pytest.skip(str(why))
    for op in (STEP,) if rival.name == BY_TENSOR else OPS:
        assert entry.error(op) < 1e-4
        entry.call(op)()


def test_ours_and_plain_torch_are_the_same_size() -> None:
    for model in MODELS:
        entries = [RIVALS[name].make(model, 4, 2) for name in (OURS, "plain torch")]
        assert entries[0].n_params == entries[1].n_params


def test_a_run_is_kept_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "SECONDS_PER_TURN", 1e-4)
    grid = {}
    for cell in cells.cells(["NICE"], [(4, 2)], 1):
        grid[cell] = cells.measure(cell, [OURS, "plain torch"], print)
        cells.write(tmp_path / "grid.json", {"torch": "x"}, grid)
    assert cells.read(tmp_path / "grid.json") == grid and len(grid) == len(OPS)
    assert [p.name for p in tmp_path.iterdir()] == ["grid.json"]
    (tmp_path / "grid.md").write_text("before\n<!-- grid:begin -->\nold\n<!-- grid:end -->\nafter\n")
    page.write(tmp_path / "grid.md", grid, {"torch": "x"})
    text = (tmp_path / "grid.md").read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "3 cells" in text and (tmp_path / "grid-1-threads.png").stat().st_size > 5000


def _row(seconds: float, n_params: int = 100) -> cells.Found:
    return {"median_s": seconds, "n_params": n_params, "error": 0.0, "iqr_s": 0.0}


def test_lost_cells_are_named_the_worst_first() -> None:
    one, two = (cells.Cell("MAF", 6, batch, "log_prob", 2) for batch in (1, 2))
    larger = _row(1e-6, 200)  # a model of twice the size is no rival, however fast
    grid = {
        one: {OURS: _row(2e-3), "plain torch": _row(1e-3), "flowjax jit": _row(3e-3), "nflows": larger},
        two: {OURS: _row(2e-3), "zuko": _row(4e-3), "zuko accelerated": _row(5e-3)},
    }
    assert cells.best_other(grid[one]) == ("plain torch", 0.5)
    assert cells.gains(grid[two]) == {"zuko": 0.8}
    lines = page.lost(grid)
    assert len(lines) == 2
    assert "batch 1" in lines[0] and "0.500×" in lines[0]
    assert "accelerated" in lines[1] and "0.800×" in lines[1]

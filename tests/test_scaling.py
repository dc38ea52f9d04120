"""How flows scale, on tiny sizes: figures are found and kept, a slope is a slope, a run goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import scaling
from bench.grid import cells
from bench.suite import LOG_PROB, STEP
from flowkernels import _native

pytestmark = pytest.mark.skipif(_native.C is None, reason=f"the benchmark times the kernels: {_native.why_missing}")


def test_slopes_are_of_the_last_points() -> None:
    assert scaling.slope({1: 5.0, 10: 1.0, 100: 10.0, 1000: 100.0}) == pytest.approx(1.0)
    assert scaling.slope({2: 3.0, 4: 3.0}) == pytest.approx(0.0)


def test_flat_memory_does_not_grow_with_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "SECONDS_PER_TURN", 1e-4)
    found = {p: scaling.measure(p) for p in scaling.points(["Real NVP"], {"depth": (2, 4, 8)}, (1,))}
    fast, flat = (scaling.curves(found, "depth", way)["Real NVP", 1] for way in scaling.WAYS)
    assert scaling.slope(flat) < 0.2 < 0.8 < scaling.slope(fast)
    assert all({LOG_PROB, STEP} <= set(figures) for figures in found.values())


def test_a_run_goes_on_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "AXES", {"rows": (2, 4), "features": (3, 5), "depth": (1, 2)})
    monkeypatch.setattr(scaling, "measure", lambda point: {LOG_PROB: 1e-3 * point.at, STEP: 1.0, "fast": 8, "flat": 4})
    arguments = ["bench.scaling", "--models", "MAF", "--folder", str(tmp_path), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--most", "3"])
    scaling.main()
    first = scaling.read(tmp_path / "scaling.json")
    assert len(first) == 4
    monkeypatch.setattr(sys, "argv", arguments)
    scaling.main()
    assert len(scaling.read(tmp_path / "scaling.json")) == 6
    assert "| MAF | 1 | log_prob | 1.00 | 1.00 | 1.00 |" in (tmp_path / "scaling.md").read_text()
    assert (tmp_path / "scaling.png").stat().st_size > 5000

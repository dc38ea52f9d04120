"""How good flows are, on tiny runs: tables, equal weights, means and their errors, a file that a run goes on from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.quality import models, page, runs, tables
from bench.quality.__main__ import main

RUN = runs.Run("two_moons", "RealNVP", 1e-3, 0, "tuning", 0, 12, 300)


@pytest.fixture(autouse=True)
def _one_thread(one_thread) -> None:
    """Small tensors."""


@pytest.mark.parametrize("name", tables.TABLES)
def test_tables(name: str) -> None:
    if name in ("breast_cancer", "digits", "patches"):
        pytest.importorskip("sklearn", reason="which has the table")
    if name == "patches":
        pytest.importorskip("PIL", reason="which reads the photographs")
    data, again, other = (tables.split(name, number, 80) for number in (0, 0, 1))
    assert [len(part) for part in data] == [64, 8, 8]
    assert all(map(torch.equal, data, again)) and not torch.equal(data.train, other.train)
    std, mean = torch.std_mean(data.train, 0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-5)
    assert ((std - 1).abs() < 1e-4).logical_or(std == 0).all()  # in few rows, a pixel of digits may be of one value
    rows = torch.cat(data)
    assert rows.isfinite().all() and len(rows.unique(dim=0)) == 80


def test_a_posterior_is_exact() -> None:
    """Its mean is that of weighted draws of the prior, within five standard errors."""
    t = tables.posterior(torch.Generator().manual_seed(0), 400)
    prior = 2 * torch.rand(50_000, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1
    w = tables.likelihood(prior)
    w = w / w.sum()

    def looked_at(t: Tensor) -> Tensor:
        return torch.cat((t, t.square(), t[:, :1] * t[:, 1:3]), 1)

    mine, theirs = looked_at(t), looked_at(prior)
    mean = (w[:, None] * theirs).sum(0)
    error = (mine.var(0) / len(t) + (w[:, None] * (theirs - mean)).square().sum(0)).sqrt()
    assert ((mine.mean(0) - mean).abs() < 5 * error).all() and (error < 0.1).all()
    assert (mine.mean(0) - looked_at(2 * torch.rand(400, 5) - 1).mean(0)).abs().max() > 0.1


@pytest.mark.parametrize(
    "name", ["NSF", "MAF, lu", "RealNVP, residual, lu", "nflows MAF", "zuko autoregressive spline"]
)
def test_equal_weights(name: str) -> None:
    """Of one family, whatever the layers between the steps take."""
    pytest.importorskip(models.MODELS[name].library)
    first = models.first_of(models.MODELS[name].family)
    mine, theirs = (models.n_params(models.build(n, 7, 0)) for n in (name, first))
    assert abs(mine / theirs - 1) < 0.03


def test_a_run_is_the_same_whatever_ran_before() -> None:
    found = [runs.measure(RUN) for _ in range(2)]
    models.width.cache_clear()
    found.append(runs.measure(RUN))
    assert found[0]["nats"] == found[1]["nats"] == found[2]["nats"] and not found[0]["diverged"]
    other = runs.measure(RUN._replace(kind="fresh"))
    assert other["nats"] != found[0]["nats"]
    untrained = runs.measure(RUN._replace(steps=1, lr=1e-9))
    assert found[0]["nats"] > untrained["nats"] + 0.01


def test_a_training_that_breaks_down_is_counted() -> None:
    found = runs.measure(RUN._replace(lr=100.0))
    assert found["diverged"] and math.isfinite(found["nats"])  # of the weights it began with


def test_an_error_is_of_runs_or_of_splits() -> None:
    same = page.mean({0: [1.0, 3.0], 1: [1.0, 3.0]})
    assert same.value == 2 and same.error == pytest.approx(2 / 3**0.5 / 2) and same.n == 4
    apart = page.mean({0: [1.0, 1.0], 1: [3.0, 3.0]})
    assert apart.error == pytest.approx(2**0.5 / 2**0.5)
    assert math.isnan(page.mean({0: [1.0]}).error) and page.mean({}).n == 0


def test_differences_are_of_the_same_split_and_seed() -> None:
    def found(nats: float | None) -> dict[str, Any]:
        return {"nats": nats, "diverged": nats is None, "weights": 1}

    mine = RUN._replace(model="RealNVP, lu")
    all_runs = {
        RUN: found(1.0), mine: found(1.5), RUN._replace(split=1): found(5.0), mine._replace(split=1): found(5.7),
        mine._replace(split=2): found(9.0), RUN._replace(seed=1): found(None), mine._replace(seed=1): found(3.0),
    }  # fmt: skip
    above = page.nats(all_runs, "two_moons", "RealNVP, lu", 1e-3, "tuning", "RealNVP")
    assert above.n == 2 and above.value == pytest.approx(0.6)
    assert page.nats(all_runs, "two_moons", "RealNVP", 1e-3, "tuning").n == 2
    assert page.nats(all_runs, "two_moons", "RealNVP", 1e-3, "fresh").n == 0
    assert page.lost(all_runs, "RealNVP", 1e-3, "tuning") == (1, 3)


def test_half_a_line_is_no_run(tmp_path: Path) -> None:
    path, found = tmp_path / "runs.jsonl", {"nats": 1.0}
    runs.append(path, RUN, found)
    with path.open("a") as file:
        file.write('{"run": ["two_m')
    assert runs.read(path) == {RUN: found}
    other = RUN._replace(seed=1)
    runs.append(path, other, {"nats": None})
    assert runs.read(path) == {RUN: found, other: {"nats": None}}
    assert len(path.read_text().splitlines()) == 2


def test_a_small_run_goes_on_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--small", "--tables", "two_moons", "--lrs", "1e-3", "--folder", str(tmp_path), "--models", "MAF"]
    assert main(arguments) == 0
    assert main([*arguments, "MAF, lu", "RealNVP"]) == 0
    assert main([*arguments, "--kind", "fresh"]) == 0
    assert capsys.readouterr().out.count("two_moons") == 4
    text = (tmp_path / "quality_small.md").read_text()
    assert text.count("| MAF, lu |") == 2 and "### Tuning seeds" in text and "### Fresh seeds" in text
    assert (tmp_path / "quality_small.png").stat().st_size > 3000
    with pytest.raises(SystemExit, match="must hold runs of 7 steps"):
        main(["--no-run", "--steps", "7", "--folder", str(tmp_path)])

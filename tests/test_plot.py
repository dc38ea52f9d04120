"""Pictures: axes, labels, the right numbers; coverage that tells an exact flow from a wrong one."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributions as td

from flowkernels import flows, plot
from flowkernels.plot.coverage import binomial_band
from tests.process import python

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")


def _is_png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def _seeded(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# ---- corner ----


def test_corner_has_a_panel_for_each_pair(tmp_path: Path) -> None:
    samples, data = _seeded(800, 3), 2 * _seeded(600, 3) + 1
    figure = plot.corner(samples, data, ["mass", "spin", "distance"], path=tmp_path / "corner.png")
    assert _is_png(tmp_path / "corner.png")
    axes = figure.axes
    assert len(axes) == 6
    assert [ax.get_xlabel() for ax in axes] == ["", "", "", "mass", "spin", "distance"]
    assert [ax.get_ylabel() for ax in axes] == ["", "spin", "", "distance", "", ""]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["samples", "data"]
    for column in ((0, 1, 3), (2, 4)):
        assert len({axes[i].get_xlim() for i in column}) == 1
    assert axes[1].get_ylim() == axes[2].get_xlim()


def test_histograms_of_a_corner_are_densities() -> None:
    axes = plot.corner(_seeded(2000, 2), bins=20).axes
    (stairs,) = axes[0].patches
    values, edges, _ = stairs.get_data()
    width = edges[1] - edges[0]
    assert len(values) == 20 and 0.99 <= sum(values) * width <= 1.0  # the rest lies outside of the axes
    assert edges[values.argmax()] == pytest.approx(0, abs=0.8)


def test_contours_of_a_corner_hold_their_shares() -> None:
    x = _seeded(4000, 2) * torch.tensor([1.0, 10.0])
    ax = plot.corner(x).axes[1]
    (contours,) = [c for c in ax.collections if len(c.get_paths()) == 2]
    for path, share in zip(contours.get_paths(), (0.9, 0.5), strict=True):
        assert path.contains_points(x.numpy()).mean() == pytest.approx(share, abs=0.05)


def test_few_points_are_drawn_themselves() -> None:
    ax = plot.corner(_seeded(50, 2), _seeded(40, 2)).axes[1]
    assert [len(line.get_xdata()) for line in ax.lines] == [40, 50] and not ax.collections


def test_corner_takes_arrays_constants_and_rows_that_are_not_finite() -> None:
    x = _seeded(600, 2)
    x[:, 1] = 3
    x[0, 0], x[1, 0] = math.nan, math.inf
    low, high = plot.corner(x.numpy()).axes[0].get_xlim()
    assert -5 < low < high < 5
    assert len(plot.corner(x[:, :1].tolist()).axes) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3),), r"samples must be \[N, D\] with D from 1 to 16, got \[3\]"),
        ((torch.zeros(3, 17),), r"D from 1 to 16, got \[3, 17\]"),
        ((torch.zeros(0, 2),), "samples must have a row of finite numbers, got none"),
        (("text",), r"samples must be \[N, D\], numbers, got str"),
        ((torch.zeros(3, 2), torch.zeros(3, 1)), "data must have the 2 features of samples, got 1"),
        ((torch.zeros(3, 2), None, ["a"]), "names must be 2, one a feature, got 1"),
    ],
)
def test_corner_says_what_is_wrong(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"flowkernels.plot.corner: .*{message}"):
        plot.corner(*arguments)


# ---- losses ----


def test_losses_of_lists_pairs_and_fits_are_one_picture(tmp_path: Path) -> None:
    train, validation = [3.0, 2.0, 1.5, 1.0], [torch.tensor(3.1), 2.2, 2.5, math.nan]
    fit = SimpleNamespace(train=train, validation=validation)
    for given in ((train, validation), ((train, validation),), (fit,)):
        figure = plot.losses(*given, path=tmp_path / "losses.png")
        assert _is_png(tmp_path / "losses.png")
        (ax,) = figure.axes
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss")
        first, second, best = ax.lines
        assert list(first.get_xdata()) == [1, 2, 3, 4] and list(first.get_ydata()) == train
        assert list(second.get_ydata())[:3] == pytest.approx([3.1, 2.2, 2.5])
        assert (list(best.get_xdata()), list(best.get_ydata())) == ([2], [2.2])
        assert best.get_label() == "best: 2.2 in epoch 2"


def test_losses_without_validation() -> None:
    for given in ([2.0, 1.0], [2.0], torch.tensor([2.0, 1.0, 0.5]), SimpleNamespace(train=[1.0], validation=None)):
        assert [line.get_label() for line in plot.losses(given).axes[0].lines] == ["training"]


def test_a_steep_start_does_not_flatten_the_rest() -> None:
    values = [1e6, *(1 + 1 / i for i in range(1, 100))]
    assert plot.losses(values).axes[0].get_ylim()[1] < 4


@pytest.mark.parametrize("given", [[], ([], [1.0]), 3.0, "text", [None]])
def test_losses_say_what_is_wrong(given: Any) -> None:
    with pytest.raises(ValueError, match=r"flowkernels.plot.losses: fit must .*, got"):
        plot.losses(given)


# ---- coverage ----


class Normal:
    """An exact model of x ~ N(context, 1), made wrong by a scale."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def log_prob(self, x: Tensor, context: Tensor) -> Tensor:
        return td.Normal(context, self.scale).log_prob(x).sum(-1)

    def sample(self, n: int, context: Tensor) -> Tensor:
        assert n == len(context)
        return context + self.scale * torch.randn_like(context)


def test_coverage_of_an_exact_flow_lies_in_its_band_and_of_a_wrong_one_does_not(tmp_path: Path) -> None:
    context = _seeded(1000, 2)
    x = context + torch.randn(1000, 2, generator=torch.Generator().manual_seed(1))
    found = {
        scale: plot.coverage(Normal(scale), x, context, draws=100, confidence=0.9999, path=tmp_path / "coverage.png")
        for scale in (0.7, 1.0, 1.4)
    }
    assert _is_png(tmp_path / "coverage.png")
    assert found[1.0].inside == 1 and found[1.0].error < 0.07
    for scale, sign in ((0.7, -1), (1.4, 1)):
        wrong = found[scale]
        assert wrong.inside < 0.3 and ((wrong.observed - wrong.levels) * sign).mean() > 0.1
        # The region of level a is the disc of radius scale x sqrt(-2 log(1 - a)).
        exact = 1 - (1 - wrong.levels) ** (scale**2)
        assert (wrong.observed - exact).abs().max() < 0.07
    assert "too narrow" in str(found[0.7]) and "too wide" in str(found[1.4]) and "too" not in str(found[1.0])


def test_coverage_draws_what_it_returns() -> None:
    context = _seeded(50, 2)
    found = plot.coverage(Normal(1.0), context, context, draws=10)
    (ax,) = found.figure.axes
    assert ax.get_xlabel() and ax.get_ylabel() and ax.get_title(loc="left")
    observed = ax.lines[1]
    assert list(observed.get_xdata())[1:-1] == found.levels.tolist()
    assert list(observed.get_ydata())[1:-1] == found.observed.tolist()
    assert found.observed[-1] == 1  # every x lies where the density is highest
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["95 % of exact flows", "observed, 50 rows"]


def test_equal_densities_are_no_rank() -> None:
    """Of a uniform flow all are: the ranks must be uniform still."""

    class Flat:
        def log_prob(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x))

        def sample(self, n: int) -> Tensor:
            return torch.rand(n, 2)

    found = plot.coverage(Flat(), torch.rand(2000, 2), draws=3, confidence=0.9999)
    assert found.inside == 1


def test_coverage_of_flows_with_and_without_context_leaves_random_numbers_alone() -> None:
    x = _seeded(60, 2)
    for flow, context in ((flows.MAF(2, transforms=1, hidden=(8,)), None), (flows.NSF(2, context=1), x[:, :1])):
        state = torch.get_rng_state()
        first, again = (plot.coverage(flow, x, context, draws=8) for _ in range(2))
        assert torch.equal(state, torch.get_rng_state()) and torch.equal(first.ranks, again.ranks)
        other = plot.coverage(flow, x, context, draws=8, seed=None)
        assert not torch.equal(other.ranks, first.ranks) and not torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("n", [1, 7, 400])
def test_binomial_band_is_that_of_the_definition(n: int) -> None:
    levels = torch.tensor([0.01, 0.3, 0.5, 0.99], dtype=torch.float64)
    low, high = binomial_band(n, levels, 0.95)
    for p, a, b in zip(levels.tolist(), low.tolist(), high.tolist(), strict=True):
        pmf = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
        first, last = round(a * n), round(b * n)
        assert sum(pmf[first : last + 1]) >= 0.95 - 1e-9
        assert sum(pmf[:first]) <= 0.025 + 1e-9 and sum(pmf[last + 1 :]) <= 0.025 + 1e-9
        assert sum(pmf[: first + 1]) >= 0.025 - 1e-9 and sum(pmf[last:]) >= 0.025 - 1e-9  # no wider than it must be


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3)}, r"x must be \[B, D\] with a row at least, got \[3\]"),
        ({"x": [1.0]}, "x must be a torch.Tensor, got list"),
        ({"context": torch.zeros(2, 1)}, r"context must have a row for each of x, 3, got \[2, 1\]"),
        ({"draws": 0}, "draws must be at least 1, got 0"),
        ({"confidence": 95}, "confidence must be a number between 0 and 1, got 95"),
    ],
)
def test_coverage_says_what_is_wrong(change: dict[str, Any], message: str) -> None:
    arguments = {"x": torch.zeros(3, 2), "context": torch.zeros(3, 2), **change}
    with pytest.raises((ValueError, TypeError), match=f"flowkernels.plot.coverage: {message}"):
        plot.coverage(Normal(1.0), **arguments)


# ---- the extra ----


def test_without_matplotlib_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (lambda: plot.losses([1.0]), lambda: plot.corner(_seeded(9, 2))):
        with pytest.raises(ImportError, match=r"matplotlib must be installed, got .*pip install 'flowkernels\[plot\]'"):
            draw()


def test_importing_flowkernels_imports_nothing_that_draws() -> None:
    done = python(
        """
        import sys, flowkernels
        assert not {"matplotlib", "flowkernels.plot", "flowkernels.benchmark.comparison"} & set(sys.modules)
        assert callable(flowkernels.plot.corner) and callable(flowkernels.benchmark)
        assert "matplotlib" not in sys.modules
        from flowkernels.benchmark.result import Row
        assert callable(flowkernels.benchmark), "the module took the function's place"
        """
    )
    assert done.returncode == 0, done.stderr

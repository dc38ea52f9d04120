"""The pictures of a run, one page a suite: how many times faster than nflows each row is, on a logarithmic scale."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

if TYPE_CHECKING:
    from bench.report.compare import Result, Row

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
EAGER, COMPILED, OURS = "#b8c1cc", "#6f9ec4", "#e4572e"
TICKS, DECADES = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100), (0.01, 0.1, 1, 10, 100, 1000, 10000)
FEWEST_ROWS = 3  # cases with fewer rows are in the table only
COLUMNS = 3  # of panels, where a suite has one operation


class Panel(NamedTuple):
    """The rows of one case and operation, under a title; `case` is written above the panel where it is not empty."""

    case: str
    op: str
    rows: dict[str, Row]


def _colour(name: str) -> str:
    if name.startswith("flowkernels") or name.endswith("accelerated"):
        return OURS
    return COMPILED if name.endswith("compiled") else EAGER


def _panel(ax: Axes, rows: dict[str, Row], baseline: str, limits: tuple[float, float]) -> None:
    from bench.report.compare import seconds, times

    base = rows[baseline]["median_s"]
    for i, (name, row) in enumerate(rows.items()):
        ratio = base / row["median_s"]
        ours = _colour(name) == OURS
        ax.barh(i, ratio - 1, left=1, height=0.72, color=_colour(name), zorder=2)
        ax.annotate(
            f"{times(ratio)}  {seconds(row['median_s'])}" if name != baseline else seconds(row["median_s"]),
            (max(ratio, 1), i), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8,
            color=INK if ours else MUTED, fontweight="bold" if ours else "normal",
        )  # fmt: skip
    ticks = TICKS if limits[1] / limits[0] <= TICKS[-1] / TICKS[0] / 4 else DECADES  # which would overlap
    ax.set_xscale("log")
    ax.set_xlim(*limits)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.xaxis.set_major_locator(FixedLocator([t for t in ticks if limits[0] <= t <= limits[1]]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    ax.grid(axis="x", color=GRID, linewidth=0.8, zorder=0)
    ax.axvline(1, color=INK, linewidth=1, zorder=3)
    ax.tick_params(length=0, labelsize=8, colors=MUTED)
    for side in ax.spines.values():
        side.set_visible(False)


def draw(result: Result, folder: Path) -> list[str]:
    """Writes a PNG per suite into a folder, which loses those of an earlier run; → their names."""
    from bench.report.compare import BASELINE

    suites: dict[str, dict[str, list[Panel]]] = {}
    for (suite, case, op), rows in result.groups().items():
        if len(rows) >= FEWEST_ROWS and BASELINE in rows:
            panels = suites.setdefault(suite, {}).setdefault(case, [])
            panels.append(Panel("" if panels else case, op, rows))
    for old in folder.glob("plot*.png"):
        old.unlink()
    names = []
    for suite, cases in suites.items():
        lines = list(cases.values())
        if max(map(len, lines)) == 1:
            panels = [line[0] for line in lines]
            lines = [panels[i : i + COLUMNS] for i in range(0, len(panels), COLUMNS)]
        names.append(f"plot-{re.sub(r'[^a-z0-9]+', '-', suite.lower()).strip('-')}.png")
        _page(result, suite, lines, folder / names[-1])
    return names


def _page(result: Result, suite: str, lines: list[list[Panel]], path: Path) -> None:
    """One line of panels per case; names of rows at the first panel of a line, and where they differ from its own."""
    from bench.report.compare import BASELINE, machine_line

    columns = max(map(len, lines))
    heights = [max(len(panel.rows) for panel in line) + 2.2 for line in lines]
    fig, grid = plt.subplots(
        len(lines), columns, squeeze=False, figsize=(max(4.3 * columns, 7) + 0.6, 0.235 * sum(heights) + 1.2),
        gridspec_kw={"height_ratios": heights}, layout="constrained",
    )  # fmt: skip
    for axes, line in zip(grid, lines, strict=True):
        ratios = [p.rows[BASELINE]["median_s"] / r["median_s"] for p in line for r in p.rows.values()]
        # Room on the right for the label of the longest bar.
        limits = (min(0.85, 0.8 * min(ratios)), max(max(ratios) ** 1.5 * 1.8, 4))
        for ax, (case, op, rows) in zip(axes, line, strict=False):
            _panel(ax, rows, BASELINE, limits)
            ax.set_title(op, fontsize=9, color=MUTED, loc="left")
            named = ax is axes[0] or list(rows) != list(line[0].rows)
            ax.set_yticks(range(len(rows)), list(rows) if named else [""] * len(rows))
            for label, name in zip(ax.get_yticklabels(), rows, strict=True):
                label.set_color(INK)
                label.set_fontweight("bold" if _colour(name) == OURS else "normal")
            ax.annotate(
                case, (0, 1), xytext=(0, 22), xycoords="axes fraction", textcoords="offset points",
                fontsize=11, fontweight="bold", color=INK,
            )  # fmt: skip
        for ax in axes[len(line) :]:
            ax.set_visible(False)
    title = f"{suite}: times faster than nflows (log scale, longer is better)"
    fig.suptitle(title, fontsize=13, fontweight="bold", color=INK, x=0.01, ha="left")
    fig.supxlabel(
        "\n".join(textwrap.wrap(machine_line(result.machine), 24 * round(fig.get_figwidth() / 2))),
        fontsize=8,
        color=MUTED,
        x=0.01,
        ha="left",
    )
    fig.savefig(path, dpi=130, facecolor="white")
    plt.close(fig)

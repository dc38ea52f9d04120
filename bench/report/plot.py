"""The picture of a run: how many times faster than nflows each row is, on a logarithmic scale."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

if TYPE_CHECKING:
    from bench.report.compare import Result, Row

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
EAGER, COMPILED, OURS = "#b8c1cc", "#6f9ec4", "#e4572e"
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)
FEWEST_ROWS = 4  # cases with fewer rows are in the table only


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
    ax.set_xscale("log")
    ax.set_xlim(*limits)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.xaxis.set_major_locator(FixedLocator([t for t in TICKS if limits[0] <= t <= limits[1]]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    ax.grid(axis="x", color=GRID, linewidth=0.8, zorder=0)
    ax.axvline(1, color=INK, linewidth=1, zorder=3)
    ax.tick_params(length=0, labelsize=8, colors=MUTED)
    for side in ax.spines.values():
        side.set_visible(False)


def draw(result: Result, path: Path) -> None:
    """Writes a PNG: one line of panels per case, one panel per operation, one bar per row."""
    from bench.report.compare import BASELINE, machine_line

    cases: dict[tuple[str, str], dict[str, dict[str, Row]]] = {}
    for (suite, case, op), rows in result.groups().items():
        if len(rows) >= FEWEST_ROWS and BASELINE in rows:
            cases.setdefault((suite, case), {})[op] = rows
    if not cases:
        return
    columns = max(map(len, cases.values()))
    heights = [max(map(len, ops.values())) + 2.2 for ops in cases.values()]
    fig, grid = plt.subplots(
        len(cases), columns, squeeze=False, figsize=(4.3 * columns + 0.6, 0.235 * sum(heights) + 1.2),
        gridspec_kw={"height_ratios": heights}, layout="constrained",
    )  # fmt: skip
    for line, ((suite, case), ops) in zip(grid, cases.items(), strict=True):
        ratios = [rows[BASELINE]["median_s"] / r["median_s"] for rows in ops.values() for r in rows.values()]
        # Room on the right for the label of the longest bar.
        limits = (min(0.85, 0.8 * min(ratios)), max(ratios) ** 1.5 * 1.8)
        for ax, (op, rows) in zip(line, ops.items(), strict=False):
            _panel(ax, rows, BASELINE, limits)
            ax.set_title(op, fontsize=9, color=MUTED, loc="left")
            first = ax is line[0]
            ax.set_yticks(range(len(rows)), list(rows) if first else [""] * len(rows))
            for label, name in zip(ax.get_yticklabels(), rows, strict=True):
                label.set_color(INK)
                label.set_fontweight("bold" if _colour(name) == OURS else "normal")
        for ax in line[len(ops) :]:
            ax.set_visible(False)
        line[0].annotate(
            f"{suite}, {case}", (0, 1), xytext=(0, 22), xycoords="axes fraction", textcoords="offset points",
            fontsize=11, fontweight="bold", color=INK,
        )  # fmt: skip
    title = "Times faster than nflows (log scale, longer is better)"
    fig.suptitle(title, fontsize=13, fontweight="bold", color=INK, x=0.01, ha="left")
    fig.supxlabel(machine_line(result.machine), fontsize=8, color=MUTED, x=0.01, ha="left")
    fig.savefig(path, dpi=130, facecolor="white")
    plt.close(fig)

"""The bar chart of a benchmark: time of each call as a share of the original's, the shorter the better."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from flowkernels.plot._style import BLUE, GREY, INK, MUTED, figure, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .result import Benchmark


def draw(found: Benchmark, path: str | os.PathLike[str] | None) -> Figure:
    from .result import digits, seconds

    longest = max([1.0, *(1 / row.speedup for row in found.rows)])
    with figure("flowkernels.benchmark", 8, 1.7 + 0.95 * max(1, len(found.rows)), path) as fig:
        ax = fig.subplots()
        for i, row in enumerate(found.rows):
            text = f"{seconds(row.after.median)}, {digits(row.speedup)}× as fast"
            bars = ((1.0, seconds(row.before.median), GREY, -0.19), (1 / row.speedup, text, BLUE, 0.19))
            for length, label, colour, offset in bars:
                ax.barh(i + offset, length, height=0.34, color=colour)
                ax.annotate(
                    label, (length, i + offset), xytext=(5, 0), textcoords="offset points", va="center",
                    color=INK if colour == BLUE else MUTED, fontweight="bold" if colour == BLUE else "normal",
                )  # fmt: skip
        if not found.rows:
            ax.annotate("nothing was timed", (0.5, 0.5), xycoords="axes fraction", ha="center", color=MUTED)
        ax.set_yticks(range(len(found.rows)), [row.what for row in found.rows], fontsize=12, color=INK)
        ax.set_ylim(max(1, len(found.rows)) - 0.45, -0.55)
        ax.set_xlim(0, 1.42 * longest)
        ax.set_xticks([t for t in (0, 0.25, 0.5, 0.75, 1) if t <= longest] + ([longest] if longest > 1.2 else []))
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        ax.set_xlabel("time (median), original = 1: shorter is better")
        grid(ax, "x")
        ax.spines["left"].set_visible(False)
        # Proxies: the legend says what colours mean whatever bars there are.
        from matplotlib.patches import Patch

        fig.legend(
            handles=[Patch(color=GREY, label="original"), Patch(color=BLUE, label="accelerated by flowkernels")],
            loc="outside lower center", ncols=2,
        )  # fmt: skip
        fig.suptitle(f"{found.model}, x {list(found.shape)}", x=0.01, ha="left", fontsize=13, fontweight="bold")
        ax.set_title(found.machine, loc="left", fontsize=9.5, color=MUTED)
    return fig

"""The page of the grid: one picture, red where ours is slower, and every cell that is lost, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm

from bench.grid.cells import Cell, Found, best_other, gains, times
from bench.grid.rivals import BINS, BLOCKS, HIDDEN, LAYERS, MODELS, OPS, OURS
from bench.report.compare import seconds
from bench.report.compare import times as ratio

Grid = dict[Cell, dict[str, Found]]
DARKEST = 4.0  # times faster or slower from which the colour does not change
INK = "#1f2933"
SHORT = {"plain torch": "torch", "plain torch compiled": "compiled", "flowjax jit": "flowjax"}
MARKERS = ("<!-- grid:begin -->", "<!-- grid:end -->")


class Panel(NamedTuple):
    """A heat map: cell → its ratio, and what is written below the number."""

    title: str
    ratios: dict[Cell, tuple[float, str]]


def line(cell: Cell, rows: dict[str, Found]) -> str:
    """A cell in one line, for the run's output."""
    found = ", ".join(f"{name} {seconds(value)}" for name, value in times(rows).items())
    return f"{cell.model} D={cell.features} B={cell.batch} {cell.op} {cell.threads}t: {found}"


def panels(grid: Grid, threads: int) -> list[Panel]:
    here = {cell: rows for cell, rows in grid.items() if cell.threads == threads}
    others = {cell: best_other(rows) for cell, rows in here.items()}
    found = [
        Panel("flows of flowkernels: times faster than the fastest other", {c: (r, n) for c, (n, r) in others.items()})
    ]
    for library in sorted({name for rows in here.values() for name in gains(rows)}):
        of = {cell: (gains(rows)[library], "") for cell, rows in here.items() if library in gains(rows)}
        found.append(Panel(f"accelerate({library} model): times faster than before", of))
    return found


def _draw(ax: Axes, panel: Panel) -> None:
    models = [m for m in MODELS if any(c.model == m for c in panel.ratios)]
    lines = [(m, op) for m in models for op in OPS]
    sizes = sorted({(c.features, c.batch) for c in panel.ratios})
    at = {(c.model, c.op, c.features, c.batch): value for c, value in panel.ratios.items()}
    norm = TwoSlopeNorm(1.0, 1 / DARKEST, DARKEST)
    colours = plt.get_cmap("RdYlGn")
    for i, (model, op) in enumerate(lines):
        for j, (features, batch) in enumerate(sizes):
            value = at.get((model, op, features, batch))
            if value is None:
                continue
            ax.add_patch(plt.Rectangle((j - 0.48, i - 0.46), 0.96, 0.92, color=colours(norm(value[0]))))
            ax.text(j, i - (0.14 if value[1] else 0), ratio(value[0]), ha="center", va="center", fontsize=8, color=INK)
            ax.text(j, i + 0.26, SHORT.get(value[1], value[1]), ha="center", va="center", fontsize=5.5, color=INK)
    ax.set_xlim(-0.5, len(sizes) - 0.5)
    ax.set_ylim(len(lines) - 0.5, -0.5)
    ax.set_xticks(range(len(sizes)), [f"D={d}\nB={b}" for d, b in sizes], fontsize=7)
    ax.set_yticks(range(len(lines)), [f"{m}, {op}" for m, op in lines], fontsize=7)
    ax.tick_params(length=0)
    ax.set_title(panel.title, fontsize=9, loc="left", color=INK)
    for side in ax.spines.values():
        side.set_visible(False)


def picture(grid: Grid, threads: int, path: Path) -> None:
    """A PNG: our flows beside the fastest other, and each library before and after."""
    found = panels(grid, threads)
    heights = [1.2 + 0.27 * len(OPS) * len({c.model for c in panel.ratios}) for panel in found]
    fig, axes = plt.subplots(
        len(found), 1, squeeze=False, figsize=(8, sum(heights)), gridspec_kw={"height_ratios": heights},
        layout="constrained",
    )  # fmt: skip
    for ax, panel in zip(axes[:, 0], found, strict=True):
        _draw(ax, panel)
    fig.savefig(path, dpi=130, facecolor="white")
    plt.close(fig)


def lost(grid: Grid) -> list[str]:
    """A line of a table for every cell that another wins, the worst first, and where `accelerate` is slower."""
    found = []
    for cell, rows in grid.items():
        where = f"{cell.model}, D={cell.features}, batch {cell.batch}, {cell.op}, {cell.threads} threads"
        name, value = best_other(rows)
        note = f"| {where} | {name} | {seconds(rows[OURS]['median_s'])} | {ratio(value)} |"
        found += [(value, note)] if value < 1 else []
        for library, gain in gains(rows).items():
            after = times(rows)[f"{library} accelerated"]
            note = f"| {where}, accelerated | {library} itself | {seconds(after)} | {ratio(gain)} |"
            found += [(gain, note)] if gain < 1 else []
    return [text for _, text in sorted(found)]


def text(grid: Grid, pictures: list[str], machine: dict[str, Any]) -> str:
    """What stands between the page's markers."""
    of = [best_other(rows)[1] for rows in grid.values()]
    won = sum(value >= 1 for value in of)
    rows = lost(grid) or ["| none | – | – | – |"]
    facts = ", ".join(f"{machine[k]}" for k in ("cpu", "isa") if machine.get(k))
    return "\n".join([
        f"Ours is the fastest in {won} of {len(of)} cells; the smallest ratio is {ratio(min(of))}.", "",
        *(f"![The grid]({name})" for name in pictures), "",
        "| lost cells | to | ours | ratio |", "| --- | --- | ---: | ---: |", *rows, "",
        f"{LAYERS} layers, {BLOCKS} hidden layers of {HIDDEN}, {BINS} bins; float32; medians of rows that take turns "
        "in one process. Training steps are with fused Adam, ours on one flat parameter "
        f"(`flatten_parameters(direct=True)`). {facts}; torch {machine.get('torch')}; commit {machine.get('commit')}.",
    ])  # fmt: skip


def write(path: Path, grid: Grid, machine: dict[str, Any]) -> None:
    """Puts the grid between the markers of a page, and its pictures beside it.

    Raises:
        ValueError: the file lacks the markers.
    """
    page = path.read_text()
    if not all(marker in page for marker in MARKERS):
        raise ValueError(f"bench.grid: {path.name} must hold {MARKERS[0]} and {MARKERS[1]}, got a file without them")
    names = []
    for threads in sorted({cell.threads for cell in grid}, reverse=True):
        names.append(f"grid-{threads}-threads.png")
        picture(grid, threads, path.parent / names[-1])
    before, rest = page.split(MARKERS[0], 1)
    path.write_text(f"{before}{MARKERS[0]}\n{text(grid, names, machine)}\n{MARKERS[1]}{rest.split(MARKERS[1], 1)[1]}")

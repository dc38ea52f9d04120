"""How time and memory of our flows grow with rows, features, depth and threads: `python -m bench.scaling`.

From one flow (D = 21, 512 rows, 6 layers, the grid's networks) one number at a time is changed. Every point is the
median of turns in which its calls follow each other; bytes are counted, not sampled: what a forward pass keeps for its
backward, in both of `Flow.memory`'s ways. A slope is that of the line through the logarithms of the last three points:
1 is proportional to the axis, 0 does not depend on it. Points go to a file as they are found, and a run goes on there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from bench.grid.cells import in_turns
from bench.grid.rivals import BLOCKS, HIDDEN, LAYERS, OPS, ours
from bench.report import compare, machine, memory
from bench.suite import LOG_PROB, STEP
from bench.suites.model import Model, bind

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("Real NVP", "NSF", "MAF")
START = {"rows": 512, "features": 21, "depth": LAYERS}
AXES = {
    "rows": (100, 1000, 10_000, 100_000, 1_000_000),
    "features": (2, 8, 21, 63, 196, 784),
    "depth": (2, 4, 8, 16, 32),
}
THREADS = (1, 2)
WAYS = ("fast", "flat")
MOST_TRAINED = 100_000  # rows of a training step: beyond, it is the same work again
COLOURS = {"Real NVP": "#1b6ca8", "NSF": "#d95f02", "MAF": "#2f7d32"}


class Point(NamedTuple):
    """One flow on one batch; its figures are seconds by op, and bytes by way of keeping them."""

    model: str
    axis: str
    at: int
    threads: int


Points = dict[Point, dict[str, float]]


def points(models: Iterable[str], axes: dict[str, Iterable[int]], threads: Iterable[int]) -> list[Point]:
    return [Point(m, axis, at, n) for m in models for axis in axes for at in axes[axis] for n in threads]


def measure(point: Point) -> dict[str, float]:
    size = {**START, point.axis: point.at}
    flow = ours(point.model, size["features"], size["depth"])
    torch.manual_seed(1)
    x = torch.randn(size["rows"], size["features"])
    model = Model("", flow, flow.log_prob, flow.sample, flow.transform.inverse)
    torch.set_num_threads(point.threads)
    ops = [op for op in OPS if op != STEP or size["rows"] <= MOST_TRAINED]
    found = {op: statistics.median(s) for op, s in in_turns({op: bind(model, op, x) for op in ops}).items()}
    if STEP in found:
        for way in WAYS:
            flow.memory = way
            found[way] = float(memory.saved_bytes(lambda: flow.log_prob(x), [x, *flow.parameters()]))
    return found


def slope(curve: dict[int, float]) -> float:
    """Of the least squares' line through the logarithms of the last three points."""
    last = sorted(curve.items())[-3:]
    logs = [(math.log(at), math.log(max(value, 1e-12))) for at, value in last]
    middle = [statistics.fmean(c) for c in zip(*logs, strict=True)]
    return sum((a - middle[0]) * (b - middle[1]) for a, b in logs) / sum((a - middle[0]) ** 2 for a, _ in logs)


def curves(found: Points, axis: str, figure: str) -> dict[tuple[str, int], dict[int, float]]:
    """(model, threads) → its figure by place on the axis."""
    out: dict[tuple[str, int], dict[int, float]] = {}
    for point, figures in sorted(found.items()):
        if point.axis == axis and figure in figures:
            out.setdefault((point.model, point.threads), {})[point.at] = figures[figure]
    return out


def slopes(found: Points) -> str:
    """A table in Markdown: what grows, by how much, over which axis."""
    lines = ["| flow | threads | figure | " + " | ".join(AXES) + " |", "|---|---:|---|" + "---:|" * len(AXES)]
    for model, threads in sorted({(p.model, p.threads) for p in found}):
        for figure in (*OPS, *WAYS):
            of = [curves(found, axis, figure).get((model, threads), {}) for axis in AXES]
            cells = [f"{slope(curve):.2f}" if len(curve) > 1 else "–" for curve in of]
            name = f"bytes kept, {figure}" if figure in WAYS else figure
            lines.append(f"| {model} | {threads} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(found: Points, path: Path) -> None:
    """Time of log_prob and of a step, and bytes kept, over each axis; dashed: fewer threads, or the flat way."""
    rows = (
        ((LOG_PROB,), "log_prob, ms", 1e3),
        ((STEP,), "training step, ms", 1e3),
        (WAYS, "kept for backward, MB", 1e-6),
    )
    most = max(p.threads for p in found)
    fig, axes = plt.subplots(len(rows), len(AXES), squeeze=False, figsize=(10, 8), layout="constrained")
    for line, (figures, title, unit) in zip(axes, rows, strict=True):
        line[0].set_ylabel(title)
        for ax, axis in zip(line, AXES, strict=True):
            for figure in figures:
                for (model, threads), curve in curves(found, axis, figure).items():
                    if figure in WAYS and threads != most:
                        continue  # bytes are the same
                    dashed = figure == WAYS[1] or threads != most
                    values = [unit * v for v in curve.values()]
                    label = None if dashed else model
                    style = "--" if dashed else "-"
                    ax.plot(list(curve), values, style, color=COLOURS.get(model), marker="o", ms=3, label=label)
            ax.set(xscale="log", yscale="log", xlabel=axis)
            ax.grid(alpha=0.2)
    if axes[0, 0].get_legend_handles_labels()[0]:
        axes[0, 0].legend(frameon=False, fontsize=8)
    fig.savefig(path, dpi=120, facecolor="white")
    plt.close(fig)


def read(path: Path) -> Points:
    return {Point(*p): f for p, f in json.loads(path.read_text())["points"]} if path.exists() else {}


def write(path: Path, facts: dict[str, Any], found: Points) -> None:
    """Whole or not at all, for it is written after every point."""
    lines = ",\n".join(json.dumps([list(p), f]) for p, f in sorted(found.items()))
    aside = path.with_suffix(".part")
    aside.write_text(f'{{"machine": {json.dumps(facts)},\n"points": [\n{lines}\n]}}\n')
    os.replace(aside, path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="*", default=MODELS, help="of the grid")
    parser.add_argument("--most", type=int, help="leaves out points beyond, of every axis")
    parser.add_argument("--threads", type=int, nargs="*", default=THREADS)
    parser.add_argument("--folder", type=Path, help="of scaling.json and .png; bench/results/<machine>")
    given = parser.parse_args()
    torch.set_num_threads(max(THREADS))
    facts = machine.describe()
    folder = given.folder or ROOT / "bench" / "results" / compare.machine_name(facts)
    folder.mkdir(parents=True, exist_ok=True)
    found = read(folder / "scaling.json")
    axes = {name: [at for at in values if not given.most or at <= given.most] for name, values in AXES.items()}
    for point in points(given.models, axes, given.threads):
        if point in found:
            continue
        found[point] = measure(point)
        write(folder / "scaling.json", facts, found)
        told = ", ".join(
            f"{n} {v / 1e6:.2f} MB" if n in WAYS else f"{n} {1e3 * v:.3g} ms" for n, v in found[point].items()
        )
        print(f"{point.model}, {point.axis} {point.at}, {point.threads} threads: {told}", flush=True)
    picture(found, folder / "scaling.png")
    text = f"{slopes(found)}\n\nHidden {(HIDDEN,) * BLOCKS}, start {START}; slopes of the last three points.\n"
    (folder / "scaling.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

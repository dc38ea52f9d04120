"""What all runs say: one table of each kind of seeds, and one picture."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .models import FAMILIES, MODELS, OURS, first_of
from .runs import KINDS, Found, Run

Runs = dict[Run, Found]
COLOURS = {OURS: "#d95f02", "nflows": "#1b6ca8", "zuko": "#2f7d32", "normflows": "#7b5ea7", "glasflow": "#777777"}


class Mean(NamedTuple):
    value: float
    error: float  # NaN of one run
    n: int


def mean(by_split: dict[int, list[float]]) -> Mean:
    """Over splits and seeds, and its standard error: of the runs as if each were independent, or of the means of the
    splits, whichever is larger, as all runs of a split share its rows."""
    every = [v for values in by_split.values() for v in values]
    if not every:
        return Mean(math.nan, math.nan, 0)
    means = [statistics.fmean(values) for values in by_split.values() if values]
    errors = [statistics.stdev(some) / len(some) ** 0.5 for some in (every, means) if len(some) > 1]
    return Mean(statistics.fmean(every), max(errors, default=math.nan), len(every))


def nats(runs: Runs, table: str, model: str, lr: float, kind: str, beside: str = "") -> Mean:
    """Test nats; with `beside` those above another model's, in runs of the same split and seed."""
    found: dict[int, list[float]] = defaultdict(list)
    for run, result in runs.items():
        if (run.table, run.model, run.lr, run.kind) != (table, model, lr, kind) or result["nats"] is None:
            continue
        other = runs.get(run._replace(model=beside), {"nats": None})["nats"] if beside else 0.0
        if other is not None:
            found[run.split].append(result["nats"] - other)
    return mean(found)


def lost(runs: Runs, model: str, lr: float, kind: str) -> tuple[int, int]:
    """How many runs diverged, and how many there are."""
    found = [r["diverged"] for run, r in runs.items() if (run.model, run.lr, run.kind) == (model, lr, kind)]
    return sum(found), len(found)


def _said(value: Mean, sign: str = "") -> str:
    if value.n == 0:
        return "–"
    return f"{value.value:{sign}.2f}" + (f" ± {value.error:.2f}" if math.isfinite(value.error) else "")


def markdown(runs: Runs) -> str:
    """Per kind of seeds: nats of the first of each family at the smallest learning rate, and what the others are above
    it; then how many runs of each learning rate diverged."""
    parts = []
    for kind in KINDS:
        mine = {run: found for run, found in runs.items() if run.kind == kind}
        if not mine:
            continue
        lrs = sorted({run.lr for run in mine})
        tables = list(dict.fromkeys(run.table for run in sorted(mine)))
        parts += [f"### {kind.capitalize()} seeds", "", f"Nats of standardised rows, learning rate {lrs[0]:g}.", ""]
        parts += _table(["", "weights", *tables], _rows(mine, tables, lrs[0], kind))
        parts += ["", "Diverged runs / runs.", ""]
        parts += _table(["", *(f"{lr:g}" for lr in lrs)], [
            [model, *("{}/{}".format(*lost(mine, model, lr, kind)) for lr in lrs)] for model in _present(mine)
        ])  # fmt: skip
        parts.append("")
    return "\n".join(parts)


def _rows(runs: Runs, tables: Iterable[str], lr: float, kind: str) -> list[list[str]]:
    rows = []
    for model in _present(runs):
        first = first_of(MODELS[model].family)
        weights = [r["weights"] for run, r in runs.items() if run.model == model]
        row = [model, f"{min(weights):,} to {max(weights):,}"]
        for table in tables:
            beside = "" if model == first else first
            row.append(_said(nats(runs, table, model, lr, kind, beside), "+" if beside else ""))
        rows.append(row)
    return rows


def _present(runs: Runs) -> list[str]:
    there = {run.model for run in runs}
    return sorted(there, key=lambda name: (FAMILIES.index(MODELS[name].family), list(MODELS).index(name)))


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def picture(runs: Runs, path: Path) -> None:
    """Per family and table, every model's nats above the family's first, with two standard errors; fresh seeds where
    there are any."""
    kind = "fresh" if any(run.kind == "fresh" for run in runs) else "tuning"
    runs = {run: found for run, found in runs.items() if run.kind == kind}
    lr = min(run.lr for run in runs)
    tables = list(dict.fromkeys(run.table for run in sorted(runs)))
    families = [f for f in FAMILIES if any(MODELS[m].family == f and m != first_of(f) for m in _present(runs))]
    size = 1 + 2.3 * len(tables), 1 + 2.2 * max(len(families), 1)
    figure, axes = plt.subplots(
        max(len(families), 1), len(tables), figsize=size, squeeze=False, sharey="row", layout="constrained"
    )
    for row, family in zip(axes, families, strict=False):
        others = [m for m in _present(runs) if MODELS[m].family == family and m != first_of(family)]
        for ax, table in zip(row, tables, strict=True):
            for i, model in enumerate(others):
                found = nats(runs, table, model, lr, kind, first_of(family))
                if found.n:
                    error = 2 * found.error if math.isfinite(found.error) else None
                    colour = COLOURS[MODELS[model].library]
                    ax.errorbar(found.value, i, xerr=error, fmt="o", markersize=4, color=colour, capsize=2)
            ax.axvline(0, color="black", linewidth=0.7)
            ax.set_yticks(range(len(others)), others, fontsize=7)
            ax.invert_yaxis() if ax is row[0] else None
            ax.tick_params(axis="x", labelsize=7)
            ax.spines[["top", "right"]].set_visible(False)
            ax.set_title(table.replace("_", " "), fontsize=8)
        row[0].set_ylabel(f"above {first_of(family)}", fontsize=8)
    figure.suptitle(f"test nats, {kind} seeds,\nlearning rate {lr:g}", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)

"""The cells of the grid: which there are, how the rows of one take turns, and the file of all that were measured."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.grid.rivals import OPS, OURS, RIVALS

# D and batch: small posteriors, a table, and one that fills the caches.
SIZES = (*((d, b) for d in (6, 21) for b in (1, 16, 64, 512)), (63, 4096))
TURNS = 7
SECONDS_PER_TURN = 0.02  # its calls are warm after the first, which is not counted: another row had the caches before
SLOW = 0.5  # seconds of a call from which three turns are enough
SAME_SIZE = 1.3  # of the numbers of learned parameters of two rows that are set side by side


class Cell(NamedTuple):
    """One place of the grid, whose rows take turns."""

    model: str
    features: int
    batch: int
    op: str
    threads: int


Found = dict[str, Any]  # of a row: median_s, iqr_s, error, n_params; or why: it has no time


def cells(models: Iterable[str], sizes: Iterable[tuple[int, int]], threads: int) -> Iterator[Cell]:
    """In an order in which the ops of a model's size follow each other."""
    for model in models:
        for features, batch in sizes:
            yield from (Cell(model, features, batch, op, threads) for op in OPS)


def measure(cell: Cell, names: Iterable[str], say: Callable[[str], None]) -> dict[str, Found]:
    """Builds, checks and times the rows of a cell."""
    calls: dict[str, Callable[[], Any]] = {}
    found: dict[str, Found] = {}
    for name in names:
        rival = RIVALS[name]
        if cell.model not in rival.models:
            continue
        try:
            entry = rival.make(cell.model, cell.features, cell.batch)
            error = entry.error(cell.op)
            call = entry.call(cell.op)
            call()
        except (ImportError, LookupError, AssertionError) as why:  # not installed; nothing to do; wrong
            if name == OURS:
                raise
            found[name] = {"why": str(why) or type(why).__name__}
            say(f"{name}: {found[name]['why']}")
            continue
        calls[name], found[name] = call, {"error": error, "n_params": entry.n_params}
    for name, seconds in in_turns(calls).items():
        quartiles = statistics.quantiles(seconds, n=4)
        found[name] |= {"median_s": statistics.median(seconds), "iqr_s": quartiles[2] - quartiles[0]}
    return found


def in_turns(calls: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of a call, one number a turn; what the machine does to one row in a second it does to the others."""
    fastest = {name: min(_seconds(call, 1) for _ in range(2)) for name, call in calls.items()}
    counts = {name: max(1, round(SECONDS_PER_TURN / least)) for name, least in fastest.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(3 if max(fastest.values()) > SLOW else TURNS):
        for name, call in calls.items():
            if counts[name] > 1:
                call()
            seconds[name].append(_seconds(call, counts[name]))
    return seconds


def _seconds(call: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


# ---- the file ----


def read(path: Path) -> dict[Cell, dict[str, Found]]:
    if not path.exists():
        return {}
    return {Cell(*entry["cell"]): entry["rows"] for entry in json.loads(path.read_text())["cells"]}


def write(path: Path, machine: dict[str, Any], grid: dict[Cell, dict[str, Found]]) -> None:
    """Whole or not at all, for it is written after every cell."""
    entries = [{"cell": list(cell), "rows": rows} for cell, rows in sorted(grid.items())]
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    aside = path.with_suffix(".part")
    aside.write_text(f'{{"machine": {json.dumps(machine)},\n"cells": [\n{lines}\n]}}\n')
    os.replace(aside, path)


# ---- what a cell says ----


def times(rows: dict[str, Found]) -> dict[str, float]:
    return {name: row["median_s"] for name, row in rows.items() if "median_s" in row}


def best_other(rows: dict[str, Found]) -> tuple[str, float]:
    """The fastest row of about our size that is not ours, and its time / ours."""
    size = rows[OURS]["n_params"]
    others = {
        name: seconds / rows[OURS]["median_s"]
        for name, seconds in times(rows).items()
        if not name.startswith(OURS) and not RIVALS[name].base and _alike(rows[name]["n_params"], size)
    }
    return min(others.items(), key=lambda other: other[1])


def _alike(a: int, b: int) -> bool:
    return max(a, b) <= SAME_SIZE * min(a, b)


def gains(rows: dict[str, Found]) -> dict[str, float]:
    """Library → its time before `accelerate` / after."""
    found = times(rows)
    return {r.base: found[r.base] / found[n] for n, r in RIVALS.items() if r.base and n in found and r.base in found}

"""The command: see the package."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from bench.quality import models, page, runs, tables
from bench.report import compare, machine

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description="See bench/quality/__init__.py.")
    parser.add_argument("--tables", nargs="*", choices=tables.TABLES, default=list(tables.TABLES), metavar="TABLE")
    parser.add_argument("--models", nargs="*", choices=models.MODELS, default=list(models.MODELS), metavar="MODEL")
    parser.add_argument("--lrs", nargs="*", type=float, default=list(runs.LEARNING_RATES))
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--kind", choices=runs.KINDS, default="tuning", help="of seeds; fresh ones to confirm a choice")
    parser.add_argument("--steps", type=int, default=runs.STEPS)
    parser.add_argument("--rows", type=int, default=runs.ROWS, help="of a table, at most, test rows among them")
    parser.add_argument("--small", action="store_true", help="does it run? its numbers mean nothing")
    parser.add_argument("--folder", type=Path, help="of the results; bench/results/<machine>")
    parser.add_argument("--no-run", action="store_true", help="only the table and the picture")
    given = parser.parse_args(arguments)
    if given.small:
        given.splits, given.seeds, given.steps, given.rows = 1, 1, 4, 120
    folder = given.folder or ROOT / "bench" / "results" / compare.machine_name(machine.describe())
    path = folder / ("quality_small.jsonl" if given.small else "quality.jsonl")
    done = runs.read(path)
    if not given.no_run:
        torch.set_num_threads(1)  # small batches; two runs side by side are worth more than two threads
        for run in wanted(given):
            if run not in done:
                done[run] = runs.measure(run)
                runs.append(path, run, done[run])
                print(*run[:6], done[run], flush=True)
    alike = {run: found for run, found in done.items() if (run.steps, run.rows) == (given.steps, given.rows)}
    if not alike:
        raise SystemExit(f"{path}: must hold runs of {given.steps} steps on {given.rows} rows, got none")
    path.with_suffix(".md").write_text(page.markdown(alike))
    page.picture(alike, path.with_suffix(".png"))
    return 0


def wanted(given: argparse.Namespace) -> list[runs.Run]:
    """In an order in which every table and model is there early, and more splits, seeds and rates come later."""
    names = []
    for name in given.models:
        library = models.MODELS[name].library
        if find_spec(library) is None:
            print(f"{name}: skipped, {library} is not installed", file=sys.stderr)
        else:
            names.append(name)
    return [
        runs.Run(table, name, lr, split, given.kind, seed, given.steps, given.rows)
        for lr, seed, split, table, name in itertools.product(
            given.lrs, range(given.seeds), range(given.splits), given.tables, names
        )
    ]


if __name__ == "__main__":
    sys.exit(main())

"""The command: see the package."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.grid", description="See bench/grid/__init__.py.")
    parser.add_argument("--models", nargs="*", help="of the grid; all by default")
    parser.add_argument("--sizes", nargs="*", help="as D:batch, such as 6:64; all by default")
    parser.add_argument("--rows", nargs="*", help="ours is always there; all by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, help="file of all cells; bench/results/<machine>/grid.json")
    parser.add_argument("--page", type=Path, help="page with grid marks, to put it between them")
    parser.add_argument("--again", action="store_true", help="cells that the file has are measured again")
    parser.add_argument("--no-run", action="store_true", help="only the page")
    given = parser.parse_args()
    if given.threads == 1:  # before jax is loaded
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"

    import torch

    from bench.grid import cells, page, rivals
    from bench.report import compare, machine

    torch.set_num_threads(given.threads)
    facts = machine.describe()
    path = given.results or ROOT / "bench" / "results" / compare.machine_name(facts) / "grid.json"
    grid = cells.read(path)
    if not given.no_run:
        sizes = [tuple(map(int, size.split(":"))) for size in given.sizes or ()] or cells.SIZES
        names = [n for n in rivals.RIVALS if n == rivals.OURS or given.rows is None or n in given.rows]
        for cell in cells.cells(given.models or rivals.MODELS, sizes, given.threads):
            if cell in grid and not given.again:
                continue
            rows = cells.measure(cell, names, lambda line: print("  ", line, file=sys.stderr))
            grid[cell] = rows
            cells.write(path, facts, grid)
            print(page.line(cell, rows), flush=True)
    if given.page:
        page.write(given.page, grid, facts)
    return 0


sys.exit(main())

"""The command: see the package."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from . import table
from .listed import MUTATIONS
from .workshop import Outcome, Workshop


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description="See tests/mutate/__init__.py.")
    parser.add_argument("names", nargs="*", help="mutations, or what their names begin with; all by default")
    parser.add_argument("--seconds", type=float, default=60, help="of CPU time for each mutation, at most")
    parser.add_argument("--folder", type=Path, help="of the copy, kept for the next run; a temporary one by default")
    parser.add_argument("--list", action="store_true", help="names only")
    given = parser.parse_args()
    chosen = [m for m in MUTATIONS if not given.names or m.name.startswith(tuple(given.names))]
    if given.list or not chosen:
        print("\n".join(m.name for m in chosen) or f"no mutation begins with {', '.join(given.names)}")
        return 0 if chosen else 2
    folder = given.folder.resolve() if given.folder else Path(tempfile.mkdtemp(prefix="flowkernels-mutate-"))
    workshop = Workshop(folder, MUTATIONS)
    workshop.fill()
    workshop.build()
    outcomes: dict[str, Outcome] = {}
    for m in chosen:
        begun = time.monotonic()
        outcomes[m.name] = o = workshop.run(m, given.seconds, table.killer(m))
        print(f"{o.kind:9} {time.monotonic() - begun:4.0f} s  {m.name}  {'crash ' * o.crashed}{o.test}", flush=True)
    wrong = workshop.fails_unmutated(sorted({o.test for o in outcomes.values() if "::" in o.test}))
    for name, o in outcomes.items():
        if o.test in wrong:  # it fails by itself
            outcomes[name] = Outcome("undecided")
            print(f"undecided: {name}: {o.test} fails without it too")
    print(table.write(MUTATIONS, outcomes))
    if given.folder is None:
        workshop.remove()
    open_ones = [m.name for m in chosen if outcomes[m.name].kind != "killed" and not m.equivalent]
    stale = [m.name for m in chosen if outcomes[m.name].kind == "killed" and m.equivalent]
    print(*[f"no test fails: {name}" for name in open_ones], *[f"not equivalent: {n}" for n in stale], sep="\n")
    return 1 if open_ones or stale else 0


sys.exit(main())

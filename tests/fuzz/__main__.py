"""Runs calls drawn at random: `python -m tests.fuzz --minutes 10`. Ends with 1 where one of them was wrong."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
import traceback

from . import workers

SHOWN = 3  # finds of one kind


def kind(find: workers.Find) -> str:
    """What finds that are alike have in common: the op, and their words without numbers, names and lists."""
    words = re.sub(
        r"\[[^]]*\]|'[^']*'|[-+]?\d+\.?\d*(e[-+]?\d+)?|(?<=gradient of )\S+", "#", find.message.split("; ")[0]
    )
    return f"{find.op}, {'wrong' if find.fault else 'valid'} call: {words:.80}"


def command(find: workers.Find, emulated: bool) -> str:
    return f"python -m tests.fuzz --op {find.op} --case {find.seed}" + " --emulated" * emulated


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--calls", type=int, help="end after so many calls")
    parser.add_argument("--minutes", type=float, help="end after so many minutes (10 where --calls is not given)")
    parser.add_argument("--op", help="one op, or several with commas between them; default: all")
    parser.add_argument("--seed", type=int, help="the first seed; default: drawn, and printed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--case", type=int, help="this seed of --op alone, here, with a traceback")
    parser.add_argument("--emulated", action="store_true", help="CUDA's kernels, in the emulator")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--step", type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker is not None:
        workers.work(given.op.split(","), given.seed, given.step, given.worker, given.emulated)
        return 0

    from .check import GENERATORS, check_case, emulate

    ops = given.op.split(",") if given.op else list(GENERATORS)
    unknown = [op for op in ops if op not in GENERATORS]
    if unknown:
        parser.error(f"--op must be some of {', '.join(GENERATORS)}, got {', '.join(unknown)}")
    if given.case is not None:
        import torch

        if len(ops) != 1:
            parser.error("--case must come with one --op")
        torch.set_num_threads(1)
        if given.emulated:
            emulate()
        n, found = check_case(ops[0], given.case)
        print(f"{ops[0]}, case {given.case}: {n} calls, {len(found)} not as they should be")
        for wrong in found:
            traceback.print_exception(wrong)
        return 1 if found else 0

    seed = int.from_bytes(os.urandom(4), "little") if given.seed is None else given.seed
    minutes = 10.0 if given.minutes is None and given.calls is None else given.minutes
    print(f"seed {seed}, {given.processes} processes, ops {', '.join(ops)}", flush=True)
    tally, kinds, start = workers.Tally(), {}, time.monotonic()
    try:
        seconds = None if minutes is None else 60 * minutes
        for find in workers.run(ops, seed, given.processes, given.calls, seconds, tally, given.emulated):
            kinds.setdefault(kind(find), []).append(find)
            if len(kinds[kind(find)]) <= SHOWN:
                print(f"{find.op}: {find.fault}: {find.message:.1500}\n    {command(find, given.emulated)}", flush=True)
    except KeyboardInterrupt:
        print("interrupted")
    spent = time.monotonic() - start
    print(f"\n{tally.total:,} calls in {spent:.0f} s, {tally.total / max(spent, 1e-9):.0f} a second")
    for op in ops:
        print(f"  {op:24}{tally.calls.get(op, 0):>12,}")
    print(f"{len(tally.finds)} finds of {len(kinds)} kinds")
    for name, found in sorted(kinds.items(), key=lambda k: -len(k[1])):
        print(f"{len(found):>7} {name}\n        {command(found[0], given.emulated)}")
    return 1 if tally.finds else 0


if __name__ == "__main__":
    sys.exit(main())

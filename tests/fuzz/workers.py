"""Cases in processes of their own, so that one that crashes or hangs is named and the others go on."""

from __future__ import annotations

import json
import mmap
import os
import queue
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

REPORT_EVERY = 0.5  # seconds
HANGS_AFTER = 120.0


class Find(NamedTuple):
    op: str
    seed: int
    message: str
    fault: str = ""  # of the call; none: it was a valid one


@dataclass
class Tally:
    calls: dict[str, int] = field(default_factory=dict)
    finds: list[Find] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.calls.values())


# ---- in the worker ----


def work(ops: Sequence[str], first: int, step: int, progress: str, emulated: bool) -> None:
    """Runs cases until the process is ended; where it is stands in `progress`, what it found goes to stdout."""
    import warnings

    import torch

    from .check import check_case, emulate

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if emulated:
        emulate()
    calls, last = dict.fromkeys(ops, 0), time.monotonic()
    with open(progress, "r+b") as file:
        at = mmap.mmap(file.fileno(), 8)
    seed = first
    while True:
        op = ops[seed % len(ops)]
        at[:] = struct.pack("q", seed)  # in memory that outlives a crash
        try:
            n, found = check_case(op, seed)
            calls[op] += n
            for wrong in found:
                _tell(find=[op, seed, wrong.message, wrong.fault])
        except Exception as error:
            calls[op] += 1
            _tell(find=[op, seed, f"the fuzzer fails: {type(error).__name__}: {error}"])
        if time.monotonic() - last > REPORT_EVERY:
            _tell(calls=calls)
            calls, last = dict.fromkeys(ops, 0), time.monotonic()
        seed += step


def _tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


# ---- in the parent ----


class Worker:
    """A process that runs every `step`-th seed, and is started anew behind a seed that ended it."""

    def __init__(
        self, ops: Sequence[str], first: int, step: int, said: queue.SimpleQueue, emulated: bool = False
    ) -> None:
        self._ops, self._step, self._said, self._more = ops, step, said, ["--emulated"] * emulated
        self._file = tempfile.NamedTemporaryFile()  # noqa: SIM115  (as long as the worker)
        self._file.write(struct.pack("q", first))
        self._file.flush()
        self._start(first)

    def _start(self, seed: int) -> None:
        arguments = [*self._more, "--worker", self._file.name, "--seed", str(seed), "--step", str(self._step)]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz", *arguments, "--op", ",".join(self._ops)],
            stdout=subprocess.PIPE, stderr=self._errors, text=True, env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        )  # fmt: skip
        self._since, self._last = time.monotonic(), seed
        threading.Thread(target=self._listen, args=(self.process,), daemon=True).start()

    def _listen(self, process: subprocess.Popen) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                self._said.put(json.loads(line))

    def _seed(self) -> int:
        self._file.seek(0)
        return struct.unpack("q", self._file.read(8))[0]

    def look_after(self) -> Iterator[Find]:
        """Names the seed that ended or hangs the process, and goes on behind it."""
        seed, status = self._seed(), self.process.poll()
        if seed != self._last:
            self._since, self._last = time.monotonic(), seed
        if status is None and time.monotonic() - self._since < HANGS_AFTER:
            return
        if status is None:
            message = f"hangs: no end after {HANGS_AFTER:g} s"
        else:
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines()
            name = signal.Signals(-status).name if status < 0 else f"exit {status}"
            message = f"the process ended: {name}: {' | '.join(lines[:20])[:1500]}"
        self.stop()
        self._start(seed + self._step)
        yield Find(self._ops[seed % len(self._ops)], seed, message)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self._errors.close()


def run(
    ops: Sequence[str],
    seed: int,
    processes: int,
    calls: int | None,
    seconds: float | None,
    tally: Tally,
    emulated: bool = False,
) -> Iterator[Find]:
    """Finds as they come, until there were enough calls or time; counts in `tally`."""
    said: queue.SimpleQueue = queue.SimpleQueue()
    workers = [Worker(ops, seed + i, processes, said, emulated) for i in range(processes)]
    start = time.monotonic()
    try:
        while (calls is None or tally.total < calls) and (seconds is None or time.monotonic() - start < seconds):
            try:
                told = said.get(timeout=REPORT_EVERY)
            except queue.Empty:
                told = {}
            for op, n in told.get("calls", {}).items():
                tally.calls[op] = tally.calls.get(op, 0) + n
            found = [Find(*told["find"])] if "find" in told else []
            for worker in workers:
                found += worker.look_after()
            tally.finds += found
            yield from found
    finally:
        for worker in workers:
            worker.stop()

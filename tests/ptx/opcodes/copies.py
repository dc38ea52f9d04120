"""cp.async: what a thread copies to shared memory arrives when it waits for it, and not before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.ptx.dtypes import Array
from tests.ptx.errors import Fault
from tests.ptx.machine import Machine, Step, Threads
from tests.ptx.opcodes import opcode
from tests.ptx.parser import Instruction


@dataclass
class Copy:
    """One instruction's copies: of each thread where from, where to, which group."""

    threads: Array
    group: Array
    to: Array
    source: Array
    given: Array  # bytes that are read; the rest becomes 0
    size: int

    def of(self, which: Array) -> Copy:
        return Copy(
            self.threads[which], self.group[which], self.to[which], self.source[which], self.given[which], self.size
        )


def land(m: Machine, copy: Copy) -> None:
    """Word by word, so that what is not given is 0."""
    word = 4
    for k in range(copy.size // word):
        value = np.zeros(len(copy.threads), np.uint32)
        given = copy.given >= (k + 1) * word
        if given.any():
            value[given] = m.memory.load(copy.source[given] + k * word, word, 1)[0]
        m.shared.store(m.block_of[copy.threads], copy.to + k * word, [value])


@opcode(r"cp\.async\.(?:ca|cg)\.shared(?:::cta)?\.global(?:\.L2::\w+)?", "lsu")
def start(m: Machine, ins: Instruction) -> Step:
    size = int(ins.operands[2], 0)
    if size not in (4, 8, 16) or (".cg." in ins.opcode and size != 16) or len(ins.operands) not in (3, 4):
        raise m.unsupported(ins)
    to, source = m.address(ins.operands[0]), m.address(ins.operands[1])
    given = m.read(ins.operands[3] if len(ins.operands) == 4 else str(size), "s32")

    def step(t: Threads) -> None:
        threads, where, at = m.number[t], source(t), to(t)
        wanted = np.broadcast_to(given(t), len(threads)).astype(np.int64)
        if ((wanted < 0) | (wanted > size) | (wanted % 4 != 0)).any():
            raise Fault(f"cp.async reads {int(wanted.max())} of {size} bytes")
        m.shared.check(at, size)
        if (reads := wanted > 0).any():
            m.memory.check(where[reads], size if (wanted[reads] == size).all() else 4)
        if m.tracer:
            m.tracer.global_(threads[reads], where[reads], size, "load")
        copy = Copy(threads, m.committed[threads], at, where, wanted, size)
        if m.settings.copies == "early":
            land(m, copy)
        else:
            m.copies.append(copy)

    return step


@opcode(r"cp\.async\.commit_group", "lsu")
def commit(m: Machine, ins: Instruction) -> Step:
    def step(t: Threads) -> None:
        m.committed[t] += 1

    return step


@opcode(r"cp\.async\.(?:wait_group|wait_all)", "lsu")
def wait(m: Machine, ins: Instruction) -> Step:
    """Until at most so many of the last groups are on their way."""
    but_for = int(ins.operands[0], 0) if ins.operands else 0
    everything = ins.opcode.endswith("all")
    here = np.zeros(m.threads, np.bool_)

    def step(t: Threads) -> None:
        here[:] = False
        here[t] = True
        left = []
        for copy in m.copies:
            lands = here[copy.threads]
            if not everything:
                lands = lands & (copy.group < m.committed[copy.threads] - but_for)
            if lands.any():
                land(m, copy.of(lands))
            if not lands.all():
                left.append(copy.of(~lands))
        m.copies[:] = left

    return step

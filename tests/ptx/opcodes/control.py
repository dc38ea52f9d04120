"""Branches, ends and barriers: the scheduler acts on them, so that their steps do nothing."""

from __future__ import annotations

from tests.ptx.machine import Machine, Step
from tests.ptx.opcodes import opcode
from tests.ptx.parser import Instruction


def _nothing(m: Machine, ins: Instruction) -> Step:
    return lambda t: None


@opcode(r"bra(?:\.uni)?", "branch")
def branch(m: Machine, ins: Instruction) -> Step:
    if ins.operands[0] not in m.kernel.labels:
        raise m.unsupported(ins)
    return _nothing(m, ins)


opcode(r"ret|exit", "branch")(_nothing)
opcode(r"bar\.warp\.sync", "branch", together=True)(_nothing)


@opcode(r"(?:bar|barrier)\.sync(?:\.aligned)?", "branch")
def barrier(m: Machine, ins: Instruction) -> Step:
    """Of the whole block: no barrier of a part of its threads."""
    if ins.guard or len(ins.operands) != 1 or m.is_register(ins.operands[0]):
        raise m.unsupported(ins)
    return _nothing(m, ins)

"""The documented subset: families of opcodes, each a pattern of names with what they do.

A pattern matches a whole opcode, modifiers and all: what no pattern matches is refused by its name.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.ptx.errors import Unsupported
from tests.ptx.machine import Machine, Step
from tests.ptx.parser import Instruction

FAMILIES = ("integer", "floats", "comparisons", "conversions", "moves", "loads", "warps", "copies", "matrix", "control")
Decode = Callable[..., Step]


@dataclass(frozen=True)
class Opcode:
    """One pattern: its pipe (for counting), whether its lanes must come together, and what decodes an instruction."""

    pattern: re.Pattern[str]
    pipe: str
    together: bool
    decode: Decode


_ALL: list[Opcode] = []


def opcode(pattern: str, pipe: str, *, together: bool = False) -> Callable[[Decode], Decode]:
    """Registers decode(machine, instruction, **groups of the pattern), which returns the step."""

    def add(decode: Decode) -> Decode:
        _ALL.append(Opcode(re.compile(pattern), pipe, together, decode))
        return decode

    return add


def every() -> list[Opcode]:
    """All patterns, family after family."""
    for family in FAMILIES:
        importlib.import_module(f"tests.ptx.opcodes.{family}")
    return _ALL


@functools.cache
def find(name: str) -> tuple[Opcode, dict[str, Any]]:
    """The pattern that knows this opcode, and its groups."""
    for known in every():
        if m := known.pattern.fullmatch(name):
            return known, m.groupdict()
    raise Unsupported(f"opcode {name} is outside of the subset")


def decode(machine: Machine, instruction: Instruction) -> Step:
    known, groups = find(instruction.opcode)
    return known.decode(machine, instruction, **groups)

"""One launch: registers of all its threads as arrays, operands as functions that read and write them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.ptx import dtypes
from tests.ptx.dtypes import Array
from tests.ptx.errors import Fault, Unsupported
from tests.ptx.memory import Global, Shared
from tests.ptx.parser import Instruction, Kernel

WARP = 32
# Generic addresses of shared memory and of parameters: where no allocation of the host is.
SHARED_WINDOW, PARAMETER_WINDOW = 1 << 60, 1 << 61
Threads = Any  # a slice of all threads or an array of their numbers: what indexes a register
Read = Callable[[Threads], Array]
Write = Callable[[Threads, Array], None]
Step = Callable[[Threads], None]

_ADDRESS = re.compile(r"^\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]$")


@dataclass(frozen=True)
class Settings:
    """How the freedom that PTX leaves is used."""

    errs: bool = True  # approximate instructions are wrong by what their documentation allows
    copies: str = "late"  # cp.async lands when it is waited for; "early": at once
    most_steps: int = 1_000_000  # a launch that takes more does not end


class Machine:
    """The threads of a grid: `blocks` of `block` threads each."""

    def __init__(
        self, kernel: Kernel, blocks: int, block: int, parameters: bytes, memory: Global, *,
        dynamic_shared: int = 0, settings: Settings | None = None,
    ) -> None:  # fmt: skip
        if block % WARP or not 0 < block <= 1024:
            raise Unsupported(f"{block} threads a block")
        self.kernel, self.blocks, self.block = kernel, blocks, block
        self.settings = settings or Settings()
        self.threads = blocks * block
        number = self.number = np.arange(self.threads)
        self.warp, self.lane, self.block_of = number // WARP, number % WARP, number // block
        self.memory = memory
        self.shared = Shared(blocks, kernel.static_shared + dynamic_shared)
        self.tracer: Any = None  # counts.Tracer, where somebody wants to know
        self.copies: list[Any] = []  # asynchronous copies on their way: opcodes/copies.py
        self.committed = np.zeros(self.threads, np.int64)  # groups of them
        self._parameters = np.frombuffer(parameters, np.uint8)
        self._offsets = kernel.offsets()
        self._registers: dict[str, Array] = {}
        self._special = self._specials(number)

    def _specials(self, number: Array) -> dict[str, Array]:
        def same(value: int) -> Array:
            return np.full(self.threads, value, np.uint32)

        found = {f"%{what}.{axis}": same(value) for what, value in (("tid", 0), ("ctaid", 0), ("ntid", 1),
                 ("nctaid", 1)) for axis in "xyz"}  # fmt: skip
        found["%tid.x"], found["%ctaid.x"] = ((number % self.block), self.block_of)
        found["%ntid.x"], found["%nctaid.x"] = same(self.block), same(self.blocks)
        found["%laneid"], found["%warpid"] = self.lane, (number % self.block) // WARP
        return {name: of.astype(np.uint32) for name, of in found.items()}

    # ---- registers ----

    def register(self, name: str) -> Array:
        """Its bits in every thread; all ones, a NaN, until somebody writes it."""
        found = self._registers.get(name)
        if found is None:
            if name in self._special:
                return self._special[name]
            declared = self.kernel.registers.get(name) or self.kernel.registers.get(name.rstrip("0123456789"))
            if declared is None:
                raise Unsupported(f"register {name} is not declared")
            found = np.zeros(self.threads * np.dtype(dtypes.raw(declared)).itemsize, np.uint8)
            if declared != "pred":
                found[:] = 0xFF
            found = self._registers[name] = found.view(dtypes.raw(declared))
        return found

    def is_register(self, operand: str) -> bool:
        return operand.startswith("%") or operand in self.kernel.registers

    # ---- operands ----

    def read(self, operand: str, of: str) -> Read:
        """A register, an immediate or the address of a variable, as `of` of some threads (or as one for all)."""
        if of == "pred":
            return self._read_predicate(operand)
        if not self.is_register(operand):
            constant = self._constant(operand, of)
            return lambda a: constant
        register = self.register(operand)
        if register.dtype.itemsize == dtypes.size(of):
            typed = register.view(dtypes.values(of))
            return lambda a: typed[a]
        if register.dtype.itemsize < dtypes.size(of):
            raise Unsupported(f"{operand} is narrower than .{of}")
        narrow, value = dtypes.raw(of), dtypes.values(of)
        return lambda a: register[a].astype(narrow).view(value)

    def _read_predicate(self, operand: str) -> Read:
        if not self.is_register(operand.lstrip("!")):
            constant = np.array([operand.lower() in ("1", "-1", "true")])
            return lambda a: constant
        register = self.register(operand.lstrip("!"))
        if operand.startswith("!"):
            return lambda a: ~register[a]
        return lambda a: register[a]

    def _constant(self, operand: str, of: str) -> Array:
        raw, value = dtypes.raw(of), dtypes.values(of)
        if re.fullmatch("0[fF][0-9a-fA-F]{8}", operand):
            return np.array([int(operand[2:], 16)], np.uint32).view(value)
        if re.fullmatch("0[dD][0-9a-fA-F]{16}", operand):
            return np.array([int(operand[2:], 16)], np.uint64).view(value)
        if operand in self._offsets:
            number = PARAMETER_WINDOW + self._offsets[operand]
        elif operand in self.kernel.shared:
            number = self.kernel.shared[operand]
        else:
            try:
                number = int(operand.rstrip("U"), 0)
            except ValueError:
                raise Unsupported(f"operand {operand}") from None
        return np.array([number & ((1 << dtypes.bits(of)) - 1)], raw).view(value)

    def write(self, operand: str, of: str) -> Write:
        """A register that takes values of `of`; a wider one is filled up as their sign says."""
        if operand == "_":
            return lambda a, x: None
        register = self.register(operand)
        if of == "pred":

            def write_predicate(a: Threads, x: Array) -> None:
                register[a] = x

            return write_predicate
        to = register.dtype
        if to.itemsize < dtypes.size(of):
            raise Unsupported(f"{operand} is narrower than .{of}")
        signed = of.startswith("s")

        def write(a: Threads, x: Array) -> None:
            if x.dtype.itemsize == to.itemsize:
                register[a] = x.view(to)
            else:
                register[a] = dtypes.widened(x if signed or x.dtype.kind != "i" else x.view(dtypes.raw(of)), to)

        return write

    def address(self, operand: str) -> Read:
        """[register + offset] or [variable + offset], as int64 of each thread."""
        m = _ADDRESS.match(operand)
        if m is None:
            raise Unsupported(f"address {operand}")
        offset = int(m[2] or "0", 0)
        if not self.is_register(m[1]):
            number = self._constant(m[1], "b64").astype(np.int64) + offset
            lanes = np.broadcast_to(number, self.threads)
            return lambda a: lanes[a]
        register = self.register(m[1])
        return lambda a: register[a].astype(np.int64) + offset

    def parameter(self, address: Array, size: int, count: int) -> list[Array]:
        """Elements of the kernel's parameters, whose block begins at 0."""
        if (address < 0).any() or (address + size * count > len(self._parameters)).any():
            raise Fault(
                f"{size * count} bytes at {int(address.max())} of the parameters: there are {len(self._parameters)}"
            )
        places = address[:, None] + np.arange(size)
        return [self._parameters[places + k * size].view(dtypes.raw(f"b{8 * size}"))[:, 0] for k in range(count)]

    def count(self, a: Threads) -> int:
        return len(self.lane[a])

    # ---- instructions ----

    def unsupported(self, instruction: Instruction) -> Unsupported:
        return Unsupported(f"opcode {instruction.opcode} is outside of the subset: {instruction}")

"""Tensor cores: mma.sync of a warp, and ldmatrix, stmatrix, which bring 8 × 8 matrices to its lanes.

Which element lies in which lane is PTX's own table; sums are of exact products, in float64, rounded once.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from tests.ptx import dtypes
from tests.ptx.dtypes import Array
from tests.ptx.machine import WARP, Machine, Step, Threads
from tests.ptx.opcodes import opcode
from tests.ptx.parser import Instruction, vector

_LANE = np.arange(WARP)
GROUP, MEMBER = _LANE // 4, _LANE % 4
Place = Callable[[int], tuple[Array, Array]]  # element of a lane → row and column, of every lane


def _a16(i: int) -> tuple[Array, Array]:
    """A [16, K] of 16-bit elements: pairs along a row."""
    return GROUP + 8 * (i // 2 % 2), MEMBER * 2 + i % 2 + 8 * (i // 4)


def _b16(i: int) -> tuple[Array, Array]:
    return MEMBER * 2 + i % 2 + 8 * (i // 2), GROUP


def _a32(i: int) -> tuple[Array, Array]:
    """A [16, K] of one element a register."""
    return GROUP + 8 * (i % 2), MEMBER + 4 * (i // 2)


def _b32(i: int) -> tuple[Array, Array]:
    return MEMBER + 4 * i, GROUP


def _c16(i: int) -> tuple[Array, Array]:
    return GROUP + 8 * (i // 2), MEMBER * 2 + i % 2


def _c8(i: int) -> tuple[Array, Array]:
    return GROUP, MEMBER * 2 + i


# shape and type → rows, columns, depth, places of A, B and C
_SHAPES: dict[str, tuple[int, int, int, Place, Place, Place]] = {
    "m16n8k16 16": (16, 8, 16, _a16, _b16, _c16),
    "m16n8k8 16": (16, 8, 8, _a16, _b16, _c16),
    "m16n8k8 tf32": (16, 8, 8, _a32, _b32, _c16),
    "m16n8k4 tf32": (16, 8, 4, _a32, _b32, _c16),
    "m8n8k4 f64": (8, 8, 4, _a32, _b32, _c8),
}


def _elements(x: list[Array], of: str) -> list[Array]:
    """A lane's registers as float64 elements, in order."""
    if of == "f64":
        return [r.view(np.float64) for r in x]
    if of == "tf32":  # the lower 13 bits of a float32 are not read
        return [(r & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64) for r in x]
    return [half.astype(np.float64) for r in x for half in dtypes.halves(r, f"{of}x2")]


def _matrix(elements: list[Array], place: Place, rows: int, columns: int) -> Array:
    """[warps, rows, columns] of [warps × 32] elements a lane."""
    found = np.full((elements[0].size // WARP, rows, columns), np.nan)
    for i, x in enumerate(elements):
        row, column = place(i)
        found[:, row, column] = x.reshape(-1, WARP)
    return found


@opcode(
    r"mma\.sync\.aligned\.(?P<shape>m\d+n\d+k\d+)\.row\.col\.(?P<to>f32|f64)\.(?P<of>bf16|f16|tf32|f64)\.(?P=of)\.(?P=to)",
    "tensor", together=True,
)  # fmt: skip
def multiply(m: Machine, ins: Instruction, shape: str, to: str, of: str) -> Step:
    key = f"{shape} {16 if of.endswith('16') else of}"
    if key not in _SHAPES or (to == "f64") != (of == "f64"):
        raise m.unsupported(ins)
    rows, columns, depth, place_a, place_b, place_c = _SHAPES[key]
    bits = "b64" if of == "f64" else "b32"
    d, a, b, c = (vector(o) for o in ins.operands)
    writes, of_c = [m.write(r, to) for r in d], [m.read(r, to) for r in c]
    of_a, of_b = ([m.read(r, bits) for r in part] for part in (a, b))

    def full(t: Threads, reads: list) -> list[Array]:
        return [np.broadcast_to(read(t), m.count(t)) for read in reads]

    def step(t: Threads) -> None:
        left = _matrix(_elements(full(t, of_a), of), place_a, rows, depth)
        right = _matrix(_elements(full(t, of_b), of), place_b, depth, columns)
        before = _matrix([x.astype(np.float64) for x in full(t, of_c)], place_c, rows, columns)
        after = before + left @ right
        for i, write in enumerate(writes):
            row, column = place_c(i)
            write(t, np.ascontiguousarray(after[:, row, column]).reshape(-1).astype(dtypes.values(to)))

    return step


_MATRICES = r"\.sync\.aligned\.m8n8\.x(?P<count>[124])(?P<trans>\.trans)?\.shared(?:::cta)?\.b16"


def _words(m: Machine, t: Threads, address: Array, matrix: int, trans: bool) -> list[tuple[Array, int]]:
    """Where each lane's two elements of a matrix lie: addresses, of 2 bytes each."""
    begins = address.reshape(-1, WARP)
    rows = [GROUP, GROUP] if not trans else [MEMBER * 2, MEMBER * 2 + 1]
    columns = [MEMBER * 2, MEMBER * 2 + 1] if not trans else [GROUP, GROUP]
    return [(begins[:, 8 * matrix + r].reshape(-1) + 2 * np.tile(c, len(begins)), 2) for r, c in
            zip(rows, columns, strict=True)]  # fmt: skip


def _checked(m: Machine, t: Threads, address: Array, count: int) -> None:
    """Rows of 16 bytes, from the first lanes; the others' addresses are not read."""
    used = m.lane[t] < 8 * count
    m.shared.check(address[used], 16)
    if m.tracer:
        for i in range(count):  # eight rows are one pass
            some = m.lane[t] // 8 == i
            m.tracer.shared(m.number[t][some], address[some], 16)


@opcode(rf"ldmatrix{_MATRICES}", "lsu", together=True)
def load(m: Machine, ins: Instruction, count: str, trans: str | None) -> Step:
    writes, address = [m.write(r, "b32") for r in vector(ins.operands[0])], m.address(ins.operands[1])
    if len(writes) != int(count):
        raise m.unsupported(ins)

    def step(t: Threads) -> None:
        where = address(t)
        _checked(m, t, where, len(writes))
        for i, write in enumerate(writes):
            low, high = (m.shared.load(m.block_of[t], at, size, 1)[0].astype(np.uint32)
                         for at, size in _words(m, t, where, i, bool(trans)))  # fmt: skip
            write(t, low | (high << np.uint32(16)))

    return step


@opcode(rf"stmatrix{_MATRICES}", "lsu", together=True)
def store(m: Machine, ins: Instruction, count: str, trans: str | None) -> Step:
    reads, address = [m.read(r, "b32") for r in vector(ins.operands[1])], m.address(ins.operands[0])
    if len(reads) != int(count):
        raise m.unsupported(ins)

    def step(t: Threads) -> None:
        where = address(t)
        _checked(m, t, where, len(reads))
        for i, read in enumerate(reads):
            x = np.broadcast_to(read(t), len(where))
            for part, (at, _) in enumerate(_words(m, t, where, i, bool(trans))):
                m.shared.store(m.block_of[t], at, [(x >> np.uint32(16 * part)).astype(np.uint16)])

    return step


def shapes() -> list[str]:
    """What mma.sync may be asked for here."""
    return [re.sub(" 16$", " bf16, f16", s) for s in _SHAPES]

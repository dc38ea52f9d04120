"""What a launch executed and moved: instructions by pipe, sectors of global memory, passes of shared memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.ptx import opcodes
from tests.ptx.dtypes import Array
from tests.ptx.launch import Launched
from tests.ptx.machine import WARP

SECTOR, BANKS, WORD = 32, 32, 4


def _pairs(warp: Array, place: Array) -> Array:
    """Distinct (warp, place), as one number each: the warp above 48 bits."""
    return np.unique((warp.astype(np.int64) << 48) | (place & ((1 << 48) - 1)))


@dataclass
class Tracer:
    """Set as a machine's `tracer`, is told every access before it happens."""

    threads: Array = field(default_factory=lambda: np.arange(0))  # their numbers; the launch says how many
    moved: Counter[str] = field(default_factory=Counter)

    def global_(self, t: Any, address: Array, size: int, kind: str) -> None:
        """A request is one warp's; a sector that it touches counts once."""
        if not len(address):
            return
        warp = self.threads[t] // WARP
        self.moved[f"{kind} requests"] += len(np.unique(warp))
        self.moved[f"{kind} bytes"] += size * len(warp)
        self.moved[f"{kind} sectors"] += len(_pairs(warp, address // SECTOR))

    def shared(self, t: Any, address: Array, size: int) -> None:
        """Lanes that together ask for 128 bytes go at once; words of one bank that differ, one after another."""
        words = max(1, size // WORD)
        numbers = self.threads[t]
        phase = numbers // (WARP // words)  # eight lanes of 16 bytes, sixteen of 8, a warp of up to 4
        asked = np.concatenate([address // WORD + k for k in range(words)])
        distinct = _pairs(np.tile(phase, words), asked)
        place = (distinct >> 48) * BANKS + (distinct & (BANKS - 1))
        of_phase, counts = np.unique(place, return_counts=True)
        phases, first = np.unique(of_phase // BANKS, return_index=True)
        self.moved["shared phases"] += len(phases)
        self.moved["shared passes"] += int(np.maximum.reduceat(counts, first).sum())


def pipes(launched: Launched) -> Counter[str]:
    """Instructions that warps issued, by pipe. "free" ones are none in machine code: moves, parameters."""
    found: Counter[str] = Counter()
    for i, ins in enumerate(launched.kernel.instructions):
        found[opcodes.find(ins.opcode)[0].pipe] += int(launched.issued[i]) if launched.issued[i] else 0
    return found


def row(launches: list[Launched], elements: int, registers: int | None = None) -> dict[str, Any]:
    """Of launches that together map so many elements: for a warp's share of 32, instructions; bytes an element;
    sectors of a request, and passes of shared memory for each that it takes without conflicts."""
    by_pipe, moved = Counter[str](), Counter[str]()
    for one in launches:
        by_pipe += pipes(one)
        assert isinstance(one.tracer, Tracer)
        moved += one.tracer.moved
    turns = elements / WARP
    found: dict[str, Any] = {
        "instructions": round(sum(n for pipe, n in by_pipe.items() if pipe != "free") / turns, 1),
        "pipes": {pipe: round(n / turns, 1) for pipe, n in sorted(by_pipe.items())},
    }
    for kind in ("load", "store"):
        found[f"{kind} bytes"] = round(moved[f"{kind} bytes"] / elements, 2)
        found[f"sectors a {kind}"] = round(moved[f"{kind} sectors"] / max(1, moved[f"{kind} requests"]), 2)
        # 1 where every byte of the sectors is asked for
        found[f"{kind} efficiency"] = round(moved[f"{kind} bytes"] / max(1, SECTOR * moved[f"{kind} sectors"]), 3)
    found["shared passes"] = round(moved["shared passes"] / turns, 1)
    found["bank conflicts"] = round((moved["shared passes"] - moved["shared phases"]) / turns, 1)
    if registers is not None:
        found["registers"] = registers
    return found

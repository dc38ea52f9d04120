"""Which threads go on: all of a grid in step, or one warp or part of a warp after another in random order.

Threads that stand at the same instruction run as one `Group`. Of a team's groups the one that is furthest behind goes
first, so that lanes which part meet again as soon as they can. A team is the grid, or a warp where order is random.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.ptx import opcodes
from tests.ptx.dtypes import Array
from tests.ptx.errors import Fault
from tests.ptx.machine import WARP, Machine, Read, Step


@dataclass(frozen=True)
class Order:
    """Lockstep without a seed. With one, warps in random order; odd seeds split warps in two between meetings."""

    seed: int | None = None

    @property
    def splits(self) -> bool:
        return self.seed is not None and self.seed % 2 == 1


class Group:
    """Threads, in ascending order, that run the same instructions."""

    __slots__ = ("index", "members", "warps", "whole")

    def __init__(self, members: Array) -> None:
        self.members = members
        first, last = int(members[0]), int(members[-1])
        dense = last - first + 1 == len(members)
        self.index: Any = slice(first, last + 1) if dense else members  # a slice is a view, and cheaper
        of = members // WARP
        self.warps = 1 + int(np.count_nonzero(of[1:] != of[:-1]))
        self.whole = self.warps * WARP == len(members)  # no lane of its warps is elsewhere


@dataclass(slots=True)
class Decoded:
    kind: str  # plain, branch, end, block, together
    step: Step
    guard: Read | None
    target: int
    mask: Read | None  # of the lanes that must come together


Key = tuple[int, int]  # team and part of it


class Scheduler:
    def __init__(self, machine: Machine, order: Order | None = None) -> None:
        self.machine, self.order = machine, order or Order()
        self.code: list[Decoded | None] = [None] * len(machine.kernel.instructions)
        self.issued = np.zeros(len(self.code) + 1, np.int64)  # warps that issued each instruction
        self.steps = 0
        self._random = random.Random(self.order.seed)
        self._ready: dict[Key, dict[int, Array]] = {}  # → instruction → threads
        self._parked: dict[tuple[int, int], Array] = {}  # team, instruction → lanes that wait for others of their warp
        self._alive = np.ones(machine.threads, np.bool_)
        self._waiting = np.zeros(machine.threads, np.bool_)  # at the block's barrier
        self._resume = np.zeros(machine.threads, np.int64)

    # ---- the loop ----

    def run(self) -> None:
        everyone = np.arange(self.machine.threads)
        for team in self._teams(everyone):
            self._add(team, 0)
        stays = self.order.seed is not None and self.order.seed % 4 < 2  # each warp as far as it comes alone
        key: Key | None = None
        with np.errstate(all="ignore"):
            while self._ready:
                if key not in self._ready or not stays:
                    key = (
                        self._random.choice(list(self._ready))
                        if self.order.seed is not None
                        else next(iter(self._ready))
                    )
                groups = self._ready[key]
                at = min(groups)
                members = groups.pop(at)
                if not groups:
                    del self._ready[key]
                self._advance(key, at, Group(members), min(groups, default=len(self.code)))
        if self._parked or self._waiting.any():
            raise Fault(self._stuck())
        if self.machine.copies:
            raise Fault("a thread ends with copies on their way")

    def _teams(self, members: Array) -> Iterable[Array]:
        if self.order.seed is None:
            return [members]
        of = members // WARP
        return np.split(members, np.flatnonzero(of[1:] != of[:-1]) + 1)

    def _team_of(self, members: Array) -> int:
        return 0 if self.order.seed is None else int(members[0]) // WARP

    def _add(self, members: Array, at: int, part: int | None = None) -> None:
        """Makes threads of one team ready; where warps are split, in two parts unless one is given."""
        if not len(members):
            return
        team = self._team_of(members)
        if part is None and self.order.splits and len(members) > 1:
            first = np.array([self._random.random() < 0.5 for _ in members])
            self._add(members[first], at, 0)
            self._add(members[~first], at, 1)
            return
        groups = self._ready.setdefault((team, part or 0), {})
        if at in groups:
            members = np.sort(np.concatenate([groups[at], members]))
        groups[at] = members

    def _advance(self, key: Key, at: int, group: Group, until: int) -> None:
        """Runs a group to where it parts, waits, ends or meets the next one."""
        part = key[1]
        while at < until:
            if at >= len(self.code):
                return self._end(group.members)
            decoded = self.code[at] or self._decode(at)
            self.steps += 1
            if self.steps > self.machine.settings.most_steps:
                raise Fault(f"no end after {self.steps} steps")
            kind = decoded.kind
            if kind == "together":
                if decoded.guard is not None and not (on := decoded.guard(group.index)).all():
                    self._add(group.members[~on], at + 1, part)  # they need not meet anybody
                    if not on.any():
                        return None
                    group, until = Group(group.members[on]), at + 1
                arrived = self._gather(key[0], at, group, decoded)
                if arrived is None:
                    return None
                if arrived is not group or self.order.splits:
                    self._execute(at, decoded, arrived)
                    return self._add(arrived.members, at + 1)
                self._execute(at, decoded, group)
            elif kind == "plain":
                self._execute(at, decoded, group)
            elif kind == "block":
                self.issued[at] += group.warps
                return self._arrive(group.members, at + 1)
            else:
                self.issued[at] += group.warps
                to = decoded.target if kind == "branch" else len(self.code)
                if decoded.guard is not None:
                    taken = decoded.guard(group.index)
                    if not taken.any():
                        at += 1
                        continue
                    if not taken.all():
                        if kind == "branch":
                            self._add(group.members[taken], to, part)
                        else:
                            self._end(group.members[taken])
                        return self._add(group.members[~taken], at + 1, part)
                if kind == "end":
                    return self._end(group.members)
                if to <= at:  # others may be behind by then
                    return self._add(group.members, to, part)
                at = to
                continue
            at += 1
        return self._add(group.members, at, part) if at < len(self.code) else self._end(group.members)

    def _execute(self, at: int, decoded: Decoded, group: Group) -> None:
        self.issued[at] += group.warps
        index = group.index
        if decoded.guard is not None:
            on = decoded.guard(index)
            if not on.all():
                if not on.any():
                    return
                index = group.members[on]
        try:
            decoded.step(index)
        except Fault as fault:
            raise Fault(f"{fault}, at {self.machine.kernel.instructions[at]}") from None

    # ---- meetings ----

    def _gather(self, team: int, at: int, group: Group, decoded: Decoded) -> Group | None:
        """Those whose warps are complete, with who waited for them; the others are parked."""
        m = self.machine
        mask = decoded.mask
        if group.whole and mask is None:
            return group
        waited = self._parked.pop((team, at), None)
        members = group.members if waited is None else np.sort(np.concatenate([group.members, waited]))
        named = np.full(len(members), 0xFFFFFFFF, np.uint32) if mask is None else mask(members)
        named = np.broadcast_to(named, len(members))
        if not ((named >> m.lane[members].astype(np.uint32)) & 1).all():
            raise Fault(f"a lane is not in the mask of its own {m.kernel.instructions[at].opcode}")
        if group.whole and waited is None and (named == np.uint32(0xFFFFFFFF)).all():
            return group
        of_warp = np.zeros(m.threads // WARP, np.uint32)
        of_warp[m.warp[members]] = named
        wanted = ((of_warp[:, None] >> np.arange(WARP, dtype=np.uint32)) & 1).astype(np.bool_)
        here = np.zeros(m.threads, np.bool_)
        here[members] = True
        missing = (wanted & self._alive.reshape(-1, WARP) & ~here.reshape(-1, WARP)).any(1)[m.warp[members]]
        if missing.any():
            self._parked[team, at] = members[missing]
        go = members[~missing]
        if not len(go):
            return None
        return group if len(go) == len(group.members) == len(members) else Group(go)

    def _arrive(self, members: Array, then: int) -> None:
        self._waiting[members] = True
        self._resume[members] = then
        self._release(np.unique(self.machine.block_of[members]))

    def _release(self, blocks: Array) -> None:
        """Lets blocks go on whose threads all wait or have ended."""
        shape = (self.machine.blocks, self.machine.block)
        waiting, alive = self._waiting.reshape(shape)[blocks], self._alive.reshape(shape)[blocks]
        ready = blocks[(waiting | ~alive).all(1) & waiting.any(1)]
        if not len(ready):
            return
        free = np.zeros(self.machine.blocks, np.bool_)
        free[ready] = True
        members = np.flatnonzero(self._waiting & free[self.machine.block_of])
        self._waiting[members] = False
        for then in np.unique(self._resume[members]):
            for team in self._teams(members[self._resume[members] == then]):
                self._add(team, int(then))

    def _end(self, members: Array) -> None:
        self._alive[members] = False
        self._release(np.unique(self.machine.block_of[members]))
        warps = set((members // WARP).tolist())
        for (team, at), lanes in list(self._parked.items()):  # who waited for them need not any more
            if warps & set((lanes // WARP).tolist()):
                del self._parked[team, at]
                self._add(lanes, at)

    def _stuck(self) -> str:
        code = self.machine.kernel.instructions
        parked = [
            f"{len(lanes)} lanes wait for others of their warp at {code[at]}" for (_, at), lanes in self._parked.items()
        ]
        if n := int(self._waiting.sum()):
            parked.append(f"{n} threads wait at a barrier of their block")
        return "a deadlock: " + "; ".join(parked)

    # ---- instructions ----

    def _decode(self, at: int) -> Decoded:
        m, ins = self.machine, self.machine.kernel.instructions[at]
        known, _ = opcodes.find(ins.opcode)
        step = opcodes.decode(m, ins)
        guard = m.read("!" * ins.negated + ins.guard, "pred") if ins.guard else None
        stem = ins.opcode.partition(".")[0]
        kind = {"bra": "branch", "ret": "end", "exit": "end", "bar": "block", "barrier": "block"}.get(stem, "plain")
        mask = None
        if known.together:
            kind = "together"
            if stem in ("shfl", "vote", "redux") or ins.opcode == "bar.warp.sync":
                mask = m.read(ins.operands[-1], "u32")
        target = m.kernel.labels[ins.operands[0]] if kind == "branch" else 0
        found = self.code[at] = Decoded(kind, step, guard, target, mask)
        return found

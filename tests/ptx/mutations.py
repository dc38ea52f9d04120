"""Faults put into PTX, one at a time, such as a compiler or an author could make: what the runs here must catch.

`python -m tests.ptx.mutations` counts how many they do.
"""

from __future__ import annotations

import argparse
import functools
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from tests.ops.channels import cast
from tests.ptx import calls
from tests.ptx.errors import Fault, Unsupported
from tests.ptx.launch import Launched
from tests.ptx.machine import Settings
from tests.ptx.running import How
from tests.ptx.scheduler import Order


@dataclass(frozen=True)
class Mutation:
    kind: str
    line: int  # of the kernel's text
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.before.strip()} → {self.after.strip() or 'nothing'}"


def _dropped(m: re.Match[str]) -> str:
    return ""


def _more(by: int, group: int) -> Callable[[re.Match[str]], str]:
    """The number in a group, larger by so much."""

    def change(m: re.Match[str]) -> str:
        at, end = m.span(group)
        return m.string[:at] + str(int(m[group]) + by) + m.string[end:]

    return change


def _other_lane(m: re.Match[str]) -> str:
    at, end = m.span(1)
    return m.string[:at] + str(int(m[1]) ^ 3 if m[1].isdigit() else 3) + m.string[end:]


def _negated(m: re.Match[str]) -> str:
    return m.string.replace("@!%", "@%") if "@!%" in m.string else m.string.replace("@%", "@!%")


KINDS: dict[str, tuple[str, Callable[[re.Match[str]], str]]] = {
    "no wait": (r"^\s*cp\.async\.wait_(?:group|all)\b.*$", _dropped),
    "a wait for one group less": (r"^\s*cp\.async\.wait_group\s+(\d+);", _more(1, 1)),
    "no barrier": (r"^\s*bar\.sync\s+0;", _dropped),
    "no barrier of the warp": (r"^\s*bar\.warp\.sync\b.*$", _dropped),
    "another lane": (r"^\s*shfl\.sync\.bfly\.b32\s+\S+\s*\S+,\s*(%?\w+),.*$", _other_lane),
    "another address": (
        r"^\s*(?:@\S+\s+)?(?:ld|st)\.(?:shared|global)\S*\s.*\[\s*%\w+\s*\+\s*(\d+)\s*\].*$",
        _more(4, 1),
    ),
    "the other predicate": (r"^\s*@!?%\w+\s+(?:ld|st)\.(?:shared|global).*$", _negated),
}


def every(text: str) -> Iterator[Mutation]:
    for number, line in enumerate(text.split("\n")):
        for kind, (pattern, change) in KINDS.items():
            if m := re.match(pattern, line):
                yield Mutation(kind, number, line, change(m))


def applied(mutation: Mutation, text: str) -> str:
    lines = text.split("\n")
    if mutation.line < len(lines) and lines[mutation.line] == mutation.before:
        lines[mutation.line] = mutation.after
    return "\n".join(lines)


def _run(compiler: str, name: str, how: How) -> tuple[calls.Tensors, list[Launched]]:
    if compiler == "nvcc":
        from tests.ptx import of_nvcc as of

        running, backend = of.running(how), "cuda"
    else:
        from tests.ptx import of_triton as of

        running, backend = of.running("sm_80", how), "triton"
    with running as launches:
        return calls.results(calls.call(name), backend, cast(calls.call(name).tensors(), torch.float32)), launches


EXACT = Settings(errs=False, most_steps=200_000)


def of_call(compiler: str, name: str) -> list[tuple[str, Mutation]]:
    """Mutations of instructions that a call executes, with the module that holds them."""
    seen: list[str] = []

    def keep(text: str) -> str:
        seen.append(text)
        return text

    launches = _run(compiler, name, How(EXACT, mutate=keep))[1]
    lines: dict[str, set[int]] = {}
    for text, done in zip(seen, launches, strict=True):
        executed = {i.line for i, n in zip(done.kernel.instructions, done.issued, strict=False) if n}
        lines.setdefault(text, set()).update(executed)
    return [(text, m) for text, some in lines.items() for m in every(text) if m.line in some]


@functools.cache
def right(compiler: str, name: str) -> calls.Tensors:
    return _run(compiler, name, How(EXACT))[0]


def caught(compiler: str, name: str, text: str, mutation: Mutation) -> str | None:
    """What tells: a fault, or other bits than without the mutation, in lockstep or in some order of warps and lanes."""
    changed = applied(mutation, text)
    for seed in (None, 0, 1, 2, 3):
        how = How(EXACT, Order(seed), mutate=lambda t: changed if t == text else t)
        try:
            found, _ = _run(compiler, name, how)
        except (Fault, Unsupported) as e:
            return f"{type(e).__name__} in order {seed}"
        if not all(torch.equal(a, b) for a, b in zip(found, right(compiler, name), strict=True)):
            return f"other numbers in order {seed}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.ptx.mutations", description=__doc__)
    parser.add_argument("--compiler", default="triton", choices=["nvcc", "triton"])
    parser.add_argument("--call", nargs="+", default=["affine sigmoid", "actnorm rows", "rqs K=8 odd rows"])
    parser.add_argument("--each", type=int, default=3, help="mutations of a kind and call")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw, n, found = random.Random(given.seed), 0, 0
    for name in given.call:
        drawn = of_call(given.compiler, name)
        for kind in KINDS:
            of_kind = [d for d in drawn if d[1].kind == kind]
            for text, mutation in draw.sample(of_kind, min(given.each, len(of_kind))):
                how = caught(given.compiler, name, text, mutation)
                n, found = n + 1, found + (how is not None)
                print(f"{name}: {mutation}: {how or 'SURVIVED'}", flush=True)
    print(f"{found} of {n} caught")


if __name__ == "__main__":
    main()

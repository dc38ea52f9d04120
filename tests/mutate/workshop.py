"""The copy of the tree that mutations are made in: filled, built, and run there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from . import forked
from .mutation import ROOT, SWITCH, Mutation, switched

# It fails unmutated where kernels are built with -O1: one draw of rounding too many.
LEFT_OUT = ("--deselect", "tests/ops/test_rqs.py::test_numbers_with_options[inverse-64-logit-scale]")
COPIED = ("csrc", "flowkernels", "tests", "docs", "cmake", "CMakeLists.txt", "setup.py", "pyproject.toml", "README.md")
COPIED += ("LICENSE",)  # with the README, what pyproject.toml names
CHOSEN = "FK_MUTANT"  # the environment variable that throws a switch
PLAIN = "-DFK_BASELINE_ONLY=ON -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS=-O1"  # quickly compiled
HEADER = f"""#pragma once
#include <stdlib.h>
inline const int {SWITCH}_chosen = getenv("{CHOSEN}") ? atoi(getenv("{CHOSEN}")) : 0;
inline bool {SWITCH}(int n) {{ return n == {SWITCH}_chosen; }}
"""
_FAILED = re.compile(r"^(tests/.+?) (?:FAILED|ERROR) +\[", re.MULTILINE)
_BEGUN = re.compile(r"^(tests/\S+::.+?) *(?:Fatal Python error.*)?$", re.MULTILINE)


class Outcome(NamedTuple):
    kind: str  # killed, survived, undecided
    test: str = ""  # that killed it
    crashed: bool = False


class Workshop:
    def __init__(self, folder: Path, mutations: Sequence[Mutation]) -> None:
        self.folder, self.mutations = folder, mutations
        self.number = {m.name: i for i, m in enumerate(mutations, 1)}

    # ---- to fill and to build ----

    def fill(self) -> None:
        """Copies the tree, with every mutation of C++ behind its switch. What is there already keeps its time."""
        self._put("csrc/mutant.h", HEADER)
        changed = {m.file for m in self.mutations if m.compiled}
        for name in COPIED:
            top = ROOT / name
            for source in sorted(top.rglob("*")) if top.is_dir() else [top]:
                relative = source.relative_to(ROOT)
                if not source.is_file() or source.suffix in (".so", ".pyc"):
                    continue
                if str(relative) in changed:
                    self._put(str(relative), self._text(str(relative)))
                else:
                    self._put(str(relative), source.read_bytes())

    def _text(self, file: str) -> str:
        text = (ROOT / file).read_text()
        here = [(self.number[m.name], m) for m in self.mutations if m.file == file and m.compiled]
        return f'#include "{self.folder}/csrc/mutant.h"\n{switched(text, here)}'

    def _put(self, file: str, content: str | bytes) -> None:
        to, content = self.folder / file, content.encode() if isinstance(content, str) else content
        if not to.exists() or to.read_bytes() != content:
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(content)

    def build(self) -> None:
        """The CPU's module, CUDA's kernels in the emulator, and Python's files and tests: none is compiled again."""
        for command in (
            ["setup.py", "--quiet", "build_ext", "--inplace"],
            ["-c", "from tests.emulator import emulated; emulated()"],
            [
                "-m",
                "pytest",
                "--quiet",
                "--quiet",
                "--collect-only",
                *sorted({f for m in self.mutations for f in m.files}),
            ],
        ):
            subprocess.run(
                [sys.executable, *command], cwd=self.folder, env=self._environment(0), check=True,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip

    def _environment(self, mutant: int) -> dict[str, str]:
        mine = {"PYTHONPATH": str(self.folder), "FLOWKERNELS_CUDA": "OFF", CHOSEN: str(mutant)}
        mine |= {"CMAKE_ARGS": f"{os.environ.get('CMAKE_ARGS', '')} {PLAIN}", "OMP_WAIT_POLICY": "passive"}
        return {**os.environ, **mine}

    # ---- to run ----

    def run(self, m: Mutation, seconds: float, first: str = "") -> Outcome:
        """By its tests, or by the one that is likely to fail, `first`."""
        if m.compiled:
            return self._in_turn(m, self.number[m.name], seconds, first)
        file = self.folder / m.file
        before = file.read_text()
        file.write_text(m.apply(before))
        try:
            return self._in_turn(m, 0, seconds, first)
        finally:
            file.write_text(before)

    def _in_turn(self, m: Mutation, number: int, seconds: float, first: str) -> Outcome:
        if first:
            found = self._outcome([first], number, seconds)
            if found.kind == "killed":
                return found
        return self._outcome(m.tests, number, seconds)

    def fails_unmutated(self, tests: Sequence[str]) -> list[str]:
        """Which of these fail where nothing is mutated."""
        if not tests:
            return []
        code, said = forked.pytest(self.folder, tests, self._environment(0))
        if code not in (0, 1):
            raise RuntimeError(f"the tests do not run unmutated:\n{said[-2000:]}")
        return re.findall(_FAILED, said)

    def _outcome(self, tests: Sequence[str], mutant: int, seconds: float) -> Outcome:
        code, said = forked.pytest(self.folder, ["-x", *LEFT_OUT, *tests], self._environment(mutant), seconds)
        if code is None:
            return Outcome("undecided")
        if code == 0:
            return Outcome("survived")
        if failed := re.findall(_FAILED, said):
            return Outcome("killed", failed[-1])
        if code < 0:
            begun = re.findall(_BEGUN, said)
            return Outcome("killed", begun[-1] if begun else "", crashed=True)
        if collected := re.findall(r"^ERROR (?!: )(tests/\S+)", said, re.MULTILINE):
            return Outcome("killed", collected[0])
        if code == 4 and len(tests) == 1:  # a test of this name is no more
            return Outcome("survived")
        raise RuntimeError(f"{' '.join(tests)} does not run:\n{said[-3000:]}")

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

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

from .mutation import ROOT, SWITCH, Mutation, switched

COPIED = ("csrc", "flowkernels", "tests", "cmake", "CMakeLists.txt", "setup.py", "pyproject.toml")
CHOSEN = "FK_MUTANT"  # the environment variable that throws a switch
# One instruction set, quickly compiled.
PLAIN = (
    ("CMakeLists.txt", "set(FK_ISAS baseline avx2 avx512)", "set(FK_ISAS baseline)"),
    ("CMakeLists.txt", 'set(CMAKE_CXX_FLAGS_RELEASE "-O3")', 'set(CMAKE_CXX_FLAGS_RELEASE "-O1")'),
    ("csrc/common/dispatch.h", "#if defined(__x86_64__)", "#if 0"),
    ("csrc/common/isa.cpp", "#if defined(__x86_64__)", "#if 0"),
)
HEADER = f"""#pragma once
#include <stdlib.h>
inline const int {SWITCH}_chosen = getenv("{CHOSEN}") ? atoi(getenv("{CHOSEN}")) : 0;
inline bool {SWITCH}(int n) {{ return n == {SWITCH}_chosen; }}
"""


class Outcome(NamedTuple):
    kind: str  # killed, survived, undecided
    test: str = ""  # that killed it
    crashed: bool = False


def _replaced(source: str, old: str, new: str) -> str:
    if source.count(old) != 1:
        raise ValueError(f"the copy's build needs {old!r} once, got {source.count(old)} times")
    return source.replace(old, new)


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
                if str(relative) in changed or str(relative) in [f for f, *_ in PLAIN]:
                    self._put(str(relative), self._text(str(relative)))
                else:
                    self._put(str(relative), source.read_bytes())

    def _text(self, file: str) -> str:
        text = (ROOT / file).read_text()
        here = [(self.number[m.name], m) for m in self.mutations if m.file == file and m.compiled]
        text = switched(text, here)
        for of, old, new in PLAIN:
            text = _replaced(text, old, new) if of == file else text
        return f'#include "{self.folder}/csrc/mutant.h"\n{text}' if here else text

    def _put(self, file: str, content: str | bytes) -> None:
        to, content = self.folder / file, content.encode() if isinstance(content, str) else content
        if not to.exists() or to.read_bytes() != content:
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(content)

    def build(self, emulator: bool) -> None:
        """The CPU's module, and CUDA's kernels in the emulator where they are asked for."""
        self._call([sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"])
        if emulator:
            self._call([sys.executable, "-c", "from tests.emulator import emulated; emulated()"])

    def _call(self, command: list[str]) -> None:
        subprocess.run(command, cwd=self.folder, env=self._environment(0), check=True)

    def _environment(self, mutant: int) -> dict[str, str]:
        mine = {"PYTHONPATH": str(self.folder), "FLOWKERNELS_CUDA": "OFF", CHOSEN: str(mutant)}
        return {**os.environ, **mine, "PYTHONDONTWRITEBYTECODE": "1", "OMP_WAIT_POLICY": "passive"}

    # ---- to run ----

    def run(self, m: Mutation, seconds: float) -> Outcome:
        if m.compiled:
            return self._pytest(m.tests, self.number[m.name], seconds)
        file = self.folder / m.file
        before = file.read_text()
        file.write_text(m.apply(before))
        try:
            return self._pytest(m.tests, 0, seconds)
        finally:
            file.write_text(before)

    def fails_unmutated(self, tests: Sequence[str]) -> list[str]:
        """Which of these fail where nothing is mutated."""
        if not tests:
            return []
        done = self._start(tests, 0, None)
        if done.returncode not in (0, 1):
            raise RuntimeError(f"the tests do not run unmutated:\n{done.stdout[-2000:]}")
        return re.findall(r"^(tests/.+?) (?:FAILED|ERROR) +\[", done.stdout, re.MULTILINE)

    def _start(
        self, tests: Sequence[str], mutant: int, seconds: float | None, *more: str
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "-v", "--tb=line", "-p", "no:cacheprovider", *more, *tests]
        return subprocess.run(
            command, cwd=self.folder, env=self._environment(mutant), text=True, timeout=seconds,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def _pytest(self, tests: Sequence[str], mutant: int, seconds: float) -> Outcome:
        try:
            done = self._start(tests, mutant, seconds, "-x")
        except subprocess.TimeoutExpired:
            return Outcome("undecided")
        if done.returncode == 0:
            return Outcome("survived")
        failed = re.findall(r"^(tests/.+?) (?:FAILED|ERROR) +\[", done.stdout, re.MULTILINE)
        if failed:
            return Outcome("killed", failed[-1])
        if done.returncode < 0:
            begun = re.findall(r"^(tests/\S+::.+?) *$", done.stdout, re.MULTILINE)
            begun += re.findall(r"^(tests/\S+::.+?) Fatal Python error", done.stdout, re.MULTILINE)
            return Outcome("killed", begun[-1] if begun else "", crashed=True)
        collected = re.findall(r"^ERROR (tests/\S+)", done.stdout, re.MULTILINE)
        if collected and done.returncode in (1, 2):
            return Outcome("killed", collected[0])
        raise RuntimeError(f"{' '.join(tests)} does not run:\n{done.stdout[-3000:]}")

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

"""This machine's side: pytest with an emulated `flowkernels._C`, each of whose calls goes to a guest and comes back.

`python -m tests.neon.host GUEST PROCESS PROCESSES [pytest's]`, where GUEST is the guest's command as a list of JSON.
Tensors go as their storages' bytes, before every call that may see them, and come back where they changed. What looks
at Python's objects alone stays with this machine's own module.
"""

from __future__ import annotations

import builtins
import ctypes
import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cuda.replay import ALIGNED, load
from tests.neon.wire import Made, Said, receive, send

ROOT = Path(__file__).resolve().parents[2]
OF_THE_HOST = ("advise_huge", "are_dense", "are_like", "seen", "walk_holds")


class Handle:
    """An object of the guest's. What it was made of stays alive, as its memory is asked for in every call."""

    def __init__(self, module: Emulated, number: int, of: list[Any]) -> None:
        self._module, self._number, self._of = module, number, of
        weakref.finalize(self, module.gone.append, number)

    def __getattr__(self, name: str) -> Any:
        return self._module.method(self, name)


class Emulated:
    """The module, as Python sees it."""

    def __init__(self, command: list[str]) -> None:
        self._guest = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._guest.stdin is not None and self._guest.stdout is not None
        self._to, self._come = self._guest.stdin, self._guest.stdout
        self.gone: list[int] = []
        self.calls = 0
        for name, value in receive(self._come).items():
            setattr(self, name, self.method(None, name) if value is None else value)
        mine = _of_this_machine()
        for name in OF_THE_HOST:
            setattr(self, name, getattr(mine, name))

    def method(self, of: Handle | None, name: str) -> Any:
        def asked(*given: Any, **named: Any) -> Any:
            return self._asked(of, name, given, named)

        return asked

    def _asked(self, of: Handle | None, name: str, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        memory: dict[int, torch.UntypedStorage] = {}
        said = [_said(value, memory) for value in (given, named)]
        _remember(of, memory)
        gone, self.gone[:] = list(self.gone), []
        contents = {
            at: (ctypes.string_at(at, storage.nbytes()), at % ALIGNED) if at else (b"", 0)
            for at, storage in memory.items()
        }
        self.calls += 1
        send(self._to, (gone, None if of is None else of._number, name, *said, contents))
        kind, *answer = receive(self._come)
        if kind == "raised":
            raise getattr(builtins, answer[0])(answer[1])
        for at, data in answer[1].items():
            ctypes.memmove(at, data, len(data))
        return Handle(self, answer[0].number, [given, named]) if isinstance(answer[0], Made) else answer[0]


def _of_this_machine() -> Any:
    (path,) = (ROOT / "flowkernels").glob("_C.*.so")
    return load(path, "_C")


def _said(value: Any, memory: dict[int, torch.UntypedStorage]) -> Any:
    """A value as a message has it; adds the storages of its tensors, and of what handles were made of."""
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        begin = storage.data_ptr()
        memory[begin] = storage
        offset, dtype = value.storage_offset() * value.element_size(), str(value.dtype).removeprefix("torch.")
        return Said(begin, offset, dtype, tuple(value.shape), value.stride(), value.is_neg())
    if isinstance(value, Handle):
        _remember(value, memory)
        return Made(value._number)
    if isinstance(value, list | tuple):
        return type(value)(_said(v, memory) for v in value)
    if isinstance(value, dict):
        return {key: _said(v, memory) for key, v in value.items()}
    return value


def _remember(of: Handle | None, memory: dict[int, torch.UntypedStorage]) -> None:
    if of is not None:
        _said(of._of, memory)


class Dealt:
    """One test in so many, of those that -k has chosen."""

    def __init__(self, process: int, processes: int) -> None:
        self.process, self.processes = process, processes

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = items[self.process :: self.processes]


def main() -> int:
    command, process, processes = sys.argv[1:4]
    # Before anything imports the package, which finds it where it would have loaded its own.
    module = sys.modules["flowkernels._C"] = Emulated(json.loads(command))  # type: ignore[assignment]
    status = pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[4:]], [Dealt(int(process), int(processes))])
    print(f"{module.calls} calls on {', '.join(module.isas())}")
    return int(status) or int(module.calls == 0)


if __name__ == "__main__":
    sys.exit(main())

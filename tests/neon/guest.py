"""The emulated side: `python -m tests.neon.guest MODULE` loads the module without torch, and calls it as it is told.

Torch on an emulated processor takes twenty seconds to start, and its reference results longer than our kernels.
"""

from __future__ import annotations

import ctypes
import os
import sys
import weakref
from pathlib import Path
from typing import Any

from tests.cuda.replay import ALIGNED, load, without_torch
from tests.neon.wire import Made, Said, receive, send


class Storage:
    """Memory that stands for that of the host."""

    def __init__(self, size: int, remainder: int) -> None:
        self.size, self._memory = size, ctypes.create_string_buffer(size + 2 * ALIGNED)
        self.at = -(-ctypes.addressof(self._memory) // ALIGNED) * ALIGNED + remainder

    def write(self, data: bytes) -> None:
        ctypes.memmove(self.at, data, self.size)

    def read(self) -> bytes:
        return ctypes.string_at(self.at, self.size)


class Tensor:
    """What the module asks a tensor for."""

    def __init__(self, said: Said, storage: Storage, dtype: object) -> None:
        self.shape, self.dtype, self._stride, self._negative = said.shape, dtype, said.stride, said.negative
        self._storage, self._at = storage, storage.at + said.offset

    def data_ptr(self) -> int:
        return self._at

    def stride(self) -> tuple[int, ...]:
        return self._stride

    def is_neg(self) -> bool:
        return self._negative


class Guest:
    def __init__(self, module: Any, dtypes: dict[str, object]) -> None:
        self.module, self.dtypes = module, dtypes
        self.made: dict[int, tuple[Any, Any]] = {}  # and of what, whose memory it may point to
        self.storages: weakref.WeakValueDictionary[int, Storage] = weakref.WeakValueDictionary()

    def names(self) -> dict[str, Any]:
        """What the module has: values as they are, None for what is to be called."""
        found = {name: getattr(self.module, name) for name in dir(self.module) if not name.startswith("_")}
        return {name: None if callable(value) else value for name, value in found.items()}

    def asked(self, gone: list[int], number: int | None, name: str, given: Any, named: Any, memory: Any) -> Any:
        """The answer, and the storages that are others than before."""
        for of in gone:
            self.made.pop(of, None)
        held = {key: self._stored(key, data, remainder) for key, (data, remainder) in memory.items()}
        of = self.module if number is None else self.made[number][0]
        arguments = self._read(given, held), self._read(named, held)
        answer = getattr(of, name)(*arguments[0], **arguments[1])
        changed = {key: now for key, (data, _) in memory.items() if (now := held[key].read()) != data}
        return self._said(answer, arguments), changed

    def _stored(self, key: int, data: bytes, remainder: int) -> Storage:
        found = self.storages.get(key)
        if found is None or found.size != len(data):
            found = self.storages[key] = Storage(len(data), remainder)
        found.write(data)
        return found

    def _read(self, said: Any, held: dict[int, Storage]) -> Any:
        if isinstance(said, Said):
            return Tensor(said, held[said.storage], self.dtypes[said.dtype])
        if isinstance(said, Made):
            return self.made[said.number][0]
        if isinstance(said, list | tuple):
            return type(said)(self._read(v, held) for v in said)
        if isinstance(said, dict):
            return {key: self._read(v, held) for key, v in said.items()}
        return said

    def _said(self, answer: Any, arguments: Any) -> Any:
        if answer is None or isinstance(answer, bool | int | float | str | list | tuple):
            return answer
        number = max(self.made, default=0) + 1
        self.made[number] = answer, arguments
        return Made(number)


def main() -> None:
    come, to = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anyone prints is no message
    dtypes = without_torch()
    ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)  # as torch brings it
    guest = Guest(load(Path(sys.argv[1]), "_C"), dtypes)
    send(to, guest.names())
    while True:
        try:
            message = receive(come)
        except EOFError:
            return
        try:
            send(to, ("done", *guest.asked(*message)))
        except Exception as error:  # the host's to raise
            send(to, ("raised", type(error).__name__, str(error)))


if __name__ == "__main__":
    main()

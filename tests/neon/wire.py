"""How the two sides talk: a length, then so many bytes of pickle. Without torch, which the guest does not have."""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO


@dataclass(frozen=True)
class Said:
    """A tensor, in a message: which storage, how far behind its begin, and what a kernel asks of it."""

    storage: int
    offset: int
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    negative: bool


@dataclass(frozen=True)
class Made:
    """What the guest has made, in a message."""

    number: int


def send(to: BinaryIO, message: Any) -> None:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    to.write(struct.pack("<q", len(data)))
    to.write(data)
    to.flush()


def receive(come: BinaryIO) -> Any:
    """The next message; EOFError where the other side has ended."""
    length = come.read(8)
    if len(length) < 8:
        raise EOFError("the other side has ended")
    return pickle.loads(come.read(*struct.unpack("<q", length)))

"""What a linked module says of itself: a reader of 64-bit ELF files, as small as the tests need."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

DYNAMIC, STACK, RELRO = 2, 0x6474E551, 0x6474E552  # kinds of segments
NEEDED, STRINGS, SYMBOLS, RPATH, BIND_NOW, RUNPATH, FLAGS, FLAGS_1 = 1, 5, 6, 15, 24, 29, 30, 0x6FFFFFFB


class Elf:
    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        if self.data[:6] != b"\x7fELF\x02\x01":
            raise ValueError(f"Elf: path must be a little-endian 64-bit ELF file, got {path}")
        (at,) = struct.unpack_from("<Q", self.data, 32)
        size, count = struct.unpack_from("<HH", self.data, 54)
        # kind, flags, offset, address, physical address, bytes in the file, in memory, alignment
        self.segments = [struct.unpack_from("<IIQQQQQQ", self.data, at + i * size) for i in range(count)]
        self.dynamic = list(self._dynamic())

    def _dynamic(self) -> Iterator[tuple[int, int]]:
        for segment in self.segments:
            if segment[0] == DYNAMIC:
                for at in range(segment[2], segment[2] + segment[5], 16):
                    yield struct.unpack_from("<QQ", self.data, at)

    def _offset(self, address: int) -> int:
        return next(address - s[3] + s[2] for s in self.segments if s[0] == 1 and s[3] <= address < s[3] + s[5])

    def _values(self, tag: int) -> list[int]:
        return [value for t, value in self.dynamic if t == tag]

    def _string(self, at: int) -> str:
        begin = self._offset(self._values(STRINGS)[0]) + at
        return self.data[begin : self.data.index(b"\0", begin)].decode()

    @property
    def needed(self) -> list[str]:
        """Libraries that the loader brings in."""
        return [self._string(at) for at in self._values(NEEDED)]

    @property
    def search_path(self) -> list[str]:
        """Where the loader looks for them before it looks where it should."""
        return [self._string(at) for tag in (RPATH, RUNPATH) for at in self._values(tag)]

    @property
    def imports(self) -> set[str]:
        """Symbols that other libraries define. The table of symbols ends where that of their names begins."""
        begin, end = self._offset(self._values(SYMBOLS)[0]), self._offset(self._values(STRINGS)[0])
        symbols = [struct.unpack_from("<IBBHQQ", self.data, at) for at in range(begin, end - 23, 24)]
        return {self._string(name) for name, _, _, section, _, _ in symbols if name and section == 0}

    @property
    def executable_stack(self) -> bool:
        return all(s[1] & 1 for s in self.segments if s[0] == STACK)  # true where nothing is said

    @property
    def relro(self) -> str:
        """How much of what the loader writes is read-only afterwards: none, partial, full."""
        if not any(s[0] == RELRO for s in self.segments):
            return "none"
        said = [(FLAGS, 8), (FLAGS_1, 1)]  # both mean the same: symbols are bound when the module is loaded
        now = self._values(BIND_NOW) or any(value & bit for tag, bit in said for value in self._values(tag))
        return "full" if now else "partial"

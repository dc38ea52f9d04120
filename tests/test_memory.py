"""`keep_memory`: what it changes in a process of its own, what it says elsewhere."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from flowkernels import _memory, keep_memory

IS_GLIBC = _memory._glibc() is not None
# 96 MB, three times glibc's own limit, touched and given back; the pages that had to be made for it.
SCRIPT = """
import resource, sys, torch
import flowkernels

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(24 << 20).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
{call}
for _ in range(4):  # something small may come to lie behind the first, whose room is then too small for the next
    pages()
print(sum(pages() for _ in range(3)))
"""


def pages_of(call: str) -> int:
    code = SCRIPT.format(call=call)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not IS_GLIBC, reason="no glibc here")
def test_memory_is_used_again() -> None:
    """All pages are made again by default; none is where memory is kept."""
    given_back, kept = pages_of(""), pages_of("assert flowkernels.keep_memory() is True")
    assert kept < 16
    assert given_back > 100  # 48 huge pages each time at least, or 24,576 small ones


class Library:
    """A C library that has these functions, of which mallopt refuses these parameters."""

    def __init__(self, *names: str, refuses: tuple[int, ...] = ()) -> None:
        self.calls: list[tuple[int, int]] = []
        self._refuses = refuses
        for name in names:
            setattr(self, name, self._mallopt if name == "mallopt" else object())
        self.malloc = lambda size: self.pieces.append(size) or len(self.pieces)
        self.free = lambda piece: self.pieces.pop()
        self.pieces: list[int] = []

    def _mallopt(self, parameter: int, value: int) -> int:
        self.calls.append((parameter, value))
        return int(parameter not in self._refuses)


GLIBC = ("gnu_get_libc_version", "mallopt")


def test_what_is_asked_of_glibc(monkeypatch) -> None:
    for most, pad, trim in ((None, 64 << 20, -1), (5000, 5000, 5000), (2**31 - 1, 64 << 20, 2**31 - 1), (0, 0, 0)):
        library = Library(*GLIBC)
        monkeypatch.setattr(ctypes, "CDLL", lambda name, library=library: library)
        monkeypatch.setattr(sys, "platform", "linux")
        assert keep_memory(most) is True
        assert library.calls == [(-3, 2**31 - 1), (-2, pad), (-1, trim)]
        assert library.pieces == []  # all were freed


def test_an_older_glibc(monkeypatch) -> None:
    """Whose threshold is at most 32 MiB takes nothing from the kernel in pieces of their own any more."""
    library = Library(*GLIBC, refuses=(-3,))
    monkeypatch.setattr(_memory, "_glibc", lambda: library)
    assert keep_memory() is True
    assert (-4, 0) in library.calls


@pytest.mark.parametrize(
    ("platform", "names"),
    [("darwin", GLIBC), ("win32", GLIBC), ("linux", ("mallopt",)), ("linux", GLIBC[:1])]
    + [("linux", (*GLIBC, other)) for other in ("mallctl", "tc_malloc", "mi_malloc")],
)
def test_elsewhere_it_changes_nothing_and_says_so(platform, names, monkeypatch) -> None:
    library = Library(*names)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert keep_memory() is False
    assert library.calls == []


@pytest.mark.parametrize(
    ("most", "message"),
    [
        (-1, "keep_memory: most must be at least 0, got -1"),
        (1.5, "keep_memory: most must be an integer, at least 0, got 1.5"),
        (2**31, "keep_memory: most must be at most 2147483647, or None, got 2147483648"),
    ],
)
def test_errors(most, message) -> None:
    with pytest.raises(ValueError, match=message):
        keep_memory(most)

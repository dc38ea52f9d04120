"""Global memory: the host's own, but only inside of known allocations. Shared memory: NaN until somebody writes it."""

from __future__ import annotations

import bisect
import ctypes
from dataclasses import dataclass, field

import numpy as np

from tests.ptx.dtypes import Array
from tests.ptx.errors import Fault

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def _aligned(address: Array, size: int) -> None:
    if size > 1 and (off := address & (size - 1)).any():
        i = int(off.argmax())
        raise Fault(f"a misaligned access: {size} bytes at address {int(address[i]):#x}")


@dataclass
class Allocation:
    begin: int
    size: int
    views: dict[int, Array] = field(default_factory=dict)  # by bytes of an element

    def view(self, size: int) -> Array:
        found = self.views.get(size)
        if found is None:
            if self.begin % size:
                raise Fault(f"an allocation at {self.begin:#x} is not aligned for {size} bytes")
            buffer = (ctypes.c_uint8 * (self.size // size * size)).from_address(self.begin)
            found = self.views[size] = np.frombuffer(buffer, _UNSIGNED[size])
        return found


class Global:
    """What kernels may touch: the memory of tensors that outlive the launch, at its own addresses."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._allocations: list[Allocation] = []

    def add(self, begin: int, size: int) -> None:
        """Makes `size` bytes at an address known; the same place again may have grown."""
        i = bisect.bisect_left(self._begins, begin)
        if i < len(self._begins) and self._begins[i] == begin:
            if size > self._allocations[i].size:
                self._allocations[i] = Allocation(begin, size)
            return
        if size:
            self._begins.insert(i, begin)
            self._allocations.insert(i, Allocation(begin, size))

    def _of(self, lowest: int, end: int) -> Allocation | None:
        i = bisect.bisect_right(self._begins, lowest) - 1
        if i >= 0 and end <= self._begins[i] + self._allocations[i].size:
            return self._allocations[i]
        return None

    def check(self, address: Array, size: int) -> None:
        """Faults unless every thread's `size` bytes lie inside of one allocation."""
        _aligned(address, size)
        if self._of(int(address.min()), int(address.max()) + size) is None:
            for begin in address.tolist():
                if self._of(begin, begin + size) is None:
                    raise Fault(f"{size} bytes at {begin:#x} are out of bounds: {self._where(begin)}")

    def _where(self, address: int) -> str:
        i = bisect.bisect_right(self._begins, address) - 1
        if i < 0:
            return "no allocation lies before"
        found = self._allocations[i]
        return f"{address - found.begin} bytes from the start of the {found.size} at {found.begin:#x}"

    def load(self, address: Array, size: int, count: int) -> list[Array]:
        """`count` elements of `size` bytes from each address, as bits."""
        self.check(address, size * count)
        whole = self._of(int(address.min()), int(address.max()) + size * count)
        if whole is not None:
            view, first = whole.view(size), (address - whole.begin) // size
            return [view[first + k] for k in range(count)]
        found = [np.empty(len(address), _UNSIGNED[size]) for _ in range(count)]
        for i, begin in enumerate(address.tolist()):
            one = self._of(begin, begin + size)
            assert one is not None
            for k in range(count):
                found[k][i] = one.view(size)[(begin - one.begin) // size + k]
        return found

    def store(self, address: Array, values: list[Array]) -> None:
        """Of threads that write to the same place the last one wins."""
        size, count = values[0].dtype.itemsize, len(values)
        self.check(address, size * count)
        whole = self._of(int(address.min()), int(address.max()) + size * count)
        if whole is not None:
            view, first = whole.view(size), (address - whole.begin) // size
            for k, value in enumerate(values):
                view[first + k] = value
            return
        for i, begin in enumerate(address.tolist()):
            one = self._of(begin, begin + size)
            assert one is not None
            for k, value in enumerate(values):
                one.view(size)[(begin - one.begin) // size + k] = value[i if len(value) > 1 else 0]


class Shared:
    """Shared memory of every block of a grid; each starts as NaN in every floating type."""

    def __init__(self, blocks: int, size: int) -> None:
        self.size = size
        self._stride = -(-max(size, 1) // 16) * 16
        memory = np.full(blocks * self._stride, 0xFF, np.uint8)
        self._views = {size: memory.view(kind) for size, kind in _UNSIGNED.items()}

    def check(self, address: Array, size: int) -> None:
        _aligned(address, size)
        if (out := (address < 0) | (address + size > self.size)).any():
            worst = int(address[int(out.argmax())])
            raise Fault(f"{size} bytes at {worst} of shared memory are out of bounds: there are {self.size}")

    def load(self, block: Array, address: Array, size: int, count: int) -> list[Array]:
        self.check(address, size * count)
        first = (block * self._stride + address) // size
        return [self._views[size][first + k] for k in range(count)]

    def store(self, block: Array, address: Array, values: list[Array]) -> None:
        size = values[0].dtype.itemsize
        self.check(address, size * len(values))
        first = (block * self._stride + address) // size
        for k, value in enumerate(values):
            self._views[size][first + k] = value

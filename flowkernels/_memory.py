"""What the C library does with memory that tensors give back."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from flowkernels._arguments import count

# Parameters of mallopt, /usr/include/malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_LARGEST = 2**31 - 1  # mallopt takes an int
_PAD = 64 << 20
_POINTER = ctypes.c_void_p
# Allocators that people load in malloc's place: those have ways of their own, and mallopt does nothing to them.
_OTHERS = ("mallctl", "je_mallctl", "tc_malloc", "mi_malloc")


def _glibc() -> Any:
    """The C library of this process where its malloc is glibc's, or None."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        process = ctypes.CDLL(None)
    except OSError:  # linked statically
        return None
    if not hasattr(process, "gnu_get_libc_version") or any(hasattr(process, name) for name in _OTHERS):
        return None
    return process if hasattr(process, "mallopt") else None


def _fill_small_bins(library: Any) -> None:
    """Frees as many small pieces as this thread's cache keeps of each size.

    torch asks for aligned memory. What glibc cuts off to align it is a small piece, and while the cache takes it, it
    stays between two large ones for good: neither then has room for the other's successor, and up to seven tensors'
    worth of memory is used up before the first is used again. A cache that is full leaves such pieces to be merged.
    """
    malloc, free = library.malloc, library.free
    malloc.restype, malloc.argtypes, free.restype, free.argtypes = _POINTER, [ctypes.c_size_t], None, [_POINTER]
    for size in range(24, 152, 16):
        for piece in [malloc(size) for _ in range(9)]:
            free(piece)


def keep_memory(most: int | None = None) -> bool:
    """Lets this process keep the memory that tensors on the CPU give back, to be used again; until it ends.

    What glibc allocates in one piece above some MB it takes from the kernel, and gives back when it is freed. The next
    tensor of that size is new pages again, each of which the kernel makes and clears when it is first touched: in
    networks of convolutions, and wherever activations are tens of MB, most of a call can be that. This raises glibc's
    thresholds (``mallopt``), for all libraries in the process alike. It may as well be said from outside, by the
    variables ``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_`` and ``MALLOC_TOP_PAD_``; a process that this one
    forks inherits it, one that it starts anew does not. Numbers do not change, and nothing of a GPU does.

    The price: the process stays as large as it ever was, and where sizes vary much it may become larger, as a
    hole between two tensors in use takes only what fits into it.

    Args:
        most: bytes that may lie free at the end of the heap before they are given back; None: any number. At most
            2³¹ - 1 otherwise, since glibc reads an int.

    Returns:
        Whether it was done. False where there is no glibc (macOS, Windows, musl), or another allocator in its malloc's
        place (jemalloc, tcmalloc, mimalloc): nothing is changed there, and scripts need not ask where they run.

    Raises:
        ValueError: ``most`` is negative or above 2³¹ - 1.

    Reference:
        mallopt(3), Linux man-pages.

    Example:
        >>> import flowkernels
        >>> done = flowkernels.keep_memory()
    """
    if most is not None:
        count("keep_memory", "most", most, least=0)
        if most > _LARGEST:
            raise ValueError(f"keep_memory: most must be at most {_LARGEST}, or None, got {most}")
    library = _glibc()
    if library is None:
        return False
    # Before glibc 2.35 nothing above 32 MiB is a threshold: there, no more pieces of the kernel's own at all.
    if not library.mallopt(_MMAP_THRESHOLD, _LARGEST):
        library.mallopt(_MMAP_MAX, 0)
    _fill_small_bins(library)
    library.mallopt(_TOP_PAD, _PAD if most is None else min(_PAD, most))
    return bool(library.mallopt(_TRIM_THRESHOLD, -1 if most is None else most))

"""Checks of what users give to constructors and methods; their messages say name, contract and value given."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def check_tensor(where: str, name: str, value: object) -> None:
    """Raises unless ``value`` is a dense tensor: lists and arrays would otherwise fail deep inside, or not at all."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{where}: {name} must be a torch.Tensor, got {_kind(value)} (torch.as_tensor makes one)")
    if value.layout is not torch.strided:
        raise TypeError(f"{where}: {name} must be a dense tensor, got layout {value.layout}")


def count(where: str, name: str, value: Any, least: int = 1) -> int:
    """A whole number from ``least`` on, as a Python int; numpy's count, truth values do not."""
    contract = f"at least {least}" if is_whole(value) else f"an integer, at least {least}"
    if not is_whole(value) or int(value) < least:
        raise ValueError(f"{where}: {name} must be {contract}, got {value!r:.60}")
    return int(value)


def widths(where: str, name: str, value: Any, layers: int = 0) -> tuple[int, ...]:
    """The widths of hidden layers, of at least so many ``layers``; a number is the width of one."""
    given = [value] if is_whole(value) else value
    if isinstance(given, Iterable) and not isinstance(given, (str, bytes, Tensor)):
        found = list(given)
        if len(found) >= layers and all(is_whole(w) and w >= 1 for w in found):
            return tuple(int(w) for w in found)
    some = "widths" if layers == 0 else "at least one width"
    raise ValueError(f"{where}: {name} must be {some} from 1 on, got {value!r:.60}")


def share(where: str, name: str, value: Any) -> float:
    """A number from 0 to 1."""
    number = float(value) if is_number(value) else math.nan
    if not 0 <= number <= 1:
        raise ValueError(f"{where}: {name} must be a number from 0 to 1, got {value!r:.60}")
    return number


def positive(where: str, name: str, value: Any) -> float:
    """A finite number above 0."""
    number = float(value) if is_number(value) else math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{where}: {name} must be a finite number above 0, got {value!r:.60}")
    return number


_EVENTS = {1: "features", 2: "signals", 3: "images"}


def event_dims(where: str, name: str, value: Any, options: Sequence[int] = (1, 3)) -> int:
    """1 for features, 2 for signals, 3 for images: one of the ``options``."""
    if not is_whole(value) or value not in options:
        *rest, last = [f"{n} ({_EVENTS[n]})" for n in options]
        raise ValueError(f"{where}: {name} must be {', '.join(rest)} or {last}, got {value!r:.60}")
    return int(value)


def channel_dim(where: str, name: str, value: Any) -> int:
    """-1 for features, 1 for images."""
    if not is_whole(value) or value not in (-1, 1):
        raise ValueError(f"{where}: {name} must be -1 (features) or 1 (images), got {value!r:.60}")
    return int(value)


def flag(where: str, name: str, value: object) -> bool:
    """True or False, or numpy's: "no", 0.0, NaN and tensors all have a truth value, and seldom the meant one."""
    if isinstance(value, bool):
        return value
    if type(value).__name__ in ("bool", "bool_") and type(value).__module__ == "numpy":
        return bool(value)
    raise ValueError(f"{where}: {name} must be True or False, got {value!r:.60}")


def choice(where: str, name: str, value: Any, options: Sequence[str]) -> str:
    """One of two words or more."""
    if not isinstance(value, str) or value not in options:
        *rest, last = [f'"{option}"' for option in options]
        raise ValueError(f"{where}: {name} must be {', '.join(rest)} or {last}, got {value!r:.60}")
    return value


def is_flat(where: str, memory: object) -> bool:
    """Whether so little is to be kept for backward that it does not grow with the number of layers."""
    if memory not in ("fast", "flat"):
        raise ValueError(f'{where}: memory must be "fast" or "flat", got {memory!r:.60}')
    return memory == "flat"


def permutation(where: str, name: str, value: Any, features: int | None = None) -> list[int]:
    """Each of 0 to D-1 once, as a list; D is ``features`` where it is known."""
    given = value.tolist() if isinstance(value, Tensor) else value
    indices = list(given) if isinstance(given, Iterable) else []
    D = len(indices) if features is None else features
    if D < 1 or not all(is_whole(i) for i in indices) or sorted(indices) != list(range(D)):
        last = "D-1" if features is None else D - 1
        shown = given if isinstance(value, Tensor) or not indices else indices
        raise ValueError(f"{where}: {name} must hold each of 0 to {last} once, got {shown!r:.60}")
    return [int(i) for i in indices]


def generator(where: str, seed: Any) -> torch.Generator | None:
    """A generator on the CPU, or None for torch's global one."""
    if seed is None or isinstance(seed, torch.Generator):
        return seed
    if not is_whole(seed):
        raise TypeError(f"{where}: seed must be an integer, a torch.Generator or None, got {seed!r:.60}")
    return torch.Generator().manual_seed(int(seed))


def is_whole(value: object) -> bool:
    """A whole number of Python or numpy; truth values are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """A real number of Python or numpy; strings and truth values are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _kind(value: object) -> str:
    """The class of a value, and its module where that is not Python itself."""
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"

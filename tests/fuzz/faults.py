"""What can be wrong with one argument of a call that is otherwise valid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .calls import Arguments, Call, Path, Recipe, replaced, walk
from .draw import Draw
from .maps import finite
from .rule import path_name


class Fault(NamedTuple):
    what: str
    arguments: Arguments
    must_raise: bool  # no meaning can be given to it; else the reference may answer
    extreme: bool = False  # a number so large or small that rounding decides on the values


# Settings that are no numbers, no names and no flags of any op.
_NONSENSE: tuple[Any, ...] = (
    None, "", "yes", b"exp", (), [], {}, [0, 1], (0,), 1j, float("nan"), object(), torch.ones(()), slice(None)
)  # fmt: skip
_NUMBERS: tuple[Any, ...] = (
    -1, 0, 2.5, 1e-300, 1e38, 1e308, float("inf"), float("-inf"), float("nan"), 2**40, 2**70, True, "3", None, (1.0,),
    [1], 1j, torch.tensor(1.0),
)  # fmt: skip
_NAMES: tuple[Any, ...] = ("", "EXP", "relu ", "no such", "linear\0", None, 0, 1.5, True, ["exp"], ("relu",), b"relu")
_FLAGS: tuple[Any, ...] = ("yes", "False", 2, 0.5, float("nan"), None, [], [1], torch.tensor(True), torch.ones(2), 1j)
_INDICES: tuple[Any, ...] = (-1, 10**6, 2**31, 2**40, 2**63, 2**70, 0.5, "1", None, True, float("nan"))
_SLICES: tuple[Any, ...] = (
    slice(3, 1), slice(None, None, -1), slice(0, 0), slice(0.5, 2), slice(0, 2, 0), 1, (0, 2), "x", [0]
)  # fmt: skip
_OF_TENSOR = ("size",) * 4 + ("rank",) * 2 + ("dtype", "device", "layout", "nonsense", "values")
_BACKENDS: tuple[Any, ...] = ("", "gpu", "CPU", 0, False, ["cpu"], ("auto",), b"cpu", 1.5)


def faults(valid: Call, draw: Draw, n: int) -> Iterator[Fault]:
    """n faults, each in one place of the arguments."""
    arguments = valid.arguments
    places = [(path, value) for path, value in walk(arguments)]
    for _ in range(n):
        if draw.chance(0.03):
            backend = draw.choice(_BACKENDS)
            yield Fault(f"backend {backend!r}", {**arguments, "backend": backend}, True)
            continue
        path, value = draw.choice(places)
        what, other, must_raise = _fault(draw, value, path)
        extreme = _is_extreme(other) or _vanishes(path, other)
        yield Fault(f"{path_name(path)} {what}", replaced(arguments, path, other), must_raise, extreme)


def _fault(draw: Draw, value: Any, path: Path) -> tuple[str, Any, bool]:
    if isinstance(value, Tensor):
        return _of_tensor(draw, value)
    if isinstance(value, Recipe):
        return _is(draw.choice(_NONSENSE))
    if isinstance(value, bool):
        given = draw.choice(_FLAGS)
        return f"is {given!r:.60}", given, True
    if isinstance(value, (list, tuple)):
        return _of_list(draw, value)
    if isinstance(value, int) and len(path) > 1:  # a degree, a feature, a bound of a box
        return _is(draw.choice(_INDICES))
    if isinstance(value, (int, float)):
        return _is(draw.choice((*_NUMBERS, value + 1, value - 1)))
    if isinstance(value, str):
        return _is(draw.choice(_NAMES))
    if isinstance(value, slice):
        return _is(draw.choice(_SLICES))
    return _is(draw.choice(_NONSENSE))  # None


def _vanishes(path: Path, given: Any) -> bool:
    """Whether bins or slopes may vanish behind a network, whose logits are of any size: `maps.spline_settings`."""
    return len(path) > 1 and str(path[-1]).startswith("min_") and given == 0


def _is_extreme(given: Any) -> bool:
    return isinstance(given, (int, float)) and given != 0 and not 1e-5 <= abs(given) <= 1e5


def _is(given: Any) -> tuple[str, Any, bool]:
    return f"is {given!r:.60}", given, False


def _of_list(draw: Draw, value: list | tuple) -> tuple[str, Any, bool]:
    items = list(value)
    kind = draw.choice(("shorter", "longer", "empty", "repeated", "swapped", "nonsense"))
    if kind == "nonsense" or not items:
        return _is(draw.choice(_NONSENSE))
    i, j = draw.int(0, len(items) - 1), draw.int(0, len(items) - 1)
    if kind == "shorter":
        del items[i]
    elif kind == "longer":
        items.insert(i, items[j])
    elif kind == "empty":
        items = []
    elif kind == "repeated":
        items[i] = items[j]
    else:
        items[i], items[j] = items[j], items[i]
    return f"{kind} [{i}, {j}]", type(value)(items), False


def _of_tensor(draw: Draw, t: Tensor) -> tuple[str, Any, bool]:
    kind = draw.choice(_OF_TENSOR)
    if kind == "size" and t.dim() > 0:
        return _resized(draw, t)
    if kind == "rank":
        if t.dim() == 0 or draw.chance(0.5):
            dim = draw.int(0, t.dim())
            return f"has one dim more, {dim}", t.unsqueeze(dim), False
        dim = draw.int(0, t.dim() - 1)
        if t.shape[dim] == 0:
            return _resized(draw, t)
        return f"has one dim less, {dim}", t.select(dim, 0).clone(), False
    if kind == "dtype":
        dtype = draw.choice((torch.int64, torch.int32, torch.bool, torch.complex64, torch.float64, torch.float16))
        # Masks and permutations have rules of their own.
        fits = t.is_floating_point() and dtype.is_floating_point
        other = finite(t, dtype) if fits else t.to(dtype)
        return f"is {dtype}", other, t.is_floating_point() and not dtype.is_floating_point
    if kind == "device":
        return "is on meta", t.to("meta"), False
    if kind == "layout" and t.dim() > 0:
        return "is sparse", t.to_sparse(), False
    if kind == "values" and not t.is_floating_point() and t.numel() > 0:
        spoiled = t.clone().flatten()
        given = draw.choice((-1, 0, 1, t.numel(), 2**31, 2**40, 2**62)) if t.dtype is torch.int64 else draw.int(0, 2)
        spoiled[draw.int(0, t.numel() - 1)] = given
        return f"holds {given}", spoiled.reshape(t.shape), False
    as_numpy = None if t.dtype is torch.bfloat16 else t.numpy()  # which numpy does not have
    given = draw.choice((*_NONSENSE, 0.5, t.tolist() if t.numel() < 20 else 3, as_numpy))
    # Degrees may be lists, tuples and arrays.
    is_list = isinstance(given, (list, tuple)) or (given is not None and given is as_numpy)
    listed = is_list and not t.is_floating_point()
    refused = not (given is None or isinstance(given, Tensor) or listed)
    return f"is {type(given).__name__} {given!r:.40}", given, refused


def _resized(draw: Draw, t: Tensor) -> tuple[str, Tensor, bool]:
    """One size off by one, or 0, or 1, or doubled."""
    dim = draw.int(0, t.dim() - 1)
    n = t.shape[dim]
    size = draw.choice([s for s in (n - 1, n + 1, 0, 1, 2 * n) if s >= 0 and s != n])
    at = torch.arange(size) % max(n, 1)
    if n == 0:
        other = torch.zeros((*t.shape[:dim], size, *t.shape[dim + 1 :]), dtype=t.dtype)
    else:
        other = t.index_select(dim, at)
    return f"{list(t.shape)} has {size} in dim {dim}", other, False

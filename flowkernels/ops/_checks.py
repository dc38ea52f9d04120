"""The checks that several ops ask of their tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_floating(op: str, name: str, t: object) -> None:
    """Raises unless `t` is a dense floating tensor."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(t).__name__} {t!r:.60}")
    if t.dtype not in DTYPES:
        raise TypeError(f"{op}: {name} must be float32, float64, bfloat16 or float16, got {t.dtype}")
    if t.layout is not torch.strided:
        raise TypeError(f"{op}: {name} must be a dense tensor, got layout {t.layout}")


def is_like(t: Any, x: Tensor) -> bool:
    """Whether `t` is a dense tensor of the dtype and on the device of `x`."""
    return isinstance(t, Tensor) and t.dtype is x.dtype and t.device == x.device and t.layout is torch.strided


def check_device(op: str, name: str, t: Tensor, x: Tensor, called: str = "x") -> None:
    """Raises unless `t` is where `x` is, which the op's users know by the name `called`."""
    if t.device != x.device:
        raise ValueError(f"{op}: {name} must be on the device of {called} = {x.device}, got {t.device}")


def check_shape(op: str, name: str, t: Tensor, shape: Sequence[int]) -> None:
    """Raises unless `t` has this shape."""
    if tuple(t.shape) != tuple(shape):
        raise ValueError(f"{op}: {name} must be {list(shape)}, got {list(t.shape)}")


def without_flags(given: Any) -> Any:
    """Several numbers as a cache's key: True equals 1 there, so that True becomes what no check takes for a number."""
    if isinstance(given, (tuple, list)) and any(isinstance(g, bool) for g in given):
        return tuple(repr(g) if isinstance(g, bool) else g for g in given)
    return given


def expands(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Whether a tensor of one shape broadcasts to another."""
    # Without a zip of unequal lengths, which torch 2.6 cannot trace.
    missing = len(to) - len(shape)
    return missing >= 0 and all(a in (1, b) for a, b in zip(shape, to[missing:], strict=True))


def in_autocast(x: Tensor) -> bool:
    """Whether autocast chooses the dtype of products on the device of x; torch's query does not know every device."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def without_autocast(fwd: F) -> F:
    """A reference, of its settings and x and more, whose products autocast does not round."""

    @functools.wraps(fwd)
    def run(spec: Any, x: Tensor, *tensors: Tensor) -> Any:
        if not in_autocast(x):
            return fwd(spec, x, *tensors)
        with torch.autocast(x.device.type, enabled=False):
            return fwd(spec, x, *tensors)

    return run  # type: ignore[return-value]


def why_not_multiplied(tensors: Sequence[Tensor]) -> str | None:
    """Why kernels may not multiply these tensors, x first, as they are, or None."""
    dtype = tensors[0].dtype
    for t in tensors:  # any() over a generator takes twice as long, on every call
        if t.dtype is not dtype:
            return "the inputs have several dtypes"
    if in_autocast(tensors[0]):
        return "autocast chooses the dtype of every product"
    return None

"""Which backend runs an op: `auto` takes the first that can, one asked for by name runs or raises."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from flowkernels._backend import Backend

if TYPE_CHECKING:
    from flowkernels.ops._routing import Op

_PACKAGE = os.path.dirname(__file__)
# The order in which `auto` tries them, but for an op's own `first`. Compiled kernels come before Triton's: a launch of
# theirs is expected to take the host 5 µs, of Triton's 20, which decides on tensors as small as a coupling layer's.
# No GPU has timed them side by side yet (`make gpu-check` does): where Triton's win, from that table.
NAMES = ("cpu", "cuda", "triton", "fused_torch", "reference")


class SlowPathWarning(UserWarning):
    """A plain PyTorch path runs where a kernel exists but cannot be used."""


class BackendUnavailableError(RuntimeError):
    """The backend asked for by name cannot run these arguments."""


_ops: dict[str, Op] = {}
_tables: dict[str, dict[str, Backend]] = {}
_firsts: dict[str, Callable[[Any, Sequence[Any]], str]] = {}
_warned: set[str] = set()
_default: str = os.environ.get("FLOWKERNELS_BACKEND", "auto")


def _check_name(name: str) -> str:
    if name == "eager":
        warnings.warn('flowkernels: backend "eager" is called "fused_torch" now', DeprecationWarning, stacklevel=4)
        return "fused_torch"
    if name != "auto" and name not in NAMES:
        raise ValueError(f"flowkernels: backend must be auto or one of {', '.join(NAMES)}, got {name!r}")
    return name


_default = _check_name(_default)


def register(op: Op, table: dict[str, Any], first: Callable[[Any, Sequence[Any]], str] | None = None) -> None:
    """Declares an op's backends, each a `Backend` or a module that defines one; `auto` tries them as NAMES has them.

    ``first``: of a spec and tensors, the name that `auto` tries before the others.
    """
    made = {name: given if isinstance(given, Backend) else Backend.of(given) for name, given in table.items()}
    _ops[op.name] = op
    _tables[op.name] = {name: made[name] for name in sorted(made, key=NAMES.index)}
    if first is not None:
        _firsts[op.name] = first


def ops() -> dict[str, Op]:
    """Name → op, for `flowkernels.info`."""
    return _ops


def table() -> dict[str, dict[str, Backend]]:
    """Op → backend name → backend, for `flowkernels.info`."""
    return _tables


def default() -> str:
    """The backend used where a call names none."""
    return _default


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Makes `name` the default backend inside a `with` block (process-wide).

    >>> import flowkernels
    >>> with flowkernels.use_backend("reference"):
    ...     pass
    """
    global _default
    before, _default = _default, _check_name(name)
    try:
        yield
    finally:
        _default = before


def pick(op: str, name: str | None, spec: Any, tensors: tuple[torch.Tensor, ...]) -> Backend:
    """The backend that will run `op` on these tensors."""
    name = _default if name is None else name
    candidates = _tables[op]
    if name != "auto":
        name = _check_name(name)
        if name not in candidates:
            raise BackendUnavailableError(f"flowkernels: op {op} has no backend {name!r} yet")
        reason = candidates[name].why_not(spec, *tensors)
        if reason is not None:
            raise BackendUnavailableError(f"flowkernels: op {op} cannot run on backend {name!r}: {reason}")
        return candidates[name]
    if op in _firsts and not torch.compiler.is_compiling():  # whose graph would hold for these sizes alone
        best = _firsts[op](spec, tensors)
        candidates = {best: candidates[best], **candidates}
    reasons: dict[str, str] = {}
    for key, module in candidates.items():
        reason = module.why_not(spec, *tensors)
        if reason is None:
            slow = reasons and key == "reference" and module.slow
            if slow and not any(t is not None and t.is_meta for t in tensors):
                # That of the backend made for this device; a GPU is no news to the CPU's.
                _warn_once(op, reasons.get(tensors[0].device.type) or next(iter(reasons.values())))
            return module
        reasons[key] = reason
    raise AssertionError(f"op {op} has no reference backend")  # a bug of ours


def _warn_once(op: str, reason: str | None) -> None:
    if reason is None or reason in _warned:
        return
    _warned.add(reason)
    level, frame = 2, sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):  # to the line that called the package
        level, frame = level + 1, frame.f_back
    warnings.warn(f"flowkernels: {op} runs as plain PyTorch: {reason}", SlowPathWarning, stacklevel=level)

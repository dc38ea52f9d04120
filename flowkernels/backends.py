"""Which backend runs an op: `auto` takes the first that can, one asked for by name runs or raises."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

_PACKAGE = os.path.dirname(__file__)
# The order in which `auto` tries them, but for an op's own `first`. Compiled kernels come before Triton's: a launch of
# theirs is expected to take the host 5 µs, of Triton's 20, which decides on tensors as small as a coupling layer's.
# No GPU has timed them side by side yet (`make gpu-check` does): where Triton's win, from that table.
NAMES = ("cpu", "cuda", "triton", "eager", "reference")

# Cells of the op × backend table that stay empty by design, with the reason `flowkernels.info` prints.
_PLAIN = (
    "rqs", "affine", "actnorm", "lu_linear", "masked_linear", "made", "autoregressive_inverse", "flow_layer"
)  # fmt: skip
MISSING = {(op, "eager"): "plain PyTorch is the reference" for op in _PLAIN}
for _gpu in ("cuda", "triton"):
    MISSING["residual_net", _gpu] = "nothing in it is masked: backend eager, on the GPU library's products"
    MISSING["flow_layer", _gpu] = "its callers run the net, then ops.rqs or ops.affine: a batch's products fill a GPU"


# A backend of an op: a module or an object with `fwd`, `why_not`, and `bwd` unless PyTorch differentiates it.
Implementation = Any


class SlowPathWarning(UserWarning):
    """A plain PyTorch path runs where a kernel exists but cannot be used."""


class BackendUnavailableError(RuntimeError):
    """The backend asked for by name cannot run these arguments."""


_tables: dict[str, dict[str, Implementation]] = {}
_firsts: dict[str, Callable[[Any, Sequence[Any]], str]] = {}
_samples: dict[str, Callable[[], tuple[Any, tuple[Any, ...]]]] = {}
_warned: set[str] = set()
_default: str = os.environ.get("FLOWKERNELS_BACKEND", "auto")


def _check_name(name: str) -> str:
    if name != "auto" and name not in NAMES:
        raise ValueError(f"flowkernels: backend must be auto or one of {', '.join(NAMES)}, got {name!r}")
    return name


_check_name(_default)


def register(
    op: str,
    table: dict[str, Implementation],
    first: Callable[[Any, Sequence[Any]], str] | None = None,
    sample: Callable[[], tuple[Any, tuple[Any, ...]]] | None = None,
) -> None:
    """Declares an op's backends, each a module with `fwd`, `bwd` and `why_not`; `auto` tries them as NAMES has them.

    ``first``: of a spec and tensors, the name that `auto` tries before the others. ``sample``: makes the spec and the
    tensors of a small float32 call, which each backend is asked about.
    """
    _tables[op] = {name: table[name] for name in sorted(table, key=NAMES.index)}
    if first is not None:
        _firsts[op] = first
    if sample is not None:
        _samples[op] = sample


def table() -> dict[str, dict[str, Implementation]]:
    """Op → backend name → module, for `flowkernels.info`."""
    return _tables


def sample(op: str) -> tuple[Any, tuple[Any, ...]] | None:
    """The spec and the tensors of a small float32 call, for `flowkernels.info`."""
    return _samples[op]() if op in _samples else None


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


def pick(op: str, name: str | None, spec: Any, tensors: tuple[torch.Tensor, ...]) -> Implementation:
    """The module that will run `op` on these tensors."""
    name = _default if name is None else name
    candidates = _tables[op]
    if name != "auto":
        if _check_name(name) not in candidates:
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
            slow = reasons and key == "reference" and getattr(module, "IS_SLOW", True)
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

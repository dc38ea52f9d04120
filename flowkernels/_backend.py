"""What a backend of an op is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Tensors = tuple[Tensor, ...]
# Of a backward pass: the gradients of outputs or inputs, the op's inputs, and whether the gradient of each is wanted.
Grads = Sequence[Tensor | None]
Inputs = Sequence[Tensor]
Needs = Sequence[bool]


def _never(spec: Any, *tensors: Tensor | None) -> None:
    """No reason not to run."""


@dataclass(frozen=True)
class Backend:
    """The functions of an op on one backend; every one takes the op's spec first.

    Attributes:
        fwd: (spec, *tensors) -> outputs.
        why_not: (spec, *tensors) -> why these cannot run here, or None; a module without runs them all.
        bwd: (spec, grads, tensors, needs) -> one gradient (or None) per input; None: PyTorch differentiates `fwd`.
        fwd_saving: (spec, *tensors) -> outputs, saved; `saved` comes back to `bwd` as a keyword. None: only inputs are.
        saved_of: (spec, outputs) -> what `fwd_saving` would have saved, of the outputs that a library op keeps.
        slow: running here where a kernel exists but cannot be used is worth a warning.
        composed: it is made of ops which compilers see one by one.
    """

    fwd: Callable[..., Any]
    why_not: Callable[..., str | None]
    bwd: Callable[..., Grads] | None = None
    fwd_saving: Callable[..., tuple[Tensors, Sequence[Tensor]]] | None = None
    saved_of: Callable[..., Sequence[Tensor]] | None = None
    slow: bool = True
    composed: bool = False

    @classmethod
    def of(cls, module: Any) -> Backend:
        """The backend that a Python module defines, by functions and constants of these names."""
        return cls(
            module.fwd, getattr(module, "why_not", _never), getattr(module, "bwd", None),
            getattr(module, "fwd_saving", None), getattr(module, "saved_of", None), getattr(module, "IS_SLOW", True),
            getattr(module, "IS_COMPOSED", False),
        )  # fmt: skip

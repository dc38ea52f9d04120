"""What a library's trainers do between two passes of a small model, for all its parameters at once.

Adam and the clipping of gradients in a loop over fifty small tensors take as long as the model: the fused Adam and
torch's foreach norm are the same arithmetic in a few calls. The optimizer is torch's own class, its state what it was.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Library → modules that train, in which these names are torch's.
_MODULES = {"sbi": ("sbi.inference.trainers.base", "sbi.inference.trainers.marginal.marginal_base")}
_FASTER = {"Adam": "fused", "clip_grad_norm_": "foreach"}
_replaced: list[tuple[str, Any, str, Any, Any]] = []  # library, module, name, what was there, what is


def _with(function: Callable[..., Any], setting: str) -> Callable[..., Any]:
    """A function of parameters with a setting on, unless it is given, or is not known for these."""

    @functools.wraps(function, updated=())
    def faster(*args: Any, **kwargs: Any) -> Any:
        if not args:  # by name, which differs
            return function(**kwargs)
        parameters, *rest = args
        listed = [parameters] if isinstance(parameters, Tensor) else list(parameters)  # which may be a generator
        if {"fused", "foreach"}.isdisjoint(kwargs) and all(map(_is_plain, listed)):
            kwargs = {**kwargs, setting: True}
        return function(listed, *rest, **kwargs)

    return faster


def _is_plain(t: Any) -> bool:
    """Whether both settings know a parameter: in dense memory, of real numbers, where torch has them."""
    if not isinstance(t, Tensor) or not t.is_floating_point() or not (t.is_cpu or t.is_cuda):
        return False
    return t.layout is torch.strided and (t.grad is None or t.grad.layout is torch.strided)


def hasten(library: str) -> None:
    """Lets trainers of a library make Adam fused and clip all gradients at once, from now on."""
    if any(name == library for name, *_ in _replaced):
        return
    for full in _MODULES.get(library, ()):
        try:
            module = importlib.import_module(full)
        except ImportError:  # another version of the library
            continue
        for name, setting in _FASTER.items():
            theirs = module.__dict__.get(name)
            if getattr(theirs, "__module__", "").startswith("torch."):
                ours = _with(theirs, setting)  # type: ignore[arg-type]
                setattr(module, name, ours)
                _replaced.append((library, module, name, theirs, ours))


def restore(library: str) -> None:
    """Puts torch's own names back."""
    for entry in [e for e in _replaced if e[0] == library]:
        _, module, name, theirs, ours = entry
        if module.__dict__.get(name) is ours:  # and not somebody else's by now
            setattr(module, name, theirs)
        _replaced.remove(entry)

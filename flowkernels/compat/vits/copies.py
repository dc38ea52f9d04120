"""The modules that carry a copy of VITS' spline function, known by that function's signature.

What is known is the function, by name, parameters and, once, by the values it returns; a module whose methods call it
gets these methods with the fused function in its place.
"""

from __future__ import annotations

import dis
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from flowkernels.compat.engine.patch import FastMethods, overridden
from flowkernels.compat.engine.registry import Target

from .functions import piecewise_rational_quadratic_transform, unconstrained_rational_quadratic_spline

_PREFIX = "_flowkernels_"  # of the names that the fused functions have in the modules of a model
_FUSED = {f.__name__: f for f in (piecewise_rational_quadratic_transform, unconstrained_rational_quadratic_spline)}


@functools.lru_cache(maxsize=64)
def why_not(theirs: Callable[..., Any]) -> str | None:
    """Why a function of one of the two names is not VITS', or None."""
    name = theirs.__name__
    fused = _FUSED[name]
    found, known = ([*inspect.signature(f).parameters.values()] for f in (theirs, fused))
    if [(p.name, p.default) for p in found] != [(p.name, p.default) for p in known]:
        return f"the parameters of its {name} are not those of VITS"
    generator = torch.Generator().manual_seed(0)
    x, params = (torch.randn(s, generator=generator, dtype=torch.float64, device="cpu") for s in ((64,), (64, 14)))
    arguments = (x, params[:, :5], params[:, 5:10], params[:, 10:])
    for inverse in (False, True):
        try:
            results = [f(*arguments, inverse=inverse, tails="linear", tail_bound=1.5) for f in (theirs, fused)]
            torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)
        except Exception as error:
            return f"its {name} does not return what VITS' does: {str(error).splitlines()[0]}"
    return None


@functools.lru_cache(maxsize=256)
def _layer(cls: type) -> tuple[type[FastMethods] | None, str | None]:
    """The methods of a class that call such a function, with the fused one; or why they cannot have it."""
    body: dict[str, Any] = {}
    for name, method in vars(cls).items():
        if not isinstance(method, types.FunctionType):
            continue
        called = [n for n in _FUSED if n in method.__code__.co_names and n in method.__globals__]
        for function in called:
            reason = why_not(method.__globals__[function])
            if reason is not None:
                return None, reason
        if called:
            code = method.__code__
            if any(i.argval in called and i.opname != "LOAD_GLOBAL" for i in dis.get_instructions(code)):
                return None, "a method uses the name of its spline function for something else too"
            # In the method's own globals, not a copy: what else it reads there may change.
            method.__globals__.update({_PREFIX + n: _FUSED[n] for n in called})
            names = tuple(_PREFIX + n if n in called else n for n in code.co_names)
            body[name] = types.FunctionType(
                code.replace(co_names=names), method.__globals__, method.__name__, method.__defaults__,
                method.__closure__,
            )  # fmt: skip
            body[name].__kwdefaults__ = method.__kwdefaults__
    if not body:
        return None, None
    return types.new_class(cls.__name__, (FastMethods,), exec_body=lambda namespace: namespace.update(body)), None


class Copies:
    """What the other libraries' `Library` is, for modules of any package."""

    def match(self, module: nn.Module) -> Target | str | None:
        for cls in type(module).__mro__:
            if cls is nn.Module or cls.__module__.startswith("torch."):
                return None
            layer, reason = _layer(cls)
            if layer is not None:
                methods = frozenset(n for n, f in vars(layer).items() if isinstance(f, types.FunctionType))
                return overridden(module, cls, methods) or Target(layer, methods)
            if reason is not None:
                return reason
        return None

    def rows(self) -> list[tuple[str, str]]:
        return [("any class whose methods call a copy of " + name, "spline") for name in _FUSED]

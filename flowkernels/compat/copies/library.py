"""The modules whose methods call a copy of nflows' spline function, which is known by its signature and its values.

Such a method is replaced by the same one with the fused function in its place; so are functions that it calls and that
call the copy in turn.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from flowkernels.compat.engine.patch import FastMethods, overridden
from flowkernels.compat.engine.registry import Target

from .behaviour import copy_of
from .references import Unreadable, may_name, paths, rewritten
from .signature import signature_of

_DEPTH = 2  # functions between a method and the spline
_NEVER = ("torch", "flowkernels")  # packages whose functions are no copies


_Read = tuple[types.FunctionType, tuple[str, ...], Any]  # what a function reads by a path, when it was looked at


class _Other(NamedTuple):
    """What replaces a function, and the names of the copies in it; or why nothing does; or neither."""

    function: Callable[..., Any] | None = None
    copies: tuple[str, ...] = ()
    reason: str | None = None
    read: tuple[_Read, ...] = ()


class _Layer(NamedTuple):
    """The methods of a class that call a copy, with the fused one; or why they cannot have it."""

    layer: type[FastMethods] | None
    reason: str | None
    read: tuple[_Read, ...]  # what makes this stale when it is another

    def is_current(self) -> bool:
        return all(dict(paths(function)).get(path) is value for function, path, value in self.read)


def _package(function: Any) -> str:
    return (getattr(function, "__module__", None) or "").partition(".")[0]


@functools.lru_cache(maxsize=1024)
def _may_lead_to_one(function: types.FunctionType, depth: int) -> bool:
    """Whether it is worth reading: cheap, for it is asked of every method of a model's classes."""
    for named in may_name(function):
        if _package(named) in _NEVER:
            continue
        if signature_of(named) is not None:
            return True
        if depth and _is_helper(named, function) and _may_lead_to_one(_plain(named), depth - 1):
            return True
    return False


def _is_helper(named: Any, function: types.FunctionType) -> bool:
    return named is not function and _package(named) == _package(function)


def _plain(function: types.FunctionType) -> types.FunctionType:
    """The function that `torch.compiler.disable` has hidden from compilers, or itself."""
    hidden = getattr(function, "_torchdynamo_orig_callable", None)
    if isinstance(hidden, types.FunctionType) and getattr(function, "_torchdynamo_disable", False):
        return hidden
    return function


def _other(named: Any, function: types.FunctionType, depth: int) -> _Other:
    """What replaces a function that another one names."""
    if not isinstance(named, types.FunctionType) or _package(named) in _NEVER:
        return _Other()
    found = copy_of(named)
    if isinstance(found, str):
        return _Other(reason=found)
    if found is not None:
        return _Other(found, (named.__name__,))
    plain = _plain(named)
    if not depth or not _is_helper(named, function) or not _may_lead_to_one(plain, depth - 1):
        return _Other()
    other = _with_fused(plain, depth - 1)
    if other.function is None or plain is named:
        return other
    return other._replace(function=torch.compiler.disable(other.function))


def _with_fused(function: types.FunctionType, depth: int) -> _Other:
    """A function with the fused ones in place of the copies that it leads to."""
    others: dict[tuple[str, ...], _Other] = {}
    for path, named in paths(function):
        if path not in others:
            other = _other(named, function, depth)
            if other.reason is not None or other.function is not None:
                others[path] = other._replace(read=((function, path, named), *other.read))
    read = tuple(one for other in others.values() for one in other.read)
    fused = {path: other.function for path, other in others.items() if other.function is not None}
    if not fused:
        return _Other(reason=next((other.reason for other in others.values()), None), read=read)
    copies = tuple(dict.fromkeys(name for path in fused for name in others[path].copies))
    try:
        return _Other(rewritten(function, fused), copies, read=read)
    except Unreadable as error:
        return _Other(reason=str(error), read=read)


def _read(cls: type) -> _Layer:
    others = {
        name: _with_fused(method, _DEPTH)
        for name, method in vars(cls).items()
        if isinstance(method, types.FunctionType) and name != "__init__" and _may_lead_to_one(method, _DEPTH)
    }
    read = tuple(one for other in others.values() for one in other.read)
    body: dict[str, Any] = {name: other.function for name, other in others.items() if other.function is not None}
    if not body:
        return _Layer(None, next((o.reason for o in others.values() if o.reason is not None), None), read)
    copies = dict.fromkeys(copy for name in body for copy in others[name].copies)
    body["_flowkernels_found"] = "its spline " + " and ".join(copies)
    made = types.new_class(cls.__name__, (FastMethods,), exec_body=lambda namespace: namespace.update(body))
    return _Layer(made, None, read)


_layers: dict[type, _Layer] = {}  # the same one as long as nothing changes: fast classes are told apart by it


def _layer(cls: type) -> _Layer:
    known = _layers.get(cls)
    if known is None or not known.is_current():
        known = _layers[cls] = _read(cls)
    return known


class Copies:
    """What the other libraries' `Library` is, for modules of any package."""

    def match(self, module: nn.Module) -> Target | str | None:
        for cls in type(module).__mro__:
            if cls is nn.Module or cls.__module__.partition(".")[0] in _NEVER:
                return None
            layer, reason, _ = _layer(cls)
            if layer is not None:
                methods = frozenset(n for n, f in vars(layer).items() if isinstance(f, types.FunctionType))
                return overridden(module, cls, methods) or Target(layer, methods, "spline")
            if reason is not None:
                return reason
        return None

    def rows(self) -> list[tuple[str, str]]:
        return [("any class whose methods call a copy of nflows' spline function, under any name", "spline")]

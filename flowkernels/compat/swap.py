"""Swapping a module's class for one that computes the same thing faster, and back.

A fast class is the module's own class with a layer of methods on top: no constructor and no state, so parameters,
buffers, hooks, training mode and `state_dict` never notice. It carries the original's names, so neither does `repr`.
"""

from __future__ import annotations

import copy
import copyreg
import functools
import threading
import types
from collections.abc import Callable
from typing import Any

from torch import nn

lock = threading.RLock()
_fast_classes: dict[tuple[type, type], type] = {}


class PureLayer:
    """Base of the method layers: pickles as the original class, copies as what it is.

    A layer is a bag of methods. They are copied into a subclass of the module's class and not inherited from, because
    Python lets an object change its class only to one of the same layout, which a second parent alters.
    """

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A file written from an accelerated model must load where flowkernels is not installed.
        fast, plain = type(self), original_class(self)
        reduced: Any = plain.__reduce_ex__(self, protocol)
        if isinstance(reduced, str):
            return reduced
        make, args, *rest = reduced
        if make is vars(copyreg)["__newobj__"]:  # pickle accepts it for the object's own class only
            return (functools.partial(plain.__new__, plain, *args[1:]), (), *rest)
        return (make, tuple(plain if a is fast else a for a in args), *rest)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        own: Any = getattr(original_class(self), "__deepcopy__", None)
        return own(self, memo) if own else _duplicate(self, memo, lambda state: copy.deepcopy(state, memo))

    def __copy__(self) -> Any:
        own: Any = getattr(original_class(self), "__copy__", None)
        return own(self) if own else _duplicate(self, {}, lambda state: state)


def _duplicate(module: Any, memo: dict[int, Any], copy_state: Callable[[Any], Any]) -> Any:
    """What the copy module does without `__deepcopy__`; it would go through `__reduce_ex__` and lose the fast class."""
    make, args, *rest = original_class(module).__reduce_ex__(module, 4)
    duplicate: Any = make(*copy_state(args))
    memo[id(module)] = duplicate
    if rest:
        duplicate.__setstate__(copy_state(rest[0]))
    return duplicate


def original_class(module: Any) -> Any:
    """The class the module had before `swap`; its class where it was never swapped."""
    cls = type(module)
    return cls.__bases__[0] if is_fast(module) else cls


def is_fast(module: Any) -> bool:
    """True for an instance of a class that `swap` made."""
    return "_flowkernels_layer" in type(module).__dict__


def layer_of(module: Any) -> type[PureLayer] | None:
    """The layer that `swap` gave to a module, or None."""
    return type(module).__dict__.get("_flowkernels_layer")


def _fast_class(plain: type, layer: type[PureLayer]) -> type:
    body: dict[str, Any] = {
        name: function
        for cls in (PureLayer, layer)
        for name, function in vars(cls).items()
        if isinstance(function, types.FunctionType)
    }
    body.update({n: getattr(plain, n) for n in ("__module__", "__qualname__", "__doc__")}, _flowkernels_layer=layer)
    return types.new_class(plain.__name__, (plain,), exec_body=lambda namespace: namespace.update(body))


def swap(module: nn.Module, layer: type[PureLayer]) -> None:
    """Puts `layer`'s methods in front of the module's own class."""
    key = (type(module), layer)
    if key not in _fast_classes:
        _fast_classes[key] = _fast_class(*key)
    module.__class__ = _fast_classes[key]


def unswap(module: nn.Module) -> None:
    """Gives the module its original class back; does nothing where it has it."""
    if is_fast(module):
        module.__class__ = original_class(module)


def overridden(module: nn.Module, base: type, names: frozenset[str]) -> str | None:
    """Why `base`'s methods cannot be replaced on this module: who redefines one of `names`, or None."""
    for cls in type(module).__mro__:
        if cls is base:
            break
        found = sorted(names & vars(cls).keys())
        if found:
            return f"{cls.__qualname__} defines its own {', '.join(found)}"
    found = sorted(names & vars(module).keys())
    return f"the instance has its own {', '.join(found)}" if found else None

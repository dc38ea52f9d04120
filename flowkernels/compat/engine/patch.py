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
_fast_classes: dict[tuple[type, type, frozenset[str]], type] = {}


class FastMethods:
    """Base of the method layers: pickles as the original class, copies as what it is.

    A layer is a bag of methods. They are copied into a subclass of the module's class and not inherited from, because
    Python lets an object change its class only to one of the same layout, which a second parent alters. What is static
    in a layer is not copied: its methods find it at `_flowkernels_layer`.
    """

    _flowkernels_layer: Any  # of a fast class

    is_container = False  # whether its modules are layers themselves, of which it runs neighbours as one op
    pieces: Any = None  # of a container: (module, inverse, has_context) -> what `transforms.runs` says that it runs
    runs_its_parts = False  # whether its modules are accelerated for the calls it cannot fuse, and appear in no report

    def __setattr__(self, name: str, value: Any) -> None:
        # A method of the user's own on the instance must be called: the module is one to leave alone from here on.
        if name in type(self).__dict__.get("_flowkernels_bypassed", ()):
            with lock:
                unswap(self)
        original_class(self).__setattr__(self, name, value)

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
        if own:
            return own(self, memo)
        if _swapped(self) is not type(self):  # parametrised, which gives out no state; torch too copies the dict then
            duplicate: Any = type(self).__new__(type(self))
            memo[id(self)] = duplicate
            duplicate.__dict__ = copy.deepcopy(self.__dict__, memo)
            return duplicate
        return _duplicate(self, memo, lambda state: copy.deepcopy(state, memo))

    def __copy__(self) -> Any:
        own: Any = getattr(original_class(self), "__copy__", None)
        return own(self) if own else _duplicate(self, {}, lambda state: state)


def or_theirs(run: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a layer that returns what `run` does; where that is None, what the class's own method of the name."""

    @functools.wraps(run)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = run(self, *args, **kwargs)
        if found is None:
            return getattr(original_class(self), run.__name__)(self, *args, **kwargs)
        return found

    return method


def _duplicate(module: Any, memo: dict[int, Any], copy_state: Callable[[Any], Any]) -> Any:
    """What the copy module does without `__deepcopy__`; it would go through `__reduce_ex__` and lose the fast class."""
    make, args, *rest = original_class(module).__reduce_ex__(module, 4)
    duplicate: Any = make(*copy_state(args))
    memo[id(module)] = duplicate
    if rest:
        duplicate.__setstate__(copy_state(rest[0]))
    return duplicate


def _swapped(module: Any) -> type | None:
    """The class that `swap` gave to a module: its own, or one that a parametrisation or FSDP has derived from since."""
    return getattr(type(module), "_flowkernels_class", None)


def original_class(module: Any) -> Any:
    """The class the module had before `swap`; its class where it was never swapped."""
    fast = _swapped(module)
    return type(module) if fast is None else fast.__bases__[0]


def is_fast(module: Any) -> bool:
    """True for an instance of a class that `swap` made."""
    return _swapped(module) is not None


def is_fast_layer(module: Any) -> bool:
    """The same, and no container of others."""
    layer = layer_of(module)
    return layer is not None and not layer.is_container


def layer_of(module: Any) -> type[FastMethods] | None:
    """The layer that `swap` gave to a module, or None."""
    return getattr(type(module), "_flowkernels_layer", None)


def _fast_class(plain: type, layer: type[FastMethods], bypassed: frozenset[str]) -> type:
    body: dict[str, Any] = {
        name: function
        for cls in reversed(layer.__mro__[:-1])
        for name, function in vars(cls).items()
        if isinstance(function, (types.FunctionType, property))
    }
    body.update({n: getattr(plain, n) for n in ("__module__", "__qualname__", "__doc__")})
    body.update(_flowkernels_layer=layer, _flowkernels_bypassed=bypassed)
    fast: Any = types.new_class(plain.__name__, (plain,), exec_body=lambda namespace: namespace.update(body))
    fast._flowkernels_class = fast  # found from classes that are derived from it, too
    return fast


def swap(module: Any, layer: type[FastMethods], bypassed: frozenset[str] = frozenset()) -> None:
    """Puts `layer`'s methods in front of the module's own class, until one of `bypassed` is set on the instance.

    A module that has a layer already, as one that accelerates itself when it is made, gets the new one in its place.
    """
    if is_fast(module):
        if layer_of(module) is layer:
            return
        unswap(module)
        if is_fast(module):  # by a class that was derived from the fast one, whose layer cannot be taken away
            return
    key = (type(module), layer, bypassed)
    if key not in _fast_classes:
        _fast_classes[key] = _fast_class(*key)
    module.__class__ = _fast_classes[key]


def unswap(module: Any) -> None:
    """Gives the module its original class back; does nothing where it has it, or where another class was derived."""
    if _swapped(module) is type(module):
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

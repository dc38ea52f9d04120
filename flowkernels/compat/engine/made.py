"""Calls a function on every object of some classes as soon as it is made: built, or filled by pickle or copy.

A class's constructor and `__setstate__` are replaced by ones that call it at their end, and put back by `unhook`. That
of a subclass counts too, whether it is there already or derived later: an object is made when the outermost one ends.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from .patch import lock

_MAKERS = frozenset({"__init__", "__setstate__"})


class _Hook(NamedTuple):
    own: Any  # what the class itself had of that name, or None: it inherits
    ours: Any
    root: type  # of the classes handed to `hook`, the one that this is for


_hooks: dict[tuple[type, str], _Hook] = {}
_running = threading.local()  # `ids` of the objects that are being made in this thread


def hook(classes: Iterable[type], when_made: Callable[[Any], object]) -> None:
    """From now on `when_made` gets every new object of these classes; a class that has this already keeps it."""
    with lock:
        for cls in classes:
            _hook(cls, _MAKERS, cls, when_made)
            if (cls, "__init_subclass__") not in _hooks:
                _put(cls, "__init_subclass__", classmethod(_adopting(cls, when_made)), cls)
            for derived in _subclasses(cls):
                _hook(derived, _MAKERS & vars(derived).keys(), cls, when_made)


def unhook(classes: Iterable[type]) -> None:
    """Puts back what these classes, and those derived from them, had.

    A method that somebody else has replaced since stays: it may call ours, which then does what the class's own does.
    """
    with lock:
        roots = set(classes)
        for cls, name in [key for key, had in _hooks.items() if had.root in roots]:
            had = _hooks.pop((cls, name))
            if vars(cls).get(name) is not had.ours:
                continue
            if had.own is None:
                delattr(cls, name)
            else:
                setattr(cls, name, had.own)


def _put(cls: type, name: str, ours: Any, root: type) -> None:
    _hooks[cls, name] = _Hook(vars(cls).get(name), ours, root)
    setattr(cls, name, ours)


def _hook(cls: type, names: Iterable[str], root: type, when_made: Callable[[Any], object]) -> None:
    for name in names:
        if (cls, name) not in _hooks:
            _put(cls, name, _making(cls, name, when_made), root)


def _subclasses(cls: type) -> Iterable[type]:
    for derived in type.__subclasses__(cls):
        yield derived
        yield from _subclasses(derived)


def _making(cls: type, name: str, when_made: Callable[[Any], object]) -> Any:
    """The method with a call of `when_made` behind it, unless one that it runs inside of makes the same object."""
    own = vars(cls).get(name)

    @functools.wraps(getattr(cls, name))
    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        ids: set[int] = vars(_running).setdefault("ids", set())
        is_outermost = id(self) not in ids
        ids.add(id(self))
        try:
            (getattr(super(cls, self), name) if own is None else own.__get__(self))(*args, **kwargs)
        finally:
            if is_outermost:
                ids.discard(id(self))
        if is_outermost and (cls, name) in _hooks:
            when_made(self)

    return make


def _adopting(root: type, when_made: Callable[[Any], object]) -> Callable[..., None]:
    """An `__init_subclass__` that hooks what the new class defines of its own."""
    own = vars(root).get("__init_subclass__")

    def __init_subclass__(cls: type, **kwargs: Any) -> None:
        (super(root, cls).__init_subclass__ if own is None else own.__get__(None, cls))(**kwargs)
        with lock:
            if (root, "__init_subclass__") in _hooks:
                _hook(cls, _MAKERS & vars(cls).keys(), root, when_made)

    return __init_subclass__

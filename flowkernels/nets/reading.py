"""What of an nn.Module may be read instead of called, and what was read, kept: one answer for every library.

A module may be read where calling it would do nothing but its arithmetic. A weight that a hook computes before each
call (weight norm, pruning), or a parametrization, is in no dict of parameters; a hook, whatever it does, wants to be
called. What was read is kept until anything that the reader looked at is another: describing a network anew on every
call took a third of the time of a small one.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module

from flowkernels import _native
from flowkernels.ops._checks import in_autocast
from flowkernels.ops._routing import in_transform, untraced
from flowkernels.ops.net.activations import name_of

T = TypeVar("T")

# Everything here goes through __dict__: it runs on every call of every layer, and nn.Module's attributes cost a
# microsecond each.


def hooked(m: nn.Module) -> bool:
    """Whether calling this module does more than its class's forward, or runs a forward of its own."""
    d = m.__dict__
    return bool(
        d["_forward_hooks"]
        or d["_forward_pre_hooks"]
        or d["_backward_hooks"]
        or d["_backward_pre_hooks"]
        or "forward" in d
    )


def hooked_globally() -> bool:
    """Whether hooks are registered on all modules. torch has this function too, but not torch 2.6."""
    return bool(
        _module._global_forward_hooks
        or _module._global_forward_pre_hooks
        or _module._global_backward_hooks
        or _module._global_backward_pre_hooks
    )


def is_called_as(module: object, of: type[nn.Module]) -> bool:
    """Whether calling it is the class's forward and no more, so that what computes the same may stand for it."""
    if not isinstance(module, of) or type(module).forward is not of.forward:
        return False
    return torch.compiler.is_compiling() or not (hooked(module) or hooked_globally())


def is_bare(module: nn.Module) -> bool:
    """Whether calling the module does nothing but its class's forward."""
    return not hooked(module)


def of_parameters(layer: Any) -> bool:
    """Whether a linear layer's weight, a matrix, and its bias are parameters of its own, and not computed ones."""
    weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
    return weight is not None and bias is not None and weight.dim() == 2


def passes(dropout: Any) -> bool:
    """Whether a dropout, or what was put in its place, returns its input now."""
    if dropout is None:
        return True
    if hooked(dropout):
        return False
    return type(dropout) is nn.Identity or (type(dropout) is nn.Dropout and (not dropout.training or dropout.p == 0))


def may_read(modules: Iterable[nn.Module], like: Tensor, x: Tensor, *others: Tensor | None) -> bool:
    """Whether calling these modules on x now would do nothing but their arithmetic, as `like`, a weight, has it."""
    return may_compute(like, x, *others) and all(map(is_bare, modules))


def may_compute(like: Tensor, x: Tensor, *others: Tensor | None) -> bool:
    """Whether torch would now compute with x and these as with `like`, a weight: the same of no modules."""
    if hooked_globally() or in_autocast(x) or in_transform((x, *others)):
        return False
    for t in (x, *others):  # noqa: SIM110  (any() over a generator takes twice as long, on every call)
        if t is not None and (t.dtype is not like.dtype or t.device != like.device):
            return False
    return True


class Walk:
    """What a reader looked at, so that it can be asked later whether all of that is as it was: `still_holds`.

    Modules are held by weak references: what a module's reading holds on to must not keep that module alive.
    ``running``: the module whose forward asks, past its own hooks.
    """

    def __init__(self, running: nn.Module | None = None) -> None:
        self._running = _nothing if running is None else weakref.ref(running)
        self.modules: list[tuple[Any, type, Sequence[Any], Sequence[Any], Sequence[Any], Sequence[Any], bool]] = []
        self.hooked: list[Callable[[], nn.Module | None]] = []

    def enter(
        self,
        module: nn.Module,
        *,
        parameters: Sequence[str] = (),
        attributes: Sequence[str] = (),
        buffers: Sequence[str] = (),
        frozen: Sequence[str] = (),
        is_called: bool = False,
    ) -> bool:
        """Looks at a module, all its children, and at these of its parameters, attributes and buffers; False where it
        wants to be called (and not where it `is_called` anyway: its hooks then have their way).

        ``frozen``: parameters that do not train, whose values are read, as those of buffers are.
        """
        is_called = is_called or self._running() is module
        if not is_called and hooked(module):
            return False
        d = module.__dict__
        if any(n not in d and isinstance(getattr(type(module), n, None), property) for n in attributes):
            return False  # nobody knows when it will say something else
        children = [(name, weakref.ref(m) if m is not None else _nothing) for name, m in d["_modules"].items()]
        of_values = []
        for owned, names in ((d["_buffers"], buffers), (d["_parameters"], frozen)):
            for name in names:
                t = owned.get(name)
                if t is None or t.is_inference() or (owned is d["_parameters"] and t.requires_grad):
                    return False
                of_values.append((name, t, t._version, t.data_ptr()))
        self.modules.append((
            weakref.ref(module), type(module), [(n, d["_parameters"].get(n)) for n in parameters], children,
            [(n, d.get(n)) for n in attributes], of_values, is_called,
        ))  # fmt: skip
        return True

    def refuse(self, module: nn.Module) -> None:
        """Says that a module is to be called, with all in it: what of that changes may let it be read.

        Some changes are missed (what else a function closes over, buffers): it is then called where it need not be.
        """
        for m in module.modules():
            d = m.__dict__
            if not d.keys() >= _OF_MODULES:
                continue  # a script
            if hooked(m):
                self.hooked.append(weakref.ref(m))
            settings = [name for name, value in d.items() if name not in _OF_MODULES and _is_setting(value)]
            self.enter(m, parameters=[*d["_parameters"]], attributes=settings, is_called=True)

    def still_refused(self) -> bool:
        """Whether the hooks for whose sake modules are called are still there."""
        for reference in self.hooked:
            m = reference()
            if m is None or not hooked(m):
                return False
        return True


_OF_MODULES = frozenset(vars(nn.Module())) - {"training"}


def _is_setting(value: Any) -> bool:
    """Whether a module's attribute may be kept: what it leads to must not keep that module alive."""
    if isinstance(value, (bool, int, float, str, type(None), types.BuiltinFunctionType)):
        return True
    return isinstance(value, types.FunctionType) and value.__closure__ is None


def _still_holds(modules: list[Any]) -> bool:
    """Whether what a walk has looked at is as it was; csrc/common/watch.h says the same in C++."""
    for reference, cls, parameters, children, attributes, values, is_called in modules:
        m = reference()
        if type(m) is not cls:
            return False
        d = m.__dict__
        if not is_called and (
            d["_forward_hooks"]
            or d["_forward_pre_hooks"]
            or d["_backward_hooks"]
            or d["_backward_pre_hooks"]
            or "forward" in d
        ):
            return False
        if parameters:
            owned = d["_parameters"]
            for name, value in parameters:
                if owned.get(name) is not value:
                    return False
        inner = d["_modules"]
        if len(inner) != len(children):
            return False
        for name, child in children:
            if inner.get(name) is not child():
                return False
        for name, value in attributes:
            if d.get(name) is not value:
                return False
        for name, t, version, pointer in values:
            if d["_buffers"].get(name) is not t and (d["_parameters"].get(name) is not t or t.requires_grad):
                return False
            if t._version != version or t.data_ptr() != pointer:
                return False
    return True


still_holds: Callable[[list[Any]], bool] = _still_holds if _native.C is None else _native.C.walk_holds


def _nothing() -> None:
    """A reference to no module."""
    return None


class Kept(Generic[T]):
    """What a reader, ``(walk, module, *arguments) -> T | None``, said of a module, until that would change.

    None, of a module that must be called, is not kept: the next call may find it otherwise. A reader calls
    `Walk.enter` for every module that it would not call.
    """

    def __init__(self, read: Callable[..., T | None]) -> None:
        self._read = read
        self._known: weakref.WeakKeyDictionary[nn.Module, tuple[Walk, tuple[Any, ...], T]] = weakref.WeakKeyDictionary()

    def __call__(self, module: nn.Module, *arguments: Any) -> T | None:
        if torch.compiler.is_compiling() or hooked_globally():
            return None
        known = self._known.get(module)
        if known is not None and known[1] == arguments and still_holds(known[0].modules):
            return known[2]
        walk = Walk()
        with untraced():
            said = self._read(walk, module, *arguments)
        if said is not None:
            self._known[module] = (walk, arguments, said)
        return said

    def forget(self, module: nn.Module) -> None:
        """Lets a module be read again."""
        self._known.pop(module, None)


def linear(walk: Walk, m: Any, linear_class: type = nn.Linear, buffers: Sequence[str] = ()) -> Any:
    """(weight, bias) of a linear layer; None where it is more: weight norm, parametrizations, LoRA, hooks."""
    if type(m) is not linear_class or not of_parameters(m):
        return None
    if not walk.enter(m, parameters=("weight", "bias"), buffers=buffers):
        return None
    owned = m.__dict__["_parameters"]
    return owned["weight"], owned["bias"]


_SETTINGS = ("inplace", "negative_slope", "alpha", "approximate")


def activation(walk: Walk, owner: nn.Module, name: str = "activation") -> str | None:
    """The activation that a module has under a name, as an attribute or as a child; None where no kernel knows it.

    The owner is entered with its attributes by the caller.
    """
    d = owner.__dict__
    given = d["_modules"].get(name)
    if given is None:
        given = d.get(name)
    if isinstance(given, nn.Module) and not walk.enter(given, attributes=_SETTINGS):
        return None
    return name_of(given)


def no_dropout(walk: Walk, dropout: Any) -> bool:
    """Whether a dropout, or what was put in its place, returns its input now."""
    if dropout is None:
        return True
    return passes(dropout) and walk.enter(dropout, attributes=("training", "p"))

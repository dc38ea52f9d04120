"""What a method calls by name, in its own globals or those of modules that it names, and the method with others there.

A function reads its globals by name whenever it runs. So another name is put in its code in place of one that leads to
a spline, and nothing else: whatever it reads besides may change. Nothing is written into a module but these names.
"""

from __future__ import annotations

import dis
import types
from collections.abc import Iterator, Mapping
from typing import Any

PREFIX = "_flowkernels_"  # of the names that what is fused has in the modules of a model
_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD")


class Unreadable(Exception):
    """Why a function cannot be given another name to read."""


class Names(types.ModuleType):
    """A module with other functions, or modules, in place of some of its own; the rest is read where it is."""

    def __init__(self, module: types.ModuleType, others: Mapping[str, Any]) -> None:
        super().__init__(module.__name__)
        vars(self).update(others, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_module"], name)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code and those of the functions and comprehensions inside of it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def paths(function: types.FunctionType) -> Iterator[tuple[tuple[str, ...], Any]]:
    """("f",) or ("module", "f") → what it is now, of all that a function reads by such names."""
    for code in _codes(function.__code__):
        instructions = [i for i in dis.get_instructions(code) if i.opname != "EXTENDED_ARG"]
        for at, instruction in enumerate(instructions):
            if instruction.opname != "LOAD_GLOBAL" or instruction.argval not in function.__globals__:
                continue
            path, value = (instruction.argval,), function.__globals__[instruction.argval]
            for attribute in instructions[at + 1 :]:
                if not isinstance(value, types.ModuleType) or attribute.opname not in _ATTRIBUTE:
                    break
                path, value = (*path, attribute.argval), vars(value).get(attribute.argval)
            yield path, value


def may_name(function: types.FunctionType) -> Iterator[Any]:
    """Cheaper than `paths`, and more: every function that any of its names could mean."""
    names = {name for code in _codes(function.__code__) for name in code.co_names}
    spaces = [function.__globals__]
    seen: set[int] = set()
    while spaces:
        space = spaces.pop()
        for name in names & space.keys():
            value = space[name]
            if isinstance(value, types.FunctionType):
                yield value
            elif isinstance(value, types.ModuleType) and id(value) not in seen:
                seen.add(id(value))
                spaces.append(vars(value))


def _check(code: types.CodeType, names: frozenset[str], modules: frozenset[str]) -> None:
    """Raises where a name that is to be replaced means something else in this code too."""
    instructions = [i for i in dis.get_instructions(code) if i.opname != "EXTENDED_ARG"]
    for at, instruction in enumerate(instructions):
        if instruction.opcode not in dis.hasname or instruction.argval not in names:
            continue
        if instruction.opname != "LOAD_GLOBAL":
            raise Unreadable("a method uses the name of its spline function for something else too")
        if instruction.argval in modules and instructions[at + 1].opname not in _ATTRIBUTE:
            raise Unreadable("a method does something else with the module of its spline function")


def _renamed(code: types.CodeType, names: frozenset[str], modules: frozenset[str]) -> types.CodeType:
    _check(code, names, modules)
    return code.replace(
        co_names=tuple(PREFIX + n if n in names else n for n in code.co_names),
        co_consts=tuple(
            _renamed(c, names, modules) if isinstance(c, types.CodeType) else c for c in code.co_consts
        ),
    )  # fmt: skip


def rewritten(function: types.FunctionType, others: Mapping[tuple[str, ...], Any]) -> types.FunctionType:
    """The function with other objects where it reads these paths."""
    roots = frozenset(path[0] for path in others)
    modules = frozenset(path[0] for path in others if len(path) > 1)
    code = _renamed(function.__code__, roots, modules)
    for root in roots:
        below = {path[1:]: value for path, value in others.items() if path[0] == root}
        space, name = function.__globals__, PREFIX + root
        space[name] = _with_others(space[root], below, space.get(name))
    made = types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    made.__kwdefaults__, made.__qualname__ = function.__kwdefaults__, function.__qualname__
    made.__doc__, made.__module__ = function.__doc__, function.__module__
    vars(made).update(vars(function))
    return made


def _with_others(value: Any, others: Mapping[tuple[str, ...], Any], before: Any) -> Any:
    """What is read in place of a global. What another function reads of the same module stays in it."""
    if () in others:
        return others[()]
    same = isinstance(before, Names) and vars(before)["_module"] is value
    inside = {name: kept for name, kept in vars(before).items() if not name.startswith("_")} if same else {}
    for name in dict.fromkeys(path[0] for path in others):
        below = {path[1:]: other for path, other in others.items() if path[0] == name}
        inside[name] = _with_others(getattr(value, name), below, inside.get(name))
    return Names(value, inside)

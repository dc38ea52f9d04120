"""A flow as JSON, and back: which classes it is made of, with their arguments."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

import torch
from torch import nn

from flowkernels.flows import Flow

from .classes import FUNCTIONS, MAPS, MODULES, NotTheSame, name_of, name_of_function, plain

Json = Any


class CannotDescribeError(TypeError):
    """A part of a flow is none that a file can say how to build."""


class CannotBuildError(ValueError):
    """A description says nothing that can be built."""


def describe(flow: Flow, where: str) -> Json:
    """How to build this flow, without its weights. ``where`` begins the message of an error."""
    writer = _Writer(flow, where)
    found = {
        "flow": writer.module(flow, ""),
        "training": flow.training,
        "in_other_mode": [name for name, m in flow.named_modules() if m.training is not flow.training],
        "frozen": [name for name, p in flow.named_parameters() if not p.requires_grad],
    }
    _check_rebuilt(flow, build(found), where)
    return found


class _Writer:
    def __init__(self, flow: Flow, where: str) -> None:
        self.where = where
        self.paths = {id(m): name for name, m in flow.named_modules()}
        self.seen: dict[int, int] = {}

    def module(self, m: nn.Module, path: str) -> Json:
        name = name_of(m)
        if name is None:
            raise self._refusal(path, m)
        if id(m) in self.seen:  # a layer that is used twice has its weights once
            return {"same": self.seen[id(m)]}
        self.seen[id(m)] = len(self.seen)
        try:
            arguments = MODULES[name].arguments(m)
        except (NotTheSame, AttributeError) as error:  # of parts that somebody put in place of others
            raise CannotDescribeError(
                f"{self.where}: {path or 'the flow'} must be as its class builds it, got {type(m).__name__} with other "
                f"parts; {INSTEAD}"
            ) from error
        return {"class": name, **{key: self.value(value, _join(path, key)) for key, value in arguments.items()}}

    def value(self, value: Any, path: str) -> Json:
        if isinstance(value, nn.Module):
            return self.module(value, self.paths.get(id(value), path))
        with contextlib.suppress(TypeError):
            return plain(value)
        if isinstance(value, (list, tuple)):
            return [self.value(v, f"{path}.{i}") for i, v in enumerate(value)]
        name = name_of(value)
        if name in MAPS:
            fields = [f.name for f in dataclasses.fields(value) if f.init]
            return {"class": name, **{f: self.value(getattr(value, f), _join(path, f)) for f in fields}}
        function = name_of_function(value)
        if function is None:
            raise self._refusal(path, value)
        return {"function": function}

    def _refusal(self, path: str, value: Any) -> CannotDescribeError:
        named = value if hasattr(value, "__qualname__") else type(value)
        given = f"{named.__module__}.{named.__qualname__}"
        return CannotDescribeError(
            f"{self.where}: {path or 'the flow'} must be of flowkernels' own classes or torch's plain layers, which a "
            f"file can name, got {given}; {INSTEAD}"
        )


INSTEAD = (
    "flow.state_dict() still works, and so does flow.save(path, config=False), whose weights "
    "flowkernels.load(path, flow=...) loads into a flow that you build"
)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


# ---- and back ----


def build(description: Json, largest: float = math.inf) -> Flow:
    """The flow that is described, on the meta device: no memory, no random numbers, every weight still to come.

    ``largest``: no whole number is greater. Some constructors make lists as long as one says.
    """
    if not isinstance(description, dict):
        raise CannotBuildError(f"it must be an object, got {description!r:.60}")
    with torch.device("meta"):
        flow = _Reader(largest).value(description.get("flow"))
    if not isinstance(flow, Flow):
        raise CannotBuildError(f"flow must be a flow, got {type(flow).__name__}")
    modules, parameters = dict(flow.named_modules()), dict(flow.named_parameters())
    flow.train(_listed(description, "training", bool))
    for name in _listed(description, "in_other_mode", list):
        _named(modules, "in_other_mode", name).training = not flow.training
    for name in _listed(description, "frozen", list):
        _named(parameters, "frozen", name).requires_grad_(False)
    return flow


def _listed(description: dict[str, Any], key: str, kind: type) -> Any:
    found = description.get(key)
    if not isinstance(found, kind):
        raise CannotBuildError(f"{key} must be a {kind.__name__}, got {found!r:.60}")
    return found


def _named(table: dict[str, Any], key: str, name: Any) -> Any:
    if not isinstance(name, str) or name not in table:
        raise CannotBuildError(f"{key} must name parts of the flow, got {name!r:.60}")
    return table[name]


class _Reader:
    def __init__(self, largest: float) -> None:
        self.largest = largest
        self.built: list[Any] = []

    def value(self, json: Json) -> Any:
        if isinstance(json, list):
            return [self.value(v) for v in json]
        if isinstance(json, int) and abs(json) > self.largest:
            raise CannotBuildError(f"whole numbers must be at most {self.largest}, got {json:.3g}")
        if not isinstance(json, dict):
            return json
        if "same" in json:
            return self._same(json["same"])
        if "function" in json:
            return self._from(FUNCTIONS, "function", json["function"])
        name = json.get("class")
        arguments = {key: value for key, value in json.items() if key != "class"}
        if isinstance(name, str) and name in MAPS:
            settings = {key: tuple(v) if isinstance(v, list) else v for key, v in arguments.items()}
            return self._call(name, MAPS[name], settings)
        part = self._from(MODULES, "class", name)
        place = len(self.built)
        self.built.append(None)  # counted when they begin, as they were written
        self.built[place] = self._call(name, part.build, {key: self.value(v) for key, v in arguments.items()})
        return self.built[place]

    def _same(self, place: Any) -> Any:
        known = isinstance(place, int) and not isinstance(place, bool) and 0 <= place < len(self.built)
        if not known or self.built[place] is None:
            raise CannotBuildError(f"same must be the place of a part before it, got {place!r:.60}")
        return self.built[place]

    def _from(self, table: dict[str, Any], key: str, name: Any) -> Any:
        if not isinstance(name, str) or name not in table:
            raise CannotBuildError(f"{key} must be one that this version of flowkernels knows, got {name!r:.60}")
        return table[name]

    def _call(self, name: Any, make: Any, arguments: dict[str, Any]) -> Any:
        try:
            return make(**arguments)
        except Exception as error:  # whatever a constructor makes of arguments that somebody else wrote
            raise CannotBuildError(f"{name} must be built from what it says, got {error}") from error


# ---- whether it is the same flow ----


def _check_rebuilt(flow: nn.Module, again: nn.Module, where: str) -> None:
    """Raises where the description leaves something out: a layer put in another's place, two weights tied to one."""
    expected, found = _outline(again), _outline(flow)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            shown = f"{found.get(name, 'nothing')} in place of {expected.get(name, 'nothing')}"
            raise CannotDescribeError(
                f"{where}: {name or 'the flow'} must be as its class builds it, got {shown}; {INSTEAD}"
            )


def _outline(flow: nn.Module) -> dict[str, str]:
    """Every module, parameter and stored buffer by name: of which class or shape, and whose other name it is."""
    first: dict[int, str] = {}
    found = {}
    stored = flow.state_dict(keep_vars=True)
    for name, value in [*flow.named_modules(remove_duplicate=False), *stored.items()]:
        if isinstance(value, torch.Tensor):
            kind = f"{'parameter' if isinstance(value, nn.Parameter) else 'buffer'} {list(value.shape)}"
        else:
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
        other = first.setdefault(id(value), name)
        found[name] = kind if other == name else f"{kind}, the same as {other}"
    return found

"""The modules of what users hold: a module, a list of them, or a distribution that is made of some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import distributions as td
from torch import nn

Model = nn.Module | Sequence[Any] | td.Distribution


class Part(NamedTuple):
    """Where a part lies in the model, and the part: a module, or a transform of torch's that is none."""

    path: str
    part: nn.Module | td.Transform


def parts_of(call: str, model: object) -> list[Part]:
    """The parts of a model; raises, in the name of the function called, where there is nothing to look into."""
    return list(_walk(call, model, ""))


def modules_of(call: str, model: object) -> list[nn.Module]:
    """Those of its parts that are modules."""
    return [part for _, part in parts_of(call, model) if isinstance(part, nn.Module)]


def _walk(call: str, model: object, path: str) -> Iterator[Part]:
    if isinstance(model, nn.Module):
        yield Part(path, model)
    elif isinstance(model, (list, tuple)):
        for i, item in enumerate(model):
            yield from _walk(call, item, _join(path, str(i)))
    elif isinstance(model, td.ComposeTransform):
        yield from _walk(call, model.parts, path)
    elif isinstance(model, td.transforms._InverseTransform):
        yield from _walk(call, model._inv, path)
    elif isinstance(model, td.Transform):
        yield Part(path, model)
    elif isinstance(getattr(model, "transform", None), td.Transform) and not isinstance(model, td.Distribution):
        yield from _walk(call, model.transform, path)  # type: ignore[attr-defined]  # of Pyro, among conditional ones
    elif _transforms(model) is not None:
        yield from _walk(call, _transforms(model), _join(path, "transforms"))
        base = getattr(model, "base_dist", None)
        while isinstance(base, td.Independent):
            base = base.base_dist
        if _transforms(base) is not None:
            yield from _walk(call, base, _join(path, "base_dist"))
    else:
        raise TypeError(f"{call}: model must be {_CONTRACT}, got {type(model).__name__}{_advice(model)}")


def _transforms(model: object) -> Sequence[Any] | None:
    """Those of torch's and Pyro's distributions; Pyro's conditional ones are no torch.distributions.Distribution."""
    found = getattr(model, "transforms", None)
    return found if isinstance(found, (list, tuple)) else None


_CONTRACT = "a torch.nn.Module, a list of them or a TransformedDistribution"


def _advice(model: object) -> str:
    """What to give in place of a distribution that does not lead to its modules, as those of zuko's flows."""
    if isinstance(model, td.Distribution):
        return " (give the module that makes it, e.g. flow in place of flow())"
    return ""


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name

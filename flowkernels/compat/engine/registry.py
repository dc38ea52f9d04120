"""A library as a table: what its classes are called, and which layer of methods each can have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from .design import cheap, listed
from .patch import FastMethods, overridden


class Target(NamedTuple):
    """How the modules of a class are accelerated."""

    layer: type[FastMethods]
    bypassed: frozenset[str]  # methods that the layer goes around: who overrides one is left alone
    what: str = ""  # what runs on the kernels, for the site's table
    refusal: Callable[[Any], object] | None = None  # why a module cannot have the layer; what is no string is no reason


class Library:
    """Classes are found by name, `root` being that of the package, so that nothing is imported.

    Args:
        root: the package: ``"nflows"``.
        targets: the name of a class below it, ``"transforms.lu.LULinear"``, → how its modules are accelerated. A
            module belongs to the first class of its method resolution order that has a name here.
        left_alone: name → why nothing is gained on it.
        base: the class from which all transforms of the library come; one that is in no table has "no fused path".
        containers: name of a transform that only calls others, and so appears in no report → which parts of it are
            accelerated, for the site's table (empty: not in the table); or how it runs neighbours among them as one op.

    Example:
        >>> import torch
        >>> from flowkernels.compat.engine.registry import Library
        >>> library = Library("torch", {}, left_alone={"nn.modules.linear.Identity": "it does nothing"}, base="")
        >>> library.match(torch.nn.Identity()), library.match(torch.nn.ReLU())
        ('it does nothing', None)
    """

    def __init__(
        self,
        root: str,
        targets: Mapping[str, Target],
        *,
        base: str,
        left_alone: Mapping[str, str] | None = None,
        containers: Mapping[str, str | Target] | None = None,
    ) -> None:
        self.root, self.base = root, base
        self.targets, self.left_alone, self.containers = dict(targets), dict(left_alone or {}), dict(containers or {})

    def _name(self, cls: type) -> str:
        """A class's name below the root; empty for a class of another package."""
        prefix, full = f"{self.root}.", f"{cls.__module__}.{cls.__qualname__}"
        return full.removeprefix(prefix) if full.startswith(prefix) else ""

    def match(self, module: nn.Module) -> Target | str | None:
        """How a module is accelerated, why it is left alone, or None: not a transform of the library."""
        for cls in type(module).__mro__:
            name = self._name(cls)
            target = self.targets.get(name)
            if target is not None:
                return overridden(module, cls, target.bypassed) or _refusal(target, module) or target
            if name in self.left_alone:
                return listed(name.rpartition(".")[2], self.left_alone[name])
            if name in self.containers:
                container = self.containers[name]
                if isinstance(container, str) or overridden(module, cls, container.bypassed):
                    return None
                return container
            if name and name == self.base:
                return cheap(module) or "no fused path for this class"
        return None

    def made(self) -> list[str]:
        """The names of all classes that `match` has layers for."""
        return [*self.targets, *(name for name, given in self.containers.items() if isinstance(given, Target))]

    def gain(self, module: nn.Module) -> str:
        """What of an accelerated module runs on the kernels; empty for a class of no table."""
        names = (self._name(cls) for cls in type(module).__mro__)
        return next((self.targets[name].what for name in names if name in self.targets), "")

    def rows(self) -> list[tuple[str, str]]:
        """(class, what of it is accelerated or why it is not) for the site's table."""
        rows = {name: target.what for name, target in self.targets.items()}
        found = {name: text if isinstance(text, str) else text.what for name, text in self.containers.items()}
        rows |= {name: text for name, text in found.items() if text}
        rows |= {name: f"left alone: {reason}" for name, reason in self.left_alone.items()}
        return [(name.rpartition(".")[2], text) for name, text in rows.items()]


def _refusal(target: Target, module: nn.Module) -> str | None:
    try:
        found = None if target.refusal is None else target.refusal(module)
    except Exception as error:  # another version of the library, or a module edited beyond recognition
        return f"its layout is not the one that flowkernels knows ({type(error).__name__}: {error})"
    return found if isinstance(found, str) else None

"""What is made by one call and stays for later ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Handled:
    """A value that a compiled module checks once, and takes in every call."""

    _handles: dict[Any, Any]

    def handle(self, module: Any) -> Any:
        """This as the module takes it; made once."""
        found = self._handles.get(module)
        if found is None:
            found = self._handles[module] = self._handle(module)
        return found

    def _handle(self, module: Any) -> Any:
        raise NotImplementedError


def made_to_stay(make: Callable[..., T], *arguments: Any) -> T:
    """What a function returns, fit for any later call: a tensor of inference mode could not be saved for backward."""
    with torch.inference_mode(False):
        return make(*arguments)


def kept(maxsize: int) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """`functools.lru_cache` for functions that make tensors."""

    def cached(make: Callable[..., T]) -> Callable[..., T]:
        return functools.lru_cache(maxsize)(functools.wraps(make)(functools.partial(made_to_stay, make)))

    return cached

"""What is made by one call and stays for later ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def made_to_stay(make: Callable[..., T], *arguments: Any) -> T:
    """What a function returns, fit for any later call: a tensor of inference mode could not be saved for backward."""
    with torch.inference_mode(False):
        return make(*arguments)


def kept(maxsize: int) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """`functools.lru_cache` for functions that make tensors."""

    def cached(make: Callable[..., T]) -> Callable[..., T]:
        return functools.lru_cache(maxsize)(functools.wraps(make)(functools.partial(made_to_stay, make)))

    return cached

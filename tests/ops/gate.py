"""What the tests of the C++ gate share: entry points called by themselves, with one number broken at a time."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

Break = Callable[[dict[str, Any]], None]


def told(t: Tensor, **instead: Any) -> Any:
    """What a tensor says of itself, with some of it replaced."""
    says = {"data_ptr": t.data_ptr(), "shape": tuple(t.shape), "stride": t.stride(), "dtype": t.dtype, **instead}
    return SimpleNamespace(
        data_ptr=lambda: says["data_ptr"], shape=says["shape"], stride=lambda: says["stride"], dtype=says["dtype"], of=t
    )


def assert_refused(call: Callable[..., Any], arguments: dict[str, Any], broken: dict[str, Any], message: str) -> None:
    """Raises a ValueError of three parts with this message, where without the broken arguments it does not."""
    assert set(broken) <= set(arguments), broken
    with pytest.raises(ValueError, match=r".+ must be .+, got .+") as raised:
        call(*{**arguments, **broken}.values())
    assert message in str(raised.value)


def layer(weight: Tensor, **more: Any) -> tuple[Any, ...]:
    """A layer of a net as the compiled modules take it."""
    names = ("mask", "weight", "bias", "add", "gate", "kept", "grad_weight", "grad_bias", "grad_add", "grad_gate")
    given = {"weight": weight, **more}
    assert set(given) <= set(names)
    return tuple(given.get(name) for name in names)


def layers(*sizes: tuple[int, int], dtype: torch.dtype = torch.float32) -> list[tuple[Any, ...]]:
    """Layers of these sizes with a bias."""
    return [layer(torch.zeros(s, dtype=dtype), bias=torch.zeros(s[0], dtype=dtype)) for s in sizes]

"""The activations that networks know: one table of names, torch's functions and torch's modules.

Kernels go by the place in the table: csrc/net/net.h has the same order, and Triton's kernels the same names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _identity(x: Tensor) -> Tensor:
    return x


class Activation(NamedTuple):
    """An activation: its function, what else computes the same, and a module's class with the settings that do."""

    function: Callable[[Tensor], Tensor]
    module: type[nn.Module]
    settings: dict[str, Any]  # of a module that works in place none is known: in a residual block it changes the stream
    also: tuple[Callable[[Tensor], Tensor], ...] = ()


TABLE: dict[str, Activation] = {
    "identity": Activation(_identity, nn.Identity, {}),
    "relu": Activation(F.relu, nn.ReLU, {"inplace": False}, (torch.relu,)),
    "leaky_relu": Activation(F.leaky_relu, nn.LeakyReLU, {"inplace": False, "negative_slope": 0.01}),
    "elu": Activation(F.elu, nn.ELU, {"inplace": False, "alpha": 1.0}),
    "gelu": Activation(F.gelu, nn.GELU, {"approximate": "none"}),  # by erf
    "silu": Activation(F.silu, nn.SiLU, {"inplace": False}),
    "tanh": Activation(torch.tanh, nn.Tanh, {}, (F.tanh,)),
}
FUNCTIONS = {name: a.function for name, a in TABLE.items()}
CODES = {name: code for code, name in enumerate(TABLE)}
SLOPE_NEEDS_INPUT = ("gelu", "silu")
_BY_FUNCTION = {f: name for name, a in TABLE.items() for f in (a.function, *a.also)}
_BY_MODULE = {a.module: name for name, a in TABLE.items()}


def name_of(activation: Any) -> str | None:
    """The name of a function or of a module (or None): what an op may compute in its place."""
    if isinstance(activation, nn.Module):
        name = _BY_MODULE.get(type(activation))
        if name is None or all(getattr(activation, s) == v for s, v in TABLE[name].settings.items()):
            return name
        if name == "leaky_relu" and activation.negative_slope == 0 and not activation.inplace:
            return "relu"  # of normflows' MLP
        return None
    try:
        return _BY_FUNCTION.get(activation)
    except TypeError:  # without a hash
        return None


def name_of_class(activation: Any) -> str | None:
    """The name of a module's class, as it is by default."""
    return _BY_MODULE.get(activation) if isinstance(activation, type) else None


def check_activation(op: str, activation: object) -> None:
    """Raises unless `activation` is a name in the table."""
    if not isinstance(activation, str) or activation not in TABLE:
        raise ValueError(f"{op}: activation must be one of {', '.join(TABLE)}, got {activation!r}")

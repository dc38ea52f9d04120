"""What of another library's network may be read instead of called: the one answer for every library.

Only what calling it would do anyway. A weight that a hook computes before each call (weight norm, pruning), or a
parametrization, is in no dict of parameters; a hook, whatever it does, wants to be called.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from flowkernels.ops._checks import in_autocast
from flowkernels.ops._routing import in_transform
from flowkernels.ops.residual_net.modules import hooked, hooked_globally


def is_bare(module: nn.Module) -> bool:
    """Whether calling the module does nothing but its class's forward."""
    return not hooked(module)


def of_parameters(layer: Any) -> bool:
    """Whether a linear layer's weight, a matrix, and its bias are parameters of its own, and not computed ones."""
    # Through the dict of nn.Module: this runs on every call, and its attributes cost a microsecond each.
    weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
    return weight is not None and bias is not None and weight.dim() == 2


def may_read(modules: Iterable[nn.Module], like: Tensor, x: Tensor, *others: Tensor | None) -> bool:
    """Whether calling these modules on x now would do nothing but their arithmetic, as `like`, a weight, has it."""
    if in_transform((x, *others)) or hooked_globally() or in_autocast(x):
        return False
    for t in (x, *others):
        if t is not None and (t.dtype is not like.dtype or t.device != like.device):
            return False
    return all(map(is_bare, modules))

"""Networks of plain layers, linear ones with one activation between them, as the ops take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from flowkernels.compat.nflows.made import _activation as activation_name
from flowkernels.compat.reading import may_read, of_parameters

# Width up to which a whole layer as one op beats torch's products, as for `flowkernels.nets.MLP`.
WIDEST = 512


def parts(net: Any, net_class: type = nn.Sequential, linear_class: type = nn.Linear) -> tuple[list[Any], str] | str:
    """The linear layers and the activation between them, or why it is not such a network."""
    if type(net) is not net_class:
        return f"its network is a {type(net).__name__}, not {_full_name(net_class)}"
    modules = [*net._modules.values()]
    linears, activations = modules[::2], modules[1::2]
    names = {activation_name(a) or "" for a in activations}
    for layer in linears:
        if type(layer) is not linear_class:
            return f"a layer of its network is a {type(layer).__name__}, not {_full_name(linear_class)}"
        if not of_parameters(layer):
            return "a layer of its network has no weight matrix or no bias as a parameter"
    if len(activations) != len(linears) - 1:
        return "its network does not end with a linear layer"
    if len(names) > 1 or "" in names:
        return f"the activation of its network is {activations[0]!r}"
    return linears, names.pop() if names else "identity"


def _full_name(cls: type) -> str:
    return f"{cls.__module__.partition('.')[0]}'s {cls.__name__}"


def runs_now(net: Any, linears: Sequence[Any], x: Tensor, context: Tensor | None) -> bool:
    """Whether calling the network now would do nothing but its arithmetic, in the dtype of its weights."""
    return may_read((net, *net._modules.values()), linears[0]._parameters["weight"], x, context)


def dense_refusal(net: Any, net_class: type = nn.Sequential, linear_class: type = nn.Linear) -> str | None:
    """Why a network would be called on every call, or None."""
    found = parts(net, net_class, linear_class)
    return found if isinstance(found, str) else too_wide(found[0])


def too_wide(linears: Sequence[Any]) -> str | None:
    """Why a network is better called, for the width of its hidden layers, or None."""
    width = max((layer._parameters["weight"].shape[0] for layer in linears[:-1]), default=0)
    return f"its network is {width} wide: torch's own products are as fast" if width > WIDEST else None


def dense_arguments(
    net: Any, x: Tensor, context: Tensor | None, net_class: type = nn.Sequential, linear_class: type = nn.Linear
) -> dict[str, Any] | None:
    """The layers and the activation of a network as `ops.flow_layer` takes them; None where it must be called."""
    found = parts(net, net_class, linear_class)
    if isinstance(found, str) or too_wide(found[0]) is not None or not runs_now(net, found[0], x, context):
        return None
    layers = [(layer._parameters["weight"], layer._parameters["bias"]) for layer in found[0]]
    return {"layers": layers, "activation": found[1], "residual": False}

"""Networks of plain layers, linear ones with one activation between them, as the ops take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from flowkernels.nets.dense_reading import Dense
from flowkernels.nets.reading import Kept, Walk, activation, linear, may_compute, of_parameters
from flowkernels.ops.net.activations import name_of

# Width up to which a whole layer as one op beats torch's products, as for `flowkernels.nets.MLP`.
WIDEST = 512


def parts(net: Any, net_class: type = nn.Sequential, linear_class: type = nn.Linear) -> tuple[list[Any], str] | str:
    """The linear layers and the activation between them, or why it is not such a network."""
    if type(net) is not net_class:
        return f"its network is a {type(net).__name__}, not {_full_name(net_class)}"
    modules = [*net._modules.values()]
    linears, activations = modules[::2], modules[1::2]
    names = {name_of(a) or "" for a in activations}
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


def dense_refusal(net: Any, net_class: type = nn.Sequential, linear_class: type = nn.Linear) -> str | None:
    """Why a network would be called on every call, or None."""
    found = parts(net, net_class, linear_class)
    return found if isinstance(found, str) else too_wide(found[0])


def too_wide(linears: Sequence[Any]) -> str | None:
    """Why a network is better called, for the width of its hidden layers, or None."""
    width = max((layer._parameters["weight"].shape[0] for layer in linears[:-1]), default=0)
    return f"its network is {width} wide: torch's own products are as fast" if width > WIDEST else None


def read_sequence(
    walk: Walk, net: Any, net_class: type, linear_class: type, buffers: Sequence[str] = ()
) -> tuple[list[Any], str] | None:
    """(weight, bias) of each linear layer and the activation between them; None where the network must be called."""
    found = parts(net, net_class, linear_class)
    if isinstance(found, str) or not walk.enter(net):
        return None
    if None in [activation(walk, net, name) for name in [*net._modules][1::2]]:
        return None
    layers = [linear(walk, m, linear_class, buffers) for m in found[0]]
    return None if None in layers else (layers, found[1])


def read(walk: Walk, net: Any, net_class: type = nn.Sequential, linear_class: type = nn.Linear) -> Dense | None:
    """The network, for a reader that keeps it; None where it must be called, or better is."""
    found = read_sequence(walk, net, net_class, linear_class)
    if found is None or any(len(bias) > WIDEST for _, bias in found[0][:-1]):
        return None
    return Dense(found[0], False, found[1])


_dense = Kept[Dense](read)


def dense(
    net: Any, x: Tensor, context: Tensor | None, net_class: type = nn.Sequential, linear_class: type = nn.Linear
) -> Dense | None:
    """The layers of a network of x, or of some of its features; None where it must be called, or better is."""
    found = _dense(net, net_class, linear_class)
    return None if found is None or not may_compute(found.layers[0][0], x, context) else found

"""The networks of zuko's layers as the ops take them: weights, activation and, where masked, degrees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zuko.nn import MLP, Linear, MaskedLinear, MaskedMLP

from flowkernels.ops._routing import in_transform
from flowkernels.ops.made import MadePlan
from flowkernels.ops.residual_net.modules import hooked_globally

from .buffers import Reading
from .masks import read_plan
from .nflows_made import _activation as activation_name
from .nflows_made import is_bare


def parts(net: Any, net_class: type, linear_class: type) -> tuple[list[Any], str] | str:
    """The linear layers and the activation between them, or why it is not such a network."""
    if type(net) is not net_class:
        return f"its network is a {type(net).__name__}, not zuko's {net_class.__name__}"
    modules = [*net._modules.values()]
    linears, activations = modules[::2], modules[1::2]
    names = {activation_name(a) or "" for a in activations}
    for layer in linears:
        if type(layer) is not linear_class:
            return f"a layer of its network is a {type(layer).__name__}, not zuko's {linear_class.__name__}"
        weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
        if weight is None or bias is None or weight.dim() != 2:
            return "a layer of its network has no weight matrix or no bias as a parameter"
    if len(names) > 1 or "" in names:
        return f"the activation of its network is {activations[0]!r}"
    return linears, names.pop() if names else "identity"


def _runs_now(net: Any, linears: Sequence[Any], x: Tensor, context: Tensor | None) -> bool:
    """Whether calling the network now would do nothing but its arithmetic, in the dtype of its weights."""
    if in_transform((x, context)) or hooked_globally() or torch.is_autocast_enabled(x.device.type):
        return False
    if not all(map(is_bare, (net, *net._modules.values()))):
        return False
    weight = linears[0]._parameters["weight"]
    tensors = (x,) if context is None else (x, context)
    return all(t.dtype is weight.dtype and t.device == weight.device for t in tensors)


# ---- masked ----


def _read(*masks_and_features: Any) -> MadePlan | str:
    *masks, features = masks_and_features
    if not bool(masks[0][:, features:].all()):
        return "some units do not see the whole context"
    return read_plan([masks[0][:, :features], *masks[1:]])


_plan_of = Reading[MadePlan | str](_read)


def masked_refusal(net: Any, features: int) -> str | None:
    """Why a masked network would run as before on every call, or None. Hooks may come and go."""
    found = parts(net, MaskedMLP, MaskedLinear)
    if isinstance(found, str):
        return found
    plan = _plan_of(net, [layer.mask for layer in found[0]], features)
    return plan if isinstance(plan, str) else None


def masked_arguments(net: Any, features: int, x: Tensor, context: Tensor | None) -> dict[str, Any] | None:
    """What `ops.made` and `ops.autoregressive_inverse` take beside x; None where the modules must be called."""
    found = parts(net, MaskedMLP, MaskedLinear)
    if isinstance(found, str) or not _runs_now(net, found[0], x, context) or x.shape[-1] != features:
        return None
    linears, activation = found
    plan = _plan_of(net, [layer._buffers["mask"] for layer in linears], features)
    weight = linears[0]._parameters["weight"]
    if not isinstance(plan, MadePlan) or weight.shape[1] != features + (0 if context is None else context.shape[-1]):
        return None
    layers = [(layer._parameters["weight"], layer._parameters["bias"]) for layer in linears]
    adds: list[Tensor | None] | None = None
    if context is not None:  # the columns of the context are no masked ones: one product per context and not per row
        # Split and not sliced twice: its gradient is one cat.
        of_x, of_context = weight.split_with_sizes((features, context.shape[-1]), dim=1)
        layers[0] = (of_x, layers[0][1])
        adds = [F.linear(context, of_context), *[None] * (len(layers) - 1)]
    return {"layers": layers, "plan": plan, "activation": activation, "adds": adds}


# ---- dense ----

# Width up to which a whole layer as one op beats torch's products, as for `flowkernels.nets.MLP`.
_WIDEST = 512


def dense_refusal(net: Any) -> str | None:
    """Why a network would be called on every call, or None."""
    found = parts(net, MLP, Linear)
    if isinstance(found, str):
        return found
    width = max((layer.weight.shape[0] for layer in found[0][:-1]), default=0)
    return f"its network is {width} wide: torch's own products are as fast" if width > _WIDEST else None


def dense_arguments(net: nn.Module, x: Tensor, context: Tensor | None) -> dict[str, Any] | None:
    """The layers and the activation of a network as `ops.flow_layer` takes them; None where it must be called."""
    if dense_refusal(net) is not None:
        return None
    found = parts(net, MLP, Linear)
    if isinstance(found, str) or not _runs_now(net, found[0], x, context):
        return None
    layers = [(layer._parameters["weight"], layer._parameters["bias"]) for layer in found[0]]
    return {"layers": layers, "activation": found[1], "residual": False}

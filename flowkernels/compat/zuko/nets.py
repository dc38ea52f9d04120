"""The masked networks of zuko's layers as the ops take them: weights, activation and degrees."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from zuko.nn import MaskedLinear, MaskedMLP

from flowkernels.compat.engine.reads import CachedRead
from flowkernels.compat.reading.dense import parts, runs_now
from flowkernels.compat.reading.masks import read_plan
from flowkernels.ops.made import MadePlan


def _read(*masks_and_features: Any) -> MadePlan | str:
    *masks, features = masks_and_features
    if not bool(masks[0][:, features:].all()):
        return "some units do not see the whole context"
    return read_plan([masks[0][:, :features], *masks[1:]])


_plan_of = CachedRead[MadePlan | str](_read)


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
    if isinstance(found, str) or not runs_now(net, found[0], x, context) or x.shape[-1] != features:
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

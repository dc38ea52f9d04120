"""The masked networks of zuko's layers as the ops take them: weights, activation and degrees."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor
from zuko.nn import MaskedLinear, MaskedMLP

from flowkernels.compat.engine.reads import CachedRead
from flowkernels.compat.reading.dense import parts, read_sequence
from flowkernels.compat.reading.masks import read_plan
from flowkernels.nets.reading import Kept, Walk, may_compute
from flowkernels.ops.net import MadePlan, Net
from flowkernels.ops.net.net import fitting, made_net


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


class _Masked(NamedTuple):
    """What was read of a network: its plan, layers and activation, and the network of a call without a context."""

    plan: MadePlan
    net: Net


def _read_net(walk: Walk, net: Any, features: int) -> _Masked | None:
    found = read_sequence(walk, net, MaskedMLP, MaskedLinear, buffers=("mask",))
    if found is None:
        return None
    plan = _plan_of(net, [net._modules[name]._buffers["mask"] for name in [*net._modules][::2]], features)
    return _Masked(plan, made_net(found[0], plan, found[1])) if isinstance(plan, MadePlan) else None


_kept = Kept[_Masked](_read_net)


def masked_net(net: Any, features: int, x: Tensor, context: Tensor | None) -> Net | None:
    """A masked network as an op takes it; None where the modules must be called."""
    found = _kept(net, features)
    if found is None or x.shape[-1] != features:
        return None
    weight, bias = found.net.tensors[:2]
    n_context = 0 if context is None else context.shape[-1]
    if not may_compute(weight, x, context) or weight.shape[1] != features + n_context:
        return None
    if context is None:
        return fitting(found.net)
    # The columns of the context are no masked ones: one product per context and not per row.
    # Split and not sliced twice: its gradient is one cat.
    of_x, of_context = weight.split_with_sizes((features, context.shape[-1]), dim=1)
    adds = [F.linear(context, of_context), *[None] * (found.net.spec.n - 1)]
    return fitting(made_net([(of_x, bias), *found.net.layers()[1:]], found.plan, found.net.spec.activation, adds))

"""The degrees of a masked network, read off its masks; and the order of a permutation, off its matrix.

Libraries number their hidden units in their own ways, and some at random; the masks are all that they have in common.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkernels.ops import LayerPlan, MadePlan, layer_plan
from flowkernels.ops.net import Net
from flowkernels.ops.net.net import made_net

EVERY = slice(0, None)
SOFT = "its mask is not of 0 and 1"  # which the ops would multiply weights with


def is_hard(mask: Tensor) -> bool:
    """Whether a mask is of 0 and 1 alone, and no soft or learned one."""
    return bool(((mask == 0) | (mask == 1)).all())


def read_plan(masks: Sequence[Tensor], of_x: slice = EVERY) -> MadePlan | str:
    """The plan whose masks these are, or why there is none.

    Args:
        masks: one per layer, ``[n_out, n_in]``, nonzero where an output sees an input. The inputs of the first are
            the D features, the outputs of the last the D * P parameters, feature-major.
        of_x: which inputs are the features; the rest is a context, that all units must see.
    """
    if not all(map(is_hard, masks)):
        return SOFT
    masks = [m.detach().cpu() != 0 for m in masks]
    if not bool(masks[0][:, _rest(of_x)].all()):
        return "some units do not see the whole context"
    masks[0] = masks[0][:, of_x]
    features = masks[0].shape[1]
    params = masks[-1].shape[0] // features
    # A feature that more units see, or else whose parameters see fewer, comes earlier; equal ones are not told apart.
    sees = masks[-1].sum(1)[: features * params : params]
    levels = torch.unique(sees - masks[0].sum(0) * (masks[-1].shape[1] + 1), return_inverse=True)[1] + 1
    # At least the level of those that do not see it, or of what these are at least.
    bounds = [levels.repeat_interleave(params)]
    for mask in reversed(masks[1:]):
        bounds.insert(0, torch.where(mask, 0, bounds[0][:, None]).amax(0))
    degrees = [levels.double()]
    for mask, after, bound in zip(masks[:-1], masks[1:], bounds[:-1], strict=True):
        # At least the degree of what it sees, too; among equals, the one that fewer see has more.
        of_level = torch.cat((torch.zeros(1, dtype=torch.double, device="cpu"), torch.unique(degrees[0])))
        least = torch.maximum(torch.where(mask, degrees[-1], 0.0).amax(1), of_level[bound])
        seen = after.sum(0)
        degrees = _ranked([*degrees, least + 1 - (seen + 1) / (seen.max() + 2)])
    degrees.append(degrees[0].repeat_interleave(params))
    rows = [d.long() for d in degrees]
    try:
        plan = MadePlan(rows)
    except ValueError as error:
        return str(error)
    for i, (mask, layer) in enumerate(zip(masks, plan.layers, strict=True)):
        if not torch.equal(mask, layer.mask(mask)):
            return f"the mask of layer {i} is not that of an order of the features"
    return plan


def _rest(of_x: slice) -> slice:
    """The columns that are no features: those before or behind."""
    return slice(of_x.start) if of_x.stop is None else slice(of_x.stop, None)


def with_context(net: Net, context: Tensor, of_x: slice) -> Net:
    """A masked network of features and a context as one of features, which adds the context's products."""
    (weight, bias), *layers = net.layers()
    # The columns of the context are no masked ones: one product per context and not per row.
    # Split and not sliced twice: its gradient is one cat.
    n = context.shape[-1]
    if of_x.stop is None:
        of_context, weight = weight.split_with_sizes((n, weight.shape[1] - n), dim=1)
    else:
        weight, of_context = weight.split_with_sizes((weight.shape[1] - n, n), dim=1)
    adds = [F.linear(context, of_context), *[None] * len(layers)]
    assert isinstance(net.spec.plan, MadePlan)
    return made_net([(weight, bias), *layers], net.spec.plan, net.spec.activation, adds)


def read_layer(mask: Tensor) -> LayerPlan | str:
    """The plan of one layer whose mask this is, ``[n_out, n_in]``, or why there is none."""
    if not is_hard(mask):
        return SOFT
    mask = mask.detach().cpu() != 0
    # An input that fewer units see has more; a unit has the largest of what it sees.
    degrees_in = len(mask) + 1 - mask.sum(0)
    degrees_out = torch.where(mask, degrees_in, 0).amax(1)
    plan = layer_plan(degrees_in.tolist(), degrees_out.tolist())
    return plan if torch.equal(plan.mask(mask), mask) else "its mask is not that of an order"


def read_order(matrix: Tensor) -> Tensor | str:
    """Where each output of a permutation matrix comes from, or that it is none."""
    matrix = matrix.detach().flatten(1)
    order = matrix.argmax(1)
    is_one = torch.equal(F.one_hot(order, len(matrix)).to(matrix), matrix) and len(order.unique()) == len(order)
    return order if is_one else "its permutation is a soft one, a matrix"


def _ranked(degrees: Sequence[Tensor]) -> list[Tensor]:
    """Other numbers in the same order, from 1 on and at least 1 apart."""
    every = torch.unique(torch.cat([*degrees]))
    return [torch.searchsorted(every, d).double() + 1 for d in degrees]

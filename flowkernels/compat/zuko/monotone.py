"""zuko's monotone networks, MNN of NAF and UMNN of UNAF, as maps of a layer: read off the modules in every call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from zuko.flows.neural import MNN, UMNN
from zuko.nn import MLP, Linear, MonotonicLinear, MonotonicMLP, TwoWayELU

from flowkernels.compat.reading.operands import mixed
from flowkernels.nets.reading import hooked, hooked_globally
from flowkernels.ops.monotone_net import MonotoneSpec, run_monotone
from flowkernels.ops.net.activations import name_of

SETTINGS = 32, 7.0, 10.0  # zuko's nodes, greatest log slope and bound, none of which its networks can be told


class MonotoneMap:
    """The map of each feature of a layer by a network of zuko's, as fused layers ask for one: they have no kernel."""

    circle_shift = zero_outside = inverse = False
    bins = 0

    def __init__(self, form: str, activation: str, n_params: int, tensors: Sequence[Tensor]) -> None:
        self.n_params, self.tensors = n_params, tensors
        nodes, log_bound, bound = SETTINGS
        shift = form == "integral"
        self.specs = [
            MonotoneSpec(form, activation, nodes, "integrand", log_bound, shift, bound, inverse)
            for inverse in (False, True)
        ]

    def why_not(self, backend: str) -> str:
        return "its parameters go on into a network"

    def inverted(self) -> MonotoneMap:
        return self  # nobody runs it before `why_not` was asked

    def takes(self, x: Tensor) -> bool:
        """Whether the networks are those of so many features, in the dtype of x; zuko is the one to say why not."""
        sets, weight = {t.shape[0] for t in self.tensors if t.dim() == 3}, self.tensors[0]
        return sets <= {x.shape[-1]} and not mixed(x, weight)

    def __call__(
        self, x: Tensor, params: Tensor, inverse: bool, feature: slice | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``feature``: which of the layer's features these are; None: all."""
        tensors = self.tensors
        if feature is not None and tensors[0].dim() == 3:
            tensors = [t[feature] for t in tensors]
        return run_monotone(self.specs[inverse], x, params, tensors)


def is_network(function: Any) -> bool:
    """Whether the univariate of a layer is one of these networks."""
    return isinstance(function, (MNN, UMNN))


def read(module: Any, shapes: tuple[Sequence[int], ...]) -> MonotoneMap | str:
    """The map of a network, or why no kernel has it."""
    positive = type(module) is MNN
    name = "network" if positive else "integrand"
    net, wanted, linear = module._modules.get(name), MonotonicMLP if positive else MLP, Linear
    linear = MonotonicLinear if positive else Linear
    if type(module) not in (MNN, UMNN) or type(net) is not wanted:
        return f"no kernel for its univariate, {type(module).__name__} of a {type(net).__name__}"
    modules: list[nn.Module] = [*net._modules.values()]  # type: ignore[list-item]
    linears, activations = modules[::2], modules[1::2]
    if any(map(hooked, (module, net, *modules))) or hooked_globally():
        return "its univariate has hooks"
    if any(type(m) is not linear for m in linears) or len(activations) != len(linears) - 1:
        return "its univariate has other layers than linear ones and an activation between them"
    names = {_two_way(a) if positive else name_of(a) for a in activations}
    if len(names) > 1 or None in names or "identity" in names:
        return f"the activation of its univariate is {activations[0]!r}"
    tensors = [m._parameters.get(what) for m in linears for what in ("weight", "bias")]
    if any(t is None for t in tensors):
        return "a layer of its univariate has no weight or no bias as a parameter"
    signal = tensors[0].shape[-1] - 1  # type: ignore[union-attr]
    if tuple(tuple(s) for s in shapes) != (((signal,),) if positive else ((signal,), ())):
        return f"the parameters of its univariate have shapes {shapes}"
    activation = names.pop() if names else "elu"
    return MonotoneMap("positive" if positive else "integral", str(activation), signal + (not positive), tensors)  # type: ignore[arg-type]


def _two_way(activation: Any) -> str | None:
    return "elu" if type(activation) is TwoWayELU and activation.alpha == 1 and not activation.inplace else None


def by_levels(
    y: Tensor, levels: Sequence[Sequence[int]], univariate: MonotoneMap, params_of: Any
) -> tuple[Tensor, Tensor]:
    """The inverse of an autoregressive layer, the features of a level at a time: each root is looked for once."""
    x, ladj = torch.zeros_like(y), y.new_zeros(y.shape[:-1], dtype=torch.promote_types(y.dtype, torch.float32))
    for level in levels:
        params = params_of(x)
        if len(level) == 1:
            d = level[0]
            at: Any = slice(d, d + 1)
            value, part = univariate(y[..., at], params[..., at, :], True, at)
            x = x.slice_scatter(value, -1, d, d + 1)  # a copy: the last pass needs its own x in backward
        else:
            at = torch.tensor(level, device=y.device)
            value, part = univariate(y.index_select(-1, at), params.index_select(-2, at), True, at)
            x = x.index_copy(-1, at, value)
        ladj = ladj + part
    return x, ladj

"""The recurrent autoregressive conditioner."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkernels._arguments import check_tensor, count, generator
from flowkernels.ops._routing import in_transform
from flowkernels.ops.recurrent_inverse.reference import gru_step

from .common import check_context, check_dtypes, start_at
from .degrees import Seed, ordered
from .reading import is_called_as, may_read

_NAME = "nets.RecurrentNet"


class GRU(nn.Module):
    """A layer of `torch.nn.GRU`, with its names of weights: compilers refuse every module that holds one of torch's."""

    def __init__(self, in_features: int, hidden: int) -> None:
        super().__init__()
        self.weight_ih_l0 = nn.Parameter(torch.empty(3 * hidden, in_features))
        self.weight_hh_l0 = nn.Parameter(torch.empty(3 * hidden, hidden))
        self.bias_ih_l0 = nn.Parameter(torch.empty(3 * hidden))
        self.bias_hh_l0 = nn.Parameter(torch.empty(3 * hidden))
        for p in self.parameters():
            nn.init.uniform_(p, -(hidden**-0.5), hidden**-0.5)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """``x [n, B, I]`` and ``state [B, H]`` before it → the states behind each, ``[n, B, H]``."""
        weights = (self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0)
        # cuDNN's has no second derivative.
        with torch.backends.cudnn.flags(enabled=False) if x.is_cuda else contextlib.nullcontext():
            return torch.gru(x, state.unsqueeze(0), weights, True, 1, 0.0, False, False, False)[0]


class RecurrentNet(nn.Module):
    r"""Recurrent autoregressive network: P parameters per feature, from a state that has read the features before it.

    .. math:: s_1 = s + V c, \quad s_i = \mathrm{GRU}([x_{i-1}, c], s_{i-1}), \quad \theta_i = W s_i + b

    with i counting along the order, s a learned state and c the context. ``forward(x, context=None)``: ``x [..., D]``,
    ``context`` broadcasting to ``[..., C]`` → ``[..., D * P]``, feature-major, in the dtype of the weights. The number
    of weights does not depend on D. ``forward`` is one call of `torch.gru` over all features (``gru`` has the names of
    weights of `torch.nn.GRU`); `flowkernels.transforms.Autoregressive` inverts it in D steps of the cell, about the
    work of one pass. Both take D steps one after another: `MADE` has one pass without them.

    Args:
        features: D. With D = 1 the parameters depend on the context only.
        params_per_feature: P.
        hidden: H, the size of the state.
        context: C, the size of the context, 0 for none.
        order: in which features are read: ``"natural"`` (the first one first), ``"reversed"``, ``"random"``, or D
            indices, the feature that sees none first.
        seed: for ``"random"``, a number or a generator on the CPU; default: torch's global generator.

    Raises:
        ValueError: an argument is none of these; ``x`` does not have D features; the context is missing, not wanted, or
            of another shape.
        TypeError: ``x`` or the context is not in the dtype of the weights, outside of autocast.

    Reference:
        Papamakarios, Nalisnick, Rezende, Mohamed, Lakshminarayanan: Normalizing Flows for Probabilistic Modeling and
        Inference, JMLR 2021, arXiv:1912.02762, section 3.1; Oliva et al.: Transformation Autoregressive Networks, ICML
        2018, arXiv:1801.09819.

    Example:
        >>> import torch
        >>> from flowkernels.nets import RecurrentNet
        >>> net = RecurrentNet(4, 2, hidden=16, context=3, order="reversed")
        >>> net(torch.randn(7, 4), torch.randn(3)).shape, net.order.tolist()
        (torch.Size([7, 8]), [3, 2, 1, 0])
    """

    order: Tensor

    def __init__(
        self,
        features: int,
        params_per_feature: int,
        hidden: int = 64,
        *,
        context: int = 0,
        order: str | Sequence[int] | Tensor = "natural",
        seed: Seed = None,
    ) -> None:
        super().__init__()
        self.features = count(_NAME, "features", features)
        self.params_per_feature = count(_NAME, "params_per_feature", params_per_feature)
        self.hidden = count(_NAME, "hidden", hidden)
        self.context_features = count(_NAME, "context", context, least=0)
        self.gru = GRU(1 + context, hidden)
        self.initial_state = nn.Parameter(torch.zeros(hidden))
        self.context_layer = nn.Linear(context, hidden, bias=False) if context else None
        self.final_layer = nn.Linear(hidden, params_per_feature)
        self.steps = ordered(_NAME, order, features, generator(_NAME, seed))  # a compiler cannot read a tensor
        self.register_buffer("order", torch.tensor(self.steps))
        self.register_load_state_dict_post_hook(_reread)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        state = self.start(x, context)
        if self.features == 1:
            states = state.unsqueeze(-2)  # the last feature is read by nobody
        elif x.numel() == 0 or (self.can_step and in_transform((x, context))):
            states = self._unrolled(x, state, context)
        else:
            states = self._in_one_call(x, state, context)
        return self.in_place(self.final_layer(states), -2).flatten(-2)

    def in_steps(self, x: Tensor) -> Tensor:
        """``x [..., D]`` in the order of the steps."""
        return x if self._is_natural() else x.index_select(-1, self.order)

    def in_place(self, x: Tensor, dim: int = -1) -> Tensor:
        """The way back, along a dim."""
        return x if self._is_natural() else x.index_select(dim, self.order.argsort())

    def _is_natural(self) -> bool:
        return self.steps == list(range(self.features))

    def _in_one_call(self, x: Tensor, state: Tensor, context: Tensor | None) -> Tensor:
        lead, n = x.shape[:-1], self.features - 1
        read = self.in_steps(x)[..., :-1].reshape(-1, n).t().unsqueeze(-1)
        if context is not None:
            given = context.expand(*lead, self.context_features).reshape(1, -1, self.context_features)
            read = torch.cat((read, given.expand(n, -1, -1)), -1)
        first = state.reshape(-1, self.hidden)
        states = torch.cat((first.unsqueeze(1), self.gru(read, first).transpose(0, 1)), 1)
        return states.view(*lead, self.features, self.hidden)

    def _unrolled(self, x: Tensor, state: Tensor, context: Tensor | None) -> Tensor:
        """The same, step by step: compilers and transforms of functions know no GRU."""
        states, gates = [state], self.gates_of(context)
        for d in self.steps[:-1]:
            states.append(self.step(x[..., d : d + 1], states[-1], gates))
        return torch.stack(states, -2)

    # ---- one step, for whoever knows the features only one after another ----

    @property
    def can_step(self) -> bool:
        """Whether steps do what ``forward`` does: False where the GRU was replaced or wants to be called."""
        gru = self._modules["gru"]
        return is_called_as(self, RecurrentNet) and type(gru) is GRU and is_called_as(gru, GRU)

    def start(self, x: Tensor, context: Tensor | None) -> Tensor:
        """The state before any feature was read, ``[..., H]`` for ``x [..., D]``, which is only checked."""
        check_tensor(_NAME, "x", x)
        if x.shape[-1:] != (self.features,):
            raise ValueError(f"{_NAME}: x must be [..., {self.features}], got {list(x.shape)}")
        lead = x.shape[:-1]
        check_context(_NAME, context, self.context_features, lead)
        check_dtypes(_NAME, self.gru, self.initial_state, x, context)
        state = self.initial_state
        if context is not None and self.context_layer is not None:
            state = state + self.context_layer(context)
        return state.expand(*lead, self.hidden)

    def gates_of(self, context: Tensor | None) -> Tensor:
        """What the context and the biases add to the gates in every step, ``[..., 3H]``."""
        weight, bias = self.gru.weight_ih_l0, self.gru.bias_ih_l0
        return bias if context is None else nn.functional.linear(context, weight[:, 1:], bias)

    def step(self, value: Tensor, state: Tensor, gates: Tensor) -> Tensor:
        """The state behind one more feature, ``value [..., 1]``."""
        read = gates + value * self.gru.weight_ih_l0[:, 0]
        return gru_step(read, state, self.gru.weight_hh_l0, self.gru.bias_hh_l0)

    def as_op(
        self, x: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
        """What `flowkernels.ops.recurrent_inverse` takes behind z; None where a layer wants to be called."""
        last: Any = self._modules["final_layer"]
        if not self.can_step or type(last) is not nn.Linear or not may_read([last], self.initial_state, x, context):
            return None
        gru, state = self.gru, self.start(x, context)
        cell, of_last = (gru.weight_hh_l0, gru.bias_hh_l0), (last.weight, last.bias)
        return state, self.gates_of(context), gru.weight_ih_l0[:, 0], cell, of_last

    def start_at(self, values: Tensor) -> None:
        """Makes the untrained net return almost ``values [P]`` for every feature, whatever its input."""
        start_at(self.final_layer, values)

    def extra_repr(self) -> str:
        return f"features={self.features}, params_per_feature={self.params_per_feature}, order={self.steps}"


def _reread(net: RecurrentNet, _: object) -> None:
    """After load_state_dict: the order of what was loaded."""
    if not net.order.is_meta:
        net.steps = net.order.tolist()

"""The masked autoregressive conditioner."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkernels._arguments import check_tensor, count, flag, generator, share, widths
from flowkernels.ops.net import LayerPlan, MadePlan, Net, masked_linear, run_made
from flowkernels.ops.net.activations import FUNCTIONS, check_activation, name_of, name_of_class
from flowkernels.ops.net.net import fitting, made_net

from .common import Activation, check_context, check_dtypes, start_at
from .degrees import Order, Seed, hidden_degrees, input_degrees, output_degrees
from .reading import Kept, Walk, linear, no_dropout


def _activation(activation: Activation) -> str:
    """Its name in the table of the ops; torch's functions and module classes go by theirs."""
    if isinstance(activation, str):
        check_activation("nets.MADE", activation)
        return activation
    name = name_of_class(activation) or name_of(activation)
    if name is None:
        raise ValueError(f"nets.MADE: activation must be one of {', '.join(FUNCTIONS)}, got {activation!r}")
    return name


class MaskedLinear(nn.Linear):
    """A layer of `MADE`: weight and bias in `nn.Linear`'s layout, and the degrees of its outputs as a buffer.

    The plan of its mask is given by the `MADE` it is in, which alone knows the degrees of its inputs.
    """

    degrees: Tensor
    plan: LayerPlan

    def __init__(self, in_features: int, degrees: Sequence[int]) -> None:
        super().__init__(in_features, len(degrees))
        self.register_buffer("degrees", torch.tensor(degrees))

    def forward(self, x: Tensor, *, activation: str = "identity", residual: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return masked_linear(x, self.weight, self.bias, self.plan, activation=activation, residual=residual)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        state_dict.pop(prefix + "mask", None)  # nflows stores it beside the degrees that it follows from
        super()._load_from_state_dict(state_dict, prefix, *args)


class _Block(nn.Module):
    """A hidden layer after the first, under nflows' name."""

    def __init__(self, in_features: int, degrees: Sequence[int], activation: str, dropout: float) -> None:
        super().__init__()
        self.activation = activation
        self.linear = MaskedLinear(in_features, degrees)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else None

    @property
    def linears(self) -> list[Any]:
        return [self.linear]

    def forward(self, h: Tensor, context: Tensor | None) -> Tensor:
        h = self.linear(h, activation=self.activation)
        return h if self.dropout is None else self.dropout(h)


class _ResidualBlock(nn.Module):
    def __init__(
        self, middle: Sequence[int], degrees: Sequence[int], context: int, activation: str, dropout: float
    ) -> None:
        super().__init__()
        self.activation = activation
        # The names, and the order in which weights are drawn, are nflows': its state dict loads here.
        if context > 0:
            self.context_layer = nn.Linear(context, len(middle))
        self.linear_layers = nn.ModuleList([MaskedLinear(len(degrees), middle), MaskedLinear(len(middle), degrees)])
        self.dropout = nn.Dropout(dropout) if dropout > 0 else None
        last = self.linear_layers[1]
        nn.init.uniform_(last.weight, -1e-3, 1e-3)  # type: ignore[arg-type]
        nn.init.uniform_(last.bias, -1e-3, 1e-3)  # type: ignore[arg-type]

    @property
    def linears(self) -> list[Any]:
        return list(self.linear_layers)

    def forward(self, h: Tensor, context: Tensor | None) -> Tensor:
        add = None if context is None else self.context_layer(context)
        t = self.linear_layers[0](FUNCTIONS[self.activation](h), activation=self.activation, residual=add)
        if self.dropout is not None:
            t = self.dropout(t)
        return self.linear_layers[1](t, residual=h)


class MADE(nn.Module):
    r"""Masked autoregressive network: P parameters per feature, computed from the features before it in an order.

    :math:`h = W_0 x + b_0 + \mathrm{act}(V_0 c + v_0)`, then per further hidden layer
    :math:`h \leftarrow \mathrm{act}(W\,\mathrm{act}(h) + b)`, or per residual block
    :math:`h \leftarrow h + W''\,\mathrm{dropout}(\mathrm{act}(W'\,\mathrm{act}(h) + b' + V c + v)) + b''`, and a last
    linear layer, every W masked: the function, the parameter names and the masks of nflows' ``MADE``, whose state dict
    loads here. ``forward(x, context=None)``: ``x [..., D]``, ``context`` broadcasting to ``[..., C]`` →
    ``[..., D * P]``, feature-major, in the dtype of the weights. One kernel runs the network; with active dropout,
    hooks or replaced layers it runs layer by layer.

    Degrees are buffers: another order, or other masks, come with the weights that were trained under them.

    Args:
        features: D. With D = 1 the parameters depend on the context only.
        params_per_feature: P.
        hidden: width of each hidden layer, or a number for one; with ``residual`` one equal width per block.
        residual: residual blocks instead of plain layers.
        context: C, the size of the context, 0 for none.
        activation: relu, leaky_relu, elu, gelu, silu, tanh or identity; or torch's function or module class for it.
        dropout: probability, after the activation of each hidden layer but the first, or inside each block.
        order: in which features see each other: ``"natural"`` (the first one first), ``"reversed"``, ``"random"``, or
            D indices, the feature that sees none first; or groups of indices, ``[[0, 1], [2, 3]]``, the features of
            which see those of the groups before theirs: with two a coupling, with K of them a K-way split, whose
            inverse has K levels.
        degrees: of hidden units. ``"sequential"``: 1, 2, ..., D-1, 1, 2, ... (nflows; units beyond a width of D-1 are
            not there, and the last features see only the first ones); ``"even"``: from 1 to D-1 in equal steps, which
            a layer narrower than D-1 wants; ``"random"``: as in the paper.
        seed: for ``"random"``, a number or a generator on the CPU; default: torch's global generator.
        context_activation: False: :math:`h = W_0 x + b_0 + V_0 c + v_0`, a network of [x, c] as zuko's is.

    Raises:
        ValueError: an argument is none of these; the context is missing, not wanted, or of another shape.
        TypeError: ``x`` or the context is not in the dtype of the weights, outside of autocast; ``seed`` or a switch is
            of another type.

    Reference:
        Germain, Gregor, Murray, Larochelle: MADE: Masked Autoencoder for Distribution Estimation, ICML 2015,
        arXiv:1502.03509.

    Example:
        >>> import torch
        >>> from flowkernels.nets import MADE
        >>> net = MADE(4, 2, hidden=(32, 32), context=3, order="reversed")
        >>> net(torch.randn(7, 4), torch.randn(3)).shape, net.order.tolist()
        (torch.Size([7, 8]), [3, 2, 1, 0])
    """

    plan: MadePlan

    def __init__(
        self,
        features: int,
        params_per_feature: int,
        hidden: int | Sequence[int] = (128, 128),
        *,
        residual: bool = False,
        context: int = 0,
        activation: Activation = "relu",
        dropout: float = 0.0,
        order: Order = "natural",
        degrees: str = "sequential",
        seed: Seed = None,
        context_activation: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("features", features), ("params_per_feature", params_per_feature)):
            count("nets.MADE", name, value)
        count("nets.MADE", "context", context, least=0)
        share("nets.MADE", "dropout", dropout)
        residual = flag("nets.MADE", "residual", residual)
        context_activation = flag("nets.MADE", "context_activation", context_activation)
        hidden = widths("nets.MADE", "hidden", hidden, layers=1)
        if residual and len(set(hidden)) != 1:
            raise ValueError(f"nets.MADE: hidden must be equal widths for residual blocks, got {tuple(hidden)}")
        self.features, self.params_per_feature, self.context_features = features, params_per_feature, context
        self.residual, self.activation = residual, _activation(activation)
        self.context_activation = context_activation
        draws = generator("nets.MADE", seed)
        inputs = input_degrees(order, features, draws)
        sizes = [hidden[0]] * (1 + 2 * len(hidden)) if residual else list(hidden)
        rows = [inputs, *hidden_degrees(degrees, inputs, sizes, residual, draws)]
        rows.append(output_degrees(inputs, params_per_feature))

        self.initial_layer = MaskedLinear(features, rows[1])
        if context > 0:
            self.context_layer = nn.Linear(context, sizes[0])
        if residual:
            pairs = zip(rows[2:-1:2], rows[3:-1:2], strict=True)
            blocks = [_ResidualBlock(a, b, context, self.activation, dropout) for a, b in pairs]
        else:
            blocks = [_Block(len(a), b, self.activation, dropout) for a, b in itertools.pairwise(rows[1:-1])]
        self.blocks = nn.ModuleList(blocks)
        self.final_layer = MaskedLinear(sizes[-1], rows[-1])
        self._set_plan(rows)
        self.register_load_state_dict_post_hook(_reread)

    # ---- degrees ----

    @property
    def order(self) -> Tensor:
        """The features from the one that sees none to the one that sees all others, ``[D]``, on the CPU."""
        return self.plan.order

    def shuffle_order(self, seed: Seed = None) -> None:
        """Draws another order of the features, or of their groups; the weights stay (order-agnostic training)."""
        draws, groups = generator("nets.MADE", seed), self.plan.groups
        if len(groups) == self.features:
            inputs = input_degrees("random", self.features, draws)
        else:
            drawn = torch.randperm(len(groups), generator=draws, device="cpu").tolist()
            inputs = input_degrees([groups[i] for i in drawn], self.features, draws)
        hidden = [layer.degrees.tolist() for layer in self._linears()[:-1]]
        self._store([inputs, *hidden, output_degrees(inputs, self.params_per_feature)])

    def resample_masks(self, seed: Seed = None) -> None:
        """Draws other degrees of the hidden units; the weights stay (connectivity-agnostic training)."""
        inputs = self.final_layer.degrees[:: self.params_per_feature].tolist()
        sizes = [layer.out_features for layer in self._linears()[:-1]]
        hidden = hidden_degrees("random", inputs, sizes, self.residual, generator("nets.MADE", seed))
        self._store([inputs, *hidden, output_degrees(inputs, self.params_per_feature)])

    @torch.no_grad()
    def _store(self, rows: Sequence[Sequence[int]]) -> None:
        for layer, row in zip(self._linears(), rows[1:], strict=True):
            layer.degrees.copy_(torch.tensor(row))
        self._set_plan(rows)

    def _set_plan(self, rows: Sequence[Sequence[int]]) -> None:
        self.plan = MadePlan(rows, residual=self.residual)
        for layer, plan in zip(self._linears(), self.plan.layers, strict=True):
            layer.plan = plan

    # ---- the network ----

    def _linears(self) -> list[Any]:
        inner = [layer for block in self.blocks for layer in block.linears]  # type: ignore[union-attr]
        return [self.initial_layer, *inner, self.final_layer]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        net = self.as_net(x, context)
        if net is not None:
            return run_made(x, net)
        first = "identity" if self.residual else self.activation
        h = self.initial_layer(x, activation=first, residual=self._first_add(context))
        for block in self.blocks:
            h = block(h, context)
        return self.final_layer(h)

    def as_net(self, x: Tensor, context: Tensor | None = None) -> Net | None:
        """The network as an op takes it; None where the layers must be called.

        They must be called where one drops units, has hooks or was replaced; and under a compiler, which sees through.
        """
        check_tensor("nets.MADE", "x", x)
        check_context("nets.MADE", context, self.context_features, x.shape[:-1])
        if torch.compiler.is_compiling():
            return None
        first: Any = self._modules["initial_layer"]
        check_dtypes("nets.MADE", first, first._parameters.get("bias"), x, context)
        net = _read(self, self.plan) if type(self).forward is MADE.forward else None
        if net is None or context is None:
            return net
        return made_net(net.layers(), self.plan, self.activation, self.adds_of(net.spec.n, context))

    def adds_of(self, n: int, context: Tensor) -> list[Tensor | None]:
        """What a context adds in each of n layers."""
        adds = [self._first_add(context), *[None] * (n - 1)]
        if self.residual:
            adds[1:-1:2] = [block.context_layer(context) for block in self.blocks]  # type: ignore[operator]
        return adds

    def has_adds(self, n: int) -> list[bool]:
        """In which of n layers a context adds something."""
        return [i == 0 or (self.residual and i % 2 == 1 and i < n - 1) for i in range(n)]

    def read(self, walk: Walk, has_context: bool) -> Net | None:
        """The network without what a context adds, for a reader that keeps it; see `nets.reading.Kept`."""
        return _layers(walk, self, self.plan) if type(self).forward is MADE.forward else None

    def _first_add(self, context: Tensor | None) -> Tensor | None:
        if context is None:
            return None
        add = self.context_layer(context)
        return FUNCTIONS[self.activation](add) if self.context_activation else add

    def start_at(self, values: Tensor) -> None:
        """Makes the untrained net return almost ``values [D * P]`` whatever its input."""
        start_at(self.final_layer, values)

    def extra_repr(self) -> str:
        return f"features={self.features}, params_per_feature={self.params_per_feature}, order={self.order.tolist()}"


def _reread(net: MADE, _: object) -> None:
    """After load_state_dict: masks from the loaded degrees. The outputs of a feature have its degree."""
    rows = [layer.degrees for layer in net._linears()]
    if not any(row.is_meta for row in rows):
        net._set_plan([rows[-1][:: net.params_per_feature].tolist(), *(row.tolist() for row in rows)])


def _layers(walk: Walk, net: MADE, plan: MadePlan) -> Net | None:
    """The network without a context; None where the layers must be called."""
    if not walk.enter(net, attributes=("activation", "plan")):
        return None
    parts: Any = net._modules
    found = [linear(walk, parts["initial_layer"], MaskedLinear)]
    for block in parts["blocks"]._modules.values():
        if not walk.enter(block) or not no_dropout(walk, block._modules.get("dropout")):
            return None
        found += [linear(walk, layer, MaskedLinear) for layer in block.linears]
    found.append(linear(walk, parts["final_layer"], MaskedLinear))
    return None if None in found else fitting(made_net(found, plan, net.activation))


_read = Kept[Net](_layers)

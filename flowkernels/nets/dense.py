"""Dense conditioners: networks that turn the identity part and the context into parameters."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkernels._arguments import count, flag, share, widths
from flowkernels.ops.net import Net, run_residual_net

from .common import Activation, as_function, check_context, check_dtypes, check_sizes, join, start_at
from .dense_reading import Dense, read_plain, read_residual
from .reading import Kept, Walk


class Constant(nn.Module):
    r"""Returns the same learned vector for every row, for a layer that has nothing to be conditioned on.

    ``forward(x, context=None)``: ``x [..., D]`` with any D, even 0 → :math:`v`, ``[..., out_features]``, in the dtype
    of its parameter. It starts at zeros.

    Args:
        in_features: not used; here so that `Constant` is a conditioner factory like the others.
        out_features: length of the vector.

    Raises:
        ValueError: a context is given.

    Reference:
        The unconditional elementwise transform of Durkan et al., arXiv:1906.04032, section 3.

    Example:
        >>> import torch
        >>> from flowkernels.nets import Constant
        >>> Constant(0, 2)(torch.empty(3, 0)).shape
        torch.Size([3, 2])
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        count("nets.Constant", "out_features", out_features)
        self.value = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        check_context("nets.Constant", context, 0, x.shape[:-1])
        return self.value.expand(*x.shape[:-1], -1)

    @torch.no_grad()
    def start_at(self, values: Tensor) -> None:
        """Sets the vector."""
        self.value.copy_(values)


# Width up to which a whole layer as one op beats torch's products in a training step; measured in the op's README.
_WIDEST = 512


class MLP(nn.Module):
    r"""Linear layers with an activation (and dropout) between them.

    :math:`h_0 = [x, c]`, :math:`h_i = \mathrm{dropout}(\mathrm{act}(W_i h_{i-1} + b_i))`, and a last linear layer.
    ``forward(x, context=None)``: ``x [..., in_features]``, ``context`` broadcasting to ``[..., C]`` →
    ``[..., out_features]``, in the dtype of the weights.

    Args:
        in_features: size of ``x``; 0 where there is a context.
        out_features: size of the output.
        hidden: width of each hidden layer; may be empty; a number is the width of one.
        context: C, the size of the context, 0 for none.
        activation: a function of a tensor, a module, a module class, or a name that `nets.MADE` knows.
        dropout: probability, after each activation.

    Raises:
        ValueError: there is no input at all; the context is missing, not wanted, or of another shape; a setting is
            none of these.
        TypeError: ``x`` or the context is not in the dtype of the weights, outside of autocast; ``activation`` is
            nothing that can be called.

    Reference:
        Rumelhart, Hinton, Williams: Learning representations by back-propagating errors, Nature 323, 1986.

    Example:
        >>> import torch
        >>> from flowkernels.nets import MLP
        >>> net = MLP(3, 5, hidden=(32, 32), context=2)
        >>> net(torch.randn(7, 4, 3), torch.randn(4, 2)).shape
        torch.Size([7, 4, 5])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: int | Sequence[int] = (128, 128),
        context: int = 0,
        activation: Activation = F.relu,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes("MLP", in_features, context)
        count("nets.MLP", "out_features", out_features)
        share("nets.MLP", "dropout", dropout)
        self.context_features = context
        self.activation = as_function("nets.MLP", activation)
        sizes = [in_features + context, *widths("nets.MLP", "hidden", hidden)]
        self.hidden_layers = nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(sizes)])
        self.dropout = nn.Dropout(dropout) if dropout > 0 else None
        self.final_layer = nn.Linear(sizes[-1], out_features)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self._check(x, context)
        h = join("nets.MLP", x, context, self.context_features)
        for layer in self.hidden_layers:
            h = self.activation(layer(h))
            if self.dropout is not None:
                h = self.dropout(h)
        return self.final_layer(h)

    def as_net(self, x: Tensor, context: Tensor | None = None) -> Net | None:
        """The network as an op takes it; None where the modules must be called, or better are.

        ``x``: any tensor with the leading dims, dtype and device of the network's input.
        """
        self._check(None, context)
        check_context("nets.MLP", context, self.context_features, x.shape[:-1])
        found = None if type(self).forward is not MLP.forward else _read_mlp(self)
        return None if found is None else found.net(x.shape[:-1], context)

    def read(self, walk: Walk, has_context: bool) -> Dense | None:
        """The network, for a reader that keeps it; see `nets.reading.Kept`."""
        return _mlp(walk, self) if type(self).forward is MLP.forward else None

    def _check(self, x: Tensor | None, context: Tensor | None) -> None:
        layer: Any = self._modules["final_layer"]  # nn.Module's attributes cost a microsecond each
        check_dtypes("nets.MLP", layer, layer._parameters.get("bias"), x, context)

    def start_at(self, values: Tensor) -> None:
        """Makes the untrained net return almost ``values [out_features]`` whatever its input."""
        start_at(self.final_layer, values)


class _ResidualBlock(nn.Module):
    def __init__(
        self, width: int, context: int, activation: Callable[[Tensor], Tensor], dropout: float, batch_norm: bool
    ) -> None:
        super().__init__()
        self.activation = activation
        # The names, and the order in which weights are drawn, are nflows': its state dict loads here, and the same
        # seed gives the same net.
        self.batch_norm_layers = (
            nn.ModuleList([nn.BatchNorm1d(width, eps=1e-3) for _ in range(2)]) if batch_norm else None
        )
        self.context_layer = nn.Linear(context, width) if context > 0 else None
        self.linear_layers = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.dropout = nn.Dropout(dropout) if dropout > 0 else None
        last = self.linear_layers[1]
        nn.init.uniform_(last.weight, -1e-3, 1e-3)  # type: ignore[arg-type]
        nn.init.uniform_(last.bias, -1e-3, 1e-3)  # type: ignore[arg-type]

    def _normed(self, i: int, h: Tensor) -> Tensor:
        if self.batch_norm_layers is None:
            return h
        # BatchNorm1d would take a middle dimension for the channels.
        return self.batch_norm_layers[i](h.reshape(-1, h.shape[-1])).view(h.shape)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        h = self.linear_layers[0](self.activation(self._normed(0, x)))
        h = self.activation(self._normed(1, h))
        if self.dropout is not None:
            h = self.dropout(h)
        h = self.linear_layers[1](h)
        if self.context_layer is not None:
            # glu(cat(h, gate)) without the cat, and with one gate per context instead of one per row.
            h = h * torch.sigmoid(self.context_layer(context))
        return x + h


class ResidualNet(nn.Module):
    r"""The residual network of nflows: same function, same parameter names, any leading dims.

    A linear layer on :math:`[x, c]`, then blocks

    .. math:: h \leftarrow h + g(c) \odot W_2\,\mathrm{dropout}(\mathrm{act}(W_1\,\mathrm{act}(h)))

    with biases, :math:`g(c) = \sigma(W_c c + b_c)` (1 without context), and batch norm before each activation if
    asked for; then a linear layer. The last layer of each block starts near zero.
    ``forward(x, context=None)``: ``x [..., in_features]``, ``context`` broadcasting to ``[..., C]`` →
    ``[..., out_features]``, in the dtype of the weights.

    Args:
        in_features: size of ``x``; 0 where there is a context.
        out_features: size of the output.
        hidden: width of the blocks.
        blocks: number of blocks.
        context: C, the size of the context, 0 for none.
        activation: a function of a tensor, a module, a module class, or a name that `nets.MADE` knows.
        dropout: probability, in every block.
        batch_norm: batch norm in every block, in evaluation one op with the rest. In training mode rows depend on each
            other: products and norms are then ops of their own.

    Raises:
        ValueError: there is no input at all; the context is missing, not wanted, or of another shape; a setting is
            none of these.
        TypeError: ``x`` or the context is not in the dtype of the weights, outside of autocast; ``activation`` is
            nothing that can be called.

    Reference:
        He, Zhang, Ren, Sun: Identity Mappings in Deep Residual Networks, ECCV 2016, arXiv:1603.05027; as in
        Durkan et al., arXiv:1906.04032.

    Example:
        >>> import torch
        >>> from flowkernels.nets import ResidualNet
        >>> net = ResidualNet(3, 5, hidden=32, context=2)
        >>> net(torch.randn(7, 3), torch.randn(2)).shape
        torch.Size([7, 5])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: int = 128,
        blocks: int = 2,
        context: int = 0,
        activation: Activation = F.relu,
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        check_sizes("ResidualNet", in_features, context)
        for name, value in (("out_features", out_features), ("hidden", hidden)):
            count("nets.ResidualNet", name, value)
        count("nets.ResidualNet", "blocks", blocks, least=0)
        share("nets.ResidualNet", "dropout", dropout)
        flag("nets.ResidualNet", "batch_norm", batch_norm)
        self.context_features = context
        function = as_function("nets.ResidualNet", activation)
        self.initial_layer = nn.Linear(in_features + context, hidden)
        self.blocks = nn.ModuleList(
            [_ResidualBlock(hidden, context, function, dropout, batch_norm) for _ in range(blocks)]
        )
        self.final_layer = nn.Linear(hidden, out_features)

    def as_net(self, x: Tensor, context: Tensor | None = None) -> Net | None:
        """The network as an op takes it; None where the modules must be called one by one.

        ``x``: any tensor with the leading dims, dtype and device of the network's input.
        """
        self._check(None, context)
        check_context("nets.ResidualNet", context, self.context_features, x.shape[:-1])
        found = self._read(context)
        return None if found is None or found.wants_layers(x.shape[:-1]) else found.net(x.shape[:-1], context)

    def _read(self, context: Tensor | None) -> Dense | None:
        return None if type(self).forward is not ResidualNet.forward else _read_residual(self, context is not None)

    def read(self, walk: Walk, has_context: bool) -> Dense | None:
        """The network, for a reader that keeps it; see `nets.reading.Kept`."""
        found = read_residual(walk, self, has_context) if type(self).forward is ResidualNet.forward else None
        return None if found is None or found.looks_at_its_batch else found

    def _check(self, x: Tensor | None, context: Tensor | None) -> None:
        layer: Any = self._modules["final_layer"]  # nn.Module's attributes cost a microsecond each
        check_dtypes("nets.ResidualNet", layer, layer._parameters.get("bias"), x, context)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self._check(x, context)
        net = self.as_net(x, context)
        if net is not None:
            return run_residual_net(x, net)
        found = self._read(context)
        y = None if found is None or not found.wants_layers(x.shape[:-1]) else found.run_layers(x, context)
        if y is not None:
            return y
        h = self.initial_layer(join("nets.ResidualNet", x, context, self.context_features))
        for block in self.blocks:
            h = block(h, context)
        return self.final_layer(h)

    def start_at(self, values: Tensor) -> None:
        """Makes the untrained net return almost ``values [out_features]`` whatever its input."""
        start_at(self.final_layer, values)


def _mlp(walk: Walk, net: Any) -> Dense | None:
    if not walk.enter(net, attributes=("activation",)):
        return None
    parts = net._modules
    linears = [*parts["hidden_layers"]._modules.values(), parts["final_layer"]]
    if not walk.enter(parts["hidden_layers"]):
        return None
    return read_plain(walk, net, linears, parts.get("dropout"), widest=_WIDEST)


_read_mlp = Kept[Dense](_mlp)
_read_residual = Kept[Dense](read_residual)

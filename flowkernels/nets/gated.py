"""Flow++'s conditioners: gated residual blocks with layer norms, on features, and on images with attention if asked."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkernels._arguments import count, share

from .common import Activation, as_function, check_dtypes, check_sizes, join, start_at
from .conv import _Images

Function = Callable[[Tensor], Tensor]


def _both_signs(activation: Function, h: Tensor, dim: int) -> Tensor:
    """The activation of h and of -h, side by side: no unit is ever dead."""
    return activation(torch.cat((h, -h), dim))


def _gated(x: Tensor, h: Tensor, dim: int) -> Tensor:
    a, b = h.chunk(2, dim)
    return x + a * torch.sigmoid(b)


def _dropout(p: float) -> nn.Dropout | None:
    return nn.Dropout(p) if p > 0 else None


# ---- features ----


class _GatedBlock(nn.Module):
    def __init__(self, width: int, activation: Function, dropout: float) -> None:
        super().__init__()
        self.activation = activation
        self.linear_layer = nn.Linear(2 * width, width)
        self.gate_layer = nn.Linear(2 * width, 2 * width)
        self.norm_layer = nn.LayerNorm(width)
        self.dropout = _dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        h = _both_signs(self.activation, self.linear_layer(_both_signs(self.activation, x, -1)), -1)
        return self.norm_layer(_gated(x, self.gate_layer(h if self.dropout is None else self.dropout(h)), -1))


class GatedNet(nn.Module):
    r"""Flow++'s conditioner on features: gated residual blocks, each with a layer norm behind it.

    A linear layer on :math:`[x, c]`, then blocks

    .. math:: h \leftarrow \mathrm{norm}(h + a \odot \sigma(b)), \quad
        [a, b] = W_2\,\mathrm{act}_\pm(W_1\,\mathrm{act}_\pm(h)), \quad
        \mathrm{act}_\pm(h) = [\mathrm{act}(h), \mathrm{act}(-h)]

    with biases, then a linear layer. ``forward(x, context=None)``: ``x [..., in_features]``, ``context`` broadcasting
    to ``[..., C]`` → ``[..., out_features]``, in the dtype of the weights.

    Args:
        in_features: size of ``x``; 0 where there is a context.
        out_features: size of the output.
        hidden: width of the blocks.
        blocks: their number.
        context: C, the size of the context, 0 for none.
        activation: a function of a tensor, a module, a module class, or a name that `nets.MADE` knows.
        dropout: probability, before every gate.

    Raises:
        ValueError: there is no input at all; the context is missing, not wanted, or of another shape; a setting is
            none of these.
        TypeError: ``x`` or the context is not in the dtype of the weights, outside of autocast; ``activation`` is
            nothing that can be called.

    Reference:
        Ho, Chen, Srinivas, Duan, Abbeel: Flow++, ICML 2019, arXiv:1902.00275, section 3.3; on features here.

    Example:
        >>> import torch
        >>> from flowkernels.nets import GatedNet
        >>> GatedNet(3, 5, hidden=16, blocks=2, context=2)(torch.randn(7, 3), torch.randn(2)).shape
        torch.Size([7, 5])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: int = 64,
        blocks: int = 2,
        context: int = 0,
        activation: Activation = F.elu,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes("GatedNet", in_features, context)
        for name, value in (("out_features", out_features), ("hidden", hidden)):
            count("nets.GatedNet", name, value)
        count("nets.GatedNet", "blocks", blocks, least=0)
        share("nets.GatedNet", "dropout", dropout)
        self.context_features = context
        function = as_function("nets.GatedNet", activation)
        self.activation = function
        self.initial_layer = nn.Linear(in_features + context, hidden)
        self.blocks = nn.ModuleList([_GatedBlock(hidden, function, dropout) for _ in range(blocks)])
        self.final_layer = nn.Linear(hidden, out_features)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        check_dtypes("nets.GatedNet", self.final_layer, self.final_layer.weight, x, context)
        h = self.initial_layer(join("nets.GatedNet", x, context, self.context_features))
        for block in self.blocks:
            h = block(h)
        return self.final_layer(h)

    def start_at(self, values: Tensor) -> None:
        """Makes the untrained net return almost ``values [out_features]`` whatever its input."""
        start_at(self.final_layer, values)


# ---- images ----


class _ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of each pixel, ``[N, C, H, W]``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class _GatedConvBlock(nn.Module):
    def __init__(self, width: int, activation: Function, dropout: float) -> None:
        super().__init__()
        self.activation = activation
        self.conv_layer = nn.Conv2d(2 * width, width, 3, padding=1)
        self.gate_layer = nn.Conv2d(2 * width, 2 * width, 1)
        self.norm_layer = _ChannelNorm(width)
        self.dropout = _dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        h = _both_signs(self.activation, self.conv_layer(_both_signs(self.activation, x, 1)), 1)
        return self.norm_layer(_gated(x, self.gate_layer(h if self.dropout is None else self.dropout(h)), 1))


def _positions(height: int, width: int, channels: int, like: Tensor) -> Tensor:
    """Sines and cosines of row and column, ``[C, H, W]``: attention by itself does not know where a pixel is."""
    quarter = -(-channels // 4)
    rates = torch.exp(-math.log(1e4) / quarter * torch.arange(quarter, dtype=like.dtype, device=like.device))
    rows = torch.arange(height, dtype=like.dtype, device=like.device)[None, :, None] * rates[:, None, None]
    columns = torch.arange(width, dtype=like.dtype, device=like.device)[None, None, :] * rates[:, None, None]
    shape = (quarter, height, width)
    waves = [w.expand(shape) for w in (rows.sin(), rows.cos(), columns.sin(), columns.cos())]
    return torch.cat(waves)[:channels]


class _GatedAttention(nn.Module):
    """Attention of every pixel to all, by several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv_layer = nn.Conv2d(width, 3 * width, 1)
        self.gate_layer = nn.Conv2d(width, 2 * width, 1)
        self.norm_layer = _ChannelNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        N, C, H, W = x.shape
        qkv = self.qkv_layer(x + _positions(H, W, C, x)).reshape(N, 3, self.heads, C // self.heads, H * W)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        # By hand: torch's own attention has no second derivative.
        weights = torch.softmax(q @ k.transpose(-1, -2) * (C // self.heads) ** -0.5, -1)
        seen = (weights @ v).transpose(-1, -2).reshape(N, C, H, W)
        return self.norm_layer(_gated(x, self.gate_layer(seen), 1))


class GatedConvNet(_Images):
    r"""Flow++'s conditioner on images: gated convolutions, with attention between them if asked, and layer norms.

    A convolution of 3 x 3 on :math:`[x, c]`, then blocks

    .. math:: h \leftarrow \mathrm{norm}(h + a \odot \sigma(b)), \quad
        [a, b] = W_2 * \mathrm{act}_\pm(W_1 * \mathrm{act}_\pm(h)), \quad
        \mathrm{act}_\pm(h) = [\mathrm{act}(h), \mathrm{act}(-h)]

    with :math:`W_1` of 3 x 3, :math:`W_2` of 1 x 1 and a norm over the channels of each pixel, behind each of them one
    of the same kind whose :math:`[a, b]` are of the attention of every pixel to all, if there are heads; then a
    convolution of 3 x 3. ``forward(x, context=None)``: shapes and the context as in `ConvNet`.

    Args:
        in_channels, out_channels: of x and of the output.
        hidden: channels of the blocks.
        blocks: their number.
        context, context_dims, activation: as in `ConvNet`.
        dropout: probability, before every gate.
        attention: number of heads, which divides ``hidden``; 0 for no attention.

    Raises:
        ValueError: ``x`` does not have ``in_channels``; the context is missing, not wanted, or of another shape; a
            setting is none of these.
        TypeError: ``x`` or the context is not in the dtype of the weights, outside of autocast; ``activation`` is
            nothing that can be called.

    Reference:
        Ho, Chen, Srinivas, Duan, Abbeel: Flow++, ICML 2019, arXiv:1902.00275, section 3.3.

    Example:
        >>> import torch
        >>> from flowkernels.nets import GatedConvNet
        >>> GatedConvNet(3, 6, hidden=8, blocks=1, attention=2)(torch.randn(5, 3, 4, 4)).shape
        torch.Size([5, 6, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int = 32,
        blocks: int = 2,
        context: int = 0,
        context_dims: int = 1,
        activation: Activation = F.elu,
        dropout: float = 0.0,
        attention: int = 0,
    ) -> None:
        super().__init__(in_channels, out_channels, hidden, context, context_dims)
        count("nets.GatedConvNet", "blocks", blocks, least=0)
        share("nets.GatedConvNet", "dropout", dropout)
        count("nets.GatedConvNet", "attention", attention, least=0)
        if attention and hidden % attention:
            raise ValueError(f"nets.GatedConvNet: attention must divide hidden = {hidden}, got {attention}")
        self.activation = as_function("nets.GatedConvNet", activation)
        self.attention = attention
        self.initial_layer = nn.Conv2d(in_channels, hidden, 3, padding=1)
        layers: list[nn.Module] = []
        for _ in range(blocks):
            layers.append(_GatedConvBlock(hidden, self.activation, dropout))
            if attention:
                layers.append(_GatedAttention(hidden, attention))
        self.blocks = nn.ModuleList(layers)
        self.final_layer = nn.Conv2d(hidden, out_channels, 3, padding=1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        images, given = self._images(x, context)
        h = self._first(self.initial_layer, images, given, False)
        for block in self.blocks:
            h = block(h)
        y = self.final_layer(h).contiguous()
        return y.view(*x.shape[:-3], *y.shape[1:])

    def start_at(self, values: Tensor) -> None:
        """Makes the untrained net return almost ``values [out_channels]`` at every pixel."""
        start_at(self.final_layer, values)

"""PixelCNN: a stack of masked convolutions, and what walks it a pixel at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkernels._arguments import choice, count

from .common import Activation, as_function, channels_last, start_at
from .conv import _Images
from .masked_conv import MaskedConv2d, first_of_group, strips
from .reading import is_called_as

Function = Callable[[Tensor], Tensor]
Layers = Callable[[MaskedConv2d, Tensor], Tensor]  # how a layer is run: on whole images, or at one pixel
BLOCKS = ("residual", "gated")


class _ResidualBlock(nn.Module):
    """PixelRNN's: to half of the channels, a masked convolution, and back."""

    def __init__(self, width: int, kernel_size: int, groups: int, activation: Function) -> None:
        super().__init__()
        self.activation = activation
        half = max(width // 2, 1)
        self.layers = nn.ModuleList(
            [
                MaskedConv2d(width, half, 1, "B", groups),
                MaskedConv2d(half, half, kernel_size, "B", groups),
                MaskedConv2d(half, width, 1, "B", groups),
            ]
        )

    def forward(self, x: Tensor, run: Layers) -> Tensor:
        h = x.clone() if getattr(self.activation, "inplace", False) else x
        for layer in self.layers:
            h = run(layer, self.activation(h))  # type: ignore[arg-type]
        return x + h

    def convs(self) -> list[Any]:
        return list(self.layers)


class _GatedBlock(nn.Module):
    """A masked convolution whose tanh is gated by another one."""

    def __init__(self, width: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        self.conv_layer = MaskedConv2d(width, width, kernel_size, "B", groups)
        self.gate_layer = MaskedConv2d(width, width, kernel_size, "B", groups)
        self.last_layer = MaskedConv2d(width, width, 1, "B", groups)

    def forward(self, x: Tensor, run: Layers) -> Tensor:
        h = torch.tanh(run(self.conv_layer, x)) * torch.sigmoid(run(self.gate_layer, x))
        return x + run(self.last_layer, h)

    def convs(self) -> list[Any]:
        return [self.conv_layer, self.gate_layer, self.last_layer]


class PixelCNN(_Images):
    r"""A masked convolutional network: what it says of a number depends on the pixels before it, row by row.

    A first convolution with mask A, blocks with mask B, and two convolutions of 1 x 1 (`MaskedConv2d`, in as many
    groups of channels as x has). The blocks are residual,

    .. math:: h \leftarrow h + W_3 * \mathrm{act}(W_2 * \mathrm{act}(W_1 * \mathrm{act}(h)))

    with :math:`W_1, W_3` of 1 x 1 and half of the channels between them, or gated,
    :math:`h \leftarrow h + W_3 * (\tanh(W_1 * h) \odot \sigma(W_2 * h))`. There is one stack: as in the first of the
    papers, pixels above to the right of a cone are not seen. ``forward(x, context=None)``: ``x [..., in_channels, H,
    W]`` → ``[..., out_channels, H, W]``; outputs ``[c P, (c + 1) P)`` of ``out_channels`` = P in_channels are of
    channel c. The context as in `ConvNet`. `steps` computes the same a pixel at a time, each once.

    Args:
        in_channels, out_channels: of x and of the output.
        hidden: channels of the blocks.
        blocks: their number.
        kernel_size: of the blocks; an odd number.
        first_kernel_size: of the first layer; an odd number.
        block: ``"residual"`` or ``"gated"``.
        context, context_dims, activation: as in `ConvNet`; an activation of single numbers.

    Raises:
        ValueError: ``x`` does not have ``in_channels``; the context is missing, not wanted, or of another shape; a
            setting is none of these.
        TypeError: ``x`` or the context is not in the dtype of the weights, outside of autocast; ``activation`` is
            nothing that can be called.

    Reference:
        van den Oord, Kalchbrenner, Kavukcuoglu: Pixel Recurrent Neural Networks, ICML 2016, arXiv:1601.06759; van den
        Oord et al.: Conditional Image Generation with PixelCNN Decoders, NeurIPS 2016, arXiv:1606.05328 (the gates).

    Example:
        >>> import torch
        >>> from flowkernels.nets import PixelCNN
        >>> net = PixelCNN(3, 3 * 2, hidden=12, blocks=1, context=2)
        >>> net(torch.randn(5, 3, 8, 8), torch.randn(5, 2)).shape
        torch.Size([5, 6, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int = 64,
        blocks: int = 4,
        kernel_size: int = 3,
        first_kernel_size: int = 7,
        block: str = "residual",
        context: int = 0,
        context_dims: int = 1,
        activation: Activation = F.relu,
    ) -> None:
        super().__init__(in_channels, out_channels, hidden, context, context_dims)
        count("nets.PixelCNN", "blocks", blocks, least=0)
        self.block = choice("nets.PixelCNN", "block", block, BLOCKS)
        self.activation = as_function("nets.PixelCNN", activation)
        groups = in_channels
        self.initial_layer = MaskedConv2d(in_channels, hidden, first_kernel_size, "A", groups)
        self.blocks = nn.ModuleList(
            [
                _GatedBlock(hidden, kernel_size, groups)
                if block == "gated"
                else _ResidualBlock(hidden, kernel_size, groups, self.activation)
                for _ in range(blocks)
            ]
        )
        self.kernel_size = kernel_size
        self.hidden_layer = MaskedConv2d(hidden, hidden, 1, "B", groups)
        self.final_layer = MaskedConv2d(hidden, out_channels, 1, "B", groups)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        images, given = self._images(x, context)
        h = self._first(self.initial_layer, images, given, False)
        y = self._behind(h, lambda layer, h: layer(h)).contiguous()
        return y.view(*x.shape[:-3], *y.shape[1:])

    def _behind(self, h: Tensor, run: Layers) -> Tensor:
        """What follows the first layer."""
        for block in self.blocks:
            h = block(h, run)
        for layer in (self.hidden_layer, self.final_layer):
            h = run(layer, self.activation(h))
        return h

    @property
    def can_step(self) -> bool:
        """Whether `steps` says what ``forward`` would: no hooks, and no layers in place of its own."""
        blocks: Any = self.blocks
        kind = _GatedBlock if self.block == "gated" else _ResidualBlock
        if not is_called_as(self, PixelCNN) or not all(is_called_as(b, kind) for b in blocks):
            return False
        layers = [
            self.initial_layer,
            *(layer for b in blocks for layer in b.convs()),
            self.hidden_layer,
            self.final_layer,
        ]
        return all(is_called_as(layer, MaskedConv2d) for layer in layers)

    def steps(self, like: Tensor, context: Tensor | None = None) -> Steps:
        """Walks images of the shape of ``like [..., in_channels, H, W]``, whose pixels are yet to be found."""
        images, given = self._images(like, context)
        if given is not None and self.context_dims == 3:
            given = self.context_layer(channels_last(given))  # type: ignore[misc]
        return Steps(self, images.shape, given)

    def start_at(self, values: Tensor) -> None:
        """Makes the untrained net return almost ``values [out_channels]`` at every pixel."""
        start_at(self.final_layer, values)


class Steps:
    """A `PixelCNN` on images that are found number by number: row by row, in a row by pixels, their channels in turn.

    `params` is what the network says of the next number, asked for once, and `put` takes it. Every layer keeps what it
    has seen, so that a step computes one group of channels of one pixel in each.
    """

    def __init__(self, net: PixelCNN, shape: torch.Size, context: Tensor | None) -> None:
        n, self.channels, self.height, self.width = shape
        self.net = net
        self.strips = strips([m for m in net.modules() if isinstance(m, MaskedConv2d)], n, self.width)
        hidden = net.initial_layer.out_channels
        self.context = None if context is None else context.expand(n, hidden, *shape[-2:])
        self.at = (0, 0, 0)  # row, column, channel
        self._begin_row()

    def params(self) -> Tensor:
        """``[N, P]``, of the next number."""
        i, j, c = self.at
        first = self.net.initial_layer
        h = self.strips[first].pixel(c)
        if self.context is not None:
            begin, end = (first_of_group(first.out_channels, self.channels, g) for g in (c, c + 1))
            h = h + self.context[:, begin:end, i, j]
        return self.net._behind(h, self._run)

    def put(self, value: Tensor) -> None:
        """Takes the number ``[N]``."""
        self.strips[self.net.initial_layer].see(value[:, None])
        i, j, c = self.at
        if c + 1 < self.channels:
            self.at = (i, j, c + 1)
            return
        for strip in self.strips.values():
            strip.end_pixel()
        if j + 1 < self.width:
            self.at = (i, j + 1, 0)
            return
        for strip in self.strips.values():
            strip.end_row()
        self.at = (i + 1, 0, 0)
        if i + 1 < self.height:
            self._begin_row()

    def _begin_row(self) -> None:
        for strip in self.strips.values():
            strip.begin_row()

    def _run(self, layer: Any, h: Tensor) -> Tensor:
        strip = self.strips[layer]
        strip.see(h)
        return strip.pixel(self.at[2])

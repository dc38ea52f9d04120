"""MaCow's conditioner: a convolution of the rows above, and convolutions of 1 x 1."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkernels._arguments import widths

from .common import Activation, as_function, channels_last, start_at
from .conv import _Images
from .reading import is_called_as


class RowConvNet(_Images):
    r"""MaCow's conditioner: what it says of a row of pixels depends on a few rows above it.

    .. math:: h_0 = x, \quad h_i = \mathrm{act}(W_i * h_{i-1} + b_i), \quad \mathrm{out} = W * h_L + b

    with :math:`W_1` a kernel of k rows and w columns that ends in the row above its pixel, and the others of 1 x 1. The
    last layer starts near zero.
    ``forward(x, context=None)``: shapes and the context as in `ConvNet`. `row` is the same of one row, given those
    above it.

    Args:
        in_channels, out_channels: of x and of the output.
        hidden: channels of the hidden layers, at least one; a number is one.
        kernel_size: (k, w), w an odd number.
        context, context_dims, activation: as in `ConvNet`.

    Raises:
        ValueError: ``x`` does not have ``in_channels``; the context is missing, not wanted, or of another shape; a
            setting is none of these.
        TypeError: ``x`` or the context is not in the dtype of the weights, outside of autocast; ``activation`` is
            nothing that can be called.

    Reference:
        Ma, Kong, Zhang, Hovy: MaCow: Masked Convolutional Generative Flow, NeurIPS 2019, arXiv:1902.04208.

    Example:
        >>> import torch
        >>> from flowkernels.nets import RowConvNet
        >>> net, x = RowConvNet(3, 6, hidden=8), torch.randn(5, 3, 8, 8)
        >>> torch.allclose(net(x)[:, :, 4], net.row(x[:, :, :4])[:, :, 0], atol=1e-6)
        True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int | Sequence[int] = 64,
        kernel_size: Sequence[int] = (2, 5),
        context: int = 0,
        context_dims: int = 1,
        activation: Activation = F.elu,
    ) -> None:
        sizes = widths("nets.RowConvNet", "hidden", hidden, layers=1)
        super().__init__(in_channels, out_channels, sizes[0], context, context_dims)
        kernel = widths("nets.RowConvNet", "kernel_size", kernel_size, layers=1)
        if len(kernel) != 2 or kernel[1] % 2 == 0:
            raise ValueError(f"nets.RowConvNet: kernel_size must be (rows, odd columns), got {kernel_size!r:.60}")
        self.activation = as_function("nets.RowConvNet", activation)
        self.initial_layer = nn.Conv2d(in_channels, sizes[0], kernel, padding=(0, kernel[1] // 2))
        self.hidden_layers = nn.ModuleList([nn.Conv2d(a, b, 1) for a, b in itertools.pairwise(sizes)])
        self.final_layer = nn.Conv2d(sizes[-1], out_channels, 1)
        self.start_at(torch.zeros(out_channels))

    @property
    def rows(self) -> int:
        """k: how many rows above are seen."""
        return self.initial_layer.kernel_size[0]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        images, given = self._images(x, context)
        above = F.pad(images[:, :, :-1], (0, 0, self.rows, 0))
        h = self.initial_layer(channels_last(above))
        y = self._behind(h, self.of_context(given)).contiguous()
        return y.view(*x.shape[:-3], *y.shape[1:])

    @property
    def can_step(self) -> bool:
        """Whether `row` says what ``forward`` would: no hooks, and its own first layer."""
        return is_called_as(self, RowConvNet) and is_called_as(self.initial_layer, nn.Conv2d)

    def of_context(self, given: Tensor | None) -> Tensor | None:
        """What images of context, or the numbers of one, add to the first layer."""
        if given is None or self.context_dims == 1:
            return given
        return self.context_layer(channels_last(given))  # type: ignore[misc]

    def row(self, above: Tensor, more: Tensor | None = None) -> Tensor:
        """The output ``[N, out_channels, 1, W]`` of a row, given those above it, ``[N, in_channels, n, W]``.

        ``more``: what the context adds to the row in the first layer, ``[N, hidden, 1, W]`` or ``[N, hidden, 1, 1]``.
        """
        layer, k = self.initial_layer, self.rows
        n = min(k, above.shape[2])
        if n == 0:
            h = layer.bias.view(1, -1, 1, 1).expand(above.shape[0], -1, 1, above.shape[3])  # type: ignore[union-attr]
            h = h.clone()  # an activation in place would write to the bias
        else:
            weight, across = layer.weight[:, :, k - n :], (0, layer.kernel_size[1] // 2)
            h = F.conv2d(above[:, :, -n:], weight, layer.bias, padding=across)
        return self._behind(h, more)

    def _behind(self, h: Tensor, more: Tensor | None) -> Tensor:
        h = h if more is None else h + more
        for layer in (*self.hidden_layers, self.final_layer):
            h = layer(self.activation(h))
        return h

    def start_at(self, values: Tensor) -> None:
        """Makes the untrained net return almost ``values [out_channels]`` at every pixel."""
        start_at(self.final_layer, values)

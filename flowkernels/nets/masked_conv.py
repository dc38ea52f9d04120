"""Convolutions that see only the pixels before theirs, on whole images and a pixel at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkernels._arguments import choice, count, flag

from .common import check_dtypes

_NAME = "nets.MaskedConv2d"
MASKS = ("A", "B")


def first_of_group(channels: int, groups: int, group: int) -> int:
    """The first channel of a group, where channel o of so many is in group o * groups // channels."""
    return -(-group * channels // groups)


class MaskedConv2d(nn.Conv2d):
    r"""A convolution whose pixels see only those before them, row by row, and of their own pixel the channels before.

    Channels of input and output are in ``channel_groups`` equal parts, e.g. red, green and blue: channel o of n is in
    group ``o * channel_groups // n``. At its own pixel a channel sees those of earlier groups and, with mask ``"B"``,
    those of its own. A first layer has mask ``"A"``, so that no number sees itself, all others have ``"B"``.
    ``x [N, in_channels, H, W]`` → ``[N, out_channels, H, W]``, in the dtype of the weights. Weight and bias are in
    `torch.nn.Conv2d`'s layout; masked weights have no effect and no gradient, and rows below are not computed at all.

    Args:
        in_channels, out_channels: of x and of the output.
        kernel_size: an odd number k, of k x k.
        mask: ``"A"`` or ``"B"``.
        channel_groups: see above.
        bias: whether there is one.

    Raises:
        ValueError: an argument breaks its contract, or x is of another shape.
        TypeError: x is not in the dtype of the weights, outside of autocast.

    Reference:
        van den Oord, Kalchbrenner, Kavukcuoglu: Pixel Recurrent Neural Networks, ICML 2016, arXiv:1601.06759.

    Example:
        >>> import torch
        >>> from flowkernels.nets import MaskedConv2d
        >>> layer, x = MaskedConv2d(1, 4, 3, mask="A"), torch.zeros(1, 1, 3, 3)
        >>> x[..., 1, 1] = 1.0
        >>> (layer(x) != layer(torch.zeros_like(x))).any(1).int()[0]
        tensor([[0, 0, 0],
                [0, 0, 1],
                [1, 1, 1]], dtype=torch.int32)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        mask: str = "B",
        channel_groups: int = 1,
        bias: bool = True,
    ) -> None:
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "channel_groups": channel_groups}
        for name, value in sizes.items():
            count(_NAME, name, value)
        k = count(_NAME, "kernel_size", kernel_size)
        if k % 2 == 0:
            raise ValueError(f"{_NAME}: kernel_size must be odd, got {k}")
        self.reach = k // 2  # rows above that are seen, and columns at either side
        super().__init__(in_channels, out_channels, k, padding=k // 2, bias=flag(_NAME, "bias", bias))
        self.mask = choice(_NAME, "mask", mask, MASKS)
        self.channel_groups = channel_groups

    def kernel(self) -> Tensor:
        """The weight behind its mask, without the rows below, ``[out, in, k // 2 + 1, k]``."""
        r, groups, on = self.reach, self.channel_groups, self.weight.device
        row, column = torch.arange(r + 1, device=on)[:, None], torch.arange(2 * r + 1, device=on)
        before, here = (row < r) | (column < r), (row == r) & (column == r)
        of_output, of_input = (torch.arange(n, device=on) * groups // n for n in (self.out_channels, self.in_channels))
        seen = of_input < of_output[:, None] if self.mask == "A" else of_input <= of_output[:, None]
        return torch.where(before | (here & seen[..., None, None]), self.weight[:, :, : r + 1], 0)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        check_dtypes(_NAME, self, self._parameters.get("weight"), x, None)
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels or 0 in x.shape[-2:]:
            raise ValueError(f"{_NAME}: x must be [N, {self.in_channels}, H, W] with pixels, got {list(x.shape)}")
        return convolved(x, self.kernel(), self.bias)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size[0]}, mask={self.mask!r}"
        return f"{text}, channel_groups={self.channel_groups}"


def convolved(x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x [N, C, H, W]`` by a kernel ``[out, in, r + 1, 2r + 1]`` that ends at the row of its pixel."""
    r = kernel.shape[-2] - 1
    return F.conv2d(x, kernel, bias, padding=r)[..., : x.shape[-2], :]


class Strip:
    """One layer pixel by pixel: what it has seen of the rows above, of its own row, and of its own pixel.

    Nothing is written in place, so that gradients flow through what is kept.
    """

    def __init__(self, layer: MaskedConv2d, n: int, width: int) -> None:
        kernel, self.layer, self.width = layer.kernel(), layer, width
        r = self.reach = layer.reach
        self.above = kernel[:, :, :r]
        # A column of the product below: pixels to the left, from the farthest one on, then the pixel itself.
        row = kernel[:, :, r, : r + 1].transpose(1, 2).flatten(1).mT
        bias = kernel.new_zeros(layer.out_channels) if layer.bias is None else layer.bias
        ends = [first_of_group(layer.out_channels, layer.channel_groups, g) for g in range(layer.channel_groups + 1)]
        self.sizes = [b - a for a, b in itertools.pairwise(ends)]
        self.weights = row.split(self.sizes, 1)  # of each group
        self.bias = bias.view(-1, 1).expand(n, -1, width)
        self.rows: list[Tensor] = []  # the last ones above, [N, C, W]
        self.columns: list[Tensor] = []  # of this row, [N, C]
        self.parts: list[Tensor] = []  # of this pixel, [N, channels of a group]
        self.from_above: list[Sequence[Tensor]] = []  # of each group and pixel, [N, channels]

    def begin_row(self) -> None:
        """What the rows above give to all pixels of a row, in one convolution."""
        n, found = len(self.rows), self.bias
        if n > 0:
            kernel = self.above[:, :, self.reach - n :]
            found = F.conv2d(torch.stack(self.rows, 2), kernel, self.layer.bias, padding=(0, self.reach))[:, :, 0]
        self.from_above = [part.unbind(2) for part in found.split(self.sizes, 1)]

    def see(self, part: Tensor) -> None:
        """Takes the channels of the next group of this pixel, ``[N, channels]``."""
        self.parts.append(part)

    def pixel(self, group: int) -> Tensor:
        """The output's channels of a group at this pixel, ``[N, channels]``, of what has been seen."""
        at = len(self.columns)
        left = min(self.reach, at)
        found, seen = self.from_above[group][at], [*self.columns[at - left :], *self.parts]
        if not seen:
            return found.clone()  # a view of the bias, which an activation in place would write to
        given = seen[0] if len(seen) == 1 else torch.cat(seen, 1)
        first, weights = (self.reach - left) * self.layer.in_channels, self.weights[group]
        if given.shape[1] < len(weights):
            weights = weights[first : first + given.shape[1]]
        return torch.addmm(found, given, weights)

    def end_pixel(self) -> None:
        self.columns.append(self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts, 1))
        self.parts = []

    def end_row(self) -> None:
        if self.reach > 0:
            self.rows = [*self.rows, torch.stack(self.columns, 2)][-self.reach :]
        self.columns = []


def strips(layers: Sequence[MaskedConv2d], n: int, width: int) -> dict[MaskedConv2d, Strip]:
    """A strip for each layer."""
    return {layer: Strip(layer, n, width) for layer in layers}

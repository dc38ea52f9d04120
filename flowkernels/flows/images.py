"""What flows on images share, and those on signals have too."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from flowkernels._arguments import count, widths
from flowkernels.nets import ConvNet
from flowkernels.transforms import Affine, Composite, ImageCoupling, MultiScale, Squeeze, Transform, Univariate
from flowkernels.transforms.composite import parts

from .coupling import Net


def check_image(flow: str, shape: Sequence[int], **at_least_one: int) -> tuple[int, int, int]:
    """``shape`` as (C, H, W); raises unless it is one, and the other settings are at least 1."""
    channels, height, width = check_shape(flow, shape, ("C", "H", "W"), **at_least_one)
    return channels, height, width


def check_shape(flow: str, shape: Sequence[int], names: Sequence[str], **at_least_one: int) -> tuple[int, ...]:
    """``shape``, with a number for each of the names."""
    for name, value in at_least_one.items():
        count(f"flows.{flow}", name, value)
    if not isinstance(shape, Sequence) or len(shape) != len(names):
        raise ValueError(f"flows.{flow}: shape must be ({', '.join(names)}), got {shape!r:.60}")
    return widths(f"flows.{flow}", "shape", shape)


def image_coupling(
    mask: Sequence[bool] | Tensor, net: Net, univariate: Univariate, event_dims: int = 3
) -> ImageCoupling:
    """A layer that starts near the identity."""
    return ImageCoupling(mask, functools.partial(near_identity, net, univariate), univariate, event_dims)


def halves(channels: int, first: bool = False) -> list[bool]:
    """The mask of half of the channels, the second half or the first."""
    return [(i < channels // 2) == first for i in range(channels)]


def multi_scale(
    before: Iterable[Transform], levels: Sequence[list[Transform]], shape: Sequence[int], leave: int | None = None
) -> Composite:
    """The levels, each a list of layers, behind what comes ``before`` them."""
    return Composite([*parts("Composite", before), MultiScale([Composite(level) for level in levels], shape, leave)])


def squeezed_levels(
    shape: tuple[int, int, int], levels: int, steps: int, step: Callable[[int], list[Transform]], context: int
) -> list[list[Transform]]:
    """Glow's levels, each a squeeze and steps ``step(channels)``; what is done after all but the last is a normal
    distribution whose mean and scale are a convolution of the rest: one more coupling, that starts as the identity."""
    scales = []
    for level in range(levels):
        shape = Squeeze().latent_shape(shape)  # type: ignore[assignment]
        channels, height, width = shape
        layers: list[Transform] = [Squeeze()]
        for _ in range(steps):
            layers += step(channels)
        if level + 1 < levels:
            prior = functools.partial(ConvNet, hidden=(), context=context)
            layers.append(image_coupling(halves(channels), prior, Affine("exp")))
            shape = channels // 2, height, width
        scales.append(layers)
    return scales


def near_identity(net: Net, univariate: Univariate, in_channels: int, out_channels: int) -> nn.Module:
    """A network of these sizes, at the numbers of the identity where it can start at some."""
    module = net(in_channels, out_channels)
    start_at = getattr(module, "start_at", None)
    # The identity is far out on a sigmoid, where its gradient is nearly zero; Glow starts it at logits of zero.
    if start_at is not None and getattr(univariate, "scale", None) != "sigmoid":
        start_at(torch.tensor(univariate.identity).repeat_interleave(out_channels // len(univariate.identity)))
    return module

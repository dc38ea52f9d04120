"""Real NVP, on features and on images."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import nn

from flowkernels._arguments import count, flag, widths
from flowkernels.distributions import Base, StandardNormal
from flowkernels.nets import Activation, ConvResNet
from flowkernels.nets.degrees import Seed
from flowkernels.transforms import (
    Affine,
    BatchNorm,
    Composite,
    Coupling,
    ImageCoupling,
    Squeeze,
    Transform,
    Univariate,
    checkerboard,
)
from flowkernels.transforms.composite import parts

from .coupling import Net, coupling_layers
from .flow import Flow
from .images import check_image, halves, image_coupling, multi_scale


class RealNVP(Flow):
    r"""Real NVP: affine coupling layers, on features, or on images at several scales.

    :math:`\log p(x) = \log p_\mathrm{base}(z) + \sum_i \mathrm{ladj}_i` in nats.

    With ``features`` a number D, layer i of ``transforms`` scales and shifts the features j with i + j odd, given the
    others. With ``features`` the shape (C, H, W) of an image, each of ``levels`` but the last has ``transforms``
    couplings with alternating checkerboards, a `flowkernels.transforms.Squeeze`, and as many couplings with alternating
    halves of the channels, then half of the channels are done (`flowkernels.transforms.MultiScale`, which also says how
    the latent lies in its row of C H W numbers); the last has one checkerboard coupling more and no squeeze.

    An untrained model is nearly the identity, or, with other ``linear`` layers than ``"lu"``, nearly a permutation of
    the features. Shapes, dtypes and context: see `Flow`; of images, a context is a vector.

    Args:
        features: D, or (C, H, W) with H and W divisible by two to the power of ``levels`` - 1.
        context: C, the number of context features the layers see (after ``embedding``), 0 for none.
        transforms: couplings, see above; by default 6, on images 3.
        hidden: widths of the hidden layers of `flowkernels.nets.MLP`, a number for one, by default (128, 128); on
            images one equal number of channels per block of `flowkernels.nets.ConvResNet`, by default (64, 64, 64, 64).
        levels: of images.
        univariate: the map of one element; ``Affine("tanh")`` by default, the paper's bounded scale.
        linear: of features, not of images: a layer before each coupling and one after the last, ``"lu"``,
            ``"lu_permutation"``, ``"permutation"``, ``"reverse"`` or None; see `flowkernels.flows.CouplingFlow`.
        seed: of what ``linear`` draws, a number or a generator on the CPU.
        batch_norm: a `flowkernels.transforms.BatchNorm` behind every coupling, and batch norm in the blocks.
        activation: of the networks.
        preprocessing: transforms that come first, e.g. ``[Dequantize(256, 3), Logit(0.05, event_dims=3)]``.
        base: density of the latent; standard normal by default.
        embedding: a module applied to the context first.

    Raises:
        ValueError: ``features``, ``transforms`` or ``levels`` is less than 1, or a shape does not fit ``levels``;
            ``hidden`` does not fit the network; ``linear`` is unknown, or given of images.

    Reference:
        Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, ICLR 2017, arXiv:1605.08803.

    Example:
        >>> import torch
        >>> from flowkernels.flows import RealNVP
        >>> RealNVP(6, transforms=4, hidden=(32,)).log_prob(torch.randn(10, 6)).shape
        torch.Size([10])
        >>> flow = RealNVP((1, 8, 8), levels=2, hidden=(16, 16))
        >>> flow.log_prob(torch.rand(10, 1, 8, 8)).shape, flow.sample(5).shape, flow.encode(flow.sample(5)).shape
        (torch.Size([10]), torch.Size([5, 1, 8, 8]), torch.Size([5, 64]))
    """

    def __init__(
        self,
        features: int | Sequence[int],
        context: int = 0,
        transforms: int | None = None,
        hidden: int | Sequence[int] | None = None,
        *,
        levels: int = 2,
        univariate: Univariate | None = None,
        batch_norm: bool = False,
        linear: str | None = None,
        seed: Seed = None,
        activation: Activation = F.relu,
        preprocessing: Sequence[Transform] = (),
        base: Base | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        univariate = Affine("tanh") if univariate is None else univariate
        count("flows.RealNVP", "context", context, least=0)
        flag("flows.RealNVP", "batch_norm", batch_norm)
        if isinstance(features, str) or not isinstance(features, Sequence):
            features = size = count("flows.RealNVP", "features", features)
            hidden, transforms = (128, 128) if hidden is None else hidden, 6 if transforms is None else transforms
            couplings = coupling_layers(
                "RealNVP", features, context, transforms, hidden, univariate, activation=activation, linear=linear,
                seed=seed,
            )  # fmt: skip
            transform = Composite([*parts("Composite", preprocessing), *_normed(couplings, features, -1, batch_norm)])
        else:
            transforms, hidden = 3 if transforms is None else transforms, (64,) * 4 if hidden is None else hidden
            sizes = widths("flows.RealNVP", "hidden", hidden)
            if len(set(sizes)) != 1:
                raise ValueError(f"flows.RealNVP: hidden must be equal numbers of channels, got {sizes}")
            if linear is not None:
                raise ValueError(f"flows.RealNVP: linear must be None on images, got {linear!r:.60}")
            shape = check_image("RealNVP", features, levels=levels, transforms=transforms)
            net = functools.partial(
                ConvResNet, hidden=sizes[0], blocks=len(sizes), context=context, activation=activation,
                batch_norm=batch_norm,
            )  # fmt: skip
            scales = _scales(shape, levels, transforms, univariate, net, batch_norm)
            transform, size = multi_scale(preprocessing, scales, shape), math.prod(shape)
        super().__init__(transform, StandardNormal(size) if base is None else base, embedding)


def _scales(
    shape: tuple[int, int, int], levels: int, transforms: int, univariate: Univariate, net: Net, batch_norm: bool
) -> list[list[Transform]]:
    """The layers of every level."""
    channels, height, width = shape
    scales = []
    for level in range(levels):
        last = level == levels - 1
        boards = [checkerboard(channels, height, width, i) for i in range(transforms + last)]
        layers = _normed([image_coupling(b, net, univariate) for b in boards], channels, 1, batch_norm)
        if not last:
            channels, height, width = Squeeze().latent_shape((channels, height, width))
            masks = [halves(channels, first=i % 2 == 1) for i in range(transforms)]
            layers += [
                Squeeze(),
                *_normed([image_coupling(m, net, univariate) for m in masks], channels, 1, batch_norm),
            ]
            channels //= 2
        scales.append(layers)
    return scales


def _normed(layers: Sequence[Transform], features: int, channel_dim: int, batch_norm: bool) -> list[Transform]:
    """With a batch normalisation behind every coupling, if wanted."""
    normed: list[Transform] = []
    for layer in layers:
        normed.append(layer)
        if batch_norm and isinstance(layer, (Coupling, ImageCoupling)):
            normed.append(BatchNorm(features, channel_dim=channel_dim))
    return normed

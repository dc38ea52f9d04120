"""Flow++."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from flowkernels._arguments import count, generator
from flowkernels.distributions import Base, StandardNormal
from flowkernels.nets import Activation, Constant, GatedConvNet, GatedNet
from flowkernels.nets.degrees import Seed
from flowkernels.transforms import (
    ActNorm,
    Composite,
    Dequantize,
    Inverse,
    Logit,
    LUConv1x1,
    MixtureAffine,
    Squeeze,
    Transform,
    VariationalDequantize,
    checkerboard,
)

from .coupling import Net, coupling_layers
from .flow import Flow
from .images import check_image, halves, image_coupling, multi_scale

_MARGIN = 0.05  # of the logit behind dequantisation, as in the authors' code


class FlowPP(Flow):
    r"""Flow++: couplings by mixtures of logistics, gated networks, and learned noise for whole numbers.

    :math:`\log p(x) = \log p_\mathrm{base}(z) + \sum_i \mathrm{ladj}_i` in nats. Each coupling maps
    (`flowkernels.ops.MixtureAffine`)

    .. math:: y = e^{a} \operatorname{logit}\Big(\sum_k \pi_k\,\sigma\big((x - m_k)\,e^{-s_k}\big)\Big) + b

    with all numbers from a gated residual network of the other part. With ``features`` a number D, layer i of
    ``transforms`` maps the features j with i + j odd, given the others (`flowkernels.nets.GatedNet`). With ``features``
    the shape (C, H, W) of an image there are couplings with alternating checkerboards, a
    `flowkernels.transforms.Squeeze`, couplings with alternating halves of the channels, and more with checkerboards
    (`flowkernels.nets.GatedConvNet`), as many as ``transforms`` says; an actnorm and an invertible 1 x 1 convolution
    come before each.

    With ``levels`` the data are whole numbers, and ``log_prob`` is an unbiased estimate of a lower bound of their
    log-probability (`flowkernels.transforms.VariationalDequantize`): noise is added that a flow of such couplings makes
    given the numbers, then comes the logit. Shapes, dtypes and context: see `Flow`; of images, a context is a vector.

    The paper's model of CIFAR-10 is ``FlowPP((3, 32, 32), hidden=96, blocks=10, components=32, attention=4,
    dropout=0.2, levels=256, noise_transforms=4)``; the defaults are smaller. Train in batches large enough for the
    first one to set the actnorms well.

    Args:
        features: D, or (C, H, W) with even H and W.
        context: C, the number of context features the layers see (after ``embedding``), 0 for none.
        transforms: couplings, by default 6; on images three numbers, see above, by default (4, 2, 3).
        hidden: width, or channels, of the blocks of the networks.
        blocks: their number in each network.
        components: K.
        attention: heads of the attention in each block, on images; 0 for none.
        dropout: probability, in every block.
        levels: how many whole numbers there are, e.g. 256; 0: the data are real numbers.
        dequantization: ``"variational"``, or ``"uniform"`` for noise that is not learned; for ``levels``.
        noise_transforms, noise_blocks: couplings of the noise, and blocks in their networks.
        activation: of the networks.
        seed: of the 1 x 1 convolutions' rotations, a number or a generator on the CPU.
        base: density of the latent; standard normal by default.
        embedding: a module applied to the context first.

    Raises:
        ValueError: a number is less than 1 where there must be one, ``levels`` is 1, ``dequantization`` is unknown, a
            shape has odd sides, or there is attention on features.

    Reference:
        Ho, Chen, Srinivas, Duan, Abbeel: Flow++: Improving Flow-Based Generative Models with Variational Dequantization
        and Architecture Design, ICML 2019, arXiv:1902.00275.

    Example:
        >>> import torch
        >>> from flowkernels.flows import FlowPP
        >>> FlowPP(3, transforms=2, hidden=8).sample(5).shape
        torch.Size([5, 3])
        >>> flow = FlowPP((1, 4, 4), transforms=(1, 1, 1), hidden=8, blocks=1, components=4, levels=4)
        >>> loss = -flow.log_prob(torch.randint(4, (10, 1, 4, 4))).mean()
        >>> loss.backward()
        >>> flow.sample(5).shape
        torch.Size([5, 1, 4, 4])
    """

    def __init__(
        self,
        features: int | Sequence[int],
        context: int = 0,
        transforms: int | Sequence[int] | None = None,
        hidden: int = 64,
        *,
        blocks: int = 2,
        components: int = 8,
        attention: int = 0,
        dropout: float = 0.0,
        levels: int = 0,
        dequantization: str = "variational",
        noise_transforms: int = 2,
        noise_blocks: int = 2,
        activation: Activation = F.elu,
        seed: Seed = None,
        base: Base | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        sizes = {"context": context, "attention": attention, "levels": levels}
        for name, value in sizes.items():
            count("flows.FlowPP", name, value, least=0)
        for name, value in (("noise_transforms", noise_transforms), ("noise_blocks", noise_blocks)):
            count("flows.FlowPP", name, value)
        if levels == 1:
            raise ValueError("flows.FlowPP: levels must be 0 or at least 2, got 1")
        if dequantization not in ("variational", "uniform"):
            raise ValueError(f'flows.FlowPP: dequantization must be "variational" or "uniform", got {dequantization!r}')
        univariate = MixtureAffine(components)
        settings: dict[str, Any] = {"hidden": hidden, "activation": activation, "dropout": dropout}
        if isinstance(features, str) or not isinstance(features, Sequence):
            D = size = count("flows.FlowPP", "features", features)
            if attention:
                raise ValueError(f"flows.FlowPP: attention must be 0 on features, got {attention}")
            on_features = functools.partial(_on_features, D, univariate, settings)
            steps = on_features(context, 6 if transforms is None else transforms, blocks)
            noise = functools.partial(on_features, D, noise_transforms, noise_blocks)
            layers = [*_dequantized(levels, dequantization, noise, 1), *steps]
            transform = Composite(layers)
        else:
            shape = check_image("FlowPP", features)
            if shape[1] % 2 or shape[2] % 2:
                raise ValueError(f"flows.FlowPP: features must have even H and W, got {list(shape)}")
            given = (4, 2, 3) if transforms is None else transforms
            if not isinstance(given, Sequence) or len(given) != 3:
                raise ValueError(f"flows.FlowPP: transforms must be three numbers on images, got {given!r:.60}")
            settings["attention"] = attention
            net = functools.partial(GatedConvNet, blocks=blocks, context=context, **settings)
            steps = _on_images(shape, given, net, univariate, generator("flows.FlowPP", seed))
            of_noise = functools.partial(
                GatedConvNet, blocks=noise_blocks, context=shape[0], context_dims=3, **settings
            )

            def noise() -> list[Transform]:
                return [image_coupling(checkerboard(*shape, i), of_noise, univariate) for i in range(noise_transforms)]

            before = _dequantized(levels, dequantization, noise, 3)
            transform, size = multi_scale(before, [steps], shape), math.prod(shape)
        super().__init__(transform, StandardNormal(size) if base is None else base, embedding)


def _dequantized(levels: int, how: str, noise: Callable[[], list[Transform]], event_dims: int) -> list[Transform]:
    """What makes numbers of the line of whole ones."""
    if not levels:
        return []
    if how == "uniform":
        first: Transform = Dequantize(levels, event_dims)
    else:
        # Training takes the noise's inverse: here the direction without a root.
        first = VariationalDequantize(Inverse(Composite(noise())), levels, event_dims)
    return [first, Logit(_MARGIN, event_dims=event_dims)]


def _on_features(
    features: int, univariate: MixtureAffine, settings: dict[str, Any], context: int, transforms: Any, blocks: int
) -> list[Transform]:
    net: Net = functools.partial(GatedNet, blocks=blocks, context=context, **settings)
    if features == 1 and not context:
        net = Constant
    return coupling_layers("FlowPP", features, context, transforms, settings["hidden"], univariate, net=net)


def _on_images(
    shape: tuple[int, int, int],
    transforms: Sequence[int],
    net: Net,
    univariate: MixtureAffine,
    draws: torch.Generator | None,
) -> list[Transform]:
    """Couplings with checkerboards, behind a squeeze with halves of the channels, and with checkerboards."""
    first, second, third = (count("flows.FlowPP", "transforms", n, least=0) for n in transforms)
    layers: list[Transform] = []

    def add(masks: Iterable[Any]) -> None:
        for mask in masks:
            channels = len(mask)
            mixing = [ActNorm(channels, channel_dim=1), LUConv1x1(channels, seed=draws)]
            layers.extend([*mixing, image_coupling(mask, net, univariate)])

    add(checkerboard(*shape, i) for i in range(first))
    layers.append(Squeeze())
    channels, height, width = Squeeze().latent_shape(shape)
    add(halves(channels, first=i % 2 == 1) for i in range(second))
    add(checkerboard(channels, height, width, i) for i in range(third))
    return layers

"""MaCow."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import nn

from flowkernels._arguments import count, generator, widths
from flowkernels.distributions import Base, StandardNormal
from flowkernels.nets import Activation, ConvNet, RowConvNet
from flowkernels.nets.degrees import Seed
from flowkernels.transforms import ActNorm, Affine, LUConv1x1, RowAutoregressive, Transform, Univariate

from .flow import Flow
from .images import check_image, halves, image_coupling, multi_scale, near_identity, squeezed_levels


class MaCow(Flow):
    r"""MaCow: masked convolutions from all four sides, between the steps of a `Glow`.

    :math:`\log p(x) = \log p_\mathrm{base}(z) + \sum_i \mathrm{ladj}_i` in nats. Levels, with half of the channels done
    after each but the last, are those of `Glow`. A step is ``units`` times

    ================================================  ================================================================
    `flowkernels.transforms.ActNorm`                  a scale and a shift per channel, set by the first training batch
    `flowkernels.transforms.RowAutoregressive`        pixels given those above them, then pixels given those below
    `flowkernels.transforms.ActNorm`                  once more
    `flowkernels.transforms.RowAutoregressive`        pixels given those to the left, then those to the right
    ================================================  ================================================================

    and then a step of Glow: an actnorm, a `flowkernels.transforms.LUConv1x1` and a
    `flowkernels.transforms.ImageCoupling`. Densities take one pass, samples a row or a column at a time in the masked
    convolutions, each computed once. Shapes, dtypes and context: see `Flow`; a context is a vector.

    The authors split the channels of a level in more than two parts; here they are halved. Train in batches large
    enough for the first one to set the actnorms well.

    Args:
        shape: (C, H, W) of an image, H and W divisible by two to the power of ``levels``.
        context: C, the number of context features the layers see (after ``embedding``), 0 for none.
        levels: squeezes.
        steps: per level.
        units: per step.
        kernel_size: (k, w) of `flowkernels.nets.RowConvNet`: k rows above a pixel, w columns.
        row_hidden: channels of its hidden layers, a number for one.
        hidden: channels of the hidden layers of the coupling's `flowkernels.nets.ConvNet`, a number for one.
        univariate: the map of one element; ``Affine("sigmoid")`` by default, as in the authors' code, which starts with
            scales of 0.88; ``Affine("tanh")`` or ``RQS`` start as the identity.
        seed: of the rotations, a number or a generator on the CPU.
        activation: of the networks.
        preprocessing: transforms that come first, e.g. ``[Dequantize(256, 3)]``.
        base: density of the latent; standard normal by default.
        embedding: a module applied to the context first.

    Raises:
        ValueError: a number is less than 1 where there must be one; ``shape`` does not fit ``levels``.

    Reference:
        Ma, Kong, Zhang, Hovy: MaCow: Masked Convolutional Generative Flow, NeurIPS 2019, arXiv:1902.04208.

    Example:
        >>> import torch
        >>> from flowkernels.flows import MaCow
        >>> flow = MaCow((1, 8, 8), levels=2, steps=1, units=1, row_hidden=8, hidden=8)
        >>> loss = -flow.log_prob(torch.rand(10, 1, 8, 8)).mean()
        >>> loss.backward()
        >>> flow.sample(5).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        shape: Sequence[int],
        context: int = 0,
        levels: int = 3,
        steps: int = 4,
        units: int = 2,
        *,
        kernel_size: Sequence[int] = (2, 5),
        row_hidden: int | Sequence[int] = 48,
        hidden: int | Sequence[int] = (128, 128),
        univariate: Univariate | None = None,
        seed: Seed = None,
        activation: Activation = F.elu,
        preprocessing: Sequence[Transform] = (),
        base: Base | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        size = check_image("MaCow", shape, levels=levels, steps=steps, units=units)
        count("flows.MaCow", "context", context, least=0)
        map_ = Affine("sigmoid") if univariate is None else univariate
        draws = generator("flows.MaCow", seed)
        settings = {"context": context, "activation": activation}
        net = functools.partial(ConvNet, hidden=widths("flows.MaCow", "hidden", hidden), **settings)
        of_rows = functools.partial(RowConvNet, hidden=row_hidden, kernel_size=kernel_size, **settings)
        maker = functools.partial(near_identity, of_rows, map_)

        def step(channels: int) -> list[Transform]:
            layers: list[Transform] = []
            for directions in (("down", "up"), ("right", "left")) * units:
                layers.append(ActNorm(channels, channel_dim=1))
                layers += [RowAutoregressive(channels, maker, map_, direction) for direction in directions]
            mixing = [ActNorm(channels, channel_dim=1), LUConv1x1(channels, seed=draws)]
            return [*layers, *mixing, image_coupling(halves(channels), net, map_)]

        transform = multi_scale(preprocessing, squeezed_levels(size, levels, steps, step, context), size)
        super().__init__(transform, StandardNormal(math.prod(size)) if base is None else base, embedding)

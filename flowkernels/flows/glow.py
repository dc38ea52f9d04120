"""Glow."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import nn

from flowkernels._arguments import count, generator, widths
from flowkernels.distributions import Base, DiagonalNormal, StandardNormal
from flowkernels.nets import Activation, ConvNet
from flowkernels.nets.degrees import Seed
from flowkernels.transforms import ActNorm, Affine, LUConv1x1, Permutation, Transform, Univariate

from .flow import Flow
from .images import check_image, halves, image_coupling, multi_scale, squeezed_levels


class Glow(Flow):
    r"""Glow: levels of steps, each an actnorm, a mixing of the channels and a coupling.

    :math:`\log p(x) = \log p_\mathrm{base}(z) + \sum_i \mathrm{ladj}_i` in nats. Each of ``levels`` begins with a
    `flowkernels.transforms.Squeeze`; then come ``steps`` times

    ===========================================  =====================================================================
    `flowkernels.transforms.ActNorm`             a scale and a shift per channel, set by the first training batch
    ``permutation``                              `flowkernels.transforms.LUConv1x1`, or a fixed order of the channels
    `flowkernels.transforms.ImageCoupling`       the second half of the channels, given the first, by a
                                                 `flowkernels.nets.ConvNet`
    ===========================================  =====================================================================

    and, but for the last level, half of the channels are done (`flowkernels.transforms.MultiScale`, which also says how
    the latent lies in its row of C H W numbers), as a normal distribution whose mean and scale are a convolution of the
    other half: one more coupling, that starts as the identity. Shapes, dtypes and context: see `Flow`; a context is a
    vector.

    Train in batches large enough for the first one to set the actnorms well.

    Args:
        shape: (C, H, W) of an image, H and W divisible by two to the power of ``levels``.
        context: C, the number of context features the layers see (after ``embedding``), 0 for none.
        levels: L of the paper.
        steps: K of the paper, steps per level.
        hidden: channels of the hidden layers of `flowkernels.nets.ConvNet`, a number for one; the paper has (512, 512).
        univariate: the map of one element: ``Affine("sigmoid")`` by default, as in the paper's code, which starts with
            scales of 0.88; ``Affine("additive")`` for additive coupling; ``Affine("tanh")`` or ``RQS`` start as the
            identity.
        permutation: ``"lu"``, ``"shuffle"`` (a random order, drawn once) or ``"reverse"``.
        classes: number of classes, 0 for none. The context is then one-hot, and every class has its own mean and scale
            of the latent; the layers see it only where ``context`` is the same number.
        seed: of the rotations and orders, a number or a generator on the CPU.
        activation: of the networks.
        preprocessing: transforms that come first, e.g. ``[Dequantize(256, 3)]``.
        base: density of the latent; standard normal by default, with ``classes`` a
            `flowkernels.distributions.DiagonalNormal` by class.
        embedding: a module applied to the context first.

    Raises:
        ValueError: ``levels`` or ``steps`` is less than 1, ``shape`` does not fit ``levels``, ``permutation`` is
            unknown, ``context`` is neither 0 nor ``classes`` beside classes, or there are classes and a ``base``.

    Reference:
        Kingma, Dhariwal: Glow: Generative Flow with Invertible 1x1 Convolutions, NeurIPS 2018, arXiv:1807.03039.

    Example:
        >>> import torch
        >>> from flowkernels.flows import Glow
        >>> flow = Glow((1, 8, 8), levels=2, steps=2, hidden=(16, 16), classes=10)
        >>> one_hot = torch.eye(10)
        >>> loss = -flow.log_prob(torch.rand(10, 1, 8, 8), one_hot).mean()
        >>> loss.backward()
        >>> flow.sample(5, one_hot, temperature=0.7).shape
        torch.Size([5, 10, 1, 8, 8])
    """

    def __init__(
        self,
        shape: Sequence[int],
        context: int = 0,
        levels: int = 3,
        steps: int = 8,
        hidden: int | Sequence[int] = (128, 128),
        *,
        univariate: Univariate | None = None,
        permutation: str = "lu",
        classes: int = 0,
        seed: Seed = None,
        activation: Activation = F.relu,
        preprocessing: Sequence[Transform] = (),
        base: Base | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        shape = check_image("Glow", shape, levels=levels, steps=steps)
        for name, value in (("context", context), ("classes", classes)):
            count("flows.Glow", name, value, least=0)
        hidden = widths("flows.Glow", "hidden", hidden)
        if permutation not in ("lu", "shuffle", "reverse"):
            raise ValueError(f'flows.Glow: permutation must be "lu", "shuffle" or "reverse", got {permutation!r}')
        if classes and (context not in (0, classes) or base is not None):
            given = f"{context} and {base}"
            raise ValueError(f"flows.Glow: beside classes context must be 0 or classes and base None, got {given}")
        univariate = Affine("sigmoid") if univariate is None else univariate
        net = functools.partial(ConvNet, hidden=hidden, context=context, activation=activation)
        draws = generator("flows.Glow", seed)

        def step(channels: int) -> list[Transform]:
            mixing = _mixing(permutation, channels, draws)
            return [ActNorm(channels, channel_dim=1), mixing, image_coupling(halves(channels), net, univariate)]

        scales = squeezed_levels(shape, levels, steps, step, context)
        size = math.prod(shape)
        if base is None:
            base = DiagonalNormal(size, context=classes) if classes else StandardNormal(size)
        transform = multi_scale(preprocessing, scales, shape)
        super().__init__(transform, base, embedding, context_to_base=classes > 0 and context == 0)


def _mixing(permutation: str, channels: int, generator) -> Transform:
    if permutation == "lu":
        return LUConv1x1(channels, seed=generator)
    if permutation == "shuffle":
        return Permutation.random(channels, generator, channel_dim=1)
    return Permutation.reverse(channels, channel_dim=1)

"""MintNet."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from flowkernels._arguments import count
from flowkernels.distributions import Base, StandardNormal
from flowkernels.transforms import Mint, Squeeze, Transform

from .base_context import check_taken
from .flow import Flow
from .images import check_image, multi_scale


class MintNet(Flow):
    r"""MintNet: pairs of masked convolutional networks, of which one looks back and the other ahead.

    :math:`\log p(x) = \log p_\mathrm{base}(z) + \sum_i \mathrm{ladj}_i` in nats, each ladj exact from the diagonal of a
    triangular Jacobian (`flowkernels.transforms.Mint`). Each of ``levels`` has ``transforms`` pairs, and between two
    levels is a `flowkernels.transforms.Squeeze`; no channels leave before the end. An untrained model is nearly the
    identity. Samples are a fixed-point iteration a layer. Shapes and dtypes: see `Flow`; the layers take no context.

    Args:
        shape: (C, H, W) of an image, H and W divisible by two to the power of ``levels`` - 1.
        transforms: pairs per level.
        latents: hidden channels for each channel.
        levels: one more than there are squeezes.
        kernel_size: of all kernels, an odd number.
        steps: of the inverse of a layer, at most; None: see `flowkernels.transforms.Mint`.
        preprocessing: transforms that come first, e.g. ``[Dequantize(256, 3), Logit(1e-6, event_dims=3)]``.
        base: density of the latent; standard normal by default.
        embedding: a module applied to the context first, for a base that takes one.

    Raises:
        ValueError: a number is less than 1; ``shape`` does not fit ``levels``; a context is given and the base is one
            without.

    Reference:
        Song, Meng, Ermon: MintNet: Building Invertible Neural Networks with Masked Convolutions, NeurIPS 2019,
        arXiv:1907.07945.

    Example:
        >>> import torch
        >>> from flowkernels.flows import MintNet
        >>> flow = MintNet((1, 4, 4), transforms=1, latents=4, levels=2)
        >>> loss = -flow.log_prob(torch.rand(10, 1, 4, 4)).mean()
        >>> loss.backward()
        >>> flow.sample(5).shape
        torch.Size([5, 1, 4, 4])
    """

    def __init__(
        self,
        shape: Sequence[int],
        transforms: int = 4,
        latents: int = 16,
        levels: int = 2,
        *,
        kernel_size: int = 3,
        steps: int | None = None,
        preprocessing: Sequence[Transform] = (),
        base: Base | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        event = check_image("MintNet", shape, levels=levels, transforms=transforms)
        count("flows.MintNet", "latents", latents)
        layers: list[Transform] = []
        at: tuple[int, ...] = event
        for level in range(levels):
            if level > 0:
                layers.append(Squeeze())
                at = Squeeze().latent_shape(at)
            for reverse in (False, True) * transforms:
                layers.append(Mint(at, latents, kernel_size, reverse, steps))
        transform = multi_scale(preprocessing, [layers], event)
        base = StandardNormal(math.prod(event)) if base is None else base
        super().__init__(transform, base, embedding, context_to_base=True)

    def embed(self, context: Tensor | None) -> Tensor | None:
        """The context as the base sees it."""
        return check_taken("flows.MintNet", self.base, super().embed(context))

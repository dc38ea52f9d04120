"""Reordering of features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowkernels._arguments import count, generator, permutation

from .base import Transform, check_channels, check_layout, zero_ladj


class Permutation(Transform):
    r"""Reorders the features: ``y[..., i] = x[..., order[i]]``, or the channels of images.

    ``x [..., D]`` of any dtype, ``ladj [...]`` is zero nats; with ``channel_dim=1`` images ``x [N, D, ...]``,
    ``ladj [N]``. ``context`` is ignored.

    Args:
        order: D distinct indices from 0 to D-1. It is stored in the ``state_dict``, so a random order comes back
            with the weights that were trained under it.
        channel_dim: -1 for features, 1 for the channels of images.

    Raises:
        ValueError: ``order`` is not a permutation; ``x`` does not have D features or channels.

    Reference:
        Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, ICLR 2017, arXiv:1605.08803.

    Example:
        >>> import torch
        >>> from flowkernels.transforms import Permutation
        >>> Permutation([2, 0, 1])(torch.tensor([10.0, 20.0, 30.0]))
        (tensor([30., 10., 20.]), tensor(0.))
    """

    order: Tensor
    inverse_order: Tensor

    rearranges = True

    def __init__(self, order: Sequence[int] | Tensor, channel_dim: int = -1) -> None:
        super().__init__()
        indices = permutation("transforms.Permutation", "order", order)
        check_layout("transforms.Permutation", len(indices), channel_dim)
        self.features, self.channel_dim = len(indices), channel_dim
        inverse = sorted(range(len(indices)), key=indices.__getitem__)
        # Both are stored: an inverse worked out at construction would be stale after load_state_dict.
        self.register_buffer("order", torch.tensor(indices))
        self.register_buffer("inverse_order", torch.tensor(inverse))

    @classmethod
    def reverse(cls, features: int, channel_dim: int = -1) -> Permutation:
        """The last feature first."""
        return cls(range(count("transforms.Permutation", "features", features) - 1, -1, -1), channel_dim)

    @classmethod
    def random(cls, features: int, seed: int | torch.Generator | None = None, channel_dim: int = -1) -> Permutation:
        """A random order; from ``seed`` (a number or a generator), or from torch's global generator."""
        count("transforms.Permutation", "features", features)
        draws = generator("transforms.Permutation", seed)
        device = None if draws is None else draws.device  # whatever torch.set_default_device says
        return cls(torch.randperm(features, generator=draws, device=device), channel_dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._reorder(x, self.order)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._reorder(y, self.inverse_order)

    def _reorder(self, x: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        check_channels("transforms.Permutation", x, self.features, self.channel_dim)
        return x.index_select(self.channel_dim, order), zero_ladj(x, 1 if self.channel_dim == -1 else x.dim() - 1)

    def extra_repr(self) -> str:
        return f"features={self.features}, channel_dim={self.channel_dim}"

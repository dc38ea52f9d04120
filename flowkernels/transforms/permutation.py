"""Reordering of features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Transform, check_features, zero_ladj


class Permutation(Transform):
    r"""Reorders the features: ``y[..., i] = x[..., order[i]]``.

    ``x [..., D]`` of any dtype; ``ladj [...]`` is zero nats. ``context`` is ignored.

    Args:
        order: D distinct indices from 0 to D-1. It is stored in the ``state_dict``, so a random order comes back
            with the weights that were trained under it.

    Raises:
        ValueError: ``order`` is not a permutation; ``x`` does not have D features.

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

    def __init__(self, order: Sequence[int] | Tensor) -> None:
        super().__init__()
        indices = order.tolist() if isinstance(order, Tensor) else list(order)
        if not indices or sorted(indices) != list(range(len(indices))):
            raise ValueError(f"transforms.Permutation: order must hold each of 0 to D-1 once, got {indices}")
        self.features = len(indices)
        inverse = sorted(range(len(indices)), key=indices.__getitem__)
        # Both are stored: an inverse worked out at construction would be stale after load_state_dict.
        self.register_buffer("order", torch.tensor(indices))
        self.register_buffer("inverse_order", torch.tensor(inverse))

    @classmethod
    def reverse(cls, features: int) -> Permutation:
        """The last feature first."""
        return cls(range(features - 1, -1, -1))

    @classmethod
    def random(cls, features: int, seed: int | torch.Generator | None = None) -> Permutation:
        """A random order; from ``seed`` (a number or a generator), or from torch's global generator."""
        generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
        return cls(torch.randperm(features, generator=generator))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_features("transforms.Permutation", x, self.features)
        return x.index_select(-1, self.order), zero_ladj(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_features("transforms.Permutation", y, self.features)
        return y.index_select(-1, self.inverse_order), zero_ladj(y)

    def extra_repr(self) -> str:
        return f"features={self.features}"

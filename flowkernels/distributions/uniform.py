"""Uniform base distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import constraints

from .base import Distribution, Size, as_numbers, as_vectors, check_no_temperature


class UniformBox(Distribution):
    r"""The uniform distribution on a box, its faces included.

    :math:`\log p(x) = -\sum_D \log(\mathrm{high} - \mathrm{low})` in nats inside, ``-inf`` outside, NaN where ``x`` is;
    nothing raises on values. Shapes and dtypes as in `Distribution`.

    Args:
        low, high: ``[D]`` corners, low < high. Tensors keep their floating-point dtype.

    Raises:
        ValueError: ``low`` and ``high`` are not both ``[D]``, or low < high does not hold; ``x`` is not ``[..., D]``; a
            temperature is asked for.

    Reference:
        Rezende et al.: Normalizing Flows on Tori and Spheres, ICML 2020, arXiv:2002.02428 (a uniform base).

    Example:
        >>> import torch
        >>> from flowkernels.distributions import UniformBox
        >>> UniformBox([0.0, 0.0], [1.0, 2.0]).log_prob(torch.tensor([[0.5, 0.5], [0.5, 3.0]]))
        tensor([-0.6931,    -inf])
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Sequence[float] | Tensor, high: Sequence[float] | Tensor) -> None:
        super().__init__()
        shapes = [list(as_numbers("UniformBox", n, v).shape) for n, v in (("low", low), ("high", high))]
        if len(shapes[0]) != 1 or shapes[0] != shapes[1]:
            raise ValueError(
                f"distributions.UniformBox: low and high must both be [D], got {shapes[0]} and {shapes[1]}"
            )
        self.features = shapes[0][0]
        low, high = as_vectors("UniformBox", self.features, low=low, high=high)
        if not bool((low < high).all()):
            raise ValueError(
                f"distributions.UniformBox: low must be less than high, got {low.tolist()} and {high.tolist()}"
            )
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.interval(self.low, self.high)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        low, high, x = self._wide(self.low), self._wide(self.high), self._wide(x)
        outside = torch.where(x.isnan(), x, torch.full_like(x, -math.inf))
        return torch.where((x >= low) & (x <= high), -torch.log(high - low), outside).sum(-1)

    def rsample(self, n: Size = (), context: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        check_no_temperature("distributions.UniformBox", temperature)
        u = torch.rand(self._shape(n, context), dtype=self.low.dtype, device=self.low.device)
        return torch.lerp(self.low, self.high, u)

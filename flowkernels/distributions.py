"""Base distributions of flows, as modules: they move, cast, train and save with the flow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["DiagonalNormal", "Distribution", "StandardNormal", "UniformBox"]

Size = int | Sequence[int]


class Distribution(nn.Module):
    """A distribution of ``[D]`` vectors; its ``features`` are D.

    ``log_prob(x [..., D]) → [...]`` in nats, float32 or wider. ``sample(n)`` and ``rsample(n)`` → ``[n, D]``, and
    ``[n, ..., D]`` beside a context ``[..., C]``, in the dtype and on the device of the module; ``n`` is a number or a
    shape. The distributions here do not look at the values of the context.
    """

    features: int

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``[..., D]`` → ``[...]``, in nats."""
        raise NotImplementedError(f"distributions.{type(self).__name__}: log_prob is not defined")

    def rsample(self, n: Size, context: Tensor | None = None) -> Tensor:
        """Draws ``[n, ..., D]`` through which gradients flow."""
        raise NotImplementedError(f"distributions.{type(self).__name__}: rsample is not defined")

    def sample(self, n: Size, context: Tensor | None = None) -> Tensor:
        """Draws ``[n, ..., D]`` without gradients."""
        with torch.no_grad():
            return self.rsample(n, context)

    def _shape(self, n: Size, context: Tensor | None) -> list[int]:
        lead = [n] if isinstance(n, int) else list(n)
        return [*lead, *(() if context is None else context.shape[:-1]), self.features]

    def _wide(self, x: Tensor) -> Tensor:
        """``x`` in at least float32: a sum of squares in a 16-bit type is worth little."""
        if x.dim() == 0 or x.shape[-1] != self.features:
            name = type(self).__name__
            raise ValueError(f"distributions.{name}: x must be [..., {self.features}], got {list(x.shape)}")
        return x.to(torch.promote_types(x.dtype, torch.float32))

    def extra_repr(self) -> str:
        return f"features={self.features}"


def _vector(values: float | Sequence[float] | Tensor, features: int, name: str) -> Tensor:
    t = torch.as_tensor(values).detach().to(torch.get_default_dtype())  # never float64 by accident: MPS has none
    if t.shape not in ((), (1,), (features,)):
        raise ValueError(f"distributions.{name} must be a number or [{features}], got {list(t.shape)}")
    return t.expand(features).clone()


class StandardNormal(Distribution):
    r"""The normal distribution with zero mean and unit covariance.

    :math:`\log p(x) = -\tfrac12 \sum_D x^2 - \tfrac D2 \log 2\pi` in nats; shapes and dtypes as in `Distribution`.

    Args:
        features: D.

    Raises:
        ValueError: ``x`` does not have D features.

    Reference:
        Papamakarios et al.: Normalizing Flows for Probabilistic Modeling and Inference, JMLR 2021, arXiv:1912.02762.

    Example:
        >>> import torch
        >>> from flowkernels.distributions import StandardNormal
        >>> StandardNormal(2).log_prob(torch.zeros(3, 2))
        tensor([-1.8379, -1.8379, -1.8379])
    """

    _like: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self._log_z = 0.5 * features * math.log(2 * math.pi)
        # Holds nothing: `.to()` moves it, and samples are drawn where it is.
        self.register_buffer("_like", torch.empty(0), persistent=False)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return -0.5 * self._wide(x).square().sum(-1) - self._log_z

    def rsample(self, n: Size, context: Tensor | None = None) -> Tensor:
        return torch.randn(self._shape(n, context), dtype=self._like.dtype, device=self._like.device)


class DiagonalNormal(Distribution):
    r"""Independent normal distributions with their own mean and scale.

    :math:`\log p(x) = -\tfrac12 \sum_D \left(\frac{x - \mu}{\sigma}\right)^2 - \sum_D \log\sigma
    - \tfrac D2 \log 2\pi` in nats; shapes and dtypes as in `Distribution`.

    Args:
        features: D.
        loc: :math:`\mu`, a number or ``[D]``.
        log_scale: :math:`\log \sigma`, a number or ``[D]``.
        learnable: ``loc`` and ``log_scale`` are parameters; otherwise buffers.

    Raises:
        ValueError: ``loc`` or ``log_scale`` is not a number or ``[D]``; ``x`` does not have D features.

    Reference:
        Papamakarios et al.: Normalizing Flows for Probabilistic Modeling and Inference, JMLR 2021, arXiv:1912.02762.

    Example:
        >>> import torch
        >>> from flowkernels.distributions import DiagonalNormal
        >>> base = DiagonalNormal(2, loc=[1.0, 2.0])
        >>> base.log_prob(torch.tensor([1.0, 2.0])).item()
        -1.8378770351409912
    """

    loc: Tensor
    log_scale: Tensor

    def __init__(
        self,
        features: int,
        loc: float | Sequence[float] | Tensor = 0.0,
        log_scale: float | Sequence[float] | Tensor = 0.0,
        learnable: bool = True,
    ) -> None:
        super().__init__()
        self.features = features
        self._log_z = 0.5 * features * math.log(2 * math.pi)
        for name, value in (("loc", loc), ("log_scale", log_scale)):
            vector = _vector(value, features, f"DiagonalNormal: {name}")
            if learnable:
                self.register_parameter(name, nn.Parameter(vector))
            else:
                self.register_buffer(name, vector)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        loc, log_scale = self._wide(self.loc), self._wide(self.log_scale)
        z = (self._wide(x) - loc) * torch.exp(-log_scale)
        return -0.5 * z.square().sum(-1) - (log_scale.sum() + self._log_z)

    def rsample(self, n: Size, context: Tensor | None = None) -> Tensor:
        noise = torch.randn(self._shape(n, context), dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + torch.exp(self.log_scale) * noise


class UniformBox(Distribution):
    r"""The uniform distribution on a box, its faces included.

    :math:`\log p(x) = -\sum_D \log(\mathrm{high} - \mathrm{low})` in nats inside, ``-inf`` outside, NaN where ``x`` is;
    nothing raises on values. Shapes and dtypes as in `Distribution`.

    Args:
        low, high: ``[D]`` corners, low < high.

    Raises:
        ValueError: ``low`` and ``high`` are not both ``[D]``, or low < high does not hold; ``x`` is not ``[..., D]``.

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
        shapes = [list(torch.as_tensor(v).shape) for v in (low, high)]
        if len(shapes[0]) != 1 or shapes[0] != shapes[1]:
            raise ValueError(
                f"distributions.UniformBox: low and high must both be [D], got {shapes[0]} and {shapes[1]}"
            )
        self.features = shapes[0][0]
        low, high = (_vector(v, self.features, "UniformBox: low and high") for v in (low, high))
        if not bool((low < high).all()):
            raise ValueError(
                f"distributions.UniformBox: low must be less than high, got {low.tolist()} and {high.tolist()}"
            )
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        low, high, x = self._wide(self.low), self._wide(self.high), self._wide(x)
        outside = torch.where(x.isnan(), x, torch.full_like(x, -math.inf))
        return torch.where((x >= low) & (x <= high), -torch.log(high - low), outside).sum(-1)

    def rsample(self, n: Size, context: Tensor | None = None) -> Tensor:
        u = torch.rand(self._shape(n, context), dtype=self.low.dtype, device=self.low.device)
        return torch.lerp(self.low, self.high, u)

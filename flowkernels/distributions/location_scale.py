"""Normal and logistic distributions, standard or with a location and a scale of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkernels._arguments import count, flag
from flowkernels.nets.common import check_dtypes

from .base import Distribution, Size, as_vectors, check_temperature


class _Family(Distribution):
    """Draws of the standard distribution of a family, and its log-density."""

    def _noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        raise NotImplementedError

    def _log_density(self, z: Tensor) -> Tensor:
        raise NotImplementedError


class _Normal(_Family):
    def _noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        return torch.randn(shape, dtype=like.dtype, device=like.device)

    def _log_density(self, z: Tensor) -> Tensor:
        return -0.5 * z.square().sum(-1) - 0.5 * self.features * math.log(2 * math.pi)


class _Logistic(_Family):
    def _noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        wide = torch.promote_types(like.dtype, torch.float32)
        # A uniform number may be 0 and never is 1; half of its smallest step keeps the logit finite.
        u = torch.rand(shape, dtype=wide, device=like.device).clamp_min_(torch.finfo(wide).eps / 4)
        return torch.logit(u).to(like.dtype)

    def _log_density(self, z: Tensor) -> Tensor:
        return (F.logsigmoid(z) + F.logsigmoid(-z)).sum(-1)  # of infinite z too


class _Standard(_Family):
    """Zero location, unit scale."""

    _like: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = count(f"distributions.{type(self).__name__}", "features", features)
        # Holds nothing: `.to()` moves it, and samples are drawn where it is.
        self.register_buffer("_like", torch.empty(0), persistent=False)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self._log_density(self._wide(x))

    def rsample(self, n: Size = (), context: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        check_temperature(f"distributions.{type(self).__name__}", temperature)
        noise = self._noise(self._shape(n, context), self._like)
        return noise if temperature == 1 else temperature * noise


class StandardNormal(_Normal, _Standard):
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


class StandardLogistic(_Logistic, _Standard):
    r"""Independent logistic distributions with location 0 and scale 1, NICE's prior.

    :math:`\log p(x) = \sum_D \left[-x - 2 \log(1 + e^{-x})\right]` in nats; shapes and dtypes as in `Distribution`.
    The variance of a feature is :math:`\pi^2/3`.

    Args:
        features: D.

    Raises:
        ValueError: ``x`` does not have D features.

    Reference:
        Dinh, Krueger, Bengio: NICE: Non-linear Independent Components Estimation, ICLR workshop 2015,
        arXiv:1410.8516, section 3.4.

    Example:
        >>> import torch
        >>> from flowkernels.distributions import StandardLogistic
        >>> StandardLogistic(2).log_prob(torch.zeros(3, 2))
        tensor([-2.7726, -2.7726, -2.7726])
    """


class _Diagonal(_Family):
    """A location and a scale for every feature, learned, fixed, or linear in the context."""

    loc: Tensor
    log_scale: Tensor

    def __init__(
        self,
        features: int,
        loc: float | Sequence[float] | Tensor = 0.0,
        log_scale: float | Sequence[float] | Tensor = 0.0,
        learnable: bool = True,
        context: int = 0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.features = count(f"distributions.{name}", "features", features)
        self.context_features = count(f"distributions.{name}", "context", context, least=0)
        flag(f"distributions.{name}", "learnable", learnable)
        if context and not learnable:
            raise ValueError(f"distributions.{name}: learnable must be True beside a context, got {learnable}")
        vectors = as_vectors(name, features, loc=loc, log_scale=log_scale)
        for parameter, vector in zip(("loc", "log_scale"), vectors, strict=True):
            if learnable:
                self.register_parameter(parameter, nn.Parameter(vector))
            else:
                self.register_buffer(parameter, vector)
        # Zero: every context starts with the same location and scale.
        self.weight = nn.Parameter(vectors[0].new_zeros(context, 2 * features)) if context else None

    def _location_scale(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Location and log-scale, ``[D]`` or ``[..., D]``."""
        if self.weight is None:
            return self.loc, self.log_scale
        if context is not None:
            check_dtypes(f"distributions.{type(self).__name__}", self, self.weight, None, context)
        if context is None or context.dim() == 0 or context.shape[-1] != self.context_features:
            given = None if context is None else list(context.shape)
            name = type(self).__name__
            raise ValueError(f"distributions.{name}: context must be [..., {self.context_features}], got {given}")
        loc, log_scale = (context @ self.weight).chunk(2, -1)
        return self.loc + loc, self.log_scale + log_scale

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        loc, log_scale = (self._wide(p) for p in self._location_scale(context))
        return self._log_density((self._wide(x) - loc) * torch.exp(-log_scale)) - log_scale.sum(-1)

    def rsample(self, n: Size = (), context: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        check_temperature(f"distributions.{type(self).__name__}", temperature)
        loc, log_scale = self._location_scale(context)
        noise = self._noise(self._shape(n, context), self.loc)
        return loc + (torch.exp(log_scale) if temperature == 1 else temperature * torch.exp(log_scale)) * noise

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", context={self.context_features}" if self.context_features else "")


class DiagonalNormal(_Normal, _Diagonal):
    r"""Independent normal distributions with their own mean and scale.

    :math:`\log p(x) = -\tfrac12 \sum_D \left(\frac{x - \mu}{\sigma}\right)^2 - \sum_D \log\sigma
    - \tfrac D2 \log 2\pi` in nats; shapes and dtypes as in `Distribution`.

    With a context ``c [..., C]``, :math:`\mu + c\,W_\mu` and :math:`\log\sigma + c\,W_\sigma` take the place of
    :math:`\mu` and :math:`\log\sigma`. A context of one-hot rows gives every class its own normal distribution.

    Args:
        features: D.
        loc: :math:`\mu`, a number or ``[D]``.
        log_scale: :math:`\log \sigma`, a number or ``[D]``.
            A floating-point tensor keeps its dtype and device, and the other follows; else they are the default ones.
        learnable: ``loc`` and ``log_scale`` are parameters; otherwise buffers.
        context: C, 0 for none. The weights start at zero.

    Raises:
        ValueError: ``loc`` or ``log_scale`` is not a number or ``[D]``; ``x`` does not have D features; the context
            does not have C features; there is one and ``learnable`` is False.

    Reference:
        Papamakarios et al.: Normalizing Flows for Probabilistic Modeling and Inference, JMLR 2021, arXiv:1912.02762;
        by class: Kingma, Dhariwal: Glow, NeurIPS 2018, arXiv:1807.03039.

    Example:
        >>> import torch
        >>> from flowkernels.distributions import DiagonalNormal
        >>> base = DiagonalNormal(2, loc=[1.0, 2.0])
        >>> base.log_prob(torch.tensor([1.0, 2.0])).item()
        -1.8378770351409912
        >>> by_class = DiagonalNormal(2, context=10)
        >>> by_class.sample(5, torch.eye(10)).shape
        torch.Size([5, 10, 2])
    """


class DiagonalLogistic(_Logistic, _Diagonal):
    r"""Independent logistic distributions with their own location and scale.

    :math:`\log p(x) = \sum_D \left[-z - 2 \log(1 + e^{-z}) - \log\sigma\right]`, :math:`z = (x - \mu)/\sigma`, in nats;
    shapes and dtypes as in `Distribution`; arguments, context and errors as in `DiagonalNormal`.

    Raises:
        ValueError: as `DiagonalNormal`.

    Reference:
        Dinh, Krueger, Bengio: NICE: Non-linear Independent Components Estimation, ICLR workshop 2015,
        arXiv:1410.8516.

    Example:
        >>> import torch
        >>> from flowkernels.distributions import DiagonalLogistic
        >>> DiagonalLogistic(2, log_scale=0.5, learnable=False).log_prob(torch.zeros(2))
        tensor(-3.7726)
    """

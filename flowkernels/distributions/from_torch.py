"""A torch.distributions.Distribution as the base of a flow."""

from __future__ import annotations

import copy
import math
import numbers
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution as TorchDistribution
from torch.distributions import Independent, constraints
from torch.distributions import Transform as TorchTransform

from .base import Distribution, Size, check_no_temperature

_PLAIN = (str, bool, numbers.Number, torch.Size, torch.dtype, torch.device, constraints.Constraint, type(None))


class FromTorch(Distribution):
    r"""A distribution of `torch.distributions` over ``[D]``; ``Flow(..., base=...)`` makes one of what it is given.

    ``log_prob`` in nats, -inf outside of the support, NaN where x is; shapes as in `Distribution`. A context is not
    looked at. The tensors that the distribution holds are buffers: they move, cast and are in the state dict.

    Args:
        distribution: of ``event_shape (D,)`` and no batch dims, or of ``batch_shape (D,)`` and scalars, whose D values
            are then independent.

    Raises:
        TypeError: it is no `torch.distributions.Distribution`; it holds a tensor that requires a gradient (a learned
            base is a `DiagonalNormal`, say, or a module of your own that derives from `Distribution`), or an object in
            which tensors cannot be found, so that they would stay behind.
        ValueError: it is not one over ``[D]`` or is discrete; ``x`` is not ``[..., D]``; a temperature is asked for;
            ``rsample`` where gradients are wanted of a distribution that has none.

    Reference:
        Papamakarios et al.: Normalizing Flows for Probabilistic Modeling and Inference, JMLR 2021, arXiv:1912.02762.

    Example:
        >>> import torch
        >>> from flowkernels.flows import NSF
        >>> flow = NSF(2, base=torch.distributions.StudentT(torch.full((2,), 3.0)))
        >>> flow.base.features, flow.sample(5).shape, flow.double().base.sample().dtype
        (2, torch.Size([5, 2]), torch.float64)
    """

    def __init__(self, distribution: TorchDistribution) -> None:
        super().__init__()
        name = "distributions.FromTorch"
        if not isinstance(distribution, TorchDistribution):
            given = type(distribution).__name__
            raise TypeError(f"{name}: distribution must be a torch.distributions.Distribution, got {given}")
        if len(distribution.event_shape) == 0 and len(distribution.batch_shape) == 1:
            distribution = Independent(distribution, 1)
        batch, event = list(distribution.batch_shape), list(distribution.event_shape)
        if batch or len(event) != 1:
            raise ValueError(
                f"{name}: distribution must be one over [D], or D over scalars, got batch_shape {batch} and "
                f"event_shape {event}"
            )
        if _is_discrete(distribution):
            raise ValueError(f"{name}: distribution must be continuous, got {distribution!r:.60}")
        self.features = event[0]
        self._buffer_of: dict[str, str] = {}  # where a tensor was found -> its buffer
        self._template = self._walked(distribution, "", self._take)

    @property
    def distribution(self) -> TorchDistribution:
        """As it is now, with the buffers where they are."""
        return self._walked(self._template, "", lambda path, _: getattr(self, self._buffer_of[path]))

    @property
    def has_rsample(self) -> bool:
        """Whether gradients flow through draws."""
        return self._template.has_rsample

    @property
    def support(self) -> constraints.Constraint:
        support: Any = self.distribution.support
        if type(support) is type(constraints.real_vector) and hasattr(support, "base_constraint"):
            each = support.base_constraint  # of each number, where they are independent
            if each.event_dim == 0:
                return each
        return _EachNumber(support)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x, distribution = self._wide(x), self.distribution
        out = distribution.log_prob(x)
        support: Any = distribution.support
        outside = torch.where(x.isnan().any(-1), math.nan, -math.inf).to(out)
        return torch.where(support.check(x), out, outside)

    def rsample(self, n: Size = (), context: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        check_no_temperature("distributions.FromTorch", temperature)
        lead = torch.Size(self._shape(n, context)[:-1])
        if self.has_rsample:
            return self.distribution.rsample(lead)
        if torch.is_grad_enabled():
            raise ValueError(
                "distributions.FromTorch: rsample must be of a distribution through whose draws gradients flow, got "
                f"{self.distribution!r:.60} (sample, or torch.no_grad(), draws without)"
            )
        return self.distribution.sample(lead)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.distribution!r:.100}"

    def _take(self, path: str, tensor: Tensor) -> Tensor:
        if tensor.requires_grad:
            raise TypeError(
                "distributions.FromTorch: distribution must hold no tensor that requires a gradient, got "
                f"{path} (distributions.DiagonalNormal learns)"
            )
        buffer = path.replace(".", "__")
        self._buffer_of[path] = buffer
        self.register_buffer(buffer, tensor.detach().clone())  # a copy: what torch broadcasts shares its memory
        return tensor.new_empty(0)  # the template needs none

    def _walked(self, value: Any, path: str, tensor: Any) -> Any:
        """A copy of a distribution, or of what it holds, with other tensors."""
        if isinstance(value, Tensor):
            return tensor(path, value)
        if isinstance(value, (*_PLAIN, type)):
            return value
        inner = path + "." if path else ""
        if type(value) in (list, tuple):
            return type(value)(self._walked(v, f"{inner}{i}", tensor) for i, v in enumerate(value))
        if isinstance(value, (TorchDistribution, TorchTransform)):
            new = copy.copy(value)
            # What a cache holds is not the distribution's.
            held = {k: v for k, v in vars(value).items() if k not in ("_cached_x_y", "_inv") or _is_inverse(value, k)}
            for key, inside in held.items():
                new.__dict__[key] = self._walked(inside, f"{inner}{key}", tensor)
            if isinstance(value, TorchTransform):
                new.__dict__["_cached_x_y"] = (None, None)
                if "_inv" not in held:
                    new.__dict__["_inv"] = None
            else:
                new.__dict__["_validate_args"] = False  # a bad value has density zero, and raises nothing
            return new
        raise TypeError(
            "distributions.FromTorch: distribution must hold tensors, numbers, distributions and transforms, whose "
            f"tensors can be moved, got {type(value).__name__} at {path}"
        )


class _EachNumber(constraints.Constraint):
    """A constraint of vectors, said of each of their numbers."""

    def __init__(self, of_vectors: constraints.Constraint) -> None:
        self._of_vectors = of_vectors

    def check(self, value: Tensor) -> Tensor:
        return self._of_vectors.check(value).unsqueeze(-1).expand(value.shape)


def _is_inverse(value: object, key: str) -> bool:
    """Of torch's inverse of a transform ``_inv`` is what it inverts; of others a cached inverse."""
    return key == "_inv" and type(value).__name__ == "_InverseTransform"


def _is_discrete(distribution: TorchDistribution) -> bool:
    try:
        support: Any = distribution.support
        return bool(support.is_discrete)
    except NotImplementedError:
        return False

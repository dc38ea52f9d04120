"""A flow as a torch.distributions.Distribution."""

from __future__ import annotations

import functools
import math
import sys
import types
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints, register_kl

from flowkernels._arguments import count

if TYPE_CHECKING:
    from .flow import Flow


class FlowDistribution(Distribution):
    """What `Flow.as_distribution` returns; the context is embedded anew at every call, as the weights may have moved.

    Made after Pyro was imported it is one of Pyro's distributions too, for ``pyro.sample`` in models and guides.

    ``sample``, ``rsample`` → ``sample_shape + batch_shape + event_shape``; ``log_prob`` broadcasts over
    ``batch_shape``, in nats. With ``validate_args`` a NaN in the value raises, as everywhere in `torch.distributions`.
    ``entropy`` and ``torch.distributions.kl_divergence`` with another distribution on either side are Monte Carlo
    estimates: see `entropy` and `kl_divergence`.

    Example:
        >>> from flowkernels.flows import NSF
        >>> NSF(2).as_distribution().expand((3,)).sample((5,)).shape
        torch.Size([5, 3, 2])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  (the base class declares it so)

    def __init__(self, flow: Flow, context: Tensor | None = None, validate_args: bool | None = None) -> None:
        self.flow = flow
        self.context = context
        with torch.no_grad():  # only an embedding knows which of the context's dims are leading ones
            embedded = flow.embed(context)
        batch_shape = torch.Size() if embedded is None else embedded.shape[:-1]
        super().__init__(batch_shape, flow.event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        """Where the density is not zero: what the transform takes and the base, behind it, can be.

        A constraint of `torch.distributions` where one says it: every real vector or image, or what a first layer such
        as `flowkernels.transforms.Logit` takes. Elsewhere (a base on a box, say) its ``check`` runs the flow once.
        """
        domain, dims = self.flow.transform.domain, len(self.event_shape)
        if self.flow.base.support is not constraints.real or domain is None:
            return _Support(self)
        if domain is constraints.real and dims == 1:
            return constraints.real_vector
        return constraints.independent(domain, dims)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether gradients flow through draws: unless the base is one of torch that has none."""
        return getattr(self.flow.base, "has_rsample", True)

    def entropy(self, n: int = 1000) -> Tensor:  # type: ignore[override]
        r"""The differential entropy, an estimate from ``n`` draws, ``[*batch_shape]`` in nats.

        .. math:: \hat H = -\frac1n \sum_i \log q(x_i), \qquad x_i \sim q

        Unbiased, with standard error :math:`\mathrm{std}(\log q) / \sqrt n`: for D nearly normal features about
        :math:`\sqrt{D / 2n}`, so 0.03 for 2 features and the default n. Gradients flow through the draws, in one pass,
        unless the flow has no ``rsample``; then there are none.

        Raises:
            ValueError: ``n`` is less than 1.

        Example:
            >>> import torch
            >>> from flowkernels.flows import NSF
            >>> q = NSF(2, context=3).as_distribution(torch.randn(4, 3))
            >>> q.entropy(100).shape
            torch.Size([4])
        """
        return -self._draws(count("flows.FlowDistribution.entropy", "n", n))[1].mean(0)

    def kl_divergence(self, other: Distribution, n: int = 1000) -> Tensor:
        r"""The divergence from ``other``, an estimate from ``n`` draws of this one, in nats.

        Of the batch shape of both, broadcast.

        .. math:: \widehat{KL}(q \| p) = \frac1n \sum_i \left[\log q(x_i) - \log p(x_i)\right], \qquad x_i \sim q

        Unbiased, with standard error :math:`\mathrm{std}(\log q - \log p) / \sqrt n`; it may be negative where the two
        are close. ``torch.distributions.kl_divergence(q, p)`` is this with the default n, and with a flow for p alone
        the same from draws of q. Gradients as in `entropy`.

        Raises:
            TypeError: ``other`` is no `torch.distributions.Distribution`.
            ValueError: ``n`` is less than 1; ``other`` has another ``event_shape``.

        Example:
            >>> import torch
            >>> from torch.distributions import MultivariateNormal
            >>> from flowkernels.flows import NSF
            >>> q = NSF(2).as_distribution()
            >>> q.kl_divergence(MultivariateNormal(torch.ones(2), torch.eye(2))).backward()  # variational inference
        """
        return _kl(self, other, n)

    def expand(self, batch_shape: Sequence[int], _instance: Distribution | None = None) -> FlowDistribution:
        """The same distribution, with its batch dims broadcast to ``batch_shape``."""
        shape = torch.Size(batch_shape)
        if torch.broadcast_shapes(self.batch_shape, shape) != shape:
            raise ValueError(
                f"flows.FlowDistribution: batch_shape must extend {list(self.batch_shape)}, got {list(shape)}"
            )
        new = type(self).__new__(type(self))
        new.flow, new.context = self.flow, self.context
        Distribution.__init__(new, shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:  # type: ignore[override]
        embedded = self._embedded()
        shape = torch.Size(sample_shape)
        return self.flow._rsample(shape + self.batch_shape if embedded is None else shape, embedded)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:  # type: ignore[override]
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        out = self.flow._log_prob(value, self._embedded())
        return out.expand(torch.broadcast_shapes(out.shape, self.batch_shape))

    def _draws(self, n: int) -> tuple[Tensor, Tensor]:
        """``[n, *batch_shape, ...]`` and their log-densities in one pass, with gradients where there are any."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.has_rsample):
            embedded = self._embedded()
            shape = [n, *self.batch_shape] if embedded is None else [n]
            z = self.flow.base.rsample(shape, embedded)
            x, ladj = self.flow._decode(z, embedded)
            return x, self.flow.base.log_prob(z, embedded) - ladj

    def __reduce__(self) -> Any:
        return _blank, (), self.__dict__  # by no class's name: the one with Pyro's methods has none to be found by

    def _inside(self, value: Tensor) -> Tensor:
        """Whether the flow takes each value, and its base what becomes of it."""
        with torch.no_grad():
            embedded = self._embedded()
            z, ladj = self.flow._encode(self.flow._per_context(value, embedded), embedded)
            return self.flow.base.support.check(z).all(-1) & (ladj > -math.inf)  # a NaN is neither

    def _embedded(self) -> Tensor | None:
        embedded = self.flow.embed(self.context)
        return None if embedded is None else embedded.expand(*self.batch_shape, embedded.shape[-1])


def _kl(p: Distribution, q: Distribution, n: int = 1000) -> Tensor:
    """By draws of p."""
    where = "flows.FlowDistribution.kl_divergence"
    n = count(where, "n", n)
    if not isinstance(q, Distribution):
        raise TypeError(f"{where}: other must be a torch.distributions.Distribution, got {type(q).__name__}")
    if p.event_shape != q.event_shape:
        raise ValueError(f"{where}: other must be of event_shape {list(p.event_shape)}, got {list(q.event_shape)}")
    if isinstance(p, FlowDistribution):
        x, log_p = p._draws(n)
    else:
        x = p.rsample((n,)) if p.has_rsample else p.sample((n,))
        log_p = p.log_prob(x)
    extra = len(torch.broadcast_shapes(p.batch_shape, q.batch_shape)) - len(p.batch_shape)
    x, log_p = (t.reshape(n, *[1] * extra, *t.shape[1:]) for t in (x, log_p))
    with torch.set_grad_enabled(torch.is_grad_enabled() and p.has_rsample):
        return (log_p - q.log_prob(x)).mean(0)


# The last one says which of the first two a pair of flows is.
register_kl(FlowDistribution, Distribution)(_kl)
register_kl(Distribution, FlowDistribution)(_kl)
register_kl(FlowDistribution, FlowDistribution)(_kl)


def distribution_class() -> type[FlowDistribution]:
    """`FlowDistribution`, with the methods that Pyro asks of a distribution where Pyro is in use."""
    module = sys.modules.get("pyro.distributions.torch_distribution")
    return FlowDistribution if module is None else _with(module.TorchDistributionMixin)


@functools.cache
def _with(mixin: type) -> Any:
    body = {"__module__": FlowDistribution.__module__, "__doc__": FlowDistribution.__doc__}
    return types.new_class("FlowDistribution", (FlowDistribution, mixin), exec_body=lambda space: space.update(body))


def _blank() -> FlowDistribution:
    cls = distribution_class()
    return cls.__new__(cls)


class _Support(constraints.Constraint):
    """What a flow takes and its base, behind it, can be; known by trying."""

    def __init__(self, distribution: FlowDistribution) -> None:
        self.event_dim = len(distribution.event_shape)  # type: ignore[assignment]
        self._distribution = distribution

    def check(self, value: Tensor) -> Tensor:
        return self._distribution._inside(value)

"""A transform and a base distribution make a flow."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowkernels.distributions import Distribution, Size
from flowkernels.transforms import Transform

from .distribution import FlowDistribution


class Flow(nn.Module):
    r"""A density by change of variables.

    With :math:`z, \mathrm{ladj} = \mathrm{transform}(x)`,

    .. math:: \log p(x) = \log p_\mathrm{base}(z) + \mathrm{ladj}

    in nats, and samples are :math:`\mathrm{transform}^{-1}` of samples of the base.

    Shapes, with D features and C context features:

    ====================  ==============================  ==================
    context               ``log_prob(x)``                 ``sample(n)``
    ====================  ==============================  ==================
    None                  ``[..., D]`` → ``[...]``        ``[n, D]``
    ``[C]``               ``[..., D]`` → ``[...]``        ``[n, D]``
    ``[B, C]``            ``[B, D]`` → ``[B]``            ``[n, B, D]``
    ``[B, C]``            ``[n, B, D]`` → ``[n, B]``      ``[n, B, D]``
    ====================  ==============================  ==================

    In words: the leading dims of ``context`` broadcast against those of ``x`` (``[1, C]`` fits any batch; one ``x [D]``
    under ``[B, C]`` gives ``[B]``), and sampling puts ``n``, a number or a shape, in front of them. All rows go through
    the networks together. Values have the dtype of the weights, log-probabilities are float32 or wider.

    ``forward`` is ``log_prob``: call the module itself under DistributedDataParallel or ``torch.compile``.

    Args:
        transform: data → latent.
        base: the density of the latent; `Distribution` says what it must have.
        embedding: a module applied to the context once per call, before every layer and the base see it.

    Raises:
        TypeError: a part is of another kind.

    Reference:
        Papamakarios et al.: Normalizing Flows for Probabilistic Modeling and Inference, JMLR 2021, arXiv:1912.02762.

    Example:
        >>> import torch
        >>> from flowkernels.distributions import StandardNormal
        >>> from flowkernels.flows import Flow
        >>> from flowkernels.transforms import Permutation
        >>> flow = Flow(Permutation.reverse(2), StandardNormal(2))
        >>> flow.log_prob(torch.zeros(3, 2)).shape, flow.sample(5).shape
        (torch.Size([3]), torch.Size([5, 2]))
    """

    def __init__(self, transform: Transform, base: Distribution, embedding: nn.Module | None = None) -> None:
        super().__init__()
        if not isinstance(transform, Transform):
            raise TypeError(f"flows.Flow: transform must be a Transform, got {type(transform).__name__}")
        if not isinstance(base, Distribution):
            given = f"{type(base).__module__}.{type(base).__name__}"
            raise TypeError(f"flows.Flow: base must be a flowkernels.distributions.Distribution, got {given}")
        self.transform = transform
        self.base = base
        self.embedding = embedding

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The same as `log_prob`."""
        return self.log_prob(x, context)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The log-density of ``x [..., D]``, in nats."""
        return self._log_prob(x, self.embed(context))

    def sample(self, n: Size, context: Tensor | None = None) -> Tensor:
        """Draws ``[n, ..., D]`` without gradients."""
        with torch.no_grad():
            return self._rsample(n, self.embed(context))

    def rsample(self, n: Size, context: Tensor | None = None) -> Tensor:
        """Draws ``[n, ..., D]`` through which gradients flow to the parameters and the context."""
        return self._rsample(n, self.embed(context))

    def sample_and_log_prob(self, n: Size, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draws ``[n, ..., D]`` and their log-densities ``[n, ...]`` (nats) in one inverse pass.

        Reparameterised: gradients flow through both, as variational inference needs; use ``torch.no_grad()``
        where they are not wanted.

        Example:
            >>> import torch
            >>> from flowkernels.flows import NSF
            >>> flow = NSF(2)
            >>> x, log_q = flow.sample_and_log_prob(64)
            >>> (log_q + 0.5 * (x - 1).square().sum(-1)).mean().backward()  # reverse KL to a normal around 1
        """
        embedded = self.embed(context)
        z = self.base.rsample(n, embedded)
        x, ladj = self.transform.inverse(z, embedded)
        return x, self.base.log_prob(z, embedded) - ladj

    def as_distribution(self, context: Tensor | None = None, validate_args: bool | None = None) -> FlowDistribution:
        """This flow, given ``context [..., C]``, as a `torch.distributions.Distribution`.

        ``batch_shape`` is the leading dims of the context, ``event_shape`` is ``(D,)``. It holds the flow, not a copy.

        Example:
            >>> import torch
            >>> from flowkernels.flows import NSF
            >>> posterior = NSF(2, context=3).as_distribution(torch.randn(4, 3))
            >>> posterior.batch_shape, posterior.event_shape, posterior.sample((10,)).shape
            (torch.Size([4]), torch.Size([2]), torch.Size([10, 4, 2]))
        """
        return FlowDistribution(self, context, validate_args=validate_args)

    def embed(self, context: Tensor | None) -> Tensor | None:
        """The context as the layers see it."""
        return context if context is None or self.embedding is None else self.embedding(context)

    def _log_prob(self, x: Tensor, embedded: Tensor | None) -> Tensor:
        if embedded is not None and embedded.shape[:-1] != x.shape[:-1]:
            # Layers broadcast the context to x; here x follows a context with more rows.
            x = x.expand(*torch.broadcast_shapes(x.shape[:-1], embedded.shape[:-1]), x.shape[-1])
        z, ladj = self.transform(x, embedded)
        return self.base.log_prob(z, embedded) + ladj

    def _rsample(self, n: Size, embedded: Tensor | None) -> Tensor:
        return self.transform.inverse(self.base.rsample(n, embedded), embedded)[0]

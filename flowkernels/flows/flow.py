"""A transform and a base distribution make a flow."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from flowkernels._arguments import check_tensor, count, flag, is_flat
from flowkernels._flat import FlatParameter, flatten_parameters
from flowkernels.distributions import Base, Distribution, FromTorch, Size, StandardNormal
from flowkernels.transforms import Composite, Transform
from flowkernels.transforms.composite import log_normal

from .distribution import FlowDistribution, distribution_class

_LOG_PROB = StandardNormal.log_prob  # unless somebody puts another in its place


class Flow(nn.Module):
    r"""A density by change of variables.

    With :math:`z, \mathrm{ladj} = \mathrm{transform}(x)`,

    .. math:: \log p(x) = \log p_\mathrm{base}(z) + \mathrm{ladj}

    in nats, and samples are :math:`\mathrm{transform}^{-1}` of samples of the base.

    Shapes, with D features (for images read ``C, H, W`` for ``D``, for signals ``C, L``) and C context features:

    ====================  ==============================  ==================
    context               ``log_prob(x)``                 ``sample(n)``
    ====================  ==============================  ==================
    None                  ``[..., D]`` → ``[...]``        ``[n, D]``
    ``[C]``               ``[..., D]`` → ``[...]``        ``[n, D]``
    ``[B, C]``            ``[B, D]`` → ``[B]``            ``[n, B, D]``
    ``[B, C]``            ``[n, B, D]`` → ``[n, B]``      ``[n, B, D]``
    ====================  ==============================  ==================

    In words: the leading dims of ``context`` broadcast against those of ``x`` (``[1, C]`` fits any batch; one ``x [D]``
    under ``[B, C]`` gives ``[B]``), and sampling puts ``n``, a number or a shape, in front of them; ``sample()`` is
    one draw ``[D]``, or ``[B, D]``, as in `torch.distributions`. All rows go through the networks together.

    Values have the dtype of the weights (``flow.double()`` for float64 data, or ``x.float()``), log-probabilities are
    float32 or wider. A value outside of the support, e.g. of a `flowkernels.distributions.UniformBox` or a
    `flowkernels.transforms.Logit`, has log-probability ``-inf``, a NaN makes that of its own row NaN. So may values so
    large (from 1e18 on in float32) that the networks overflow: there some models say NaN where others say ``-inf``.

    ``forward`` is ``log_prob``: call the module itself under DistributedDataParallel or ``torch.compile``.

    Args:
        transform: data → latent.
        base: the density of the latent; `Distribution` says what it must have. Or a `torch.distributions.Distribution`
            over ``[D]``, which becomes a `flowkernels.distributions.FromTorch`.
        embedding: a module applied to the context once per call, before every layer and the base see it.
        context_to_base: only the base sees the context, e.g. one that gives each class its own distribution.

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

    def __init__(
        self,
        transform: Transform,
        base: Base,
        embedding: nn.Module | None = None,
        *,
        context_to_base: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(transform, Transform):
            raise TypeError(f"flows.Flow: transform must be a Transform, got {type(transform).__name__}")
        if isinstance(base, torch.distributions.Distribution):
            base = FromTorch(base)
        if not isinstance(base, Distribution):
            given = f"{type(base).__module__}.{type(base).__name__}"
            raise TypeError(f"flows.Flow: base must be a flowkernels.distributions.Distribution, got {given}")
        if embedding is not None and (isinstance(embedding, type) or not callable(embedding)):
            raise TypeError(f"flows.Flow: embedding must be a module or None, got {embedding!r:.60}")
        self.transform = transform
        self.base = base
        self.embedding = embedding
        self.context_to_base = flag("flows.Flow", "context_to_base", context_to_base)

    @property
    def memory(self) -> str:
        """What is kept for backward: ``"fast"``, or ``"flat"``, whose bytes do not grow with the number of layers.

        Runs of layers on features (`flowkernels.ops.flow`) then compute forward once more, from their first input:
        the same numbers; what a context adds to the hidden layers of each network is kept. Other layers, those of
        images among them, find their inputs by their inverses; where rounding takes these too far from the first input,
        which is kept, they run again with everything kept, and warn. Autoregressive layers among these, layers with
        hooks, and those with active dropout or batch norm keep what they keep anyway. Flat gradients of images cannot
        be differentiated again. Set it on the flow:

        >>> from flowkernels.flows import Glow
        >>> flow = Glow((1, 8, 8), levels=2, steps=2, hidden=(16, 16))
        >>> flow.memory = "flat"

        Raises:
            ValueError: it is set to something else.

        Reference:
            Gomez, Ren, Urtasun, Grosse: The Reversible Residual Network, NeurIPS 2017, arXiv:1707.04585.
        """
        flat = [m.memory == "flat" for m in self.modules() if isinstance(m, Composite)]
        return "flat" if flat and all(flat) else "fast"

    @memory.setter
    def memory(self, memory: str) -> None:
        is_flat("flows.Flow", memory)
        for m in self.modules():
            if isinstance(m, Composite):
                m.memory = memory

    def flatten_parameters(self, *, direct: bool = False) -> FlatParameter:
        """Makes all learned parameters views of one, which it returns: what takes its time by the tensor sees one.

        Names, shapes, values and the state dict stay; the parameters are new objects, so call it before the optimizer
        is made, and again after `to` and the like. After backward, ``flat.collect()`` moves all gradients into its own:

        >>> import torch
        >>> from flowkernels.flows import NSF
        >>> flow = NSF(2, transforms=2, hidden=(16,))
        >>> flat = flow.flatten_parameters()
        >>> optimizer = torch.optim.Adam([flat], lr=1e-3, fused=True)
        >>> (-flow.log_prob(torch.randn(8, 2)).mean()).backward()
        >>> flat.collect()
        >>> _ = torch.nn.utils.clip_grad_norm_([flat], 5.0)
        >>> optimizer.step()
        >>> optimizer.zero_grad()

        A parameter that got no gradient has a gradient of zero here. Not for modules that DDP or FSDP have wrapped.

        With ``direct=True`` autograd, too, sees one tensor where a call of `flowkernels.ops.flow` has all parameters,
        as of flows of features without a context: a training step of a small flow takes a third less time. The views
        then get no gradients of their own, so that hooks on them are not called and ``torch.autograd.grad`` must be
        asked for the flat one; everything above stays as it is.

        Raises:
            ValueError: there is nothing to learn, or not all of one dtype and device; ``direct`` is no bool.
        """
        return flatten_parameters(self, direct)

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one x: ``[D]``, or ``[C, H, W]`` for images."""
        return torch.Size(self.transform.data_shape((self.base.features,)))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The same as `log_prob`."""
        return self.log_prob(x, context)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The log-density of ``x [..., D]``, in nats."""
        return self._log_prob(x, self.embed(context))

    def sample(self, n: Size = (), context: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        r"""Draws ``[n, ..., D]`` without gradients.

        ``temperature`` T multiplies the deviation of the latent from its centre. With a normal base and layers whose
        ladj does not depend on x (additive couplings) the draws follow :math:`p(x)^{1/T^2}`, normalised; with others
        they do not, but still move towards the typical as T falls. T = 0 is the image of the centre.
        """
        with torch.no_grad():
            return self._rsample(n, self.embed(context), temperature)

    def rsample(self, n: Size = (), context: Tensor | None = None) -> Tensor:
        """Draws ``[n, ..., D]`` through which gradients flow to the parameters and the context."""
        return self._rsample(n, self.embed(context))

    def sample_and_log_prob(self, n: Size = (), context: Tensor | None = None) -> tuple[Tensor, Tensor]:
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
        x, ladj = self._decode(z, embedded)
        return x, self.base.log_prob(z, embedded) - ladj

    def encode(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The latent ``[..., L]`` of ``x [..., D]``."""
        return self._latent("x", x, self.embed(context))

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The ``x [..., D]`` of a latent ``z [..., L]``."""
        self._check("z", z)
        if z.dim() == 0 or z.shape[-1] != self.base.features:
            raise ValueError(f"{self._name}: z must be [..., {self.base.features}], got {list(z.shape)}")
        return self._decode(z, self.embed(context))[0]

    def interpolate(self, x0: Tensor, x1: Tensor, steps: int, context: Tensor | None = None) -> Tensor:
        r"""``steps`` points from ``x0`` to ``x1 [..., D]`` → ``[steps, ..., D]``, without gradients.

        .. math:: x_i = f^{-1}\left((1 - w_i)\,f(x_0) + w_i\,f(x_1)\right), \qquad w_i = i/(\mathrm{steps} - 1)

        a straight line in the latent; both ends come back as they are, up to the rounding of a round trip.

        Raises:
            ValueError: ``steps`` is less than 2.

        Reference:
            Kingma, Dhariwal: Glow, NeurIPS 2018, arXiv:1807.03039.

        Example:
            >>> import torch
            >>> from flowkernels.flows import NSF
            >>> NSF(2).interpolate(torch.zeros(2), torch.ones(2), 3).shape
            torch.Size([3, 2])
        """
        count(self._name, "steps", steps, least=2)
        with torch.no_grad():
            embedded = self.embed(context)
            z0, z1 = self._latent("x0", x0, embedded), self._latent("x1", x1, embedded)
            for what, a, b in (("dtype", z0.dtype, z1.dtype), ("device", z0.device, z1.device)):
                if a != b:
                    raise TypeError(f"{self._name}: x1 must be of the {what} of x0, {a}, got {b}")
            if not z0.is_floating_point():
                raise TypeError(f"{self._name}: x0 must be of a floating-point dtype, got {x0.dtype}")
            w = torch.linspace(0, 1, steps, dtype=z0.dtype, device=z0.device)
            return self._decode(torch.lerp(z0, z1, w.view(-1, *[1] * z0.dim())), embedded)[0]

    def as_distribution(self, context: Tensor | None = None, validate_args: bool | None = None) -> FlowDistribution:
        """This flow, given ``context [..., C]``, as a `torch.distributions.Distribution`.

        ``batch_shape`` is the leading dims of the context, ``event_shape`` is ``(D,)``. It holds the flow, not a copy.
        Where Pyro has been imported it is one of its distributions as well, for ``pyro.sample``.

        Example:
            >>> import torch
            >>> from flowkernels.flows import NSF
            >>> posterior = NSF(2, context=3).as_distribution(torch.randn(4, 3))
            >>> posterior.batch_shape, posterior.event_shape, posterior.sample((10,)).shape
            (torch.Size([4]), torch.Size([2]), torch.Size([10, 4, 2]))
        """
        return distribution_class()(self, context, validate_args=validate_args)

    def embed(self, context: Tensor | None) -> Tensor | None:
        """The context as the layers see it."""
        if context is None:
            return None
        self._check("context", context)
        embedded = context if self.embedding is None else self.embedding(context)
        if embedded.dim() == 0:
            raise ValueError(f"{self._name}: context must be [..., C], got a scalar")
        return embedded

    def save(self, path: str | os.PathLike[str], *, config: bool = True) -> None:
        """Writes one safetensors file with the weights and how to build the flow; `flowkernels.load` reads it.

        The description, JSON in the file's metadata, names the classes that the flow is made of and their arguments,
        whatever made it: a ready model, or `Flow` with parts of your choice. Every class of flowkernels is known, and
        of embeddings and networks also torch's plain layers (`torch.nn.Sequential`, `torch.nn.Linear`, activations).
        No pickle, no code. Who reads ``path`` meanwhile finds the old file or the new one, never half of one.

        Hooks and gradients are not saved, nor the device.

        Args:
            path: of the file, e.g. ``"flow.safetensors"``.
            config: False writes the weights alone, of any flow, for ``flowkernels.load(path, flow=...)``.

        Raises:
            TypeError: a part is a module or function of your own, which a file cannot name; a weight has no values.
            ImportError: safetensors is not installed (``pip install 'flowkernels[io]'``).

        Example:
            >>> import os, tempfile, torch, flowkernels
            >>> from flowkernels.flows import MAF
            >>> flow, x = MAF(3, context=2, transforms=2, hidden=(16,)), torch.randn(5, 3)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = os.path.join(folder, "flow.safetensors")
            ...     flow.save(path)
            ...     again = flowkernels.load(path)
            >>> torch.equal(again.log_prob(x, torch.ones(2)), flow.log_prob(x, torch.ones(2)))
            True
        """
        from flowkernels.saving import save  # which knows every flow

        save(self, path, config=config)

    @property
    def _name(self) -> str:
        return f"flows.{type(self).__name__}"

    def _latent(self, name: str, x: Tensor, embedded: Tensor | None) -> Tensor:
        self._check(name, x)
        z = self._encode(x, embedded)[0]
        if z.dim() == 0 or z.shape[-1] != self.base.features:
            event = ", ".join(map(str, self.event_shape))
            raise ValueError(f"{self._name}: {name} must be [..., {event}], got {list(x.shape)}")
        return z

    def _check(self, name: str, value: object) -> None:
        if not isinstance(value, Tensor) or value.layout is not torch.strided:  # before the name is put together
            check_tensor(self._name, name, value)

    def _encode(self, x: Tensor, embedded: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.transform(x, None if self.context_to_base else embedded)

    def _decode(self, z: Tensor, embedded: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.transform.inverse(z, None if self.context_to_base else embedded)

    def _log_prob(self, x: Tensor, embedded: Tensor | None) -> Tensor:
        x, transform, base = self._per_context(x, embedded), self.transform, self.base
        is_normal = type(base) is StandardNormal and "log_prob" not in base.__dict__
        if is_normal and type(transform) is Composite and StandardNormal.log_prob is _LOG_PROB:
            # The base of a flow that is one call is one more of its steps.
            found = log_normal(transform, x, None if self.context_to_base else embedded, base.features)
            if found is not None:
                return found
        z, ladj = self._encode(x, embedded)
        return base.log_prob(z, embedded) + ladj

    def _per_context(self, x: Tensor, embedded: Tensor | None) -> Tensor:
        """``x``, repeated where the context has more rows: layers broadcast the context to x, not x to the context."""
        self._check("x", x)
        if embedded is None or self.context_to_base:
            return x
        event = self.event_shape
        lead, given = x.shape[: max(0, x.dim() - len(event))], embedded.shape[:-1]
        if given == lead:
            return x
        both = min(len(lead), len(given))
        ends = zip(lead[len(lead) - both :], given[len(given) - both :], strict=True)
        if x.dim() < len(event) or not all(a == b or 1 in (a, b) for a, b in ends):
            raise ValueError(
                f"{self._name}: the leading dims of x [..., {', '.join(map(str, event))}] and of the context [..., C] "
                f"must broadcast, got {list(x.shape)} and {list(embedded.shape)}"
            )
        return x.expand(*torch.broadcast_shapes(lead, given), *x.shape[len(lead) :])

    def _rsample(self, n: Size, embedded: Tensor | None, temperature: float = 1.0) -> Tensor:
        return self._decode(self.base.rsample(n, embedded, temperature), embedded)[0]

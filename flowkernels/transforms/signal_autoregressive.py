"""Autoregressive layers of signals: every sample is transformed given the samples before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkernels._arguments import count
from flowkernels.ops.univariate import Univariate, n_params_of

from .base import Transform, check_images
from .coupling import as_conditioner
from .image_coupling import by_element
from .univariate import check_univariate

_NAME = "transforms.SignalAutoregressive"


class SignalAutoregressive(Transform):
    r"""Transforms every sample of a signal, with parameters that a causal network computes from those before it.

    .. math:: y_{c,t} = f(x_{c,t}; \mathrm{conditioner}((0, x_{:,<t}), \mathrm{context})_{c,t})

    and ``ladj`` is :math:`\sum_{c,t} \log|f'(x_{c,t})|` in nats: the network reads the signal one sample late, behind a
    zero. Channels at the same t do not see each other. ``forward`` (data → latent: densities) costs one pass of the
    network. ``inverse`` (latent → data: samples) goes from sample to sample: where the network is a causal
    `flowkernels.nets.WaveNet`, or another that has ``steps``, each of its layers is applied to one sample a step, which
    is one pass in all; else there are L passes. Gradients flow through either. ``x [..., C, L]`` in the dtype of the
    network's weights, or under autocast; ``y`` the same, ``ladj [...]``.

    Args:
        channels: C.
        conditioner: a module, called as ``conditioner(signals, context)``, that returns ``[..., P * C, L]``: the first
            parameter of all channels, then the second, and so on; at t it may depend on samples up to t alone. Or a
            function ``(in_channels, out_channels) -> module``.
        univariate: the map of one element and its P parameters, e.g. `Mixture` or `Affine`.

    Raises:
        ValueError: ``channels`` is less than 1; the conditioner is one that looks ahead and says so (``causal`` is
            False), or returns another number of channels; ``x`` is not signals of C channels with at least one sample.
        TypeError: ``conditioner`` is neither a module nor a function that returns one.

    Reference:
        van den Oord et al.: WaveNet: A Generative Model for Raw Audio, 2016, arXiv:1609.03499; as a flow: Papamakarios
        et al.: Normalizing Flows for Probabilistic Modeling and Inference, JMLR 2021, arXiv:1912.02762, section 3.1.

    Example:
        >>> import functools, torch
        >>> from flowkernels.nets import WaveNet
        >>> from flowkernels.transforms import Affine, SignalAutoregressive
        >>> net = functools.partial(WaveNet, hidden=8, layers=3, kernel_size=2, causal=True)
        >>> layer, x = SignalAutoregressive(1, net, Affine()), torch.randn(5, 1, 16)
        >>> y, ladj = layer(x)
        >>> torch.allclose(layer.inverse(y)[0], x, atol=1e-4), ladj.shape
        (True, torch.Size([5]))
    """

    def __init__(
        self, channels: int, conditioner: nn.Module | Callable[[int, int], nn.Module], univariate: Univariate
    ) -> None:
        super().__init__()
        self.channels = count(_NAME, "channels", channels)
        check_univariate(_NAME, univariate)
        self.univariate = univariate
        self.conditioner = as_conditioner(_NAME, conditioner, channels, channels * n_params_of(univariate))
        if getattr(self.conditioner, "causal", True) is False:
            raise ValueError(f"{_NAME}: conditioner must be causal, got one that is not")

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check(x)
        return self.univariate(x, self._params(x, context), False, 2)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check(y)
        steps: Any = getattr(self.conditioner, "steps", None)
        step = None if steps is None else steps(y, context)
        return self._sample_by_sample(y, context) if step is None else self._stepwise(y, step)

    def _stepwise(self, y: Tensor, step: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        x, total, found = torch.zeros_like(y[..., 0]), self._no_ladj(y), []
        for t in range(y.shape[-1]):
            params = self._by_element(step(x).unsqueeze(-1))
            x, ladj = self._back(y[..., t], params[..., 0, :])
            total = total + ladj
            found.append(x)
        return torch.stack(found, -1), total

    def _sample_by_sample(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x, total = torch.zeros_like(y), self._no_ladj(y)
        for t in range(y.shape[-1]):
            value, ladj = self._back(y[..., t], self._params(x, context)[..., t, :])
            total = total + ladj
            x = x.select_scatter(value, -1, t)  # a copy: the last pass needs its own x in backward
        return x, total

    def _back(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """One sample of all channels, ``[..., C]`` by ``[..., C, P]``."""
        x, ladj = self.univariate(y, params, True)
        return x.to(y.dtype), ladj

    def _params(self, x: Tensor, context: Tensor | None) -> Tensor:
        """``[..., C, L, P]``, of the signal one sample late."""
        return self._by_element(self.conditioner(F.pad(x[..., :-1], (1, 0)), context))

    def _by_element(self, params: Tensor) -> Tensor:
        return by_element(_NAME, params, self.channels, n_params_of(self.univariate), 2)

    def _no_ladj(self, y: Tensor) -> Tensor:
        return y.new_zeros(y.shape[:-2], dtype=torch.promote_types(y.dtype, torch.float32))

    def _check(self, x: Tensor) -> None:
        check_images(_NAME, x, self.channels, 2)
        if x.shape[-1] < 1:
            raise ValueError(f"{_NAME}: x must have at least one sample, got {list(x.shape)}")

    def extra_repr(self) -> str:
        univariate = "" if isinstance(self.univariate, nn.Module) else f", univariate={self.univariate}"
        return f"{self.channels}{univariate}"

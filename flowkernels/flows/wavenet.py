"""WaveNet: the autoregressive model of a waveform, as a flow of one layer."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from torch import nn

from flowkernels.distributions import Base, StandardLogistic, StandardNormal, UniformBox
from flowkernels.transforms import Mixture, SignalAutoregressive, Transform, Univariate

from .flow import Flow
from .images import multi_scale, near_identity
from .signals import Condition, check_signal


class WaveNet(Flow):
    r"""The density of a waveform as a product: each sample given all before it, by a causal network.

    .. math:: \log p(x) = \sum_t \log p(x_t \mid x_{<t}, \mathrm{context})

    in nats, in one pass of the network. It is a flow of one layer, `flowkernels.transforms.SignalAutoregressive` of a
    `flowkernels.nets.WaveNet`: the map of a sample is the distribution function of its conditional, and behind it the
    quantile function of the base. By default the conditionals are mixtures of K logistics on the line, mapped to a
    standard logistic base; with ``Mixture(K, "normal", "probit")`` mixtures of normals; with ``Affine()`` normals. With
    ``Mixture(K, outer="unit")`` the base is uniform, and the latent has the probabilities themselves.

    Samples, and all of ``decode``, go from sample to sample, L steps; each layer keeps the inputs that it sees again
    and is applied to one sample a step, so that all steps multiply as often as one pass. Gradients flow through them
    (``rsample``); of a mixture's inverse, a root, they are those of the implicit function.

    ``x [..., C, L]``; channels at the same t do not see each other. Dtypes: see `Flow`. Weights do not depend on the
    length (but the corners of a uniform base do): ``load_state_dict`` takes those of a flow of another length. Scale
    the signal to about the unit deviation; of whole numbers take ``preprocessing=[Dequantize(256, 2), Logit(0.05,
    event_dims=2)]``. The paper's model of speech has thirty layers with ``cycle=10``, and 256 classes in place of a
    density.

    Args:
        shape: (C, L) of a signal, L divisible by ``hop``.
        context: C, channels of the context (after ``embedding``), 0 for none.
        hop: the context is a sequence of frames, such as a mel spectrogram, one for each ``hop`` samples: ``[..., C,
            L / hop]``; a `flowkernels.nets.Upsampler` brings it to the rate of the signal. 0: it is a vector.
        hidden: channels of the network.
        layers: of dilated convolutions.
        components: K.
        cycle: after how many layers the dilation is 1 again; 0: it doubles to the end.
        kernel_size: of the dilated convolutions.
        skip: channels of the skip path; 0: as many as ``hidden``.
        univariate: another map of one sample than mixtures of ``components`` logistics.
        preprocessing: transforms that come first.
        base: density of the latent; by default what makes a mixture's conditionals those of the mixture, else standard
            normal.
        embedding: a module applied to the context first.

    Raises:
        ValueError: a number is less than 1 where there must be one; ``hop`` does not divide the length, or there is no
            context.

    Reference:
        van den Oord et al.: WaveNet: A Generative Model for Raw Audio, 2016, arXiv:1609.03499; mixtures of logistics:
        van den Oord et al.: Parallel WaveNet, ICML 2018, arXiv:1711.10433.

    Example:
        >>> import torch
        >>> from flowkernels.flows import WaveNet
        >>> flow = WaveNet((1, 32), 2, hidden=8, layers=3, components=2)
        >>> speaker = torch.eye(2)
        >>> flow.log_prob(torch.randn(2, 1, 32), speaker).shape, flow.sample(3, speaker).shape
        (torch.Size([2]), torch.Size([3, 2, 1, 32]))
    """

    def __init__(
        self,
        shape: Sequence[int],
        context: int = 0,
        hidden: int = 64,
        layers: int = 10,
        components: int = 10,
        *,
        hop: int = 0,
        cycle: int = 10,
        kernel_size: int = 2,
        skip: int = 0,
        univariate: Univariate | None = None,
        preprocessing: Sequence[Transform] = (),
        base: Base | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        channels, length = check_signal("WaveNet", shape)
        condition = Condition.checked("WaveNet", context, hop, length)
        univariate = Mixture(components) if univariate is None else univariate
        settings = {"hidden": hidden, "layers": layers, "skip": skip, "kernel_size": kernel_size, "cycle": cycle}
        net = condition.net(1, **settings, causal=True, head=True)
        start = functools.partial(near_identity, net, univariate)
        layer = SignalAutoregressive(channels, start, univariate)
        base = _base_of(univariate, math.prod(shape)) if base is None else base
        super().__init__(multi_scale(preprocessing, [[layer]], shape), base, condition.embedding(embedding))


def _base_of(univariate: Univariate, size: int) -> Base:
    """The base whose quantile function stands behind the distribution function of a mixture."""
    outer = univariate.outer if isinstance(univariate, Mixture) else "probit"
    if outer == "unit":
        return UniformBox([0.0] * size, [1.0] * size)
    return StandardLogistic(size) if outer == "logit" else StandardNormal(size)

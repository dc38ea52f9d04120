"""WaveGlow."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from flowkernels._arguments import generator
from flowkernels.distributions import Base, StandardNormal
from flowkernels.nets.degrees import Seed
from flowkernels.transforms import Affine, LUConv1x1, Squeeze, Transform, Univariate

from .flow import Flow
from .images import halves, image_coupling, multi_scale
from .signals import Condition, check_signal


class WaveGlow(Flow):
    r"""WaveGlow: a squeezed waveform through 1 x 1 convolutions and affine couplings, given a mel spectrogram.

    :math:`\log p(x) = \log p_\mathrm{base}(z) + \sum_i \mathrm{ladj}_i` in nats. A `flowkernels.transforms.Squeeze`
    makes a channel of each of ``squeeze`` neighbours; then come ``steps`` times

    ===========================================  =====================================================================
    `flowkernels.transforms.LUConv1x1`           an invertible 1 x 1 convolution, at first a random rotation
    `flowkernels.transforms.ImageCoupling`       the second half of the channels, given the first, by a
                                                 `flowkernels.nets.WaveNet` that looks both ways
    ===========================================  =====================================================================

    and after every ``leave_every`` steps, but for the last, ``leave`` channels from the end are done
    (`flowkernels.transforms.MultiScale`, which also says how the latent lies in its row of C L numbers).
    ``x [..., C, L]``; dtypes: see `Flow`. Samples cost one pass, all at once. The length is that of training segments:
    weights do not depend on it, and ``load_state_dict`` puts those of a flow of another length into this one.

    The paper's model is ``WaveGlow((1, 16384), 80, hop=256, hidden=512, skip=256, layers=8)``, whose networks also have
    weight normalisation; the defaults are smaller.

    Args:
        shape: (C, L) of a signal, L divisible by ``squeeze`` and by ``hop``.
        context: C, channels of the context (after ``embedding``), 0 for none.
        hop: the context is a sequence of frames, such as a mel spectrogram, one for each ``hop`` samples: ``[..., C,
            L / hop]``; a `flowkernels.nets.Upsampler` brings it to the rate of the signal. 0: it is a vector.
        steps: couplings.
        hidden: channels of the networks.
        layers: of dilated convolutions in each, with dilations 1, 2, 4, ...
        squeeze: neighbours that become one sample.
        leave_every, leave: how many channels are done, and after how many steps each time.
        kernel_size: of the dilated convolutions.
        skip: channels of the networks' skip paths; 0: as many as ``hidden``.
        univariate: the map of one element, by default ``Affine("exp")``, the paper's.
        seed: of the rotations, a number or a generator on the CPU.
        preprocessing: transforms that come first, e.g. ``[Dequantize(256, 2), Logit(0.05, event_dims=2)]``.
        base: density of the latent; standard normal by default.
        embedding: a module applied to the context first.

    Raises:
        ValueError: a number is less than 1 where there must be one; ``shape`` does not fit ``squeeze`` or ``hop``;
            there is a ``hop`` without a context; fewer than two channels are left for a step.

    Reference:
        Prenger, Valle, Catanzaro: WaveGlow: A Flow-based Generative Network for Speech Synthesis, ICASSP 2019,
        arXiv:1811.00002.

    Example:
        >>> import torch
        >>> from flowkernels.flows import WaveGlow
        >>> flow = WaveGlow((1, 64), 5, hop=16, steps=4, hidden=8, layers=2, leave_every=2)
        >>> mel = torch.randn(3, 5, 4)
        >>> loss = -flow.log_prob(torch.randn(3, 1, 64), mel).mean()
        >>> loss.backward()
        >>> flow.sample(2, mel, temperature=0.6).shape
        torch.Size([2, 3, 1, 64])
    """

    def __init__(
        self,
        shape: Sequence[int],
        context: int = 0,
        steps: int = 12,
        hidden: int = 64,
        layers: int = 4,
        *,
        hop: int = 0,
        squeeze: int = 8,
        leave_every: int = 4,
        leave: int = 2,
        kernel_size: int = 3,
        skip: int = 0,
        univariate: Univariate | None = None,
        seed: Seed = None,
        preprocessing: Sequence[Transform] = (),
        base: Base | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        numbers = {"steps": steps, "squeeze": squeeze, "leave_every": leave_every, "leave": leave}
        channels, length = check_signal("WaveGlow", shape, **numbers)
        condition = Condition.checked("WaveGlow", context, hop, length)
        channels, _ = Squeeze(squeeze, 2).latent_shape((channels, length))
        left = channels - leave * ((steps - 1) // leave_every)
        if left < 2:
            raise ValueError(f"flows.WaveGlow: there must be two channels for every step, got {left} for the last")
        net = condition.net(squeeze, hidden=hidden, layers=layers, kernel_size=kernel_size, skip=skip)
        univariate = Affine("exp") if univariate is None else univariate
        draws = generator("flows.WaveGlow", seed)
        levels: list[list[Transform]] = []
        for i in range(steps):
            if i % leave_every == 0:
                channels -= leave if levels else 0
                levels.append([] if levels else [Squeeze(squeeze, 2)])
            coupling = image_coupling(halves(channels), net, univariate, 2)
            levels[-1] += [LUConv1x1(channels, seed=draws), coupling]
        transform = multi_scale(preprocessing, levels, shape, leave)
        base = StandardNormal(math.prod(shape)) if base is None else base
        super().__init__(transform, base, condition.embedding(embedding))

"""FloWaveNet."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from flowkernels.distributions import Base, StandardNormal
from flowkernels.transforms import ActNorm, Affine, Squeeze, Transform, Univariate

from .flow import Flow
from .images import halves, image_coupling, multi_scale
from .signals import Condition, check_signal


class FloWaveNet(Flow):
    r"""FloWaveNet: blocks that each squeeze the waveform once more, of affine couplings with alternating halves.

    :math:`\log p(x) = \log p_\mathrm{base}(z) + \sum_i \mathrm{ladj}_i` in nats. Each of ``blocks`` begins with a
    `flowkernels.transforms.Squeeze` by two; then come ``steps`` times

    ===========================================  =====================================================================
    `flowkernels.transforms.ActNorm`             a scale and a shift per channel, set by the first training batch
    `flowkernels.transforms.ImageCoupling`       one half of the channels, given the other, in turn, by a
                                                 `flowkernels.nets.WaveNet` that looks both ways
    ===========================================  =====================================================================

    and after every ``leave_every`` blocks, but for the last, half of the channels are done
    (`flowkernels.transforms.MultiScale`, which also says how the latent lies in its row of C L numbers), as a normal
    distribution whose mean and scale are a `WaveNet` of the other half: one more coupling, that starts as the identity.
    ``x [..., C, L]``; dtypes: see `Flow`. Samples cost one pass, all at once. The length is that of training segments:
    weights do not depend on it, and ``load_state_dict`` puts those of a flow of another length into this one.

    The paper's model is ``FloWaveNet((1, 16384), 80, blocks=8, steps=6, hidden=256, hop=256, leave_every=4)``, whose
    networks also have weight normalisation, and bring frames to the rate of the signal in two steps; the defaults are
    smaller. Train in batches large enough for the first one to set the actnorms well.

    Args:
        shape: (C, L) of a signal, L divisible by two to the power of ``blocks``, and by ``hop``.
        context: C, channels of the context (after ``embedding``), 0 for none.
        hop: the context is a sequence of frames, such as a mel spectrogram, one for each ``hop`` samples: ``[..., C,
            L / hop]``; a `flowkernels.nets.Upsampler` brings it to the rate of the signal. 0: it is a vector.
        blocks: how often the signal is squeezed.
        steps: couplings of a block.
        hidden: channels of the networks.
        layers: of dilated convolutions in each, with dilations 1, 2, 4, ...
        leave_every: after how many blocks half of the channels are done.
        kernel_size: of the dilated convolutions.
        univariate: the map of one element, by default ``Affine("exp")``, the paper's.
        preprocessing: transforms that come first, e.g. ``[Dequantize(256, 2), Logit(0.05, event_dims=2)]``.
        base: density of the latent; standard normal by default.
        embedding: a module applied to the context first.

    Raises:
        ValueError: a number is less than 1 where there must be one; ``shape`` does not fit ``blocks`` or ``hop``; there
            is a ``hop`` without a context.

    Reference:
        Kim, Lee, Song, Kim, Yoon: FloWaveNet: A Generative Flow for Raw Audio, ICML 2019, arXiv:1811.02155.

    Example:
        >>> import torch
        >>> from flowkernels.flows import FloWaveNet
        >>> flow = FloWaveNet((1, 64), 5, blocks=2, steps=2, hidden=8, leave_every=1, hop=16)
        >>> mel = torch.randn(3, 5, 4)
        >>> loss = -flow.log_prob(torch.randn(3, 1, 64), mel).mean()
        >>> loss.backward()
        >>> flow.sample(2, mel).shape
        torch.Size([2, 3, 1, 64])
    """

    def __init__(
        self,
        shape: Sequence[int],
        context: int = 0,
        blocks: int = 4,
        steps: int = 4,
        hidden: int = 64,
        layers: int = 2,
        *,
        hop: int = 0,
        leave_every: int = 2,
        kernel_size: int = 3,
        univariate: Univariate | None = None,
        preprocessing: Sequence[Transform] = (),
        base: Base | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        numbers = {"blocks": blocks, "steps": steps, "leave_every": leave_every}
        event = check_signal("FloWaveNet", shape, **numbers)
        condition = Condition.checked("FloWaveNet", context, hop, event[1])
        univariate = Affine("exp") if univariate is None else univariate
        levels: list[list[Transform]] = []
        for block in range(blocks):
            event = Squeeze(event_dims=2).latent_shape(event)
            net = condition.net(2 ** (block + 1), hidden=hidden, layers=layers, kernel_size=kernel_size, head=True)
            if block % leave_every == 0:
                levels.append([])
            levels[-1].append(Squeeze(event_dims=2))
            for i in range(steps):
                coupling = image_coupling(halves(event[0], first=i % 2 == 1), net, univariate, 2)
                levels[-1] += [ActNorm(event[0], channel_dim=1), coupling]
            if block % leave_every == leave_every - 1 and block + 1 < blocks:
                levels[-1].append(image_coupling(halves(event[0]), net, Affine("exp"), 2))
                event = (event[0] // 2, event[1])
        base = StandardNormal(math.prod(shape)) if base is None else base
        super().__init__(multi_scale(preprocessing, levels, shape), base, condition.embedding(embedding))

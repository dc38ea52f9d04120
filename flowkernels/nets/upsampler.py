"""Frames beside a signal, brought to its rate."""

from __future__ import annotations

from torch import Tensor, nn

from flowkernels._arguments import check_tensor, count

from .common import check_dtypes

_NAME = "nets.Upsampler"


class Upsampler(nn.Module):
    r"""A transposed convolution from frames, such as those of a mel spectrogram, to samples.

    .. math:: y_{o,\,t h + j} = b_o + \sum_{c} \sum_{i=-1}^{1} W_{c,\,o,\,(1 - i) h + j}\,x_{c,\,t + i}

    for :math:`0 \le j < h`, the hop: a sample sees its own frame and both neighbours, with zeros where the frames have
    ended. ``x [..., C, T]`` → rows ``[..., T * hop * C]``, sample after sample: a row is the context that a
    `flowkernels.flows.Flow` hands to its layers, and what `WaveNet` with ``context_dims=2`` takes. Squeezing a signal
    leaves such a row as it is: f samples of C channels are one of f C.

    Args:
        channels: C.
        hop: samples of each frame; 1: the context is at the rate of the signal.

    Raises:
        ValueError: ``channels`` or ``hop`` is less than 1; ``x`` is not frames of C channels.
        TypeError: ``x`` is not in the dtype of the weights, outside of autocast.

    Reference:
        Prenger, Valle, Catanzaro: WaveGlow: A Flow-based Generative Network for Speech Synthesis, ICASSP 2019,
        arXiv:1811.00002.

    Example:
        >>> import torch
        >>> from flowkernels.nets import Upsampler
        >>> Upsampler(5, hop=8)(torch.randn(7, 5, 4)).shape
        torch.Size([7, 160])
    """

    def __init__(self, channels: int, hop: int) -> None:
        super().__init__()
        self.channels, self.hop = count(_NAME, "channels", channels), count(_NAME, "hop", hop)
        self.layer = nn.ConvTranspose1d(channels, channels, 3 * hop, stride=hop, padding=hop)

    def forward(self, x: Tensor) -> Tensor:
        check_tensor(_NAME, "x", x)
        check_dtypes(_NAME, self.layer, self.layer._parameters.get("weight"), x, None)
        if x.dim() < 2 or x.shape[-2] != self.channels or x.shape[-1] < 1:
            raise ValueError(f"{_NAME}: x must be [..., {self.channels}, T] with frames, got {list(x.shape)}")
        y = self.layer(x.reshape(-1, *x.shape[-2:]))
        return y.transpose(-1, -2).reshape(*x.shape[:-2], y.shape[-2] * y.shape[-1])

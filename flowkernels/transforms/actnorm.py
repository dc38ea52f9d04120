"""Normalisation that is a flow layer."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flowkernels import ops
from flowkernels.ops import _channels

from .base import Transform, check_channels, check_layout


class ActNorm(Transform):
    r"""One learned scale and shift per channel, set by the first batch: :math:`y = x\,e^{a} + b`.

    The first batch in training mode sets a and b so that what leaves the layer has zero mean and unit variance in every
    channel (in the direction that batch went: a flow that is trained by sampling is normalised on the data side).
    From then on they are parameters like others. In evaluation mode nothing is ever set; before the first batch the
    layer is the identity. ``x [..., D]`` gives ``ladj [...]``; with ``channel_dim=1`` images ``x [N, D, ...]`` give
    ``ladj [N]``, in nats. ``context`` is ignored.

    Whether the first batch has been is the buffer ``initialised``: it is saved, loaded, copied and moved with the
    weights. With ``torch.distributed`` initialised, the first batch is that of all ranks together, so that all set the
    same a and b; every rank must then come to it. A channel that is constant in the first batch (one row, one pixel)
    keeps its scale, a channel with an infinite or NaN statistic keeps both. A transform of ``torch.func`` cannot be
    the first call.

    Args:
        features: D, or the channels of images.
        channel_dim: -1 for features, 1 for images.

    Raises:
        ValueError: ``features`` or ``channel_dim`` breaks its contract; ``x`` does not have D features.

    Reference:
        Kingma, Dhariwal: Glow: Generative Flow with Invertible 1×1 Convolutions, NeurIPS 2018, arXiv:1807.03039.

    Example:
        >>> import torch
        >>> from flowkernels.transforms import ActNorm
        >>> layer = ActNorm(3, channel_dim=1)
        >>> y, ladj = layer(5 + 2 * torch.randn(8, 3, 4, 4))
        >>> torch.allclose(y.mean((0, 2, 3)), torch.zeros(3), atol=1e-5), layer.initialised.item()
        (True, True)
    """

    initialised: Tensor

    def __init__(self, features: int, *, channel_dim: int = -1) -> None:
        super().__init__()
        check_layout("transforms.ActNorm", features, channel_dim)
        self.features, self.channel_dim = features, channel_dim
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.shift = nn.Parameter(torch.zeros(features))
        self.register_buffer("initialised", torch.tensor(False))
        # True once this object has seen the buffer true, so that it is not read, and a GPU not waited for, on every
        # call. It is never trusted to be false: buffers are also written in place (averaged models, DDP).
        self._seen = False

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(x, False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(y, True)

    def _run(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        check_channels("transforms.ActNorm", x, self.features, self.channel_dim)
        if self.training and not self._seen and not x.is_meta:
            self._initialise(x, inverse)
        return ops.actnorm(x, self.log_scale, self.shift, channel_dim=self.channel_dim, inverse=inverse)

    @torch.no_grad()
    def _initialise(self, x: Tensor, inverse: bool) -> None:
        # A compiler cannot branch on a buffer: there the statistics are taken and thrown away where it is true.
        if not torch.compiler.is_compiling() and self.initialised.item():
            self._seen = True
            return
        count, mean, variance = _statistics(x, self.channel_dim)
        # Rounding of the mean alone makes a constant channel vary this much.
        constant = variance <= (4 * torch.finfo(mean.dtype).eps * mean).square()
        log_std = torch.where(constant, torch.zeros_like(variance), 0.5 * variance.log())
        log_scale, shift = (log_std, mean) if inverse else (-log_std, -mean * torch.exp(-log_std))
        keep = self.initialised | ~(log_scale.isfinite() & shift.isfinite())
        for parameter, value in ((self.log_scale, log_scale), (self.shift, shift)):
            parameter.copy_(torch.where(keep, parameter, value.to(parameter.dtype)))
        self.initialised.logical_or_(count > 0)
        # Whether to come here again is not read from the buffer where a compiler runs: there all ranks must agree on
        # it, whichever of them had rows.
        self._seen = x.numel() > 0 or (torch.compiler.is_compiling() and _several_ranks())

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self._seen = False

    def extra_repr(self) -> str:
        return f"{self.features}, channel_dim={self.channel_dim}"


def _statistics(x: Tensor, channel_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """How many values each channel has, their mean and variance, over the batches of all ranks together."""
    channels = x.shape[channel_dim]
    rows = x.movedim(channel_dim, -1).reshape(x.numel() // channels, channels).to(_channels.wide(x.dtype))
    total = _over_ranks(torch.cat((rows.new_full((1,), rows.shape[0]), rows.sum(0))))
    count, mean = total[0], total[1:] / total[0]
    return count, mean, _over_ranks((rows - mean).square().sum(0)) / count


def _over_ranks(t: Tensor) -> Tensor:
    """The sum over all ranks, where there are several."""
    if _several_ranks():
        dist.all_reduce(t)
    return t


def _several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized()

"""Batch normalisation as a layer of a flow."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowkernels import ops
from flowkernels._arguments import check_tensor, share

from .base import Transform, check_channels, check_layout


class BatchNorm(Transform):
    r"""Brings every feature, or channel, to zero mean and unit variance, and to a learned scale and shift from there.

    .. math:: y = e^{\gamma}\,\frac{x - \mu}{\sqrt{v + \epsilon}} + \beta, \qquad
        \mathrm{ladj} = \sum_D \left[\gamma - \tfrac12 \log(v + \epsilon)\right]

    in nats, times the pixels of an image. In training mode ``forward`` takes the mean and the (biased) variance of the
    batch, over all leading dims and pixels, lets gradients flow through them, and moves the running ones towards them;
    ladj is that of the map with these numbers fixed, so rows depend on each other and the density is the paper's
    approximation of one. In evaluation mode, and always in ``inverse``, the running ones are used: samples drawn while
    training are those of the flow as it would be evaluated. Under DistributedDataParallel each process takes its own
    batch.

    ``x [..., D]`` gives ``ladj [...]``; with ``channel_dim=1`` images ``x [N, D, ...]`` give ``ladj [N]``. float32,
    float64, or a 16-bit type, whose statistics are float32. ``context`` is ignored. An empty batch leaves the running
    numbers as they are.

    Args:
        features: D, or the channels of images.
        channel_dim: -1 for features, 1 for images.
        eps: added to the variance.
        momentum: share of the new batch in the running numbers.

    Raises:
        ValueError: ``features`` or ``channel_dim`` breaks its contract; ``x`` does not have D features.

    Reference:
        Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, ICLR 2017, arXiv:1605.08803, section 3.7.

    Example:
        >>> import torch
        >>> from flowkernels.transforms import BatchNorm
        >>> y, ladj = BatchNorm(2)(3 + 5 * torch.randn(1000, 2))
        >>> torch.allclose(y.mean(0), torch.zeros(2), atol=1e-4), torch.allclose(y.std(0), torch.ones(2), atol=1e-2)
        (True, True)
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int, *, channel_dim: int = -1, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        check_layout("transforms.BatchNorm", features, channel_dim)
        self.features, self.channel_dim = features, channel_dim
        for name, value in (("eps", eps), ("momentum", momentum)):
            share("transforms.BatchNorm", name, value)
        self.eps, self.momentum = eps, momentum
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.shift = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_tensor("transforms.BatchNorm", "x", x)
        if not self.training or x.numel() == 0:
            return self._map(x, self.running_mean, self.running_var, False)
        check_channels("transforms.BatchNorm", x, self.features, self.channel_dim)
        channel = self.channel_dim % x.dim()
        dims = [d for d in range(x.dim()) if d != channel]
        var, mean = torch.var_mean(x.to(torch.promote_types(x.dtype, torch.float32)), dims, correction=0)
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(var.to(self.running_var.dtype), self.momentum)
        return self._map(x, mean, var, False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(y, self.running_mean, self.running_var, True)

    def _map(self, x: Tensor, mean: Tensor, var: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        check_channels("transforms.BatchNorm", x, self.features, self.channel_dim)
        log_scale = self.log_scale - 0.5 * torch.log(var + self.eps)
        shift = self.shift - mean * torch.exp(log_scale)
        return ops.actnorm(x, log_scale, shift, channel_dim=self.channel_dim, inverse=inverse)

    def extra_repr(self) -> str:
        return f"{self.features}, channel_dim={self.channel_dim}, eps={self.eps}, momentum={self.momentum}"

"""The definition of actnorm in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from flowkernels.ops import _channels
from flowkernels.ops._channels import ChannelSpec

IS_SLOW = False


def fwd(spec: ChannelSpec, x: Tensor, log_scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., C] or [N, C, ...] → y and ladj."""
    out = _channels.out_dtype((x, log_scale, shift))
    v, log_scale, shift = (t.to(_channels.wide(out)) for t in (x, log_scale, shift))
    total = log_scale.sum() * _channels.pixels(x, spec.channel_dim)
    if spec.channel_dim == 1:
        log_scale, shift = (t.reshape(-1, *[1] * (x.dim() - 2)) for t in (log_scale, shift))
    if spec.inverse:
        y, total = (v - shift) * (-log_scale).exp(), -total
    else:
        y = v * log_scale.exp() + shift
    return y.to(out), total.expand(_channels.ladj_shape(x, spec.channel_dim)).clone()

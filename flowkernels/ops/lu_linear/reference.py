"""The definition of the LU linear map in plain PyTorch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flowkernels.ops import _channels

IS_SLOW = False


class LuSpec(NamedTuple):
    channel_dim: int
    inverse: bool


def why_not(spec: LuSpec, *tensors: Tensor) -> str | None:
    return None


def fwd(
    spec: LuSpec,
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    log_s: Tensor,
    sign_s: Tensor,
    permutation: Tensor,
    bias: Tensor,
) -> tuple[Tensor, Tensor]:
    """x [..., C] or [N, C, ...] → y and ladj. `permutation` and `bias` are [C], or [0] where there is none."""
    out = _channels.out_dtype((x, lower, upper, log_s, sign_s, bias))
    v, lower, upper, log_s, sign_s, bias = (t.to(_channels.wide(out)) for t in (x, lower, upper, log_s, sign_s, bias))
    has_bias, permuted = bias.shape[0] > 0, permutation.shape[0] > 0
    L = lower.tril(-1) + torch.eye(lower.shape[0], dtype=v.dtype, device=v.device)
    U = upper.triu(1) + torch.diag(sign_s * log_s.exp())
    # Columns of a matrix, or of one matrix per image: [C, rows] or [N, C, pixels].
    if spec.channel_dim == -1:
        columns = v.reshape(v.shape[:-1].numel(), v.shape[-1]).mT
    else:
        columns = v.flatten(2) if v.dim() > 2 else v[..., None]
    total = log_s.sum() * _channels.pixels(x, spec.channel_dim)
    if spec.inverse:
        r = columns - bias[:, None] if has_bias else columns
        if permuted:
            r = r.index_select(-2, permutation.argsort())
        h = torch.linalg.solve_triangular(L, r, upper=False, unitriangular=True)
        y = torch.linalg.solve_triangular(U, h, upper=True)
        total = -total
    else:
        W = L @ U
        if permuted:
            W = W.index_select(0, permutation)
        y = W @ columns
        if has_bias:
            y = y + bias[:, None]
    y = (y.mT if spec.channel_dim == -1 else y).reshape(x.shape)
    return y.to(out), total.expand(_channels.ladj_shape(x, spec.channel_dim)).clone()

"""The definition of the LU linear map in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowkernels.ops import _channels
from flowkernels.ops._channels import ChannelSpec

IS_SLOW = False


def numbers(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The op's tensors that its dtype follows from: all but the permutation."""
    return (*tensors[:5], tensors[6])


def log_size(log_s: Tensor, sign_s: Tensor) -> Tensor:
    """The log of the product of the diagonal's absolute values. Of signs that are 1 and -1 it is the sum of log_s."""
    return log_s.sum() + sign_s.abs().log().sum()


def safe_permutation(permutation: Tensor, sign_s: Tensor) -> tuple[Tensor, Tensor]:
    """Both as they are; where it is no permutation, which nobody sees on a GPU without waiting, one that is, and signs
    that are NaN."""
    same = torch.arange(permutation.shape[0], device=permutation.device)
    valid = (permutation.sort().values == same).all()
    return torch.where(valid, permutation, same), torch.where(valid, sign_s, torch.full_like(sign_s, torch.nan))


def fwd(
    spec: ChannelSpec,
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
    total = log_size(log_s, sign_s) * _channels.pixels(x, spec.channel_dim)
    if permuted:
        permutation, sign_s = safe_permutation(permutation, sign_s)
    L = lower.tril(-1) + torch.eye(lower.shape[0], dtype=v.dtype, device=v.device)
    U = upper.triu(1) + torch.diag(sign_s * log_s.exp())
    # Columns of a matrix, or of one matrix per image: [C, rows] or [N, C, pixels].
    if spec.channel_dim == -1:
        columns = (v.flatten(0, -2) if v.dim() > 1 else v[None]).mT  # a product of sizes would be a constant of a trace
    else:
        columns = v.flatten(2) if v.dim() > 2 else v[..., None]
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

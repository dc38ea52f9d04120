"""The LU linear map on Triton: forms W or describes its triangles, allocates, launches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkernels._backend import Grads, Inputs, Needs
from flowkernels.ops import _channels, _triton
from flowkernels.ops._channels import ChannelSpec

from .reference import log_size, numbers, safe_permutation

_MAX_SOLVE = 128  # channels of a pixel that fit registers from the first step of a solve to the last
_PROGRAMS = 512  # that share a sum over pixels


def why_not(spec: ChannelSpec, *tensors: Tensor) -> str | None:
    C = tensors[3].shape[0]
    if spec.inverse and C > _MAX_SOLVE:
        return f"the inverse has kernels for up to {_MAX_SOLVE} channels, got {C}"
    return _triton.why_no_product(tensors)


class _Factors(NamedTuple):
    """The parameters in the dtype that is computed in. `back` is the inverse permutation; None: the identity."""

    L: Tensor
    U: Tensor  # with its diagonal
    log_s: Tensor
    sign_s: Tensor
    permutation: Tensor | None
    back: Tensor | None
    bias: Tensor | None

    def dense(self) -> Tensor:
        W = self.L @ self.U
        return W if self.permutation is None else W.index_select(0, self.permutation)


def _factors(dtype: torch.dtype, tensors: Sequence[Tensor]) -> _Factors:
    lower, upper, log_s, sign_s, permutation, bias = tensors
    lower, upper, log_s, sign_s = (_channels.dense(t, dtype) for t in (lower, upper, log_s, sign_s))
    absent = permutation.shape[0] == 0
    if not absent:
        permutation, sign_s = safe_permutation(permutation, sign_s)
    L = lower.tril(-1)
    L.diagonal().fill_(1)
    U = upper.triu(1)
    U.diagonal().copy_(sign_s * log_s.exp())
    back = None if absent else permutation.argsort()
    bias = _channels.dense(bias, dtype) if bias.shape[0] > 0 else None
    return _Factors(L, U, log_s, sign_s, None if absent else permutation, back, bias)


class _Walk(NamedTuple):
    t: Tensor
    strides: tuple[int, ...]  # of image, channel, pixel


def _read(t: Tensor, dim: int) -> _Walk:
    t = _channels.walkable(t, dim)
    return _Walk(t, _channels.walk(t, dim))


def _write(t: Tensor, dim: int) -> _Walk:
    t = _channels.writable(t, dim)
    return _Walk(t, _channels.walk(t, dim))


def _tile(channels: int) -> int:
    return max(16, min(64, _triton.power_of_2(channels)))  # 16: the least that tensor cores take


def _product(x: _Walk, W: Tensor, bias: Tensor | None, y: _Walk, sizes: Sequence[int]) -> None:
    from .triton_kernels import lu_product

    images, pixels, C = sizes
    BO = _tile(C)
    BP = 1024 if _triton.INTERPRETING else 64
    _triton.launch(
        lu_product, images * -(-pixels // BP) * -(-C // BO), x.t, W, x.t if bias is None else bias, y.t, pixels, C,
        *x.strides, *y.strides, *W.stride(), BIAS=bias is not None, BP=BP, BO=BO, BC=min(BO, 32),
        PRECISION=_triton.precision(W.dtype), dtype=_triton.language_dtype(W.dtype),
    )  # fmt: skip


def _solve(
    x: _Walk, f: _Factors, sizes: Sequence[int], *, backward: bool = False, between: _Walk | None = None,
    y: _Walk | None = None,
) -> None:  # fmt: skip
    """L^-1 and U^-1 of x - bias in the order of the rows of L; or U^-T and L^-T of x, back in the order of y."""
    from .triton_kernels import lu_solve

    images, pixels, C = sizes
    first, second = (f.U, f.L) if backward else (f.L.mT.contiguous(), f.U.mT.contiguous())
    CP = _triton.power_of_2(C)
    # One warp: what a step needs of another row is in the same thread, or (from 65 channels on) in the one beside it.
    BP = 1024 if _triton.INTERPRETING else 32 if CP <= 64 else 16
    has_bias = f.bias is not None and not backward
    outs = [x if w is None else w for w in (between, y)]
    _triton.launch(
        lu_solve, images * -(-pixels // BP), x.t, first, second, f.log_s, f.sign_s, f.bias if has_bias else x.t,
        x.t if f.back is None else f.back, outs[0].t, outs[1].t, pixels, C, *x.strides, *outs[0].strides,
        *outs[1].strides, BACKWARD=backward, BIAS=has_bias, ORDER=f.back is not None, BETWEEN=between is not None,
        RESULT=y is not None, CP=max(2, CP), BP=BP, dtype=_triton.language_dtype(f.L.dtype), num_warps=1,
    )  # fmt: skip


def _outer(a: _Walk, b: _Walk, order: Tensor | None, sizes: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Sums over all pixels of a b^T [C, C] and of a [C], the channels of a in order; in float64."""
    from .triton_kernels import lu_outer

    images, pixels, C = sizes
    BC = _tile(C)
    # Older versions unroll a product without tensor cores, which spills from 32 pixels on.
    BP = 1024 if _triton.INTERPRETING else 32 if _triton.version() >= (3, 9) else 16
    tiles = (-(-C // BC)) ** 2
    programs = max(1, min(_PROGRAMS // tiles, images * -(-pixels // BP)))
    outer, sums = a.t.new_empty((programs, C, C), dtype=dtype), a.t.new_empty((programs, C), dtype=dtype)
    _triton.launch(
        lu_outer, programs * tiles, a.t, b.t, a.t if order is None else order, outer, sums, images, pixels, C,
        *a.strides, *b.strides, ORDER=order is not None, PROGRAMS=programs, BP=BP, BC=BC,
        PRECISION=_triton.precision(dtype), dtype=_triton.language_dtype(dtype), num_warps=8,
    )  # fmt: skip
    return outer.double().sum(0), sums.double().sum(0)


def fwd(spec: ChannelSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    x, dim = tensors[0], spec.channel_dim
    y, ladj = _channels.outputs(x, dim, numbers(tensors))
    dtype = ladj.dtype
    total = log_size(tensors[3].to(dtype), tensors[4].to(dtype)) * _channels.signed_pixels(x, dim, spec.inverse)
    ladj.copy_(total)
    if x.numel() == 0:
        return y, ladj
    f, sizes = _factors(dtype, tensors[1:]), _channels.sizes(x, dim)
    source, to = _read(x, dim), _write(y, dim)
    if spec.inverse:
        _solve(source, f, sizes, y=to)
    else:
        _product(source, f.dense(), f.bias, to, sizes)
    return y if to.t is y else y.copy_(to.t), ladj


def bwd(spec: ChannelSpec, grads: Grads, tensors: Inputs, needs: Needs) -> Grads:
    x, dim = tensors[0], spec.channel_dim
    dtype = _channels.wide(_channels.out_dtype(numbers(tensors)))
    grad_y, grad_ladj = grads
    grad_x = _channels.like(x, dtype) if needs[0] else None
    C = x.shape[dim]
    need_matrix = needs[1] or needs[2] or needs[3] or needs[4] or needs[6]
    of_L, of_U = (x.new_zeros((C, C), dtype=torch.float64) for _ in range(2))
    of_bias = of_U[0]
    s_abs, sign_s = tensors[3].double().exp(), tensors[4].double()
    if x.numel() == 0 or grad_y is None:
        if grad_x is not None:
            grad_x.zero_()
    else:
        f, sizes = _factors(dtype, tensors[1:]), _channels.sizes(x, dim)
        source, g = _read(x, dim), _read(grad_y, dim)
        of_bias, of_L, of_U = (_bwd_inverse if spec.inverse else _bwd_forward)(
            spec, f, sizes, source, g, grad_x, need_matrix
        )
        if f.permutation is not None:
            of_bias = of_bias.index_select(0, f.permutation)
    of_s = of_U.diagonal()
    of_ladj = 0 if grad_ladj is None else grad_ladj.sum() * _channels.signed_pixels(x, dim, spec.inverse)
    of_sign = of_s * s_abs if grad_ladj is None else of_s * s_abs + of_ladj / sign_s
    found: list[Any] = [grad_x, of_L.tril(-1), of_U.triu(1), of_s * s_abs * sign_s + of_ladj, of_sign, None, of_bias]
    has_bias = tensors[6].shape[0] > 0
    if not has_bias:
        found[6] = tensors[6].new_empty(0)
    return [
        None if t is None or not n else t.to(given.dtype) for t, given, n in zip(found, tensors, needs, strict=True)
    ]


Sums = tuple[Tensor, Tensor, Tensor]  # gradients of the bias (before its permutation), L and U


def _bwd_forward(
    spec: ChannelSpec, f: _Factors, sizes: Sequence[int], x: _Walk, g: _Walk, grad_x: Tensor | None, need: bool
) -> Sums:
    """One sum of outer products, that of W: those of its factors follow from it."""
    dtype = f.L.dtype
    if grad_x is not None:
        to = _write(grad_x, spec.channel_dim)
        _product(g, f.dense().mT, None, to, sizes)
        if to.t is not grad_x:
            grad_x.copy_(to.t)
    if not need:
        return f.log_s.double(), f.L.double(), f.U.double()  # asked for by nobody
    G, sums = _outer(g, x, f.back, sizes, dtype)
    return sums, G @ f.U.double().mT, f.L.double().mT @ G


def _bwd_inverse(
    spec: ChannelSpec, f: _Factors, sizes: Sequence[int], y: _Walk, g: _Walk, grad_y: Tensor | None, need: bool
) -> Sums:
    """Both sums are taken: x = U^-1 h may be large where h is not, and G U^T would have to cancel it again."""
    dim, dtype = spec.channel_dim, f.L.dtype
    result, g_h, h, x = (_write(_channels.like(y.t, dtype), dim) for _ in range(4))
    _solve(g, f, sizes, backward=True, between=g_h if need else None, y=result)
    if grad_y is not None:
        grad_y.copy_(result.t)
    if not need:
        return f.log_s.double(), f.L.double(), f.U.double()
    _solve(y, f, sizes, between=h, y=x)
    of_L, sums = _outer(result, h, f.back, sizes, dtype)
    of_U, _ = _outer(g_h, x, None, sizes, dtype)
    return -sums, -of_L, -of_U

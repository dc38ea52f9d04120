"""Planar, radial and Sylvester maps on Triton: describes tensors, allocates, launches once a direction.

Kept for backward are the inputs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkernels._backend import Grads, Inputs, Needs
from flowkernels.ops import _triton
from flowkernels.ops.net.native import flat, widen

from .native import _as_read, _is_shared
from .reference import FLOORS

_MOST_FEATURES, _MOST_WIDTH = 2048, 32  # a program has all of a row in its registers, and a Sylvester layer's matrix
_NUMBERS = 1024  # of a program; of Sylvester layers half as many, by twice the threads: else ptxas spills registers
_ROWS, _ROWS_BACK = 32, 16  # of one at most; with more, the way back spills
_PROGRAMS = 1024  # of backward, each with sums of its own


def why_not(spec: Any, *tensors: Tensor) -> str | None:
    if spec.kind == "sylvester" and tensors[2].shape[-1] > _MOST_WIDTH:
        return f"a Sylvester layer has more than {_MOST_WIDTH} columns"
    if tensors[0].shape[-1] > _MOST_FEATURES:
        return f"more than {_MOST_FEATURES} features"
    return _triton.why_not(tensors)


class _Call(NamedTuple):
    rows: Tensor
    params: list[Tensor]  # [rows or 1, layers * numbers]
    sizes: tuple[int, ...]  # rows, features, layers, of Sylvester layers their width; strides
    shared: bool
    kept: int  # numbers of a layer and row that backward keeps beside x
    summed: int  # of a layer's gradients that rows share
    R: int
    constants: dict[str, Any]


def _described(spec: Any, tensors: Sequence[Tensor], most: int) -> _Call:
    x, *params = tensors
    rows, shared = flat(x), _is_shared(spec, params)
    B, D = rows.shape
    read = _as_read(spec, params, B)
    BD, most = _triton.power_of_2(D), min(most, _triton.power_of_2(B))
    constants = {"TANH": spec.activation == "tanh", "INVERSE": spec.inverse, "SHARED": shared}
    constants |= {"BELOW": spec.negative_slope, "BD": BD}
    strides = (rows.stride(0), *(t.stride(0) for t in read))
    if spec.kind == "sylvester":
        n, M = params[3].shape[-2:]
        BM = _triton.power_of_2(M)
        R = max(1, min(_NUMBERS // 2 // max(BD, BM * BM), most))
        constants |= {"LIMIT": 1 - torch.finfo(x.dtype).eps, "R": R, "BM": BM, "num_warps": 8}
        return _Call(rows, read, (B, D, n, M, *strides), shared, 2 * M, D * M + 2 * M * M + M, R, constants)
    R = max(1, min(_NUMBERS // BD, most))
    constants |= {"RADIAL": spec.kind == "radial", "ABS": spec.alpha == "abs", "R": R}
    constants |= {"FLOOR": FLOORS[x.dtype], "TINY": torch.finfo(x.dtype).tiny}
    return _Call(rows, read, (B, D, params[2].shape[-1], *strides), shared, 1, 2 * D + 2, R, constants)


def fwd(spec: Any, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    wide = widen(*tensors)
    x = wide[0]
    y, ladj = x.new_empty(x.shape), x.new_empty(x.shape[:-1])
    if ladj.numel() > 0:
        from .triton_kernels import low_rank_fwd
        from .triton_sylvester import sylvester_fwd

        call = _described(spec, wide, _ROWS)
        kernel = sylvester_fwd if spec.kind == "sylvester" else low_rank_fwd
        programs = -(-call.sizes[0] // call.R)
        _triton.launch(kernel, programs, call.rows, *call.params, y, ladj, *call.sizes, **call.constants)
    return y.to(tensors[0].dtype), ladj


def bwd(spec: Any, grads: Grads, tensors: Inputs, needs: Needs) -> Grads:
    wide = widen(*tensors)
    x, params = wide[0], wide[1:]
    if x.numel() == 0:
        return [t.new_zeros(t.shape) if need else None for t, need in zip(tensors, needs, strict=True)]
    from .triton_kernels import low_rank_bwd
    from .triton_sylvester import sylvester_bwd

    call = _described(spec, wide, _ROWS_BACK)
    B, D, n = call.sizes[:3]
    of_y, of_ladj = (None if g is None else g.to(x.dtype).resolve_neg().contiguous() for g in grads)
    of_x = x.new_empty(x.shape)
    wanted = any(needs[1:])
    own = wanted and not call.shared
    found = [torch.empty_like(t, memory_format=torch.contiguous_format) if own else x for t in params]
    programs = min(-(-B // call.R), _PROGRAMS)
    shape = (programs, n, call.summed) if wanted and call.shared else (0,)
    sums = torch.zeros(shape, dtype=torch.float64, device=x.device)
    given = (x if g is None else g for g in (of_y, of_ladj))
    _triton.launch(
        sylvester_bwd if spec.kind == "sylvester" else low_rank_bwd, programs, call.rows, *call.params, *given, of_x,
        *found, x.new_empty(n * B * D), x.new_empty(n * B * call.kept), sums, *call.sizes, HAS_Y=of_y is not None,
        HAS_LADJ=of_ladj is not None, PARAMS=wanted, **call.constants,
    )  # fmt: skip
    if wanted and call.shared:
        found = _finished(spec, sums.sum(0), params, D)
    out = [of_x, *found]
    return [g.to(t.dtype) if need else None for g, t, need in zip(out, tensors, needs, strict=True)]


def _finished(spec: Any, sums: Tensor, params: Sequence[Tensor], D: int) -> list[Tensor]:
    """From what backward has summed, in float64, to the gradients of shared parameters."""
    if spec.kind == "sylvester":
        return [g.view(t.shape) for g, t in zip(sums.split([t[0].numel() for t in params], 1), params, strict=True)]
    of_first, of_second, of_third, of_fourth = sums[:, :D], sums[:, D : 2 * D], sums[:, -2], sums[:, -1]
    if spec.kind == "radial":
        return [of_first, of_third, of_fourth]
    u, w = (t.double() for t in params[:2])
    inner, square = (u * w).sum(-1), w.square().sum(-1)
    none = square < torch.finfo(params[0].dtype).tiny
    slope, per = inner.sigmoid(), 1 / torch.where(none, 1.0, square)
    plus = torch.nn.functional.softplus(inner, threshold=40).clamp(min=FLOORS[params[0].dtype])
    k = torch.where(none, 0.0, (plus - 1 - inner) * per)
    along = (of_first * w).sum(-1)
    of_inner = torch.where(none, of_fourth, of_fourth * slope + along * (slope - 1) * per)
    of_square = torch.where(none, 0.0, -2 * along * k * per)
    of_u = of_first + of_inner[:, None] * w
    of_w = of_second + k[:, None] * of_first + of_inner[:, None] * u + of_square[:, None] * w
    return [of_u, of_w, of_third]

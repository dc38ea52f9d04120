"""The spline on Triton: describes strides, allocates, launches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkernels._backend import Grads, Inputs, Needs
from flowkernels.ops import _triton

from .spec import NO_LINEAR, RQS

# Of a program, one per thread. The interpreter's time goes by programs, not by their sizes.
_ELEMENTS = 1024 if _triton.INTERPRETING else 128


def why_not(spec: RQS, x: Tensor, params: Tensor) -> str | None:
    return NO_LINEAR if spec.is_linear else _triton.why_not((x, params))


def _settings(spec: RQS, D: int, wide: bool) -> dict[str, Any]:
    """The constants of a kernel."""
    BD = min(_triton.power_of_2(D), _ELEMENTS)
    return spec.numbers(wide) | {"R": _ELEMENTS // BD, "BD": BD, "num_warps": 4}


def _rows(bins: int, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """[rows, D], [rows, D, P] and their sizes and strides: views where the leading dims merge, copies where not."""
    D, P = params.shape[-2:]
    x, params = x.resolve_neg().reshape(-1, D), params.resolve_neg().reshape(-1, D, P)
    return x, params, (x.shape[0], D, bins, *x.stride(), *params.stride())


def fwd(spec: RQS, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, params.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    ladj = torch.empty(x.shape[:-1], dtype=wide, device=x.device)
    if x.numel() == 0:
        return y, ladj.zero_()
    from .triton_kernels import rqs_fwd

    x, params, geometry = _rows(spec.bins, x, params)
    constants = _settings(spec, geometry[1], wide is torch.float64)
    _triton.launch(rqs_fwd, -(-geometry[0] // constants["R"]), x, params, y, ladj, *geometry, **constants)
    return y, ladj


def bwd(spec: RQS, grads: Grads, tensors: Inputs, needs: Needs) -> Grads:
    x, params = tensors
    grad_x, grad_params = (
        torch.empty(t.shape, dtype=t.dtype, device=t.device) if n else None for t, n in zip(tensors, needs, strict=True)
    )
    if x.numel() == 0:
        return grad_x, grad_params
    from .triton_kernels import rqs_bwd

    wide = torch.promote_types(torch.promote_types(x.dtype, params.dtype), torch.float32)
    grad_y, grad_ladj = (None if g is None else g.contiguous().resolve_neg() for g in grads)
    x, params, geometry = _rows(spec.bins, x, params)
    constants = _settings(spec, geometry[1], wide is torch.float64)
    _triton.launch(
        rqs_bwd, -(-geometry[0] // constants["R"]),
        x, params, *(x if t is None else t for t in (grad_y, grad_ladj, grad_x, grad_params)), *geometry,
        **constants, HAS_Y=grad_y is not None, HAS_LADJ=grad_ladj is not None, NEED_X=needs[0],
        NEED_PARAMS=needs[1], dtype=_triton.language_dtype(wide),
    )  # fmt: skip
    return grad_x, grad_params

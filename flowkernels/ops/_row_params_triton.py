"""Maps whose parameters are rows of one tensor, on Triton: describes strides, allocates, launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkernels._backend import Grads, Inputs, Needs
from flowkernels.ops import _triton


class Kernels(NamedTuple):
    """A map as its kernels take it."""

    fwd: Any
    bwd: Any
    more: tuple[Any, ...]  # arguments behind rows and D
    constants: dict[str, Any]
    elements: int  # of a program


def in_tiles(columns: int) -> int:
    """Elements of a program that has each as a row of tiles of so many columns: of a dozen tiles at a time two numbers
    a thread; with four some kernels spill, with 32 they compile for minutes. The interpreter's time goes by programs,
    not by their sizes."""
    return max(1, min(128, 256 // columns)) * (64 if _triton.INTERPRETING else 1)


# Of settings, of whether float64 is computed in, and of the device.
Described = Callable[[Any, bool, torch.device], Kernels]


def _near(t: Tensor) -> Tensor:
    """A tensor whose rows kernels can walk in 32 bits: a copy, where one has its numbers further apart than that.
    (Kernels that walk in 64 bits spill registers, for a layout that hardly anyone has.)"""
    span = sum((size - 1) * stride for size, stride in zip(t.shape[1:], t.stride()[1:], strict=True))
    return t if span < 2**31 else t.contiguous()


def _rows(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor, tuple[int, int], tuple[int, ...]]:
    """[rows, D], [rows, D, P], their sizes and strides: views where the leading dims merge, copies where not."""
    D, P = params.shape[-2:]
    x, params = _near(x.resolve_neg().reshape(-1, D)), _near(params.resolve_neg().reshape(-1, D, P))
    return x, params, (x.shape[0], D), (*x.stride(), *params.stride())


def _programs(kernels: Kernels, rows: int, D: int) -> tuple[int, dict[str, Any]]:
    BD = min(_triton.power_of_2(D), kernels.elements)
    R = kernels.elements // BD
    return -(-rows // R), kernels.constants | {"R": R, "BD": BD, "num_warps": 4}


def fwd(described: Described, spec: Any, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, params.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    ladj = torch.empty(x.shape[:-1], dtype=wide, device=x.device)
    if x.numel() == 0:
        return y, ladj.zero_()
    kernels = described(spec, wide is torch.float64, x.device)
    x, params, sizes, strides = _rows(x, params)
    programs, constants = _programs(kernels, *sizes)
    _triton.launch(kernels.fwd, programs, x, params, y, ladj, *sizes, *kernels.more, *strides, **constants)
    return y, ladj


def bwd(described: Described, spec: Any, grads: Grads, tensors: Inputs, needs: Needs) -> Grads:
    x, params = tensors
    grad_x, grad_params = (
        torch.empty(t.shape, dtype=t.dtype, device=t.device) if n else None for t, n in zip(tensors, needs, strict=True)
    )
    if x.numel() == 0:
        return grad_x, grad_params
    wide = torch.promote_types(torch.promote_types(x.dtype, params.dtype), torch.float32)
    kernels = described(spec, wide is torch.float64, x.device)
    grad_y, grad_ladj = (None if g is None else g.contiguous().resolve_neg() for g in grads)
    x, params, sizes, strides = _rows(x, params)
    programs, constants = _programs(kernels, *sizes)
    _triton.launch(
        kernels.bwd, programs,
        x, params, *(x if t is None else t for t in (grad_y, grad_ladj, grad_x, grad_params)), *sizes, *kernels.more,
        *strides, **constants, HAS_Y=grad_y is not None, HAS_LADJ=grad_ladj is not None, NEED_X=needs[0],
        NEED_PARAMS=needs[1], dtype=_triton.language_dtype(wide),
    )  # fmt: skip
    return grad_x, grad_params

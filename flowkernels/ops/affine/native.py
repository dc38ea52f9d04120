"""The affine map on the compiled kernels of a CPU or a GPU: allocates, describes strides, calls."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels import _native
from flowkernels._machine import CPU, CUDA, Backend, Cpu, Cuda
from flowkernels._native import DTYPES

from .spec import SCALES, AffineSpec

_MAX_DIMS = 12  # of csrc/affine/affine_cuda.cu, when none can be merged
_Operand = tuple[int, Sequence[int]]  # address and strides, in elements; 0: absent
_ABSENT: _Operand = (0, ())
_NOTHING_PASSES = (0, 0, 0, 0, 0)


def why_not(on: Cpu | Cuda, spec: AffineSpec, *tensors: Tensor | None) -> str | None:
    if isinstance(on, Cuda) and tensors[0] is not None and tensors[0].dim() > _MAX_DIMS:
        return f"x has more than {_MAX_DIMS} dims"
    return on.why_not(tensors)


@functools.lru_cache(maxsize=1024)
def handle(module: Any, spec: AffineSpec) -> Any:
    """The settings as this compiled module takes them."""
    scale = SCALES.index(spec.scale)
    return module.AffineSpec(scale, spec.min_scale, spec.clamp, spec.inverse, spec.low, spec.high, spec.shift_first)


def _operand(t: Tensor | None) -> _Operand:
    return _ABSENT if t is None else (t.data_ptr(), t.stride())


def _places(spec: AffineSpec, params: Tensor | None, shift: Tensor | None) -> tuple[_Operand, _Operand]:
    """Logit and shift, where they lie in the tensors of parameters, or of their gradients."""
    if params is None or shift is not None:
        return _operand(params), _operand(shift)
    at, (*stride, apart) = params.data_ptr(), params.stride()
    if spec.scale == "additive":
        return _ABSENT, (at, stride)
    first, second = (at, stride), (at + apart * params.element_size(), stride)
    return (second, first) if spec.shift_first else (first, second)


def _readable(x: Tensor, *params: Tensor | None) -> tuple[Tensor, Sequence[Tensor | None]]:
    """Of types the kernels have, and with the values that are in memory: a view may say minus."""
    if params[0] is not None and x.dtype is not params[0].dtype:
        pairs = [(x, p) if p is None else _native.common_types(x, p) for p in params]
        x, params = pairs[0][0], tuple(p for _, p in pairs)
    return x.resolve_neg(), [p if p is None else p.resolve_neg() for p in params]


def _mask_operand(shape: Sequence[int], mask: Tensor | None) -> _Operand:
    return _operand(None if mask is None else mask.expand(shape))


def _mapped(spec: AffineSpec, t: Tensor | None) -> _Operand:
    """The part of a tensor shaped like x that is mapped. (A view costs four times what this does.)"""
    if t is None or not spec.in_part:
        return _operand(t)
    stride = t.stride()
    d = len(stride) - spec.event_dims
    at = t.data_ptr() + spec.start * stride[d] * t.element_size()
    return at, stride if spec.step == 1 else (*stride[:d], stride[d] * spec.step, *stride[d + 1 :])


def _mapped_shape(spec: AffineSpec, x: Tensor) -> Sequence[int]:
    if not spec.in_part:
        return x.shape
    d = x.dim() - spec.event_dims
    return (*x.shape[:d], len(range(spec.start, spec.stop, spec.step)), *x.shape[d + 1 :])


def _pass_others(spec: AffineSpec, x: Tensor | None, out: Tensor | None) -> tuple[int, ...]:
    """What is not mapped, to where the kernel does not write: by the kernel where rows are dense, or else here."""
    if out is None or not spec.in_part:
        return _NOTHING_PASSES
    if spec.step == 1 and out.is_contiguous() and (x is None or (x.is_contiguous() and x.dtype is out.dtype)):
        d = out.dim() - spec.event_dims
        inner = math.prod(out.shape[d + 1 :]) * out.element_size()
        source = 0 if x is None else x.data_ptr()
        return source, out.data_ptr(), out.shape[d] * inner, spec.start * inner, spec.stop * inner
    rest = spec.others(out)
    for to, value in zip(rest, [None] * len(rest) if x is None else spec.others(x), strict=True):
        to.zero_() if value is None else to.copy_(value)
    return _NOTHING_PASSES


def fwd(
    on: Cpu | Cuda, spec: AffineSpec, x: Tensor, params: Tensor, shift: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    x, (params, shift) = _readable(x, params, shift)  # type: ignore[misc]
    y = on.like(x)
    ladj = x.new_empty(x.shape[: x.dim() - spec.event_dims], dtype=torch.promote_types(x.dtype, torch.float32))
    if x.numel() == 0:
        return y, ladj.zero_()
    passing, shape = _pass_others(spec, x, y), _mapped_shape(spec, x)
    tensors = [_mapped(spec, x), *_places(spec, params, shift), _mask_operand(shape, mask), _mapped(spec, y)]
    on.module.affine_fwd(
        handle(on.module, spec), shape, spec.event_dims, DTYPES[x.dtype], DTYPES[params.dtype], tensors, passing,
        ladj.data_ptr(), *on.where(x),
    )  # fmt: skip
    return y, ladj


def bwd(
    on: Cpu | Cuda,
    spec: AffineSpec,
    grads: Sequence[Tensor | None],
    tensors: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    x_in, params_in, shift_in, mask = tensors
    assert x_in is not None and params_in is not None  # for the type checker
    x, (params, shift) = _readable(x_in, params_in, shift_in)
    grad_y, grad_ladj = (None if g is None else g.resolve_neg() for g in grads)
    grad_ladj = None if grad_ladj is None else grad_ladj.contiguous()
    wants_params = needs[1] or needs[2]
    grad_x = on.like(x) if needs[0] else None
    grad_params, grad_shift = (None if p is None or not wants_params else on.like(p) for p in (params, shift))
    if x.numel() > 0:
        passing, shape = _pass_others(spec, grad_y, grad_x), _mapped_shape(spec, x)
        operands = [
            _mapped(spec, x), *_places(spec, params, shift), _mask_operand(shape, mask), _mapped(spec, grad_y),
            _mapped(spec, grad_x), *_places(spec, grad_params, grad_shift),
        ]  # fmt: skip
        on.module.affine_bwd(
            handle(on.module, spec), shape, spec.event_dims, DTYPES[x.dtype], DTYPES[params.dtype], operands, passing,  # type: ignore[union-attr]
            0 if grad_ladj is None else grad_ladj.data_ptr(), *on.where(x),
        )  # fmt: skip
    found = zip((grad_x, grad_params, grad_shift), (x_in, params_in, shift_in), needs, strict=False)
    return [*(None if g is None or not n else g.to(t.dtype) for g, t, n in found), None]  # type: ignore[union-attr]


cpu, cuda = (Backend(machine, fwd, bwd, why_not) for machine in (CPU, CUDA))

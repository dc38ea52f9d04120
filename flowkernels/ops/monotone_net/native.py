"""Monotone networks on the compiled kernels of a CPU. Describes tensors, allocates, calls.

Kept for backward are the inputs, and of an inverse a copy of what was found.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels import _native
from flowkernels._backend import Backend, Grads, Inputs, Needs
from flowkernels._machine import CPU
from flowkernels._native import DTYPES
from flowkernels.ops._checks import why_not_multiplied
from flowkernels.ops.net.activations import CODES

from .spec import MAX_LAYERS, MonotoneSpec, plain, plain_grads, rule

_WIDE = (torch.float32, torch.float64)


def why_not(spec: MonotoneSpec, *tensors: Tensor) -> str | None:
    reason = CPU.why_not(tensors)
    if reason is not None:
        return reason
    if tensors[0].dtype not in DTYPES:
        return f"no kernel for {tensors[0].dtype}"
    if spec.slope == "quadrature" and spec.form == "integral":
        return 'no kernel for slope="quadrature" yet'
    n = len(tensors) // 2 - 1
    if not 2 <= n <= MAX_LAYERS:
        return f"the net must have from 2 to {MAX_LAYERS} layers"
    return why_not_multiplied(tensors)


@functools.lru_cache(maxsize=256)
def _handle(spec: MonotoneSpec) -> Any:
    nodes, weights = rule(spec.nodes) if spec.form == "integral" else rule(1)
    return _native.C.MonotoneSpec(
        spec.form == "positive", CODES[spec.activation], nodes, weights, spec.log_bound, spec.bound, spec.shift,
        spec.inverse,
    )  # fmt: skip


def _dense(t: Tensor) -> Tensor:
    return t.resolve_neg().contiguous()


def _read(spec: MonotoneSpec, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """x [rows, D], signal [rows, D, S], weights and biases as the kernels read them and as they were given."""
    wide = tensors if tensors[0].dtype in _WIDE else [t.float() for t in tensors]
    x, signal, *given = wide
    rows, D = math.prod(x.shape[:-1]), x.shape[-1]
    layers = [t if t.dim() == 3 - i % 2 else t.unsqueeze(0) for i, t in enumerate(plain(spec, given))]
    x, signal = _dense(x.reshape(rows, D)), _dense(signal.reshape(rows, D, signal.shape[-1]))
    return (x, signal, [_dense(t) for t in layers], given)


def _fwd(spec: MonotoneSpec, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    x, signal, layers, _ = _read(spec, tensors)
    # In the shape of what was given: a view of a kernel's output could not be written to.
    shape = tensors[0].shape
    y, ladj = x.new_empty(shape), x.new_zeros(shape[:-1])
    if x.numel() > 0:
        rows = y.view(x.shape), ladj.view(x.shape[0])
        _native.C.monotone_fwd(_handle(spec), x, signal, layers, *rows, *CPU.where(x))
    return y, ladj


def fwd(spec: MonotoneSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    y, ladj = _fwd(spec, tensors)
    return y.to(tensors[0].dtype), ladj


def fwd_saving(spec: MonotoneSpec, *tensors: Tensor) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    y, ladj = _fwd(spec, tensors)
    given = y.to(tensors[0].dtype)
    return (given, ladj), saved_of(spec, (y.clone() if given is y else y, ladj))


def saved_of(spec: MonotoneSpec, outputs: Sequence[Tensor]) -> list[Tensor]:
    return [outputs[0]] if spec.inverse else []


def bwd(spec: MonotoneSpec, grads: Grads, tensors: Inputs, needs: Needs, saved: Inputs = ()) -> Grads:
    x, signal, layers, given = _read(spec, tensors)
    g_y, g_ladj = grads
    g_y = None if g_y is None else _dense(g_y.to(x.dtype).reshape(x.shape))
    g_ladj = None if g_ladj is None else _dense(g_ladj.to(x.dtype).reshape(x.shape[0]))
    root = None
    if spec.inverse:
        root = _dense(saved[0].to(x.dtype).reshape(x.shape)) if saved else _fwd(spec, tensors)[0]
    g_x = torch.empty_like(x) if needs[0] else None
    g_signal = torch.empty_like(signal) if needs[1] else None
    found = [torch.empty_like(t) if n else None for t, n in zip(layers, needs[2:], strict=True)]
    if x.numel() > 0:
        rest = (g_y, g_ladj, g_x, g_signal, found)
        _native.C.monotone_bwd(_handle(spec), x, signal, layers, root, *rest, *CPU.where(x))
    else:
        found = [None if g is None else g.zero_() for g in found]
    shaped = [None if g is None else g.view(t.shape) for g, t in zip(found, given, strict=True)]
    of_layers = plain_grads(spec, given, shaped)
    out = [g_x, g_signal, *of_layers]
    return [None if g is None else g.view(t.shape).to(t.dtype) for g, t in zip(out, tensors, strict=True)]


cpu = Backend(fwd, why_not, bwd, fwd_saving, saved_of)

"""Monotone networks on the compiled kernels of a CPU or a GPU. Describes tensors, allocates, calls.

Kept for backward are the inputs, and of an inverse a copy of what was found.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels._backend import Grads, Inputs, Needs
from flowkernels._machine import CPU, CUDA, Cpu, Cuda, backend
from flowkernels._native import DTYPES
from flowkernels.ops._checks import why_not_multiplied
from flowkernels.ops.net.activations import CODES

from .spec import MAX_LAYERS, MonotoneSpec, plain, plain_grads, rule

_WIDE = (torch.float32, torch.float64)


_MOST_SUMS = 1 << 23  # numbers that a GPU keeps of slices of the batch


def why_not(on: Cpu | Cuda, spec: MonotoneSpec, *tensors: Tensor) -> str | None:
    reason = on.why_not(tensors) or why_no_kernel(spec, tensors) or why_not_multiplied(tensors)
    if reason is None and isinstance(on, Cuda):
        dtype = torch.promote_types(tensors[0].dtype, torch.float32)
        if not _room(on.module, spec, widths(spec, tensors[1:]), dtype, tensors[0].device.index or 0)[0]:
            return "the units of 32 elements do not fit in the GPU's shared memory"
    return reason


def why_no_kernel(spec: MonotoneSpec, tensors: Sequence[Tensor]) -> str | None:
    """Why no kernel has such a network, whatever the machine."""
    if tensors[0].dtype not in DTYPES:
        return f"no kernel for {tensors[0].dtype}"
    if spec.slope == "quadrature" and spec.form == "integral":
        return 'no kernel for slope="quadrature" yet'
    n = len(tensors) // 2 - 1
    return None if 2 <= n <= MAX_LAYERS else f"the net must have from 2 to {MAX_LAYERS} layers"


def widths(spec: MonotoneSpec, signal_and_layers: Sequence[Tensor]) -> tuple[int, ...]:
    """What enters each layer beside x, and what leaves the last."""
    signal, *layers = signal_and_layers
    return (signal.shape[-1] - spec.shift, *(bias.shape[-1] for bias in layers[1::2]))


@functools.lru_cache(maxsize=256)
def _room(module: Any, spec: MonotoneSpec, widths: tuple[int, ...], dtype: torch.dtype, device: int) -> Any:
    """Whether a net fits a GPU; numbers of its weights as kernels read them, of the sums of their gradients."""
    return module.monotone_room(_handle(module, spec), widths, DTYPES[dtype], device)


@functools.lru_cache(maxsize=256)
def _handle(module: Any, spec: MonotoneSpec) -> Any:
    nodes, weights = rule(spec.nodes) if spec.form == "integral" else rule(1)
    return module.MonotoneSpec(
        spec.form == "positive", CODES[spec.activation], nodes, weights, spec.log_bound, spec.bound, spec.shift,
        spec.inverse,
    )  # fmt: skip


def dense(t: Tensor) -> Tensor:
    return t.resolve_neg().contiguous()


def read(spec: MonotoneSpec, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """x [rows, D], signal [rows, D, S], weights and biases as the kernels read them and as they were given."""
    wide = tensors if tensors[0].dtype in _WIDE else [t.float() for t in tensors]
    x, signal, *given = wide
    rows, D = math.prod(x.shape[:-1]), x.shape[-1]
    layers = [t if t.dim() == 3 - i % 2 else t.unsqueeze(0) for i, t in enumerate(plain(spec, given))]
    x, signal = dense(x.reshape(rows, D)), dense(signal.reshape(rows, D, signal.shape[-1]))
    return (x, signal, [dense(t) for t in layers], given)


def _fwd(on: Cpu | Cuda, spec: MonotoneSpec, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    x, signal, layers, _ = read(spec, tensors)
    # In the shape of what was given: a view of a kernel's output could not be written to.
    shape = tensors[0].shape
    y, ladj = x.new_empty(shape), x.new_zeros(shape[:-1])
    if x.numel() > 0:
        rows = y.view(x.shape), ladj.view(x.shape[0])
        work = (_packed(on, spec, x, signal, layers)[0], x.new_empty(x.shape[::-1])) if isinstance(on, Cuda) else ()
        on.module.monotone_fwd(_handle(on.module, spec), x, signal, layers, *rows, *work, *on.where(x))
    return y, ladj


def _packed(on: Cuda, spec: MonotoneSpec, x: Tensor, signal: Tensor, layers: Sequence[Tensor]) -> tuple[Tensor, int]:
    """Room for the weights as a GPU's kernels read them, and the size of the sums of their gradients, of a set."""
    _, packed, sums = _room(on.module, spec, widths(spec, (signal, *layers)), x.dtype, x.device.index or 0)
    return x.new_empty((layers[0].shape[0], packed)), sums


def slices_of(tiles: int, sets: int, sums: int) -> int:
    """Into how many slices a GPU cuts the elements of a set, to sum gradients of its weights."""
    return max(1, min(tiles, min(512, _MOST_SUMS // sums) // sets))


def _slices(x: Tensor, sets: int, sums: int, weights: bool) -> tuple[Tensor | None, int]:
    """Where a GPU sums gradients of weights, and in how many slices."""
    tiles = -(-x.shape[0] // 32) * (x.shape[1] if sets == 1 else 1)
    if not weights:
        return None, min(tiles, 1 << 20)
    slices = slices_of(tiles, sets, sums)
    return x.new_empty((sets, slices, sums), dtype=torch.float64), slices


def fwd(on: Cpu | Cuda, spec: MonotoneSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    y, ladj = _fwd(on, spec, tensors)
    return y.to(tensors[0].dtype), ladj


def fwd_saving(on: Cpu | Cuda, spec: MonotoneSpec, *tensors: Tensor) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    y, ladj = _fwd(on, spec, tensors)
    given = y.to(tensors[0].dtype)
    return (given, ladj), saved_of(spec, (y.clone() if given is y else y, ladj))


def saved_of(spec: MonotoneSpec, outputs: Sequence[Tensor]) -> list[Tensor]:
    return [outputs[0]] if spec.inverse else []


def bwd(on: Cpu | Cuda, spec: MonotoneSpec, grads: Grads, tensors: Inputs, needs: Needs, saved: Inputs = ()) -> Grads:
    x, signal, layers, given = read(spec, tensors)
    g_y, g_ladj = grads
    g_y = None if g_y is None else dense(g_y.to(x.dtype).reshape(x.shape))
    g_ladj = None if g_ladj is None else dense(g_ladj.to(x.dtype).reshape(x.shape[0]))
    root = None
    if spec.inverse:
        root = dense(saved[0].to(x.dtype).reshape(x.shape)) if saved else _fwd(on, spec, tensors)[0]
    g_x = torch.empty_like(x) if needs[0] else None
    g_signal = torch.empty_like(signal) if needs[1] else None
    found = [torch.empty_like(t) if n else None for t, n in zip(layers, needs[2:], strict=True)]
    if x.numel() > 0:
        work: tuple[Any, ...] = ()
        if isinstance(on, Cuda):
            packed, sums = _packed(on, spec, x, signal, layers)
            work = (packed, *_slices(x, layers[0].shape[0], sums, any(needs[2:])))
        rest = (g_y, g_ladj, g_x, g_signal, found, *work)
        on.module.monotone_bwd(_handle(on.module, spec), x, signal, layers, root, *rest, *on.where(x))
    else:
        found = [None if g is None else g.zero_() for g in found]
    shaped = [None if g is None else g.view(t.shape) for g, t in zip(found, given, strict=True)]
    of_layers = plain_grads(spec, given, shaped)
    out = [g_x, g_signal, *of_layers]
    return [None if g is None else g.view(t.shape).to(t.dtype) for g, t in zip(out, tensors, strict=True)]


cpu, cuda = (backend(machine, fwd, bwd, why_not, fwd_saving, saved_of) for machine in (CPU, CUDA))

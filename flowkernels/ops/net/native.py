"""Networks on the compiled kernels of a CPU: a whole net runs on one tile of rows before the next, products that a mask
skips are not formed, nothing between layers travels through memory. Describes tensors, allocates, calls.

Kept for backward is what enters each hidden layer (of a residual net: the second layer of each block), and the output
where it has an activation.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels import _native
from flowkernels._backend import Grads, Inputs, Needs
from flowkernels._machine import CPU, Cpu, Cuda
from flowkernels._native import DTYPES
from flowkernels.ops._checks import why_not_multiplied

from .activations import CODES, SLOPE_NEEDS_INPUT
from .spec import NetSpec

_threads = torch.get_num_threads
KERNELS = (torch.float32, torch.float64)
_MAX_LAYERS = 64  # kMaxLayers of csrc/net/net.h


def why_not(spec: Any, *tensors: Tensor) -> str | None:
    return why_not_run(tensors)


def why_not_run(tensors: Sequence[Tensor], on: Cpu | Cuda = CPU) -> str | None:
    """Why these tensors (x first, all of one dtype) cannot run on the compiled kernels, or None."""
    reason = on.why_not(tensors)
    if reason is not None:
        return reason
    dtype = tensors[0].dtype
    if dtype not in DTYPES:
        return f"no kernel for {dtype}"
    if tensors[0].shape[-1] == 0:
        return "x has no features"
    if len(tensors) > 1 + 2 * _MAX_LAYERS:
        return f"the net may have more than {_MAX_LAYERS} layers"
    return why_not_multiplied(tensors)


# ---- tensors as the kernels read them ----


def widen(*tensors: Tensor) -> Sequence[Tensor]:
    """The tensors in a dtype the kernels compute in: 16-bit ones in float32, others as they are."""
    return tensors if tensors[0].dtype in KERNELS else [t.float() for t in tensors]


def outputs(x: Tensor) -> tuple[Tensor, Tensor]:
    """Room for y ``[..., D]`` and ladj ``[...]``. A shape is parsed in twice the time of a number, or of a tensor's."""
    y = torch.empty_like(x) if x.is_contiguous() else x.new_empty(x.shape)
    return y, x.new_empty(x.shape[0]) if x.dim() == 2 else x.new_empty(x.shape[:-1])


def rows_dense(t: Tensor) -> Tensor:
    """A tensor whose rows the kernels can walk: dense, at any distance, in memory as they read."""
    if t.is_neg():
        t = t.resolve_neg()
    return t if t.is_contiguous() or t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def dense(t: Tensor) -> Tensor:
    """A matrix whose rows are each dense, or another tensor that is dense."""
    return rows_dense(t) if t.dim() == 2 else t.resolve_neg().contiguous()


def given_and_saved(
    inverse: bool, y: Tensor, ladj: Tensor, dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    """A map's results, and what its backward pass has of them: of an inverse a copy of y that nobody writes to."""
    given = y.to(dtype)
    return (given, ladj), [y.clone() if given is y else y] if inverse else []


def flat(x: Tensor) -> Tensor:
    """``[..., D]`` as ``[rows, D]`` with dense rows."""
    if x.dim() == 2 and x.is_contiguous() and not x.is_neg():
        return x
    return rows_dense(x if x.dim() == 2 else x.reshape(-1, x.shape[-1]))


# ---- a network as the kernels take it ----


@functools.lru_cache(maxsize=1024)
def spec_handle(spec: NetSpec, module: Any, device: torch.device | None = None) -> Any:
    """The spec as this compiled module takes it; `device`: where masks are to be, None for the CPU."""
    masks = [plan.handle(module, device) for plan in spec.masks()] or [None] * spec.n
    no = [False] * spec.n
    return module.NetSpec(
        masks=masks, residual=spec.residual, activation=CODES[spec.activation], last=CODES[spec.last],
        has_bias=spec.has_bias, adds=spec.adds or no, gates=spec.gates or no, scales=spec.scales or no,
    )  # fmt: skip


def as_read(spec: NetSpec, tensors: Sequence[Tensor], lead: Sequence[int]) -> list[Tensor]:
    """The tensors behind x as the kernels read them: matrices of dense rows."""
    at, terms = spec.n_weights(), sum(spec.adds) + sum(spec.gates)  # of which each has a row for each of x
    found = [*tensors[:at]]
    if _native.C is None or not _native.C.are_dense(tuple(found)):
        found = [t if t.is_contiguous() and not t.is_neg() else rows_dense(t) for t in found]
    found += [flat(t.expand(*lead, t.shape[-1])) for t in tensors[at : at + terms]]
    return found + [t.resolve_neg().contiguous() for t in tensors[at + terms :]]


def handle(
    spec: NetSpec,
    tensors: Sequence[Tensor],
    lead: Sequence[int],
    rows: int,
    kept: Sequence[Tensor | None] = (),
    grads: Sequence[Tensor | None] = (),
    module: Any = _native.C,
    device: torch.device | None = None,
) -> Any:
    """The network of a call on so many rows, whose leading dims are `lead`; tensors are those behind x.

    ``kept``: per layer what enters it, to be written forward and read backward. ``grads``: room beside each tensor.
    """
    plan = spec_handle(spec, module, device)
    if module is _native.C:
        net = module.dense_net(plan, rows, tuple(tensors), kept, grads)
        if net is not None:
            return net
    return module.Net(plan, rows, as_read(spec, tensors, lead), kept, grads)


def _kept_layers(spec: NetSpec) -> range:
    return range(2, spec.n - 1, 2) if spec.residual else range(1, spec.n)


def keep(spec: NetSpec, tensors: Sequence[Tensor], rows: int) -> list[Tensor | None]:
    """Room for what enters each layer, where it is kept for the backward pass; empty: nothing is.

    Of a residual net what enters the second layer of each block: a third of what module by module keeps, and half of
    the products that backward would do again. Where a slope needs what an activation was given, nothing.
    """
    if spec.activation in SLOPE_NEEDS_INPUT:
        return []
    kept: list[Tensor | None] = [None] * spec.n
    for i in _kept_layers(spec):
        weight = tensors[2 * i if spec.has_bias else i]
        kept[i] = CPU.room(weight, rows, weight.shape[1])
    return kept


def saved_from(kept: Sequence[Tensor | None]) -> list[Tensor]:
    """What `keep` made, without the layers that keep nothing."""
    return [t for t in kept if t is not None]


def reuse(spec: NetSpec, saved: Sequence[Tensor]) -> list[Tensor | None]:
    """What was saved by `saved_from`, per layer."""
    if not saved:
        return []
    kept: list[Tensor | None] = [None] * spec.n
    for i, t in zip(_kept_layers(spec), saved, strict=True):
        kept[i] = t
    return kept


def allocate_grads(spec: NetSpec, tensors: Sequence[Tensor], needs: Sequence[bool], rows: int) -> list[Tensor | None]:
    """Room for the gradients that are wanted, of what is behind x; zeros where no kernel will run."""
    at, found = spec.n_weights(), []
    terms = range(at, at + sum(spec.adds) + sum(spec.gates))
    for i, (t, need) in enumerate(zip(tensors, needs, strict=True)):
        shape = (rows, t.shape[-1]) if i in terms else t.shape
        found.append(None if not need else t.new_empty(shape) if rows else t.new_zeros(shape))
    return found


def given_back(grads: Sequence[Tensor | None], tensors: Sequence[Tensor], lead: Sequence[int]) -> list[Tensor | None]:
    """Gradients in the shapes and dtypes of the tensors as they were given, behind x.

    A term that was expanded to the rows gets the sum over them.
    """
    out: list[Tensor | None] = []
    for g, t in zip(grads, tensors, strict=True):
        if g is not None:
            if g.shape != t.shape:
                g = g.view(*lead, g.shape[-1]).sum_to_size(t.shape)
            g = g.to(t.dtype)
        out.append(g)
    return out


# ---- the op ----


def _fwd(spec: NetSpec, wide: Sequence[Tensor], kept: Sequence[Tensor | None] = ()) -> Tensor:
    x, *tensors = wide
    rows = flat(x)
    n_out = tensors[spec.n_weights() - (2 if spec.has_bias else 1)].shape[0]
    y = x.new_empty((*x.shape[:-1], n_out))
    if rows.shape[0] > 0:
        _native.C.net_fwd(handle(spec, tensors, x.shape[:-1], rows.shape[0], kept), rows, y, _threads())
    return y


def fwd(spec: NetSpec, *tensors: Tensor) -> tuple[Tensor]:
    return (_fwd(spec, widen(*tensors)).to(tensors[0].dtype),)


def fwd_saving(spec: NetSpec, *tensors: Tensor) -> tuple[tuple[Tensor], list[Tensor]]:
    wide = widen(*tensors)
    kept = keep(spec, wide[1:], wide[0].numel() // wide[0].shape[-1])
    y = _fwd(spec, wide, kept)
    # The output is not kept without an activation: whoever comes next may write into it, as into a linear layer's.
    return (y.to(tensors[0].dtype),), [*saved_from(kept), *([] if spec.last == "identity" else [y])]


def saved_of(spec: NetSpec, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return widen(*outputs)


def bwd(spec: NetSpec, grads: Grads, tensors: Inputs, needs: Needs, saved: Inputs = ()) -> Grads:
    g = grads[0]
    if g is None:
        return [None] * len(tensors)
    wide = widen(*tensors)
    x, lead = wide[0], wide[0].shape[:-1]
    rows, of_y = flat(x), spec.last != "identity" and len(saved) > 0
    y, saved = (saved[-1].contiguous(), saved[:-1]) if of_y else (None, saved)
    found = allocate_grads(spec, wide[1:], needs[1:], rows.shape[0])
    grad_x = x.new_empty(x.shape) if needs[0] else None
    if rows.shape[0] > 0:
        net = handle(spec, wide[1:], lead, rows.shape[0], reuse(spec, saved), found)
        _native.C.net_bwd(net, rows, y, g.to(x.dtype).contiguous().resolve_neg(), grad_x, _threads())
    return [None if grad_x is None else grad_x.to(g.dtype), *given_back(found, tensors[1:], lead)]

"""The affine map on Triton: finds the loops that all tensors share, allocates, launches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels._backend import Grads, Needs
from flowkernels.ops import _triton

from .layout import Layout
from .spec import Affine, AffineCall

_ELEMENTS = 4096 if _triton.INTERPRETING else 1024  # of a program; the interpreter's time goes by programs
_PROGRAMS = 1024  # as many as fill a GPU: fewer rows than that share their events out
_MAX_DIMS = 3  # of an event


def why_not(spec: AffineCall, *tensors: Tensor | None) -> str | None:
    reason = _triton.why_not(tensors)
    if reason is None and tensors[0] is not None:
        shape = tensors[0].shape
        if math.prod(shape[len(shape) - spec.layout.event_dims :]) >= 1 << 30:
            return "an event has more than 2^30 elements"
    return reason


def _loops(layout: Layout, tensors: Sequence[Tensor | None]) -> tuple[list[int], list[list[int]]] | None:
    """Sizes (rows, then up to three of the event) and each tensor's strides of them; None: there would be more.

    The event is walked in the memory order of the first tensor; dims become one where every tensor allows it.
    """
    x = tensors[0]
    assert x is not None
    n_rows = x.dim() - layout.event_dims

    def merged(dims: Sequence[int]) -> tuple[list[int], list[list[int]]]:
        sizes, found = [], [[] for _ in tensors]
        for d in dims:
            if x.shape[d] == 1:
                continue
            steps = [0 if t is None else t.stride(d) for t in tensors]
            if sizes and all(s[-1] == x.shape[d] * step for s, step in zip(found, steps, strict=True)):
                sizes[-1] *= x.shape[d]
                for s, step in zip(found, steps, strict=True):
                    s[-1] = step
            else:
                sizes.append(x.shape[d])
                for s, step in zip(found, steps, strict=True):
                    s.append(step)
        return sizes, found

    rows, row_strides = merged(range(n_rows))
    event, strides = merged(sorted(range(n_rows, x.dim()), key=x.stride, reverse=True))
    if len(rows) > 1 or len(event) > _MAX_DIMS:
        return None
    pad = _MAX_DIMS - len(event)
    sizes = [*(rows or [1]), *event, *[1] * pad]
    return sizes, [[*(r or [0]), *s, *[0] * pad] for r, s in zip(row_strides, strides, strict=True)]


def _operands(layout: Layout, x: Tensor, tensors: Sequence[Tensor | None], outputs: Sequence[Tensor | None]):
    """x and the other inputs as they lie, or dense copies where their strides have no loops in common; the sizes, and
    strides of all. Outputs must have x's order of dims, or are to be written through dense ones."""
    given = [x, *tensors, *outputs]
    found = _loops(layout, given)
    if found is None:
        read = [t if t is None else t.contiguous() for t in given[: len(tensors) + 1]]
        given = [*read, *(t if t is None else torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in outputs)]
        found = _loops(layout, given)
        assert found is not None  # dense tensors have one loop over rows and one over the event
    return given, *found


def _places(spec: Affine, params: Tensor | None, shift: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Logit and shift, where they lie in the tensors of parameters, or of their gradients."""
    if params is None or shift is not None:
        return params, shift
    if spec.scale == "additive":
        return None, params[..., 0]
    first, second = params.unbind(-1)
    return (second, first) if spec.shift_first else (first, second)


def _constants(spec: Affine, sizes: Sequence[int]) -> tuple[int, dict[str, Any]]:
    """Number of programs, and the kernel's constants."""
    event = sizes[1] * sizes[2] * sizes[3]
    BE = min(_triton.power_of_2(event), _ELEMENTS)
    R = max(1, min(_ELEMENTS // BE, _triton.power_of_2(sizes[0])))
    blocks = -(-sizes[0] // R)
    parts = max(1, min(-(-event // BE), _PROGRAMS // blocks))
    return blocks * parts, {
        **spec.numbers,
        "PARTS": parts,
        "R": R,
        "BE": BE,
    }


def _prepared(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.resolve_neg()


def _event_mask(x: Tensor, mask: Tensor | None) -> Tensor | None:
    """Of every row, at no cost: the kernel reads bytes."""
    return None if mask is None else mask.view(torch.uint8).expand(x.shape)


def fwd(
    spec: AffineCall, x: Tensor, params: Tensor, shift: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    f, layout = spec
    dtype = torch.promote_types(x.dtype, params.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    y = torch.empty_like(x, dtype=dtype)
    lead = x.shape[: x.dim() - layout.event_dims]
    if x.numel() == 0:
        return y, torch.zeros(lead, dtype=wide, device=x.device)
    from .triton_kernels import affine_fwd

    x = x.resolve_neg()
    if layout.in_part():
        for to, value in zip(layout.others(y), layout.others(x), strict=True):
            to.copy_(value)
    v, out = layout.mapped(x), layout.mapped(y)
    u, t = _places(f, _prepared(params), _prepared(shift))
    (v, u, t, mask, to), sizes, strides = _operands(layout, v, (u, t, _event_mask(v, mask)), (out,))
    programs, constants = _constants(f, sizes)
    parts = constants["PARTS"]
    ladj = torch.empty((*lead, parts), dtype=wide if parts == 1 else torch.float64, device=x.device)
    _triton.launch(
        affine_fwd, programs,
        v, v if u is None else u, t, v if mask is None else mask, to, ladj, *sizes, *strides[0], *strides[1],
        *strides[2], *strides[3][1:], *strides[4], **constants, MASK=mask is not None,
        dtype=_triton.language_dtype(wide),
    )  # fmt: skip
    if to is not out:
        out.copy_(to)
    return y, ladj[..., 0] if parts == 1 else ladj.sum(-1).to(wide)


def bwd(spec: AffineCall, grads: Grads, tensors: Sequence[Tensor | None], needs: Needs) -> Grads:
    x, params, shift, mask = tensors
    f, layout = spec
    assert x is not None and params is not None  # for the type checker
    wide = torch.promote_types(torch.promote_types(x.dtype, params.dtype), torch.float32)
    wants_params = needs[1] or needs[2]
    grad_x = torch.empty_like(x) if needs[0] else None
    grad_params, grad_shift = (None if p is None or not wants_params else torch.empty_like(p) for p in (params, shift))
    if x.numel() > 0:
        from .triton_kernels import affine_bwd

        grad_y, grad_ladj = (_prepared(g) for g in grads)
        grad_ladj = None if grad_ladj is None else grad_ladj.contiguous()
        if layout.in_part() and grad_x is not None:
            for i, to in enumerate(layout.others(grad_x)):
                to.zero_() if grad_y is None else to.copy_(layout.others(grad_y)[i])
        v = layout.mapped(x.resolve_neg())
        u, t = _places(f, _prepared(params), _prepared(shift))
        outputs = (None if grad_x is None else layout.mapped(grad_x), *_places(f, grad_params, grad_shift))
        given = (u, t, _event_mask(v, mask), None if grad_y is None else layout.mapped(grad_y))
        used, sizes, strides = _operands(layout, v, given, outputs)
        programs, constants = _constants(f, sizes)
        v, u, t, mask, grad_y, *to = used
        _triton.launch(
            affine_bwd, programs,
            *(v if o is None else o for o in (v, u, t, mask, grad_y, grad_ladj, *to)), *sizes, *strides[0],
            *strides[1], *strides[2], *strides[3][1:], *(s for rest in strides[4:] for s in rest), **constants,
            MASK=mask is not None, HAS_Y=grad_y is not None, HAS_LADJ=grad_ladj is not None,
            NEED_X=grad_x is not None, NEED_PARAMS=wants_params, dtype=_triton.language_dtype(wide),
        )  # fmt: skip
        for o, written in zip(outputs, to, strict=True):
            if o is not None and o is not written:
                o.copy_(written)
    return [g if n else None for g, n in zip((grad_x, grad_params, grad_shift), needs, strict=False)] + [None]

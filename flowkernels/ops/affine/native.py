"""The affine map on the compiled kernels of a CPU or a GPU: allocates, calls."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowkernels import _native
from flowkernels._backend import Grads, Needs
from flowkernels._machine import CPU, CUDA, Cpu, Cuda, backend

from .layout import Layout
from .spec import AffineCall

_MAX_DIMS = 12  # of csrc/affine/affine_cuda.cu, when none can be merged


def why_not(on: Cpu | Cuda, spec: AffineCall, *tensors: Tensor | None) -> str | None:
    if isinstance(on, Cuda) and tensors[0] is not None and tensors[0].dim() > _MAX_DIMS:
        return f"x has more than {_MAX_DIMS} dims"
    return on.why_not(tensors)


def _readable(x: Tensor, *params: Tensor | None) -> tuple[Tensor, Sequence[Tensor | None]]:
    """Of types the kernels have, and with the values that are in memory: a view may say minus."""
    if params[0] is not None and x.dtype is not params[0].dtype:
        pairs = [(x, p) if p is None else _native.common_types(x, p) for p in params]
        x, params = pairs[0][0], tuple(p for _, p in pairs)
    return x.resolve_neg(), [p if p is None else p.resolve_neg() for p in params]


def _passes(spec: Layout, x: Tensor | None, out: Tensor | None) -> bool:
    """Sees to it that what is not mapped goes from x (None: zeros) to `out`: True where the kernel is to do that, as
    rows are dense; else it is done here."""
    if out is None or not spec.in_part():
        return False
    if spec.step == 1 and out.is_contiguous() and (x is None or (x.is_contiguous() and x.dtype is out.dtype)):
        return True
    rest = spec.others(out)
    for to, value in zip(rest, [None] * len(rest) if x is None else spec.others(x), strict=True):
        to.zero_() if value is None else to.copy_(value)
    return False


def fwd(
    on: Cpu | Cuda, spec: AffineCall, x: Tensor, params: Tensor, shift: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    x, (params, shift) = _readable(x, params, shift)  # type: ignore[misc]
    y = on.like(x)
    ladj = x.new_empty(x.shape[: x.dim() - spec.layout.event_dims], dtype=torch.promote_types(x.dtype, torch.float32))
    if x.numel() == 0:
        return y, ladj.zero_()
    f, layout = spec
    passes = _passes(layout, x, y)
    on.module.affine_fwd(
        f.settings(on.module, layout), passes, x, params, shift, mask, y, ladj, *on.where(x)
    )  # fmt: skip
    return y, ladj


def bwd(on: Cpu | Cuda, spec: AffineCall, grads: Grads, tensors: Sequence[Tensor | None], needs: Needs) -> Grads:
    x_in, params_in, shift_in, mask = tensors
    assert x_in is not None and params_in is not None  # for the type checker
    x, (params, shift) = _readable(x_in, params_in, shift_in)
    grad_y, grad_ladj = (None if g is None else g.resolve_neg() for g in grads)
    grad_ladj = None if grad_ladj is None else grad_ladj.contiguous()
    wants_params = needs[1] or needs[2]
    grad_x = on.like(x) if needs[0] else None
    grad_params, grad_shift = (None if p is None or not wants_params else on.like(p) for p in (params, shift))
    if x.numel() > 0:
        f, layout = spec
        passes = _passes(layout, grad_y, grad_x)
        on.module.affine_bwd(
            f.settings(on.module, layout), passes, x, params, shift, mask, grad_y, grad_ladj, grad_x, grad_params,
            grad_shift, *on.where(x),
        )  # fmt: skip
    found = zip((grad_x, grad_params, grad_shift), (x_in, params_in, shift_in), needs, strict=False)
    return [*(None if g is None or not n else g.to(t.dtype) for g, t, n in found), None]  # type: ignore[union-attr]


cpu, cuda = (backend(machine, fwd, bwd, why_not) for machine in (CPU, CUDA))

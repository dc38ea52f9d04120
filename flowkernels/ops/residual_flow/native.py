"""Residual maps on the compiled kernels of a CPU: describes tensors, allocates, calls.

Kept for backward are the inputs, of an inverse a copy of x, which whoever called may write to, and of an estimate what
its gradient multiplies J's derivative with: sums of powers, of the noise's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels import _native
from flowkernels._backend import Grads, Inputs, Needs
from flowkernels.ops.net.native import dense, flat, given_and_saved, why_not_run, widen

from .reference import ACTIVATIONS, n_steps
from .spec import ResidualSpec

_threads = torch.get_num_threads
_CODES = {name: code for code, name in enumerate(ACTIVATIONS)}  # as csrc/residual_flow/residual_flow.h has them
MOST_FEATURES = 128  # kMostResidualFeatures there


def why_not(spec: ResidualSpec, *tensors: Tensor) -> str | None:
    estimated = spec.log_det != "exact"
    if estimated and not spec.neumann:
        return "no kernel has an estimate's own gradient"
    # Of an estimate, the gradient of an inverse alone makes matrices.
    if tensors[0].shape[-1] > MOST_FEATURES and (spec.inverse or not estimated):
        return f"x has more than {MOST_FEATURES} features"
    return why_not_run(tensors)


def _layers(
    spec: ResidualSpec,
    rows: Tensor,
    tensors: Sequence[Tensor],
    inner: Tensor | None,
    grads: Sequence[Tensor | None] = (),
) -> Any:
    """The call but for x and what is mapped to; ``inner``: an estimate's sums of powers."""
    series: tuple[Tensor | None, ...] = ()
    if spec.log_det != "exact":
        *tensors, weights, noise = tensors
        grads = grads[: len(tensors)]
        noise = noise.reshape(noise.shape[0], *rows.shape).resolve_neg().contiguous()
        series = dense(weights), noise, inner
    steps = n_steps(spec.lipschitz, rows.dtype)
    least = spec.tolerance * (1 - spec.lipschitz) / spec.lipschitz
    settings = _CODES[spec.activation], spec.preactivated, spec.inverse, steps, least
    return _native.C.ResidualLayers(*rows.shape, *settings, [dense(t) for t in tensors], grads, series)


def _fwd(spec: ResidualSpec, tensors: Sequence[Tensor], saves: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
    """y and ladj in the dtype the kernels compute in, and of an estimate its sums of powers, where they are to be."""
    x, *rest = tensors
    rows = flat(x)
    y, ladj = x.new_empty(x.shape), x.new_empty(x.shape[:-1])
    inner = [x.new_empty(rest[-1].shape[0], *rows.shape)] if saves and spec.log_det != "exact" else []
    if rows.shape[0] > 0:
        net = _layers(spec, rows, rest, inner[0] if inner else None)
        _native.C.residual_flow_fwd(net, rows, y, ladj, _threads())
    return y, ladj, inner


def fwd(spec: ResidualSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    y, ladj, _ = _fwd(spec, widen(*tensors), False)
    return y.to(tensors[0].dtype), ladj


def fwd_saving(spec: ResidualSpec, *tensors: Tensor) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    y, ladj, inner = _fwd(spec, widen(*tensors), True)
    given, root = given_and_saved(spec.inverse, y, ladj, tensors[0].dtype)
    return given, root + inner


def bwd(spec: ResidualSpec, grads: Grads, tensors: Inputs, needs: Needs, saved: Inputs = ()) -> Grads:
    wide = widen(*tensors)
    x, rest = wide[0], wide[1:]
    rows = flat(x)
    new = x.new_empty if rows.shape[0] > 0 else x.new_zeros
    found = [new(t.shape) if need else None for t, need in zip(wide, needs, strict=True)]
    estimated = spec.log_det != "exact"
    for i in (-2, -1) if estimated else ():  # weights and noise are constants
        found[i] = torch.zeros_like(wide[i]) if needs[i] else None
    if rows.shape[0] > 0:
        if not saved and (spec.inverse or estimated):
            y, _, inner = _fwd(spec, wide, True)
            saved = [y] * spec.inverse + inner
        y = saved[0] if spec.inverse else None
        sums = saved[-1] if estimated else None
        given = [None if g is None else g.to(x.dtype).resolve_neg().contiguous() for g in grads]
        net = _layers(spec, rows, rest, sums, found[1:])
        _native.C.residual_flow_bwd(net, rows, y, *given, found[0], _threads())
    return [g.to(t.dtype) if need and g is not None else None for g, t, need in zip(found, tensors, needs, strict=True)]

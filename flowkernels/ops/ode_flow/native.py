"""Continuous maps on the compiled kernels of a CPU: describes tensors, allocates, calls.

Kept for backward are the inputs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels import _native
from flowkernels._backend import Grads, Inputs, Needs
from flowkernels.ops.net.native import flat, rows_dense, why_not_run

from .activations import NAMES
from .tableau import SOLVERS

_threads = torch.get_num_threads
# As csrc/ode_flow/ode_flow.h has them.
_SOLVERS = {name: code for code, name in enumerate(SOLVERS)}
_ACTIVATIONS = {name: code for code, name in enumerate(NAMES)}
_TRACES = {"product": 0, "noise": 1}
_TIMES = {"concat": 0, "sinusoidal": 1, "none": 2}
_MOST_LAYERS = 16


def why_not(spec: Any, *tensors: Tensor) -> str | None:
    if spec.trace not in _TRACES:
        return "no kernel for exact traces of fields with more than two hidden layers"
    if len(tensors) > 1 + 2 * _MOST_LAYERS:
        return f"the field may have at most {_MOST_LAYERS} layers"
    return why_not_run(tensors)


def _settings(spec: Any) -> tuple[Any, ...]:
    return (
        _SOLVERS[spec.solver], spec.steps, spec.t0, spec.t1, spec.rtol, spec.atol, _ACTIVATIONS[spec.activation],
        _TRACES[spec.trace], _TIMES[spec.time], spec.frequencies,
    )  # fmt: skip


def _as_read(spec: Any, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Matrices with dense rows, and vectors; what each row has of its own as one of them."""
    n = len(tensors) - (1 if spec.trace == "product" else 2)
    found = [rows_dense(t) if i % 2 == 0 else t.resolve_neg().contiguous() for i, t in enumerate(tensors[:n])]
    if tensors[1].dim() > 1:
        found[1] = flat(tensors[1])
    own = tensors[n:]
    return found + ([rows_dense(own[0])] if spec.trace == "product" else [flat(t) for t in own])


def fwd(spec: Any, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    rows = flat(x)
    y, ladj = x.new_empty(x.shape), x.new_empty(x.shape[:-1])
    if rows.shape[0] > 0:
        _native.C.ode_flow_fwd(_settings(spec), rows, _as_read(spec, tensors), y, ladj, _threads())
    return y, ladj


def bwd(spec: Any, grads: Grads, tensors: Inputs, needs: Needs) -> Grads:
    x, rest = tensors[0], tensors[1:]
    rows = flat(x)
    new = x.new_empty if rows.shape[0] > 0 else x.new_zeros
    found = [new(t.shape) if need else None for t, need in zip(tensors, needs, strict=True)]
    if rows.shape[0] > 0:
        given = [None if g is None else g.resolve_neg().contiguous() for g in grads]
        _native.C.ode_flow_bwd(
            _settings(spec), rows, _as_read(spec, rest), *given, found[0], found[1:], _threads()
        )  # fmt: skip
    return found

"""The autoregressive inverse on Triton: one launch after two that put the weights in the order of the degrees.

Back it is one between the dense products of `dense`. Kept for it are z and a copy of x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkernels._backend import Grads, Inputs, Needs
from flowkernels.ops import _triton
from flowkernels.ops._checks import why_not_multiplied
from flowkernels.ops._kept import kept
from flowkernels.ops.net import native
from flowkernels.ops.net.plan import MadePlan
from flowkernels.ops.net.spec import unpack
from flowkernels.ops.net.triton import stairs

from . import dense, schedule
from .reference import SweepSpec

_ROWS = 256 if _triton.INTERPRETING else 32  # of a program at a time; the interpreter's time goes by steps
_UNITS = 16  # of a step: the fewest that a product takes
_PROGRAMS = 256  # whose rooms stay in the cache together; each takes more rows when it is done
_COLUMNS = 11  # of a step


def why_not(spec: SweepSpec, *tensors: Tensor) -> str | None:
    if spec.only_on_cpu():
        return f"no kernel for {spec.only_on_cpu()}"
    return spec.univariate.why_not("triton") or why_not_multiplied(tensors) or _triton.why_no_product(tensors)


class _Sweep(NamedTuple):
    """A plan as the kernel takes it."""

    steps: Tensor  # int32 [steps, _COLUMNS]
    packed: Tensor  # int64: where each number of the packed weights and biases is, these one after the other
    rows: Tensor  # int32 [units]: where each unit is among those of all layers, in the order of their owner
    room: int  # units that a program keeps
    params: int  # the first of a feature's parameters there


def _layers(plan: MadePlan) -> tuple[list[list[int]], int, int]:
    """Of each layer where in the room its inputs are, what its outputs are added to, and where they go, as they are
    and activated (-1: nowhere); the size of the room, and where the last layer's outputs are."""
    n, room = len(plan.layers), 0
    places = []
    for i, layer in enumerate(plan.layers):
        if not (plan.residual and i == n - 1):  # which sees the stream, at 0 where a block begins it
            places.append(room)
            room += layer.n_in
    stream, params = room, room + (plan.layers[0].n_out if plan.residual else 0)
    if plan.residual:
        places.append(stream)
    found = []
    for i in range(n):
        on_stream = plan.residual and i % 2 == 0 and i < n - 1
        activated = places[i + 1] if i < n - 1 and places[i + 1] != stream else -1
        plain = params if i == n - 1 else stream if on_stream else -1
        found.append([places[i], stream if on_stream and i > 0 else -1, plain, activated])
    return found, params + plan.params_per_feature, params


@kept(maxsize=256)
def _sweep(plan: MadePlan, adds: tuple[bool, ...], device: torch.device) -> _Sweep:
    n, P, at, add, unit = len(plan.layers), plan.params_per_feature, 0, 0, 0
    weights, biases, terms, packed, units, found = [], [], [], [], [], []
    for layer, has in zip(plan.layers, adds or [False] * n, strict=True):
        weights.append(at)
        rows, columns = layer.out_order.long(), layer.in_order.long()
        packed.append(at + (rows[:, None] * layer.n_in + columns).flatten())
        at += layer.n_out * layer.n_in
        biases.append(at)
        packed.append(at + rows)
        at += layer.n_out
        terms.append(add if has else -1)
        add += layer.n_out if has else 0
        units.append(unit)
        found.append(unit + layer.out_order)
        unit += layer.n_out
    places, room, params = _layers(plan)
    steps = []
    for i, first, count, inputs in schedule.steps(plan, _UNITS):
        if i == n:  # a feature
            steps.append([0, places[0][0] + first, count] + [0] * (_COLUMNS - 4) + [units[-1] + count * P])
            continue
        n_in = plan.layers[i].n_in
        kept = first % P if i == n - 1 else first
        of_term = terms[i] + first if terms[i] >= 0 else -1
        entry, stream, plain, activated = places[i]
        moved = [p + kept if p >= 0 else -1 for p in (activated, stream, plain)]
        steps.append(
            [
                count, moved[0], inputs, n_in, weights[i] + first * n_in, entry, biases[i] + first, of_term, *moved[1:],
                units[i] + first,
            ]
        )  # fmt: skip
    table = torch.tensor(steps, dtype=torch.int32, device="cpu").to(device)
    return _Sweep(table, torch.cat(packed).to(device), torch.cat(found).to(device), room, params)


def _shift(spec: SweepSpec) -> dict[str, float]:
    f: Any = spec.univariate
    return {"TURN": f.right - f.left, "MIDDLE": (f.left + f.right) / 2} if f.circle_shift else {}


def _in_order(spec: SweepSpec, adds: Sequence[Tensor | None], lead: torch.Size) -> Tensor | None:
    """What is added in layers that have something, [rows, units], by degree."""
    found = []
    for layer, add in zip(spec.net.masks(), adds, strict=True):
        if add is not None:
            rows = add.resolve_neg().expand(*lead, layer.n_out).reshape(-1, layer.n_out)
            order = stairs(layer, rows.device).out_order
            found.append(rows if order is None else rows.index_select(1, order))
    return torch.cat(found, 1).contiguous() if found else None


def _packed(plan: _Sweep, weights_and_biases: Sequence[Tensor]) -> Tensor:
    """Weights and biases in degree order."""
    return torch.cat([t.reshape(-1) for t in weights_and_biases]).index_select(0, plan.packed)


def _tiles(rows: int) -> tuple[int, int]:
    """Rows at a time, and programs."""
    R = min(_ROWS, max(16, _triton.power_of_2(rows)))
    return R, min(-(-rows // R), _PROGRAMS)


def _constants(spec: SweepSpec, z: Tensor, R: int) -> dict[str, Any]:
    """What both sweeps are compiled for."""
    is_double = z.dtype is torch.float64
    return {
        "ACTIVATION": spec.net.activation, "R": R, "U": _UNITS, "BK": 16 if is_double else 32, "COLUMNS": _COLUMNS,
        "dtype": _triton.language_dtype(z.dtype), "num_stages": 3,
    } | spec.univariate.inverted().constants(is_double)  # fmt: skip


def _fwd(spec: SweepSpec, wide: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """x and ladj in the dtype the kernel computes in."""
    z, parts = unpack(spec.net, wide)
    x, ladj = torch.empty(z.shape, dtype=z.dtype, device=z.device), z.new_empty(z.shape[:-1])
    rows = ladj.numel()
    if rows > 0:
        from .triton_kernels import sweep

        plan = _sweep(spec.plan(), spec.net.adds, z.device)
        packed = _packed(plan, wide[1 : 1 + spec.net.n_weights()])
        adds, given = _in_order(spec, parts.adds, z.shape[:-1]), native.flat(z)
        R, programs = _tiles(rows)
        _triton.launch(
            sweep, programs,
            given, packed, packed if adds is None else adds, plan.steps, z.new_empty(programs * plan.room * R), x,
            ladj, rows, plan.steps.shape[0], plan.room, plan.params, given.stride(0), spec.plan().features,
            0 if adds is None else adds.stride(0), spec.univariate.bins, ADDS=adds is not None,
            **_constants(spec, z, R), **_shift(spec),
            num_warps=2 if z.dtype is torch.float64 else 8,  # with 4 ptxas spills two registers of a spline
        )  # fmt: skip
    return x, ladj


def fwd(spec: SweepSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    x, ladj = _fwd(spec, native.widen(*tensors))
    return x.to(tensors[0].dtype), ladj


def fwd_saving(spec: SweepSpec, *tensors: Tensor) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    x, ladj = _fwd(spec, native.widen(*tensors))
    given = x.to(tensors[0].dtype)
    return (given, ladj), [x.clone() if given is x else x]


def bwd(spec: SweepSpec, grads: Grads, tensors: Inputs, needs: Needs, saved: Inputs = ()) -> Grads:
    wide = native.widen(*tensors)
    z, lead = wide[0], wide[0].shape[:-1]
    given = native.flat(z)
    grad_x, grad_ladj = (None if g is None else g.to(z.dtype).contiguous().resolve_neg() for g in grads)
    grad_z = torch.empty(z.shape, dtype=z.dtype, device=z.device) if needs[0] else None
    rows = given.shape[0]
    if rows > 0:
        from .triton_kernels import sweep_back

        x = saved[0] if saved else _fwd(spec, wide)[0]
        plan = _sweep(spec.plan(), spec.net.adds, z.device)
        packed = _packed(plan, wide[1 : 1 + spec.net.n_weights()])
        R, programs = _tiles(rows)
        with torch.autocast(z.device.type, enabled=False):  # that of whoever calls backward
            layers = dense.layers_of(spec, wide, needs)
            units = dense.forward(spec, layers, x.view(given.shape), join=True)
            assert units.joined is not None
            values, left = units.joined
            _triton.launch(
                sweep_back, programs,
                given, *(z if t is None else t for t in (grad_x, grad_ladj, grad_z)), packed, plan.steps,
                plan.rows, z.new_empty(programs * plan.room * R), values, values if left is None else left, rows,
                plan.steps.shape[0], plan.room, plan.params, given.stride(0), spec.plan().features,
                spec.univariate.bins, HAS_X=grad_x is not None, HAS_LADJ=grad_ladj is not None,
                NEED_Z=grad_z is not None, LEAVE=left is not None, **_constants(spec, z, R),
                num_warps=8,  # with 1 or 2 ptxas spills registers of a spline of more than 8 bins in float64
            )  # fmt: skip
            found = dense.gradients(layers, units)
    else:
        found = native.allocate_grads(spec.net, wide[1:], needs[1:], 0)
    grad_z = None if grad_z is None else grad_z.to(tensors[0].dtype)
    return [grad_z, *native.given_back(found, tensors[1:], lead)]

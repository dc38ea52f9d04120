"""Monotone networks on Triton. Puts weights in the order of the kernels, allocates, launches.

Kept for backward are the inputs, and of an inverse a copy of what was found.
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

from . import native
from .native import saved_of
from .spec import MonotoneSpec, plain_grads, rule

_ROWS = 256 if _triton.INTERPRETING else 32  # elements of a program; the interpreter's time goes by steps
_PROGRAMS = 1024  # whose rooms stay in the cache together; each takes more elements when it is done
_SIDE = 32  # units that are computed side by side; widths are multiples of it
_MOST_UNITS = 256  # of a layer
_FEW = ((0.1127016653792583, 0.5, 0.8872983346207417), (5 / 18, 8 / 18, 5 / 18))  # a rule of three points

__all__ = ["bwd", "fwd", "fwd_saving", "saved_of", "why_not"]


def why_not(spec: MonotoneSpec, *tensors: Tensor) -> str | None:
    reason = native.why_no_kernel(spec, tensors) or why_not_multiplied(tensors) or _triton.why_no_product(tensors)
    if reason is None and max(native.widths(spec, tensors[1:])[1:]) > _MOST_UNITS:
        return f"a layer has more than {_MOST_UNITS} units"
    return reason


class _Layout(NamedTuple):
    """How the kernels have the weights of a set."""

    HP: int  # units of every layer
    SP: int  # numbers of the signal
    size: int
    packed: Tensor  # [size]: where each number is among weights and biases, these one after the other; a 0 behind them
    places: Tensor  # the other way: where of `packed` each of them is


@kept(maxsize=256)
def _layout(widths: tuple[int, ...], device: torch.device) -> _Layout:
    S, *hidden, _one = widths
    HP = max(_SIDE, _triton.power_of_2(max(hidden)))
    SP = -(-S // _SIDE) * _SIDE
    n = len(hidden) + 1
    biases = HP + HP * SP
    between = biases + (n - 1) * HP
    last = between + (n - 2) * HP * HP
    size = last + HP + 16
    places = []
    for k in range(n):
        n_in, n_out = widths[k] if k else 1 + S, widths[k + 1]
        out, into = torch.arange(n_out)[:, None], torch.arange(n_in)[None, :]
        if k == 0:
            weight = torch.where(into == 0, out, HP + out * SP + into - 1)
        elif k < n - 1:
            weight = between + (k - 1) * HP * HP + out * HP + into
        else:
            weight = last + into
        places += [weight.flatten(), (biases + k * HP if k < n - 1 else last + HP) + torch.arange(n_out)]
    found = torch.cat(places)
    packed = torch.full((size,), found.numel())
    packed[found] = torch.arange(found.numel())
    return _Layout(HP, SP, size, packed.to(device), found.to(device))


@kept(maxsize=256)
def _nodes(points: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, int]:
    """Nodes and weights in turn, of the rule and of that of three points, one more behind each; where those begin."""
    found: list[float] = []
    for nodes, weights in (rule(points), _FEW):
        first = len(found)
        found += [v for pair in zip((*nodes, 0.0), (*weights, 0.0), strict=True) for v in pair]
    return torch.tensor(found, dtype=torch.float64).to(device, dtype), first


class _Call(NamedTuple):
    x: Tensor
    signal: Tensor
    layers: list[Tensor]
    given: list[Tensor]
    layout: _Layout
    packed: Tensor  # [sets, size]
    nodes: Tensor
    few: int
    R: int
    constants: dict[str, Any]

    @property
    def sets(self) -> int:
        return self.packed.shape[0]

    @property
    def tiles(self) -> int:
        return -(-self.x.shape[0] // self.R)

    def room(self, programs: int, units: int) -> Tensor:
        return self.x.new_empty(programs * units * self.layout.HP * self.R)


def _described(spec: MonotoneSpec, tensors: Sequence[Tensor]) -> _Call:
    x, signal, layers, given = native.read(spec, tensors)
    is_double = x.dtype is torch.float64
    layout = _layout(native.widths(spec, (signal, *layers)), x.device)
    flat = torch.cat([t.flatten(1) for t in layers] + [layers[0].new_zeros(layers[0].shape[0], 1)], 1)
    nodes, few = _nodes(spec.nodes if spec.form == "integral" else 1, x.dtype, x.device)
    R = min(_ROWS, max(16, _triton.power_of_2(x.shape[0])))
    constants = {
        "SHIFT": spec.shift, "INVERSE": spec.inverse, "POSITIVE": spec.form == "positive",
        "ACTIVATION": spec.activation, "N": len(layers) // 2, "HP": layout.HP, "SP": layout.SP, "SIZE": layout.size,
        "R": R, "BK": 16 if is_double else 32, "dtype": _triton.language_dtype(x.dtype),
    }  # fmt: skip
    return _Call(x, signal, layers, given, layout, flat.index_select(1, layout.packed), nodes, few, R, constants)


def _fwd(spec: MonotoneSpec, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    call = _described(spec, tensors)
    x, signal = call.x, call.signal
    y, terms = x.new_empty(tensors[0].shape), torch.empty_like(x)
    if x.numel() > 0:
        from .triton_kernels import monotone_fwd

        (rows, D), numbers = x.shape, signal.shape[-1]
        programs = min(call.tiles * D, _PROGRAMS)
        kinds = 2 if spec.form == "positive" else 1
        room = call.room(programs, 1 + (len(call.layers) // 2 - 1) * kinds)
        _triton.launch(
            monotone_fwd, programs,
            x, signal, call.packed, call.nodes, room, y, terms, rows, D, numbers - spec.shift, numbers, call.sets,
            spec.nodes, 1 / spec.log_bound, spec.bound, FEW=call.few, **call.constants,
            # With more ptxas spills registers of the search.
            U=_SIDE // 2 if spec.inverse and not _triton.INTERPRETING else _SIDE, num_warps=2 if spec.inverse else 4,
        )  # fmt: skip
    return y, terms.sum(-1, dtype=torch.float64).to(x.dtype).view(tensors[0].shape[:-1])


def fwd(spec: MonotoneSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    y, ladj = _fwd(spec, tensors)
    return y.to(tensors[0].dtype), ladj


def fwd_saving(spec: MonotoneSpec, *tensors: Tensor) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    y, ladj = _fwd(spec, tensors)
    given = y.to(tensors[0].dtype)
    return (given, ladj), saved_of(spec, (y.clone() if given is y else y, ladj))


def _kinds(spec: MonotoneSpec) -> int:
    """Rooms of a layer on the way back: what it makes, of a positive network its slope, and slopes of activations."""
    return 3 if spec.form == "positive" else 2 if spec.activation in ("gelu", "silu") else 1


def bwd(spec: MonotoneSpec, grads: Grads, tensors: Inputs, needs: Needs, saved: Inputs = ()) -> Grads:
    call = _described(spec, tensors)
    x, signal, layout = call.x, call.signal, call.layout
    g_y, g_ladj = grads
    g_y = None if g_y is None else native.dense(g_y.to(x.dtype).reshape(x.shape))
    g_ladj = None if g_ladj is None else native.dense(g_ladj.to(x.dtype).reshape(x.shape[0]))
    g_x = torch.empty_like(x) if needs[0] else None
    g_signal = torch.empty_like(signal) if needs[1] else None
    weights = any(needs[2:])
    sums = x.new_zeros((call.sets, 1, layout.size), dtype=torch.float64)
    if x.numel() > 0:
        from .triton_kernels import monotone_bwd

        if spec.inverse:
            root = saved[0] if saved else _fwd(spec, tensors)[0]
            x = native.dense(root.to(x.dtype).reshape(x.shape))
        (rows, D), numbers = x.shape, signal.shape[-1]
        tiles = call.tiles * (D if call.sets == 1 else 1)
        slices = native.slices_of(tiles, call.sets, layout.size) if weights else min(tiles, _PROGRAMS)
        programs = call.sets * slices
        if weights:
            sums = x.new_zeros((call.sets, slices, layout.size), dtype=torch.float64)
        kinds = _kinds(spec)
        room = call.room(programs, 2 + (len(call.layers) // 2 - 1) * kinds)
        given = (x if t is None else t for t in (g_y, g_ladj, g_x, g_signal))
        _triton.launch(
            monotone_bwd, programs,
            x, signal, call.packed, call.nodes, room, *given, sums, rows, D, numbers - spec.shift, numbers, call.sets,
            slices, spec.nodes, 1 / spec.log_bound, HAS_Y=g_y is not None, HAS_LADJ=g_ladj is not None,
            NEED_X=needs[0], NEED_SIGNAL=needs[1], SUMS=weights, KINDS=kinds, **call.constants, U=_SIDE,
            num_warps=4 if x.dtype is torch.float64 else 8,
        )  # fmt: skip
    out: list[Tensor | None] = [g_x, g_signal]
    if weights:
        found = sums.sum(1).to(x.dtype).index_select(1, layout.places)
        sizes = [t[0].numel() for t in call.layers]
        each = [g.reshape(t.shape) if n else None for g, t, n in zip(
            found.split(sizes, 1), call.given, needs[2:], strict=True)]  # fmt: skip
        out += plain_grads(spec, call.given, each)
    else:
        out += [None] * len(call.layers)
    return [None if g is None else g.view(t.shape).to(t.dtype) for g, t in zip(out, tensors, strict=True)]

"""Block autoregressive maps on Triton: a launch makes the weights, one maps; backward one goes back through the rows,
two multiply what it leaves, and one adds that up.

Kept for backward are the inputs, and of an inverse a copy of x, which whoever called may write to.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkernels._backend import Grads, Inputs, Needs
from flowkernels.ops import _triton
from flowkernels.ops._checks import why_not_multiplied
from flowkernels.ops._kept import kept
from flowkernels.ops.net.native import flat, given_and_saved, widen

_MOST_LAYERS, _MOST_UNITS = 16, 8192  # of a layer
# Units of a feature, of which a program has all in its registers: with more ptxas spills some.
_MOST_OF_FEATURE, _MOST_OF_DOUBLES = 64, 16
_ROWS = 256 if _triton.INTERPRETING else 16  # of a program at a time; the interpreter's time goes by steps
_PROGRAMS, _ROOM = 512, 1 << 26  # programs, and numbers in all of theirs; each takes more rows when it is done
_OF_SPLIT = 1024  # rows that one program multiplies into gradients of weights
_TILE = 32  # the side of a tile of weights
_PAIRS = (16, 8)  # units and inputs of a tile of blocks' logarithms
_COLUMNS = 8  # numbers that describe a unit or a tile
_CHUNK = 128  # weights of a unit at a time


def why_not(spec: Any, *tensors: Tensor) -> str | None:
    reason = _why_not_net(spec, tensors) or why_not_multiplied(tensors) or _triton.why_no_product(tensors)
    if reason is None and _triton.version() < (3, 4):  # of which none has been tried with tuples of numbers
        return f"these maps need Triton 3.4 or newer, and this is {'.'.join(map(str, _triton.version()))}"
    return reason


def _why_not_net(spec: Any, tensors: Sequence[Tensor]) -> str | None:
    D, units = tensors[0].shape[-1], _units(spec, tensors)
    if len(units) - 1 > _MOST_LAYERS:
        return f"there are more than {_MOST_LAYERS} layers"
    most = _MOST_OF_DOUBLES if tensors[0].dtype is torch.float64 else _MOST_OF_FEATURE
    if max(units) > most:
        return f"a layer has more than {most} units a feature"
    if max(units) * D > _MOST_UNITS:
        return f"a layer has more than {_MOST_UNITS} units"
    return None


def _units(spec: Any, tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """Units of a feature that enter each layer, and leave the last."""
    D, each = tensors[0].shape[-1], 3 if spec.normalized else 2
    end = len(tensors) - (spec.residual == "gated")
    return (1, *[t.shape[0] // D for t in tensors[1:end:each]])


class _Layout(NamedTuple):
    """Where the kernels find what. Tensors of all layers lie one behind the other, as they are given."""

    layers: tuple[tuple[int, ...], ...]
    size: int  # numbers of weights, biases and norms
    pairs: int  # of blocks' logarithms
    inputs: int  # units that enter layers
    outputs: int
    units: Tensor  # int32 [outputs, _COLUMNS]
    tiles: Tensor  # of weights, likewise
    pair_tiles: Tensor


@kept(maxsize=256)
def _layout(D: int, units: tuple[int, ...], normalized: bool, device: torch.device) -> _Layout:
    """layers: units before and after, places of a feature in a tile, where weight, bias and logarithms are, and how
    many units enter, and leave, the layers before."""
    layers, of_units, tiles, pair_tiles = [], [], [], []
    at = log_at = inputs = outputs = 0
    for before, after in itertools.pairwise(units):
        n_in, n_out = D * before, D * after
        bias, norm = at + n_in * n_out, at + n_in * n_out + n_out
        layers.append((before, after, _triton.power_of_2(after), at, bias, log_at, inputs, outputs))
        for n in range(n_out):
            own = n // after * before
            of_units.append([at + n * n_in, own, before, n_in, bias + n, log_at + n * before, norm + n, 0])
        for unit in range(0, n_out, _TILE):
            seen = ((min(unit + _TILE, n_out) - 1) // after + 1) * before  # of whose units the last sees most
            for column in range(0, seen, _TILE):
                tiles.append([outputs, inputs, n_out, n_in, unit, column, at, bias])
        for unit, column in itertools.product(range(0, n_out, _PAIRS[0]), range(0, before, _PAIRS[1])):
            pair_tiles.append([outputs, inputs, after, before, unit, column, n_out, log_at])
        at, log_at = norm + n_out * normalized, log_at + n_out * before
        inputs, outputs = inputs + n_in, outputs + n_out
    tables = (
        torch.tensor(t, dtype=torch.int32, device="cpu").to(device) for t in (of_units, tiles, pair_tiles)
    )  # fmt: skip
    return _Layout(tuple(layers), at, log_at, inputs, outputs, *tables)


class _Call(NamedTuple):
    rows: Tensor  # of x, or of y
    given: Tensor  # weights, biases and norms
    gate: Tensor
    net: Tensor  # weights as layers multiply with them, and biases
    logs: Tensor
    squares: Tensor
    layout: _Layout
    of_weights: dict[str, Any]  # what kernels are compiled for
    of_rows: dict[str, Any]

    @property
    def tiles(self) -> int:
        return -(-self.rows.shape[0] // self.of_rows["R"])


def _described(spec: Any, wide: Sequence[Tensor]) -> _Call:
    from .triton_weights import block_weights

    x, *rest = wide
    D, units, gated = x.shape[-1], _units(spec, wide), spec.residual == "gated"
    layout = _layout(D, units, spec.normalized, x.device)
    given = torch.cat([t.reshape(-1) for t in (rest[:-1] if gated else rest)])
    net, logs = torch.empty_like(given), given.new_empty(layout.pairs)
    squares = given.new_empty(layout.outputs if spec.normalized else 0, dtype=torch.float64)
    of_weights = {"NORMALIZED": spec.normalized, "EPS": spec.eps, "COLUMNS": _COLUMNS, "B": _CHUNK}
    dtype = _triton.language_dtype(x.dtype)
    _triton.launch(
        block_weights, layout.outputs, given, net, logs, squares if spec.normalized else given, layout.units,
        **of_weights, dtype=dtype,
    )  # fmt: skip
    rows, U = flat(x), max(16, _triton.power_of_2(max(units)))
    of_rows = {
        "LAYERS": layout.layers, "N": len(layout.layers), "D": D, "INPUTS": layout.inputs,
        "ACTIVATION": spec.activation, "RESIDUAL": spec.residual, "EPS": spec.eps, "R": _ROWS,
        "U": U, "BK": 16, "dtype": dtype,
    }  # fmt: skip
    gate = rest[-1].resolve_neg() if gated else given
    return _Call(rows, given, gate, net, logs, squares, layout, of_weights, of_rows)


def _options(dtype: torch.dtype, forward: bool) -> dict[str, int]:
    """With others ptxas spills registers."""
    is_double = dtype is torch.float64
    return {"num_warps": 4 if is_double == forward else 8, "num_stages": 2 if is_double and forward else 1}


def _fwd(spec: Any, wide: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """y and ladj in the dtype the kernels compute in."""
    x = wide[0]
    y, ladj = x.new_empty(x.shape), x.new_empty(x.shape[:-1])
    if ladj.numel() > 0:
        from .triton_inverse import block_inverse
        from .triton_kernels import block_fwd

        call = _described(spec, wide)
        of_rows = call.of_rows
        units = 2 * call.layout.inputs + ((of_rows["N"] + 4) * of_rows["U"] if spec.inverse else 0)
        programs = max(1, min(call.tiles, _PROGRAMS, _ROOM // (units * of_rows["R"])))
        _triton.launch(
            block_inverse if spec.inverse else block_fwd, programs, call.rows, call.net, call.logs, call.gate,
            x.new_empty(programs * units * of_rows["R"]), y, ladj, call.rows.shape[0], call.rows.stride(0), **of_rows,
            **_options(x.dtype, not spec.inverse),
        )  # fmt: skip
    return y, ladj


def fwd(spec: Any, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    y, ladj = _fwd(spec, widen(*tensors))
    return y.to(tensors[0].dtype), ladj


def fwd_saving(spec: Any, *tensors: Tensor) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    return given_and_saved(spec.inverse, *_fwd(spec, widen(*tensors)), tensors[0].dtype)


def bwd(spec: Any, grads: Grads, tensors: Inputs, needs: Needs, saved: Inputs = ()) -> Grads:
    wide = widen(*tensors)
    x, gated = wide[0], spec.residual == "gated"
    if x.numel() == 0:
        return [torch.zeros_like(t) if need else None for t, need in zip(tensors, needs, strict=True)]
    from .triton_backward import block_bwd

    call = _described(spec, wide)
    rows, layout, of_rows = call.rows, call.layout, call.of_rows
    if spec.inverse:
        rows = flat(saved[0] if saved else _fwd(spec, wide)[0])
    B = rows.shape[0]
    grad_y, grad_ladj = (None if g is None else g.to(x.dtype).resolve_neg().contiguous() for g in grads)
    grad_x, gates = x.new_empty(x.shape), x.new_empty(call.tiles if gated else 0, dtype=torch.float64)
    entered, of_logs = x.new_empty(layout.inputs * B), x.new_empty(layout.inputs * B)
    z, m, g, g_logs = (x.new_empty(layout.outputs * B) for _ in range(4))
    room = x.new_empty(call.tiles * 2 * of_rows["N"] * of_rows["U"] * of_rows["R"] if spec.inverse else 0)
    _triton.launch(
        block_bwd, call.tiles, rows, call.net, call.logs, call.gate, room if spec.inverse else x,
        *(x if t is None else t for t in (grad_y, grad_ladj)), grad_x, entered, of_logs, z, m, g, g_logs,
        gates if gated else x, B, rows.stride(0), INVERSE=spec.inverse, HAS_Y=grad_y is not None,
        HAS_LADJ=grad_ladj is not None, **of_rows, **_options(x.dtype, False),
    )  # fmt: skip
    out: list[Tensor | None] = [grad_x, *[None] * (len(tensors) - 1)]
    end = len(tensors) - gated
    if any(needs[1:end]):
        left = _Left(entered, of_logs, m, g, None if grad_ladj is None else g_logs)
        sizes = [t.numel() for t in tensors[1:end]]
        out[1:end] = [
            g.view(t.shape) for g, t in zip(_of_weights(call, left).split(sizes), tensors[1:end], strict=True)
        ]
    if gated:
        out[end] = gates.sum()
    return [g.to(t.dtype) if n and g is not None else None for g, t, n in zip(out, tensors, needs, strict=True)]


class _Left(NamedTuple):
    """What the rows leave of every unit, [units, rows]."""

    entered: Tensor
    of_logs: Tensor  # logarithms of the slopes of what entered
    m: Tensor  # and of what the layers sum up to
    g: Tensor  # gradients of that
    g_logs: Tensor | None  # of its slopes' logarithms


def _of_weights(call: _Call, left: _Left) -> Tensor:
    """The gradients of weights, biases and norms, one behind the other."""
    from .triton_weights import block_finish, block_pairs, block_sums

    rows, layout, dtype = call.rows.shape[0], call.layout, call.of_rows["dtype"]
    splits = -(-rows // _OF_SPLIT)
    shares, pairs = (call.net.new_empty(splits * n) for n in (layout.size, layout.pairs))
    _triton.launch(
        block_sums, layout.tiles.shape[0] * splits, left.g, left.entered, layout.tiles, shares, rows, layout.size,
        SPLITS=splits, COLUMNS=_COLUMNS, B=_TILE, BK=32, dtype=dtype,
    )  # fmt: skip
    if left.g_logs is not None:
        _triton.launch(
            block_pairs, layout.pair_tiles.shape[0] * splits, left.g_logs, left.m, left.of_logs, call.logs,
            layout.pair_tiles, pairs, rows, layout.pairs, SPLITS=splits, COLUMNS=_COLUMNS, B=_PAIRS[0], J=_PAIRS[1],
            BK=16, dtype=dtype,
        )  # fmt: skip
    found = torch.empty_like(call.net)
    _triton.launch(
        block_finish, layout.outputs, call.given, call.net, call.squares if call.squares.numel() else call.net,
        layout.units, shares, pairs, found, layout.size, layout.pairs, SPLITS=splits, PAIRS=left.g_logs is not None,
        **call.of_weights,
    )  # fmt: skip
    return found

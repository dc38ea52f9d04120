"""A flow layer on Triton: one launch forward; backward one for the rows, one for all weights, and one for the sums of
what shares of the rows bring, where these are many.

Kept for backward are the inputs. The gradients of weights and biases are views of one tensor.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkernels._backend import Grads, Inputs, Needs
from flowkernels.ops import _triton
from flowkernels.ops._checks import why_not_multiplied
from flowkernels.ops._kept import kept
from flowkernels.ops.net import native
from flowkernels.ops.net.activations import SLOPE_NEEDS_INPUT
from flowkernels.ops.net.spec import NetSpec, unpack
from flowkernels.ops.split import Split

from .native import why_not_map
from .reference import FlowLayerSpec

MOST_UNITS, MOST_UNITS_OF_DOUBLES, MOST_LAYERS = 256, 64, 16  # beyond, ptxas spills registers
_ROWS = 256 if _triton.INTERPRETING else 16  # of a program; the interpreter's time goes by steps
_LAUNCHED = 1 << 15  # rows of one launch forward, whose rooms fit in a large GPU's cache together
_OF_SPLIT = 1024  # rows that one program multiplies into gradients of weights
_TILE, _COLUMNS = 32, 8  # of weights: a tile's side, and how many numbers describe one
# Rows x weights up to which a layer's launches take longer than its products: by what a launch costs (6 us) and a rough
# guess of what the kernel multiplies (15 TFLOP/s) next to the library (40). No GPU has timed it.
_LITTLE = 1 << 29


def why_not(spec: FlowLayerSpec, *tensors: Tensor) -> str | None:
    reason = _why_not_net(spec.net, tensors) or why_not_map(spec.univariate, "triton") or why_not_multiplied(tensors)
    reason = reason or _triton.why_no_product(tensors)
    if reason is None and _triton.version() < (3, 4):  # of which none has been tried with a net as an argument
        return f"a flow layer needs Triton 3.4 or newer, and this is {'.'.join(map(str, _triton.version()))}"
    return reason


def _why_not_net(net: NetSpec, tensors: Sequence[Tensor]) -> str | None:
    """Why the kernels lack this net, or None."""
    if net.plan is not None:
        return "no kernel for masked nets"
    if True in net.scales:
        return "no kernel for norms"
    if not 2 <= net.n <= MOST_LAYERS:
        return f"the net has {net.n} layers, not from 2 to {MOST_LAYERS}"
    most = MOST_UNITS_OF_DOUBLES if tensors[0].dtype is torch.float64 else MOST_UNITS
    if max(_widths(net, tensors)[1:-1]) > most:
        return f"a layer has more than {most} units"
    return None


def is_little(tensors: Sequence[Tensor]) -> bool:
    """Whether a call's launches take longer than its products, so that one launch is faster than the library's."""
    x = tensors[0]
    return x.numel() // max(x.shape[-1], 1) * sum(t.numel() for t in tensors[1:] if t.dim() == 2) <= _LITTLE


def _widths(net: NetSpec, tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """How many numbers enter each layer, and leave the last."""
    weights = tensors[1 : 1 + 2 * net.n : 2]
    return (*[w.shape[1] for w in weights], weights[-1].shape[0])


@kept(maxsize=256)
def _places(split: Split, device: torch.device) -> Tensor:
    """The columns that are seen, those that are mapped, and those that are not."""
    rest = sorted({*range(split.features)} - {*split.outputs})
    return torch.tensor([*split.inputs, *split.outputs, *rest], dtype=torch.int32, device="cpu").to(device)


@kept(maxsize=256)
def _tiles(widths: tuple[int, ...], device: torch.device) -> tuple[Tensor, int]:
    """Tiles of all layers' weights as the kernel takes them, int32 [tiles, _COLUMNS]; and how many numbers there are,
    weight and bias of one layer behind those of another."""
    found, at, before, after = [], 0, 0, 0
    for n_in, n_out in itertools.pairwise(widths):
        for unit, column in itertools.product(range(0, n_out, _TILE), range(0, n_in, _TILE)):
            found.append([after, before, n_out, n_in, unit, column, at, at + n_out * n_in])
        at, before, after = at + n_out * (n_in + 1), before + n_in, after + n_out
    return torch.tensor(found, dtype=torch.int32, device="cpu").to(device), at


@functools.lru_cache(maxsize=1024)
def _constants(spec: FlowLayerSpec, widths: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
    """What the kernels of the rows are compiled for."""
    net, split, P = spec.net, spec.split, spec.univariate.n_params
    mapped, PP = len(split.outputs), _triton.power_of_2(P)
    # Features of which a program has the parameters at a time: 128 numbers of a row, 16 at the least, as products ask.
    F = max(16 // PP, min(max(1, 128 // PP), _triton.power_of_2(mapped)))
    HP, is_double = max(16, _triton.power_of_2(max(widths[1:-1]))), dtype is torch.float64
    return {
        "N": net.n, "WIDTHS": widths, "BEFORE": tuple(itertools.accumulate(widths[:-1], initial=0)),
        "RESIDUAL": net.residual, "ACTIVATION": net.activation, "ADD": True in net.adds, "MAPPED": mapped,
        "REST": split.features - mapped, "P": P, "PP": PP, "F": F, "NB": min(F * PP, 128), "R": _ROWS,
        "HP": HP, "BK": 16, "dtype": _triton.language_dtype(dtype), "num_warps": 8,
        "num_stages": 1 if is_double or HP > 128 else 3,  # or ptxas spills registers
    } | spec.univariate.constants(is_double)  # fmt: skip


class _Call(NamedTuple):
    """A call as the kernels take it."""

    x: Tensor  # [rows, D]
    net: tuple[Tensor, ...]
    terms: tuple[Tensor, ...]
    places: Tensor
    widths: tuple[int, ...]
    dtype: torch.dtype  # that is computed in
    constants: dict[str, Any]

    def params(self) -> int:
        """How many numbers wait between a program's last layer and the map."""
        return _ROWS * self.constants["F"] * self.constants["P"]


def _described(spec: FlowLayerSpec, tensors: Sequence[Tensor]) -> _Call:
    x, parts = unpack(spec.net, tensors)
    lead, dtype, widths = x.shape[:-1], torch.promote_types(x.dtype, torch.float32), _widths(spec.net, tensors)
    terms = [t.expand(*lead, t.shape[-1]) for t in (*parts.adds, *parts.gates) if t is not None]
    return _Call(
        native.flat(x), tuple([_dense(t) for t in tensors[1 : 1 + 2 * spec.net.n]]), tuple([_dense(t) for t in terms]),
        _places(spec.split, x.device), widths, dtype, _constants(spec, widths, dtype),
    )  # fmt: skip


def _dense(t: Tensor) -> Tensor:
    return t.resolve_neg().contiguous()


def fwd(spec: FlowLayerSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    x = tensors[0]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    ladj = torch.empty(x.shape[:-1], dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    rows = ladj.numel()
    if rows > 0:
        from .triton_kernels import layer_fwd

        call = _described(spec, tensors)
        tiles, most = -(-rows // _ROWS), max(1, _LAUNCHED // _ROWS)
        room = ladj.new_empty(min(tiles, most) * (2 * _ROWS * call.constants["HP"] + call.params()))
        for first in range(0, tiles, most):
            _triton.launch(
                layer_fwd, min(most, tiles - first),
                call.x, call.net, call.terms, call.places, room, y, ladj, rows, first, call.x.stride(0), x.shape[-1],
                spec.univariate.bins, GATED=0 if True in spec.net.gates else -1, **call.constants,
            )  # fmt: skip
    return y, ladj


def bwd(spec: FlowLayerSpec, grads: Grads, tensors: Inputs, needs: Needs) -> Grads:
    x, net = tensors[0], spec.net
    if x.numel() == 0:
        return [torch.zeros_like(t) if n else None for t, n in zip(tensors, needs, strict=True)]
    from .triton_kernels import layer_bwd

    call = _described(spec, tensors)
    (rows, D), widths = call.x.shape, call.widths
    grad_y, grad_ladj = (None if g is None else _dense(g) for g in grads)
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device) if needs[0] else None
    stream, gates = widths[1], sum(net.gates)
    of_slopes = sum(widths[:-1]) if net.activation in SLOPE_NEEDS_INPUT else 0  # what activations were given
    sizes = (sum(widths[:-1]), of_slopes + gates * stream, sum(widths[1:]))
    entered, z, left = (call.x.new_empty(rows * n, dtype=call.dtype) for n in sizes)
    tiles = -(-rows // _ROWS)
    _triton.launch(
        layer_bwd, tiles,
        call.x, call.net, call.terms, call.places, left.new_empty(tiles * call.params()),
        *(call.x if t is None else t for t in (grad_y, grad_ladj, grad_x)), entered, z, left, rows, call.x.stride(0), D,
        spec.univariate.bins, AFTER=tuple(itertools.accumulate(widths[1:], initial=0)), KEEP_Z=of_slopes > 0,
        GATED=of_slopes if gates else -1, HAS_Y=grad_y is not None, HAS_LADJ=grad_ladj is not None,
        NEED_X=grad_x is not None, **call.constants,
    )  # fmt: skip
    at, found = 1 + net.n_weights(), [grad_x, *[None] * (len(tensors) - 1)]
    if True in needs[1:at]:
        of_weights = _of_weights(call, entered, left).split([t.numel() for t in tensors[1:at]])
        for i, g in enumerate(of_weights, 1):
            found[i] = g.view(tensors[i].shape) if needs[i] else None
    # A term has the gradient of what it is added to; that of a gate is where what it multiplied was.
    of_terms = [left[: rows * stream]] if True in net.adds else []
    of_terms += z[rows * of_slopes :].split(rows * stream) if gates else []
    for i, g in enumerate(of_terms, at):
        if needs[i]:
            found[i] = g.view(*x.shape[:-1], stream).sum_to_size(tensors[i].shape).to(x.dtype)
    return found


def _of_weights(call: _Call, entered: Tensor, left: Tensor) -> Tensor:
    """The gradients of weights and biases, one behind the other."""
    from .triton_kernels import layer_sums, layer_weights

    rows = call.x.shape[0]
    tiles, size = _tiles(call.widths, call.x.device)
    splits = -(-rows // _OF_SPLIT)
    found = call.x.new_empty(size)
    shares = found if splits == 1 else left.new_empty(splits, size)
    _triton.launch(
        layer_weights, tiles.shape[0] * splits, left, entered, tiles, shares, rows, size, SPLITS=splits,
        COLUMNS=_COLUMNS, B=_TILE, BK=32, dtype=call.constants["dtype"], num_warps=4,
    )  # fmt: skip
    if splits > 1:
        _triton.launch(layer_sums, -(-size // 256), shares, found, size, splits, B=256, num_warps=4)
    return found

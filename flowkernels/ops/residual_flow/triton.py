"""Residual maps on Triton: one launch, of an inverse too; backward one, and the sums of what its programs bring.

Kept for backward is what the CPU's kernels keep: the inputs, of an inverse x, and of an estimate its sums of powers.
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
from flowkernels.ops.net.native import flat, given_and_saved, widen

from .reference import n_steps
from .spec import ResidualSpec

MOST_UNITS, MOST_UNITS_OF_DOUBLES = 128, 64  # of a layer, features too; a matrix is in registers
_ROWS = 64 if _triton.INTERPRETING else 16  # of a program's network at a time; the interpreter's time goes by steps
_LANES, _LANES_BACK = (
    (1024, 1024) if _triton.INTERPRETING else (64, 32)
)  # directions at a time; with more, ptxas spills
_DRAWS = 4  # of a row at a time
_PROGRAMS = 256  # each with a room of its own, and backward with sums


def why_not(spec: ResidualSpec, *tensors: Tensor) -> str | None:
    if spec.log_det != "exact" and not spec.neumann:
        return "no kernel has an estimate's own gradient"
    net, _betas, _series = _parts(spec, tensors[1:])
    most = MOST_UNITS_OF_DOUBLES if tensors[0].dtype is torch.float64 else MOST_UNITS
    if max(_widths(net)) > most:
        return f"x or a layer has more than {most} numbers a row"
    return why_not_multiplied(tensors) or _triton.why_no_product(tensors)


def _parts(spec: ResidualSpec, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Tensor | None, Sequence[Tensor]]:
    """Weights and biases; betas; a series' weights and noise."""
    at = len(tensors) - 2 * (spec.log_det != "exact")
    rest = tensors[:at]
    return (rest[:-1], rest[-1], tensors[at:]) if spec.has_betas else (rest, None, tensors[at:])


def _widths(net: Sequence[Tensor]) -> tuple[int, ...]:
    """How many numbers enter each layer, and leave the last."""
    return (*[w.shape[1] for w in net[::2]], net[-2].shape[0])


@kept(maxsize=256)
def _table(widths: tuple[int, ...], device: torch.device) -> Tensor:
    """Of each layer where its weight begins and its two sizes, int32, as kernels take them."""
    found, at = [], 0
    for n_in, n_out in itertools.pairwise(widths):
        found.append([at, n_in, n_out])
        at += n_out * (n_in + 1)
    return torch.tensor(found, dtype=torch.int32, device="cpu").to(device)


@functools.lru_cache(maxsize=1024)
def _constants(spec: ResidualSpec, D: int, widest: int, dtype: torch.dtype, lanes: int) -> dict[str, Any]:
    """What either kernel is compiled for."""
    T = max(2, _triton.power_of_2(D))
    C = min(T, lanes)  # unit vectors at a time
    return {
        "D": D, "ACTIVATION": spec.activation, "PRE": spec.preactivated, "HAS_BETAS": spec.has_betas,
        "INVERSE": spec.inverse, "EXACT": spec.log_det == "exact", "R": min(_ROWS, lanes // C), "T": T, "C": C,
        "B": _ROWS, "HP": max(16, _triton.power_of_2(widest)), "BK": 16, "dtype": _triton.language_dtype(dtype),
        "num_stages": 1,
    }  # fmt: skip


class _Call(NamedTuple):
    """A net as the kernels take it."""

    net: Tensor  # all weights and biases, one behind the other
    table: Tensor
    betas: Tensor | None
    series: Sequence[Tensor]
    n: int  # layers
    constants: dict[str, Any]


def _described(spec: ResidualSpec, tensors: Sequence[Tensor], lanes: int) -> _Call:
    x = tensors[0]
    net, betas, series = _parts(spec, tensors[1:])
    widths = _widths(net)
    return _Call(
        torch.cat([t.reshape(-1) for t in net]), _table(widths, x.device), None if betas is None else _dense(betas),
        series, len(widths) - 1, _constants(spec, widths[0], max(widths), x.dtype, lanes) | _triton.large(256),
    )  # fmt: skip


def _dense(t: Tensor) -> Tensor:
    return t.resolve_neg().contiguous()


def _drawn(noise: Tensor, rows: Tensor) -> Tensor:
    return _dense(noise.reshape(noise.shape[0], *rows.shape))


def _draws_at_a_time(draws: int, R: int) -> int:
    """Of each of R rows: as few lanes as products ask for at least."""
    return max(16 // R, min(_triton.power_of_2(draws), _DRAWS))


def _fwd(spec: ResidualSpec, tensors: Sequence[Tensor], saves: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
    """y and ladj in the dtype that is computed in, and of an estimate its sums of powers, where they are to be."""
    x, rows = tensors[0], flat(tensors[0])
    y, ladj = x.new_empty(x.shape), x.new_empty(x.shape[:-1])
    estimated = spec.log_det != "exact"
    inner = [x.new_empty(tensors[-1].shape[0], *rows.shape)] if saves and estimated else []
    if rows.shape[0] == 0:
        return y, ladj, inner
    from .triton_kernels import residual_fwd

    call = _described(spec, tensors, _LANES)
    n, c = call.n, call.constants
    weights, noise = (_dense(call.series[0]), _drawn(call.series[1], rows)) if estimated else (x, x)
    terms, draws = (weights.shape[0], noise.shape[0]) if estimated else (1, 1)
    if estimated:
        c |= {"R": _ROWS, "C": _draws_at_a_time(draws, _ROWS)}
    room = 2 * (n * _ROWS + c["R"] * c["C"]) * c["HP"] + (0 if estimated else c["R"] * c["T"] ** 2)
    programs = min(-(-rows.shape[0] // _ROWS), _PROGRAMS)
    _triton.launch(
        residual_fwd, programs, rows, call.net, call.table, x if call.betas is None else call.betas, weights, noise,
        inner[0] if inner else x, x.new_empty(programs * room), y, ladj, rows.shape[0], rows.stride(0), n,
        n_steps(spec.lipschitz, x.dtype), spec.tolerance * (1 - spec.lipschitz) / spec.lipschitz, terms, draws,
        ROUNDING=2 * torch.finfo(x.dtype).eps, TP=_triton.power_of_2(terms), INNER=len(inner) > 0, **c,
    )  # fmt: skip
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
    x = wide[0]
    if x.numel() == 0:
        return [torch.zeros_like(t) if need else None for t, need in zip(tensors, needs, strict=True)]
    estimated = spec.log_det != "exact"
    if not saved and (spec.inverse or estimated):
        y, _, inner = _fwd(spec, wide, True)
        saved = [y] * spec.inverse + inner
    from .triton_kernels import residual_bwd

    call = _described(spec, wide, _LANES_BACK)
    n, c, rows = call.n, call.constants, flat(saved[0] if spec.inverse else x)
    has_matrix = spec.inverse or not estimated
    if not has_matrix:
        c["R"] = _ROWS
    noise = _drawn(call.series[1], rows) if estimated else x
    R, B = c["R"], c["B"]
    CS = _draws_at_a_time(noise.shape[0], R) if estimated else 1
    lanes = R * (CS if estimated else c["T"])  # that are kept
    most = max(R * CS, R * c["C"] * has_matrix)  # at a time
    room = 2 * (most + B) * c["HP"] + R * c["T"] ** 2 * has_matrix
    programs = min(-(-rows.shape[0] // R), _PROGRAMS)
    of_y, of_ladj = (None if g is None else _dense(g.to(x.dtype)) for g in grads)
    of_x, shared = x.new_empty(x.shape), wide[1 : len(wide) - len(call.series)]
    some = True in needs[1 : 1 + len(shared)]
    sizes = [t.numel() for t in shared]
    sums = torch.zeros((programs, sum(sizes)) if some else (1,), dtype=x.dtype, device=x.device)
    _triton.launch(
        residual_bwd, programs, rows, call.net, call.table, x if call.betas is None else call.betas, noise,
        saved[-1] if estimated else x, x.new_empty(programs * ((4 * B + 2 * lanes) * n * c["HP"] + room)),
        x if of_y is None else of_y, x if of_ladj is None else of_ladj, of_x, sums, rows.shape[0], rows.stride(0), n,
        noise.shape[0], sum(sizes), call.net.numel(), HAS_Y=of_y is not None, HAS_LADJ=of_ladj is not None,
        WEIGHTS=some, CS=CS, SIDE=min(32, c["HP"]), LANES=lanes, MOST=most, ROOM=room, **c,
    )  # fmt: skip
    of_shared = sums.sum(0, dtype=torch.float64).split(sizes) if some else [None] * len(sizes)
    found = [of_x, *(g if g is None else g.view(t.shape) for g, t in zip(of_shared, shared, strict=True))]
    found += [torch.zeros_like(t) for t in call.series]  # constants
    return [g.to(t.dtype) if need and g is not None else None for g, t, need in zip(found, tensors, needs, strict=True)]

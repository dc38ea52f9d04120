"""The steps of an adaptive solver: every row takes its own, so that no row's result depends on the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .tableau import SOLVERS

SAFETY, SHRINKS, GROWS = 0.9, 0.2, 10.0
FIRST = 0.1  # of the interval, the first step that is tried
SHARE = 0.05  # of what is allowed; where rows share their steps most stay as far below it, and as exact are ours
LADJ_SCALE = 0.01  # of ladj in the error: zuko's, whose tolerances of ladj are relaxed by as much
ROUNDING = 4  # ulp of a row's largest number below which no error is told from rounding


def search(spec: Any, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """Starts and lengths of the steps of every row, ``[n, ...]``; rows that need fewer wait, with steps of length 0.

    A row fails, and gets a step of length NaN, where its slope is not finite, where a step would be too short to move
    t, and where it has tried ``spec.steps`` of them.
    """
    from .reference import field, net_of, time_features

    table, net, lead = SOLVERS[spec.solver], net_of(spec, tensors), x.shape[:-1]
    whole = spec.t1 - spec.t0
    eps = torch.finfo(x.dtype).eps
    t, h = x.new_full(lead, spec.t0), x.new_full(lead, FIRST * whole)
    ladj, done = x.new_zeros(lead), torch.zeros(lead, dtype=torch.bool, device=x.device)
    starts, lengths = [], []
    first = field(spec, x, time_features(spec, t), net)
    for _ in range(spec.steps):
        if bool(done.all()):  # the one thing that is read from the device
            break
        rest = spec.t1 - t
        last = h.abs() * 1.01 >= rest.abs()
        h = torch.where(last, rest, h)
        slopes = [first]
        for row, of_t in zip(table.a[1:], table.c[1:], strict=True):
            at = x
            for of, (slope, _) in zip(row, slopes, strict=True):
                at = at + (of * h).unsqueeze(-1) * slope
            slopes.append(field(spec, at, time_features(spec, t + of_t * h), net))
        moved, traced = x, ladj
        for of, (slope, trace) in zip(table.b, slopes, strict=True):
            moved, traced = moved + (of * h).unsqueeze(-1) * slope, traced + (of * h) * trace
        slopes.append(field(spec, moved, time_features(spec, t + h), net))
        off, off_ladj = torch.zeros_like(x), torch.zeros_like(ladj)
        for of, (slope, trace) in zip(table.error, slopes, strict=True):
            off, off_ladj = off + (of * h).unsqueeze(-1) * slope, off_ladj + (of * h) * trace
        error = _norm(
            spec, eps, off, off_ladj, torch.maximum(x.abs(), moved.abs()), torch.maximum(ladj.abs(), traced.abs())
        )
        # A step over which something overflows is tried again, shorter.
        accepted = (error <= 1) & ~done & moved.isfinite().all(-1)
        factor = (SAFETY * error.clamp(min=1e-10) ** (-1 / table.order)).clamp(SHRINKS, GROWS)
        factor = torch.where(error.isfinite(), factor, SHRINKS)
        short = ~accepted & (h.abs() * factor < 16 * eps * max(abs(whole), abs(spec.t0), abs(spec.t1)))
        hopeless = ~(first[0].isfinite().all(-1) & first[1].isfinite())
        failing = ~done & (short | hopeless)
        starts.append(t)
        lengths.append(torch.where(failing, torch.nan, torch.where(accepted, h, 0.0)))
        x, ladj = torch.where(accepted.unsqueeze(-1), moved, x), torch.where(accepted, traced, ladj)
        t = torch.where(accepted, torch.where(last, spec.t1, t + h), t)
        first = (
            torch.where(accepted.unsqueeze(-1), slopes[-1][0], first[0]),
            torch.where(accepted, slopes[-1][1], first[1]),
        )
        done = done | failing | (accepted & last)
        h = torch.where(done, 0.0, h * factor)
    starts.append(t)
    lengths.append(torch.where(done, 0.0, torch.nan))
    return _compressed(torch.stack(starts), torch.stack(lengths))


def _norm(spec: Any, eps: float, off: Tensor, off_ladj: Tensor, size: Tensor, size_ladj: Tensor) -> Tensor:
    """The largest error of a row, in units of what is allowed of it."""
    floor = ROUNDING * eps * size.amax(-1)
    allowed = torch.maximum(SHARE * (spec.atol + spec.rtol * size), floor.unsqueeze(-1))
    allowed_ladj = torch.maximum(
        SHARE * (spec.atol + spec.rtol * LADJ_SCALE * size_ladj),
        LADJ_SCALE * torch.maximum(floor, ROUNDING * eps * size_ladj),
    )
    return torch.maximum((off.abs() / allowed).amax(-1), LADJ_SCALE * off_ladj.abs() / allowed_ladj)


def _compressed(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Without the steps that a row did not take, but for those that make all rows equally many."""
    taken = lengths != 0
    order = torch.argsort((~taken).to(torch.uint8), dim=0, stable=True)
    n = max(1, int(taken.sum(0).max())) if taken.numel() > 0 else 1
    # A row that waits does so where its last step ended, whose time is in the last start.
    starts = torch.where(taken, starts, starts[-1:])
    return starts.gather(0, order)[:n], lengths.gather(0, order)[:n]


class _Mesh(torch.autograd.Function):
    """`search` as one node, which vmap and dual numbers pass by: how many steps there are depends on values."""

    generate_vmap_rule = False

    @staticmethod
    def forward(spec: Any, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return search(spec, *tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output)
        ctx.n = len(inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:  # type: ignore[override]
        return (None,) * ctx.n

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[None, None]:
        return None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, spec: Any, *tensors: Tensor) -> Any:
        dims = in_dims[1:]
        found = [
            _Mesh.apply(spec, *[t if d is None else t.select(d, i) for t, d in zip(tensors, dims, strict=True)])
            for i in range(info.batch_size)
        ]
        n = max(starts.shape[0] for starts, _ in found)
        both = []
        for which in (0, 1):
            parts = [pair[which] for pair in found]
            fill = [t[-1:].expand(n - t.shape[0], *t.shape[1:]) for t in parts]
            if which == 1:
                fill = [torch.where(f.isnan(), f, torch.zeros_like(f)) for f in fill]
            both.append(torch.stack([torch.cat(p) for p in zip(parts, fill, strict=True)], 1))
        return tuple(both), (1, 1)


def mesh(spec: Any, *tensors: Tensor) -> Sequence[Tensor]:
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        return _Mesh.apply(spec, *tensors)  # type: ignore[no-any-return]
    return search(spec, *tensors)

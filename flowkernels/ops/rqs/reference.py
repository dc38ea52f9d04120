"""The definition of the spline in plain PyTorch: any dtype, any device, differentiable any number of times.

No data-dependent control flow, so it is also what torch.compile gets to fuse.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkernels.ops._logistic import logistic

if TYPE_CHECKING:
    from .spec import RQS


def _knots(logits: Tensor, low: float, high: float, min_size: float, spec: RQS) -> tuple[Tensor, Tensor]:
    """Logits [..., K] → knots [..., K+1], pinned at the corners of the box, and bin sizes [..., K]."""
    logits = logits * spec.logit_scale
    if spec.is_clipped:
        logits = logits.clamp(-(2.0**60), 2.0**60)  # there the clip is at its limit; of an infinite product it is NaN
        logits = logits / (1 + (2 * logits / math.log(spec.slope)).abs())
    sizes = min_size + (1 - min_size * spec.bins) * F.softmax(logits, dim=-1)
    inner = low + (high - low) * torch.cumsum(sizes, dim=-1)[..., :-1]
    knots = F.pad(F.pad(inner, (1, 0), value=low), (0, 1), value=high)
    # Bins may vanish where the setting allows it; far below the spacing of x they stop at a size that can divide.
    if knots.dtype == torch.float64:  # the truth that others are held to: differences have the edges' digits alone
        return knots, ((high - low) * sizes).clamp_min((high - low) * 1e-24)
    return knots, (knots[..., 1:] - knots[..., :-1]).clamp_min((high - low) * 1e-12)


def _clamped(t: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """t in [low, high], with the derivatives of t: what is cut off is rounding."""
    return t + (t.detach().clamp(low, high) - t.detach())  # type: ignore[arg-type]


def _slopes(logits: Tensor, spec: RQS) -> Tensor:
    """Slope logits → slopes at all K+1 knots."""
    if spec.tails == "linear":
        logits = F.pad(logits, (1, 1), value=spec.edge_logit)
    elif spec.tails == "circular":
        logits = torch.cat([logits, logits[..., :1]], dim=-1)
    if spec.is_clipped:
        return torch.exp(logits / (1 + (logits / math.log(spec.slope)).abs()))
    # The sum of two has a reciprocal that is no denormal.
    most = 2.0 ** (1020 if logits.dtype == torch.float64 else 124)
    return (spec.least_slope + F.softplus(logits, threshold=50.0)).clamp_max(most)


class _Bin(NamedTuple):
    """The bin of each element: lower corner, sizes, slopes at its knots, how far v is above its lower and below its
    upper one, all like x."""

    x0: Tensor
    w: Tensor
    y0: Tensor
    h: Tensor
    d0: Tensor
    d1: Tensor
    above: Tensor
    below: Tensor


def _quadratic(spec: RQS, b: _Bin) -> tuple[Tensor, Tensor, Tensor]:
    """Where v is in its bin, as shares of w and of h, and the log of the slope there."""
    s = b.h / b.w
    beta = b.d0 + b.d1 - 2 * s
    if spec.inverse:
        # Counted from the nearer knot: turned by 180 degrees a bin is a bin with its slopes exchanged.
        turn = b.below < b.above
        # A share of the bin's height, so that no square depends on how large the box is.
        rise = torch.where(turn, b.below, b.above) / b.h
        # Slopes that have no squares count in smaller units, and s with them.
        most, units = (2.0**500, 2.0**-520) if s.dtype == torch.float64 else (2.0**60, 2.0**-64)
        unit = torch.where(b.d0 + b.d1 > most, units, 1.0).to(s.dtype)
        d, s_unit, bend = torch.where(turn, b.d1, b.d0) * unit, s * unit, rise * (beta * unit)
        qb, qa = d - bend, bend + (s_unit - d)
        # Not below tiny: the slope of the root at 0 is infinite.
        root = torch.sqrt((qb * qb + 4 * qa * s_unit * rise).clamp_min(torch.finfo(s.dtype).tiny))
        den = torch.where(qb >= 0, qb + root, 2 * qa)
        theta = torch.where(qb >= 0, 2 * s_unit * rise, root - qb) / torch.where(den == 0, torch.ones_like(den), den)
        theta = torch.where(turn, 1 - theta, theta)
    else:
        theta = b.above / b.w
    theta = _clamped(theta, 0.0, 1.0)
    t = theta * (1 - theta)
    den = s + beta * t
    slope_num = b.d1 * theta.square() + 2 * s * t + b.d0 * (1 - theta).square()
    ladj = 2 * torch.log(s) + torch.log(slope_num) - 2 * torch.log(den)
    return theta, (s * theta.square() + b.d0 * t) / den, ladj


def _linear(spec: RQS, b: _Bin, logit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of a linear spline, whose bins are split: counted from the outer knot of the piece that v is in."""
    below, above = torch.sqrt(b.d0), torch.sqrt(b.d1)
    at = spec.min_lambda + (1 - 2 * spec.min_lambda) * logistic(logit)
    mean = at * below + (1 - at) * above
    middle = b.h / b.w / mean
    if spec.inverse:
        upper = b.above > at * below / mean * b.h
    else:
        theta = _clamped(b.above / b.w, 0.0, 1.0)
        upper = theta > at
    at, near = torch.where(upper, 1 - at, at), torch.where(upper, above, below)
    top = at * near / mean
    if spec.inverse:
        z = _clamped(torch.where(upper, b.below, b.above) / b.h, torch.zeros_like(top), top.detach())
        den = near * (top - z) + middle * z
        t, rise, ladj = at * middle * z / den, z, 2 * torch.log(den / top)
    else:
        t = torch.where(upper, 1 - theta, theta)
        den = middle * (at - t) + near * t
        rise, ladj = top * near * t / den, 2 * torch.log(near * middle * at / den)
    return torch.where(upper, 1 - t, t), torch.where(upper, 1 - rise, rise), ladj


def fwd(spec: RQS, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., D], params [..., D, P] → y [..., D] and ladj [...]."""
    K, P = spec.bins, params.shape[-1]
    out_dtype = torch.promote_types(x.dtype, params.dtype)
    dtype = torch.promote_types(out_dtype, torch.float32)
    spec.check("ops.rqs", dtype is torch.float64)
    v, p = x.to(dtype), params.to(dtype)

    knots_x, widths = _knots(p[..., :K], spec.left, spec.right, spec.least_width, spec)
    knots_y, heights = _knots(p[..., K : 2 * K], spec.bottom, spec.top, spec.least_height, spec)
    slopes = _slopes(p[..., 2 * K : P - K if spec.is_linear else P], spec)

    low, high = (spec.bottom, spec.top) if spec.inverse else (spec.left, spec.right)
    inside = (v >= low) & (v <= high)
    # Outside the box the formulas run on its middle, so that no NaN or inf enters a gradient.
    v_in = torch.where(inside, v, torch.full_like(v, (low + high) / 2))
    knots = (knots_y if spec.inverse else knots_x)[..., 1:-1].detach()
    k = (v_in[..., None] >= knots).sum(-1, keepdim=True)

    def at(t: Tensor, i: Tensor = k) -> Tensor:
        return t.gather(-1, i)[..., 0]

    x0, x1, w = at(knots_x), at(knots_x, k + 1), at(widths)
    y0, y1, h = at(knots_y), at(knots_y, k + 1), at(heights)
    lower, upper, size = (y0, y1, h) if spec.inverse else (x0, x1, w)
    # The last bin hangs from the box's corner: one that has all but vanished still ends there.
    below = upper - v_in
    above = torch.where(k[..., 0] == K - 1, size - below, v_in - lower)
    b = _Bin(x0, w, y0, h, at(slopes), at(slopes, k + 1), above, below)
    if spec.is_linear:
        theta, rise, ladj = _linear(spec, b, at(p[..., -K:]))
    else:
        theta, rise, ladj = _quadratic(spec, b)
    y = b.x0 + b.w * theta if spec.inverse else b.y0 + b.h * rise
    # At the bin's upper end the upper knot itself, so that the box's corner maps to its corner.
    upper = x1 if spec.inverse else y1
    y = y + torch.where(theta >= 1, upper - y, torch.zeros_like(y)).detach()
    ladj = -ladj if spec.inverse else ladj

    y = _clamped(y, *((spec.left, spec.right) if spec.inverse else (spec.bottom, spec.top)))
    y = torch.where(inside, y, v).to(out_dtype)
    return y, torch.where(inside, ladj, torch.zeros_like(ladj)).sum(-1)

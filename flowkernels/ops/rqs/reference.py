"""The definition of the spline in plain PyTorch: any dtype, any device, differentiable any number of times.

No data-dependent control flow, so it is also what torch.compile gets to fuse.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .spec import RqsSpec


def why_not(spec: RqsSpec, x: Tensor, params: Tensor) -> str | None:
    return None


def _knots(logits: Tensor, low: float, high: float, min_size: float, spec: RqsSpec) -> tuple[Tensor, Tensor]:
    """Logits [..., K] → knots [..., K+1], pinned at the corners of the box, and bin sizes [..., K]."""
    logits = logits * spec.logit_scale
    if spec.clipped:
        logits = logits / (1 + (2 * logits / math.log(spec.slope)).abs())
    sizes = min_size + (1 - min_size * spec.bins) * F.softmax(logits, dim=-1)
    inner = low + (high - low) * torch.cumsum(sizes, dim=-1)[..., :-1]
    knots = F.pad(F.pad(inner, (1, 0), value=low), (0, 1), value=high)
    # Bins may vanish where the setting allows it; far below the spacing of x they stop at a size that can divide.
    least = (high - low) * (1e-12 if knots.dtype == torch.float32 else 1e-24)
    return knots, (knots[..., 1:] - knots[..., :-1]).clamp_min(least)


def _clamped(t: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """t in [low, high], with the derivatives of t: what is cut off is rounding."""
    return t + (t.detach().clamp(low, high) - t.detach())  # type: ignore[arg-type]


def _slopes(logits: Tensor, spec: RqsSpec) -> Tensor:
    """Slope logits → slopes at all K+1 knots."""
    if spec.tails == "linear":
        logits = F.pad(logits, (1, 1), value=spec.edge_logit)
    elif spec.tails == "circular":
        logits = torch.cat([logits, logits[..., :1]], dim=-1)
    if spec.clipped:
        return torch.exp(logits / (1 + (logits / math.log(spec.slope)).abs()))
    return spec.min_derivative + F.softplus(logits)


def fwd(spec: RqsSpec, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., D], params [..., D, P] → y [..., D] and ladj [...]."""
    K = spec.bins
    out_dtype = torch.promote_types(x.dtype, params.dtype)
    dtype = torch.promote_types(out_dtype, torch.float32)
    v, p = x.to(dtype), params.to(dtype)

    knots_x, widths = _knots(p[..., :K], spec.left, spec.right, spec.min_bin_width, spec)
    knots_y, heights = _knots(p[..., K : 2 * K], spec.bottom, spec.top, spec.min_bin_height, spec)
    slopes = _slopes(p[..., 2 * K :], spec)

    low, high = (spec.bottom, spec.top) if spec.inverse else (spec.left, spec.right)
    inside = (v >= low) & (v <= high)
    # Outside the box the formulas run on its middle, so that no NaN or inf enters a gradient.
    v_in = torch.where(inside, v, torch.full_like(v, (low + high) / 2))
    knots = (knots_y if spec.inverse else knots_x)[..., 1:-1].detach()
    k = (v_in[..., None] >= knots).sum(-1, keepdim=True)

    def at(t: Tensor, i: Tensor = k) -> Tensor:
        return t.gather(-1, i)[..., 0]

    x0, w, y0, h = at(knots_x), at(widths), at(knots_y), at(heights)
    d0, d1 = at(slopes), at(slopes, k + 1)
    s = h / w
    beta = d0 + d1 - 2 * s
    if spec.inverse:
        # Counted from the nearer knot: turned by 180 degrees a bin is a bin with its slopes exchanged.
        below, above = v_in - y0, at(knots_y, k + 1) - v_in
        turn = above < below
        dy, d = torch.where(turn, above, below), torch.where(turn, d1, d0)
        b, a = h * d - dy * beta, dy * beta + h * (s - d)
        # Not below tiny: the slope of the root at 0 is infinite.
        root = torch.sqrt((b * b + 4 * a * s * dy).clamp_min(torch.finfo(dtype).tiny))
        den = torch.where(b >= 0, b + root, 2 * a)
        theta = torch.where(b >= 0, 2 * s * dy, root - b) / torch.where(den == 0, torch.ones_like(den), den)
        theta = torch.where(turn, 1 - theta, theta)
    else:
        theta = (v_in - x0) / w
    theta = _clamped(theta, 0.0, 1.0)
    t = theta * (1 - theta)
    den = s + beta * t
    slope_num = d1 * theta.square() + 2 * s * t + d0 * (1 - theta).square()
    ladj = 2 * torch.log(s) + torch.log(slope_num) - 2 * torch.log(den)
    y = x0 + w * theta if spec.inverse else y0 + h * ((s * theta.square() + d0 * t) / den)
    # At the bin's upper end the upper knot itself, so that the box's corner maps to its corner.
    upper = at(knots_x if spec.inverse else knots_y, k + 1)
    y = y + torch.where(theta >= 1, upper - y, torch.zeros_like(y)).detach()
    ladj = -ladj if spec.inverse else ladj

    y = _clamped(y, *((spec.left, spec.right) if spec.inverse else (spec.bottom, spec.top)))
    y = torch.where(inside, y, v).to(out_dtype)
    return y, torch.where(inside, ladj, torch.zeros_like(ladj)).sum(-1)

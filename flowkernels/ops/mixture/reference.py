"""The definition of the mixture map in plain PyTorch: any dtype, any device, differentiable any number of times.

No data-dependent control flow. The inverse iterates a fixed number of times, without gradients; what it returns has
those of the implicit function, by two steps of Newton whose value is the root itself: after one the first derivatives
are right, after two the second ones.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.special import erfcx

if TYPE_CHECKING:
    from .spec import Mixture

IS_SLOW = True
_FAR = 1e18  # where z stops, so that its square is a number
_LOG_2PI = math.log(2 * math.pi)


class _Components(NamedTuple):
    log_weight: Tensor
    mean: Tensor  # or shift
    log_scale: Tensor
    shifts: bool

    def place(self, x: Tensor) -> Tensor:
        """z of each component at x."""
        per_scale = torch.exp(-self.log_scale)
        return x[..., None] * per_scale + self.mean if self.shifts else (x[..., None] - self.mean) * per_scale

    def at(self, z: Tensor) -> Tensor:
        """x of each component where its place is z."""
        scale, z = torch.exp(self.log_scale), z[..., None]
        return (z - self.mean) * scale if self.shifts else self.mean + scale * z


class _Sums(NamedTuple):
    """Logarithms of the distribution function, of what it lacks to 1, and of the density."""

    below: Tensor
    above: Tensor
    density: Tensor


def _log_cdf(z: Tensor) -> Tensor:
    """Of the normal distribution; far below 0 the derivative of log_ndtr is 0 or inf."""
    low, high = z.clamp_max(0), z.clamp_min(0)
    below = torch.log(0.5 * erfcx(-low * math.sqrt(0.5))) - 0.5 * low.square()
    return torch.where(z < 0, below, torch.log1p(-0.5 * torch.erfc(high * math.sqrt(0.5))))


def _components(spec: Mixture, params: Tensor) -> _Components:
    low, high = spec.min_log_scale, spec.max_log_scale
    if spec.parametrization == "shifts":
        shifts, log_scales = params.unflatten(-1, (2, spec.components)).unbind(-2)
        return _Components(
            torch.full_like(shifts, -math.log(spec.components)), shifts, (-log_scales).clamp(low, high), True
        )
    logits, means, log_scales = params.unflatten(-1, (3, spec.components)).unbind(-2)
    return _Components(logits.log_softmax(-1), means, log_scales.clamp(low, high), False)


def _sums(spec: Mixture, x: Tensor, c: _Components) -> _Sums:
    z = c.place(x).clamp(-_FAR, _FAR)
    if spec.kernel == "logistic":
        below, above = F.logsigmoid(z), F.logsigmoid(-z)
        density = below + above
    else:
        below, above = _log_cdf(z), _log_cdf(-z)
        density = -0.5 * z.square() - 0.5 * _LOG_2PI
    return _Sums(
        torch.logsumexp(c.log_weight + below, -1),
        torch.logsumexp(c.log_weight + above, -1),
        torch.logsumexp(c.log_weight + density - c.log_scale, -1),
    )


def _with_gradient_of(value: Tensor, step: Tensor) -> Tensor:
    """A value, with all derivatives of another."""
    return value.detach() + (step - step.detach())


def _normal_tail(log_p: Tensor) -> Tensor:
    """t >= 0 of which log Phi(-t) is log_p, at most log 1/2."""
    with torch.no_grad():
        rest = (-log_p - math.log(2)).clamp_min(0)
        t = 1.2533141373155 * rest / torch.sqrt(1 + 0.7853981633974483 * rest)  # right at 0, and nearly at infinity
        for _ in range(4):
            slope = math.sqrt(2 / math.pi) / erfcx(t * math.sqrt(0.5))  # of -log Phi(-t)
            miss = -_log_cdf(-t) + log_p
            t = (t - miss / (slope - 0.5 * miss * (slope - t))).clamp_min(0)  # Halley's
    root = t
    for _ in range(2):
        slope = math.sqrt(2 / math.pi) / erfcx(t * math.sqrt(0.5))
        t = _with_gradient_of(root, t + (_log_cdf(-t) - log_p) / slope)
    return t


def _probit(s: _Sums, shrink: float = 0.0) -> Tensor:
    """The normal quantile, from the smaller side."""
    low = s.below < s.above
    log_p = torch.where(low, s.below, s.above)
    if shrink > 0:
        log_p = torch.log(torch.exp(log_p) * (1 - shrink) + 0.5 * shrink)
    t = _normal_tail(log_p)
    return torch.where(low, -t, t)


def _forward(spec: Mixture, x: Tensor, c: _Components) -> tuple[Tensor, Tensor]:
    s = _sums(spec, x, c)
    if spec.outer == "logit":
        return torch.where(x.isinf(), x, s.below - s.above), s.density - s.below - s.above
    if spec.outer == "unit":
        low = s.below < s.above
        half = torch.exp(torch.where(low, s.below, s.above))
        return torch.where(low, half, 1 - half), s.density
    y = _probit(s, spec.shrink)
    ladj = s.density + 0.5 * y.square() + 0.5 * _LOG_2PI
    return (y, ladj + math.log1p(-spec.shrink)) if spec.shrink > 0 else (torch.where(x.isinf(), x, y), ladj)


def _target(spec: Mixture, y: Tensor) -> Tensor:
    """The logit of the distribution function that y asks for."""
    if spec.outer == "logit":
        return y
    if spec.outer == "unit":
        return torch.log(y) - torch.log1p(-y)
    if spec.shrink == 0:
        return _log_cdf(y) - _log_cdf(-y)
    # Of the smaller side; what is beyond all sums is infinite.
    side = (torch.exp(_log_cdf(-y.abs())) - 0.5 * spec.shrink) / (1 - spec.shrink)
    beyond = side <= 0
    side = torch.where(beyond, 0.25, side)
    rise = torch.where(beyond, torch.inf, torch.log1p(-side) - torch.log(side))
    return torch.where(y < 0, -rise, rise)


def _quantile(spec: Mixture, y: Tensor, target: Tensor) -> Tensor:
    """Where one component of mean 0 and scale 1 has it."""
    if spec.kernel == "logistic":
        return target
    if spec.outer == "probit" and spec.shrink == 0:
        return y
    return _probit(_Sums(F.logsigmoid(target), F.logsigmoid(-target), target))


def _newton(spec: Mixture, x: Tensor, target: Tensor, c: _Components) -> tuple[Tensor, Tensor]:
    """How much too large the logit is at x, and where its tangent is right."""
    s = _sums(spec, x, c)
    miss = s.below - s.above - target
    slope = torch.exp(s.density - s.below) + torch.exp(s.density - s.above)
    return miss, x - miss / slope.clamp_min(torch.finfo(x.dtype).tiny)  # of a plateau it is 0


def _root(spec: Mixture, y: Tensor, target: Tensor, c: _Components) -> Tensor:
    """Bracketed Newton: each step halves the error, or the bracket, until rounding is all that is left."""
    each = c.at(_quantile(spec, y, target))
    low, high = each.amin(-1), each.amax(-1)
    x, last = low + 0.5 * (high - low), torch.full_like(target, torch.inf)
    enough = 4 * torch.finfo(y.dtype).eps * (1 + target.abs())
    short_step = torch.exp(c.log_scale).amin(-1) / 64  # over which no component's slope changes much
    for _ in range(64 if y.dtype == torch.float64 else 40):
        miss, tangent = _newton(spec, x, target, c)
        low, high = torch.where(miss < 0, x, low), torch.where(miss > 0, x, high)
        inside, size = torch.minimum(torch.maximum(tangent, low), high), miss.abs()
        within, small = inside == tangent, size <= enough
        # At a root the tangent gives the last digits; of a plateau it leads away from it.
        polished = torch.where(within & ((tangent - x).abs() <= short_step), inside, x)
        on = torch.where(within & (size <= 0.5 * last), inside, low + 0.5 * (high - low))
        x, last = torch.where(small, polished, on), size
    return x


def _inverse(spec: Mixture, y: Tensor, c: _Components) -> tuple[Tensor, Tensor]:
    given = target = _target(spec, y)
    if spec.shrink > 0:  # what is beyond has gradients of 0, which those of an infinity are not
        target = torch.where(given.isinf(), 0.0, given)
    with torch.no_grad():
        root = x = _root(spec, y, target, c).detach()
    for _ in range(2):
        x = _with_gradient_of(root, _newton(spec, x, target, c)[1])
    x = torch.where(given.isinf(), given, x)  # the ends of the unit interval are those of the line
    if spec.shrink > 0:
        x = x.clamp(-spec.bound, spec.bound)
    return x, -_forward(spec, x, c)[1]


def fwd(spec: Mixture, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., D], params [..., D, P] → y [..., D] and ladj [...]."""
    out_dtype = torch.promote_types(x.dtype, params.dtype)
    dtype = torch.promote_types(out_dtype, torch.float32)
    run = _inverse if spec.inverse else _forward
    y, ladj = run(spec, x.to(dtype), _components(spec, params.to(dtype)))
    return y.to(out_dtype), ladj.sum(-1)

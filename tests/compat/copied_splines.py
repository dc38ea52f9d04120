"""Splines as models carry them: the same function under other names, with other parameters, and with faults."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

LEAST = 1e-3


def _knots(logits, least, low, high):
    bins = logits.shape[-1]
    shares = least + (1 - least * bins) * F.softmax(logits, dim=-1)
    knots = F.pad(torch.cumsum(shares, dim=-1), (1, 0)) * (high - low) + low
    knots[..., -1] = high
    return knots


def _at(values, i):
    return values.gather(-1, i[..., None])[..., 0]


def quadratic(x, widths, heights, slopes, inverse, box, least):
    """Inside of the box, with slopes that are positive."""
    left, right, bottom, top = box
    knots_x, knots_y = _knots(widths, least[0], left, right), _knots(heights, least[1], bottom, top)
    i = (x[..., None] >= (knots_y if inverse else knots_x)[..., :-1]).sum(-1) - 1
    x0, y0 = _at(knots_x, i), _at(knots_y, i)
    w, h = _at(knots_x, i + 1) - x0, _at(knots_y, i + 1) - y0
    s, d0, d1 = h / w, _at(slopes, i), _at(slopes, i + 1)
    bend = d0 + d1 - 2 * s
    if inverse:
        rise = x - y0
        a, b, c = rise * bend + h * (s - d0), h * d0 - rise * bend, -s * rise
        t = 2 * c / (-b - (b * b - 4 * a * c).sqrt())
    else:
        t = (x - x0) / w
    below = s + bend * t * (1 - t)
    ladj = 2 * s.log() + (d1 * t * t + 2 * s * t * (1 - t) + d0 * (1 - t) ** 2).log() - 2 * below.log()
    if inverse:
        return x0 + t * w, -ladj
    return y0 + h * (s * t * t + d0 * t * (1 - t)) / below, ladj


def RQS(
    inputs, unnormalized_widths, unnormalized_heights, unnormalized_derivatives, inverse=False, left=0.0, right=1.0,
    bottom=0.0, top=1.0, min_bin_width=LEAST, min_bin_height=LEAST, min_derivative=LEAST,
):  # fmt: skip
    if inputs.min() < left or inputs.max() > right:
        raise ValueError("Input outside domain")
    slopes = min_derivative + F.softplus(unnormalized_derivatives)
    box, least = (left, right, bottom, top), (min_bin_width, min_bin_height)
    return quadratic(inputs, unnormalized_widths, unnormalized_heights, slopes, inverse, box, least)


def _padded(derivatives, value):
    return F.pad(derivatives, (1, 1), value=value)


def _one(min_derivative):
    return float(torch.tensor(1 - min_derivative, dtype=torch.float64).expm1().log())


def unconstrained_RQS(
    inputs, unnormalized_widths, unnormalized_heights, unnormalized_derivatives, inverse=False, tail_bound=1.0,
    min_bin_width=LEAST, min_bin_height=LEAST, min_derivative=LEAST,
):  # fmt: skip
    inside = (inputs >= -tail_bound) & (inputs <= tail_bound)
    outputs, logabsdet = inputs.clone(), torch.zeros_like(inputs)
    derivatives = _padded(unnormalized_derivatives, _one(min_derivative))
    outputs[inside], logabsdet[inside] = RQS(
        inputs[inside], unnormalized_widths[inside], unnormalized_heights[inside], derivatives[inside], inverse,
        -tail_bound, tail_bound, -tail_bound, tail_bound, min_bin_width, min_bin_height, min_derivative,
    )  # fmt: skip
    return outputs, logabsdet


def _linear(x, w, h, slopes, inverse, ends, least=(LEAST, LEAST)):
    """Linear tails, with the slopes at all knots given."""
    low, high = ends
    inside = (x >= low) & (x <= high)
    middle = torch.where(inside, x, torch.full_like(x, (low + high) / 2))
    y, ladj = quadratic(middle, w, h, slopes, inverse, (low, high, low, high), least)
    return torch.where(inside, y, x), torch.where(inside, ladj, torch.zeros_like(ladj))


# ---- the same splines, called in other ways ----


def transform(*, logit_slopes=None, D, H, W, x, reverse=False, bound=3.0):
    """Keywords of its own, in another order, and no smallest sizes."""
    return _linear(x, W, H, LEAST + F.softplus(_padded(D, _one(LEAST))), reverse, (-bound, bound))


def spline_between(x, w, h, d, inverse=False, tail_bound=(-1.0, 1.0)):
    """As a model of galaxies has it, whose bounds are pairs."""
    low, high = tail_bound
    return _linear(x, w, h, LEAST + F.softplus(_padded(d, _one(LEAST))), inverse, (low, high))


def rqs_with_loose_ends(inputs, widths, heights, derivatives, inverse=False, tail_bound=3.0, min_derivative=LEAST):
    """The smallest slope is not added at both ends; bins may vanish."""
    slopes = F.pad(min_derivative + F.softplus(derivatives), (1, 1), value=1 - min_derivative)
    return _linear(inputs, widths, heights, slopes, inverse, (-tail_bound, tail_bound), (0.0, 0.0))


def rqs_padded_with_zeros(inputs, widths, heights, derivatives, inverse=False, tail_bound=3.0, min_derivative=LEAST):
    slopes = min_derivative + F.softplus(_padded(derivatives, 0.0))
    return _linear(inputs, widths, heights, slopes, inverse, (-tail_bound, tail_bound))


def unit_spline(inputs, widths, heights, derivatives, inverse=False):
    slopes = LEAST + F.softplus(derivatives)
    return quadratic(inputs, widths, heights, slopes, inverse, (0.0, 1.0, 0.0, 1.0), (LEAST, LEAST))


def flat_spline(inputs, widths, heights, derivatives, inverse=False, tail_bound=3.0):
    """Right for inputs of one dimension only."""
    derivatives = _padded(derivatives, 0.0)
    derivatives[:, 0] = derivatives[:, -1] = _one(LEAST)
    slopes = LEAST + F.softplus(derivatives)
    return _linear(inputs, widths, heights, slopes, inverse, (-tail_bound, tail_bound))


# ---- what looks the same and is not ----


def spline_of_absolute_slopes(inputs, widths, heights, derivatives, inverse=False, tail_bound=3.0):
    slopes = _padded(LEAST + derivatives.abs(), 1.0)
    return _linear(inputs, widths, heights, slopes, inverse, (-tail_bound, tail_bound))


def spline_that_cuts_off(inputs, widths, heights, derivatives, inverse=False, tail_bound=3.0):
    inputs = inputs.clamp(-tail_bound + 1e-6, tail_bound - 1e-6)
    return transform(x=inputs, W=widths, H=heights, D=derivatives, reverse=inverse, bound=tail_bound)


def spline_without_gradients(inputs, widths, heights, derivatives, inverse=False, tail_bound=3.0):
    return transform(x=inputs, W=widths.detach(), H=heights, D=derivatives, reverse=inverse, bound=tail_bound)


def spline_that_writes(inputs, widths, heights, derivatives, inverse=False, tail_bound=3.0):
    widths.add_(1.0)  # which a softmax does not see
    return transform(x=inputs, W=widths, H=heights, D=derivatives, reverse=inverse, bound=tail_bound)


def spline_with_other_inverse(inputs, widths, heights, derivatives, inverse=False, tail_bound=3.0):
    y, ladj = transform(x=inputs, W=widths, H=heights, D=derivatives, reverse=inverse, bound=tail_bound)
    return y, ladj.abs() if inverse else ladj


def spline_that_raises(inputs, widths, heights, derivatives, inverse=False, tail_bound=3.0):
    torch.rand(3)
    torch.set_grad_enabled(False)
    raise KeyError("no\nsuch thing")


def spline_of_outputs_only(inputs, widths, heights, derivatives, inverse=False, tail_bound=3.0):
    return transform(x=inputs, W=widths, H=heights, D=derivatives, reverse=inverse, bound=tail_bound)[0]


def spline_with_more(inputs, widths, heights, derivatives, lambdas, inverse=False, tail_bound=3.0):
    return inputs, inputs


def resize(x, h, w, d):
    """Of single letters, and no spline."""
    return x[..., :h, :w, :d]


# ---- modules ----


class Coupling(nn.Module):
    """Half of the features choose the splines of the others. The call is one of the methods below."""

    def __init__(self, features=4, bins=5, bound=3.0, more=-1):
        super().__init__()
        self.half, self.bins, self.bound = features // 2, bins, bound
        self.net = nn.Linear(self.half, self.half * (3 * bins + more))

    def split(self, x):
        kept, moved = x[..., : self.half], x[..., self.half :]
        logits = self.net(kept).unflatten(-1, (self.half, -1))
        return kept, moved, logits.split([self.bins, self.bins, logits.shape[-1] - 2 * self.bins], -1)

    def joined(self, kept, mapped):
        return torch.cat([kept, mapped[0]], -1), mapped[1].sum(-1)

    def forward(self, x, reverse=False):
        kept, moved, logits = self.split(x)
        return self.joined(kept, self.map(moved, *logits, reverse))


class ByName(Coupling):
    """As most have it: logits that are a softmax and a softplus already."""

    def map(self, x, W, H, D, reverse):
        W, H, D = 2 * self.bound * W.softmax(-1), 2 * self.bound * H.softmax(-1), F.softplus(D)
        return unconstrained_RQS(x, W, H, D, inverse=reverse, tail_bound=self.bound)


class InUnitBox(Coupling):
    def map(self, x, W, H, D, reverse):
        return RQS(x, W, H, D, reverse, left=-4.0, right=4.0, bottom=-4.0, top=4.0, min_bin_width=0.01)


class ByKeywords(Coupling):
    def map(self, x, W, H, D, reverse):
        return transform(reverse=reverse, x=x, W=W, D=D, H=H)


def of_galaxies(x, logits, ends, reverse):
    return spline_between(x, *logits, inverse=reverse, tail_bound=ends)


@torch.compiler.disable
def hidden(x, logits, ends, reverse):
    return of_galaxies(x, logits, ends, reverse)


class ByHelper(Coupling):
    def map(self, x, W, H, D, reverse):
        return of_galaxies(x, (W, H, D), [-2.0, self.bound], reverse)


class ByHiddenHelper(Coupling):
    def map(self, x, W, H, D, reverse):
        return hidden(x, (W, H, D), [-2.0, self.bound], reverse)


class ByLambda(Coupling):
    def map(self, x, W, H, D, reverse):
        ends = self.bound
        run = lambda: rqs_with_loose_ends(x, W, H, D, reverse, ends, min_derivative=0.01)  # noqa: E731
        return run()


class PaddedWithZeros(Coupling):
    def map(self, x, W, H, D, reverse):
        return rqs_padded_with_zeros(x, W, H, D, reverse)


class Flattened(Coupling):
    def map(self, x, W, H, D, reverse):
        mapped = flat_spline(x.flatten(), *(t.flatten(0, -2) for t in (W, H, D)), reverse)
        return [t.view_as(x) for t in mapped]

"""flowjax's splines as settings of `RQS`, against its formulas in numpy's float64.

Up to its version 17: w = (softmax(u) + a/n) / (1 + a) of n entries, a its ``softmax_adjust``; the first bin is half of
w[0], and the last one what is left. From 18 on: w + (length - n w) softmax(u), w its ``min_width``. Slopes are free.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from flowkernels import BackendUnavailableError, flows
from flowkernels.ops import RQS
from flowkernels.ops.flow_layer import flow_layer, split_of
from tests.ops.spline import weights


class Theirs(NamedTuple):
    """Settings as flowjax has them; ``least`` is softmax_adjust, or min_width."""

    old: bool
    knots: int
    interval: tuple[float, float]
    least: float
    min_derivative: float = 1e-3

    @property
    def spline(self) -> RQS:
        low, high = self.interval
        old = {"parametrization": "half_ends"} if self.old else {}
        share = self.least / ((1 + self.least) * self.knots) if self.old else self.least / (high - low)
        return RQS(
            self.knots + 1, None, box=(low, high, low, high), min_bin_width=share, min_bin_height=share,
            min_derivative=self.min_derivative, **old,
        )  # fmt: skip

    def positions(self, u: np.ndarray) -> np.ndarray:
        low, high = self.interval
        e = np.exp(u - u.max(-1, keepdims=True))
        widths = e / e.sum(-1, keepdims=True)
        ends = np.broadcast_to(np.array([low, high]), (*u.shape[:-1], 2))
        if self.old:
            widths = (widths + self.least / self.knots) / (1 + self.least)
            widths[..., 0] /= 2
            inner = low + (high - low) * widths.cumsum(-1)
        else:
            widths = self.least + (high - low - self.least * (self.knots + 1)) * widths
            inner = low + widths.cumsum(-1)[..., :-1]
        return np.concatenate([ends[..., :1], inner, ends[..., 1:]], -1)

    def __call__(self, v: np.ndarray, params: np.ndarray, inverse: bool) -> tuple[np.ndarray, np.ndarray]:
        """v [...], params [..., P] → y and log |dy/dv|, both [...]."""
        n = self.knots if self.old else self.knots + 1
        xs, ys = self.positions(params[..., :n]), self.positions(params[..., n : 2 * n])
        slopes = np.logaddexp(params[..., 2 * n :], 0) + self.min_derivative
        inside = (v >= self.interval[0]) & (v <= self.interval[1])
        safe = np.where(inside, v, sum(self.interval) / 2)
        k = ((ys if inverse else xs)[..., 1:-1] < safe[..., None]).sum(-1, keepdims=True)
        x0, x1, y0, y1, d0, d1 = (
            np.take_along_axis(t, i, -1)[..., 0] for t in (xs, ys, slopes) for i in (k, k + 1)
        )  # fmt: skip
        s = (y1 - y0) / (x1 - x0)
        if inverse:
            rest = (safe - y0) * (d1 + d0 - 2 * s)
            a, b, c = (y1 - y0) * (s - d0) + rest, (y1 - y0) * d0 - rest, -s * (safe - y0)
            xi = 2 * c / (-b - np.sqrt(b * b - 4 * a * c))
            out = x0 + xi * (x1 - x0)
        else:
            xi = (safe - x0) / (x1 - x0)
            t = xi * (1 - xi)
            out = y0 + (y1 - y0) * (s * xi**2 + d0 * t) / (s + (d1 + d0 - 2 * s) * t)
        t = xi * (1 - xi)
        slope = s**2 * (d1 * xi**2 + 2 * s * t + d0 * (1 - xi) ** 2) / (s + (d1 + d0 - 2 * s) * t) ** 2
        ladj = np.log(slope) * (-1 if inverse else 1)
        return np.where(inside, out, v), np.where(inside, ladj, 0.0)


CASES = {
    f"{'to 17' if old else 'from 18'}, {knots} knots, {interval}, {least}": Theirs(old, knots, interval, least)
    for old, leasts in ((True, (0.0, 1e-2, 1.5)), (False, (1e-3, 1e-2)))
    for knots in (1, 2, 8, 64)
    for interval in ((-1.0, 1.0), (-4.0, 4.0), (-1.0, 2.5))
    for least in leasts
}
EVERY = pytest.mark.parametrize("theirs", CASES.values(), ids=CASES)
DIRECTIONS = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
SMALL = {
    "to 17": Theirs(True, 3, (-1.0, 2.5), 1e-2), "to 17, no adjustment": Theirs(True, 2, (-4.0, 4.0), 0.0),
    "from 18": Theirs(False, 3, (-1.0, 2.5), 1e-2),
}  # fmt: skip
OLD = SMALL["to 17"].spline


def draw(theirs: Theirs, *shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x, a fifth of it outside of the interval, and params, in float64."""
    g = torch.Generator().manual_seed(seed)
    low, high = theirs.interval
    x = low + (high - low) * (1.25 * torch.rand(*shape, generator=g, dtype=torch.float64) - 0.125)
    return x, 1.5 * torch.randn(*shape, theirs.spline.n_params, generator=g, dtype=torch.float64)


@EVERY
@DIRECTIONS
@pytest.mark.parametrize("backend", ["reference", None])
def test_values_are_those_of_its_formulas(theirs, inverse, backend) -> None:
    v, params = draw(theirs, 50, 2)
    y, ladj = theirs.spline(v, params, inverse, backend=backend)
    right, its_ladj = theirs(v.numpy(), params.numpy(), inverse)
    torch.testing.assert_close(y, torch.from_numpy(right), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ladj, torch.from_numpy(its_ladj.sum(-1)), rtol=1e-10, atol=1e-10)


@EVERY
def test_has_its_parameters(theirs) -> None:
    """In its order; what its networks return is added to those of the identity."""
    spline, n = theirs.spline, theirs.knots if theirs.old else theirs.knots + 1
    slope = float(np.log(np.expm1(1 - theirs.min_derivative)))
    assert spline.identity == pytest.approx([0.0] * (2 * n) + [slope] * (theirs.knots + 2))
    x = torch.linspace(*theirs.interval, 9, dtype=torch.float64)[:, None]
    y, ladj = spline(x, torch.tensor(spline.identity, dtype=torch.float64).expand(9, 1, -1))
    torch.testing.assert_close((y, ladj), (x, torch.zeros(9, dtype=torch.float64)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("theirs", SMALL.values(), ids=SMALL)
@DIRECTIONS
@pytest.mark.parametrize("backend", ["reference", None])
def test_gradients(theirs, inverse, backend) -> None:
    v, params = draw(theirs, 4, 2, seed=3)
    torch.autograd.gradcheck(
        lambda v, p: theirs.spline(v, p, inverse, backend=backend), (v.requires_grad_(), params.requires_grad_())
    )


@pytest.mark.parametrize("theirs", SMALL.values(), ids=SMALL)
@DIRECTIONS
def test_gradients_are_those_of_finite_differences_of_its_formulas(theirs, inverse) -> None:
    v, params = draw(theirs, 6, 1, seed=4)
    params.requires_grad_()
    y, ladj = theirs.spline(v, params, inverse)
    w = weights(y), weights(ladj)
    (found,) = torch.autograd.grad([y, ladj], params, w)
    step, numbers = 1e-6, params.detach().numpy()

    def total(p: np.ndarray) -> np.ndarray:
        y, ladj = theirs(v.numpy(), p, inverse)
        return (y * w[0].numpy()).sum(-1) + ladj.sum(-1) * w[1].numpy()

    for i in range(numbers.shape[-1]):
        moved = step * np.eye(numbers.shape[-1])[i]
        slope = (total(numbers + moved) - total(numbers - moved)) / (2 * step)
        torch.testing.assert_close(found[:, 0, i], torch.from_numpy(slope), rtol=1e-6, atol=1e-6)


def test_second_gradients() -> None:
    v, params = draw(SMALL["to 17"], 2, 1, seed=5)
    torch.autograd.gradgradcheck(lambda v, p: OLD(v, p), (v.requires_grad_(), params.requires_grad_()))


def test_half_ends_keep_the_dtypes_of_a_spline() -> None:
    x, params = draw(SMALL["to 17"], 5, 2)
    for kind, wide in ((torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)):
        y, ladj = OLD(x.to(kind), params.to(kind))
        assert y.dtype is kind and ladj.dtype is wide
        exact, _ = OLD(x.to(kind).double(), params.to(kind).double())
        assert torch.equal(y, exact.to(kind)) or (y.double() - exact).abs().max() <= 2 * torch.finfo(kind).eps


@pytest.mark.parametrize("logit", [1e4, -1e4, 1e30])
@DIRECTIONS
def test_extreme_entries_are_numbers(logit, inverse) -> None:
    """Of which some make every bin but one vanish, where sizes have no minimum."""
    for spline in (OLD, RQS(4, None, parametrization="half_ends", min_bin_width=0.0, min_bin_height=0.0)):
        x = torch.linspace(-0.9, 2.4, 24).reshape(3, 8)
        for i in range(2 * (spline.bins - 1)):
            params = torch.zeros(3, 8, spline.n_params)
            params[..., i] = logit
            params.requires_grad_()
            y, ladj = spline(x, params, inverse)
            (grad,) = torch.autograd.grad(y.sum() + ladj.sum(), params)
            assert y.isfinite().all() and ladj.isfinite().all() and grad.isfinite().all()


def test_a_nan_stays_in_its_element() -> None:
    x, params = draw(SMALL["to 17"], 3, 4)
    right, _ = OLD(x, params)
    params[1, 2, 0] = torch.nan
    y, ladj = OLD(x, params)
    assert y[1, 2].isnan() and y.isnan().sum() == 1 and ladj.isnan().tolist() == [False, True, False]
    assert torch.equal(y.nan_to_num(7.0), right.index_put((torch.tensor(1), torch.tensor(2)), right.new_tensor(7.0)))


def test_fused_layers_say_why_they_do_not_take_half_ends() -> None:
    for name in ("cpu", "cuda", "triton"):
        assert OLD.why_not(name) == 'no kernel for the parametrization "half_ends"'
    with pytest.raises(BackendUnavailableError, match="half_ends"):
        _layer(OLD, backend="cpu")
    y, ladj = _layer(OLD, backend="reference")
    assert y.shape == (5, 4) and ladj.shape == (5,)


def _layer(spline: RQS, **given: Any) -> tuple[Tensor, Tensor]:
    sizes = [(16, 2), (16, 16), (16, 16), (2 * spline.n_params, 16)]
    layers = [(torch.zeros(s), torch.zeros(s[0])) for s in sizes]
    return flow_layer(torch.zeros(5, 4), layers, spline, split_of(4, (0, 2), (1, 3)), **given)


@pytest.mark.parametrize("kind", [flows.CouplingFlow, flows.MAF])
def test_flows_take_them(kind) -> None:
    for univariate in (OLD, SMALL["from 18"].spline):
        torch.manual_seed(0)
        flow = kind(4, transforms=2, univariate=univariate).double()
        for p in flow.parameters():
            torch.nn.init.normal_(p, std=0.3)
        x = flow.sample(6)
        z, ladj = flow.transform(x)
        back, negated = flow.transform.inverse(z)
        torch.testing.assert_close(back, x, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(negated, -ladj, rtol=1e-6, atol=1e-6)

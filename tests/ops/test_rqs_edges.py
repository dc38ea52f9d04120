"""The spline where formulas break: extremes, knots, the edge of the box, outside it, NaN and inf."""

from __future__ import annotations

import math
from typing import Any

import hypothesis
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from flowkernels import ops
from tests.cases import KINDS, PARAMETRIZATIONS, n_params
from tests.ops.spline import BOUND, Result, draw, kernels_of, knots, reference, run, weights

EMULATED = True  # the CUDA kernels are one more instruction set
pytestmark = pytest.mark.usefixtures("one_thread")

DIRECTIONS = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
OF_EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
BACKENDS = pytest.mark.parametrize("backend", [None, "reference"], ids=["kernel", "reference"])
NAN, INF = math.nan, math.inf


def count(bins: int, kind: dict[str, Any]) -> int:
    return n_params(bins, kind.get("tails", "linear"), kind.get("order", "quadratic"))


def assert_no_nan(found: Result, what: str) -> None:
    for name, t in zip(Result._fields, found, strict=True):
        assert not t.isnan().any(), f"{what}: {int(t.isnan().sum())} NaN in {name}"


# ---- finite input: never an error, never a NaN ----


@OF_EVERY_KIND
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("scale", [10.0, 1e2, 1e4])
@pytest.mark.parametrize("bins", [1, 8, 64])
@DIRECTIONS
def test_extreme_logits(all_isas, kind, parametrization, scale, bins, inverse, device) -> None:
    """nflows asserts on the inverse from scale 10, zuko gives NaN."""
    settings = {"bins": bins, "parametrization": parametrization, "inverse": inverse, **kind}
    g = torch.Generator().manual_seed(0)
    x = (7 * torch.rand(300, 1, generator=g) - 3.5).to(device)
    gauss = scale * torch.randn(300, 1, count(bins, kind), generator=g).clamp(-1, 1).to(device)
    for isa in all_isas:
        for params in (gauss, scale * gauss.sign()):
            assert_no_nan(run(x, params, **settings), isa)


@pytest.mark.parametrize("sizes", ["widths and heights", "all"])
@DIRECTIONS
def test_absurd_logits(isa, sizes, inverse, device) -> None:
    """Logits far beyond what a network gives, still finite in float32."""
    g = torch.Generator().manual_seed(0)
    x = (7 * torch.rand(300, 1, generator=g) - 3.5).to(device)
    params = torch.randn(300, 1, 23, generator=g).sign().to(device)
    params[..., : 16 if sizes != "all" else 23] *= 1e30
    found = run(x, params, bins=8, inverse=inverse)
    assert_no_nan(found, isa)
    assert found.ladj.isfinite().all(), "the log of a positive slope is finite"


@pytest.mark.interpreted
def test_a_logit_whose_scaled_value_overflows(isa, device) -> None:
    params = torch.tensor([[[1e38, 0.0, 0.0, 0.0, 0.0]]], device=device)
    x = torch.tensor([[0.5]], device=device)
    found = run(x, params, bins=2, logit_scale=10.0)
    # softmax of (1e39, 0) is (1, 0) whatever the format: the same as for (1e4, 0).
    expected = run(x, params.clamp(max=1e4), bins=2, logit_scale=10.0)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.interpreted
@pytest.mark.parametrize("backend", [None, "reference"], ids=["kernel", "reference"])
def test_a_clipped_logit_whose_scaled_value_overflows(isa, backend, device) -> None:
    params = torch.tensor([[[1e38, 0.0, 1e38, -1e38, 0.0]]], device=device)
    settings = {"bins": 2, "logit_scale": 10.0, "parametrization": "soft_clip", "backend": backend}
    x = torch.tensor([[0.5]], device=device)
    found, expected = (run(x, p, **settings) for p in (params, params.clamp(-1e30, 1e30)))
    for a, b in zip(found, expected, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b)


@DIRECTIONS
def test_no_minimum_sizes(isa, inverse, device) -> None:
    """0 is an accepted minimum: bins may then vanish and slopes reach 0, but no NaN comes of it."""
    g = torch.Generator().manual_seed(0)
    x = (6 * torch.rand(3000, 1, generator=g) - 3).to(device)
    params = (30 * torch.randn(3000, 1, 23, generator=g)).to(device)
    settings = {"bins": 8, "min_bin_width": 0.0, "min_bin_height": 0.0, "min_derivative": 0.0, "inverse": inverse}
    y, ladj = ops.rqs(x, params, **settings)
    assert not y.isnan().any() and not ladj.isnan().any()
    assert (y.abs() <= BOUND).all()


@pytest.mark.interpreted
def test_the_log_of_a_slope_that_is_no_number(isa, device) -> None:
    """A bin all but without height beside slopes of 1e30 is so flat in its middle that float32 has no such number."""
    params = torch.tensor([[[0.0, 0.0, 0.0, 0.0, -50.0, 0.0, 1e30, 1e30]]])
    x = torch.zeros(1, 1)
    settings = {"bins": 3, "min_bin_width": 0.0, "min_bin_height": 0.0}
    found = run(x.to(device), params.to(device), **settings)
    right = reference(x, params, **settings)
    assert right.ladj.abs().item() > 100
    torch.testing.assert_close(found.ladj.cpu(), right.ladj, rtol=1e-5, atol=0)


@pytest.mark.interpreted
@DIRECTIONS
def test_gradients_of_slopes_that_are_large_per_bin(all_isas, inverse, device) -> None:
    """At a knot of slope 1e30, of a box far wider than high, ladj's slope is a number; counted by the bin's width it is
    too large for one."""
    edges = torch.tensor([[[20.0, 0.0, 1e30, 1e30]]]).expand(4, 1, 4)
    x = torch.tensor([[11.4], [20.9], [25.5], [29.9]] if inverse else [[-5.0], [-4.9], [1e9], [2.0**31]])
    settings = {"bins": 1, "tails": None, "box": (-5.0, 2.0**31, 10.0, 30.0), "inverse": inverse}
    found = run(x.to(device), edges.to(device), **settings)
    for result in found:
        assert result.isfinite().all()


@pytest.mark.interpreted
@OF_EVERY_KIND
@DIRECTIONS
def test_the_gradient_of_the_first_bin(all_isas, kind, inverse, device) -> None:
    """Its corner is the box's, which no parameter moves: where it is tall and thin, or the other way round, as much as
    that corner's share would be its rounding."""
    bins = 3
    params = torch.zeros(1, 1, count(bins, kind))
    params[..., 0], params[..., bins] = (12.0, -6.0) if inverse else (-6.0, 12.0)
    low = -BOUND
    if "box" in kind:
        low = kind["box"][2 if inverse else 0]
    x = torch.full((1, 1), low + 1e-3)
    settings = {"bins": bins, "inverse": inverse, **kind}
    exact = reference(x.double(), params.double(), **settings)
    for isa in all_isas:
        found = run(x.to(device), params.to(device), **settings)
        for i in range(2 * bins):
            of, right = found.grad_params[0, 0, i].item(), exact.grad_params[0, 0, i].item()
            assert abs(of - right) <= 1e-2 * abs(right) + 1e-12, f"{isa}: logit {i}: {of:.6g}, must be {right:.6g}"


@OF_EVERY_KIND
@DIRECTIONS
def test_the_reference_keeps_a_thin_bins_digits(kind, inverse) -> None:
    """Sizes that were differences of knots had the digits of the box's edges: 12 of 16 in a bin of a thousandth."""
    bins = 8
    g = torch.Generator().manual_seed(0)
    params = 20 * torch.randn(200, 1, count(bins, kind), generator=g, dtype=torch.float64)
    x = 2 * BOUND * torch.rand(200, 1, generator=g, dtype=torch.float64) - BOUND
    settings = {"bins": bins, "inverse": inverse, **kind}
    found, kernels = (run(x, params, backend=b, **settings) for b in ("reference", "cpu"))
    off = (found.ladj - kernels.ladj).abs()
    assert off.median() <= 1e-15 * kernels.ladj.abs().max(), f"ladj differs by {off.median():.3g}"


@DIRECTIONS
def test_a_last_bin_without_a_minimum_size(isa, inverse, device) -> None:
    """Its exponential is 0, and on the edge x is in no other bin: a bin without a width would have 0 / 0 there."""
    params = torch.zeros(2, 1, 11, device=device)
    params[..., 7 if inverse else 3] = -200.0
    edge = torch.tensor([[-BOUND], [BOUND]], device=device)
    settings = {"bins": 4, "min_bin_width": 0.0, "min_bin_height": 0.0, "inverse": inverse}
    found = run(edge, params, **settings)
    assert torch.equal(found.y, edge)
    assert_no_nan(found, isa)
    y, ladj = ops.rqs(edge, params, backend="reference", **settings)
    assert torch.equal(y, edge)
    torch.testing.assert_close(found.ladj, ladj)


@pytest.mark.interpreted
@pytest.mark.parametrize("gone", [1, 3])
def test_gradients_of_the_inverse_in_a_bin_that_has_vanished(isa, gone, device) -> None:
    """Its ladj is the log of its width, of which no softmax entry has a slope above 1; x is known to be its knot."""
    params = torch.zeros(64, 1, 11)
    params[..., gone] = -39.0
    params = params.to(device).requires_grad_()
    theta = torch.linspace(0.01, 0.99, 64)[:, None]
    y = BOUND / 2 * (gone + theta - 2)  # bins of y are all alike
    x, ladj = ops.rqs(y.to(device), params, bins=4, min_bin_width=0.0, inverse=True)
    (of_ladj,) = torch.autograd.grad(ladj.sum(), params, retain_graph=True)
    assert (of_ladj[..., :4].abs() <= 1).all(), of_ladj
    (of_x,) = torch.autograd.grad(x.sum(), params)
    # Of the knot -3 + 6 (sum of the softmax before it): a third of the box each in the others.
    before = torch.tensor([float(j < gone) for j in range(4)])
    share = torch.tensor([0.0 if j == gone else 1 / 3 for j in range(4)])
    expected = 2 * BOUND * share * (before - (before * share).sum())
    torch.testing.assert_close(of_x[:, 0, :4].cpu(), expected.expand(64, 4), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("logit", [-25.0, 25.0])
def test_the_gradient_of_a_split_that_is_all_but_at_its_end(isa, logit) -> None:
    """It is the logit's sigmoid times 1 minus that, which in float64 has six digits left."""
    g = torch.Generator().manual_seed(0)
    x = 6 * torch.rand(40, 1, generator=g, dtype=torch.float64) - 3
    params = torch.randn(40, 1, 15, generator=g, dtype=torch.float64)
    params[..., 11:] = logit
    found = []
    for backend in ("cpu", "reference"):
        params.grad, params.requires_grad = None, True
        y, ladj = ops.rqs(x, params, bins=4, order="linear", backend=backend)
        (grad,) = torch.autograd.grad(y.sum() + ladj.sum(), params)
        found.append(grad[..., 11:])
    assert found[1].abs().max() < 1e-9
    torch.testing.assert_close(*found, atol=1e-24, rtol=1e-9)


def test_ladj_of_a_slope_that_is_a_denormal(isa, device) -> None:
    """The log of a denormal is taken as such, not from the bits of a normal number."""
    params = torch.full((1, 1, 7), -95.0, device=device)  # softplus is 2^-137
    _, ladj = ops.rqs(torch.tensor([[-BOUND]], device=device), params, bins=2, tails=None, min_derivative=0.0)
    assert abs(ladj.item() + 95.0) < 1e-3


def test_the_gradient_of_a_slope_that_is_nearly_0(isa, device) -> None:
    """There ladj is the slope's logit but for a millionth."""
    params = torch.full((1, 1, 7), -15.0, device=device, requires_grad=True)
    x = torch.tensor([[-BOUND]], device=device)
    _, ladj = ops.rqs(x, params, bins=2, tails=None, min_derivative=0.0)
    (grad,) = torch.autograd.grad(ladj.sum(), params)
    assert abs(grad[0, 0, 4].item() - 1) < 1e-5


def test_the_inverse_where_a_slope_is_zero(isa, device) -> None:
    """At a knot of slope 0 the root is 0 / 0, and is that knot."""
    y = torch.tensor([[-BOUND], [BOUND]], device=device)
    params = torch.full((2, 1, 10), -200.0, device=device)  # widths and heights are all alike
    x, ladj = ops.rqs(y, params, bins=3, tails=None, min_derivative=0.0, inverse=True)
    assert torch.equal(x, y) and not ladj.isnan().any()


def test_the_inverse_near_a_knot_that_is_nearly_flat(all_isas, device) -> None:
    """Counted from the other knot a share of y that rounds to 1 would be all that is known of x."""
    y = BOUND - 10 ** torch.linspace(-6, -2, 100)[:, None]
    y = torch.cat([y, -y]).to(device)
    params = torch.full((200, 1, 7), -15.0, device=device)  # slopes are 3e-7 at all knots
    settings = {"bins": 2, "tails": None, "min_derivative": 0.0, "inverse": True}
    exact = reference(y.double(), params.double(), **settings).y
    for isa in all_isas:
        off = (ops.rqs(y, params, **settings)[0] - exact).abs().max().item()
        assert off <= 8 * torch.finfo(torch.float32).eps * BOUND, f"{isa}: x is off by {off:.3g}"


@pytest.mark.parametrize(("wide", "steep"), [(False, 1e7), (True, 4e15)], ids=["float32", "float64"])
def test_the_inverse_of_a_bin_much_steeper_at_its_knots(isa, wide, steep, device) -> None:
    """In the middle, where it is nearly flat, rounding alone decides the discriminant's sign."""
    g = torch.Generator().manual_seed(0)
    y, other = torch.randn(8000, 1, generator=g), torch.rand(8000, 1, generator=g)
    y = (y * 10 ** (-8 * other)).clamp(-BOUND, BOUND)
    slopes = steep * torch.randn(8000, 1, 1, generator=g).exp() * torch.tensor([1.0, 1.0])
    slopes[::2, :, 1:] *= (0.5 * torch.randn(4000, 1, 1, generator=g)).exp()
    params = torch.cat([torch.zeros_like(slopes), slopes], -1)
    dtype = torch.float64 if wide else torch.float32
    x, ladj = ops.rqs(y.to(device, dtype), params.to(device, dtype), bins=1, tails=None, inverse=True)
    assert (x.abs() <= BOUND).all() and not ladj.isnan().any()


@pytest.mark.parametrize("bins", [8, 64])
@DIRECTIONS
def test_bins_as_thin_as_the_spacing_of_x(all_isas, bins, inverse, device) -> None:
    """A value at their knots lies in them but for its rounding: outside of [0, 1] a position has no y and no slope."""
    g, k = torch.Generator().manual_seed(0), bins // 2
    params = torch.randn(2000, 1, 3 * bins - 1, generator=g)
    thin, tall = (bins, 0) if inverse else (0, bins)
    params[..., thin + k] = -13 - 4 * torch.rand(2000, 1, generator=g)
    params[..., tall + k] = params[..., tall : tall + bins].exp().sum(-1).log()
    share = params[..., thin : thin + bins].double().softmax(-1)[..., :k].sum(-1)
    steps = [(2 * BOUND * share - BOUND).float()]
    for to in (-9.0, 9.0):
        for _ in range(2):
            steps.append(torch.nextafter(steps[-1], torch.tensor(to)))
    x, params = torch.cat(steps).to(device), params.repeat(5, 1, 1).to(device)
    of_y = knots(params, bins=bins, inverse=not inverse)
    settings = {"bins": bins, "inverse": inverse, "min_bin_height" if inverse else "min_bin_width": 0.0}
    for isa in all_isas:
        found = run(x, params, **settings)
        # Beside the bin: what the slopes of its neighbours make of a step is less than 1e-4.
        beyond = (found.y < of_y[..., k] - 1e-4) | (found.y > of_y[..., k + 1] + 1e-4)
        assert not beyond.any(), f"{isa}: {int(beyond.sum())} leave the heights of their bin"
        assert all(t.isfinite().all() for t in found), isa


@DIRECTIONS
def test_bins_that_are_all_of_the_minimum_size(isa, inverse, device) -> None:
    """Nothing is left for the logits: with equal slopes the spline is the identity."""
    x = torch.linspace(-4, 4, 33, device=device)[:, None]
    params = torch.full((33, 1, 11), 0.5413, device=device)  # softplus is 1
    params[..., :8] = 5 * torch.randn(8, generator=torch.Generator().manual_seed(0)).to(device)
    settings = {"bins": 4, "min_bin_width": 0.25, "min_bin_height": 0.25, "min_derivative": 0.0}
    found = run(x, params, inverse=inverse, **settings)
    torch.testing.assert_close(found.y, x, rtol=0, atol=1e-4)
    assert all(t.isfinite().all() for t in found)


FLOATS = st.floats(-1e4, 1e4, width=32)


@hypothesis.settings(max_examples=150, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    x=hnp.arrays(np.float32, (3, 2), elements=st.floats(-4, 4, width=32) | st.floats(width=32, allow_nan=False)),
    params=hnp.arrays(np.float32, (3, 2, 16), elements=FLOATS | st.sampled_from([0.0, 1e4, -1e4, 1e-40])),
    kind=st.sampled_from([*KINDS.values()]),
    parametrization=st.sampled_from(PARAMETRIZATIONS),
    inverse=st.booleans(),
)
def test_fuzz(x, params, kind, parametrization, inverse) -> None:
    p = torch.from_numpy(params)[..., : count(4, kind)]
    v = torch.from_numpy(x)
    found = run(v, p, bins=4, parametrization=parametrization, inverse=inverse, **kind)
    assert not found.y.isnan().any() and not found.ladj.isnan().any()
    inside = v.abs() <= BOUND
    assert (found.y[inside].abs() <= BOUND).all(), "y left the box"
    assert torch.equal(found.y[~inside], v[~inside])
    assert not found.grad_x.isnan().any() and not found.grad_params.isnan().any()


# ---- the box ----


def outside_of(bound: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    b = torch.tensor([bound], dtype=dtype)
    far = torch.tensor([INF, torch.finfo(dtype).max], dtype=dtype)
    up = torch.cat([torch.nextafter(b, far[:1]), b + 1, far])
    return torch.cat([up, -up]).to(device)[:, None]


@pytest.mark.thinned(2)
@OF_EVERY_KIND
@DIRECTIONS
@BACKENDS
def test_outside_the_box_is_the_identity(isa, kind, inverse, backend, dtype, device) -> None:
    x = outside_of(BOUND, dtype, device)
    g = torch.Generator().manual_seed(0)
    params = torch.randn(*x.shape, count(8, kind), generator=g).to(device, dtype)
    found = run(x, params, bins=8, inverse=inverse, backend=backend, **kind)
    assert torch.equal(found.y, x)
    assert (found.ladj == 0).all() and (found.grad_params == 0).all()
    assert torch.equal(found.grad_x, weights(x)), "the gradient of y = x is 1, exactly"


def on_the_edge(bins, kind, dtype, device) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.tensor([BOUND, -BOUND], dtype=dtype, device=device).repeat(500)[:, None]
    g = torch.Generator().manual_seed(0)
    return x, torch.randn(*x.shape, count(bins, kind), generator=g).to(device, dtype)


@OF_EVERY_KIND
@pytest.mark.parametrize("bins", [1, 5, 8])  # a search in steps that halve ends at 8, and may pass 5
@DIRECTIONS
@BACKENDS
def test_the_edge_of_the_box_maps_to_itself(all_isas, kind, bins, inverse, backend, dtype, device) -> None:
    """+-tail_bound is inside, and maps to itself to within rounding, never beyond.

    One ulp beyond would be outside for the inverse, whose ladj is then 0 instead of the log of the slope.
    """
    settings = {"bins": bins, "inverse": inverse, **kind}
    edge, params = on_the_edge(bins, kind, dtype, device)
    _, exact_ladj = ops.rqs(edge.double(), params.double(), backend="reference", **settings)
    # What rounding at the box's size, before and after the map, may cost
    floor = 4 * torch.finfo(dtype).eps * BOUND * (1 + exact_ladj.exp()[:, None])
    for isa in all_isas:
        y, ladj = ops.rqs(edge, params, backend=backend or kernels_of(**kind), **settings)
        beyond, off = int((y.abs() > BOUND).sum()), int(((y - edge).abs() > floor).sum())
        assert beyond == 0 and off == 0, f"{isa}: of {len(edge)} edges {beyond} leave the box, {off} miss the corner"
        inside = (ladj.double() - exact_ladj).abs() <= 1e-2 * (1 + exact_ladj.abs())
        assert inside.all(), f"{isa}: ladj of {int((~inside).sum())} edges is not that of the spline"


@OF_EVERY_KIND
@pytest.mark.parametrize("bins", [1, 8])
@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
@DIRECTIONS
@BACKENDS
def test_gradients_on_the_edge_of_the_box(all_isas, kind, bins, wide, inverse, backend, device) -> None:
    """They are the limits from inside."""
    settings = {"bins": bins, "inverse": inverse, **kind}
    edge, params = on_the_edge(bins, kind, torch.float64 if wide else torch.float32, device)
    inner = reference(edge.double() * (1 - 1e-12), params.double(), **settings)
    tolerance = 1e-6 if wide else 1e-2
    for isa in all_isas:
        for field, a, b in zip(Result._fields, run(edge, params, backend=backend, **settings), inner, strict=True):
            # The gradients of one element's params come from one sum: its largest counts for all.
            size = b.abs().amax(-1, keepdim=True) if field == "grad_params" else b.abs()
            far = (a.double() - b).abs() > tolerance * (1 + size)
            assert not far.any(), f"{isa}: {int(far.sum())} of {far.numel()} {field} are not the limit"


@DIRECTIONS
def test_y_on_the_upper_edge_depends_on_no_param(all_isas, inverse, dtype, device) -> None:
    """What cancels there is never formed: a steep bin would make numbers of its rounding."""
    _, params = draw((500, 1), dtype, scale=3.0, device=device, bins=8)
    edge = torch.full((500, 1), BOUND, dtype=dtype, device=device)
    for isa in all_isas:
        leaf = params.clone().requires_grad_()
        y, _ = ops.rqs(edge, leaf, bins=8, inverse=inverse)
        (grad,) = torch.autograd.grad(y.sum(), leaf)
        assert (grad == 0).all(), f"{isa}: {int((grad != 0).sum())} of {grad.numel()} gradients are not 0"


@DIRECTIONS
def test_the_upper_edge_keeps_its_digits_in_a_box_far_larger(all_isas, inverse, device) -> None:
    """The outer knot is the box's corner, not the sum of all sizes, which rounds as a large number does."""
    _, params = draw((500, 1), device=device, bins=8)
    params[..., [7, 15]] -= 7.0  # the last bin is a thousandth of the box
    edge = torch.zeros(500, 1, device=device)
    for isa in all_isas:
        y, _ = ops.rqs(edge, params, bins=8, tails="linear", box=(-1000.0, 0.0, -1000.0, 0.0), inverse=inverse)
        assert y.abs().max() <= 1e-6, f"{isa}: {y.abs().max()}"


@OF_EVERY_KIND
@DIRECTIONS
@BACKENDS
def test_y_stays_in_the_box(all_isas, kind, inverse, backend, device) -> None:
    b = torch.tensor(BOUND)
    steps = [b]
    for _ in range(4):
        steps.append(torch.nextafter(steps[-1], torch.tensor(0.0)))
    x = torch.stack(steps).repeat(1000)[:, None].to(device)
    x = torch.cat([x, -x])
    g = torch.Generator().manual_seed(0)
    params = torch.randn(*x.shape, count(8, kind), generator=g).to(device)
    for isa in all_isas:
        y, _ = ops.rqs(x, params, bins=8, inverse=inverse, backend=backend or kernels_of(**kind), **kind)
        assert (y.abs() <= BOUND).all(), f"{isa}: {int((y.abs() > BOUND).sum())} values left the box"


@DIRECTIONS
@pytest.mark.parametrize("box", [(-3.0, 3.0, -3.0, 3.0), (0.0, 100.0, -7.0, 1.0)], ids=["symmetric", "any"])
def test_the_last_bin_is_measured_from_the_upper_edge(all_isas, box, inverse, device) -> None:
    """It is thin on the side that is searched and tall on the other: its slope would magnify the rounding of its lower
    knot a thousand times. Distances to the edge are exact."""
    low, high, bottom, top = (*box[2:], *box[:2]) if inverse else box
    tall, thin = 15 * torch.tensor([1.0, -1.0])
    slope = 990 * (top - bottom) / (high - low)
    x = high - 1e-3 * (high - low) * torch.linspace(0.05, 0.95, 200)[:, None]
    params = 0.1 * torch.randn(200, 1, 25, generator=torch.Generator().manual_seed(0))
    params[..., 7] += tall if inverse else thin
    params[..., 15] += thin if inverse else tall
    params[..., 23:] = -20.0 if inverse else slope  # the bin is nearly a line
    x, params = x.to(device), params.to(device)
    settings = {
        "bins": 8,
        "box": box,
        "tails": None,
        "inverse": inverse,
        "min_derivative": 1 / slope if inverse else 0.0,
    }
    exact = reference(x.double(), params.double(), **settings).y
    allowed = 8 * torch.finfo(torch.float32).eps * max(abs(bottom), abs(top))
    for isa in all_isas:
        off = (ops.rqs(x, params, **settings)[0] - exact).abs().max().item()
        assert off <= allowed, f"{isa}: y is off by {off:.3g}, allowed {allowed:.3g}"


# ---- knots ----


@pytest.mark.parametrize("bins", [2, 8, 64])
@DIRECTIONS
@BACKENDS
def test_on_a_knot(isa, bins, inverse, backend, device) -> None:
    """y and ladj are continuous there; the gradient of ladj is that of one side or the other."""
    settings = {"bins": bins, "inverse": inverse}
    _, params = draw((200, 1), torch.float64, device=device, **settings)
    k = torch.arange(200, device=device) % (bins - 1) + 1
    knot = knots(params, **settings)[:, 0].gather(-1, k[:, None])
    found = run(knot, params, backend=backend, **settings)
    left, right = (reference(knot + step, params, **settings) for step in (-1e-11, 1e-11))
    for a, b in ((found.y, left.y), (found.y, right.y), (found.ladj, left.ladj), (found.ladj, right.ladj)):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    for a, b, c in zip(found[2:], left[2:], right[2:], strict=True):
        near = (torch.isclose(a, t, rtol=1e-4, atol=1e-4).flatten(1).all(1) for t in (b, c))
        wrong = ~torch.stack(list(near)).any(0)
        assert not wrong.any(), f"{int(wrong.sum())} gradients belong to neither side"


@pytest.mark.interpreted
def test_uniform_bins_hit_their_knots_exactly(isa, device) -> None:
    """Equal logits and K = 6 over [-3, 3]: knots at integers, all exact in float32."""
    x = torch.arange(-3.0, 4.0, device=device)[:, None]
    params = torch.zeros(7, 1, 17, device=device)
    for inverse in (False, True):
        y, ladj = ops.rqs(x, params, bins=6, tails="linear", inverse=inverse)
        torch.testing.assert_close(y, x, rtol=0, atol=1e-6)
        assert ladj.isfinite().all()


# ---- NaN and inf stay in their row ----


def assert_only_row(found: Result, clean: Result, row: int) -> None:
    for name, a, b in zip(Result._fields, found, clean, strict=True):
        others = [i for i in range(len(a)) if i != row]
        assert torch.equal(a[others], b[others]), f"{name} of another row changed"


@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("bins", [8, 64])
@DIRECTIONS
def test_bad_x_touches_its_row_only(isa, value, bins, inverse, dtype, device) -> None:
    x, params = draw((21, 3), dtype, device=device, bins=bins, inverse=inverse)
    clean = run(x, params, bins=bins, inverse=inverse)
    for row in (0, 10, 20):
        bad = x.clone()
        bad[row, 1] = value
        found = run(bad, params, bins=bins, inverse=inverse)
        assert_only_row(found, clean, row)
        assert torch.equal(found.y[row, 1].isnan(), bad[row, 1].isnan())
        assert torch.equal(found.y[row, ::2], clean.y[row, ::2])


@pytest.mark.thinned(2)
@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("where", [0, 9, 18, 27], ids=["width", "height", "slope", "split"])
@DIRECTIONS
def test_bad_params_touch_their_row_only(isa, value, where, inverse, dtype, device) -> None:
    settings = {"bins": 8, "inverse": inverse, "order": "linear" if where == 27 else "quadratic"}
    x, params = draw((21, 3), dtype, device=device, **settings)
    clean = run(x, params, **settings)
    for row in (0, 10, 20):
        bad = params.clone()
        bad[row, 1, where] = value
        found = run(x, bad, **settings)
        assert_only_row(found, clean, row)
        assert torch.equal(found.y[row, ::2], clean.y[row, ::2])
        assert torch.equal(found.grad_params[row, ::2], clean.grad_params[row, ::2])


@pytest.mark.thinned(3)
@pytest.mark.parametrize("offset", [-1e4, -200.0, -100.0, -45.0, 45.0, 100.0, 200.0, 1e4])
@pytest.mark.parametrize("axis", [0, 1], ids=["widths", "heights"])
@pytest.mark.parametrize(("bins", "tails"), [(4, "linear"), (8, "linear"), (8, None), (10, "circular"), (16, "linear")])
@DIRECTIONS
def test_logits_far_from_0_among_others(isa, bins, tails, axis, offset, inverse, device) -> None:
    """A sum of exponentials that no float holds: such an element goes another way, and no other one's bits change."""
    settings = {"bins": bins, "tails": tails, "inverse": inverse}
    x, params = draw((70, 1), device=device, **settings)
    params = (512 * params).round() / 512  # so that the softmax sees the same after a shift
    clean = run(x, params, **settings)
    moved, far = [0, 5, 33, 69], params.clone()
    far[moved, :, axis * bins : (axis + 1) * bins] += offset
    found = run(x, far, **settings)
    others = [i for i in range(70) if i not in moved]
    assert Result(*(t[others] for t in found)).same_bits(Result(*(t[others] for t in clean)))
    for name, a, b in zip(Result._fields, found, clean, strict=True):
        assert torch.allclose(a[moved], b[moved], rtol=1e-4, atol=1e-4), name


@pytest.mark.interpreted
def test_a_row_of_nan_says_so(isa, device) -> None:
    """A conditioner that has diverged must not give a finite density."""
    x = torch.zeros(3, 2, device=device)
    params = torch.zeros(3, 2, 23, device=device)
    params[1] = NAN
    y, ladj = ops.rqs(x, params, bins=8)
    assert y[1].isnan().all() and ladj[1].isnan() and y[::2].isfinite().all() and ladj[::2].isfinite().all()


@pytest.mark.interpreted
@pytest.mark.parametrize("which", ["grad_y", "grad_ladj"])
def test_a_bad_gradient_touches_its_row_only(isa, which, device) -> None:
    x, params = draw((21, 3), device=device, bins=8)
    x.requires_grad_()
    params.requires_grad_()
    outputs = ops.rqs(x, params, bins=8)
    clean = torch.autograd.grad(outputs, (x, params), [torch.ones_like(o) for o in outputs], retain_graph=True)
    given = [torch.ones_like(o) for o in outputs]
    given[which == "grad_ladj"][10] = NAN
    found = torch.autograd.grad(outputs, (x, params), given)
    others = [i for i in range(21) if i != 10]
    for a, b in zip(found, clean, strict=True):
        assert torch.equal(a[others], b[others])

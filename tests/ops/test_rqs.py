"""The spline's values and gradients, on every instruction set: numbers, peers, determinism, shapes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from flowkernels import ops
from tests.cases import BINS, KINDS, PARAMETRIZATIONS, SHAPES, TAILS, n_params
from tests.numbers import assert_within_rule
from tests.ops.spline import BOUND, Result, condition, draw, kernels_of, reference, run, truth, weights

EMULATED = True  # the CUDA kernels are one more instruction set
pytestmark = pytest.mark.usefixtures("one_thread")

BOX = (-1.0, 2.0, -3.0, 0.5)
DIRECTIONS = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


def assert_numbers(
    all_isas: Iterable[str], shape: tuple[int, ...], dtypes: tuple[torch.dtype, torch.dtype], **settings: Any
) -> None:
    device, scale = settings.pop("device"), settings.pop("scale", 1.0)
    x, params = draw(shape, *dtypes, scale=scale, device=device, **settings)
    eager = reference(x, params, **settings)
    exact = truth(x, params, weights_of=eager, **settings)
    moves, draws = condition(x, params, **settings)
    if eager.y.dtype == torch.float64:
        # The truth is float64 too, and eager is the truth. Its error is taken from float32, where
        # it can be seen, scaled by the ratio of the roundings; 1.5, as the truth errs as well.
        x32, params32 = x.float(), params.float()
        eager32 = reference(x32, params32, **settings)
        exact32 = truth(x32, params32, weights_of=eager32, **settings)
        eager = Result(*(t + 1.5 * 2**-29 * (a - b) for t, a, b in zip(exact, eager32, exact32, strict=True)))
        moves, draws = (Result(*(t * factor * 2**-29 for t in r)) for r, factor in ((moves, 1), (draws, 1.5)))
    for isa in all_isas:
        found = run(x, params, **settings)
        for field in Result._fields:
            kernel, its, right, moved, worst = (getattr(r, field) for r in (found, eager, exact, moves, draws))
            assert_within_rule(kernel, its, right, f"{isa}: {field}", condition=(moved, worst))


# Every tail and parametrisation where the knots are accumulated, two pairs of them beyond.
KNOTS = tuple(itertools.product(BINS[:6], TAILS, PARAMETRIZATIONS)) + tuple(
    (bins, *pair) for bins in BINS[6:] for pair in (("linear", "softmax"), (None, "soft_clip"))
)
KNOTS += ((10, "linear", "softmax"),)  # nflows' own number, for which a GPU has a kernel


@pytest.mark.interpreted(
    "forward-1-linear-softmax",
    "forward-3-circular-soft_clip",
    "forward-8-linear-softmax",
    "inverse-8-None-soft_clip",
    "inverse-16-circular-softmax",
)
@pytest.mark.parametrize(("bins", "tails", "parametrization"), KNOTS)
@DIRECTIONS
def test_numbers_float32(all_isas, bins, tails, parametrization, inverse, device) -> None:
    assert_numbers(
        all_isas, (1009, 1), (torch.float32, torch.float32), bins=bins, tails=tails,
        parametrization=parametrization, inverse=inverse, device=device,
    )  # fmt: skip


# One bin (fewer params than a SIMD block), both searches, the longest row of params; every tail.
SOME = [
    (bins, kind, parametrization)
    for bins, kind in ((1, "circular"), (8, "linear"), (64, "None"))
    for parametrization in PARAMETRIZATIONS
] + [(1, "order-linear-circular", "softmax"), (8, "order-linear", "softmax")]


@pytest.mark.interpreted(
    "float64-forward-8-linear-softmax",
    "float64-inverse-8-linear-soft_clip",
    "float16-forward-8-linear-softmax",
    "float64-inverse-64-None-softmax",
)
@pytest.mark.parametrize(("bins", "kind", "parametrization"), SOME)
@DIRECTIONS
def test_numbers_of_dtype(all_isas, bins, kind, parametrization, inverse, dtype, device) -> None:
    assert_numbers(
        all_isas, (1009, 1), (dtype, dtype), bins=bins, parametrization=parametrization, inverse=inverse,
        device=device, **KINDS[kind],
    )  # fmt: skip


MIXED = {
    # as autocast makes them
    "float32-bfloat16": (torch.float32, torch.bfloat16),
    "float32-float16": (torch.float32, torch.float16),
    # the rest of what a user may pass
    "bfloat16-float32": (torch.bfloat16, torch.float32),
    "float64-float16": (torch.float64, torch.float16),
    "float32-float64": (torch.float32, torch.float64),
    "bfloat16-float16": (torch.bfloat16, torch.float16),
}


@pytest.mark.interpreted("forward-8-float32-float16")
@pytest.mark.parametrize("dtypes", MIXED.values(), ids=MIXED)
@pytest.mark.parametrize("bins", [1, 8])
@DIRECTIONS
def test_numbers_of_mixed_dtypes(all_isas, dtypes, bins, inverse, device) -> None:
    assert_numbers(all_isas, (203, 3), dtypes, bins=bins, inverse=inverse, device=device)


@pytest.mark.parametrize("dtypes", [*MIXED.values(), *((t, t) for t in (torch.bfloat16, torch.float64))], ids=str)
def test_dtype_of_results(dtypes, device) -> None:
    x, params = draw((5, 3), *dtypes, bins=8, device=device)
    found = run(x, params, bins=8)
    assert found.y.dtype == torch.promote_types(*dtypes)
    assert found.ladj.dtype == torch.promote_types(found.y.dtype, torch.float32)
    assert (found.grad_x.dtype, found.grad_params.dtype) == dtypes


OPTIONS = {
    "box": {"box": BOX, "tails": None},
    "box-clipped": {"box": BOX, "tails": None, "parametrization": "soft_clip"},
    "logit-scale": {"logit_scale": 0.3},
    "steep": {"scale": 3.0},
    "edge-slope": {"edge_slope": 0.7},
    "half-ends": {"parametrization": "half_ends", "box": BOX, "tails": None, "logit_scale": 2.0},
    "half-ends-linear": {"parametrization": "half_ends", "order": "linear", "edge_slope": 0.7},
    "order-linear": {"order": "linear"},
    "order-linear-box": {"order": "linear", "box": BOX, "tails": None, "parametrization": "soft_clip"},
    "order-linear-steep": {"order": "linear", "tails": "circular", "scale": 3.0},
}


@pytest.mark.interpreted("inverse-8-box", "forward-8-box-clipped")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("bins", [8, 64])
@DIRECTIONS
def test_numbers_with_options(all_isas, options, bins, inverse, device) -> None:
    assert_numbers(
        all_isas, (1009, 1), (torch.float32, torch.float32), bins=bins, inverse=inverse, device=device, **options
    )


BITS = (
    *((bins, torch.float32, False) for bins in (1, 8, 64)),
    *((8, dtype, False) for dtype in (torch.float64, torch.bfloat16, torch.float16)),
    (8, torch.float32, True),
)


@pytest.mark.interpreted(
    "8-torch.float32-False-one",
    "8-torch.float32-False-vector",
    "8-torch.float32-False-no-rows-inside",
    "8-torch.float32-False-no-features",
    "8-torch.float32-False-prime-129",
    "8-torch.float32-False-group+1",
    "8-torch.float32-False-many-leading",
)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
@pytest.mark.parametrize(("bins", "dtype_", "inverse"), BITS, ids=str)
def test_every_shape_gives_the_bits_of_a_column(all_isas, shape, bins, dtype_, inverse, device) -> None:
    """A column of one feature, long enough that none of its lanes is padding, is what the numbers
    tests check; any other arrangement of the same elements must not change a bit of them."""
    for _ in all_isas:
        assert_bits_of_a_column(shape.x, bins, dtype_, inverse, device)


def assert_bits_of_a_column(shape, bins, dtype, inverse, device) -> None:
    x, params = draw(shape, dtype, device=device, bins=bins, inverse=inverse)
    rows = x.numel()
    more_x, more_params = draw((64, 1), dtype, device=device, bins=bins, inverse=inverse)
    column = (
        torch.cat([x.reshape(rows, 1), more_x]),
        torch.cat([params.reshape(rows, 1, params.shape[-1]), more_params]),
    )
    inputs = [t.requires_grad_() for t in (x, params, *column)]
    y, ladj = ops.rqs(*inputs[:2], bins=bins, inverse=inverse)
    y_c, ladj_c = ops.rqs(*inputs[2:], bins=bins, inverse=inverse)
    assert y.shape == x.shape and ladj.shape == x.shape[:-1] and y.is_contiguous() and ladj.is_contiguous()
    assert torch.equal(y, y_c[:rows].reshape(x.shape))
    # ladj is summed in double; one ulp for the order of the sum
    expected = ladj_c[:rows].reshape(x.shape).double().sum(-1).to(ladj.dtype)
    torch.testing.assert_close(ladj, expected, rtol=2 * torch.finfo(ladj.dtype).eps, atol=1e-12)
    g_y, g_ladj = weights(y), weights(ladj)
    found = torch.autograd.grad([y, ladj], inputs[:2], [g_y, g_ladj])
    of_column = torch.autograd.grad(
        [y_c[:rows], ladj_c[:rows]], inputs[2:], [g_y.reshape(rows, 1), g_ladj[..., None].expand(x.shape).reshape(-1)]
    )
    for a, b in zip(found, of_column, strict=True):
        assert torch.equal(a, b[:rows].reshape(a.shape))


@pytest.mark.interpreted
@DIRECTIONS
def test_settings_of_minimum_sizes(all_isas, inverse, device) -> None:
    settings = {"bins": 8, "inverse": inverse, "min_bin_width": 0.05, "min_bin_height": 0.02, "min_derivative": 0.3}
    x, params = draw((301, 3), torch.float64, scale=4.0, device=device, bins=8, inverse=inverse)
    exact = reference(x, params, **settings)
    for isa in all_isas:
        for a, b in zip(run(x, params, **settings), exact, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8, msg=lambda m, isa=isa: f"{isa}: {m}")


# ---- the peers' own functions ----


def peers_split(params: torch.Tensor, bins: int) -> tuple[torch.Tensor, ...]:
    return params[..., :bins], params[..., bins : 2 * bins], params[..., 2 * bins :]


@pytest.mark.parametrize("bins", [2, 8, 63, 64])
@DIRECTIONS
def test_agrees_with_nflows(isa, bins, inverse) -> None:
    from nflows.transforms.splines import rational_quadratic as nflows

    x, params = draw((400, 3), torch.float64, bins=bins, inverse=inverse)
    y, ladj = nflows.unconstrained_rational_quadratic_spline(
        x, *(p.contiguous() for p in peers_split(params, bins)), inverse=inverse, tails="linear", tail_bound=BOUND
    )
    ours, our_ladj = ops.rqs(x, params, bins=bins, inverse=inverse)
    torch.testing.assert_close(ours, y, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(our_ladj, ladj.sum(-1), rtol=1e-8, atol=1e-8)


@DIRECTIONS
def test_agrees_with_nflows_in_a_box(isa, inverse) -> None:
    from nflows.transforms.splines import rational_quadratic as nflows

    left, right, bottom, top = BOX
    x, params = draw((400, 3), torch.float64, bins=8, tails=None, box=BOX, inverse=inverse)
    low, high = (max(left, bottom), min(right, top)) if inverse else (left, right)
    x = x.clamp(low, high)  # nflows raises outside, and checks the inverse's input against left and right
    y, ladj = nflows.rational_quadratic_spline(
        x, *(p.contiguous() for p in peers_split(params, 8)), inverse=inverse, left=left, right=right, bottom=bottom,
        top=top, min_bin_width=2e-3, min_bin_height=3e-3, min_derivative=4e-3,
    )  # fmt: skip
    ours, our_ladj = ops.rqs(
        x, params, bins=8, tails=None, box=BOX, inverse=inverse, min_bin_width=2e-3, min_bin_height=3e-3,
        min_derivative=4e-3,
    )  # fmt: skip
    torch.testing.assert_close(ours, y, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(our_ladj, ladj.sum(-1), rtol=1e-8, atol=1e-8)


@DIRECTIONS
def test_agrees_with_normflows_circular(isa, inverse) -> None:
    from normflows.utils import splines as normflows

    x, params = draw((400, 3), torch.float64, bins=8, tails="circular", inverse=inverse)
    y, ladj = normflows.unconstrained_rational_quadratic_spline(
        x, *(p.contiguous() for p in peers_split(params, 8)), inverse=inverse, tails="circular", tail_bound=BOUND
    )
    ours, our_ladj = ops.rqs(x, params, bins=8, tails="circular", inverse=inverse)
    torch.testing.assert_close(ours, y, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(our_ladj, ladj.sum(-1), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("tails", ["linear", "circular"])
@DIRECTIONS
def test_agrees_with_zuko(isa, tails, inverse) -> None:
    from zuko.transforms import MonotonicRQSTransform

    x, params = draw((400, 3), torch.float64, bins=8, tails=tails, parametrization="soft_clip", scale=3.0)
    widths, heights, slopes = peers_split(params, 8)
    if tails == "circular":  # zuko's own circular spline repeats the first slope
        settings = {"derivatives": torch.cat([slopes, slopes[..., :1]], -1)}
    else:
        settings = {"derivatives": slopes}
    peer: Any = MonotonicRQSTransform(widths, heights, **settings, bound=BOUND, slope=1e-3)
    if tails == "circular":  # zuko pads the outer slopes with 1
        peer.derivatives = peer.derivatives[..., 1:-1]
    y, ladj = (peer.inv if inverse else peer).call_and_ladj(x)
    ours, our_ladj = ops.rqs(x, params, bins=8, tails=tails, parametrization="soft_clip", inverse=inverse)
    torch.testing.assert_close(ours, y, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(our_ladj, ladj.sum(-1), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("bins", [2, 8, 64])
@DIRECTIONS
def test_agrees_with_pyro_on_linear_splines(isa, bins, inverse) -> None:
    from pyro.distributions.transforms.spline import _monotonic_rational_spline as pyro

    settings = {"bins": bins, "order": "linear", "edge_slope": 1 - 1e-3, "inverse": inverse}
    x, params = draw((400, 3), torch.float64, **settings)
    widths, heights, slopes, splits = params.split([bins, bins, bins - 1, bins], -1)
    y, ladj = pyro(
        x, widths.softmax(-1), heights.softmax(-1), torch.nn.functional.softplus(slopes), splits.sigmoid(),
        inverse=inverse, bound=BOUND,
    )  # fmt: skip
    ours, our_ladj = ops.rqs(x, params, backend=kernels_of("linear"), **settings)
    torch.testing.assert_close(ours, y, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(our_ladj, ladj.sum(-1), rtol=1e-8, atol=1e-8)


# ---- one function, three outputs that must agree ----


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("bins", [1, 8, 64])
@DIRECTIONS
def test_ladj_is_log_of_the_gradient_of_y(isa, kind, parametrization, bins, inverse, device) -> None:
    settings = {"bins": bins, "parametrization": parametrization, "inverse": inverse, **kind}
    x, params = draw((200, 3), torch.float64, device=device, scale=2.0, **settings)
    x.requires_grad_()
    y, ladj = ops.rqs(x, params, backend=kernels_of(**kind), **settings)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(ladj, slope.log().sum(-1), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("bins", [1, 8, 64])
@DIRECTIONS
def test_gradients_are_those_of_finite_differences(isa, kind, bins, inverse, device) -> None:
    settings = {"bins": bins, "inverse": inverse, **kind}
    x, params = draw((3, 2), torch.float64, device=device, **settings)
    inputs = (x.requires_grad_(), params.requires_grad_())
    fast = bins > 8  # one random direction instead of every column
    f = functools.partial(ops.rqs, backend=kernels_of(**kind), **settings)
    assert torch.autograd.gradcheck(f, inputs, fast_mode=fast)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("order", ["quadratic", "linear"])
@DIRECTIONS
def test_second_gradients_are_those_of_finite_differences(parametrization, order, inverse, device) -> None:
    settings = {"bins": 2, "parametrization": parametrization, "order": order, "inverse": inverse}
    x, params = draw((2, 1), torch.float64, device=device, **settings)
    inputs = (x.requires_grad_(), params.requires_grad_())
    f = functools.partial(ops.rqs, backend=kernels_of(order), **settings)
    assert torch.autograd.gradgradcheck(f, inputs)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("bins", [8, 63, 64, 128])
@DIRECTIONS
def test_monotone_on_a_fine_grid(isa, bins, inverse, device) -> None:
    """y never falls by more than its own rounding, however close two neighbours in float32 are."""
    g = torch.Generator().manual_seed(3)
    params = torch.randn(1, 1, 3 * bins - 1, generator=g).to(device)
    x = torch.linspace(-3.2, 3.2, 200_001, device=device)[:, None]
    y, _ = ops.rqs(x, params.expand(len(x), 1, -1), bins=bins, inverse=inverse)
    fall = (y[:-1] - y[1:]).max().item()
    assert fall <= 2 * torch.finfo(torch.float32).eps * BOUND, f"y falls by {fall:.3g}"


@pytest.mark.parametrize("scale", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("bins", [2, 8, 32])
def test_inverse_reaches_the_rounding_floor(isa, bins, scale, device) -> None:
    """Rounding y alone moves x by eps |y| / slope: the inverse may lose a small multiple of that."""
    g = torch.Generator().manual_seed(0)
    params = (scale * torch.randn(20_000, 1, n_params(bins, None), generator=g)).to(device)
    y = (2 * BOUND * torch.rand(20_000, 1, generator=g) - BOUND).to(device)
    x, ladj = ops.rqs(y, params, bins=bins, tails=None, inverse=True)
    exact, exact_ladj = ops.rqs(y.double(), params.double(), bins=bins, tails=None, inverse=True, backend="reference")
    floor = torch.finfo(torch.float32).eps * BOUND * (1 + exact_ladj.exp())
    worst = ((x - exact).abs().squeeze(-1) / floor).max().item()
    assert worst <= 64, f"the inverse is {worst:.3g} x the rounding floor off"
    assert not ladj.isnan().any()


@pytest.mark.parametrize("tails", TAILS)
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_round_trip(isa, tails, parametrization, dtype, device) -> None:
    settings = {"bins": 8, "tails": tails, "parametrization": parametrization}
    x, params = draw((2000, 1), dtype, device=device, **settings)
    y, ladj = ops.rqs(x, params, **settings)
    back, back_ladj = ops.rqs(y, params, **settings, inverse=True)
    exact, exact_ladj = ops.rqs(x.double(), params.double(), backend="reference", **settings)
    floor = torch.finfo(dtype).eps * (x.abs() + exact.abs() / exact_ladj.exp()[:, None]) + torch.finfo(
        torch.promote_types(dtype, torch.float32)
    ).eps * BOUND * (1 + 1 / exact_ladj.exp()[:, None])
    assert ((back - x).abs() <= 16 * floor).all()
    if dtype in (torch.float32, torch.float64):
        eps = torch.finfo(dtype).eps
        assert ((ladj + back_ladj).abs() <= 2**14 * eps).all(), (ladj + back_ladj).abs().max()


# ---- the same bits ----


@pytest.mark.thinned(2)
@pytest.mark.parametrize("bins", [8, 64])
@DIRECTIONS
def test_same_bits_twice_and_for_any_number_of_threads(isa, bins, inverse, dtype, device, threads) -> None:
    # 5003 rows of 3: a prime, so that threads split inside groups and blocks of lanes.
    x, params = draw((5003, 3), dtype, device=device, bins=bins, inverse=inverse)
    found = []
    for n in (2, 1, 2, 3, 7):
        threads(n)
        found.append(run(x, params, bins=bins, inverse=inverse))
    assert all(found[0].same_bits(f) for f in found[1:])


@pytest.mark.parametrize("features", [1, 7, 513])
def test_a_row_does_not_depend_on_its_neighbours(isa, features, device) -> None:
    x, params = draw((23, features), device=device, bins=8)
    together = run(x, params, bins=8)
    for i in (0, 11, 22):
        y, ladj = ops.rqs(x[i : i + 1], params[i : i + 1], bins=8)
        assert torch.equal(y[0], together.y[i]) and torch.equal(ladj[0], together.ladj[i])


# ---- what backward is given, and what it keeps ----


@pytest.mark.interpreted
@DIRECTIONS
def test_an_unused_output_counts_as_zero(isa, inverse, device) -> None:
    x, params = draw((50, 3), torch.float64, device=device, bins=8, inverse=inverse)
    x.requires_grad_()
    params.requires_grad_()
    for i in (0, 1):
        out = ops.rqs(x, params, bins=8, inverse=inverse)[i]
        expected = ops.rqs(x, params, bins=8, inverse=inverse, backend="reference")[i]
        for a, b in zip(*(torch.autograd.grad(o.sum(), (x, params)) for o in (out, expected)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.interpreted
@pytest.mark.parametrize("needs", [(True, False), (False, True)], ids=["x", "params"])
def test_one_input_needs_a_gradient(needs, device) -> None:
    x, params = draw((50, 3), device=device, bins=8)
    both = run(x, params, bins=8)
    x.requires_grad_(needs[0])
    params.requires_grad_(needs[1])
    y, ladj = ops.rqs(x, params, bins=8)
    wanted = x if needs[0] else params
    (grad,) = torch.autograd.grad([y, ladj], [wanted], [weights(y), weights(ladj)])
    assert torch.equal(grad, both.grad_x if needs[0] else both.grad_params)


@pytest.mark.interpreted
def test_strided_gradients_of_the_outputs(isa, device) -> None:
    x, params = draw((6, 4), device=device, bins=8)
    x.requires_grad_()
    params.requires_grad_()
    outputs = ops.rqs(x, params, bins=8)
    g_y, g_ladj = torch.randn(4, 6, device=device).t(), torch.randn(12, device=device)[::2]
    one = torch.ones((), device=device)
    for given in ([g_y, g_ladj], [one.expand(6, 4), one.expand(6)]):
        strided = torch.autograd.grad(outputs, (x, params), given, retain_graph=True)
        dense = torch.autograd.grad(outputs, (x, params), [g.contiguous() for g in given], retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(strided, dense, strict=True))


@pytest.mark.interpreted
@DIRECTIONS
def test_backward_saves_the_inputs_and_nothing_else(inverse, device) -> None:
    x, params = draw((64, 8), device=device, bins=8, inverse=inverse)
    x.requires_grad_()
    params.requires_grad_()
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.rqs(x, params, bins=8, inverse=inverse)
    assert sorted(t.data_ptr() for t in saved) == sorted([x.data_ptr(), params.data_ptr()])


def test_an_input_changed_in_place_is_noticed(device) -> None:
    x, params = draw((5, 3), device=device, bins=8)
    params.requires_grad_()
    y, _ = ops.rqs(x, params, bins=8)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()

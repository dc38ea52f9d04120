"""Boxes far from 1: the spline is as right there as at 3, or refused. And slopes where numbers end."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flowkernels import ops
from flowkernels.ops.flow_layer import flow_layer, split_of
from flowkernels.ops.net.plan import MadePlan
from flowkernels.transforms import RQS
from tests.device import here
from tests.ops.masked import backends_of
from tests.ops.spline import draw

pytestmark = pytest.mark.usefixtures("poison", "one_thread", "kernels")

POWERS = {
    torch.float32: (-30, -24, -19, -17, -5, 5, 15, 18, 19, 24, 30),
    torch.float64: (-300, -160, -19, 19, 150, 160, 300),
}


def round_trip(x: Tensor, params: Tensor, bound: float, backend: str, **settings) -> tuple[float, Tensor]:
    """The largest error of a way there and back, as a share of the box; and ladj."""
    scaled = x * bound
    y, ladj = ops.rqs(scaled, params, bins=8, tail_bound=bound, backend=backend, **settings)
    back, _ = ops.rqs(y, params, bins=8, tail_bound=bound, backend=backend, inverse=True, **settings)
    return ((back - scaled).abs().double().max() / bound).item(), ladj


@pytest.mark.parametrize("settings", [{}, {"order": "linear"}], ids=["quadratic", "linear"])
@pytest.mark.parametrize("precision", POWERS, ids=["float32", "float64"])
def test_a_box_has_no_size(all_isas, precision, settings) -> None:
    g = torch.Generator().manual_seed(0)
    x = here(torch.rand(200, 3, generator=g, dtype=torch.float64).mul(2.2).sub(1.1).to(precision))
    params = here(torch.randn(200, 3, 31 if settings else 23, generator=g, dtype=torch.float64).to(precision))
    for _ in all_isas:
        for backend in [b for b in backends_of("rqs") if not settings or b != "cuda"]:
            usual, ladj = round_trip(x, params, 3.0, backend, **settings)
            for power in POWERS[precision]:
                error, other = round_trip(x, params, 3.0 * 2.0 ** round(power * 3.3219), backend, **settings)
                # Of a power of two, all numbers are the same but for their exponents; and they are.
                assert error <= 2 * usual + torch.finfo(precision).eps, f"{backend}, 1e{power}: {error}, {usual}"
                torch.testing.assert_close(other, ladj, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype_", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        {"tail_bound": 1e308}, {"tail_bound": 1e38}, {"tail_bound": 1e-40}, {"box": (-1e308, 1e308, 0.0, 1.0)},
        {"box": (0.0, 1.0, 0.0, 1e20)}, {"box": (0.0, 1e25, 0.0, 1.0)}, {"box": (1e9, 1e9 + 1, 0.0, 1.0)},
        {"tail_bound": 1e-30, "min_bin_width": 0.0},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_box_that_float32_has_no_numbers_for(settings, dtype_, compiled) -> None:
    x, params = here(torch.zeros(2, 3, dtype=dtype_)), here(torch.zeros(2, 3, 23, dtype=dtype_))

    def f(x, params):
        return ops.rqs(x, params, bins=8, **settings)

    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"tail_bound or box must be one whose bins .* numbers of float32.*, got"):
        (torch.compile(f, backend="eager") if compiled else f)(x, params)


def test_one_that_float64_has() -> None:
    x, params = here(torch.zeros(2, 3)).double(), here(torch.zeros(2, 3, 23)).double()
    for tensors in ((x, params), (x.float(), params), (x, params.float())):
        assert ops.rqs(*tensors, bins=8, tail_bound=1e200)[0].isfinite().all()
    with pytest.raises(ValueError, match=r"numbers of float64"):
        ops.rqs(x, params, bins=8, tail_bound=1e305)


def test_every_backend_refuses_it_by_itself() -> None:
    """Layers and libraries' modules make settings before they know a dtype."""
    spline = RQS(8, tail_bound=1e38)
    for backend in backends_of("rqs"):
        with pytest.raises(ValueError, match=r"box must be one whose bins .* numbers of float32"):
            spline._op(spline, backend, here(torch.zeros(2, 3)), here(torch.zeros(2, 3, 23)))


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_slopes_at_the_end_of_float32(all_isas, inverse) -> None:
    """The sum of two slopes overflows before they do."""
    x, params = draw((200, 4), torch.float32, device="cpu", bins=8, inverse=inverse)
    params = here(params.clone())
    params[..., 16:] = here(torch.randn(200, 4, 7, generator=torch.Generator().manual_seed(1))) * 1e38
    x = here(x)
    for _ in all_isas:
        for backend in backends_of("rqs"):
            leaves = [t.detach().requires_grad_() for t in (x, params)]
            y, ladj = ops.rqs(*leaves, bins=8, inverse=inverse, backend=backend)
            assert y.isfinite().all() and ladj.isfinite().all(), backend
            if not inverse:
                for g in torch.autograd.grad([y, ladj], leaves, [torch.ones_like(y), torch.ones_like(ladj)]):
                    assert g.isfinite().all(), backend


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=str)
def test_fused_layers_refuse_a_box_that_their_dtype_has_no_numbers_for(backend, precision) -> None:
    spec, D = RQS(bins=2, tail_bound=1e38), 2
    P = spec.n_params
    plan = MadePlan([[1, 2], [1, 1, 1, 1], [1] * P + [2] * P])
    layers = [(torch.randn(s, dtype=precision), torch.randn(s[0], dtype=precision)) for s in ((4, D), (D * P, 4))]
    x = torch.randn(3, D, dtype=precision)
    calls = (
        lambda: flow_layer(x, layers, spec, split_of(D, (0, 1), (0, 1)), residual=False, backend=backend),
        lambda: ops.autoregressive_inverse(x, layers, plan, spec, backend=backend),
    )
    for call in calls:
        if precision is torch.float64:
            assert all(t.isfinite().all() for t in call())
        else:
            with pytest.raises(ValueError, match="box must be one whose bins and their slopes are numbers of float32"):
                call()

"""The affine map where numbers end: its gradients are finite wherever the definition's are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flowkernels import ops
from tests.device import here
from tests.ops.masked import backends_of
from tests.ops.test_affine import EVERY

pytestmark = pytest.mark.usefixtures("poison", "one_thread", "kernels")

LOGITS = [0.0, -0.0, 1e-40, -2.0, 5.0, -60.0, 60.0, -86.9, 86.9, -88.0, 88.0, -100.0, 100.0, -1e4, 1e4, -1e30, 1e30]
INF = float("inf")
VALUES = [0.0, 1e-40, 1.0, -10.0, 1e4, -1e4, 1e30, -1e30, INF, -INF]
SHIFTS = [0.0, 3.0, -1e30]


def grid(dtype: torch.dtype, logits: list[float]) -> tuple[Tensor, Tensor]:
    """Every combination as an event of one element; what is beyond float32 in float64 as far beyond."""
    wide = 8.0 if dtype == torch.float64 else 1.0
    logits = [u * wide if 60 <= abs(u) <= 100 else u for u in logits]
    u, x, t = (
        torch.tensor(v, dtype=dtype) for v in (logits, [v**wide if abs(v) >= 1e30 else v for v in VALUES], SHIFTS)
    )
    x, u, t = (v.reshape(-1, 1) for v in torch.meshgrid(x, u, t, indexing="ij"))
    return here(x), here(torch.stack([u, t], -1))


def gradients(x: Tensor, params: Tensor, of: str, **settings) -> list[Tensor]:
    x, params = x.detach().requires_grad_(), params.detach().requires_grad_()
    y, ladj = ops.affine(x, params, **settings)
    loss = [o for o in {"ladj": [ladj], "y": [y], "both": [y, ladj]}[of] if o.requires_grad]
    if not loss:
        return [torch.zeros_like(t) for t in (x, params)]
    found = torch.autograd.grad(loss, [x, params], [torch.ones_like(o) for o in loss], allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, (x, params), strict=True)]


@EVERY
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("of", ["ladj", "y", "both"])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_gradients_are_finite_where_the_definition_s_are(all_isas, scale, floor, inverse, of, precision) -> None:
    x, params = grid(precision, LOGITS)
    params = params[..., 1:] if scale == "additive" else params
    settings = {"scale": scale, "min_scale": floor, "inverse": inverse}
    wanted = gradients(x, params, of, backend="reference", **settings)
    truth = gradients(x.double(), params.double(), of, backend="reference", **settings)
    usual = (params[..., :1].abs() <= 60).all(1) & x.isfinite()  # no scale stops there, nor its slope
    for _ in all_isas:
        for backend in [b for b in backends_of("affine") if b != "reference"]:
            found = gradients(x, params, of, backend=backend, **settings)
            for name, g, w, exact in zip(("x", "params"), found, wanted, truth, strict=True):
                assert not (w.isfinite() & ~g.isfinite()).any(), f"{backend}, {name}"
                # Nothing is lost but to rounding, which a sum of two terms magnifies.
                if of != "both":
                    exact = exact.to(precision)
                    asked = (
                        exact.isfinite()
                        & w.isfinite()
                        & (exact.abs() > 1e-30)
                        & usual.reshape(-1, *[1] * (g.dim() - 1))
                    )
                    torch.testing.assert_close(g[asked], exact[asked], rtol=1e-4, atol=0)


def test_the_logit_of_a_scale_that_stopped(all_isas) -> None:
    """Its gradient comes from ladj alone, though y is infinite."""
    x, params = here(torch.tensor([[10.0]])), here(torch.tensor([[[-100.0, 0.0]]]))
    for _ in all_isas:
        for backend in backends_of("affine"):
            for of, expected in (("ladj", -1.0), ("y", 0.0), ("both", -1.0)):
                _, g = gradients(x, params, of, scale="exp", inverse=True, backend=backend)
                assert g[0, 0, 0].item() == expected


@pytest.mark.parametrize("scale", ["exp", "softplus", "sigmoid", "tanh", "reciprocal_sigmoid", "atan"])
@pytest.mark.parametrize("inverse", [False, True])
def test_infinite_logits(scale, inverse) -> None:
    x, params = grid(torch.float32, [-INF, INF])
    wanted = gradients(x, params, "ladj", scale=scale, inverse=inverse, backend="reference")
    for backend in backends_of("affine"):
        found = gradients(x, params, "ladj", scale=scale, inverse=inverse, backend=backend)
        for g, w in zip(found, wanted, strict=True):
            torch.testing.assert_close(g[w.isfinite()], w[w.isfinite()])


@pytest.mark.parametrize(("scale", "inverse"), [("sigmoid", False), ("reciprocal_sigmoid", True)])
def test_the_gradient_of_a_sigmoid_that_is_nearly_1(scale, inverse) -> None:
    """1 - sigmoid has no digits left in float64 where it is below 1e-16."""
    z = torch.tensor([-300.0, -30.0, -2.0, 0.0, 2.0, 22.0, 37.0, 100.0, 300.0], dtype=torch.float64)[:, None]
    e = torch.exp(-z.abs())
    for backend in ("reference", *backends_of("affine")):
        params = here(torch.stack([z - 2, torch.zeros_like(z)], -1))
        _, found = gradients(here(torch.ones_like(z)), params, "y", scale=scale, inverse=inverse, backend=backend)
        torch.testing.assert_close(found[..., 0].cpu(), e / (1 + e) ** 2, atol=0, rtol=1e-14)


@pytest.mark.parametrize("scale", ["softplus", "sigmoid"])
def test_the_gradient_of_a_scale_that_is_its_floor(scale) -> None:
    params = here(torch.tensor([[[-1e4, 0.0]]]))
    for backend in ("reference", *backends_of("affine")):
        _, found = gradients(here(torch.ones(1, 1)), params, "ladj", scale=scale, min_scale=0.1, backend=backend)
        assert found[0, 0, 0] == 0


@pytest.mark.parametrize("sixteen", [torch.bfloat16, torch.float16], ids=str)
def test_ties_are_rounded_to_even(sixteen) -> None:
    """Halfway between two numbers of 16 bits, of sums that are exact in float32."""
    half = torch.finfo(sixteen).eps / 2
    x = (1 + 2 * half * torch.arange(32.0)).to(sixteen).view(2, 16)
    params = torch.stack([torch.zeros_like(x), torch.full_like(x, half)], -1)
    y, _ = ops.affine(here(x), here(params))
    assert torch.equal(y.cpu(), (x.float() + half).to(sixteen))


@pytest.mark.parametrize("n", [5, 13, 37])
def test_a_mask_that_differs_in_the_last_elements(n) -> None:
    """The elements behind the last whole block of lanes have their own part of the mask."""
    mask = torch.arange(n) >= n - n % 4
    x, params = torch.linspace(-1, 1, 3 * n).view(3, n), torch.ones(3, n, 2)
    y, ladj = ops.affine(here(x), here(params), mask=here(mask))
    assert torch.equal(y.cpu()[:, ~mask], x[:, ~mask]) and not (y.cpu() == x)[:, mask].any()
    torch.testing.assert_close(ladj.cpu(), torch.full((3,), float(mask.sum())))

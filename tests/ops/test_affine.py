"""The affine map: its definition, its inverse, its log-determinant, gradients, contract."""

import math

import pytest
import torch

from flowkernels import ops
from flowkernels.transforms import Affine

pytestmark = pytest.mark.usefixtures("poison", "one_thread")

SCALES = [("exp", 0.0), ("softplus", 0.0), ("softplus", 1e-3), ("sigmoid", 0.0), ("sigmoid", 1e-3), ("additive", 0.0)]
EVERY = pytest.mark.parametrize(("scale", "floor"), SCALES)


def draw(lead: tuple[int, ...], scale: str, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    n = 1 if scale == "additive" else 2
    return (torch.randn(lead, generator=g, dtype=torch.float64).to(dtype),
            torch.randn(*lead, n, generator=g, dtype=torch.float64).to(dtype))  # fmt: skip


@EVERY
def test_is_its_definition(scale, floor) -> None:
    x, params = draw((3, 4), scale)
    y, ladj = ops.affine(x, params, scale=scale, min_scale=floor)
    for i in range(3):
        total = 0.0
        for d in range(4):
            u, t = (0.0, params[i, d, 0].item()) if scale == "additive" else params[i, d].tolist()
            s = {
                "exp": math.exp(u),
                "softplus": math.log1p(math.exp(u)) + floor,
                "sigmoid": 1 / (1 + math.exp(-u - 2)) + floor,
                "additive": 1.0,
            }[scale]
            assert y[i, d].item() == pytest.approx(s * x[i, d].item() + t, rel=1e-14, abs=1e-14)
            total += math.log(s)
        assert ladj[i].item() == pytest.approx(total, rel=1e-13, abs=1e-13)


def test_is_nflows() -> None:
    nflows = pytest.importorskip("nflows.transforms", reason="nflows is not installed")
    torch.manual_seed(0)
    layer = nflows.MaskedAffineAutoregressiveTransform(5, 16).double()
    x = torch.randn(9, 5).double()
    params = layer.autoregressive_net(x).view(9, 5, 2)
    torch.testing.assert_close(ops.affine(x, params, scale="softplus", min_scale=1e-3), layer(x))


@EVERY
@pytest.mark.parametrize("lead", [(5, 3), (1, 1), (0, 3), (7,), (2, 0, 3), (4, 0)])
def test_round_trip(scale, floor, lead, dtype) -> None:
    x, params = draw(lead, scale, dtype)
    y, ladj = ops.affine(x, params, scale=scale, min_scale=floor)
    assert y.dtype == dtype and ladj.dtype == torch.promote_types(dtype, torch.float32)
    assert y.shape == lead and ladj.shape == lead[:-1]
    back, ladj_back = ops.affine(y, params, scale=scale, min_scale=floor, inverse=True)
    if dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(back, x, rtol=0, atol=64 * torch.finfo(dtype).eps)
    torch.testing.assert_close(ladj_back, -ladj)


@EVERY
@pytest.mark.parametrize("inverse", [False, True])
def test_ladj_and_gradients(scale, floor, inverse) -> None:
    x, params = (t.requires_grad_() for t in draw((3, 2), scale))

    def f(x, params):
        return ops.affine(x, params, scale=scale, min_scale=floor, inverse=inverse)

    J = torch.autograd.functional.jacobian(lambda v: f(v, params)[0].sum(0), x).movedim(1, 0)
    torch.testing.assert_close(f(x, params)[1], torch.linalg.slogdet(J).logabsdet)
    assert torch.autograd.gradcheck(f, (x, params))
    assert torch.autograd.gradgradcheck(f, (x, params))


@EVERY
def test_transforms_and_compile(scale, floor) -> None:
    x, params = draw((5, 3), scale)

    def f(x, params):
        return ops.affine(x, params, scale=scale, min_scale=floor)

    torch.testing.assert_close(torch.func.vmap(f)(x, params), f(x, params))
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(f, backend="aot_eager", fullgraph=True)(x, params), f(x, params))


@EVERY
def test_library_op(scale, floor) -> None:
    x, params = (t.requires_grad_() for t in draw((3, 2), scale))
    torch.library.opcheck(torch.ops.flowkernels.affine.default, (x, params, scale, floor, False, "reference"))


def test_extreme_logits() -> None:
    """The log-determinant follows the logit where the scale is close to nothing."""
    x, u = torch.ones(1, 2), torch.tensor([[[-60.0, 0.0], [50.0, 0.0]]])
    for scale, wanted in (("exp", -10.0), ("softplus", -60 + math.log(50)), ("sigmoid", -58.0)):
        y, ladj = ops.affine(x, u, scale=scale)
        assert y.isfinite().all() and ladj.item() == pytest.approx(wanted, abs=1e-4)


def test_bad_row_stays_in_its_row() -> None:
    x, params = draw((5, 3), "exp")
    clean = ops.affine(x, params)
    params[2, 1, 0] = math.nan
    y, ladj = ops.affine(x, params)
    others = [0, 1, 3, 4]
    assert torch.equal(y[others], clean[0][others]) and torch.equal(ladj[others], clean[1][others])
    assert y[2, 1].isnan() and ladj[2].isnan()


def test_mixed_dtypes() -> None:
    x, params = draw((5, 3), "exp", torch.float32)
    y, ladj = ops.affine(x, params.bfloat16())
    assert y.dtype == ladj.dtype == torch.float32


@pytest.mark.parametrize("floor", [None, 0.0, 1e-3, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("scale", ["exp", "softplus", "sigmoid", "additive"])
def test_identity(scale, floor) -> None:
    if floor and scale in ("exp", "additive"):
        with pytest.raises(ValueError, match="min_scale must be 0 where scale is"):
            Affine(scale, floor)
        return
    affine = Affine(scale, floor)
    x = torch.randn(4, 3, dtype=torch.float64)
    y, ladj = affine(x, torch.tensor(affine.identity, dtype=torch.float64).expand(4, 3, -1), False)
    assert len(affine.identity) == affine.params_per_feature == affine.spec.n_params
    if affine.spec.min_scale < 1:
        exact = not (scale == "sigmoid" and affine.spec.min_scale == 0)
        torch.testing.assert_close(y, x, rtol=1e-12 if exact else 3e-3, atol=1e-12)
        torch.testing.assert_close(ladj, torch.zeros_like(ladj), rtol=0, atol=1e-12 if exact else 1e-2)


X, P = torch.zeros(4, 3), torch.zeros(4, 3, 2)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: ops.affine([0.0], P), TypeError, "x must be a tensor, got list"),
        (lambda: ops.affine(X, P.int()), TypeError, "params must be float32, .*, got torch.int32"),
        (lambda: ops.affine(X.to_sparse(), P), TypeError, "x must be a dense tensor"),
        (lambda: ops.affine(X[0, 0], P[0, 0]), ValueError, r"x must be \[..., D\], got a scalar"),
        (lambda: ops.affine(X, P.to("meta")), ValueError, "params must be on the device of x = cpu, got meta"),
        (lambda: ops.affine(X, P[:, :2]), ValueError, r"params must be \[..., D, P\] = \[4, 3, 2\], got \[4, 2, 2\]"),
        (lambda: ops.affine(X, P, scale="additive"), ValueError, r"= \[4, 3, 1\], got \[4, 3, 2\]"),
        (lambda: ops.affine(X, P, scale="tanh"), ValueError, "scale must be one of .*, got 'tanh'"),
        (lambda: ops.affine(X, P, scale="softplus", min_scale=-1.0), ValueError, "min_scale must be .*, got -1.0"),
        (lambda: ops.affine(X, P, scale="softplus", min_scale="1"), ValueError, "min_scale must be .*, got '1'"),
        (lambda: ops.affine(X, P, min_scale=0.1), ValueError, "min_scale must be 0 where scale is 'exp', got 0.1"),
    ],
)
def test_errors(build, error, message) -> None:
    with pytest.raises(error, match="ops.affine: .*" + message):
        build()

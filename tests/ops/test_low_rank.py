"""Planar, radial and Sylvester maps: their Jacobian, their inverse, their gradients, and what libraries have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flowkernels import ops
from tests.ops.low_rank_cases import WAYS, drawn

INVERSE = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
LEADS = pytest.mark.parametrize("lead", [(), (5,)], ids=["shared", "by row"])
WAY = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@WAY
@LEADS
def test_ladj_is_that_of_the_jacobian_and_the_inverse_is_exact(way, lead) -> None:
    x, params = drawn(way["kind"], 5, 4, 3, lead=lead)
    y, ladj = ops.low_rank(x, params, **way)
    J = torch.stack(
        [
            torch.autograd.functional.jacobian(
                lambda v, i=i: ops.low_rank(v, [p[i] for p in params] if lead else params, **way)[0], x[i]
            )
            for i in range(5)
        ]
    )
    sign, right = torch.linalg.slogdet(J)
    assert (sign > 0).all()
    torch.testing.assert_close(ladj, right, rtol=1e-10, atol=1e-10)
    back, negative = ops.low_rank(y, params, inverse=True, **way)
    torch.testing.assert_close(back, x, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(negative, -ladj, rtol=1e-11, atol=1e-11)


@WAY
@LEADS
@INVERSE
def test_gradients(way, lead, inverse) -> None:
    """Of the kernel; the second ones, of the reference, agree with them."""
    x, params = drawn(way["kind"], 3, 3, 2, lead=(3,) * len(lead), layers=2)
    leaves = [t.requires_grad_() for t in (x, *params)]

    def call(x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        return ops.low_rank(x, params, inverse=inverse, **way)

    assert torch.autograd.gradcheck(call, leaves)
    if way.get("activation") != "leaky_relu":  # its second derivatives are 0 or none
        fast = inverse  # which in full takes ten times as long
        assert torch.autograd.gradgradcheck(call, leaves, atol=1e-4, fast_mode=fast)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@WAY
@INVERSE
def test_other_dtypes(kind, way, inverse) -> None:
    dtype: torch.dtype = kind
    x, params = drawn(way["kind"], 6, 4, 2)
    x, params = x.to(dtype), [p.to(dtype) for p in params]
    y, ladj = ops.low_rank(x, params, inverse=inverse, **way)
    exact, exact_ladj = ops.low_rank(x.double(), [p.double() for p in params], inverse=inverse, **way)
    assert y.dtype is dtype and ladj.dtype is torch.float32
    torch.testing.assert_close(y.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=2e-5)
    torch.testing.assert_close(ladj.double(), exact_ladj, rtol=1e-4, atol=1e-4)


@WAY
@LEADS
@INVERSE
def test_a_bad_value_stays_in_its_row(way, lead, inverse) -> None:
    x, params = drawn(way["kind"], 5, 4, 3, lead=lead)
    clean = ops.low_rank(x, params, inverse=inverse, **way)
    x[2, 0], x[4, 1] = float("nan"), float("inf")
    seen = ops.low_rank(x, params, inverse=inverse, **way)
    for a, b in zip(seen, clean, strict=True):
        assert torch.equal(a[[0, 1, 3]], b[[0, 1, 3]])
    assert seen[0][2].isnan().any()
    if lead:
        params = [p.clone() for p in params]
        params[-1][1] = float("nan")
        seen = ops.low_rank(x, params, inverse=inverse, **way)
        assert torch.equal(seen[0][[0, 3]], clean[0][[0, 3]]) and seen[1][1].isnan()


@WAY
@INVERSE
def test_large_parameters_give_numbers(way, inverse) -> None:
    """A softplus and a tanh that are at their ends, in float32."""
    for scale in (1e-12, 30.0, 1e3):
        x, params = drawn(way["kind"], 50, 4, 3, layers=1, scale=scale)
        x, params = x.float(), [p.float() for p in params]
        y, ladj = ops.low_rank(x, params, inverse=inverse, **way)
        assert y.isfinite().all() and ladj.isfinite().all(), scale


@WAY
@LEADS
@INVERSE
@pytest.mark.parametrize("backend", [None, "reference"])
def test_autocast_leaves_it_alone(way, lead, inverse, backend) -> None:
    x, params = drawn(way["kind"], 5, 4, 3, lead=lead)
    leaves = [t.float().requires_grad_() for t in (x, *params)]

    def call() -> tuple[Tensor, Tensor]:
        return ops.low_rank(leaves[0], leaves[1:], inverse=inverse, backend=backend, **way)

    expected = call()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = call()
        short = ops.low_rank(leaves[0], [p.bfloat16() for p in leaves[1:]], inverse=inverse, backend=backend, **way)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    grads, wanted = (torch.autograd.grad(y.square().sum() + ladj.sum(), leaves) for y, ladj in (found, expected))
    torch.testing.assert_close(grads, wanted, rtol=1e-5, atol=1e-5)
    right = ops.low_rank(leaves[0], [p.bfloat16().float() for p in leaves[1:]], inverse=inverse, **way)
    torch.testing.assert_close(short, right, rtol=1e-5, atol=1e-5)


def test_autocast_leaves_reflections_alone() -> None:
    x, params = drawn("sylvester", 5, 4, 3)
    x, params = x.float(), [p.float() for p in params]
    params[0] = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    expected = ops.low_rank(x, params, kind="sylvester", orthogonal="householder")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ops.low_rank(x, params, kind="sylvester", orthogonal="householder")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@INVERSE
@pytest.mark.parametrize("kind", ["planar", "radial"])
def test_a_softplus_whose_exponential_overflows(kind, inverse) -> None:
    """exp(95) is inf in float32: the reference has the kernel's values and gradients, and second ones."""
    x = torch.tensor([[0.3, -0.2]])
    w = torch.tensor([[1.0, 0.0]])
    params = (95 * w, w, torch.zeros(1)) if kind == "planar" else (w, torch.full((1,), 95.0), torch.full((1,), 90.0))
    seen = []
    for backend in (None, "reference"):
        leaves = [t.clone().requires_grad_() for t in (x, *params)]
        y, ladj = ops.low_rank(leaves[0], leaves[1:], kind=kind, inverse=inverse, backend=backend)
        first = torch.autograd.grad(y.sum() + 0.5 * ladj.sum(), leaves, create_graph=True)
        seen.append([y, ladj, *first])
        assert all(t.isfinite().all() for t in seen[-1])
        second = torch.autograd.grad([g.sum() for g in first], leaves)
        assert all(g.isfinite().all() for g in second)
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-5, atol=1e-6)


@INVERSE
@pytest.mark.parametrize("backend", [None, "reference"])
def test_a_radial_layer_of_a_nan(inverse, backend) -> None:
    x, (center, *numbers) = drawn("radial", 5, 3, 1, lead=(5,))
    x[1, 2], center[3, 0, 1] = float("nan"), float("nan")
    y, ladj = ops.low_rank(x, (center, *numbers), kind="radial", inverse=inverse, backend=backend)
    bad = torch.tensor([False, True, False, True, False])
    assert torch.equal(ladj.isnan(), bad) and torch.equal(y.isnan(), bad[:, None].expand(5, 3))


def test_an_inverse_that_ends_next_to_the_center() -> None:
    """x - c is 1e-10 where x is 1e-3: a rounding of x, on which the gradients must not depend."""
    center, alpha, beta = torch.tensor([[-9.16e-4]]), torch.tensor([5e-6]), torch.tensor([-6e-4])
    x = center[0] + torch.linspace(-2e-5, 2e-5, 40).unsqueeze(-1)

    def gradients(dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in (x, center, alpha, beta)]
        y, ladj = ops.low_rank(leaves[0], leaves[1:], kind="radial", alpha="abs", inverse=True, backend="cpu")
        return [g.double() for g in torch.autograd.grad(y.sum() + 1e-6 * ladj.sum(), leaves)]

    for found, right in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=0)


def test_large_diagonals_of_opposite_signs_do_not_fold_the_origin() -> None:
    """R_ii S_ii is all but -1, whatever the logits: at z = 0 the slope is a number's, and no 0."""
    x, eye = torch.zeros(1, 2), torch.eye(2).unsqueeze(0)
    params = eye, 100 * eye, -100 * eye, torch.zeros(1, 2)
    for inverse in (False, True):
        y, ladj = ops.low_rank(x, params, kind="sylvester", orthogonal=None, inverse=inverse)
        assert torch.equal(y, x) and ladj.isfinite().all() and (ladj.item() > 0) is inverse


def test_where_nothing_has_a_direction() -> None:
    """A w of zeros leaves u as it is, a row at the center stays there, and reflections at zeros are none."""
    x = torch.tensor([[0.5, -1.0]])
    u, w, b = torch.tensor([[2.0, 3.0]]), torch.zeros(1, 2), torch.tensor([0.7])
    for inverse in (False, True):
        y, ladj = ops.low_rank(x, (u, w, b), kind="planar", inverse=inverse)
        sign = -1 if inverse else 1
        torch.testing.assert_close(y, x + sign * u * torch.tanh(b))
        assert ladj.item() == 0
        leaves = [t.clone().requires_grad_() for t in (x, x.clone(), torch.zeros(1), torch.zeros(1))]
        y, ladj = ops.low_rank(leaves[0], leaves[1:], kind="radial", inverse=inverse)
        assert torch.equal(y, x) and ladj.item() == 0
        grads = torch.autograd.grad(y.sum() + ladj.sum(), leaves)
        assert all(g.isfinite().all() for g in grads)
    q = torch.zeros(1, 3, 2)
    small = torch.eye(2).unsqueeze(0), torch.eye(2).unsqueeze(0), torch.zeros(1, 2)
    one = ops.low_rank(x, (q, *small), kind="sylvester", orthogonal="householder")
    other = ops.low_rank(x, (torch.eye(2).unsqueeze(0), *small), kind="sylvester", orthogonal=None)
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("spread", [1e-30, 1e-3, 1e3, 1e12])
def test_roots_near_and_far(spread) -> None:
    x, params = drawn("planar", 50, 3, 1, layers=1)
    x = spread * x
    y, _ = ops.low_rank(x, params, kind="planar")
    back = ops.low_rank(y, params, kind="planar", inverse=True)[0]
    again = ops.low_rank(back, params, kind="planar")[0]
    torch.testing.assert_close(again, y, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-12)


def test_a_root_where_the_slope_all_but_vanishes() -> None:
    """w u' + 1 = 1e-10: near 0 the map is a cubic."""
    w = torch.tensor([[1.0]]).double()
    u = torch.tensor([[-23.0]]).double()
    x = torch.linspace(-2, 2, 41).double().unsqueeze(1)
    params = u, w, torch.zeros(1).double()
    y, ladj = ops.low_rank(x, params, kind="planar")
    assert ladj.min() < -22
    back = ops.low_rank(y, params, kind="planar", inverse=True)[0]
    torch.testing.assert_close(ops.low_rank(back, params, kind="planar")[0], y, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-5)


@WAY
def test_parameters_broadcast(way) -> None:
    """Of a batch of samples, each with the parameters of its posterior; some tensors shared, some not."""
    x, params = drawn(way["kind"], 5, 4, 3, lead=(5,))
    many = torch.stack([x, x.flip(0), 0.5 * x])
    y, ladj = ops.low_rank(many, params, **way)
    for i in range(3):
        for found, right in zip((y[i], ladj[i]), ops.low_rank(many[i], params, **way), strict=True):
            torch.testing.assert_close(found, right)
    mixed = [params[0], *(p[0] for p in params[1:])]
    leaves = [p.clone().requires_grad_() for p in mixed]
    same = [leaves[0], *(p.expand(5, *p.shape) for p in leaves[1:])]
    found, right = (torch.autograd.grad(ops.low_rank(x, p, **way)[1].sum(), leaves) for p in (leaves, same))
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize("how", ["qr", "householder"])
def test_q_is_orthonormal_however_it_is_made(how) -> None:
    x, params = drawn("sylvester", 5, 6, 3)
    if how == "householder":
        params[0] = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        q = torch.eye(6).double().expand(2, 6, 6)
        for i in range(4):
            v = params[0][:, i, :, None]
            q = q @ (torch.eye(6).double() - 2 * v @ v.mT / v.square().sum(1, keepdim=True))
        q = q[..., :3]
    else:
        q = torch.linalg.qr(params[0])[0]
    found = ops.low_rank(x, params, kind="sylvester", orthogonal=how)
    right = ops.low_rank(x, [q, *params[1:]], kind="sylvester", orthogonal=None)
    torch.testing.assert_close(found, right)
    back = ops.low_rank(found[0], params, kind="sylvester", orthogonal=how, inverse=True)[0]
    torch.testing.assert_close(back, x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e25])
def test_a_reflection_does_not_depend_on_the_length_of_its_vector(size) -> None:
    x, params = drawn("sylvester", 5, 6, 3)
    x, params = x.float(), [p.float() for p in params]
    params[0] = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1))
    seen = []
    for scale in (1, size):
        q = (scale * params[0]).requires_grad_()
        y, ladj = ops.low_rank(x, [q, *params[1:]], kind="sylvester", orthogonal="householder")
        (grad,) = torch.autograd.grad(y.square().sum() + ladj.sum(), q)
        seen.append((y, ladj, scale * grad))
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-4, atol=1e-5)


def test_what_lies_below_a_diagonal_is_not_read() -> None:
    x, params = drawn("sylvester", 5, 4, 3)
    expected = ops.low_rank(x, params, kind="sylvester")
    for i in (1, 2):
        params[i] = params[i].clone()
        params[i][:, 2, 0] = float("nan")
    params[1].requires_grad_()
    found = ops.low_rank(x, params, kind="sylvester")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    (grad,) = torch.autograd.grad(found[0].sum() + found[1].sum(), params[1])
    assert grad.isfinite().all() and (grad.tril(-1) == 0).all()


@pytest.mark.thinned(2)
@WAY
@LEADS
def test_transforms_and_compilers(way, lead) -> None:
    x, params = drawn(way["kind"], 5, 3, 2, lead=lead)
    for inverse in (False, True):

        def call(v: Tensor, *p: Tensor, inverse: bool = inverse) -> tuple[Tensor, Tensor]:
            return ops.low_rank(v, p, inverse=inverse, **way)

        expected = call(x, *params)
        dims = (0,) * (1 + len(params)) if lead else (0, *[None] * len(params))
        torch.testing.assert_close(torch.func.vmap(call, in_dims=dims)(x, *params), expected)
        first = [p[0] for p in params] if lead else params
        J = torch.func.jacfwd(lambda v, first=first: call(v, *first)[0])(x[0])
        torch.testing.assert_close(torch.linalg.slogdet(J)[1], expected[1][0])
        torch._dynamo.reset()
        compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, *params), expected)
        leaves = [t.clone().requires_grad_() for t in (x, *params)]
        found, right = (torch.autograd.grad([t.sum() for t in f(*leaves)], leaves) for f in (compiled, call))
        torch.testing.assert_close(found, right)


def test_export() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor, u: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return ops.low_rank(x, (u, w, b), kind="planar", inverse=True)

    x, params = drawn("planar", 5, 3, 1)
    program = torch.export.export(Module(), (x, *params))
    torch.testing.assert_close(program.module()(x, *params), Module()(x, *params))


@WAY
@LEADS
@INVERSE
def test_no_rows(way, lead, inverse) -> None:
    x, params = drawn(way["kind"], 0, 4, 3, lead=(0,) * len(lead))
    leaves = [t.requires_grad_() for t in (x, *params)]
    y, ladj = ops.low_rank(leaves[0], leaves[1:], inverse=inverse, **way)
    assert y.shape == (0, 4) and ladj.shape == (0,)
    grads = torch.autograd.grad(y.sum() + ladj.sum(), leaves)
    assert all((g == 0).all() for g in grads)


# ---- libraries' layers of the same weights, and their inverses, which they have not ----


@pytest.mark.parametrize("kind", ["planar", "radial"])
@pytest.mark.filterwarnings("ignore")
def test_pyros_layers(kind) -> None:
    T = pytest.importorskip("pyro.distributions.transforms")
    torch.manual_seed(0)
    layer = {"planar": T.Planar, "radial": T.Radial}[kind](4).double()
    names = {"planar": ("u", "w", "bias"), "radial": ("x0", "alpha_prime", "beta_prime")}[kind]
    params = [getattr(layer, name).detach().view(1, -1) for name in names]
    params = [p if i == 0 or (kind, i) == ("planar", 1) else p.view(1) for i, p in enumerate(params)]
    x = torch.randn(20, 4).double()
    expected = layer(x)
    y, ladj = ops.low_rank(x, params, kind=kind)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(ladj, layer.log_abs_det_jacobian(x, expected))
    torch.testing.assert_close(ops.low_rank(y, params, kind=kind, inverse=True)[0], x)


@pytest.mark.parametrize("act", ["tanh", "leaky_relu", "radial"])
def test_normflows_layers(act) -> None:
    nf = pytest.importorskip("normflows")
    torch.manual_seed(0)
    z = torch.randn(20, 4).double()
    settings: dict[str, Any]
    if act == "radial":
        layer, settings = nf.flows.Radial((4,)).double(), {"kind": "radial", "alpha": "abs"}
        params = [layer.z_0, layer.alpha, layer.beta]
    else:
        layer, settings = nf.flows.Planar((4,), act=act).double(), {"kind": "planar", "activation": act}
        params = [layer.u, layer.w, layer.b]
    expected = layer(z)
    found = ops.low_rank(z, params, **settings)
    torch.testing.assert_close(found[0], expected[0])
    # Of a leaky_relu normflows takes the slope in float32, whatever z is.
    torch.testing.assert_close(found[1], expected[1].double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ops.low_rank(found[0], params, inverse=True, **settings)[0], z)


# ---- errors ----

TWO = torch.zeros(1, 3)
SMALL = torch.zeros(1, 2, 2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": 3}, TypeError, "x must be a tensor"),
        ({"x": torch.zeros(2, 0)}, ValueError, "features of x must be at least one, got 0"),
        ({"kind": "flat"}, ValueError, "kind must be \"planar\", \"radial\" or \"sylvester\", got 'flat'"),
        ({"activation": "elu"}, ValueError, 'activation must be "tanh" or "leaky_relu", got \'elu\''),
        ({"alpha": None}, ValueError, 'alpha must be "softplus" or "abs", got None'),
        ({"orthogonal": "svd"}, ValueError, 'orthogonal must be "qr", "householder" or None, got \'svd\''),
        ({"negative_slope": 0}, ValueError, "negative_slope must be above 0 and at most 1, got 0"),
        ({"negative_slope": "a"}, ValueError, "negative_slope must be above 0"),
        ({"inverse": 1}, ValueError, "inverse must be True or False, got 1"),
        ({"params": 3}, TypeError, r"params must be \(u \[n, D\], w \[n, D\], b \[n\]\), got int 3"),
        ({"params": (TWO, TWO)}, ValueError, r"params must be \(u \[n, D\], w \[n, D\], b \[n\]\), got 2 tensors"),
        ({"params": (TWO, 3, torch.zeros(1))}, TypeError, "w must be a tensor, got int 3"),
        ({"params": (TWO, TWO.double(), torch.zeros(1))}, TypeError, "w must be of the dtype of x"),
        ({"params": (TWO, TWO, torch.zeros(()))}, ValueError, r"b must be \[\.\.\., n\], got \[\]"),
        ({"params": (torch.zeros(0, 3),) * 2 + (torch.zeros(0),)}, ValueError, "layers must be at least one, got 0"),
        ({"params": (TWO, torch.zeros(1, 2), torch.zeros(1))}, ValueError,
         r"w must be \[1, 3\] or broadcast to \[2, 1, 3\], got \[1, 2\]"),
        ({"params": (TWO, torch.zeros(3, 1, 3), torch.zeros(1))}, ValueError,
         r"w must be \[1, 3\] or broadcast to \[2, 1, 3\], got \[3, 1, 3\]"),
        ({"params": (TWO, TWO, torch.zeros(2))}, ValueError, r"b must be \[1\] or broadcast to \[2, 1\], got \[2\]"),
        ({"kind": "sylvester", "params": (torch.zeros(1, 3, 4), torch.zeros(1, 4, 4), SMALL, TWO)}, ValueError,
         "M of r must be from 1 to D = 3, got 4"),
        ({"kind": "sylvester", "params": (torch.zeros(1, 3, 2), SMALL, SMALL, TWO)}, ValueError,
         r"b must be \[1, 2\] or broadcast"),
        ({"kind": "sylvester", "orthogonal": "householder", "params": (torch.zeros(1, 4, 2), SMALL, SMALL, TWO)},
         ValueError, r"q must be \[1, 4, 3\] or broadcast to \[2, 1, 4, 3\], got \[1, 4, 2\]"),
    ],
)  # fmt: skip
def test_errors(change, error, message) -> None:
    with pytest.raises(error, match=rf"^ops\.low_rank: .*{message}"):
        ops.low_rank(**{"x": torch.zeros(2, 3), "params": (TWO, TWO, torch.zeros(1)), "kind": "planar", **change})

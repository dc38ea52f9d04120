"""Every univariate map, one row each: the value, its numbers, and what layers and fused ops make of it."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import flowkernels
from flowkernels import backends, nets, ops, transforms
from flowkernels.backends import BackendUnavailableError
from flowkernels.ops import RQS, Affine, MadePlan, Mixture, MixtureAffine, Polynomial, SinhArcsinh
from flowkernels.ops.affine.scales import RENAMED, SCALES, TABLE
from flowkernels.ops.flow_layer import columns, flow_layer
from flowkernels.ops.univariate import Map, can_fuse
from flowkernels.transforms import Autoregressive, Coupling, ImageCoupling, checkerboard
from tests.test_frames import frames

MAPS: dict[str, Map] = {
    "spline": RQS(4),
    "circular tails": RQS(3, "circular", 2.0),
    "no tails": RQS(5, None, box=(-5.0, 6.0, -4.0, 5.0)),
    "soft clip": RQS(4, parametrization="soft_clip", tail_bound=5.0),
    "edge slope": RQS(4, edge_slope=0.999),
    "half ends": RQS(4, None, 6.0, parametrization="half_ends", min_bin_width=0.05),
    "half ends on a circle": RQS(4, None, 6.0, parametrization="half_ends", circle_shift=True),
    "linear spline": RQS(4, order="linear"),
    "circle shift": RQS(4, None, 6.0, circle_shift=True),
    "zero outside": RQS(4, None, 6.0, zero_outside=True),
    "the inverse of a spline": RQS(4, inverse=True),
    **{scale: Affine(scale) for scale in SCALES},
    "shift first": Affine("tanh", clamp=1.5, shift_first=True),
    "bounds": Affine("clip", log_bounds=(-1.0, 0.5)),
    "sinh-arcsinh": SinhArcsinh(),
    "mixture": Mixture(4),
    "mixture of normals": Mixture(3, "normal", "probit"),
    "mixture and scale": MixtureAffine(3),
    "shrunk mixture": Mixture(3, "normal", "probit", parametrization="shifts", shrink=1e-6, bound=1e3),
    "squares": Polynomial(degree=2, terms=2, bound=2.0),
    "squares of Pyro": Polynomial(degree=2, terms=2, bound=1.0, slope=1e-2, squares="sum", shift=False),
    "Bernstein": Polynomial("bernstein", 4),
    "Bernstein, linear tails": Polynomial("bernstein", 3, tails="linear", bound=1.5),
}
EVERY = pytest.mark.parametrize("f", MAPS.values(), ids=MAPS)
# An event inside of every box, where the spline that is 0 outside of it is a bijection.
X = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)).double().clamp(-1.9, 1.9)


def params_of(f: Map, *lead: int, seed: int = 1) -> Tensor:
    return 0.7 * torch.randn(*lead, f.n_params, generator=torch.Generator().manual_seed(seed)).double()


# ---- the value ----


@EVERY
def test_is_a_value(f) -> None:
    same = dataclasses.replace(f)
    assert same is not f and same == f and hash(same) == hash(f) and {f: 1}[same] == 1
    assert f != f.inverted() and dataclasses.replace(f, inverse=not f.inverse) == f.inverted()
    assert all(f != other for other in MAPS.values() if other is not f)
    assert (
        eval(
            repr(f),
            {cls.__name__: cls for cls in (RQS, Affine, Mixture, MixtureAffine, Polynomial, SinhArcsinh)},
        )
        == f
    )
    for given in (f, f.inverted()):
        found = pickle.loads(pickle.dumps(given))
        assert found == given and found.inverted() == given.inverted() and found.n_params == f.n_params
        assert copy.deepcopy(given) is given and copy.copy(given) is given
    with pytest.raises(dataclasses.FrozenInstanceError):
        f.inverse = True
    assert type(f).kept(inverse=True) is type(f).kept(inverse=True)


@EVERY
def test_the_other_direction_is_made_once(f) -> None:
    assert f.inverted() is f.inverted() and f.inverted().inverted() is f and f.inverted().inverse is not f.inverse
    assert f.inverted().n_params == f.n_params and f.inverted().identity == f.identity


@EVERY
def test_has_what_is_asked_of_it(f) -> None:
    assert can_fuse(type(f)) and len(f.identity) == f.n_params
    for wide in (False, True):
        f.check("ops.test", wide)
    for backend in backends.NAMES:
        assert f.why_not(backend) is None or isinstance(f.why_not(backend), str)
    assert f.why_not("reference") is None


@EVERY
def test_the_identity(f) -> None:
    if f.zero_outside or f.circle_shift or getattr(f, "edge_slope", 1.0) != 1:
        return  # no parameters give it
    given = torch.tensor(f.identity, dtype=torch.float64).expand(*X.shape, -1)
    y, ladj = f(X, given)
    exact = getattr(f, "scale", "") not in ("sigmoid", "reciprocal_sigmoid") and (f.bins == 0 or f.box is None)
    exact = exact and type(f) not in (Mixture, MixtureAffine)  # whose components differ a little
    rtol, atol = (1e-12, 1e-12) if exact else (3e-3, 1e-2)
    if f.bins == 0 or f.box is None:  # a box of two shapes has none either
        torch.testing.assert_close((y, ladj), (X, torch.zeros_like(ladj)), rtol=rtol, atol=atol)


# ---- the numbers ----


@EVERY
def test_round_trip(f) -> None:
    params = params_of(f, *X.shape)
    y, ladj = f(X, params)
    back, negated = f.inverted()(y, params)
    torch.testing.assert_close(back, X, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(negated, -ladj, rtol=1e-8, atol=1e-8)
    for a, b in zip(f(y, params, True), (back, negated), strict=True):  # as layers call it
        assert torch.equal(a, b)


@EVERY
def test_ladj_is_that_of_autograd(f) -> None:
    x, params = X.clone().requires_grad_(), params_of(f, *X.shape)
    y, ladj = f(x, params)
    (slope,) = torch.autograd.grad(y.sum(), x)
    if getattr(f, "scale", None) != "clip":  # whose ladj has another gradient, not another value
        torch.testing.assert_close(ladj, slope.log().sum(-1), rtol=1e-8, atol=1e-8)


@pytest.mark.thinned(3)
@EVERY
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_gradcheck(f, inverse) -> None:
    if getattr(f, "scale", None) == "clip":
        return  # its gradient is Pyro's: not that of its values
    g = f.inverted() if inverse else f
    x, params = X[:3, :2].clone().requires_grad_(), params_of(f, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(g, (x, params))
    assert torch.autograd.gradgradcheck(lambda x, p: g(x, p, backend="reference"), (x, params), atol=1e-4)


@EVERY
def test_reference(f) -> None:
    params = params_of(f, *X.shape)
    for g in (f, f.inverted()):
        wanted = g.reference(X, params)
        torch.testing.assert_close(g(X, params), wanted, rtol=1e-10, atol=1e-10)
        for a, b in zip(g(X, params, backend="reference"), wanted, strict=True):
            assert torch.equal(a, b)


@EVERY
def test_dtypes(f, dtype) -> None:
    params = params_of(f, *X.shape)
    y, ladj = f(X.to(dtype), params.to(dtype))
    assert y.dtype is dtype and ladj.dtype is torch.promote_types(dtype, torch.float32)
    wide = f(X.to(dtype).double(), params.to(dtype).double())
    close = {"rtol": 2e-2, "atol": 2e-2} if dtype.itemsize == 2 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(y.double(), wide[0], **close)
    if not (f.circle_shift and dtype.itemsize == 2):  # the shift rounds what the spline is given
        torch.testing.assert_close(ladj.double(), wide[1], rtol=1e-3, atol=1e-3)


@EVERY
def test_no_rows(f) -> None:
    y, ladj = f(X[:0], params_of(f, 0, 4))
    assert y.shape == (0, 4) and ladj.shape == (0,)


@EVERY
def test_a_bad_row_stays_alone(f) -> None:
    params = params_of(f, *X.shape)
    broken = X.clone()
    broken[2, 1] = torch.nan
    clean, found = f(X, params), f(broken, params)
    rows = [i for i in range(7) if i != 2]
    assert torch.equal(found[0][rows], clean[0][rows]) and torch.equal(found[1][rows], clean[1][rows])
    assert found[0][2, 1].isnan()


@EVERY
def test_errors(f) -> None:
    params = params_of(f, *X.shape)
    for x, p, error, message in (
        ([0.0], params, TypeError, "x must be a tensor, got list"),
        (X, params[..., :1].expand(7, 4, 50), ValueError, r"params must be \[\.\.\., D, P\] = "),
        (X.int(), params, TypeError, "x must be float32, float64, bfloat16 or float16, got torch.int32"),
        (X[0, 0], params[0, 0], ValueError, r"x must be \[\.\.\., D\], got a scalar"),
    ):
        with pytest.raises(error, match=r"^ops\.\w+: " + message):
            f(x, p)
    with pytest.raises(ValueError, match=r"^ops\.\w+: inverse must be True or False, got 2"):
        f(X, params, 2)
    with pytest.raises(ValueError, match=r"^ops\.\w+: inverse must be True or False, got 'no'"):
        dataclasses.replace(f, inverse="no")
    with pytest.raises((BackendUnavailableError, ValueError)):
        f(X, params, backend="nowhere")


@EVERY
def test_events_of_images_and_masks(f) -> None:
    x, params = X[:6].reshape(2, 3, 2, 2), params_of(f, 2, 3, 2, 2)
    y, ladj = f(x, params, False, 3)
    flat = f(x.reshape(2, 12), params.reshape(2, 12, -1))
    torch.testing.assert_close((y.reshape(2, 12), ladj), flat)
    mask = checkerboard(3, 2, 2)
    found, part = f(x, params, False, 3, mask)
    assert torch.equal(found[:, ~mask], x[:, ~mask])
    torch.testing.assert_close(found[:, mask], y[:, mask])
    of_each = f(x.reshape(24, 1), params.reshape(24, 1, -1))[1].view(2, 12)
    torch.testing.assert_close(part, (of_each * mask.flatten()).sum(-1))


@EVERY
def test_compiles(f) -> None:
    torch._dynamo.reset()
    params = params_of(f, *X.shape)
    compiled = torch.compile(lambda x, p: (*f(x, p), *f(x, p, True)), backend="aot_eager", fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        torch.testing.assert_close(compiled(X, params), (*f(X, params), *f(X, params, True)))


@EVERY
def test_made_in_a_trace_and_left_to_python(f) -> None:
    torch._dynamo.reset()
    settings = {field.name: getattr(f, field.name) for field in dataclasses.fields(f) if field.init}

    def make(x: Tensor) -> tuple[Any, Tensor]:
        made = type(f)(**settings)
        return made, made(x, params, True)[0]

    params = params_of(f, *X.shape)
    found, y = torch.compile(make, backend="eager", fullgraph=True)(X)
    assert found == f and found.n_params == f.n_params and found.identity == f.identity
    assert found.inverted() == f.inverted() and found.inverted() is found.inverted()
    torch.testing.assert_close(y, f(X, params, True)[0])
    torch.testing.assert_close(found(X, params), f(X, params))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = found.nothing


# ---- layers and fused ops ----


def layer_of(kind: str, f: Map) -> Any:
    torch.manual_seed(0)
    if kind == "coupling":
        layer: Any = Coupling([0, 1, 0, 1], lambda i, o: nets.MLP(i, o, hidden=(8, 8)), f)
    elif kind == "residual coupling":
        layer = Coupling([0, 1, 0, 1], lambda i, o: nets.ResidualNet(i, o, hidden=8), f)
    else:
        layer = Autoregressive(nets.MADE(4, f.n_params, hidden=(8, 8), seed=0), f)
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return layer.double()


LAYERS = pytest.mark.parametrize("kind", ["coupling", "residual coupling", "autoregressive"])


@EVERY
@LAYERS
def test_layers(f, kind) -> None:
    """Both directions, and the same by parts."""
    layer = layer_of(kind, f)
    y, ladj = layer(X)
    back, negated = layer.inverse(y)
    torch.testing.assert_close(back, X, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(negated, -ladj, rtol=1e-7, atol=1e-7)
    assert repr(f)[: len("RQS")] in repr(layer)
    with backends.use_backend("reference"):
        torch.testing.assert_close((*layer(X), *layer.inverse(y)), (y, ladj, back, negated), rtol=1e-8, atol=1e-8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = pickle.loads(pickle.dumps(layer))
        assert torch.equal(again(X)[0], y) and copy.deepcopy(layer).univariate is f


@EVERY
def test_image_layers(f) -> None:
    x = X[:6].reshape(1, 2, 3, 4)
    for mask in ([0, 1], checkerboard(2, 3, 4)):
        torch.manual_seed(0)
        layer = ImageCoupling(mask, lambda i, o: nets.ConvNet(i, o, hidden=4), f).double()
        y, ladj = layer(x)
        back, negated = layer.inverse(y)
        torch.testing.assert_close((back, negated), (x, -ladj), rtol=1e-7, atol=1e-7)


@EVERY
@LAYERS
def test_gradients_of_layers(f, kind) -> None:
    if getattr(f, "scale", None) == "clip":
        return
    layer = layer_of(kind, f)
    x = X[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: (*layer(x), *layer.inverse(x)), (x,), fast_mode=True)


PLAN = [[1, 2, 3, 4], [1, 2, 3, 1, 2, 3]]


@EVERY
@pytest.mark.parametrize("backend", ["cpu", "cuda", "triton"])
def test_one_sweep(f, backend) -> None:
    """Where a backend has a kernel it has the reference's numbers, and where not it says why."""
    if f.inverse:
        f = f.inverted()
    plan = MadePlan([*PLAN, [d for d in PLAN[0] for _ in range(f.n_params)]])
    torch.manual_seed(0)
    layers = [(0.5 * torch.randn(p.n_out, p.n_in).double(), torch.randn(p.n_out).double()) for p in plan.layers]
    wanted = ops.autoregressive_inverse(X, layers, plan, f, backend="reference")
    back, ladj = f(wanted[0], ops.made(wanted[0], layers, plan).unflatten(-1, (4, -1)))
    if not f.zero_outside:
        torch.testing.assert_close((back, ladj), (X, -wanted[1]), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(ops.autoregressive_inverse(X, layers, plan, f), wanted, rtol=1e-8, atol=1e-8)
    why = f.why_not(backend)
    if why is not None:
        with pytest.raises(BackendUnavailableError, match=f"cannot run on backend '{backend}'"):
            ops.autoregressive_inverse(X, layers, plan, f, backend=backend)
    elif backend == "cpu":
        found = ops.autoregressive_inverse(X, layers, plan, f, backend=backend)
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


@EVERY
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_flow_layer(f, inverse) -> None:
    g = f.inverted() if inverse else f
    torch.manual_seed(0)
    sizes = ((8, 2), (8, 8), (8, 8), (2 * f.n_params, 8))
    layers = [(0.3 * torch.randn(s).double(), torch.randn(s[0]).double()) for s in sizes]
    at = columns(4, (0, 2), (1, 3))
    wanted = flow_layer(X, layers, g, at, backend="reference")
    params = ops.residual_net(X[:, ::2], layers, blocks=1).unflatten(-1, (2, -1))
    torch.testing.assert_close((wanted[0][:, 1::2], wanted[1]), g(X[:, 1::2], params), rtol=1e-9, atol=1e-9)
    if f.why_not("cpu") or f.circle_shift or f.zero_outside:
        with pytest.raises(BackendUnavailableError, match="cannot run on backend 'cpu': no kernel for "):
            flow_layer(X, layers, g, at, backend="cpu")
    else:
        torch.testing.assert_close(flow_layer(X, layers, g, at, backend="cpu"), wanted, rtol=1e-9, atol=1e-9)


# ---- those that have functions ----


@pytest.mark.parametrize("name", [n for n, f in MAPS.items() if type(f) not in (MixtureAffine, SinhArcsinh)])
def test_the_function_is_the_map(name) -> None:
    f: Any = MAPS[name]
    params = params_of(f, *X.shape)
    settings = {field.name: getattr(f, field.name) for field in dataclasses.fields(f) if field.init}
    if type(f) is Affine:
        settings["min_scale"] = f.floor  # whose default is another one
    function: Any = {RQS: ops.rqs, Affine: ops.affine, Mixture: ops.mixture, Polynomial: ops.polynomial}[type(f)]
    for a, b in zip(function(X, params, **settings), f(X, params), strict=True):
        assert torch.equal(a, b)


def test_zero_outside() -> None:
    spline = RQS(4, None, box=(-1.0, 2.0, -3.0, 4.0), zero_outside=True)
    x, params = torch.tensor([[-1.5, 2.5, 0.3, torch.nan]]).double().requires_grad_(), params_of(spline, 1, 4)
    y, ladj = spline(x, params)
    inside = RQS(4, None, box=(-1.0, 2.0, -3.0, 4.0))(x, params)
    assert y[0, :2].tolist() == [0.0, 0.0] and y[0, 2] == inside[0][0, 2] and y[0, 3].isnan()
    (grad,) = torch.autograd.grad(y[0, :3].sum(), x)
    assert grad[0, :2].tolist() == [0.0, 0.0] and grad[0, 2] > 0
    back, _ = spline.inverted()(torch.tensor([[-3.5, 4.5, 0.3, 3.9]]).double(), params)
    assert back[0, :2].tolist() == [0.0, 0.0] and (back[0, 2:] != 0).all()
    assert torch.equal(ladj, inside[1])


def test_the_other_direction_costs_one_frame() -> None:
    spline = RQS(8)
    assert frames(spline.inverted) == 1


# ---- one table of scales ----


def test_scales_are_those_of_every_backend() -> None:
    root = Path(flowkernels.__file__).parents[1]
    header = (root / "csrc/affine/affine.h").read_text()
    enum = re.search(r"enum class AffineScale : int \{(.*?)\}", header, re.DOTALL)
    assert enum is not None
    assert [name.split("=")[0].strip() for name in enum[1].split(",")] == list(SCALES)
    triton = (root / "flowkernels/ops/affine/triton_kernels.py").read_text()
    named = set(re.findall(r'SCALE == "(\w+)"', triton))
    assert named == set(SCALES) - {"sigmoid"}  # its last branch
    for text in (ops.affine.__doc__ or "", (root / "flowkernels/ops/affine/README.md").read_text()):
        assert all(name in text for name in SCALES) and not any(name in text for name in RENAMED)
    rows = [row for row in (ops.affine.__doc__ or "").splitlines() if ":math:`" in row]
    for scale in TABLE:
        (row,) = [r for r in rows if r.strip().startswith(f'``"{scale.name}"``')]
        assert f":math:`{scale.formula}`" in row
        assert scale.clamped == ("c = clamp" in row) and scale.floored == ("+ min_scale" in row)
        assert scale.clamped == _takes(scale.name, clamp=1.5) and scale.floored == _takes(scale.name, min_scale=0.5)


def _takes(scale: str, **setting: float) -> bool:
    try:
        Affine(scale, **setting)  # type: ignore[arg-type]
    except ValueError:
        return False
    return True


def test_scales_of_the_compiled_module() -> None:
    C = flowkernels._native.C
    layout = (1, 0, 0, 1)
    assert C.AffineSpec(len(SCALES) - 1, 0.0, 2.0, False, -5.0, 3.0, False, layout)
    with pytest.raises(ValueError, match="scale must be from 0 to"):
        C.AffineSpec(len(SCALES), 0.0, 2.0, False, -5.0, 3.0, False, layout)


# ---- old names ----


def test_old_names_warn_and_work() -> None:
    z, f = torch.zeros(3, 2), RQS(4)
    plan = MadePlan([[1, 2], [1, 1], [d for d in (1, 2) for _ in range(f.n_params)]])
    layers = [(torch.zeros(p.n_out, p.n_in), torch.zeros(p.n_out)) for p in plan.layers]
    of_scale = {"scale": "per_sigmoid"}

    def sweep(**old: bool) -> Tensor:
        return ops.autoregressive_inverse(z, layers, plan, f, **old)[0]

    calls: list[tuple[Callable[[], Any], Any, str]] = [
        (lambda: f.params_per_feature, 11, r"RQS.params_per_feature is called n_params now"),
        (lambda: Affine().params_per_feature, 2, r"Affine.params_per_feature is called n_params now"),
        (lambda: f.half_turn, False, "RQS.half_turn is called circle_shift now"),
        (lambda: RQS(4, half_turn=True), RQS(4, circle_shift=True), r"RQS\(half_turn=\) is called circle_shift now"),
        (lambda: f.spec, f, r"RQS\(...\).spec is called RQS\(...\) now"),
        (lambda: Affine("per_sigmoid"), Affine("reciprocal_sigmoid"), "is called 'reciprocal_sigmoid' now"),
        (lambda: ops.affine(z, torch.zeros(3, 2, 2), **of_scale)[0].shape, (3, 2), "is called 'reciprocal_sigmoid'"),
        (lambda: sweep(half_turn=True).tolist(), [[-3.0, -3.0]] * 3, r"half_turn=\) is called RQS\(circle_shift=\)"),
        (lambda: sweep(zero_outside=True).tolist(), [[0.0, 0.0]] * 3, r"is called RQS\(zero_outside=\) now"),
        (lambda: sweep(half_turn=False).tolist(), [[0.0, 0.0]] * 3, r"is called RQS\(circle_shift=\) now"),
    ]
    for call, wanted, message in calls:
        with pytest.warns(DeprecationWarning, match=message) as caught:
            assert call() == wanted
        assert [w.filename for w in caught] == [__file__], message
    for old in ("half_turn", "zero_outside"):
        with (
            pytest.warns(DeprecationWarning),
            pytest.raises(TypeError, match=f"univariate must be a spline where {old} is, got SinhArcsinh"),
        ):
            ops.autoregressive_inverse(z, layers, plan, SinhArcsinh(), **{old: True})
        with pytest.warns(DeprecationWarning), pytest.raises(ValueError, match=f"{old} must be True or False, got 2"):
            sweep(**{old: 2})  # type: ignore[arg-type]


class Shift(torch.nn.Module):
    """A map of a user's own, with a weight: what a layer asks, and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.by = torch.nn.Parameter(torch.tensor(0.5))

    n_params = 1
    identity = (0.0,)

    def forward(
        self, x: Tensor, params: Tensor, inverse: bool, event_dims: int = 1, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        y = x - params[..., 0] - self.by if inverse else x + params[..., 0] + self.by
        y = y if mask is None else torch.where(mask, y, x)
        return y, x.new_zeros(x.shape[: x.dim() - event_dims])


class OldShift(Shift):
    params_per_feature = 1

    @property
    def n_params(self) -> int:  # type: ignore[override]
        raise AttributeError  # it was written before there was one


@LAYERS
@pytest.mark.parametrize("old", [False, True])
def test_maps_of_users(kind, old) -> None:
    f = OldShift().double() if old else Shift().double()
    if old:
        with pytest.warns(DeprecationWarning, match="OldShift.params_per_feature is called n_params now"):
            layer = _of_users(kind, f)
    else:
        layer = _of_users(kind, f)
    y, _ = layer(X)
    torch.testing.assert_close(layer.inverse(y)[0], X)
    assert not can_fuse(type(f)) and len(list(f.parameters())) == 1
    with pytest.raises(TypeError, match=r"univariate must be a map of one feature, e.g. RQS\(\) or Affine\(\), got "):
        flow_layer(X, [], f, columns(4, (0, 2), (1, 3)))  # type: ignore[arg-type]


def _of_users(kind: str, f: Any) -> Any:
    if kind == "autoregressive":
        return Autoregressive(nets.MADE(4, 1, hidden=(8,), seed=0), f).double()
    net = nets.MLP if kind == "coupling" else nets.ResidualNet
    return Coupling([0, 1, 0, 1], lambda i, o: net(i, o), f).double()


def test_flows_of_a_third_map() -> None:
    """No flow was written for it."""
    flow = flowkernels.flows.MAF(4, hidden=(8,), transforms=2, univariate=SinhArcsinh())
    x = X.float()
    noise, ladj = flow.transform(x)
    back, negated = flow.transform.inverse(noise)
    torch.testing.assert_close((back, negated), (x, -ladj), rtol=1e-4, atol=1e-4)
    assert transforms.SinhArcsinh is SinhArcsinh

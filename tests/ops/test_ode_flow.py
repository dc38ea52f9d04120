"""Continuous maps: traces, Jacobians of the way, both directions, gradients, steps that rows choose, messages."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from flowkernels import ops
from flowkernels.ops.ode_flow.activations import TABLE
from flowkernels.ops.ode_flow.tableau import SOLVERS
from tests.ops.ode_cases import FIELDS, Layers, drawn, signs

# Exact traces of three hidden layers have no kernel.
pytestmark = pytest.mark.filterwarnings("ignore:flowkernels. ode_flow runs as plain PyTorch")
INVERSE = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
FIELD = pytest.mark.parametrize("field", FIELDS)
SOLVER = pytest.mark.parametrize("solver", SOLVERS)
BACKEND = pytest.mark.parametrize("backend", [None, "reference"])
FEW = {"euler": 4, "rk4": 3, "dopri5": None}


def plain(x: Tensor, layers: Layers, time: Tensor, activation: str) -> Tensor:
    """The vector field, as anybody would write it."""
    h = torch.cat((x, time.expand(*x.shape[:-1], time.shape[-1])), -1)
    for k, (weight, bias) in enumerate(layers):
        h = torch.nn.functional.linear(h if k == 0 else TABLE[activation](h)[0], weight, bias)
    return h


def times(t: float, time: str) -> Tensor:
    angles = [math.pi * k * t for k in (1, 2, 3)]
    waves = [*map(math.cos, angles), *map(math.sin, angles)]
    return torch.tensor({"none": [], "concat": [t], "sinusoidal": waves}[time], dtype=torch.float64)


@pytest.mark.parametrize("name", TABLE)
def test_slopes_of_activations(name) -> None:
    z = torch.tensor([-60.0, -3.0, -0.2, 1e-9, 0.3, 2.0, 50.0], dtype=torch.float64, requires_grad=True)
    h, slope = TABLE[name](z)
    torch.testing.assert_close(torch.autograd.grad(h.sum(), z)[0], slope.detach(), rtol=1e-12, atol=1e-14)
    torch_has = {"gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu, "elu": torch.nn.functional.elu,
                 "softplus": torch.nn.functional.softplus, "leaky_relu": torch.nn.functional.leaky_relu}  # fmt: skip
    if name in torch_has:
        torch.testing.assert_close(h, torch_has[name](z), rtol=1e-12, atol=1e-8)
    assert all(t.isnan().all() for t in TABLE[name](torch.tensor([float("nan")])) if name != "identity")


@FIELD
def test_a_step_is_the_field_and_its_trace(field) -> None:
    """One Euler step, against torch's own Jacobian of a network written anew."""
    hidden, settings = FIELDS[field]
    time = settings.get("time", "concat")
    x, layers, _ = drawn(5, 4, hidden, **settings)
    noise = signs(x, settings)
    t0, h = 0.3, 0.125
    y, ladj = ops.ode_flow(x, layers, t0=t0, t1=t0 + h, solver="euler", steps=1, **settings, **noise)
    act = settings.get("activation", "tanh")
    torch.testing.assert_close(y, x + h * plain(x, layers, times(t0, time), act), rtol=1e-12, atol=1e-12)
    for i in range(5):
        J: Any = torch.func.jacrev(lambda v: plain(v, layers, times(t0, time), act))(x[i])
        right = noise["noise"][i] @ J @ noise["noise"][i] if noise else J.trace()
        torch.testing.assert_close(ladj[i], h * right, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("field", [f for f in FIELDS if f != "hutchinson"])
@SOLVER
def test_ladj_is_that_of_the_jacobian_and_back_is_where_it_came_from(field, solver) -> None:
    hidden, settings = FIELDS[field]
    x, layers, context = drawn(3, 4, hidden, context=2, **settings)
    steps, close = {"euler": (100, 4e-2), "rk4": (30, 1e-6), "dopri5": (None, 1e-6)}[solver]
    way = {**settings, "solver": solver, "steps": steps, "rtol": 1e-8, "atol": 1e-9}
    y, ladj = ops.ode_flow(x, layers, context=context, **way)
    assert context is not None
    for i in range(3):
        J: Any = torch.autograd.functional.jacobian(
            lambda v, i=i: ops.ode_flow(v, layers, context=context[i], **way)[0], x[i]
        )
        torch.testing.assert_close(ladj[i], torch.linalg.slogdet(J)[1], rtol=close, atol=close)
    back, negative = ops.ode_flow(y, layers, context=context, inverse=True, **way)
    torch.testing.assert_close(back, x, rtol=close, atol=close)
    torch.testing.assert_close(negative, -ladj, rtol=close, atol=close)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("rk4", 4)])
def test_errors_fall_with_the_order(solver, order) -> None:
    x, layers, _ = drawn(20, 3, (16, 16))
    exact = torch.cat([t.flatten() for t in ops.ode_flow(x, layers, solver="rk4", steps=500)])
    errors = []
    for steps in (10, 20):
        found = torch.cat([t.flatten() for t in ops.ode_flow(x, layers, solver=solver, steps=steps)])
        errors.append((found - exact).abs().max())
    assert 0.6 * 2**order < errors[0] / errors[1] < 1.6 * 2**order


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
def test_dopri5_errs_as_much_as_it_may(tolerance) -> None:
    x, layers, _ = drawn(50, 3, (16, 16), scale=2.0)
    exact = ops.ode_flow(x, layers, solver="rk4", steps=2000)
    found = ops.ode_flow(x, layers, solver="dopri5", rtol=tolerance, atol=tolerance)
    for mine, truth, factor in zip(found, exact, (30, 300), strict=True):  # ladj: a hundred times as much a step
        assert ((mine - truth).abs() / (1 + truth.abs())).max() < factor * tolerance


@BACKEND
def test_rounding_takes_no_more_of_float32s_digits_than_atol(backend) -> None:
    """On a smooth field at usual tolerances, most of a step's error is what counts as rounding."""
    way = {"activation": "tanh", "time": "sinusoidal", "solver": "dopri5"}
    x, layers, _ = drawn(256, 6, (64, 64), scale=0.58, **way)
    exact = ops.ode_flow(x, layers, rtol=1e-12, atol=1e-12, **way)
    single = [(weight.float(), bias.float()) for weight, bias in layers]
    found = ops.ode_flow(x.float(), single, rtol=1e-5, atol=1e-6, backend=backend, **way)
    for mine, truth in zip(found, exact, strict=True):
        assert (mine.double() - truth).square().mean().sqrt() < 1e-6


def test_steps_of_euler_are_residual_layers_to_first_order() -> None:
    """x + h f(x): exactly the residual map; its log-determinant is h tr f' up to h^2."""
    x, layers, _ = drawn(6, 3, (8,), time="none")
    off = []
    for h in (0.02, 0.01):
        y, ladj = ops.ode_flow(x, layers, t1=h, solver="euler", steps=1, time="none")
        torch.testing.assert_close(y, x + h * plain(x, layers, times(0.0, "none"), "tanh"), rtol=1e-13, atol=1e-13)
        J = torch.func.vmap(torch.func.jacrev(lambda v: v + h * plain(v, layers, times(0.0, "none"), "tanh")))(x)  # noqa: B023
        off.append((ladj - torch.linalg.slogdet(J)[1]).abs().max())
    assert 3.5 < off[0] / off[1] < 4.5


def test_hutchinsons_mean_is_the_trace() -> None:
    x, layers, _ = drawn(1, 3, (6, 6))
    n = 4000
    noise = 2 * torch.randint(2, (n, 3), generator=torch.Generator().manual_seed(0)).double() - 1
    _, estimates = ops.ode_flow(x.expand(n, 3), layers, steps=5, trace="hutchinson", noise=noise)
    _, exact = ops.ode_flow(x, layers, steps=5)
    error = estimates.std() / math.sqrt(n)
    assert error > 0 and (estimates.mean() - exact).abs() < 4 * error


@FIELD
@SOLVER
@INVERSE
def test_gradients(field, solver, inverse) -> None:
    hidden, settings = FIELDS[field]
    x, layers, context = drawn(2, 2, [2 * (h > 0) for h in hidden], context=1, scale=0.7, **settings)
    noise = signs(x, settings)
    assert context is not None
    leaves = [t.requires_grad_() for t in (x, context, *[t for pair in layers for t in pair])]
    # So loose that no step depends on what gradcheck changes.
    way = {**settings, **noise, "solver": solver, "steps": FEW[solver], "rtol": 1.0, "atol": 1.0}

    def call(x: Tensor, context: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        pairs = list(zip(rest[::2], rest[1::2], strict=True))
        return ops.ode_flow(x, pairs, context=context, inverse=inverse, **way)

    assert torch.autograd.gradcheck(call, leaves)
    y, ladj = call(*leaves)
    first = torch.autograd.grad(y.square().sum() + ladj.sum(), leaves)
    y, ladj = call(*leaves)
    again = torch.autograd.grad(y.square().sum() + ladj.sum(), leaves, create_graph=True)
    torch.testing.assert_close(first, again, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
def test_second_gradients(solver) -> None:
    x, layers, _ = drawn(2, 2, (2, 2), scale=0.7)
    leaves = [t.requires_grad_() for t in (x, *layers[0], *layers[2])]

    def call(x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        return ops.ode_flow(
            x, [(rest[0], rest[1]), layers[1], (rest[2], rest[3])], solver=solver, steps=FEW[solver], rtol=1.0, atol=1.0
        )

    assert torch.autograd.gradgradcheck(call, leaves, atol=1e-4)


def test_gradients_are_those_of_the_steps_that_were_taken() -> None:
    """Tight steps: as of a dense solution, though no gradient goes through the choice of steps."""
    x, layers, _ = drawn(10, 3, (8, 8))
    grads = []
    for way in ({"solver": "rk4", "steps": 300}, {"solver": "dopri5", "rtol": 1e-10, "atol": 1e-11}):
        leaves = [t.detach().requires_grad_() for t in (x, *[t for pair in layers for t in pair])]
        pairs = list(zip(leaves[1::2], leaves[2::2], strict=True))
        y, ladj = ops.ode_flow(leaves[0], pairs, **way)
        grads.append(torch.autograd.grad(y.square().sum() + ladj.sum(), leaves))
    torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-7)


def test_what_is_kept_for_backward_does_not_grow_with_steps() -> None:
    x, layers, _ = drawn(100, 3, (8, 8))
    x.requires_grad_()

    def kept(**way: Any) -> int:
        seen: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y, ladj = ops.ode_flow(x, layers, **way)
        (y.sum() + ladj.sum()).backward()
        return sum(seen.values())

    least = kept(solver="euler", steps=1)
    assert kept(solver="rk4", steps=100) == least == kept(solver="dopri5", rtol=1e-9) < 10 * x.nbytes


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@SOLVER
@FIELD
def test_other_dtypes(kind, solver, field) -> None:
    dtype: torch.dtype = kind
    hidden, settings = FIELDS[field]
    x, layers, context = drawn(6, 4, hidden, context=2, **settings)
    way = {**settings, "solver": solver, "steps": {"euler": 8, "rk4": 8}.get(solver)}
    assert context is not None
    x, context, pairs = x.to(dtype), context.to(dtype), [(w.to(dtype), b.to(dtype)) for w, b in layers]
    noise = signs(x, settings)
    y, ladj = ops.ode_flow(x, pairs, context=context, **way, **noise)
    exact, exact_ladj = ops.ode_flow(
        x.double(), [(w.double(), b.double()) for w, b in pairs], context=context.double(), **way,
        **{k: v.double() for k, v in noise.items()},
    )  # fmt: skip
    assert y.dtype is dtype and ladj.dtype is torch.float32
    close = 1e-4 if solver == "dopri5" else 1e-5
    torch.testing.assert_close(y.double(), exact, rtol=max(torch.finfo(dtype).eps, close), atol=close)
    torch.testing.assert_close(ladj.double(), exact_ladj, rtol=close, atol=close)


@FIELD
@SOLVER
def test_a_bad_value_stays_in_its_row(field, solver) -> None:
    hidden, settings = FIELDS[field]
    x, layers, context = drawn(6, 4, hidden, context=2, **settings)
    assert context is not None
    noise = signs(x, settings)
    way = {**settings, **noise, "solver": solver, "steps": FEW[solver], "rtol": 1e-3}
    clean = ops.ode_flow(x, layers, context=context, **way)
    x[2, 0], x[4, 1], context[5, 1] = float("nan"), float("inf"), float("nan")
    found = ops.ode_flow(x, layers, context=context, **way)
    for a, b in zip(found, clean, strict=True):
        torch.testing.assert_close(a[[0, 1, 3]], b[[0, 1, 3]], rtol=1e-12, atol=1e-12)
    assert found[0][[2, 5]].isnan().any(-1).all() and not found[0][4].isfinite().all()


@BACKEND
def test_steps_of_a_row_do_not_depend_on_its_neighbours(backend) -> None:
    x, layers, _ = drawn(40, 3, (8, 8), scale=2.0)
    way = {"solver": "dopri5", "rtol": 1e-4, "atol": 1e-4, "backend": backend}
    alone = ops.ode_flow(x[:1], layers, **way)
    among = ops.ode_flow(torch.cat((x[:1], 5 * x)), layers, **way)
    for a, b in zip(alone, among, strict=True):
        torch.testing.assert_close(b[:1], a, rtol=1e-10, atol=1e-10)


@BACKEND
def test_a_row_that_does_not_arrive_is_nan(backend) -> None:
    """x' = 200 x: 0 stays where it is; from 1 on steps are short, and e^200 is no float32."""
    weight, bias = torch.tensor([[200.0]], dtype=torch.float64), torch.zeros(1).double()
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    way = {"solver": "dopri5", "time": "none", "rtol": 1e-4, "backend": backend}
    whole = ops.ode_flow(x, [(weight, bias)], **way)
    torch.testing.assert_close(whole[0].log()[1], torch.full((1,), 200.0).double(), rtol=1e-3, atol=0)
    few = ops.ode_flow(x, [(weight, bias)], steps=3, **way)
    far = ops.ode_flow(x.float(), [(weight.float(), bias.float())], **way)
    for y, ladj in (few, far):
        assert y[0] == 0 and (ladj[0] - 200).abs() < 1e-3
        assert y[1].isnan() and ladj[1].isnan()


def test_times_may_be_any() -> None:
    x, layers, _ = drawn(5, 3, (8,))
    half = ops.ode_flow(x, layers, t0=-1.0, t1=0.5, steps=15)
    rest = ops.ode_flow(half[0], layers, t0=0.5, t1=2.0, steps=15)
    whole = ops.ode_flow(x, layers, t0=-1, t1=2, steps=30)
    torch.testing.assert_close((rest[0], half[1] + rest[1]), whole)
    same = ops.ode_flow(x, layers, t0=1.0, t1=1.0, solver="dopri5")
    assert torch.equal(same[0], x) and (same[1] == 0).all()


@SOLVER
@BACKEND
def test_no_rows_and_other_shapes(solver, backend) -> None:
    x, layers, _ = drawn(6, 3, (8, 8))
    way = {"solver": solver, "steps": FEW[solver], "backend": backend}
    expected = ops.ode_flow(x, layers, **way)
    found = ops.ode_flow(x.view(2, 3, 3), layers, **way)
    torch.testing.assert_close((found[0].view(6, 3), found[1].view(6)), expected)
    torch.testing.assert_close(ops.ode_flow(x.T.contiguous().T, layers, **way), expected)
    one = ops.ode_flow(x[0], layers, **way)
    torch.testing.assert_close(one, (expected[0][0], expected[1][0]))
    empty = x[:0].clone().requires_grad_()
    weight = layers[0][0].clone().requires_grad_()
    y, ladj = ops.ode_flow(empty, [(weight, layers[0][1]), *layers[1:]], **way)
    assert y.shape == (0, 3) and ladj.shape == (0,)
    grads = torch.autograd.grad(y.sum() + ladj.sum(), (empty, weight))
    assert all((g == 0).all() for g in grads)


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_autocast_leaves_it_alone(trace) -> None:
    x, layers, context = drawn(5, 3, (8, 8), context=2)
    x, pairs = x.float(), [(w.float(), b.float()) for w, b in layers]
    assert context is not None
    noise = signs(x, {"trace": trace})
    way = {"trace": trace, "context": context.float(), **noise}
    expected = ops.ode_flow(x, pairs, **way)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ops.ode_flow(x, pairs, **way)
        short = ops.ode_flow(x, [(w.bfloat16(), b) for w, b in pairs], **way)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    right = ops.ode_flow(x, [(w.bfloat16().float(), b) for w, b in pairs], **way)
    torch.testing.assert_close(short, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
@pytest.mark.parametrize("field", ["two layers", "hutchinson"])
def test_transforms_and_compilers(solver, field) -> None:
    hidden, settings = FIELDS[field]
    x, layers, context = drawn(4, 3, hidden, context=2, **settings)
    assert context is not None
    noise: Any = {k: v[0] for k, v in signs(x, settings).items()}
    way = {**settings, **noise, "solver": solver, "steps": FEW[solver], "rtol": 1e-4}

    def call(v: Tensor, c: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return ops.ode_flow(v, [(weight, layers[0][1]), *layers[1:]], context=c, **way)

    weight = layers[0][0]
    expected = call(x, context, weight)
    torch.testing.assert_close(torch.func.vmap(call, in_dims=(0, 0, None))(x, context, weight), expected)
    many = torch.stack([weight, 0.5 * weight])
    found = torch.func.vmap(call, in_dims=(None, None, 0))(x, context, many)
    torch.testing.assert_close((found[0][1], found[1][1]), call(x, context, many[1]))
    forward, reverse = (
        jac(lambda v, c=context[0]: call(v, c, weight)[0])(x[0]) for jac in (torch.func.jacfwd, torch.func.jacrev)
    )
    torch.testing.assert_close(forward, reverse)
    torch._dynamo.reset()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, context, weight), expected)
    leaves = [t.clone().requires_grad_() for t in (x, context, weight)]
    found, right = (torch.autograd.grad([t.sum() for t in f(*leaves)], leaves) for f in (compiled, call))
    torch.testing.assert_close(found, right)


# ---- errors ----

X, W1, B1, W2, B2 = torch.zeros(2, 3), torch.zeros(5, 4), torch.zeros(5), torch.zeros(3, 5), torch.zeros(3)
LAYERS = [(W1, B1), (W2, B2)]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": 3}, TypeError, "x must be a tensor"),
        ({"x": torch.zeros(2, 0)}, ValueError, "features of x must be at least one, got 0"),
        ({"solver": "heun"}, ValueError, "solver must be \"euler\", \"rk4\" or \"dopri5\", got 'heun'"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"steps": 2**40}, ValueError, "steps must be at most 1000000, got 1099511627776"),
        ({"t1": math.inf}, ValueError, "t1 must be a number from -1e30 to 1e30, got inf"),
        ({"t0": "a"}, ValueError, "t0 must be a number from -1e30 to 1e30, got 'a'"),
        ({"rtol": -1}, ValueError, "rtol must be a finite number, at least 0, got -1"),
        ({"atol": None}, ValueError, "atol must be a finite number, at least 0, got None"),
        ({"trace": "jvp"}, ValueError, "trace must be \"exact\" or \"hutchinson\", got 'jvp'"),
        ({"trace": "hutchinson"}, ValueError, 'noise must be a tensor for trace="hutchinson", got None'),
        ({"noise": X}, ValueError, r"noise must be None where the trace is exact, got \[2, 3\]"),
        ({"trace": "hutchinson", "noise": torch.zeros(4, 3)}, ValueError,
         r"noise must broadcast to \[2, 3\], got \[4, 3\]"),
        ({"time": "t"}, ValueError, "time must be \"concat\", \"sinusoidal\" or \"none\", got 't'"),
        ({"time": "sinusoidal", "frequencies": 0}, ValueError, "frequencies must be at least 1, got 0"),
        ({"activation": "sin"}, ValueError, "activation must be .* got 'sin'"),
        ({"inverse": 1}, ValueError, "inverse must be True or False, got 1"),
        ({"layers": 3}, TypeError, r"layers must be a list of \(weight, bias\), got int 3"),
        ({"layers": []}, ValueError, "layers must be at least one, got 0"),
        ({"layers": [(W1,)]}, ValueError, r"layers\[0\] must be \(weight, bias\), got 1 parts"),
        ({"layers": [(W1.double(), B1), (W2, B2)]}, TypeError, r"layers\[0\] weight must be of the dtype of x"),
        ({"layers": [(W2, B2), (W2, B2)]}, ValueError,
         r"layers\[0\] weight must be \[out, 4\], for 3 of x, 1 of time and 0 of the context, got \[3, 5\]"),
        ({"layers": [(W1, B1), (W1, B1)]}, ValueError, r"layers\[1\] weight must be \[3, 5\], got \[5, 4\]"),
        ({"layers": [(W1, B2), (W2, B2)]}, ValueError, r"layers\[0\] bias must be \[5\], got \[3\]"),
        ({"context": torch.zeros(5, 2)}, ValueError, r"context must broadcast to \[2, C\], got \[5, 2\]"),
        ({"context": torch.zeros(2)}, ValueError, r"for 3 of x, 1 of time and 2 of the context, got \[5, 4\]"),
    ],
)  # fmt: skip
def test_errors(change, error, message) -> None:
    with pytest.raises(error, match=rf"^ops\.ode_flow: .*{message}"):
        ops.ode_flow(**{"x": X, "layers": LAYERS, **change})


def test_as_zuko_solves_it() -> None:
    zuko = pytest.importorskip("zuko")
    torch.manual_seed(0)
    layer = zuko.flows.continuous.FFJTransform(3, 2, freqs=3, hidden_features=(8, 8), atol=1e-8, rtol=1e-8).double()
    x, context = torch.randn(7, 3).double(), torch.randn(7, 2).double()
    expected = layer(context).call_and_ladj(x)
    linears = [m for m in layer.ode if hasattr(m, "weight")]
    pairs: Any = [(m.weight, m.bias) for m in linears]
    pairs[0] = (torch.cat((pairs[0][0][:, 6:9], pairs[0][0][:, :6], pairs[0][0][:, 9:]), 1), pairs[0][1])  # its t first
    found = ops.ode_flow(
        x,
        pairs,
        context=context,
        solver="dopri5",
        rtol=layer.rtol,
        atol=layer.atol,
        time="sinusoidal",
        activation="elu",
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

"""Triton's kernels where they can run: `--device cuda`, or the interpreter on the CPU. Every op by the numbers rule,
equal bits, and under torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flowkernels import backends, ops
from flowkernels.ops import _triton
from flowkernels.ops.autoregressive_inverse import triton as autoregressive_inverse
from flowkernels.ops.net import triton as masked_linear
from flowkernels.ops.net.plan import MadePlan, layer_plan
from tests.numbers import assert_within_rule
from tests.ops import spline, test_actnorm, test_affine, test_autoregressive_inverse, test_lu_linear, test_masked_linear
from tests.ops.masked import ACTIVATIONS, Shape, assert_numbers, draw, values_and_gradients

pytestmark = pytest.mark.interpreted
Call = Callable[..., Any]
PLAN = layer_plan([3, 1, 2, 4, 2, 3, 1] * 11, [4, 1, 3, 2, 2] * 9, False)


def _masked(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, **settings: Any) -> Tensor:
    return ops.masked_linear(x, weight, bias, PLAN, activation="silu", residual=residual, **settings)


def _rqs(inverse: bool) -> tuple[Call, list[Tensor]]:
    x, params = spline.draw((130, 5), torch.float64, bins=8, inverse=inverse)
    return (lambda x, params, **settings: ops.rqs(x, params, bins=8, inverse=inverse, **settings)), [x, params]


def _on_channels(op: Call, tensors: list[Tensor], inverse: bool) -> tuple[Call, list[Tensor]]:
    return (lambda *tensors, **settings: op(*tensors, channel_dim=1, inverse=inverse, **settings)), tensors


def _affine(inverse: bool) -> tuple[Call, list[Tensor]]:
    def f(x: Tensor, params: Tensor, **settings: Any) -> Any:
        return ops.affine(x, params, scale="sigmoid", min_scale=1e-3, inverse=inverse, **settings)

    return f, list(test_affine.draw((130, 7), "sigmoid"))


def _made(residual: bool) -> tuple[Call, list[Tensor]]:
    problem = draw(Shape((3, 5), 7, (23, 23), 2, residual, "random", "random", "all"))

    def f(*tensors: Tensor, **settings: Any) -> Tensor:
        x, layers, adds = problem.split(tensors)
        return ops.made(x, layers, problem.plan, activation="silu", adds=adds, **settings)

    return f, problem.tensors


PROBLEMS = {
    **{f"rqs, inverse={i}": _rqs(i) for i in (False, True)},
    **{f"affine, inverse={i}": _affine(i) for i in (False, True)},
    **{
        f"actnorm, inverse={i}": _on_channels(ops.actnorm, test_actnorm.draw((3, 13, 5, 7), 1), i)
        for i in (False, True)
    },
    **{
        f"lu_linear, inverse={i}": _on_channels(ops.lu_linear, test_lu_linear.draw((3, 13, 5, 7), 1), i)
        for i in (False, True)
    },
    **{f"made, residual={r}": _made(r) for r in (False, True)},
    "masked_linear": (_masked, test_masked_linear.draw((70,), 77, 45)),
}
EVERY = pytest.mark.parametrize("problem", PROBLEMS)


@pytest.fixture(autouse=True)
def can_run(device: torch.device) -> None:
    reason = _triton.why_not((torch.empty(1, device=device),))
    if reason is not None:
        pytest.skip(reason)


def results(f: Call, tensors: list[Tensor], backend: str | None = None) -> list[Tensor]:
    """Values and gradients, for fixed weights of the values."""
    leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in tensors]
    found = f(*leaves) if backend is None else f(*leaves, backend=backend)
    outputs = [found] if isinstance(found, Tensor) else list(found)
    wanted = [t for t in leaves if t.requires_grad]
    grads = torch.autograd.grad(outputs, wanted, [spline.weights(o) for o in outputs])
    return [*(o.detach() for o in outputs), *grads]


def cast(tensors: list[Tensor], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    return [t.to(device, dtype if t.is_floating_point() else t.dtype) for t in tensors]


@EVERY
def test_numbers(problem, dtype, device) -> None:
    f, tensors = PROBLEMS[problem]
    given = cast(tensors, dtype, device)
    if dtype == torch.float64:  # eager is the truth
        torch.testing.assert_close(results(f, given, "triton"), results(f, given, "reference"), rtol=1e-8, atol=1e-8)
        return
    if problem.startswith("rqs"):
        pytest.skip("a spline's errors want its condition: tests/ops/test_rqs.py, which takes --device")
    truth = results(f, [t.double() if t.is_floating_point() else t for t in given], "reference")
    found, eager = results(f, given, "triton"), results(f, given, "reference")
    for i, (mine, its, right) in enumerate(zip(found, eager, truth, strict=True)):
        assert mine.dtype == its.dtype
        assert_within_rule(mine, its, right, f"result {i}")


@EVERY
def test_the_same_bits_twice(problem, device) -> None:
    f, tensors = PROBLEMS[problem]
    given = cast(tensors, torch.float32, device)
    for a, b in zip(results(f, given, "triton"), results(f, given, "triton"), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if "True" not in p])
def test_compile(problem, device, monkeypatch) -> None:
    f, tensors = PROBLEMS[problem]
    given = cast(tensors, torch.float32, device)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *t: f(*t, backend="triton"), backend="aot_eager", fullgraph=True)
    launches, launch = [], _triton.launch
    monkeypatch.setattr(_triton, "launch", lambda *args, **kwargs: launches.append(args) or launch(*args, **kwargs))
    results(compiled, given)
    assert launches  # the kernels, not the definition
    torch.testing.assert_close(results(compiled, given), results(f, given, "triton"), rtol=1e-5, atol=1e-5)


def test_tuning_is_kept_on_disk_and_knows_a_batch_by_its_bucket(monkeypatch) -> None:
    triton: Any = pytest.importorskip("triton")
    from flowkernels.ops.net.triton_kernels import masked_outer, masked_product

    assert [_triton.bucket(n) for n in (1, 256, 257, 1024, 1025, 65536, 10**6)] == [
        256,
        256,
        1024,
        1024,
        4096,
        65536,
        65536,
    ]
    assert len({_triton.bucket(n) for n in range(1, 70000)}) == 5
    for kernel in (*masked_product.values(), *masked_outer.values()):
        assert kernel.keys == ["bucket", "n_in", "n_out"]
    given = {}

    def newer(configs: Any, key: Any, cache_results: bool = False) -> None:
        given["newer"] = (len(configs), key, cache_results)

    def older(configs: Any, key: Any) -> None:
        given["older"] = (len(configs), key)

    monkeypatch.setattr(_triton, "INTERPRETING", False)
    for f in (newer, older):
        monkeypatch.setattr(triton, "autotune", f)
        _triton.tuned([1, 2], ("bucket",))
    assert given == {"newer": (2, ["bucket"], True), "older": (2, ["bucket"])}


def test_products_of_float64_want_a_triton_that_has_them(device, monkeypatch) -> None:
    _, tensors = PROBLEMS["masked_linear"]
    double, single = (cast(tensors, dtype, device) for dtype in (torch.float64, torch.float32))
    made, lu = PROBLEMS["made, residual=False"], PROBLEMS["lu_linear, inverse=True"]
    monkeypatch.setattr(_triton, "version", lambda: (3, 2))
    for f, given in ((_masked, double), (made[0], cast(made[1], torch.float64, device)), (lu[0], lu[1])):
        with pytest.raises(backends.BackendUnavailableError, match=r"float64 need Triton 3\.5 or newer, .* 3\.2"):
            f(*given, backend="triton")
    assert _masked(*single, backend="triton").dtype == torch.float32
    monkeypatch.setattr(_triton, "version", lambda: (3, 5))
    assert _masked(*double, backend="triton").dtype == torch.float64


# ---- the sweep of the autoregressive inverse, and its way back ----

SWEEPS = {
    **{
        name: (name, Shape((5,), 5, (9, 7), 0, order="random", adds="first"))
        for name, univariate in test_autoregressive_inverse.UNIVARIATES.items()
        if univariate.why_not("triton") is None
    },
    "residual": ("softplus", Shape((3, 5), 6, (11, 11), 0, True, "reversed", "random", "all")),
    "few units": ("spline", Shape((5,), 3, (4,), 0)),
    "one feature": ("spline", Shape((5,), 1, (3,), 0)),
    "steps of many units": ("additive", Shape((5,), 3, (50,), 0, adds="one row")),
}


def sweep(name: str) -> tuple[Call, Any]:
    """f(backend, tensors, activation) and its problem."""
    of, shape = SWEEPS[name]
    univariate = test_autoregressive_inverse.UNIVARIATES[of]
    problem = test_autoregressive_inverse.make(shape, univariate)

    def f(backend: str, tensors: list[Tensor], activation: str = "tanh") -> Any:
        return test_autoregressive_inverse.solve(problem, univariate, backend, tensors, activation)

    return f, problem


def both(f: Call, backend: str, tensors: list[Tensor], *settings: Any) -> list[Tensor]:
    """Values and gradients."""
    return values_and_gradients(lambda given: f(backend, given, *settings), tensors)


@pytest.mark.parametrize("name", SWEEPS)
def test_sweep(name, device) -> None:
    f, problem = sweep(name)
    activation = ACTIVATIONS[list(SWEEPS).index(name) % len(ACTIVATIONS)]
    tensors = [t.to(device) for t in problem.tensors]
    found, wanted = (both(f, backend, tensors, activation) for backend in ("triton", "reference"))
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)  # a constant that float32 has rounded shows


@pytest.mark.parametrize("name", ["residual", "few units"])
def test_numbers_of_a_sweep(name, device) -> None:
    f, problem = sweep(name)
    tensors = [t.to(device) for t in problem.tensors]
    op = "autoregressive_inverse"
    assert_numbers(f, tensors, op, torch.float32, ["triton"], only=["triton"])


def test_a_program_takes_several_tiles_of_rows(device, monkeypatch) -> None:
    """And what it has left in its room from the tile before does no harm; one launch each way, whatever the rows."""
    f, problem = sweep("residual")
    z, *rest = (t.to(device) for t in problem.tensors)
    many = [t.repeat(4, 1, 1)[:10] if t.dim() == 3 else t for t in (z, *rest)]
    wanted, whole, launches = both(f, "reference", many), both(f, "triton", many), []
    monkeypatch.setattr(autoregressive_inverse, "_ROWS", 16)
    monkeypatch.setattr(autoregressive_inverse, "_PROGRAMS", 2)
    launch = _triton.launch
    monkeypatch.setattr(_triton, "launch", lambda *args, **kwargs: launches.append(args) or launch(*args, **kwargs))
    found = both(f, "triton", many)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(a, b) for a, b in zip(found, whole, strict=True)) and len(launches) == 2


def test_a_sweep_ignores_what_is_masked_and_keeps_rows_apart(device) -> None:
    f, problem = sweep("residual")
    tensors = [t.to(device) for t in problem.tensors]
    wanted, changed, hidden = both(f, "triton", tensors), list(tensors), {}
    for i, layer in enumerate(problem.plan.layers):
        hidden[1 + 2 * i] = layer.mask(tensors[0]) == 0
        changed[1 + 2 * i] = torch.where(hidden[1 + 2 * i], float("nan"), tensors[1 + 2 * i])
    found = both(f, "triton", changed)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert all((found[2 + i][h] == 0).all() and (found[2 + i][~h] != 0).any() for i, h in hidden.items())
    changed[0] = tensors[0].clone()
    changed[0][1, 2, 3] = float("nan")
    others = [i for i in range(15) if i != 7]
    for a, b in zip(both(f, "triton", changed), wanted, strict=True):
        if b.shape[:2] == (3, 5):  # x, ladj, the gradients of z and of what is added
            a, b = a.reshape(15, -1), b.reshape(15, -1)
            assert torch.equal(a[others], b[others]) and a[7].isnan().any()


@pytest.mark.parametrize("name", ["exp", "one feature"])
def test_a_sweep_back_for_one_output_or_one_input(name, device) -> None:
    f, problem = sweep(name)
    tensors = [t.to(device) for t in problem.tensors]
    for pick, wants in ((0, [0]), (1, [1]), (0, [2, len(tensors) - 1]), (1, [0, 3])):
        found, wanted = [], []
        for backend, to in (("triton", found), ("reference", wanted)):
            leaves = [t.clone().requires_grad_(i in wants) for i, t in enumerate(tensors)]
            y = f(backend, leaves)[pick]
            to += torch.autograd.grad(y.square().sum(), [leaves[i] for i in wants], allow_unused=True)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_units_that_no_feature_sees_have_gradients_of_zero(device) -> None:
    """And of the parameters of a feature the shift may be the first."""
    plan = MadePlan([[2, 1], [2, 1, 2, 1], [2, 2, 1, 1]])
    torch.manual_seed(0)
    tensors = [t.to(device) for p in plan.layers for t in (torch.randn(p.n_out, p.n_in), torch.randn(p.n_out))]
    z, spec = torch.randn(5, 2).to(device), ops.Affine("softplus", shift_first=True)

    def f(backend: str, given: list[Tensor]) -> Any:
        layers = list(zip(given[1::2], given[2::2], strict=True))
        return ops.autoregressive_inverse(given[0], layers, plan, spec, activation="tanh", backend=backend)

    found, wanted = (both(f, backend, [t.double() for t in (z, *tensors)]) for backend in ("triton", "reference"))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    assert (found[3][[0, 2]] == 0).all() and (found[4][[0, 2]] == 0).all() and (found[4][[1, 3]] != 0).all()


# ---- a whole MADE ----


def test_hidden_units_of_a_made_are_never_gathered(device, monkeypatch) -> None:
    """They stay in the order of their degrees: forward and backward, what is put in order is as large as a weight."""
    problem = draw(Shape((37,), 7, (23, 23), 2, True, degrees="random"))
    gathered = []
    in_order = masked_linear._sorted
    monkeypatch.setattr(masked_linear, "_sorted", lambda t, *by: gathered.append((t, by[0])) or in_order(t, *by))

    def batches(f: Call) -> int:
        gathered.clear()
        results(f, [t.to(device) for t in problem.tensors])
        return sum(order is not None and t.shape[0] == 37 for t, order in gathered)

    def layers_alone(x: Tensor, *rest: Tensor) -> Tensor:
        def layer(i: int, h: Tensor, **settings: Any) -> Tensor:
            return ops.masked_linear(h, *rest[2 * i : 2 * i + 2], problem.plan.layers[i], backend="triton", **settings)

        h = layer(0, x)
        for i in (1, 3):
            h = layer(i + 1, layer(i, h.relu(), activation="relu"), residual=h)
        return layer(5, h)

    def whole(x: Tensor, *rest: Tensor) -> Tensor:
        pairs = list(zip(rest[::2], rest[1::2], strict=True))
        return ops.made(x, pairs, problem.plan, activation="relu", backend="triton")

    tensors = [t.to(device) for t in problem.tensors]
    torch.testing.assert_close(results(whole, tensors), results(layers_alone, tensors))
    assert batches(whole) == 0 < batches(layers_alone)

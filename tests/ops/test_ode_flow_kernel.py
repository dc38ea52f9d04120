"""The CPU's kernel of continuous maps: its numbers, its tiles, and the gate before it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flowkernels import _native, backends, ops
from flowkernels.ops.ode_flow.activations import NAMES
from tests.numbers import assert_within_rule, worst_of
from tests.ops.gate import assert_refused
from tests.ops.ode_cases import FIELDS, drawn, signs

pytestmark = pytest.mark.skipif(_native.C is None, reason="the compiled module is missing")
# One row, half a block, blocks that are full or not, several tiles; widths that fill panels and rows of four or not.
SHAPES = {"one row": (1, 4, (8,)), "a few": (5, 5, (7, 9)), "blocks": (70, 6, (12, 12)), "tiles": (333, 3, (16, 24)),
          "one feature": (40, 1, (5, 5)), "wide": (33, 41, (20, 30))}  # fmt: skip
WITH = {name: settings for name, (_, settings) in FIELDS.items() if name != "three layers"}


def called(
    tensors: list[Tensor], dtype: torch.dtype, backend: str, wanted: list[int] | None = None, **settings: Any
) -> list[Tensor]:
    """y, ladj and every gradient, or those that are wanted, in a dtype; of x, context, noise or None, then layers."""
    leaves = [t.detach().to(dtype).requires_grad_(wanted is None or i in wanted) for i, t in enumerate(tensors)]
    x, context, *rest = leaves
    if settings.get("trace") == "hutchinson":
        settings["noise"], *rest = rest
    pairs = list(zip(rest[::2], rest[1::2], strict=True))
    y, ladj = ops.ode_flow(x, pairs, context=context, backend=backend, **settings)
    weights = (torch.linspace(-1, 1.5, t.numel(), dtype=torch.float64).view_as(t).cos().to(t.dtype) for t in (y, ladj))
    of = [t for t in leaves if t.requires_grad]
    return [y.detach(), ladj.detach(), *torch.autograd.grad([y, ladj], of, [*weights])]


def made(rows: int, D: int, hidden: Any, **settings: Any) -> list[Tensor]:
    x, layers, context = drawn(rows, D, hidden, context=2, **settings)
    assert context is not None
    return [x, context, *signs(x, settings).values(), *[t for pair in layers for t in pair]]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", WITH)
@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_numbers(shape, name, solver, isa) -> None:
    rows, D, hidden = SHAPES[shape]
    hidden = () if name == "linear" else hidden[:1] if name == "one layer" else hidden
    settings = {**WITH[name], "solver": solver, "steps": 4}
    tensors = made(rows, D, hidden, **settings)
    exact, single, found, wide = (
        called(tensors, *how, **settings)
        for how in (
            (torch.float64, "reference"), (torch.float32, "reference"), (torch.float32, "cpu"), (torch.float64, "cpu"),
        )
    )  # fmt: skip
    for i, (mine, theirs, truth) in enumerate(zip(found, single, exact, strict=True)):
        assert_within_rule(mine, theirs, truth, f"result {i}", ulps=16)
    for mine, truth in zip(wide, exact, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-11, atol=1e-12 * (1 + truth.abs().max().item()))


@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_activations(activation, trace, isa) -> None:
    settings = {"activation": activation, "trace": trace, "steps": 3, "solver": "rk4"}
    tensors = made(40, 3, (9, 8), scale=2.0, **settings)
    exact, single, found = (
        called(tensors, *how, **settings)
        for how in ((torch.float64, "reference"), (torch.float32, "reference"), (torch.float32, "cpu"))
    )
    if "relu" in activation:  # where rounding tells on which side of 0 a unit is, results differ by more than rounding
        wide = called(tensors, torch.float64, "cpu", **settings)
        torch.testing.assert_close(wide, exact, rtol=1e-10, atol=1e-10)
        return
    draws = [(single, exact)]
    for by in (0.999, 1.001):
        near = [by * tensors[0], *tensors[1:]]
        kinds = (torch.float32, torch.float64)
        draws.append(tuple(called(near, dtype, "reference", **settings) for dtype in kinds))  # type: ignore[arg-type]
    for i, (mine, truth) in enumerate(zip(found, exact, strict=True)):
        theirs = worst_of(truth, [(a[i], b[i]) for a, b in draws])
        assert_within_rule(mine, theirs, truth, f"result {i}", ulps=16)


@pytest.mark.parametrize("name", WITH)
def test_steps_that_rows_choose_are_the_references(name, isa) -> None:
    """In float64, where rounding does not decide: the same steps, so the same numbers and gradients."""
    hidden = FIELDS[name][0]
    settings = {**WITH[name], "solver": "dopri5", "rtol": 1e-4, "atol": 1e-5}
    tensors = made(70, 4, hidden, scale=1.5, **settings)
    found, right = (called(tensors, torch.float64, backend, **settings) for backend in ("cpu", "reference"))
    for mine, truth in zip(found, right, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-8, atol=1e-9 * (1 + truth.abs().max().item()))


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_dopri5_in_float32_errs_as_eager_does(trace) -> None:
    settings = {"time": "sinusoidal", "trace": trace, "solver": "dopri5"}
    tensors = made(200, 4, (16, 16), scale=1.5, **settings)
    tight = called(tensors, torch.float64, "cpu", **{**settings, "rtol": 1e-10, "atol": 1e-11})
    found, single = (called(tensors, torch.float32, backend, **settings) for backend in ("cpu", "reference"))
    for mine, theirs, truth in zip(found, single, tight, strict=True):
        error, of_eager = ((t - truth).abs().max() for t in (mine, theirs))
        assert error <= 2 * of_eager + 16 * torch.finfo(torch.float32).eps * truth.abs().max()


@pytest.mark.parametrize("name", ["two layers", "hutchinson"])
@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
def test_bits_do_not_depend_on_threads_or_neighbours(name, solver) -> None:
    settings = {**WITH[name], "solver": solver, "steps": {"rk4": 5}.get(solver)}
    tensors = made(700, 6, (16, 16), **settings)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = called(tensors, torch.float32, "cpu", **settings)
        torch.set_num_threads(2)
        two = called(tensors, torch.float32, "cpu", **settings)
    finally:
        torch.set_num_threads(before)
    n = 3 + (name == "hutchinson")
    for i in range(n + 1):  # rows; sums of weights are a sum a thread
        assert torch.equal(one[i], two[i]), i
    again = called(tensors, torch.float32, "cpu", **settings)
    assert all(torch.equal(a, b) for a, b in zip(again, one if before == 1 else again, strict=True))
    few = [t[300:333] if i < n - 1 else t for i, t in enumerate(tensors)]
    alone = called(few, torch.float32, "cpu", **settings)
    for i in (0, 1):
        assert torch.equal(alone[i], one[i][300:333])


@pytest.mark.parametrize("name", WITH)
def test_a_gradient_alone_is_that_among_all(name) -> None:
    settings = {**WITH[name], "steps": 3}
    tensors = made(50, 3, FIELDS[name][0], **settings)
    everything = called(tensors, torch.float32, "cpu", **settings)[2:]
    for i in range(len(tensors)):
        (alone,) = called(tensors, torch.float32, "cpu", [i], **settings)[2:]
        torch.testing.assert_close(alone, everything[i], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
def test_layouts(solver) -> None:
    """Strided rows of x and context, weights and gradients that are not dense, a shared context."""
    x, layers, context = drawn(40, 4, (8, 8), context=2)
    assert context is not None
    way: dict[str, Any] = {"solver": solver, "steps": {"rk4": 4}.get(solver)}
    right = ops.ode_flow(x, layers, context=context, backend="cpu", **way)
    strided = torch.randn(40, 9, dtype=torch.float64)
    strided[:, ::2][:, :4] = x
    turned = [(w.T.contiguous().T, b.expand(3, -1)[1]) for w, b in layers]
    for given in (strided[:, ::2][:, :4], x.T.contiguous().T, x.view(4, 10, 4)):
        found = ops.ode_flow(given, turned, context=context.view(*given.shape[:-1], 2), backend="cpu", **way)
        torch.testing.assert_close((found[0].view(40, 4), found[1].view(40)), right)
    of_one = ops.ode_flow(x, layers, context=context[0], backend="cpu", **way)
    torch.testing.assert_close(of_one, ops.ode_flow(x, layers, context=context[:1].expand(40, 2), **way))


def test_what_has_no_kernel_says_so() -> None:
    x, layers, _ = drawn(4, 3, (4, 4, 4))
    with pytest.raises(backends.BackendUnavailableError, match="more than two hidden layers"):
        ops.ode_flow(x, layers, backend="cpu")
    noise = torch.ones_like(x)
    ops.ode_flow(x, layers, trace="hutchinson", noise=noise, backend="cpu")
    deep = drawn(4, 3, [4] * 16)[1]
    with pytest.raises(backends.BackendUnavailableError, match="at most 16 layers"):
        ops.ode_flow(x, deep, trace="hutchinson", noise=noise, backend="cpu")


# ---- the gate ----

SETTINGS = (1, 4, 0.0, 1.0, 1e-5, 1e-6, 6, 0, 0, 0)  # rk4, 4 steps, ..., tanh, product, concat
X, Y, LADJ = torch.randn(5, 3), torch.empty(5, 3), torch.empty(5)
TENSORS = [torch.randn(4, 4), torch.randn(4), torch.randn(3, 4), torch.randn(3), torch.randn(1, 4)]
FORWARD = {"settings": SETTINGS, "x": X, "tensors": TENSORS, "y": Y, "ladj": LADJ, "threads": 1}
BACKWARD = {"settings": SETTINGS, "x": X, "tensors": TENSORS, "grad_y": Y, "grad_ladj": LADJ, "grad_x": X.clone(),
            "grads": [t.clone() for t in TENSORS], "threads": 1}  # fmt: skip


def replaced(i: int, t: Any, name: str = "tensors") -> dict[str, Any]:
    found = list(BACKWARD[name])
    found[i] = t
    return {name: found}


def setting(i: int, value: Any) -> dict[str, Any]:
    return {"settings": (*SETTINGS[:i], value, *SETTINGS[i + 1 :])}


CALLS: dict[str, Any] = {
    "a solver": (setting(0, 3), "solver must be from 0 to 2, got 3"),
    "no steps": (setting(1, 0), "steps must be from 1"),
    "too many steps": (setting(1, 10**6 + 1), "steps must be from 1 to 1000000, got 1000001"),
    "an activation": (setting(6, 8), "activation must be from 0 to 7, got 8"),
    "a trace": (setting(7, 2), "trace must be from 0 to 1, got 2"),
    "a time": (setting(8, 3), "time must be from 0 to 2, got 3"),
    "frequencies": (setting(9, -1), "frequencies must be from 0"),
    "few columns": (setting(8, 2), "layers[0] weight must be [4, 3], got [4, 4]"),
    "few settings": ({"settings": SETTINGS[:9]}, "settings must be 10 entries, got 9"),
    "no x": ({"x": None}, "x must be a tensor, got None"),
    "a vector": ({"x": torch.randn(15)}, "x must be [rows, features], got [15]"),
    "16 bits": ({"x": torch.randn(5, 3).half()}, "x must be float32, got float16"),
    "no rows": ({"x": torch.randn(0, 3)}, "rows must be from 1"),
    "columns of x": ({"x": torch.randn(3, 5).t()}, "x must be of rows without gaps"),
    "other features": ({"x": torch.randn(5, 4)}, "layers[0] weight must be [4, 5], got [4, 4]"),
    "half a layer": ({"tensors": TENSORS[:4]}, "tensors of layers must be two of each, got 3"),
    "no layer": ({"tensors": TENSORS[:1]}, "tensors of layers must be from 2"),
    "no weight": (replaced(0, None), "layers[0] weight must be a tensor, got None"),
    "a vector of weights": (replaced(2, torch.randn(12)), "layers[1] weight must be [out, in], got [12]"),
    "weights with gaps": (replaced(2, torch.randn(4, 3).T), "layers[1] weight must be of rows without gaps"),
    "a short bias": (replaced(1, torch.randn(3)), "layers[0] bias must be [4], got [3]"),
    "a bias by row": (replaced(1, torch.randn(4, 4)), "layers[0] bias must be [5, 4], got [4, 4]"),
    "doubles": (replaced(3, torch.randn(3).double()), "layers[1] bias must be float32, got float64"),
    "a matrix": (replaced(4, torch.randn(4, 1)), "the matrix of the trace must be [1, 4], got [4, 1]"),
    "no thread": ({"threads": 0}, "threads must be from 1 to"),
}  # fmt: skip
FORWARDS: dict[str, Any] = CALLS | {
    "a short y": ({"y": torch.empty(5, 2)}, "y must be of 15 elements, got [5, 2]"),
    "a short ladj": ({"ladj": torch.empty(4)}, "ladj must be of 5 elements, got [4]"),
    "no y": ({"y": None}, "y must be a tensor, got None"),
}
BACKWARDS: dict[str, Any] = {k: v for k, v in CALLS.items() if len(v[0].get("tensors", TENSORS)) == 5} | {
    "a short gradient of y": ({"grad_y": torch.empty(5, 2)}, "grad_y must be of 15 elements"),
    "a short gradient of ladj": ({"grad_ladj": torch.empty(4)}, "grad_ladj must be of 5 elements"),
    "a short gradient of x": ({"grad_x": torch.empty(5, 2)}, "grad_x must be of 15 elements"),
    "few gradients": ({"grads": TENSORS[:4]}, "gradients must be 5 entries, got 4"),
    **{
        f"a long gradient {i}": (replaced(i, torch.empty(t.numel() + 1), "grads"), f"must be of {t.numel()} elements")
        for i, t in enumerate(TENSORS)
    },
}


@pytest.mark.parametrize(("broken", "message"), FORWARDS.values(), ids=FORWARDS)
def test_the_gate_forward(broken, message) -> None:
    assert_refused(_native.C.ode_flow_fwd, FORWARD, broken, message)


@pytest.mark.parametrize(("broken", "message"), BACKWARDS.values(), ids=BACKWARDS)
def test_the_gate_backward(broken, message) -> None:
    assert_refused(_native.C.ode_flow_bwd, BACKWARD, broken, message)


def test_calls_that_pass_the_gate() -> None:
    _native.C.ode_flow_fwd(*FORWARD.values())
    _native.C.ode_flow_bwd(*BACKWARD.values())
    assert Y.isfinite().all() and all(t.isfinite().all() for t in BACKWARD["grads"])

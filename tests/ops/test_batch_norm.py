"""Batch norm by the batch's statistics with an activation behind it: values and gradients against torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flowkernels import _native, ops
from flowkernels.ops.net.activations import CODES, FUNCTIONS
from tests.numbers import assert_within_rule
from tests.ops.gate import assert_refused, told

SHAPES = {"two": (2, 40), "a few": (3, 5), "no whole vector": (70, 13), "many rows": (20_001, 3), "usual": (333, 64),
          "wide": (65, 515)}  # fmt: skip
EPS = 1e-3


def drawn(shape: tuple[int, int], dtype: torch.dtype, off: float = 2.0) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*s, generator=g) for s in (shape, shape[1:], shape[1:]))
    return [t.to(dtype) for t in (3 * x + off, weight, bias)]


def found(tensors: list[Tensor], activation: str, backend: str | None, dtype: torch.dtype) -> list[Tensor]:
    """Values, statistics and every gradient in a dtype; backend None: torch's own."""
    leaves = [t.to(dtype, copy=True).requires_grad_() for t in tensors]
    x, weight, bias = leaves
    if backend is None:
        y = FUNCTIONS[activation](F.batch_norm(x, None, None, weight, bias, True, 0.0, EPS))
        mean, var = x.mean(0), x.var(0, correction=0)
    else:
        y, mean, var = ops.batch_norm(x, weight, bias, eps=EPS, activation=activation, backend=backend)
    g = torch.linspace(-1, 1.5, y.numel()).view_as(y).cos().to(dtype)
    return [y.detach(), mean.detach(), var.detach(), *torch.autograd.grad(y, leaves, g)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", FUNCTIONS)
def test_numbers(shape, activation, isa) -> None:
    tensors = drawn(SHAPES[shape], torch.float32)
    exact = found(tensors, activation, None, torch.float64)
    names = ("y", "mean", "var", "grad x", "grad weight", "grad bias")
    for backend in ("cpu", "reference"):
        mine, theirs = (found(tensors, activation, b, torch.float32) for b in (backend, None))
        for a, b, c, name in zip(mine, theirs, exact, names, strict=True):
            assert_within_rule(a, b, c, name, ulps=8)
        torch.testing.assert_close(found(tensors, activation, backend, torch.float64), exact, rtol=1e-10, atol=1e-10)


def test_a_column_that_is_the_same_in_every_row(isa) -> None:
    """0 times a scale that no float32 holds is 0."""
    x, weight, bias = (torch.full(s, v).requires_grad_() for s, v in (((8, 3), 0.4532), ((3,), 0.3), ((3,), -0.2)))
    y = ops.batch_norm(x, weight, bias, eps=1e-300, backend="cpu")[0]
    assert torch.equal(y, bias.expand(8, 3))
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(y.sum(), [x, weight, bias]))


@pytest.mark.parametrize("off", [0.0, 1e3, -1e5])
def test_statistics_far_from_zero(off, isa) -> None:
    """Squares are summed about each chain's own mean: nothing is lost where the mean is large; and what the mean itself
    lost when it was rounded is not in y."""
    tensors = drawn((1000, 20), torch.float32, off)
    y, mean, var, *_ = found(tensors, "identity", "cpu", torch.float32)
    exact = tensors[0].double()
    of_y = found(tensors, "identity", None, torch.float64)[0]
    torch.testing.assert_close(y.double(), of_y, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(mean.double(), exact.mean(0), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(var.double(), exact.var(0, correction=0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_16_bits_compute_in_float32(narrow) -> None:
    tensors = drawn((50, 7), narrow)
    wide = found([t.float() for t in tensors], "elu", "cpu", torch.float32)
    mine = found(tensors, "elu", "cpu", narrow)
    assert torch.equal(mine[0], wide[0].to(narrow)) and torch.equal(mine[2], wide[2].to(narrow))


def test_the_same_bits_on_any_number_of_threads(isa, threads) -> None:
    tensors, bits = drawn((5000, 33), torch.float32), []
    for n in (1, 1, 2, 3):
        threads(n)
        bits.append(found(tensors, "elu", "cpu", torch.float32))
    for other in bits[1:]:
        assert all(map(torch.equal, bits[0], other))


def test_gradients_of_the_statistics() -> None:
    leaves = [t.requires_grad_() for t in drawn((9, 4), torch.float64)]
    given = [torch.randn(s, dtype=torch.float64) for s in [(9, 4), (4,), (4,)]]
    grads = []
    for backend in ("cpu", "reference"):
        outputs = ops.batch_norm(*leaves, activation="tanh", backend=backend)
        grads += [torch.autograd.grad(outputs, leaves, given, retain_graph=True),
                  torch.autograd.grad(outputs[1:], leaves[:1], given[1:])]  # fmt: skip
    torch.testing.assert_close(grads[:2], grads[2:], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("activation", ["elu", "silu"])
def test_gradcheck_and_transforms(activation) -> None:
    leaves = [t.requires_grad_() for t in drawn((5, 3), torch.float64)]

    def f(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.batch_norm(x, weight, bias, eps=EPS, activation=activation)[0]

    torch.autograd.gradcheck(f, leaves)
    torch.autograd.gradgradcheck(f, leaves)
    rest = [t.detach() for t in leaves[1:]]
    x = leaves[0].detach()
    both = torch.func.vmap(lambda v: f(v, *rest))(torch.stack((x, 2 * x)))
    torch.testing.assert_close(both, torch.stack((f(x, *rest), f(2 * x, *rest))))
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*leaves), f(*leaves))


def test_the_library_op() -> None:
    given = [t.requires_grad_() for t in drawn((5, 3), torch.float64)]
    torch.library.opcheck(torch.ops.flowkernels.batch_norm.default, (*given, EPS, "elu", "cpu"))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_only_some_gradients_wanted(wanted) -> None:
    tensors = drawn((70, 13), torch.float64)
    for i in wanted:
        tensors[i].requires_grad_()
    some = [tensors[i] for i in wanted]
    grads = [
        torch.autograd.grad(ops.batch_norm(*tensors, activation="elu", backend=b)[0].square().sum(), some)
        for b in ("cpu", "reference")
    ]
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("view", ["every other row", "transposed", "negative"])
def test_a_view_gives_the_bits_of_its_copy(view) -> None:
    x, weight, bias = drawn((40, 6), torch.float64)
    views = {"every other row": x[::2], "transposed": x[:6].t(), "negative": torch.complex(x, x).conj().imag}
    v = views[view]
    weight, bias = weight[: v.shape[1]], bias[: v.shape[1]]
    for a, b in zip(ops.batch_norm(v, weight, bias), ops.batch_norm(v.clone(), weight, bias), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.ones(3)}, ValueError, r"x must be \[B, D\], got \[3\]"),
        ({"x": torch.ones(1, 4)}, ValueError, "x must have at least two rows, got 1"),
        ({"weight": torch.ones(3)}, ValueError, r"weight must be \[4\], got \[3\]"),
        ({"bias": torch.ones(4).double()}, TypeError, "bias must be of the dtype of x = torch.float32"),
        ({"activation": "softsign"}, ValueError, "activation must be one of"),
        ({"eps": 0.0}, ValueError, "eps must be"),
    ],
)
def test_errors(change, error, message) -> None:
    given: dict[str, Any] = {"x": torch.ones(3, 4), "weight": torch.ones(4), "bias": torch.ones(4), **change}
    with pytest.raises(error, match="ops.batch_norm: " + message):
        ops.batch_norm(**given)


# ---- the gate in C++ ----

R = torch.zeros
FORWARD: dict[str, Any] = {
    "activation": CODES["elu"], "eps": EPS, "x": R(5, 3), "weight": R(3), "bias": R(3), "y": R(5, 3), "mean": R(3),
    "var": R(3),
}  # fmt: skip
BACKWARD: dict[str, Any] = {"grad_y": R(5, 3), "grad_x": R(5, 3), "grad_weight": R(3), "grad_bias": R(3)}
WRONG = {
    "no x": ({"x": None}, "x must be a tensor, got None"),
    "a row": ({"x": R(3)}, "x must be [rows, columns], got [3]"),
    "no rows": ({"x": R(0, 3)}, "rows must be from 1"),
    "no columns": ({"x": R(5, 0)}, "columns must be from 1"),
    "integers": ({"x": R(5, 3).int()}, "x must be float32, got int32"),
    "gaps": ({"x": R(5, 6)[:, :3]}, "x must be contiguous"),
    "too many": ({"x": told(R(1, 1), shape=(2**40, 2**30), stride=(2**30, 1))}, "a product of sizes below 2**63"),
    "an activation": ({"activation": 7}, "activation must be from 0 to 6, got 7"),
    "a short weight": ({"weight": R(2)}, "weight must be [3], got [2]"),
    "a bias of doubles": ({"bias": R(3).double()}, "bias must be float32, got float64"),
    "a short y": ({"y": R(4, 3)}, "y must be [5, 3], got [4, 3]"),
    "a long mean": ({"mean": R(4)}, "mean must be [3], got [4]"),
    "no var": ({"var": None}, "var must be a tensor, got None"),
    "no thread": ({"threads": 0}, "threads must be from 1 to"),
}
WRONG_BACK = WRONG | {
    "no gradient": ({"grad_y": None}, "grad_y must be a tensor, got None"),
    "a short gradient of x": ({"grad_x": R(5, 2)}, "grad_x must be [5, 3], got [5, 2]"),
    "a short gradient of weight": ({"grad_weight": R(2)}, "grad_weight must be [3], got [2]"),
    "a long gradient of bias": ({"grad_bias": R(5)}, "grad_bias must be [3], got [5]"),
}


@pytest.mark.parametrize("case", WRONG_BACK)
def test_the_gate(case) -> None:
    ways = [(_native.C.batch_norm_bwd, FORWARD | BACKWARD | {"threads": 1})]
    if case in WRONG:
        ways.append((_native.C.batch_norm_fwd, FORWARD | {"threads": 1}))
    for entry, arguments in ways:
        entry(*arguments.values())
        assert_refused(entry, arguments, *WRONG_BACK[case])

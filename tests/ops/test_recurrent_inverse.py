"""The recurrent inverse: its definition by torch's cell, the CPU's kernel on every size of tile, its gate, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowkernels import _native, ops
from flowkernels.ops import RQS, Affine, Mixture
from flowkernels.ops.univariate import Map
from tests.numbers import assert_within_rule
from tests.ops.gate import assert_refused, layers, net_of

needs_kernel = pytest.mark.skipif(_native.C is None, reason="the compiled module is missing")
MAPS: dict[str, Map] = {"affine": Affine("exp"), "spline": RQS(bins=5), "mixture": Mixture(3)}
# Rows of a few, of half a block, of a block and of several tiles; units that fill panels and that do not.
SHAPES = {"one row": (1, 4, 3), "a few": (4, 5, 8), "half a block": (7, 3, 17), "a block": (32, 6, 12),
          "tiles": (333, 5, 24), "one feature": (50, 1, 4)}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread(one_thread) -> None:
    """Small tensors: a second thread costs more than it gives."""


def drawn(rows: int, D: int, H: int, univariate: Map, shared: bool = False) -> list[Tensor]:
    """z and the tensors behind it, in float64; of a shared start all rows have one state and one input to the gates."""
    g = torch.Generator().manual_seed(rows + D)
    lead = () if shared else (rows,)
    shapes = [(rows, D), (*lead, H), (*lead, 3 * H), (3 * H,), (3 * H, H), (3 * H,), (univariate.n_params, H)]
    scales = (1, 1, 1, 0.7, H**-0.5, 0.3, H**-0.5)
    found = [s * torch.randn(shape, generator=g, dtype=torch.float64) for s, shape in zip(scales, shapes, strict=True)]
    return [*found, torch.tensor(univariate.identity, dtype=torch.float64)]


def called(tensors: list[Tensor], univariate: Map, dtype: torch.dtype, backend: str | None) -> list[Tensor]:
    """x and ladj."""
    z, state, gates, value, *rest = (t.to(dtype) for t in tensors)
    cell, last = (rest[0], rest[1]), (rest[2], rest[3])
    return [*ops.recurrent_inverse(z, state, gates, value, cell, last, univariate, backend=backend)]


@pytest.mark.parametrize("shared", [False, True], ids=["rows", "shared"])
@pytest.mark.parametrize("univariate", MAPS.values(), ids=MAPS)
def test_is_the_inverse_of_torchs_gru(univariate, shared) -> None:
    tensors = drawn(6, 4, 5, univariate, shared)
    z, state, gates, value, weight, bias, last, last_bias = tensors
    x, ladj = called(tensors, univariate, torch.float64, "reference")
    # A GRU whose input weights read x_i and a one-hot of the row, which brings the row's gates.
    cell = nn.GRUCell(1 + 6, 5).double()
    of_rows = gates.expand(6, 15)
    with torch.no_grad():
        cell.weight_ih.copy_(torch.cat((value[:, None], of_rows.t()), 1))
        cell.bias_ih.zero_()
        cell.weight_hh.copy_(weight)
        cell.bias_hh.copy_(bias)
    s, params = state.expand(6, 5), []
    for i in range(4):
        params.append(nn.functional.linear(s, last, last_bias))
        s = cell(torch.cat((x[:, i : i + 1], torch.eye(6, dtype=torch.float64)), 1), s)
    back, of_forward = univariate(x, torch.stack(params, 1))
    torch.testing.assert_close(back, z, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(of_forward, -ladj, rtol=1e-8, atol=1e-8)


def with_gradients(tensors: list[Tensor], univariate: Map, dtype: torch.dtype, backend: str | None) -> list[Tensor]:
    """x, ladj and the gradients of all tensors."""
    leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
    out = called(leaves, univariate, dtype, backend)
    weights = [torch.linspace(-1, 1.5, t.numel(), dtype=torch.float64).view_as(t).cos().to(t.dtype) for t in out]
    return [*(t.detach() for t in out), *torch.autograd.grad(out, leaves, weights, materialize_grads=True)]


@needs_kernel
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MAPS)
def test_numbers_of_the_kernel(name, shape, isa) -> None:
    univariate, sizes = MAPS[name], SHAPES[shape]
    tensors = drawn(*sizes, univariate, shared=shape in ("a few", "a block"))
    exact, single, found, wide = (
        with_gradients(tensors, univariate, *how)
        for how in (
            (torch.float64, "reference"), (torch.float32, "reference"), (torch.float32, "cpu"), (torch.float64, "cpu"),
        )
    )  # fmt: skip
    for i, (mine, theirs, truth) in enumerate(zip(found, single, exact, strict=True)):
        assert_within_rule(mine, theirs, truth, f"result {i}", ulps=16)
    for mine, truth in zip(wide, exact, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-9, atol=1e-9 * (1 + truth.abs().max().item()))


@needs_kernel
@pytest.mark.parametrize("wanted", [[0], [1], [2], [3], [4], [7], [0, 6]], ids=str)
def test_some_gradients_alone(wanted) -> None:
    tensors = drawn(40, 4, 6, MAPS["spline"])
    every = with_gradients(tensors, MAPS["spline"], torch.float64, "cpu")[2:]
    for which in (0, 1):  # through x, through ladj
        leaves = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
        whole = [t.clone().requires_grad_() for t in tensors]
        found, right = (
            torch.autograd.grad(called(given, MAPS["spline"], torch.float64, "cpu")[which].sin().sum(),
                                [given[i] for i in wanted])
            for given in (leaves, whole)
        )  # fmt: skip
        assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))
    assert len(every) == len(tensors)


@needs_kernel
def test_backward_reads_what_was_found_and_not_what_was_written_since() -> None:
    tensors = [t.requires_grad_() for t in drawn(9, 3, 4, MAPS["affine"])]
    right = torch.autograd.grad(called(tensors, MAPS["affine"], torch.float64, "cpu")[0].sum(), tensors)
    x, _ = called(tensors, MAPS["affine"], torch.float64, "cpu")
    total = x.sum()
    with torch.no_grad():
        x.zero_()
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(total, tensors), right, strict=True))


@needs_kernel
def test_a_row_is_the_same_in_any_batch_and_with_any_threads() -> None:
    tensors = drawn(200, 4, 9, MAPS["spline"])
    x, ladj = called(tensors, MAPS["spline"], torch.float32, "cpu")
    some = [t[40:90] if i < 3 else t for i, t in enumerate(tensors)]
    assert torch.equal(called(some, MAPS["spline"], torch.float32, "cpu")[0], x[40:90])
    torch.set_num_threads(3)  # the fixture sets it back
    again = called(tensors, MAPS["spline"], torch.float32, "cpu")
    assert torch.equal(again[0], x) and torch.equal(again[1], ladj)
    tensors = drawn(2000, 3, 9, MAPS["spline"])
    grads = [with_gradients(tensors, MAPS["spline"], torch.float64, backend) for backend in ("cpu", "reference")]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * (1 + b.abs().max().item()))


@pytest.mark.parametrize("name", ["affine", "spline"])
def test_derivatives(name) -> None:
    tensors = [t.requires_grad_() for t in drawn(2, 3, 2, MAPS[name])]

    def call(*leaves: Tensor) -> tuple[Tensor, ...]:
        return tuple(called([*leaves], MAPS[name], torch.float64, None))

    assert torch.autograd.gradcheck(call, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
def test_16_bits_are_computed_in_32(kind) -> None:
    dtype: torch.dtype = kind
    tensors = [t.to(dtype) for t in drawn(9, 3, 8, MAPS["affine"])]
    x, ladj = called(tensors, MAPS["affine"], dtype, None)
    exact, _ = called(tensors, MAPS["affine"], torch.float64, "reference")
    assert x.dtype is dtype and ladj.dtype is torch.float32
    if _native.C is not None:
        torch.testing.assert_close(x.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


def test_a_bad_value_stays_in_its_row() -> None:
    for rows in (3, 40):
        tensors = drawn(rows, 4, 6, MAPS["affine"])
        clean = called(tensors, MAPS["affine"], torch.float32, None)
        tensors[0][1, 1] = float("nan")
        found = called(tensors, MAPS["affine"], torch.float32, None)
        others = [i for i in range(rows) if i != 1]
        assert all(torch.equal(a[others], b[others]) for a, b in zip(found, clean, strict=True))
        assert found[0][1, 1:].isnan().all() and found[1][1].isnan() and torch.equal(found[0][1, 0], clean[0][1, 0])


def test_leading_dims_and_no_rows() -> None:
    tensors = drawn(12, 3, 4, MAPS["affine"], shared=True)
    x, ladj = called(tensors, MAPS["affine"], torch.float32, None)
    lead = called([tensors[0].view(2, 6, 3), *tensors[1:]], MAPS["affine"], torch.float32, None)
    assert torch.equal(lead[0], x.view(2, 6, 3)) and torch.equal(lead[1], ladj.view(2, 6))
    none = called([tensors[0][:0], *tensors[1:]], MAPS["affine"], torch.float32, None)
    assert none[0].shape == (0, 3) and none[1].shape == (0,)


def test_transforms_and_compilers() -> None:
    z, *rest = drawn(5, 2, 4, MAPS["affine"], shared=True)

    def call(v: Tensor) -> tuple[Tensor, Tensor]:
        x, ladj = called([v, *rest], MAPS["affine"], torch.float64, None)
        return x, ladj

    wanted = call(z)
    torch.testing.assert_close(torch.func.vmap(call)(z), wanted)
    J = torch.func.jacfwd(lambda v: call(v)[0])(z[0])
    torch.testing.assert_close(torch.linalg.slogdet(J)[1], wanted[1][0])
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(call, backend="aot_eager", fullgraph=True)(z), wanted)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("at", "instead", "error", "message"),
    [
        ("z", 3, TypeError, "z must be a tensor"),
        ("z", torch.zeros(5, 0), ValueError, r"z must be \[..., D\] with D from 1 on, got \[5, 0\]"),
        ("state", torch.zeros(()), ValueError, r"state must be \[..., H\] with H from 1 on, got \[\]"),
        ("state", torch.zeros(4, 2), ValueError, r"state must broadcast to \[5, 2\], got \[4, 2\]"),
        ("gates", torch.zeros(5), ValueError, r"gates must broadcast to \[5, 6\], got \[5\]"),
        ("value", torch.zeros(6, 1), ValueError, r"value must be \[6\], got \[6, 1\]"),
        ("value", torch.zeros(6).double(), TypeError, "value must be of the dtype of z = torch.float32"),
        ("cell", 3, TypeError, r"cell must be \(weight, bias\), got 3"),
        ("cell", (torch.zeros(6, 3), torch.zeros(6)), ValueError, r"cell weight must be \[6, 2\], got \[6, 3\]"),
        ("last", (torch.zeros(2, 2), torch.zeros(3)), ValueError, r"last bias must be \[2\], got \[3\]"),
        ("last", (torch.zeros(3, 2), torch.zeros(3)), ValueError, r"last weight must be \[2, 2\], got \[3, 2\]"),
        ("univariate", 3, TypeError, "univariate must be a map of one feature"),
        ("univariate", Affine(inverse=True), ValueError, "univariate must be of the direction x → z"),
    ],
)  # fmt: skip
def test_errors(at, instead, error, message) -> None:
    given: dict[str, Any] = {
        "z": torch.zeros(5, 3), "state": torch.zeros(2), "gates": torch.zeros(6), "value": torch.zeros(6),
        "cell": (torch.zeros(6, 2), torch.zeros(6)), "last": (torch.zeros(2, 2), torch.zeros(2)),
        "univariate": Affine(),
    }  # fmt: skip
    with pytest.raises(error, match=rf"^ops\.recurrent_inverse: {message}"):
        ops.recurrent_inverse(**{**given, at: instead})


R, ROWS, H = torch.zeros, 5, 2


def net(*sizes: tuple[int, int], rows: int = ROWS, last: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    return net_of(_native.C, layers(*sizes, dtype=dtype), rows, False, 1, last)


REFUSED: dict[str, tuple[Any, str]] = {
    "a cell of other outputs": (lambda: {"cell": net((5, 2))}, "weight of the cell must be [6, 2], got [5, 2]"),
    "a cell of two layers": (lambda: {"cell": net((2, 2), (6, 2))}, "the cell must be one layer without a mask"),
    "a last layer of other inputs": (lambda: {"last": net((2, 3))}, "the last layer must be [2, 2], got [2, 3]"),
    "another activation": (lambda: {"last": net((2, 2), last=1)}, "the last layer must be one layer without a mask"),
    "parameters of another map": (lambda: {"last": net((3, 2))}, "the last layer must be [2, 2], got [3, 2]"),
    "doubles": (lambda: {"last": net((2, 2), dtype=torch.float64)}, "the last layer must be float32, got float64"),
    "fewer rows": (lambda: {"last": net((2, 2), rows=4)}, "rows of the last layer must be from 5 to 5, got 4"),
    "no z": (lambda: {"z": None}, "z must be a tensor, got None"),
    "a vector z": (lambda: {"z": R(15)}, "z must be [rows, features], got [15]"),
    "no features": (lambda: {"z": R(ROWS, 0)}, "features must be from 1 to"),
    "fewer rows of z": (lambda: {"z": R(4, 3)}, "z must be [5, 3], got [4, 3]"),
    "a short state": (lambda: {"state": R(ROWS, 1)}, "state must be [5, 2], got [5, 1]"),
    "short gates": (lambda: {"gates": R(ROWS, 4)}, "gates must be [5, 6], got [5, 4]"),
    "a short value": (lambda: {"value": R(4)}, "value must be [6], got [4]"),
    "a value with gaps": (lambda: {"value": R(12)[::2]}, "value must be contiguous, got strides [2]"),
    "a short x": (lambda: {"x": R(ROWS, 2)}, "x must be of 15 elements, got [5, 2]"),
    "a short ladj": (lambda: {"ladj": R(4)}, "ladj must be of 5 elements, got [4]"),
    "no thread": (lambda: {"threads": 0}, "threads must be from 1 to"),
}  # fmt: skip


def arguments() -> dict[str, Any]:
    return {
        "cell": net((3 * H, H)), "last": net((2, H)), "map": Affine("exp").inverted().handle(_native.C),
        "z": R(ROWS, 3), "state": R(ROWS, H), "gates": R(ROWS, 3 * H), "value": R(3 * H), "x": R(ROWS, 3),
    }  # fmt: skip


@needs_kernel
@pytest.mark.parametrize("case", REFUSED)
def test_the_gate(case) -> None:
    given = {**arguments(), "ladj": R(ROWS), "threads": 1}
    _native.C.recurrent_inverse_fwd(*given.values())
    broken, message = REFUSED[case]
    assert_refused(_native.C.recurrent_inverse_fwd, given, broken(), message)


GRADS = {"grad_x": 3, "grad_ladj": 1, "grad_z": 3, "grad_state": H, "grad_gates": 3 * H, "grad_value": 3 * H}


@needs_kernel
@pytest.mark.parametrize("name", GRADS)
def test_the_gate_of_the_way_back(name) -> None:
    given = {**arguments(), **{grad: R(ROWS, n) for grad, n in GRADS.items()}, "threads": 1}
    _native.C.recurrent_inverse_bwd(*given.values())
    _native.C.recurrent_inverse_bwd(*{**given, name: None}.values())
    message = f"recurrent_inverse: {name} must be of {ROWS * GRADS[name]} elements, got [4, {GRADS[name]}]"
    assert_refused(_native.C.recurrent_inverse_bwd, given, {name: R(4, GRADS[name])}, message)
    doubles = R(ROWS, GRADS[name]).double()
    message = f"recurrent_inverse: {name} must be float32, got float64"
    assert_refused(_native.C.recurrent_inverse_bwd, given, {name: doubles}, message)

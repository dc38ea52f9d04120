"""The CPU's kernel of planar, radial and Sylvester maps: its numbers, its groups of rows, and the gate before it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flowkernels import _native, ops
from tests.numbers import assert_within_rule
from tests.ops.gate import assert_refused, told
from tests.ops.low_rank_cases import WAYS, drawn

pytestmark = pytest.mark.skipif(_native.C is None, reason="the compiled module is missing")
# Rows of less than a block, of a block, of several and of several groups; features and units that fill fours or not.
SHAPES = {
    "one row": (1, 4, 3, 2), "a few": (5, 5, 4, 3), "a block": (32, 6, 5, 2), "one feature": (40, 1, 1, 3),
    "blocks": (333, 7, 4, 2), "groups": (1500, 3, 2, 2), "wide": (70, 41, 6, 1),
}  # fmt: skip


def called(
    tensors: list[Tensor], dtype: torch.dtype, backend: str | None, wanted: list[int] | None = None, **settings: Any
) -> list[Tensor]:
    """y, ladj and every gradient, or those that are wanted, in a dtype."""
    leaves = [t.detach().to(dtype).requires_grad_(wanted is None or i in wanted) for i, t in enumerate(tensors)]
    y, ladj = ops.low_rank(leaves[0], leaves[1:], backend=backend, **settings)
    weights = (torch.linspace(-1, 1.5, t.numel(), dtype=torch.float64).view_as(t).cos().to(t.dtype) for t in (y, ladj))
    of = [t for t in leaves if t.requires_grad]
    return [y.detach(), ladj.detach(), *torch.autograd.grad([y, ladj], of, [*weights])]


def orthonormal(kind: str, params: list[Tensor], settings: dict[str, Any]) -> tuple[list[Tensor], dict[str, Any]]:
    """Q itself, so that what is compared is the kernel and no QR."""
    if kind != "sylvester":
        return params, settings
    return [torch.linalg.qr(params[0])[0], *params[1:]], {**settings, "orthogonal": None}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("by_row", [False, True], ids=["shared", "by row"])
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_numbers(shape, way, by_row, inverse, isa) -> None:
    rows, D, M, n = SHAPES[shape]
    x, params = drawn(way["kind"], rows, D, M, lead=(rows,) * by_row, layers=n, scale=0.5)
    params, settings = orthonormal(way["kind"], params, way)
    tensors = [x, *params]
    if inverse:
        tensors[0] = ops.low_rank(x, params, backend="reference", **settings)[0]
    settings = {**settings, "inverse": inverse}
    exact, single, found, wide = (
        called(tensors, *how, **settings)
        for how in (
            (torch.float64, "reference"), (torch.float32, "reference"), (torch.float32, "cpu"), (torch.float64, "cpu"),
        )
    )  # fmt: skip
    for i, (mine, theirs, truth) in enumerate(zip(found, single, exact, strict=True)):
        assert_within_rule(mine, theirs, truth, f"result {i}", ulps=16)
    for mine, truth in zip(wide, exact, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-10, atol=1e-12 * (1 + truth.abs().max().item()))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("by_row", [False, True], ids=["shared", "by row"])
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_bits_do_not_depend_on_threads_or_neighbours(way, by_row, inverse) -> None:
    x, params = drawn(way["kind"], 3000, 6, 3, lead=(3000,) * by_row)
    tensors = [x, *params]
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(called(tensors, torch.float32, "cpu", inverse=inverse, **way))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    some = [t[37:170] for t in tensors] if by_row else [x[37:170], *params]
    found = ops.low_rank(some[0].float(), [p.float() for p in some[1:]], inverse=inverse, **way)
    assert all(torch.equal(a, b[37:170]) for a, b in zip(found, results[0], strict=False))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("by_row", [False, True], ids=["shared", "by row"])
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_only_what_is_wanted(way, by_row, inverse) -> None:
    """Each gradient by itself is what it is among all; and so is that of one output."""
    x, params = drawn(way["kind"], 40, 4, 3, lead=(40,) * by_row)
    tensors = [x, *params]
    together = called(tensors, torch.float64, "cpu", inverse=inverse, **way)[2:]
    for i, right in enumerate(together):
        alone = called(tensors, torch.float64, "cpu", [i], inverse=inverse, **way)[2]
        torch.testing.assert_close(alone, right, rtol=1e-13, atol=1e-13)
    leaves = [t.requires_grad_() for t in tensors]
    outputs = [ops.low_rank(leaves[0], leaves[1:], inverse=inverse, **way) for _ in range(3)]
    of_y = torch.autograd.grad(outputs[0][0].sum(), leaves)
    of_ladj = torch.autograd.grad(outputs[1][1].sum(), leaves)
    both = torch.autograd.grad(outputs[2][0].sum() + outputs[2][1].sum(), leaves)
    for a, b, c in zip(of_y, of_ladj, both, strict=True):
        torch.testing.assert_close(a + b, c, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("by_row", [False, True], ids=["shared", "by row"])
def test_gradients_of_an_inverse_that_all_but_folds(by_row, isa) -> None:
    """w u of -8 and less: slopes of thousands and more, of which nothing may cancel on its way to u and w."""
    g, D = torch.Generator().manual_seed(16), 16
    lead = (64,) * by_row
    tensors = [torch.randn(*s, generator=g) for s in ((64, D), (*lead, 5, D), (*lead, 5, D), (*lead, 5))]
    tensors[1] -= 0.5 * tensors[2]
    settings: dict[str, Any] = {"kind": "planar", "activation": "leaky_relu", "inverse": True}
    exact = called(tensors, torch.float64, "cpu", **settings)
    for name, mine, truth in zip("ylxuwb", called(tensors, torch.float32, "cpu", **settings), exact, strict=True):
        error = (mine.double() - truth).norm() / truth.norm()
        assert error < 1e-4, (name, error)


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_what_is_kept_for_backward_are_the_inputs(inverse) -> None:
    x, params = drawn("planar", 64, 5, 1)
    leaves = [t.requires_grad_() for t in (x, *params)]
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ops.low_rank(leaves[0], leaves[1:], kind="planar", inverse=inverse)
    given = {t.data_ptr() for t in leaves}
    assert kept and all(t.data_ptr() in given for t in kept)


# ---- the gate in C++ ----

R = torch.zeros
# kind, activation, negative slope, whether alpha is abs, inverse, shared, layers, width
PLANAR: Any = (0, 0, 0.2, False, False, True, 2, 1)
SYLVESTER: Any = (2, 0, 0.2, False, False, False, 2, 2)
OF_PLANAR = [R(1, 6), R(1, 6), R(1, 2)]
OF_SYLVESTER = [R(5, 12), R(5, 8), R(5, 8), R(5, 4)]
FORWARD: dict[str, Any] = {
    "settings": PLANAR, "x": R(5, 3), "params": OF_PLANAR, "y": R(5, 3), "ladj": R(5), "threads": 1,
}  # fmt: skip
BACKWARD: dict[str, Any] = {
    "settings": PLANAR, "x": R(5, 3), "params": OF_PLANAR, "grad_y": R(5, 3), "grad_ladj": R(5), "grad_x": R(5, 3),
    "grads": [t.clone() for t in OF_PLANAR], "threads": 1,
}  # fmt: skip


def setting(i: int, value: Any) -> dict[str, Any]:
    return {"settings": (*PLANAR[:i], value, *PLANAR[i + 1 :])}


def replaced(i: int, t: Any, name: str = "params") -> dict[str, Any]:
    found = list(BACKWARD[name])
    found[i] = t
    return {name: found}


CALLS: dict[str, Any] = {
    "a kind": (setting(0, 3), "kind must be from 0 to 2, got 3"),
    "an activation": (setting(1, 2), "activation must be from 0 to 1, got 2"),
    "no layers": (setting(6, 0), "layers must be from 1"),
    "a wide planar": (setting(7, 2), "width must be from 1 to 1, got 2"),
    "a wide one": (
        {"settings": (*SYLVESTER[:7], 4), "params": OF_SYLVESTER}, "width must be from 1 to 3, got 4"
    ),
    "few settings": ({"settings": PLANAR[:-1]}, "settings must be 8 entries, got 7"),
    "no x": ({"x": None}, "x must be a tensor, got None"),
    "a vector": ({"x": R(15)}, "x must be [rows, features], got [15]"),
    "16 bits": ({"x": R(5, 3).half()}, "x must be float32, got float16"),
    "no rows": ({"x": R(0, 3)}, "rows must be from 1"),
    "no features": ({"x": R(5, 0)}, "features must be from 1"),
    "columns of x": ({"x": R(3, 5).t()}, "x must be of rows without gaps"),
    "few parameters": ({"params": OF_PLANAR[:2]}, "the number of parameters must be from 3 to 3, got 2"),
    "many parameters": ({"params": OF_PLANAR * 2}, "the number of parameters must be from 1 to 4, got 6"),
    "no parameter": (replaced(1, None), "w must be a tensor, got None"),
    "parameters by row": (replaced(0, R(5, 6)), "u must be [1, 6], got [5, 6]"),
    "shared ones": ({"settings": (*PLANAR[:5], False, *PLANAR[6:])}, "u must be [5, 6], got [1, 6]"),
    "a short parameter": (replaced(2, R(1, 1)), "b must be [1, 2], got [1, 1]"),
    "doubles": (replaced(1, R(1, 6).double()), "w must be float32, got float64"),
    "a parameter with gaps": (replaced(0, R(1, 12)[:, ::2]), "u must be of rows without gaps"),
    "too many numbers": (
        {"settings": (*PLANAR[:6], 2**31 - 1, 1), "x": told(R(1, 1), shape=(2**40, 3), stride=(0, 1))},
        "rows times numbers of a row must be a product of sizes below 2**63",
    ),
    "no thread": ({"threads": 0}, "threads must be from 1 to"),
}  # fmt: skip
FORWARDS: dict[str, Any] = CALLS | {
    "a short y": ({"y": R(4, 3)}, "y must be of 15 elements, got [4, 3]"),
    "a short ladj": ({"ladj": R(4)}, "ladj must be of 5 elements, got [4]"),
}
BACKWARDS: dict[str, Any] = {k: v for k, v in CALLS.items() if len(v[0].get("params", OF_PLANAR)) == 3} | {
    "a short gradient of y": ({"grad_y": R(4, 3)}, "grad_y must be of 15 elements"),
    "a long gradient of ladj": ({"grad_ladj": R(6)}, "grad_ladj must be of 5 elements"),
    "a gradient of x with gaps": ({"grad_x": R(5, 6)[:, :3]}, "grad_x must be contiguous"),
    "few gradients": ({"grads": OF_PLANAR[:2]}, "gradients must be 3 entries, got 2"),
    "a short gradient": (replaced(0, R(1, 5), "grads"), "the gradient of u must be of 6 elements, got [1, 5]"),
    "a gradient of doubles": (replaced(2, R(1, 2).double(), "grads"), "the gradient of b must be float32"),
}


@pytest.mark.parametrize("case", FORWARDS)
def test_the_gate_of_a_call(case) -> None:
    _native.C.low_rank_fwd(*FORWARD.values())
    _native.C.low_rank_fwd(SYLVESTER, R(5, 3), OF_SYLVESTER, R(5, 3), R(5), 1)
    assert_refused(_native.C.low_rank_fwd, FORWARD, *FORWARDS[case])


@pytest.mark.parametrize("case", BACKWARDS)
def test_the_gate_of_a_backward_pass(case) -> None:
    _native.C.low_rank_bwd(*BACKWARD.values())
    assert_refused(_native.C.low_rank_bwd, BACKWARD, *BACKWARDS[case])

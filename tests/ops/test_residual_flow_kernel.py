"""The CPU's kernel of residual maps: its numbers, its tiles, what it keeps, and the gate in front of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flowkernels import _native, backends, ops
from tests.numbers import assert_within_rule, worst_of
from tests.ops.gate import assert_refused, told
from tests.ops.residual_cases import HOW, WAYS, called, drawn, estimate

pytestmark = pytest.mark.skipif(_native.C is None, reason="the compiled module is missing")
# Rows of one, of a few, of a block and of several; features that fill tangents and that do not.
SHAPES = {
    "one row": (1, 4, (3,)), "a few": (5, 5, (8, 8)), "a block": (32, 6, (5, 3)), "blocks": (133, 9, (20, 13)),
    "one feature": (50, 1, (4, 2)), "no hidden layer": (40, 7, ()), "deep": (20, 3, (4, 6, 5, 4)),
    "long sums": (70, 21, (160,)),
}  # fmt: skip


@pytest.mark.thinned(2)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_numbers(shape, way, inverse, isa) -> None:
    rows, D, hidden = SHAPES[shape]
    x, layers, settings = drawn(way, rows, D, *hidden)
    more = {"inverse": inverse, "lipschitz": 0.9 ** len(layers)}
    exact, single, found = (
        called(way, x, layers, settings, *how, **more)
        for how in (("reference", torch.float64), ("reference", torch.float32), ("cpu", torch.float32))
    )
    for i, (mine, theirs, truth) in enumerate(zip(found, single, exact, strict=True)):
        assert_within_rule(mine, theirs, truth, f"result {i}", ulps=16)
    wide = called(way, x, layers, settings, "cpu", torch.float64, **more)
    for mine, truth in zip(wide, exact, strict=True):
        size = truth.abs().max().item() if truth.numel() else 0.0
        torch.testing.assert_close(mine, truth, rtol=1e-11, atol=1e-11 * (1 + size))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("D", "L"), [(1, 0.99), (5, 0.99), (64, 0.99), (128, 0.95)])
def test_matrices_near_what_is_allowed(sign, D, L, isa) -> None:
    """g turns all of space, by L."""
    g = torch.Generator().manual_seed(D)
    turn = torch.linalg.qr(torch.randn(D, D, generator=g, dtype=torch.float64))[0]
    layers = [(sign * L * turn, torch.randn(D, generator=g, dtype=torch.float64))]
    x = torch.randn(3, D, generator=g, dtype=torch.float64)
    for inverse in (False, True):
        exact, single, found = (
            called({}, x, layers, {}, *how, inverse=inverse, lipschitz=L)
            for how in (("reference", torch.float64), ("reference", torch.float32), ("cpu", torch.float32))
        )
        draws = [(single, exact)]
        for by in (0.9999, 0.9998, 0.9997):
            kinds, near_layers = (torch.float32, torch.float64), [(by * w, b) for w, b in layers]
            near = (called({}, x, near_layers, {}, "reference", k, inverse=inverse, lipschitz=L) for k in kinds)
            draws.append(tuple(near))  # type: ignore[arg-type]
        for i, (mine, truth) in enumerate(zip(found, exact, strict=True)):
            theirs = worst_of(truth, [(a[i], b[i]) for a, b in draws])
            assert_within_rule(mine, theirs, truth, f"result {i}", ulps=16)


@pytest.mark.parametrize("D", [2, 3, 8, 30])
def test_a_determinant_of_any_matrix(D, isa) -> None:
    """Of weights that nobody has bounded: pivots of 0 and small ones, other ones in every row; and its gradients."""
    g = torch.Generator().manual_seed(D)
    layers = [
        (3 * torch.randn(n, m, generator=g, dtype=torch.float64), torch.zeros(n).double()) for n, m in ((7, D), (D, 7))
    ]
    if D == 2:  # I + J = [[0, 1], [1, 0]]
        layers = [(torch.tensor([[-1.0, 1.0], [1.0, -1.0]]).double(), torch.zeros(2).double())]
    x = torch.randn(40, D, generator=g, dtype=torch.float64)
    right, found = (called({}, x, layers, {"activation": "tanh"}, b, torch.float64) for b in ("reference", "cpu"))
    for mine, truth in zip(found, right, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-8, atol=1e-9 * float(truth.abs().max()))


def test_rows_of_a_contractions_inverse_change_places(isa) -> None:
    """A pivot of 0.06 above 0.31, where 0.99 bounds the slope."""
    J = 0.99 * torch.tensor([[-0.95, 0.3122], [-0.3122, -0.95]], dtype=torch.float64)
    y = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    x, _ = ops.residual_flow(y, [(J, torch.zeros(2).double())], inverse=True, lipschitz=0.99, backend="cpu")
    v = torch.randn(5, 2, dtype=torch.float64)
    (found,) = torch.autograd.grad(x, y, v)
    torch.testing.assert_close(found, torch.linalg.solve(torch.eye(2).double() + J.mT, v.mT).mT)


@pytest.mark.parametrize("z", [1e38, -1e38])
def test_a_slope_where_beta_times_z_overflows(z, isa) -> None:
    layers = [(torch.tensor([[0.1]]), torch.zeros(1))]
    found, right = (
        ops.residual_flow(
            torch.tensor([[z]]), layers, betas=torch.tensor([10.0]), preactivated=True, backend=backend
        )[1]
        for backend in ("cpu", "reference")
    )  # fmt: skip
    assert right.isfinite().all()
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize("scale", [1e-30, 1e3, 1e30])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_values_far_out_are_the_references(way, scale, isa) -> None:
    x, layers, settings = drawn(way, 40, 4, 6)
    for inverse in (False, True):
        found, right = (
            called(way, scale * x, layers, settings, backend, torch.float32, inverse=inverse, lipschitz=0.82)
            for backend in ("cpu", "reference")
        )
        for mine, theirs in zip(found, right, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()) + 1e-30)


@HOW
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_leaves_its_block_alone(how, inverse, bad, isa) -> None:
    """Row by row: values, and what flows back to them."""
    x, layers, settings = drawn(WAYS["betas"], 40, 5, 7)
    worse, more = x.clone(), {"inverse": inverse, "lipschitz": 0.82, **how(x)}
    worse[3, 2] = bad
    right, found = (called({}, v, layers, settings, "cpu", torch.float64, **more)[:3] for v in (x, worse))
    rest = [i for i in range(40) if i != 3]
    assert all(torch.equal(a[rest], b[rest]) for a, b in zip(found, right, strict=True))
    assert not (found[0][3].isfinite().all() and found[1][3].isfinite())


@HOW
@pytest.mark.parametrize("inverse", [False, True])
def test_bits_do_not_depend_on_threads_or_neighbours(how, inverse) -> None:
    x, layers, settings = drawn(WAYS["betas"], 300, 6, 30, 20)
    more = {"inverse": inverse, "lipschitz": 0.73, **how(x)}
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(called({}, x, layers, settings, "cpu", torch.float32, **more)[:3])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    if "noise" in more:
        more["noise"] = more["noise"][:, 37:170]
    found = called({}, x[37:170], layers, settings, "cpu", torch.float32, **more)
    assert torch.equal(found[0], results[0][0][37:170]) and torch.equal(found[1], results[0][1][37:170])


@HOW
@pytest.mark.parametrize("inverse", [False, True])
def test_what_is_kept_for_backward(how, inverse) -> None:
    """The inputs; of an inverse a copy of x too, of an estimate as much as its noise."""
    x, layers, settings = drawn(WAYS["betas"], 64, 5, 8)
    more = how(x)
    leaves = [t.requires_grad_() for t in (x, *(t for layer in layers for t in layer), settings["betas"])]
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ops.residual_flow(x, layers, inverse=inverse, lipschitz=0.9, backend="cpu", **settings, **more)
    given = {t.data_ptr() for t in (*leaves, *more.values()) if isinstance(t, Tensor)}
    left = [more["noise"].shape] if more else []
    assert [t.shape for t in kept if t.data_ptr() not in given] == [x.shape] * inverse + left


@HOW
@pytest.mark.parametrize("way", ["preactivated", "elu"])
def test_only_what_is_wanted(how, way) -> None:
    """Each gradient by itself is what it is among all; those of y and of ladj add up."""
    x, layers, settings = drawn(WAYS[way], 40, 4, 6, 3)
    settings |= how(x)
    betas = [settings.pop("betas")] if "betas" in settings else []
    leaves = [t.requires_grad_() for t in (x, *(t for layer in layers for t in layer), *betas)]

    def call(*given: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        more: dict[str, Any] = {"betas": given[-1]} if betas else {}
        pairs = list(zip(given[1 : 1 + 2 * len(layers) : 2], given[2 : 2 + 2 * len(layers) : 2], strict=True))
        return ops.residual_flow(given[0], pairs, inverse=inverse, lipschitz=0.82, backend="cpu", **settings, **more)

    for inverse in (False, True):
        y, ladj = call(*leaves, inverse=inverse)
        both = torch.autograd.grad([y.sum(), ladj.sum()], leaves)
        for i, right in enumerate(both):
            alone = [t if j == i else t.detach() for j, t in enumerate(leaves)]
            y, ladj = call(*alone, inverse=inverse)
            (found,) = torch.autograd.grad([y.sum(), ladj.sum()], [leaves[i]])
            torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)
        of_y, of_ladj = (torch.autograd.grad(call(*leaves, inverse=inverse)[i].sum(), leaves) for i in (0, 1))
        for a, b, c in zip(of_y, of_ladj, both, strict=True):
            torch.testing.assert_close(a + b, c, rtol=1e-10, atol=1e-10)


def test_what_no_kernel_runs_is_plain_pytorch() -> None:
    x, layers, _ = drawn(WAYS["lipswish"], 3, 4, 6)
    with pytest.raises(backends.BackendUnavailableError, match="no kernel has an estimate's own gradient"):
        ops.residual_flow(x, layers, neumann=False, backend="cpu", **estimate(x))
    ops.residual_flow(x, layers, neumann=False, **estimate(x))
    wide, layers, _ = drawn(WAYS["lipswish"], 2, 129)
    for more in ({}, {"inverse": True, "lipschitz": 0.9, **estimate(wide)}):
        with pytest.raises(backends.BackendUnavailableError, match="more than 128 features"):
            ops.residual_flow(wide, layers, backend="cpu", **more)
        ops.residual_flow(wide, layers, **more)


# ---- the gate in C++ ----

R = torch.zeros
NET: dict[str, Any] = {
    "rows": 5, "features": 3, "activation": 0, "preactivated": False, "inverse": False, "steps": 9, "least": 0.0,
    "tensors": [R(6, 3), R(6), R(3, 6), R(3), R(1)], "grads": [R(6, 3), R(6), R(3, 6), R(3), R(1)],
    "series": [R(4), R(2, 5, 3), R(2, 5, 3)],
}  # fmt: skip


def replaced(i: int, t: Any, name: str = "tensors") -> dict[str, Any]:
    found = list(NET[name])
    found[i] = t
    return {name: found}


def huge(*shape: int) -> Any:
    return told(R(1, 1), shape=shape, stride=(0, 1)[2 - len(shape) :])


N = 3 * 2**29  # units
NETS = {
    "no rows": ({"rows": 0}, "rows must be from 1"),
    "too many rows": ({"rows": 2**56}, "must be a product of sizes below 2**63"),
    "no features": ({"features": 0}, "features must be from 1"),
    "many features": ({"features": 129, "series": []}, "features must be from 1 to 128, got 129"),
    "many features of an inverse": ({"features": 129, "inverse": True}, "features must be from 1 to 128, got 129"),
    "an activation": ({"activation": 3}, "activation must be from 0 to 2, got 3"),
    "no steps": ({"steps": 0}, "steps must be from 1"),
    "no layers": ({"tensors": [], "grads": []}, "the number of layers must be from 1 to 64, got 0"),
    "65 layers": ({"tensors": [R(3, 3), R(3)] * 65, "grads": []}, "the number of layers must be from 1 to 64"),
    "few gradients": ({"grads": NET["grads"][1:]}, "grads must be 5 entries, got 4"),
    "no weight": (replaced(0, None), "weight must be a tensor, got None"),
    "a vector": (replaced(0, R(6)), "weight must be [out, in], got [6]"),
    "no outputs": (replaced(0, R(0, 3)), "rows of weight must be from 1"),
    "a wide weight": (replaced(0, R(6, 6)), "weight must be [6, 3], got [6, 6]"),
    "layers that do not meet": (replaced(2, R(3, 9)), "weight must be [3, 6], got [3, 9]"),
    "too many weights": (
        {"tensors": [huge(N, 3), huge(N), huge(N, N), huge(N)], "grads": []}, "the number of weights must be from 1",
    ),
    "16 bits": (replaced(0, R(6, 3).half()), "weight must be float32, got float16"),
    "two dtypes": (replaced(2, R(3, 6).double()), "weight must be float32, got float64"),
    "a turned weight": (replaced(2, R(6, 3).t()), "weight must be of rows without gaps"),
    "a wide end": ({"tensors": [R(6, 3), R(6)], "grads": []}, "rows of the last weight must be from 3 to 3, got 6"),
    "a short bias": (replaced(1, R(5)), "bias must be [6], got [5]"),
    "a bias of doubles": (replaced(3, R(3).double()), "bias must be float32, got float64"),
    "many betas": (replaced(4, R(2)), "betas must be [1], got [2]"),
    "betas of one more": ({"preactivated": True}, "betas must be [2], got [1]"),
    "betas of a tanh": ({"activation": 2}, "betas must be those of a lipswish"),
    "a short gradient": (replaced(0, R(6, 2), "grads"), "grad_weight must be [6, 3], got [6, 2]"),
    "a turned gradient": (replaced(2, R(6, 3).t(), "grads"), "grad_weight must be contiguous"),
    "a gradient of doubles": (replaced(1, R(6).double(), "grads"), "grad_bias must be float32, got float64"),
    "gradients of many betas": (replaced(4, R(2), "grads"), "grad_betas must be [1], got [2]"),
    "half a series": ({"series": NET["series"][:2]}, "series must be 3 entries, got 2"),
    "no weights of terms": (replaced(0, None, "series"), "weights must be a tensor, got None"),
    "weights of weights": (replaced(0, R(4, 1), "series"), "weights must be [terms], got [4, 1]"),
    "no terms": (replaced(0, R(0), "series"), "terms must be from 1"),
    "weights with gaps": (replaced(0, R(8)[::2], "series"), "weights must be contiguous"),
    "weights of doubles": (replaced(0, R(4).double(), "series"), "weights must be float32, got float64"),
    "no noise": (replaced(1, None, "series"), "noise must be a tensor, got None"),
    "one draw": (replaced(1, R(5, 3), "series"), "noise must be [draws, rows, features], got [5, 3]"),
    "no draws": (replaced(1, R(0, 5, 3), "series"), "draws must be from 1"),
    "short noise": (replaced(1, R(2, 4, 3), "series"), "noise must be [2, 5, 3], got [2, 4, 3]"),
    "narrow noise": (replaced(1, R(2, 5, 2), "series"), "noise must be [2, 5, 3], got [2, 5, 2]"),
    "noise with gaps": (replaced(1, R(2, 5, 6)[..., ::2], "series"), "noise must be contiguous"),
    "short sums": (replaced(2, R(1, 5, 3), "series"), "inner must be [2, 5, 3], got [1, 5, 3]"),
    "sums of doubles": (replaced(2, R(2, 5, 3).double(), "series"), "inner must be float32, got float64"),
    "too much work": (
        {"series": [told(R(1), shape=(2**31 - 1,), stride=(1,)),
                    told(R(1), shape=(2**31 - 1, 5, 3), stride=(15, 3, 1)), None]},
        "must be a product of sizes below 2**63",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("broken", "message"), NETS.values(), ids=NETS)
def test_layers_are_refused(broken, message) -> None:
    assert_refused(_native.C.ResidualLayers, NET, broken, message)


def calls(inverse: bool = False, **more: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    net = _native.C.ResidualLayers(*{**NET, "inverse": inverse, **more}.values())
    return {
        "fwd": (_native.C.residual_flow_fwd, {"net": net, "x": R(5, 3), "y": R(5, 3), "ladj": R(5), "threads": 1}),
        "bwd": (
            _native.C.residual_flow_bwd,
            {"net": net, "x": R(5, 3), "y": R(5, 3), "grad_y": R(5, 3), "grad_ladj": R(5), "grad_x": R(5, 3),
             "threads": 1},
        ),
    }  # fmt: skip


CALLS = {
    "short x": ("fwd", {"x": R(4, 3)}, "x must be [5, 3], got [4, 3]"),
    "narrow x": ("bwd", {"x": R(5, 2)}, "x must be [5, 3], got [5, 2]"),
    "x of doubles": ("fwd", {"x": R(5, 3).double()}, "x must be float32, got float64"),
    "x with gaps": ("fwd", {"x": R(5, 6)[:, ::2]}, "x must be of rows without gaps"),
    "short y": ("fwd", {"y": R(4, 3)}, "y must be of 15 elements, got [4, 3]"),
    "y with gaps": ("fwd", {"y": R(5, 6)[:, ::2]}, "y must be contiguous"),
    "short ladj": ("fwd", {"ladj": R(4)}, "ladj must be of 5 elements, got [4]"),
    "no y": ("bwd", {"y": None}, "y must be a tensor, got None"),
    "short grad_y": ("bwd", {"grad_y": R(4, 3)}, "grad_y must be of 15 elements"),
    "grad_ladj of doubles": ("bwd", {"grad_ladj": R(5).double()}, "grad_ladj must be float32, got float64"),
    "short grad_x": ("bwd", {"grad_x": R(5, 2)}, "grad_x must be of 15 elements, got [5, 2]"),
    "no threads": ("fwd", {"threads": 0}, "threads must be from 1"),
}


@pytest.mark.parametrize(("which", "broken", "message"), CALLS.values(), ids=CALLS)
def test_calls_are_refused(which, broken, message) -> None:
    call, arguments = calls(inverse=True)[which]
    call(*arguments.values())
    assert_refused(call, arguments, broken, message)


def test_a_way_back_without_sums_is_refused() -> None:
    call, arguments = calls(**replaced(2, None, "series"))["bwd"]
    with pytest.raises(ValueError, match="inner must be a tensor, got None"):
        call(*arguments.values())

"""Whole flows in one op: the bits of their layers one by one, gradients, every way torch may call it, and the gate."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from flowkernels import _native, backends
from flowkernels.nets import MADE
from flowkernels.ops.autoregressive_inverse import run_inverse
from flowkernels.ops.autoregressive_inverse.reference import SweepSpec
from flowkernels.ops.flow import FlowSpec, Layer, Order, Sweep, flow, spec_of
from flowkernels.ops.flow import native as flow_native
from flowkernels.ops.flow import op as flow_op
from flowkernels.ops.flow_layer import FlowLayerSpec, run_layer, split_of
from flowkernels.ops.net.net import Net, dense_net, made_net
from flowkernels.transforms import RQS, Affine, SinhArcsinh
from tests.ops.gate import assert_refused, told
from tests.ops.masked import assert_numbers, values_and_gradients
from tests.ops.spline import weights

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(_native.C is None, reason=f"tests the compiled kernels: {_native.why_missing}"),
]
Build = Callable[[Any, list[Tensor]], list[Layer | Sweep | Order]]
MAPS = {"rqs": RQS(bins=5), "circular": RQS(bins=4, tails="circular"), "affine": Affine("tanh"),
        "clipped": RQS(bins=3, parametrization="soft_clip"), "additive": Affine("additive")}  # fmt: skip


class Part(NamedTuple):
    """A layer, but its tensors: residual, plain or made, or the sweep of a made one, or of one of residual blocks; what
    it maps with; which features it sees and maps."""

    net: str
    map: str
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    hidden: int = 12
    context: bool = False
    activation: str = "relu"
    normed: bool = False


class Case(NamedTuple):
    rows: tuple[int, ...]
    D: int
    steps: tuple[Part | Order, ...]


REVERSED = {n: Order(tuple(range(n))[::-1]) for n in (2, 3, 5, 6)}
EVENS, ODDS = (0, 2, 4), (1, 3, 5)
CASES = {
    "couplings": Case((130,), 6, (Part("residual", "rqs", EVENS, ODDS), Part("residual", "rqs", ODDS, EVENS))),
    "autoregressive": Case((33,), 5, (Part("made", "rqs"), REVERSED[5], Part("made", "affine"))),
    "mixed, orders everywhere": Case(
        (37,), 6, (
            Order((5, 0, 3, 1, 2, 4)), REVERSED[6], Part("plain", "affine", (5, 1), (0, 3, 2)),
            Order((1, 2, 0, 4, 3, 5)), Part("made", "circular"), REVERSED[6],
            Part("residual", "clipped", ODDS, (0, 4)), Order((3, 4, 5, 0, 1, 2)),
        ),
    ),
    "contexts": Case(
        (31,), 5, (
            Part("residual", "rqs", (0, 1), (4, 2), context=True), REVERSED[5],
            Part("plain", "affine", (3,), (0, 1, 2, 4), context=True), Part("made", "additive", context=True),
        ),
    ),
    "sweeps": Case((130,), 5, (Part("swept", "affine"), REVERSED[5], Part("swept", "rqs"))),
    "sweeps of blocks, contexts": Case(
        (37,), 6, (REVERSED[6], Part("swept blocks", "rqs", context=True), Order((5, 0, 3, 1, 2, 4)),
                   Part("swept", "additive", context=True, activation="gelu"), REVERSED[6]),
    ),
    "sweeps among layers": Case(
        (70,), 6, (
            Part("made", "rqs"), Order((1, 2, 0, 4, 3, 5)), Part("swept", "circular"),
            Part("plain", "affine", EVENS, ODDS), Part("swept blocks", "affine", activation="tanh"),
            Part("residual", "clipped", ODDS, EVENS), REVERSED[6], Part("swept", "clipped"), Order((3, 4, 5, 0, 1, 2)),
        ),
    ),
    "a sweep alone": Case((33,), 3, (REVERSED[3], Part("swept", "affine"))),
    "a sweep of one feature": Case((5,), 1, (Part("swept", "rqs"), Part("swept", "affine", context=True))),
    "sweeps of three rows": Case(
        (3,), 3, (Part("swept", "rqs"), REVERSED[3], Part("swept blocks", "affine", context=True)),
    ),
    "normed": Case(
        (130,), 5, (Part("residual", "rqs", (0, 1), (4, 2), activation="elu", normed=True), REVERSED[5],
                    Part("residual", "affine", (3,), (0, 1, 2, 4), activation="silu", normed=True)),
    ),
    "normed, contexts": Case(
        (33,), 3, (Part("residual", "rqs", (0, 1), (2,), context=True, activation="elu", normed=True), REVERSED[3],
                   Part("residual", "rqs", (0,), (1, 2), context=True)),
    ),
    "normed, three rows": Case((3,), 2, (Part("residual", "rqs", (0,), (1,), activation="elu", normed=True),)),
    "slopes need inputs": Case(
        (33,), 3, (Part("plain", "affine", (0,), (1, 2), activation="gelu"),
                   Part("residual", "rqs", (1, 2), (0,), activation="silu")),
    ),
    "tanh, two leading dims": Case(
        (3, 7), 3, (Part("residual", "rqs", (2,), (0, 1), activation="tanh"), REVERSED[3],
                    Part("plain", "clipped", (2, 0), (1,), activation="tanh")),
    ),
    "one row": Case((1,), 2, (Part("residual", "rqs", (0,), (1,)), REVERSED[2], Part("made", "affine"))),
    "three rows": Case((3,), 6, (Part("plain", "rqs", EVENS, ODDS), Part("made", "rqs"))),
    "no rows": Case((0,), 3, (Part("plain", "affine", (0,), (1, 2)), REVERSED[3], Part("made", "rqs"))),
    "one layer": Case((65,), 5, (REVERSED[5], Part("plain", "rqs", (0, 1), (2, 3)), REVERSED[5])),
    "deep": Case((40,), 2, tuple(Part("plain", "affine", (i % 2,), (1 - i % 2,), 4) for i in range(70))),
}  # fmt: skip
CONTEXT = 2
MADE_OF = ("made", "swept", "swept blocks")


def sizes(p: Part, D: int) -> list[tuple[int, int]]:
    """[out, in] of every layer."""
    P, n = MAPS[p.map].n_params, p.hidden
    if p.net in MADE_OF:
        return [(n, D), *[(n, n)] * (2 if p.net == "swept blocks" else 1), (D * P, n)]
    first = (n, len(p.inputs) + CONTEXT * p.context)
    if p.net == "plain":
        return [first, (n + 1, n), (len(p.outputs) * P, n + 1)]
    return [first, *[(n, n)] * 2, *[(n, CONTEXT)] * p.context, *[(n, n)] * 2, *[(n, CONTEXT)] * p.context,
            (len(p.outputs) * P, n)]  # fmt: skip


def draw(c: Case, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x, a context where a layer has one, then weight and bias of each layer, and a net's scales and shifts."""
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    found = [randn(*c.rows, c.D)]
    parts = [p for p in c.steps if isinstance(p, Part)]
    if any(p.context for p in parts):
        found.append(randn(*c.rows, CONTEXT))
    for p in parts:
        for n_out, n_in in sizes(p, c.D):
            found += [0.8 * randn(n_out, n_in) / n_in**0.5, 0.4 * randn(n_out)]
        for _ in range(4 * p.normed):
            found += [1 + 0.3 * randn(p.hidden), 0.4 * randn(p.hidden)]
    return [t.to(dtype) for t in found]


@functools.lru_cache(maxsize=64)
def plan_of(D: int, P: int, hidden: int, residual: bool = False) -> Any:
    widths = (hidden,) if residual else (hidden, hidden)
    return MADE(D, P, widths, order="reversed", seed=0, residual=residual).plan


def build(c: Case, tensors: list[Tensor], inverse: bool = False) -> tuple[Tensor, list[Layer | Sweep | Order]]:
    """x and the steps of `ops.flow`."""
    x, *rest = tensors
    context = rest.pop(0) if any(isinstance(p, Part) and p.context for p in c.steps) else None
    steps: list[Layer | Sweep | Order] = []
    for p in c.steps:
        if isinstance(p, Order):
            back = tuple(sorted(range(c.D), key=p.order.__getitem__))
            steps.append(Order(back) if inverse else p)
            continue
        n = len(sizes(p, c.D))
        layers = list(zip(rest[: 2 * n : 2], rest[1 : 2 * n : 2], strict=True))
        rest, f = rest[2 * n :], MAPS[p.map]
        norms = list(zip(rest[: 8 * p.normed : 2], rest[1 : 8 * p.normed : 2], strict=True))
        rest = rest[8 * p.normed :]
        if p.net in MADE_OF:
            every, blocks = tuple(range(c.D)), p.net == "swept blocks"
            adds, gates = None, None
            if p.context and context is not None:
                added = context @ context.new_ones(CONTEXT, p.hidden)
                adds = [added, *[None] * (len(layers) - 1)]
                gates = [None, None, added.sigmoid(), None] if blocks else None
            net = made_net(layers, plan_of(c.D, f.n_params, p.hidden, blocks), p.activation, adds, gates)
            split = split_of(c.D, every, every)
            if p.net != "made":
                steps.append(Sweep(f, net))
                continue
        else:
            seen, given = len(p.inputs), context if p.context else None
            net = dense_net(layers, p.net == "residual", p.activation, seen, x.shape[:-1], given, norms)
            split = split_of(c.D, p.inputs, p.outputs)
        steps.append(Layer(f.inverted() if inverse else f, net, split))
    return x, steps[::-1] if inverse else steps


def whole(c: Case, tensors: list[Tensor], inverse: bool = False, **how: Any) -> tuple[Tensor, Tensor]:
    x, steps = build(c, tensors, inverse)
    return flow(x, steps, **{"backend": "cpu", **how})


def one_by_one(c: Case, tensors: list[Tensor], inverse: bool = False) -> tuple[Tensor, Tensor]:
    x, steps = build(c, tensors, inverse)
    total = None
    for step in steps:
        if isinstance(step, Order):
            x = x[..., list(step.order)]
            continue
        if isinstance(step, Sweep):
            found = run_inverse(x, step.net, step.univariate)
        else:
            found = run_layer(x, step.net, step.univariate, step.split)
        assert found is not None
        x, total = found[0], found[1] if total is None else total + found[1]
    assert total is not None
    return x, total


def assert_same_bits(a: list[Tensor], b: list[Tensor]) -> None:
    for i, (s, t) in enumerate(zip(a, b, strict=True)):
        assert torch.equal(s.contiguous().view(torch.uint8), t.contiguous().view(torch.uint8)), f"result {i}"


INVERTIBLE = [name for name in CASES if "made" not in str(CASES[name]) and "swept" not in str(CASES[name])]
WAYS = [(name, False) for name in CASES] + [(name, True) for name in INVERTIBLE]


# ---- numbers ----


@pytest.mark.parametrize(("case", "inverse"), WAYS)
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_bits_of_the_layers_one_by_one(case, inverse, precision, isa) -> None:
    """Values, and on one thread every gradient."""
    c = CASES[case]
    given = draw(c, precision)
    mine = values_and_gradients(lambda t: whole(c, t, inverse), given)
    assert_same_bits(mine, values_and_gradients(lambda t: one_by_one(c, t, inverse), given))


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 16, 127, 129, 1000, 5000])
@pytest.mark.parametrize("case", ["couplings", "sweeps"])
def test_the_bits_do_not_depend_on_how_rows_are_grouped(rows, case, isa) -> None:
    c = CASES[case]._replace(rows=(rows,))
    given = draw(c, torch.float32)
    mine = values_and_gradients(lambda t: whole(c, t), given)
    assert_same_bits(mine, values_and_gradients(lambda t: one_by_one(c, t), given))


@pytest.mark.parametrize(
    "case",
    ["couplings", "autoregressive", "mixed, orders everywhere", "contexts", "no rows", "sweeps",
     "sweeps of blocks, contexts", "sweeps among layers"],
)  # fmt: skip
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_numbers(case, precision, all_isas) -> None:
    c = CASES[case]
    assert_numbers(lambda b, t: whole(c, t, backend=b), draw(c), "flow", precision, all_isas, shared=True)


@pytest.mark.parametrize("case", CASES)
def test_the_reference_is_the_layers_written_out(case) -> None:
    c = CASES[case]
    mine = values_and_gradients(lambda t: whole(c, t, backend="reference"), draw(c))
    theirs = values_and_gradients(lambda t: one_by_one(c, t), draw(c))
    torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)


def test_the_inverse_undoes(isa) -> None:
    for case in ("couplings", "slopes need inputs", "tanh, two leading dims", "one layer"):
        c = CASES[case]
        assert case in INVERTIBLE
        x, *rest = draw(c)
        y, ladj = whole(c, [x, *rest])
        back, ladj_back = whole(c, [y, *rest], inverse=True)
        torch.testing.assert_close(back, x, rtol=0, atol=1e-8)
        torch.testing.assert_close(ladj_back, -ladj, rtol=0, atol=1e-7)


def test_more_bytes_than_are_kept_give_the_same_bits(monkeypatch, isa) -> None:
    """Beyond a size half of the activations are computed again."""
    c = CASES["couplings"]
    given = draw(c, torch.float32)
    every = values_and_gradients(lambda t: whole(c, t), given)
    monkeypatch.setattr(flow_native, "_KEEP_ALL", 0)
    assert_same_bits(values_and_gradients(lambda t: whole(c, t), given), every)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("n", [1, 4, 5, 300])
@pytest.mark.parametrize(("case", "inverse"), WAYS)
def test_flat_memory_gives_the_same_bits(case, inverse, n, isa, threads) -> None:
    """Backward finds what entered each layer as forward found it, whatever tiles it goes through in."""
    c = CASES[case]._replace(rows=(n,))
    given = draw(c, torch.float32)
    fast = values_and_gradients(lambda t: whole(c, t, inverse), given)
    assert_same_bits(values_and_gradients(lambda t: whole(c, t, inverse, memory="flat"), given), fast)


def test_flat_memory_keeps_its_inputs_alone() -> None:
    c = CASES["couplings"]._replace(rows=(100,))
    given = [t.requires_grad_() for t in draw(c, torch.float32)]
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        whole(c, given, memory="flat")
    assert {t.data_ptr() for t in kept if t.numel() > 0} == {t.data_ptr() for t in given}


# ---- where it reads and writes ----

VIEWS = {
    "transposed": lambda t: t.t().contiguous().t(),
    "every second column": lambda t: torch.stack([t, t + 1], -1)[..., 0],
    "every second row": lambda t: torch.stack([t, t + 1], 1).flatten(0, 1)[::2],
    "negative bit": lambda t: torch.ops.aten._neg_view(-t),
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_gives_the_bits_of_its_copy(view, isa) -> None:
    for case in ("mixed, orders everywhere", "contexts", "sweeps of blocks, contexts"):
        c = CASES[case]
        tensors = draw(c, torch.float32)
        dense = [*whole(c, tensors)]
        for i, t in enumerate(tensors):
            if t.dim() == 2 or view == "negative bit":
                seen = VIEWS[view](t)
                assert_same_bits([*whole(c, [*tensors[:i], seen, *tensors[i + 1 :]])], dense)


def test_gradients_of_any_layout(isa) -> None:
    c = CASES["mixed, orders everywhere"]
    tensors = draw(c, torch.float32)
    x = tensors[0].requires_grad_()
    y, ladj = whole(c, tensors)
    g, gl = torch.randn_like(y), torch.randn_like(ladj)
    (wanted,) = torch.autograd.grad([y, ladj], x, [g, gl], retain_graph=True)
    for view in VIEWS.values():
        (grad,) = torch.autograd.grad([y, ladj], x, [view(g), gl], retain_graph=True)
        assert torch.equal(grad, wanted)


def test_no_leading_dims(isa) -> None:
    c = CASES["mixed, orders everywhere"]
    x, *rest = draw(c)
    y, ladj = whole(c._replace(rows=()), [x[3], *rest])
    assert y.shape == (6,) and ladj.shape == ()
    row = whole(c, [x[3:4], *rest])
    assert torch.equal(y, row[0][0]) and torch.equal(ladj, row[1][0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("case", ["mixed, orders everywhere", "sweeps of blocks, contexts"])
def test_a_bad_value_stays_in_its_row(case, bad, isa) -> None:
    c = CASES[case]
    tensors = draw(c, torch.float32)
    clean = values_and_gradients(lambda t: whole(c, t), tensors)
    for row, column in ((0, 0), (3, 1), (36, 5)):  # the first row also pads the last block
        wrong = [tensors[0].clone(), *tensors[1:]]
        wrong[0][row, column] = bad
        seen = values_and_gradients(lambda t: whole(c, t), wrong)
        others = [i for i in range(37) if i != row]
        for i in (0, 1, 2):  # y, ladj, the gradient of x
            assert torch.equal(seen[i][others], clean[i][others])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_same_bits_twice(n, isa, threads) -> None:
    threads(n)
    for case in ("couplings", "mixed, orders everywhere", "sweeps among layers"):
        c = CASES[case]._replace(rows=(1500,))
        tensors = draw(c, torch.float32)
        run = functools.partial(values_and_gradients, functools.partial(whole, c), tensors)
        first = run()
        for _ in range(3):
            assert_same_bits(run(), first)


@pytest.mark.parametrize("case", ["couplings", "sweeps"])
def test_threads_agree(case, isa, threads) -> None:
    """Values to the bit; sums over rows to their rounding."""
    c = CASES[case]._replace(rows=(3000,))
    tensors = draw(c)
    alone = values_and_gradients(lambda t: whole(c, t), tensors)
    threads(3)
    several = values_and_gradients(lambda t: whole(c, t), tensors)
    assert_same_bits(several[:3], alone[:3])
    torch.testing.assert_close(several, alone, rtol=1e-9, atol=1e-9)


# ---- gradients ----


@pytest.mark.parametrize("case", ["mixed, orders everywhere", "contexts", "sweeps of blocks, contexts"])
def test_only_some_gradients_wanted(case) -> None:
    c = CASES[case]
    tensors = draw(c)
    every = values_and_gradients(lambda t: whole(c, t), tensors)[2:]
    for wanted in [[i] for i in range(len(tensors))] + [[0, 3], [2, len(tensors) - 1]]:
        leaves = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
        outputs = whole(c, leaves)
        grads = torch.autograd.grad(outputs, [leaves[i] for i in wanted], [weights(o) for o in outputs])
        assert_same_bits([*grads], [every[i] for i in wanted])


@pytest.mark.parametrize("used", [0, 1], ids=["y only", "ladj only"])
def test_only_one_output_used(used) -> None:
    c, grads = CASES["mixed, orders everywhere"], []
    for backend in ("cpu", "reference"):
        leaves = [t.requires_grad_() for t in draw(c)]
        loss = whole(c, leaves, backend=backend)[used].square().sum()
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        grads.append([torch.zeros_like(t) if g is None else g for g, t in zip(found, leaves, strict=True)])
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-8)


SMALL = {
    "coupling and made": Case(
        (3,), 3, (Part("residual", "rqs", (0,), (1, 2), 4), REVERSED[3], Part("made", "affine", hidden=4))
    ),
    "contexts": Case(
        (2,), 2, (Part("residual", "rqs", (0,), (1,), 3, True), REVERSED[2], Part("made", "affine", (), (), 3, True))
    ),
    "sweeps": Case(
        (2,), 3, (Part("swept blocks", "rqs", (), (), 3, True), REVERSED[3], Part("made", "affine", (), (), 3),
                  Part("swept", "affine", (), (), 3))
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SMALL)
def test_gradcheck_and_gradgradcheck(case) -> None:
    c = SMALL[case]
    leaves = [(0.7 * t).requires_grad_() for t in draw(c)]
    assert torch.autograd.gradcheck(lambda *t: whole(c, [*t]), leaves)
    assert torch.autograd.gradgradcheck(lambda *t: whole(c, [*t], backend=None), leaves)


def test_a_weight_changed_before_backward_is_noticed() -> None:
    c = CASES["couplings"]
    leaves = [t.requires_grad_() for t in draw(c)]
    y, _ = whole(c, leaves)
    with torch.no_grad():
        leaves[1].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_second_backward_is_the_same() -> None:
    c = CASES["couplings"]
    leaves = [t.requires_grad_() for t in draw(c)]
    y, ladj = whole(c, leaves)
    loss = y.square().sum() - ladj.sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    assert_same_bits([*torch.autograd.grad(loss, leaves)], [*first])


# ---- every way torch may call it ----


def test_transforms() -> None:
    c = SMALL["coupling and made"]
    x, *rest = draw(c)

    def f(v: Tensor) -> tuple[Tensor, Tensor]:
        return whole(c._replace(rows=()), [v, *rest], backend=None)

    y = whole(c, [x, *rest], backend=None)
    torch.testing.assert_close(torch.func.vmap(f)(x), y)
    jacobian = torch.func.vmap(torch.func.jacrev(f))(x)[0]
    torch.testing.assert_close(torch.func.vmap(torch.func.jacfwd(f))(x)[0], jacobian)
    # what a flow is about: ladj is the log-determinant of the Jacobian
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], y[1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("case", ["couplings", "mixed, orders everywhere", "sweeps"])
def test_the_library_op_is_one_node(case) -> None:
    """Values and every gradient, through a compiler that keeps it whole."""
    c = CASES[case]
    given = draw(c)
    text, f = _text(c, build(c, given)[1]), torch.ops.flowkernels.flow.default
    seen: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        seen.extend(n.target for n in graph.graph.nodes if n.op == "call_function")
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(lambda *t: f(list(t), text, "auto"), backend=backend, fullgraph=True)
    found = values_and_gradients(lambda t: compiled(*t), given)
    assert f in seen
    torch.testing.assert_close(found, values_and_gradients(lambda t: whole(c, t), given))


@pytest.mark.parametrize("case", ["couplings", "slopes need inputs"])
def test_compile(case) -> None:
    c = CASES[case]
    given = draw(c)
    torch._dynamo.reset()

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return whole(c, [*tensors], backend=None)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    mine = values_and_gradients(lambda t: compiled(*t), given)
    torch.testing.assert_close(mine, values_and_gradients(lambda t: whole(c, t), given), rtol=1e-8, atol=1e-8)


def _spec(c: Case, steps: list[Layer | Sweep | Order]) -> FlowSpec:
    def of(s: Layer | Sweep | Order) -> Any:
        if isinstance(s, Order):
            return s
        return (
            SweepSpec(s.net.spec, s.univariate)
            if isinstance(s, Sweep)
            else FlowLayerSpec(s.split, s.univariate, s.net.spec)
        )

    return spec_of(c.D, tuple(of(s) for s in steps))


def _text(c: Case, steps: list[Layer | Sweep | Order]) -> str:
    return _spec(c, steps).text


LIBRARY: dict[str, Any] = {name: getattr(torch.ops.flowkernels, name).default for name in ("flow", "flow_saving")}


@pytest.mark.parametrize("case", ["couplings", "mixed, orders everywhere", "autoregressive", "sweeps"])
@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_op(name, case) -> None:
    c = CASES[case]._replace(rows=(7,))
    given = [t.requires_grad_() for t in draw(c)]
    _, steps = build(c, given)
    text = _text(c, steps)
    torch.library.opcheck(LIBRARY[name], (given, text, "auto"))


def _spec_and_given(case: str, rows: tuple[int, ...]) -> tuple[FlowSpec, list[Tensor]]:
    """Float32; what a context adds is a tensor of the op, as it is of a graph."""
    c = CASES[case]._replace(rows=rows)
    x, steps = build(c, draw(c, torch.float32))
    return _spec(c, steps), [x, *[t for s in steps if not isinstance(s, Order) for t in s.net.tensors]]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("most", [None, 0], ids=["all", "as little as may be"])
@pytest.mark.parametrize("rows", [(0,), (1,), (4,), (5,), (2, 70)])
def test_what_is_saved_has_the_size_that_its_fake_says(case, most, rows, monkeypatch) -> None:
    if most is not None:
        monkeypatch.setattr(flow_native, "_KEEP_ALL", most)
    spec, given = _spec_and_given(case, rows)
    (kept,) = flow_native.fwd_saving(spec, *given)[1]
    fake = flow_native.saves(spec, *[t.to("meta") for t in given])
    assert (fake.shape, fake.dtype) == (kept.shape, kept.dtype)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rows", [(1,), (4,), (33,)])
def test_the_op_that_saves_has_the_bits_of_eager_and_computes_nothing_twice(case, rows, monkeypatch) -> None:
    """In few rows too, whose activations forward are not those that backward computes."""
    spec, given = _spec_and_given(case, rows)
    eager = values_and_gradients(lambda t: flow_op(spec, "cpu", *t), given)
    calls: list[bool] = []
    bwd = flow_native.bwd

    def seen(*args: Any, saved: Any = ()) -> Any:
        calls.append(len(saved) == 1)
        return bwd(*args, saved=saved)

    backend = dataclasses.replace(backends.table()["flow"]["cpu"], bwd=seen)
    monkeypatch.setitem(backends.table()["flow"], "cpu", backend)
    found = values_and_gradients(lambda t: LIBRARY["flow_saving"]([*t], spec.text, "cpu")[:2], given)
    assert_same_bits(found, eager)
    assert calls == [True]


def test_what_another_backend_saves_nobody_reads() -> None:
    spec, given = _spec_and_given("couplings", (7,))
    found = values_and_gradients(lambda t: LIBRARY["flow_saving"]([*t], spec.text, "reference")[:2], given)
    assert_same_bits(found, values_and_gradients(lambda t: flow_op(spec, "reference", *t), given))


def test_second_derivatives_of_the_op_that_saves() -> None:
    c = CASES["couplings"]._replace(rows=(3,))
    x, *rest = draw(c)
    text = _text(c, build(c, [x, *rest])[1])

    def f(x: Tensor) -> tuple[Tensor, ...]:
        return LIBRARY["flow_saving"]([x, *rest], text, "auto")[:2]

    assert torch.autograd.gradgradcheck(f, x.requires_grad_())


@pytest.mark.parametrize(
    "case", ["couplings", "mixed, orders everywhere", "autoregressive", "slopes need inputs", "sweeps among layers"]
)
def test_a_spec_in_words(case) -> None:
    """What a graph holds is the same flow."""
    c = CASES[case]
    x, steps = build(c, draw(c))
    spec = _spec(c, steps)
    again = FlowSpec.from_packed(*spec.packed())
    assert again.text == spec.text and again is FlowSpec.from_packed(spec.text)
    tensors = [t for s in steps if not isinstance(s, Order) for t in s.net.tensors]
    assert_same_bits([*flow_native.fwd(again, x, *tensors)], [*flow_native.fwd(spec, x, *tensors)])


def test_a_map_without_kernels_and_16_bits_run_as_the_reference(monkeypatch) -> None:
    monkeypatch.setattr(backends, "_warned", set())
    c = Case((9,), 3, (Part("plain", "affine", (0,), (1, 2)), REVERSED[3]))
    x, (layer, order) = build(c, draw(c))
    assert isinstance(layer, Layer)
    n = 2 * SinhArcsinh().n_params
    last = (torch.zeros(n, 1).double(), torch.zeros(n).double())
    of_map = layer._replace(univariate=SinhArcsinh(), net=dense_net([last], False, "relu", 1, (9,), None))
    with pytest.raises(backends.BackendUnavailableError, match="no kernel for SinhArcsinh"):
        flow(x, [of_map, order], backend="cpu")
    with pytest.warns(backends.SlowPathWarning):
        y, ladj = flow(x, [of_map, order])
    assert y.shape == x.shape and ladj.shape == (9,)
    half = Layer(layer.univariate, Net(layer.net.spec, tuple(t.half() for t in layer.net.tensors)), layer.split)
    with pytest.raises(backends.BackendUnavailableError, match="layers round to it, one by one"):
        flow(x.half(), [half, order], backend="cpu")
    with pytest.warns(backends.SlowPathWarning):
        assert flow(x.half(), [half, order])[0].dtype == torch.float16


# ---- arguments ----


def _layer(**more: Any) -> Layer:
    c = CASES["one layer"]
    found = build(c, draw(c))[1][1]
    assert isinstance(found, Layer)
    return found._replace(**more)


def _net(i: int, t: Tensor) -> Layer:
    net = _layer().net
    return _layer(net=Net(net.spec, (*net.tensors[:i], t, *net.tensors[i + 1 :])))


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        (lambda: [], ValueError, "layers must have at least one Layer, got 0"),
        (lambda: [REVERSED[5]], ValueError, "layers must have at least one Layer, got 1 other"),
        (lambda: [_layer(), Order((0, 1, 2, 3))], ValueError, r"layers\[1\] must be an order of 5 features, got"),
        (lambda: [_layer(), Order((0, 1, 2, 3, 3))], ValueError, r"layers\[1\] must be an order of 5 features, got"),
        (lambda: [_layer(), 3], TypeError, r"layers\[1\] must be a Layer or an Order, got int"),
        (lambda: [_layer(net=None)], TypeError, r"layers\[0\] net must be a Net, got NoneType"),
        (lambda: [_layer(split=(0, 1))], TypeError, r"layers\[0\] split must be a Split, got tuple"),
        (lambda: [_layer(univariate=3)], TypeError, "univariate must be a map of one feature"),
        (lambda: [_layer(split=split_of(4, (0, 1), (2, 3)))], ValueError, "must be of 5 features, as x, got 4"),
        (lambda: [_layer(split=split_of(5, (0,), (2, 3)))], ValueError, r"weight must be \[out, 1\], got \[12, 2\]"),
        (lambda: [_layer(split=split_of(5, (0, 1), (2,)))], ValueError, r"weight must be \[14, 13\], got \[28, 13\]"),
        (lambda: [_net(2, torch.zeros(13, 11).double())], ValueError, r"layer 1 weight must be \[out, 12\], got"),
        (lambda: [_net(3, torch.zeros(12).double())], ValueError, r"layer 1 bias must be \[13\], got \[12\]"),
        (lambda: [_net(2, torch.zeros(13, 12))], TypeError, "layer 1 weight must be of the dtype of x = "),
    ],
)
def test_errors(layers, error, message) -> None:
    x = draw(CASES["one layer"])[0]
    with pytest.raises(error, match="ops.flow: " + ".*" + message):
        flow(x, layers())


def _sweep(**more: Any) -> Sweep:
    c = CASES["a sweep alone"]
    found = build(c, draw(c))[1][1]
    assert isinstance(found, Sweep)
    return found._replace(**more)


@pytest.mark.parametrize(
    ("sweep", "error", "message"),
    [
        (lambda: _sweep(net=None), TypeError, r"layers\[0\] net must be a Net, got NoneType"),
        (lambda: _sweep(univariate=3), TypeError, "univariate must be a map of one feature"),
        (lambda: _sweep(univariate=Affine(inverse=True)), ValueError, "of the layer's direction, got inverse=True"),
        (lambda: _sweep(net=_layer().net), ValueError, "net must be of the masks of a MadePlan, got one of others or"),
        (
            lambda: _sweep(univariate=RQS(bins=5)),
            ValueError,
            r"of \(3, 14\) features and parameters of each, got \(3, 2",
        ),
    ],
)
def test_errors_of_sweeps(sweep, error, message) -> None:
    x = draw(CASES["a sweep alone"])[0]
    with pytest.raises(error, match="ops.flow: " + ".*" + message):
        flow(x, [sweep()])


def test_a_sweep_of_a_map_that_it_has_no_kernel_for() -> None:
    """Of which the op of a sweep alone knows more: a flow's does not."""
    c = Case((4,), 3, (Part("swept", "circular"),))
    x, (sweep,) = build(c, draw(c, torch.float32))
    assert isinstance(sweep, Sweep)
    turned = sweep._replace(univariate=dataclasses.replace(sweep.univariate, circle_shift=True))  # type: ignore[type-var]
    with pytest.raises(backends.BackendUnavailableError, match="no kernel for circle_shift"):
        flow(x, [turned], backend="cpu")


# ---- the gate in C++ ----

ROWS = 7


def _call(module: Any, features: Any, order: Any, rows: Any, tensors: Any) -> Any:
    C = module
    no = [False] * 2
    net = C.NetSpec(masks=[None] * 2, residual=False, activation=1, last=0, has_bias=True, adds=no, gates=no, scales=no)
    f = C.Flow(features)
    for _ in range(2):
        f.add_layer(net, Affine("tanh").handle(C), split_of(4, (0, 1), (2, 3)).handle(C))
        f.add_order(order)
    return C.FlowCall(f, rows, tensors)


def _tensors(i: int = 0, t: Any = None) -> list[Any]:
    found: list[Any] = [torch.zeros(s) for s in [(5, 2), (5,), (4, 5), (4,)] * 2]
    if t is not None:
        found[i] = t
    return found


def _arguments(**more: Any) -> dict[str, Any]:
    return {"module": _native.C, "features": 4, "order": (1, 0, 3, 2), "rows": ROWS, "tensors": _tensors(), **more}


MADE_WRONG = {
    "no features": ({"features": 0}, "flow: features must be from 1 to"),
    "other features": ({"features": 5}, "flow: features of a layer must be 5, got 4"),
    "no order": ({"order": ()}, "flow: an order must be of all features, got an empty one"),
    "a short order": ({"order": (0, 1, 2)}, "flow: an order must be a permutation of 0 to 3"),
    "an order twice": ({"order": (0, 1, 2, 2)}, "flow: an order must be a permutation of 0 to 3"),
    "an order beyond": ({"order": (0, 1, 2, 4)}, "flow: an order must be a permutation of 0 to 3"),
    "no rows": ({"rows": 0}, "flow: rows must be from 1 to"),
    "too many rows": ({"rows": 2**61}, "must be a product of sizes below 2**63"),
    "fewer tensors": ({"tensors": _tensors()[:-1]}, "flow: tensors must be 8 entries, got 7"),
    "another input": ({"tensors": _tensors(4, torch.zeros(5, 3))}, "flow: layer 1: inputs of the net must be 2, got 3"),
    "doubles": (
        {"tensors": [*_tensors()[:4], *(t.double() for t in _tensors()[4:])]},
        "flow: layer 1: weights must be float32, got float64",
    ),
    "a turned weight": ({"tensors": _tensors(2, torch.zeros(5, 4).t())}, "layer 1: weight must be of rows without"),
    "a null weight": ({"tensors": _tensors(0, told(torch.zeros(5, 2), data_ptr=0))}, "weight must be in memory, got"),
}  # fmt: skip


@pytest.mark.parametrize("case", MADE_WRONG)
def test_a_call(case) -> None:
    _call(**_arguments())
    assert_refused(_call, _arguments(), *MADE_WRONG[case])


def test_a_call_of_other_outputs() -> None:
    tensors = _tensors(6, torch.zeros(3, 5))
    tensors[7] = torch.zeros(3)
    assert_refused(_call, _arguments(), {"tensors": tensors}, "flow: layer 1: outputs of the net must be 4, got 3")


def test_a_call_without_layers() -> None:
    C: Any = _native.C
    with pytest.raises(ValueError, match="flow: the number of layers must be from 1 to 4096, got 0"):
        C.FlowCall(C.Flow(3), 1, [])


def _swept(scales: Any, masks: Any, tensors: Any, kept: Any) -> Tensor:
    """Two sweeps of a network, of residual blocks where that has scales."""
    C: Any = _native.C
    no, x = [False] * len(masks), torch.ones(ROWS, 2)
    net = C.NetSpec(
        masks=masks, residual=True in scales, activation=1, last=0, has_bias=True, adds=no, gates=no, scales=scales
    )
    f = C.Flow(2)
    for _ in range(2):
        f.add_sweep(net, Affine("exp").inverted().handle(C))
    y = torch.empty_like(x)
    C.FlowCall(f, ROWS, tensors).fwd(x, y, torch.empty(ROWS), kept, 1)
    return y


_PLAN = plan_of(2, 2, 3)
_OF_TWO = [torch.zeros(s) for s in [(3, 2), (3,), (3, 3), (3,), (4, 3), (4,)] * 2]
SWEPT = {
    "scales": [False] * 3, "masks": [p.handle(_native.C, None) for p in _PLAN.layers] if _native.C else [],
    "tensors": _OF_TWO, "kept": torch.zeros(2 * ROWS * 2),
}  # fmt: skip
SWEPT_WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no masks": ({"masks": [None] * 3}, "sweep: masks must be of units that see none but features before them"),
    "other inputs": (
        {"masks": [None] * 3, "tensors": [torch.zeros(3, 3), *_OF_TWO[1:]]},
        "flow: layer 0: inputs of the net must be 2, got 3",
    ),
    "no room for what leaves the last": (
        {"kept": torch.zeros(ROWS * 2)},
        "flow: kept must be of 28 elements, got [14]",
    ),
    "doubles": ({"tensors": [t.double() for t in _OF_TWO]}, "flow: x must be float64, got float32"),
    "one net": ({"tensors": _OF_TWO[:6]}, "flow: tensors must be 12 entries, got 6"),
}


@pytest.mark.parametrize("case", SWEPT_WRONG)
def test_a_call_of_sweeps(case) -> None:
    assert torch.equal(_swept(**SWEPT), torch.ones(ROWS, 2))
    assert_refused(_swept, SWEPT, *SWEPT_WRONG[case])


def test_a_sweep_takes_no_scales() -> None:
    tensors = [*_OF_TWO[:4], torch.zeros(3, 3), *_OF_TWO[3:6], torch.ones(3), torch.ones(3)] * 2
    with pytest.raises(ValueError, match="flow: layer 0: scales of the net of a sweep must be None, got a tensor"):
        _swept(**{**SWEPT, "scales": [False, True, False, False], "masks": [None] * 4, "tensors": tensors})


KEPT = ROWS * (5 + 4 + 5)  # hidden activations of two nets, and what enters the second layer


def _fwd(x: Any, y: Any, ladj: Any, kept: Any, threads: Any) -> None:
    _call(**_arguments()).fwd(x, y, ladj, kept, threads)


def _bwd(x: Any, grad_y: Any, grad_ladj: Any, grad_x: Any, kept: Any, grads: Any, threads: Any) -> None:
    _call(**_arguments()).bwd(x, grad_y, grad_ladj, grad_x, kept, grads, threads)


def _rows(n: int = ROWS, features: int = 4) -> Tensor:
    return torch.zeros(n, features)


FWD = {"x": _rows(), "y": _rows(), "ladj": torch.zeros(ROWS), "kept": torch.zeros(KEPT), "threads": 1}
BWD = {"x": _rows(), "grad_y": _rows(), "grad_ladj": torch.zeros(ROWS), "grad_x": _rows(), "kept": torch.zeros(KEPT),
       "grads": _tensors(), "threads": 1}  # fmt: skip
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "x of fewer rows": ({"x": _rows(6)}, "flow: x must be [7, 4], got [6, 4]"),
    "x of fewer features": ({"x": _rows(7, 3)}, "flow: x must be [7, 4], got [7, 3]"),
    "x of doubles": ({"x": _rows().double()}, "flow: x must be float32, got float64"),
    "x turned": ({"x": _rows(4, 7).t()}, "flow: x must be of rows without gaps"),
    "a null x": ({"x": told(_rows(), data_ptr=0)}, "flow: x must be in memory"),
    "no threads": ({"threads": 0}, "threads must be from 1"),
    "a short room": ({"kept": torch.zeros(KEPT - 1)}, f"flow: kept must be of {KEPT} elements, got [{KEPT - 1}]"),
    "a long room": ({"kept": torch.zeros(KEPT + 1)}, f"flow: kept must be of {KEPT} elements, got [{KEPT + 1}]"),
    "a room of doubles": ({"kept": torch.zeros(KEPT).double()}, "flow: kept must be float32, got float64"),
    "a room with gaps": ({"kept": torch.zeros(2 * KEPT)[::2]}, "flow: kept must be contiguous"),
}
ONLY_FWD = {
    "no y": ({"y": None}, "flow: y must be a tensor, got None"),
    "a short y": ({"y": _rows(6)}, "flow: y must be of 28 elements, got [6, 4]"),
    "a turned y": ({"y": _rows(4, 7).t()}, "flow: y must be contiguous"),
    "a short ladj": ({"ladj": torch.zeros(6)}, "flow: ladj must be of 7 elements, got [6]"),
    "a ladj of doubles": ({"ladj": torch.zeros(7).double()}, "flow: ladj must be float32, got float64"),
}
ONLY_BWD = {
    "a short grad_y": ({"grad_y": _rows(6)}, "flow: grad_y must be of 28 elements, got [6, 4]"),
    "a short grad_ladj": ({"grad_ladj": torch.zeros(6)}, "flow: grad_ladj must be of 7 elements, got [6]"),
    "a short grad_x": ({"grad_x": _rows(6)}, "flow: grad_x must be of 28 elements, got [6, 4]"),
    "fewer gradients": ({"grads": _tensors()[:-1]}, "flow: grads must be 8 entries, got 7"),
    "a short gradient": ({"grads": _tensors(6, torch.zeros(4, 4))}, "a gradient must be of 20 elements, got [4, 4]"),
    "a gradient of doubles": ({"grads": _tensors(5, torch.zeros(5).double())}, "flow: a gradient must be float32, got"),
    "a gradient with gaps": ({"grads": _tensors(5, torch.zeros(10)[::2])}, "flow: a gradient must be contiguous, got"),
}  # fmt: skip


@pytest.mark.parametrize("case", [*WRONG, *ONLY_FWD])
def test_forward(case) -> None:
    _fwd(**FWD)
    assert_refused(_fwd, FWD, *{**WRONG, **ONLY_FWD}[case])


@pytest.mark.parametrize("case", [*WRONG, *ONLY_BWD])
def test_backward(case) -> None:
    _bwd(**BWD)
    assert_refused(_bwd, BWD, *{**WRONG, **ONLY_BWD}[case])


def test_a_call_forgets_what_was_kept_before() -> None:
    """One object, several calls: each reads and writes what it was given alone."""
    c = CASES["couplings"]
    x, steps = build(c, draw(c, torch.float32))
    tensors = [t for s in steps if not isinstance(s, Order) for t in s.net.tensors]
    C: Any = _native.C
    call = C.FlowCall(_spec(c, steps).handle(C), x.shape[0], tensors)
    y, ladj = torch.empty_like(x), torch.empty(x.shape[0])
    rooms = [torch.full((call.kept_size(every),), 7.0) for every in (True, False)]
    call.fwd(x, y, ladj, rooms[0], 1)
    first = rooms[0].clone()
    rooms[0].fill_(7.0)
    call.fwd(x, y, ladj, None, 1)
    call.fwd(x, y, ladj, rooms[1], 1)
    assert (rooms[0] == 7).all() and not (rooms[1] == 7).any()
    found = []
    for room in (first, rooms[1], first):
        grads, grad_x = [torch.empty_like(t) for t in tensors], torch.empty_like(x)
        call.bwd(x, y, ladj, grad_x, room, grads, 1)
        found.append([grad_x, *grads])
    assert_same_bits(found[0], found[1])
    assert_same_bits(found[0], found[2])


def test_every_case_is_of_its_own_kind() -> None:
    """The table above covers what the kernels tell apart."""
    parts = [p for c in CASES.values() for p in c.steps if isinstance(p, Part)]
    assert {p.net for p in parts} == {"residual", "plain", *MADE_OF} and {p.map for p in parts} == set(MAPS)
    assert {*itertools.chain(*(c.rows for c in CASES.values()))} >= {0, 1, 3, 130}

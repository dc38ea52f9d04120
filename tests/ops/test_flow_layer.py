"""Whole flow layers: values and gradients by the numbers rule, every way torch may call them, and what they keep."""

from __future__ import annotations

import copy
import importlib
import itertools
import pickle
import threading
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from flowkernels import _native, compat, ops, use_backend
from flowkernels.nets import MADE, MLP, ResidualNet
from flowkernels.ops.affine.scales import SCALES
from flowkernels.ops.flow_layer import flow_layer, run_autoregressive_layer, split_of
from flowkernels.ops.net import native as net_native
from flowkernels.ops.net.net import made_net
from flowkernels.ops.split import Split
from flowkernels.transforms import RQS, Affine, Coupling
from flowkernels.transforms.parts import run_alone
from tests.numbers import assert_within_rule
from tests.ops import masked
from tests.ops.masked import assert_numbers, values_and_gradients
from tests.ops.spline import weights

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(_native.C is None, reason=f"tests the compiled kernels: {_native.why_missing}"),
]


class Case(NamedTuple):
    rows: tuple[int, ...]
    D: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    hidden: int
    blocks: int
    spline: RQS
    context: int = 0
    context_rows: tuple[int, ...] | None = None  # None: one context per row
    normed: bool = False  # of elu, as all of dingo's are


def alternating(D: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(range(0, D, 2)), tuple(range(1, D, 2))


CASES = {
    "one of everything": Case((1,), 2, (1,), (0,), 1, 1, RQS(bins=1), 1),
    "no rows": Case((0,), 3, (0, 1), (2,), 8, 1, RQS(bins=8), 2),
    "usual": Case((130,), 6, *alternating(6), 32, 2, RQS(bins=8)),
    "circular, context": Case((33,), 7, *alternating(7), 13, 2, RQS(bins=8, tails="circular"), 3),
    "one context for all": Case((31,), 5, (0, 1), (2, 3, 4), 11, 1, RQS(bins=8, tails=None), 2, (1,)),
    "any order, some neither seen nor mapped": Case(
        (33,), 9, (8, 1), (5, 0, 3), 12, 1, RQS(bins=33, tails=None, parametrization="soft_clip")
    ),
    "more bins than are scanned": Case((31,), 4, (3, 0), (1, 2), 9, 1, RQS(bins=70)),
    "soft clip, context": Case((130,), 4, (2, 3), (0, 1), 7, 1, RQS(bins=8, parametrization="soft_clip"), 2),
    "no blocks, two leading dims": Case((3, 11), 5, (4,), (2, 0), 6, 0, RQS(bins=8, logit_scale=0.3), 2, (11,)),
    "sees what it maps": Case((33,), 4, (0, 1, 2), (2, 1), 12, 1, RQS(bins=5, tails="circular")),
    "order linear": Case((33,), 5, (0, 3), (4, 1, 2), 12, 1, RQS(bins=8, order="linear")),
    "more units than a tile has rows": Case((65,), 31, *alternating(31), 77, 1, RQS(bins=8)),
    "deep": Case((33,), 3, (0, 2), (1,), 10, 5, RQS(bins=8)),
    "normed": Case((130,), 6, *alternating(6), 32, 2, RQS(bins=8), normed=True),
    "normed, context": Case((33,), 5, (0, 1), (2, 3, 4), 11, 2, RQS(bins=8), 3, normed=True),
    "another box": Case((33,), 2, (0,), (1,), 8, 1, RQS(bins=8, tails=None, box=(-2.0, 3.0, 0.0, 1.0)), 1, ()),
}


def draw(c: Case, seed: int = 0) -> list[Tensor]:
    """x, the context if any, weight and bias per layer, then scale and shift of each norm, in float64."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    sizes = [(c.hidden, len(c.inputs) + c.context)]
    for _ in range(c.blocks):
        sizes += [(c.hidden, c.hidden)] * 2 + [(c.hidden, c.context)] * bool(c.context)
    sizes.append((len(c.outputs) * c.spline.n_params, c.hidden))
    lead = c.rows if c.context_rows is None else c.context_rows
    tensors = [randn(*c.rows, c.D)] + [randn(*lead, c.context)] * bool(c.context)
    for n_out, n_in in sizes:
        tensors += [randn(n_out, n_in) / n_in**0.5, 0.5 * randn(n_out)]
    for _ in range(2 * c.blocks * c.normed):
        tensors += [1 + 0.3 * randn(c.hidden), 0.5 * randn(c.hidden)]
    return tensors


def call(c: Case, tensors: list[Tensor], inverse: bool = False, backend: str | None = None) -> tuple[Tensor, Tensor]:
    x, *rest = tensors
    context, rest = (rest[0], rest[1:]) if c.context else (None, rest)  # torch 2.6 traces no pop
    pairs = list(zip(rest[::2], rest[1::2], strict=True))
    n = len(pairs) - 2 * c.blocks * c.normed
    spec, more = c.spline.inverted() if inverse else c.spline, {"activation": "elu", "norms": pairs[n:]}
    return flow_layer(
        x, pairs[:n], spec, split_of(c.D, c.inputs, c.outputs), context=context, backend=backend,
        **(more if c.normed else {}),
    )  # fmt: skip


def found(c: Case, tensors: list[Tensor], inverse: bool = False, backend: str | None = "cpu") -> list[Tensor]:
    """Values and every gradient."""
    return values_and_gradients(lambda t: call(c, t, inverse, backend), tensors)


def assert_same_bits(a: list[Tensor], b: list[Tensor]) -> None:
    for i, (s, t) in enumerate(zip(a, b, strict=True)):
        assert torch.equal(s.contiguous().view(torch.uint8), t.contiguous().view(torch.uint8)), f"result {i}"


def assert_computes_in_float32(c: Case, given: list[Tensor], inverse: bool, backend: str) -> None:
    """Tensors of 16 bits: results are those of float32 rounded once, or as near as the rule asks."""
    dtype, kernel = given[0].dtype, found(c, given, inverse, backend)
    assert [t.dtype for t in kernel] == [dtype, torch.promote_types(dtype, torch.float32), *(t.dtype for t in given)]
    if dtype.itemsize > 2:
        return
    if not c.context:  # whose products are torch's, in 16 bits
        wide = call(c, [t.float() for t in given], inverse, backend)
        assert torch.equal(kernel[0], wide[0].to(dtype)) and torch.equal(kernel[1], wide[1])
    truth = found(c, [t.double() for t in given], inverse, "reference")
    eager = found(c, given, inverse, "reference")
    for i in (0, 1):
        assert_within_rule(kernel[i], eager[i], truth[i], f"result {i}")
    for i, (mine, its, right) in enumerate(zip(kernel[2:], eager[2:], truth[2:], strict=True)):
        if right.numel():  # gradients jump at knots, where 16 bits land: the error as a whole
            mine, its = ((t.double() - right).norm() for t in (mine, its))
            assert mine <= 2 * its + 4 * torch.finfo(dtype).eps * right.norm(), f"gradient {i}"


# ---- numbers ----


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_numbers(case, inverse, precision, all_isas) -> None:
    c = CASES[case]

    def f(backend: str, tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
        return call(c, tensors, inverse, backend)

    assert_numbers(f, draw(c), "flow_layer", precision, all_isas, shared=True)


@pytest.mark.parametrize("case", ["usual", "circular, context", "no rows"])
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_16_bits_compute_in_float32(case, inverse, dtype, isa) -> None:
    c = CASES[case]
    assert_computes_in_float32(c, [t.to(dtype) for t in draw(c)], inverse, "cpu")


def test_features_that_are_not_mapped_keep_their_bits(isa) -> None:
    c = CASES["any order, some neither seen nor mapped"]
    tensors = [t.float() for t in draw(c)]
    y, _ = call(c, tensors)
    kept = [i for i in range(c.D) if i not in c.outputs]
    assert torch.equal(y[:, kept], tensors[0][:, kept]) and not (y[:, c.outputs] == tensors[0][:, c.outputs]).all()


def test_the_inverse_undoes(isa) -> None:
    for name in ("usual", "circular, context", "soft clip, context"):
        c = CASES[name]
        x, *rest = draw(c)
        y, ladj = call(c, [x, *rest])
        back, ladj_back = call(c, [y, *rest], inverse=True)
        torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
        torch.testing.assert_close(ladj_back, -ladj, rtol=0, atol=1e-8)


# ---- the maps and nets of the kernel that no op calls yet ----


def through_the_module(
    scale: int, min_scale: float, inverse: bool, tensors: list[Tensor], made: MADE, shift_first: bool = False
) -> list[Tensor]:
    """y, ladj and every gradient of an autoregressive affine layer, by the compiled module itself."""
    C: Any = _native.C
    x, *rest = tensors
    rows, D = x.shape
    spec = made_net(list(zip(rest[::2], rest[1::2], strict=True)), made.plan, "relu").spec
    grads = net_native.allocate_grads(spec, rest, [True] * len(rest), rows)
    y, ladj, grad_x = torch.empty_like(x), x.new_empty(rows), torch.empty_like(x)
    univariate = C.UnivariateMap(C.AffineSpec(scale, min_scale, 2.0, inverse, -0.2, 0.3, shift_first, (1, 0, 0, 1)))
    net = net_native.handle(spec, rest, (rows,), rows, grads=grads)
    same = (net, univariate, C.Columns(D, range(D), range(D)), x)
    C.flow_layer_fwd(*same, y, ladj, 1)
    C.flow_layer_bwd(*same, weights(y), weights(ladj), grad_x, 1)
    return [y, ladj, grad_x, *(t for t in grads if t is not None)]


AFFINE = {"exp": (0, 0.0), "softplus": (1, 1e-3), "sigmoid": (2, 1e-3), "tanh": (3, 0.0), "additive": (4, 0.0),
          "soft_clip": (5, 0.0), "clip": (6, 0.0), "reciprocal_sigmoid": (7, 0.0), "atan": (8, 0.0)}  # fmt: skip


@pytest.mark.parametrize("scale", AFFINE)
@pytest.mark.parametrize("shift_first", [False, True], ids=["scale | shift", "shift | scale"])
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_affine_maps_and_masked_nets(scale, inverse, shift_first, isa) -> None:
    kind, min_scale = AFFINE[scale]
    made = MADE(5, 1 if scale == "additive" else 2, (17, 9), seed=0)
    g = torch.Generator().manual_seed(0)
    tensors = [0.4 * torch.randn(s, generator=g).double() for s in [(37, 5), *(p.shape for p in made.parameters())]]

    def f(t: list[Tensor]) -> tuple[Tensor, Tensor]:
        params = ops.made(t[0], list(zip(t[1::2], t[2::2], strict=True)), made.plan, backend="reference")
        params = params.unflatten(-1, (5, -1))
        settings = {"scale": scale, "min_scale": min_scale, "inverse": inverse, "shift_first": shift_first}
        settings |= {"log_bounds": (-0.2, 0.3)} if scale == "clip" else {}
        return ops.affine(t[0], params, backend="reference", **settings)

    found = through_the_module(kind, min_scale, inverse, tensors, made, shift_first)
    torch.testing.assert_close(found, values_and_gradients(f, tensors), rtol=1e-11, atol=1e-11)


def test_a_scale_that_underflows_has_finite_gradients(isa) -> None:
    """log s = u has slope 1 even where s = exp(u) is 0."""
    made = MADE(1, 2, (3,))
    tensors = [torch.zeros(7, 1), *(torch.zeros_like(p) for p in made.parameters())]
    tensors[-1][0] = -120.0
    kind, min_scale = AFFINE["exp"]
    found = through_the_module(kind, min_scale, False, tensors, made)
    assert torch.equal(found[1], torch.full((7,), -120.0))
    torch.testing.assert_close(found[-1][0], weights(found[1]).sum())


def test_ladj_of_a_thousand_features_is_rounded_once(isa) -> None:
    """Added one by one in float32, a thousand times 0.1 is off by a hundred ulps."""
    made = MADE(1000, 2, (3,))
    tensors = [torch.zeros(9, 1000), *(torch.zeros_like(p) for p in made.parameters())]
    tensors[-1] += 0.1  # every log of a scale
    kind, min_scale = AFFINE["exp"]
    ladj = through_the_module(kind, min_scale, False, tensors, made)[1]
    assert torch.equal(ladj, torch.full((9,), 0.1).double().mul(1000).float())


# ---- where it reads and writes ----

VIEWS = {
    "transposed": lambda x: x.t().contiguous().t(),
    "every second column": lambda x: torch.stack([x, x + 1], -1)[..., 0],
    "columns of a wider tensor": lambda x: torch.cat([x + 1, x, x + 1], -1)[:, x.shape[1] : 2 * x.shape[1]],
    "every second row": lambda x: torch.stack([x, x + 1], 1).flatten(0, 1)[::2],
    "negative bit": lambda x: torch.ops.aten._neg_view(-x),
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_gives_the_bits_of_its_copy(view, isa) -> None:
    c = CASES["circular, context"]
    tensors = [t.float() for t in draw(c)]
    dense = [*call(c, tensors)]
    for i, t in enumerate(tensors):
        if t.dim() == 2 or view == "negative bit":
            seen = VIEWS[view](t)
            assert torch.equal(seen, t)
            assert_same_bits([*call(c, [*tensors[:i], seen, *tensors[i + 1 :]])], dense)


def test_rows_that_are_one_row(isa) -> None:
    c = CASES["usual"]
    x, *rest = (t.float() for t in draw(c))
    one = x[:1].expand(130, 6)
    assert_same_bits([*call(c, [one, *rest])], [*call(c, [one.contiguous(), *rest])])


def test_no_leading_dims(isa) -> None:
    c = CASES["usual"]
    x, *rest = draw(c)
    y, ladj = call(c, [x[3], *rest])
    assert y.shape == (6,) and ladj.shape == ()
    row = call(c, [x[3:4], *rest])
    assert torch.equal(y, row[0][0]) and torch.equal(ladj, row[1][0])


def test_gradients_of_any_layout(isa) -> None:
    c = CASES["usual"]
    tensors = [t.float() for t in draw(c)]
    x = tensors[0].requires_grad_()
    y, ladj = call(c, tensors)
    g, gl = torch.randn_like(y), torch.randn_like(ladj)
    (wanted,) = torch.autograd.grad([y, ladj], x, [g, gl], retain_graph=True)
    for view in ("transposed", "every second column", "negative bit"):
        (grad,) = torch.autograd.grad([y, ladj], x, [VIEWS[view](g), gl], retain_graph=True)
        assert torch.equal(grad, wanted)
    ones = torch.ones(()).expand(130)
    assert torch.equal(
        torch.autograd.grad(ladj, x, ones, retain_graph=True)[0], torch.autograd.grad(ladj, x, ones.clone())[0]
    )


def test_rows_do_not_touch_each_other(isa) -> None:
    """A row does not depend on its neighbours nor on the strip's end; up to four rows have a way of their own."""
    c = CASES["more units than a tile has rows"]
    x, *rest = (t.float() for t in draw(c))
    y, ladj = call(c, [x, *rest])
    for rows in ([7, 3, 64, 9, 0], [*range(17)]):
        part = call(c, [x[rows], *rest])
        assert torch.equal(part[0], y[rows]) and torch.equal(part[1], ladj[rows])
    y, ladj = call(c, [x[[64, 7, 3, 0]], *rest])
    for rows in ([0, 1], [3, 2], [1, 3, 2]):
        part = call(c, [x[[64, 7, 3, 0]][rows], *rest])
        assert torch.equal(part[0], y[rows]) and torch.equal(part[1], ladj[rows])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_a_bad_value_stays_in_its_row(bad, inverse, isa) -> None:
    c = CASES["more units than a tile has rows"]
    tensors = [t.float() for t in draw(c)]
    clean = found(c, tensors, inverse)
    for row, column in ((0, 0), (3, 1), (64, 30)):  # the first row is also what pads the last strip
        wrong = [tensors[0].clone(), *tensors[1:]]
        wrong[0][row, column] = bad
        others = [i for i in range(65) if i != row]
        seen = found(c, wrong, inverse)
        for i in (0, 1, 2):  # y, ladj, the gradient of x
            assert torch.equal(seen[i][others], clean[i][others])
        if column in c.inputs and bad != bad:
            assert seen[1][row].isnan() and seen[0][row].isnan().any()


def test_a_bad_weight_reaches_every_row_and_raises_nothing(isa) -> None:
    c = CASES["usual"]
    tensors = [t.float() for t in draw(c)]
    tensors[1][0, 0] = float("nan")
    y, ladj = call(c, tensors)
    assert ladj.isnan().all() and torch.equal(y[:, ::2], tensors[0][:, ::2])


@pytest.mark.parametrize("n", [1, 2])
def test_same_bits_twice(n, isa, threads) -> None:
    threads(n)
    for name in ("usual", "circular, context", "more units than a tile has rows"):
        c = CASES[name]._replace(rows=(1000,))
        tensors = [t.float() for t in draw(c)]
        first = found(c, tensors)
        for _ in range(3):
            assert_same_bits(found(c, tensors), first)


def test_another_default_device() -> None:
    c = CASES["circular, context"]
    tensors = [t.float() for t in draw(c)]
    expected = found(c, tensors)
    leaves = [t.requires_grad_() for t in tensors]
    given = [weights(expected[0]), weights(expected[1])]
    with torch.device("meta"):
        y, ladj = call(c, leaves, backend="cpu")
        grads = torch.autograd.grad([y, ladj], leaves, given)
    assert_same_bits([y.detach(), ladj.detach(), *grads], expected)


# ---- gradients ----


@pytest.mark.parametrize("case", ["usual", "circular, context", "one context for all", "no blocks, two leading dims"])
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_only_some_gradients_wanted(case, inverse) -> None:
    c = CASES[case]
    tensors = draw(c)
    every = found(c, tensors, inverse, "reference")[2:]
    for wanted in [[i] for i in range(len(tensors))] + [[0, 3], [2, len(tensors) - 1]]:
        leaves = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
        outputs = call(c, leaves, inverse, "cpu")
        whole = found(c, tensors, inverse)[:2]
        assert torch.equal(outputs[0], whole[0]) and torch.equal(outputs[1], whole[1])
        grads = torch.autograd.grad(outputs, [leaves[i] for i in wanted], [weights(o) for o in outputs])
        for i, g in zip(wanted, grads, strict=True):
            torch.testing.assert_close(g, every[i], rtol=1e-9, atol=1e-10 * every[i].abs().max().item())


@pytest.mark.parametrize("used", [0, 1], ids=["y only", "ladj only"])
def test_only_one_output_used(used) -> None:
    c = CASES["circular, context"]
    grads = []
    for backend in ("cpu", "reference"):
        leaves = [t.requires_grad_() for t in draw(c)]
        grads.append(torch.autograd.grad(call(c, leaves, backend=backend)[used].square().sum(), leaves))
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


SMALL = {
    "plain": Case((3,), 4, (0, 3), (2, 1), 5, 1, RQS(bins=3)),
    "context": Case((3,), 3, (1,), (0, 2), 4, 1, RQS(bins=3, tails="circular"), 2),
    "soft clip": Case((2,), 3, (2,), (0,), 4, 1, RQS(bins=3, tails=None, parametrization="soft_clip")),
}


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_gradcheck_and_gradgradcheck(case, inverse) -> None:
    c = SMALL[case]
    leaves = [t.requires_grad_() for t in draw(c)]

    def f(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return call(c, [*tensors], inverse)

    assert torch.autograd.gradcheck(f, leaves)
    assert torch.autograd.gradgradcheck(f, leaves)


def test_gradients_accumulate_and_a_second_backward_is_the_same() -> None:
    c = CASES["usual"]
    leaves = [t.requires_grad_() for t in draw(c)]
    y, ladj = call(c, leaves)
    loss = y.square().sum() - ladj.sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    assert_same_bits([*torch.autograd.grad(loss, leaves)], [*first])


def test_a_weight_changed_before_backward_is_noticed() -> None:
    c = CASES["usual"]
    leaves = [t.requires_grad_() for t in draw(c)]
    y, _ = call(c, leaves)
    with torch.no_grad():
        leaves[1].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# ---- every way torch may call it ----


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_transforms(case, inverse) -> None:
    c = SMALL[case]
    x, *rest = draw(c)
    if c.context:
        rest[0] = rest[0][0]  # one context, so that rows can be mapped over

    def f(v: Tensor) -> tuple[Tensor, Tensor]:
        return call(c._replace(context_rows=()), [v, *rest], inverse)

    y = f(x)
    torch.testing.assert_close(torch.func.vmap(f)(x), y)
    jacobian = torch.func.jacrev(f)(x[0])
    torch.testing.assert_close(torch.func.jacfwd(f)(x[0]), jacobian)
    tangent = torch.randn_like(x)
    values, moved = torch.func.jvp(f, (x,), (tangent,))
    torch.testing.assert_close(values, y)
    per_row = torch.func.vmap(torch.func.jacrev(f))(x)
    torch.testing.assert_close(moved[0], torch.einsum("bij,bj->bi", per_row[0], tangent))
    # what a flow is about: ladj is the log-determinant of the Jacobian
    torch.testing.assert_close(torch.linalg.slogdet(per_row[0])[1], y[1], rtol=1e-8, atol=1e-8)


def test_gradients_of_weights_per_row() -> None:
    c = SMALL["plain"]
    x, *rest = draw(c)

    def loss(v: Tensor, *weights: Tensor) -> Tensor:
        y, ladj = call(c, [v, *weights])
        return y.square().sum() - ladj.sum()

    argnums = tuple(range(1, 1 + len(rest)))
    per_row = torch.func.vmap(torch.func.grad(loss, argnums=argnums), in_dims=(0, *[None] * len(rest)))(x, *rest)
    leaves = [t.requires_grad_() for t in rest]
    whole = torch.autograd.grad(loss(x, *leaves), leaves)
    torch.testing.assert_close([g.sum(0) for g in per_row], [*whole])


@pytest.mark.parametrize("case", ["usual", "circular, context"])
def test_compile(case) -> None:
    c = CASES[case]
    tensors = draw(c)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *t: call(c, [*t]), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(values_and_gradients(lambda t: compiled(*t), tensors), found(c, tensors))


def is_fused(result: tuple[Tensor, Tensor]) -> bool:
    y, ladj = result
    return type(y.grad_fn).__name__ == "flowkernels::flow_layerBackward" and y.grad_fn is ladj.grad_fn


def coupling(mask: tuple[int, ...] = (0, 1, 1, 0, 1), context: int = 0, **spline: Any) -> Coupling:
    torch.manual_seed(0)
    layer = Coupling(mask, lambda i, o: ResidualNet(i, o, hidden=24, context=context), RQS(**spline))
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(2)
    return layer


def test_compile_of_a_layer() -> None:
    layer = coupling().double()
    x = torch.randn(9, 5, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


def test_checkpoint_and_hooks_of_saved_tensors() -> None:
    layer = coupling(context=2)
    x, context = torch.randn(9, 5, requires_grad=True), torch.randn(9, 2)

    def loss() -> Tensor:
        y, ladj = layer(x, context)
        return y.square().sum() - ladj.sum()

    inputs = [x, *layer.parameters()]
    expected = [*torch.autograd.grad(loss(), inputs)]
    for reentrant in (False, True):
        out = torch.utils.checkpoint.checkpoint(lambda _: loss(), x, use_reentrant=reentrant)
        x.grad = None
        layer.zero_grad()
        out.backward()
        assert_same_bits([t.grad for t in inputs], expected)
    with torch.autograd.graph.save_on_cpu():
        out = loss()
    assert_same_bits([*torch.autograd.grad(out, inputs)], expected)


# ---- layers on the op ----


def of_layer(layer: nn.Module, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[bool, list[Tensor]]:
    """Whether the op ran, values and gradients."""
    fused = []

    def run(t: list[Tensor]) -> tuple[Tensor, Tensor]:
        out = (layer.inverse if inverse else layer)(t[0], *t[1:])  # type: ignore[operator]
        fused.append(is_fused(out))
        return out

    results = values_and_gradients(run, [x] if context is None else [x, context])
    layer.zero_grad()
    y, ladj = run([x] if context is None else [x, context])
    (y.square().sum() - ladj.sum()).backward()
    assert fused[0] == fused[1]
    return fused[0], results + [p.grad for p in layer.parameters()]


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("mask", [(0, 1), (0, 1, 0, 1), (1, 1, 0, 0, 0), (0, 1, 1, 0, 1), (1, 1, 1, 0)])
def test_coupling_with_and_without(mask, context, inverse) -> None:
    layer = coupling(mask, context).double()
    x = torch.randn(37, len(mask), dtype=torch.float64)
    c = torch.randn(37, context, dtype=torch.float64) if context else None
    fused, mine = of_layer(layer, x, c, inverse)
    handle = layer.conditioner.register_forward_hook(lambda *_: None)
    in_parts, parts = of_layer(layer, x, c, inverse)
    handle.remove()
    assert fused and not in_parts
    torch.testing.assert_close(mine, parts, rtol=1e-8, atol=1e-9)
    assert of_layer(layer, x, c, inverse)[0]


def test_coupling_with_a_broadcast_context_and_leading_dims() -> None:
    layer = coupling(context=2).double()
    x, c = torch.randn(4, 7, 5, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64)
    fused, mine = of_layer(layer, x, c, False)
    with use_backend("reference"):
        _, parts = of_layer(layer, x, c, False)
    assert fused and mine[2].shape == x.shape and mine[3].shape == c.shape
    torch.testing.assert_close(mine, parts, rtol=1e-8, atol=1e-9)


def test_what_takes_the_old_path() -> None:
    layer, x = coupling(), torch.randn(9, 5)
    assert is_fused(layer(x)) and is_fused(layer.inverse(x))
    with torch.autocast("cpu", torch.bfloat16):
        y, ladj = layer(x)
    assert not is_fused((y, ladj)) and y.isfinite().all() and ladj.dtype == torch.float32
    with use_backend("reference"):
        assert not is_fused(layer(x))
    with torch.no_grad():
        layer.conditioner.final_layer = nn.Sequential(layer.conditioner.final_layer)
    y, ladj = layer(x)  # a layer somebody replaced, with no out_features
    assert not is_fused((y, ladj)) and y.shape == x.shape


def test_a_deep_net_takes_the_old_path() -> None:
    """More layers than the kernels' tables hold."""
    layer = Coupling((0, 1), lambda i, o: ResidualNet(i, o, hidden=4, blocks=40), RQS())
    y, ladj = layer(torch.randn(5, 2))
    (y.sum() + ladj.sum()).backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_a_wrong_number_of_parameters_is_an_error() -> None:
    layer = coupling()
    layer.conditioner.final_layer = nn.Linear(24, 7)
    with pytest.raises(ValueError, match="conditioner must return"):
        layer(torch.randn(9, 5))


def test_the_layer_follows_its_mask_and_its_weights() -> None:
    """Nothing of a call may stay: masks are loaded, weights written through .data, layers copied and pickled."""
    layer, x = coupling((0, 1, 1, 0, 1)), torch.randn(9, 5)
    other = coupling((1, 0, 1, 0, 1))
    layer.load_state_dict(other.state_dict())
    with torch.no_grad():
        assert_same_bits([*layer(x)], [*other(x)])
        for p in layer.parameters():
            p.data.add_(0.1)
        changed = layer(x)
        assert not torch.equal(changed[0], other(x)[0])
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert_same_bits([*twin(x)], [*changed])


@pytest.mark.parametrize("mode", ["meta", "fake"])
def test_a_model_made_without_memory_spoils_no_other(mode) -> None:
    """Splits are shared by all models: they must not remember the device the first was made on."""
    mask = (0, 1, 1, 1, 0, 0, 1) if mode == "meta" else (1, 1, 1, 1, 0, 0, 1)
    with torch.device("meta") if mode == "meta" else FakeTensorMode():
        coupling(mask)
    layer, x = coupling(mask), torch.randn(9, 7)
    y, ladj = layer(x)
    assert is_fused((y, ladj))
    with use_backend("reference"):
        torch.testing.assert_close((y, ladj), layer(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("context", [None, 3])
def test_an_accelerated_nflows_layer_with_and_without(context, inverse) -> None:
    pytest.importorskip("nflows", reason="nflows is not installed")
    from tests.compat import nflows_models as models

    layer = models.coupling("irregular", models.dense(context)).double()
    x = models.normal(6)
    c = None if context is None else models.normal(context)
    theirs = of_layer(layer, x, c, inverse)[1]
    compat.accelerate(layer)
    fused, mine = of_layer(layer, x, c, inverse)
    handle = layer.transform_net.register_forward_hook(lambda *_: None)
    in_parts, parts = of_layer(layer, x, c, inverse)
    handle.remove()
    assert fused and not in_parts
    torch.testing.assert_close(mine, parts, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9)


# ---- memory ----


@pytest.fixture
def bench() -> tuple[Any, Any]:
    """The benchmark's models, and its counter of bytes."""
    pytest.importorskip("nflows", reason="nflows is not installed")
    return importlib.import_module("bench.suites.model"), importlib.import_module("bench.report.memory")


@pytest.mark.parametrize(("features", "batch"), [(6, 512), (63, 256)])
def test_bytes_kept_for_backward(features, batch, bench) -> None:
    models, memory = bench
    x = torch.randn(batch, features)
    kept = {}
    for name in ("nflows eager", "nflows accelerated", "flowkernels NSF"):
        model = models.build(name, features)
        resident = tuple(model.module.parameters())
        kept[name] = memory.saved_bytes(lambda model=model: model.log_prob(x), resident=resident)
    # per layer the input and what enters the second layer of each block; 1 % for the base density
    most = 1.01 * models.LAYERS * 4 * batch * (models.BLOCKS * models.HIDDEN + 2 * features)
    # Run as one op, a flow keeps every activation that saves it a product, as long as all are below 32 MB.
    least = max(most, min(kept["nflows eager"] * 0.7, 33 << 20))
    assert kept["nflows accelerated"] <= least and kept["flowkernels NSF"] <= least, kept


def test_memory_does_not_grow() -> None:
    layer, x = coupling(context=2), torch.randn(2000, 5)
    context = torch.randn(2000, 2)

    def step() -> None:
        y, ladj = layer(x, context)
        (y.square().sum() - ladj.sum()).backward()
        layer.zero_grad()

    def resident() -> int:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * 4096

    for _ in range(10):
        step()
    before = resident()
    for _ in range(50):
        step()
    assert resident() - before < 4 << 20  # one call keeps half a megabyte for its backward


# ---- threads ----


@pytest.mark.parametrize("n", [1, 2])
def test_called_from_several_python_threads(n, threads) -> None:
    """Scratch memory is a thread's own: calls of several shapes at once give what each gives alone."""
    threads(n)
    names = ("usual", "circular, context", "more units than a tile has rows", "deep")
    cases = [CASES[name]._replace(rows=(700,)) for name in names]
    given = [[t.float() for t in draw(c)] for c in cases]
    expected = [found(c, t) for c, t in zip(cases, given, strict=True)]
    wrong: list[object] = []

    def work(start: int) -> None:
        torch.set_num_threads(n)
        for j in range(8):
            k = (start + j) % len(cases)
            try:
                assert_same_bits(found(cases[k], given[k]), expected[k])
            except BaseException as error:
                wrong.append(error)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(timeout=120)
    assert not any(w.is_alive() for w in workers), "a thread hangs"
    assert not wrong, wrong


class _Layers(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> list[Tensor]:
        torch.set_num_threads(2)  # a worker starts with one
        c = CASES["usual"]._replace(rows=(700,))
        return found(c, [t.float() for t in draw(c, seed=i)])


def test_in_forked_workers(threads) -> None:
    threads(2)
    data = _Layers()
    expected = [data[i] for i in range(len(data))]  # a parallel region before the fork
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=90
    )
    for mine, right in zip(loader, expected, strict=True):
        assert_same_bits(mine, right)


# ---- arguments ----


def test_columns() -> None:
    assert split_of(3, (0,), (1, 2)) is split_of(3, (0,), (1, 2))
    bad = [((), (0,)), ((0,), ()), ((0, 0), (1,)), ((0,), (1, 1)), ((0,), (3,)), ((-1,), (1,))]
    for inputs, outputs in bad:
        with pytest.raises(ValueError, match="must be distinct features below 3, at least one, got"):
            split_of(3, inputs, outputs)
    c = pickle.loads(pickle.dumps(Split(3, (2,), (0, 1))))
    assert (c.features, c.inputs, c.outputs) == (3, (2,), (0, 1))


def _without(i: int) -> list[Tensor]:
    tensors = draw(CASES["usual"])
    return tensors[:i] + tensors[i + 2 :]


def _with(i: int, t: Tensor) -> list[Tensor]:
    tensors = draw(CASES["usual"])
    return [*tensors[:i], t, *tensors[i + 1 :]]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (_with(0, torch.zeros(5, 7).double()), r"x must be \[..., 6\], got \[5, 7\]"),
        (_with(0, torch.zeros(()).double()), r"x must be \[..., D\], got a scalar"),
        (_with(1, torch.zeros(32, 2).double()), r"\[0\] weight must be \[out, 3\], for 3 features of x, got \[32, 2\]"),
        (_with(1, torch.zeros(32, 4).double()), r"\[0\] weight must be \[out, 3\], for 3 features of x, got \[32, 4\]"),
        (_with(11, torch.zeros(68, 32).double()), r"layers\[5\] bias must be \[68\], got \[69\]"),
        (
            [*_with(11, torch.zeros(68, 32).double())[:-1], torch.zeros(68).double()],
            "must return 69 parameters, got 68",
        ),
        (_without(3), "layers must be 2 \\+ 2 \\* blocks, got 5"),
        (_with(4, torch.zeros(31).double()), r"layers\[1\] bias must be \[32\], got \[31\]"),
        (_with(5, torch.zeros(32, 31).double()), r"layers\[2\] weight must be \[32, 32\], got \[32, 31\]"),
    ],
)
def test_errors(tensors, message) -> None:
    """Also what would make a kernel read past the end of an array."""
    with pytest.raises(ValueError, match=message):
        call(CASES["usual"], tensors)


def test_a_gate_of_another_width_is_an_error() -> None:
    c = CASES["circular, context"]
    tensors = draw(c)
    tensors[8], tensors[9] = tensors[8][:5], tensors[9][:5]  # the gate of the first block
    assert tensors[8].shape == (5, 3)
    with pytest.raises(ValueError, match=r"layers\[3\] weight must be \[13, 3\], got \[5, 3\]"):
        call(c, tensors)


def test_every_case_is_of_its_own_kind() -> None:
    """The table above covers what the kernels tell apart."""
    have = {(c.spline.tails, c.spline.parametrization) for c in CASES.values()}
    assert {tails for tails, _ in have} == {"linear", "circular", None}
    assert {p for _, p in have} == {"softmax", "soft_clip"}
    assert {1, 8, 33, 70} <= {c.spline.bins for c in CASES.values()}
    assert {0, 1, 31, 33, 130} <= {*itertools.chain(*(c.rows for c in CASES.values()))}


@pytest.mark.parametrize(
    "univariate", [Affine("softplus"), Affine("additive"), RQS(bins=4)], ids=["affine", "add", "rqs"]
)
@pytest.mark.parametrize("shape", ["two leading dims", "residual", "blocks", "one feature", "no rows"])
def test_autoregressive_layers_in_one_op(shape, univariate, isa) -> None:
    """The same numbers as the network and then the map, values and every gradient."""
    problem = masked.draw(masked.SHAPES[shape]._replace(P=univariate.n_params), scale=0.5)

    def fused(tensors):
        x, layers, adds = problem.split(tensors)
        found = run_autoregressive_layer(x, made_net(layers, problem.plan, "tanh", adds), univariate)
        assert found is not None
        return found

    def parts(tensors):
        x, layers, adds = problem.split(tensors)
        params = ops.made(x, layers, problem.plan, activation="tanh", adds=adds, backend="reference")
        return univariate(x, params.unflatten(-1, (x.shape[-1], -1)), False)

    found = masked.values_and_gradients(fused, problem.tensors)
    for mine, its in zip(found, masked.values_and_gradients(parts, problem.tensors), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-10, atol=1e-10)


COUPLINGS = {
    "residual": lambda a, b: ResidualNet(a, b, hidden=24, blocks=1),
    "residual, context": lambda a, b: ResidualNet(a, b, hidden=24, blocks=1, context=3),
    "plain": lambda a, b: MLP(a, b, hidden=(24, 17)),
    "plain, context": lambda a, b: MLP(a, b, hidden=(24, 17), context=3),
    "no hidden layer": lambda a, b: MLP(a, b, hidden=(), context=3),
    "tanh": lambda a, b: MLP(a, b, hidden=(24,), activation=torch.tanh),
    "silu module": lambda a, b: MLP(a, b, hidden=(24, 24), activation=torch.nn.SiLU),
}
EVERY_UNIVARIATE = {
    **{scale: Affine(scale) for scale in SCALES},
    "rqs": RQS(bins=4),
}  # fmt: skip


@pytest.mark.thinned(2)
@pytest.mark.parametrize("net", COUPLINGS)
@pytest.mark.parametrize("univariate", EVERY_UNIVARIATE)
@pytest.mark.parametrize("inverse", [False, True])
def test_couplings_run_as_one_op(net, univariate, inverse, isa, monkeypatch) -> None:
    """The same numbers as the conditioner and then the map, values and every gradient."""
    torch.manual_seed(0)
    layer = Coupling([0, 1, 1, 0, 1], COUPLINGS[net], EVERY_UNIVARIATE[univariate]).double()
    x = torch.randn(37, 5).double().requires_grad_()
    context = torch.randn(37, 3).double().requires_grad_() if layer.conditioner.context_features else None
    leaves = [x, *layer.parameters(), *([] if context is None else [context])]
    ran = []
    monkeypatch.setattr(
        "flowkernels.transforms.coupling.run_alone", lambda *a, **k: ran.append(run_alone(*a, **k)) or ran[-1]
    )

    def run() -> list[Tensor]:
        y, ladj = layer.inverse(x, context) if inverse else layer(x, context)
        outputs = [(o, weights(o)) for o in (y, ladj) if o.requires_grad]
        return [y, ladj, *torch.autograd.grad([o for o, _ in outputs], leaves, [g for _, g in outputs])]

    found = run()
    assert ran[0] is not None
    with use_backend("reference"):
        torch.testing.assert_close(found, run(), rtol=1e-9, atol=1e-9)
    assert ran[1] is None


@pytest.mark.parametrize("change", ["activation", "dropout", "hook", "wide", "subclass"])
def test_couplings_whose_net_must_be_called(change) -> None:
    class Doubled(MLP):
        def forward(self, x, context=None):
            return 2 * super().forward(x, context)

    make = {"wide": 513}.get(change, 16)
    torch.manual_seed(0)
    layer = Coupling([0, 1, 0, 1], lambda a, b: MLP(a, b, hidden=(make,), dropout=0.5), Affine("tanh"))
    net: Any = layer.conditioner
    layer.eval()
    if change == "activation":
        net.activation = torch.sin
    elif change == "dropout":
        layer.train()
    elif change == "hook":
        net.hidden_layers[0].register_forward_hook(lambda m, i, o: 2 * o)
    elif change == "subclass":
        net.__class__ = Doubled
    x = torch.randn(9, 4)
    torch.manual_seed(1)
    y, ladj = layer(x)
    torch.manual_seed(1)
    with use_backend("reference"):
        torch.testing.assert_close(layer(x), (y, ladj))
    torch.manual_seed(1)
    params = net(x[:, ::2]).view(9, 2, 2)
    torch.testing.assert_close((y[:, 1::2], ladj), ops.affine(x[:, 1::2], params, scale="tanh"))

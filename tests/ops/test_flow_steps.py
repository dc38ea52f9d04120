"""Steps of `ops.flow` that have no net: the bits of the ops one by one, gradients, and the gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from flowkernels import _native, backends, ops
from flowkernels.ops.flow import LU, Elementwise, FlowSpec, Layer, Normal, Order, Scale, flow, spec_of
from flowkernels.ops.flow import native as flow_native
from flowkernels.ops.flow.checks import checked
from flowkernels.ops.flow_layer import run_layer, split_of
from flowkernels.ops.net.net import dense_net
from flowkernels.transforms import RQS, Affine, SinhArcsinh
from tests.ops.gate import assert_refused, told
from tests.ops.masked import assert_numbers, values_and_gradients
from tests.ops.spline import weights

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(_native.C is None, reason=f"tests the compiled kernels: {_native.why_missing}"),
]
MAPS = {"rqs": RQS(bins=4), "affine": Affine("tanh"), "clipped": RQS(bins=3, parametrization="soft_clip"),
        "circular": RQS(bins=4, tails="circular"), "additive": Affine("additive")}  # fmt: skip


class Own(NamedTuple):
    """A step, but its tensors: lu, log, scale, base, or the name of a map; `bare`: without what it may lack."""

    kind: str
    inverse: bool = False
    bare: bool = False
    outputs: tuple[int, ...] | None = None


class Net(NamedTuple):
    """A coupling: which features it sees and maps."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


Part = Own | Net | Order


class Case(NamedTuple):
    rows: tuple[int, ...]
    D: int
    steps: tuple[Part, ...]


def _coupling(D: int) -> Net:
    return Net(tuple(range(D // 2)), tuple(range(D // 2, D)))


def _mixed(D: int, seed: int = 0) -> tuple[Part, ...]:
    """All kinds there are in both directions, among orders."""
    g = torch.Generator().manual_seed(seed)

    def order() -> Order:
        return Order(tuple(torch.randperm(D, generator=g).tolist()))

    own = [Own("lu"), Own("log"), Own("lu", True), Own("rqs"), Own("scale"), Own("log", True), Own("scale", True),
           Own("affine", True), Own("lu", bare=True), Own("circular", outputs=(D - 1, 0)), Own("lu", True, True),
           Own("log", bare=True), Own("scale", True, True), Own("clipped", outputs=(0,)), Own("additive")]  # fmt: skip
    found: list[Part] = []
    for i, step in enumerate(own):
        found += [order(), step, *([_coupling(D)] if i % 4 == 1 else [])]
    return (*found, order())


CASES = {
    "lu": Case((37,), 5, (Own("lu"), _coupling(5), Own("lu", True))),
    "many rows": Case((700,), 6, (Own("lu"), _coupling(6), Own("lu"), _coupling(6), Own("lu"))),
    "wide": Case((70,), 40, (Own("lu"), _coupling(40), Own("log"), Own("lu", True))),
    "few wide": Case((9,), 131, (Own("lu"), _coupling(131), Own("lu", True), Own("log", True))),
    "scales": Case((33,), 3, (Own("log"), _coupling(3), Own("scale"), Own("log", True), Own("scale", True))),
    "first and last": Case((65,), 4, (Own("rqs"), Own("scale", True, True), _coupling(4), Own("log", bare=True))),
    "one feature": Case((20,), 1, (Own("lu"), Net((0,), (0,)), Own("log"), Own("lu", True), Own("rqs"))),
    "mixed": Case((37,), 6, _mixed(6)),
    "mixed, many rows": Case((300,), 7, _mixed(7, 1)),
    "one row": Case((1,), 5, _mixed(5, 2)),
    "three rows": Case((3,), 5, _mixed(5, 3)),
    "two leading dims": Case((3, 7), 4, _mixed(4, 4)),
    "no rows": Case((0,), 4, _mixed(4, 5)),
    "base": Case((37,), 6, (*_mixed(6, 6), Own("base"))),
    "base, many rows": Case((700,), 5, (_coupling(5), Own("lu"), Own("base"))),
    "base, many features": Case((19,), 70, (_coupling(70), Own("base"))),
    "base, one row": Case((1,), 3, (_coupling(3), Own("base"))),
    "base, one feature": Case((3, 5), 1, (Net((0,), (0,)), Own("base"))),
}
HIDDEN = 9


def _shapes(p: Part, D: int) -> list[tuple[int, ...]]:
    if isinstance(p, Net):
        return [(HIDDEN, len(p.inputs)), (HIDDEN,), (2 * len(p.outputs), HIDDEN), (2 * len(p.outputs),)]
    if isinstance(p, Order) or p.kind == "base":
        return []
    if p.kind in MAPS:
        return [(D if p.outputs is None else len(p.outputs), MAPS[p.kind].n_params)]
    vectors = {"lu": 2, "log": 2, "scale": 2}[p.kind] - p.bare
    return [*([(D, D)] * 2 if p.kind == "lu" else []), *[(D,)] * vectors]


def draw(c: Case, dtype: torch.dtype = torch.float64, scale: float = 0.4) -> list[Tensor]:
    """x, then what each step has. What is divided by stays away from 0."""
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    found = [randn(*c.rows, c.D)]
    for p in c.steps:
        drawn = [scale * randn(*s) / (s[-1] ** 0.5 if len(s) == 2 else 1) for s in _shapes(p, c.D)]
        if isinstance(p, Own) and p.kind == "scale":
            drawn[0] = drawn[0].sign() * (1 + drawn[0].abs())
        if isinstance(p, Own) and p.kind == "lu":
            drawn.insert(3, (1 + 0.2 * randn(c.D).abs()) * torch.arange(c.D).remainder(2).mul(-2).add(1))
        found += drawn
    return [t.to(dtype) for t in found]


def _permutation(D: int) -> tuple[int, ...]:
    return (*range(1, D, 2), *range(0, D, 2))


def build(c: Case, tensors: list[Tensor]) -> tuple[Tensor, list[Any]]:
    x, *rest = tensors
    steps: list[Any] = []
    for p in c.steps:
        if isinstance(p, Order):
            steps.append(p)
            continue
        n = len(_shapes(p, c.D)) + (isinstance(p, Own) and p.kind == "lu")
        own, rest = rest[:n], rest[n:]
        if isinstance(p, Net):
            net = dense_net([(own[0], own[1]), (own[2], own[3])], False, "relu", len(p.inputs), x.shape[:-1], None)
            steps.append(Layer(MAPS["affine"], net, split_of(c.D, p.inputs, p.outputs)))
        elif p.kind == "base":
            steps.append(Normal())
        elif p.kind in MAPS:
            f = MAPS[p.kind]
            steps.append(Elementwise(f.inverted() if p.inverse else f, own[0], p.outputs))
        elif p.kind == "lu":
            lower, upper, log_s, sign_s, *bias = own
            order = None if p.bare else _permutation(c.D)
            steps.append(LU(lower, upper, log_s, sign_s, order, *(bias or [None]), inverse=p.inverse))
        else:
            steps.append(Scale(own[0], None if p.bare else own[1], p.inverse, p.kind == "log"))
    return x, steps


def whole(c: Case, tensors: list[Tensor], backend: str | None = "cpu", **how: Any) -> tuple[Tensor, Tensor]:
    x, steps = build(c, tensors)
    return flow(x, steps, backend=backend, **how)


def _alone(step: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """A step by an op of its own."""
    if isinstance(step, Layer):
        found = run_layer(x, step.net, step.univariate, step.split)
        assert found is not None
        return found
    if isinstance(step, Normal):
        return x, torch.distributions.Normal(x.new_zeros(()), 1).log_prob(x).sum(-1)
    if isinstance(step, LU):
        order = None if step.permutation is None else torch.tensor(step.permutation)
        return ops.lu_linear(x, *step[:4], order, step.bias, inverse=step.inverse)
    if isinstance(step, Scale):
        shift = torch.zeros_like(step.scale) if step.shift is None else step.shift
        if step.is_log:
            return ops.actnorm(x, step.scale, shift, inverse=step.inverse)
        ladj = step.scale.abs().log().sum().expand(x.shape[:-1])
        return ((x - shift) / step.scale, -ladj) if step.inverse else (x * step.scale + shift, ladj)
    outputs = list(range(x.shape[-1]) if step.outputs is None else step.outputs)
    y, ladj = step.univariate(x[..., outputs], step.params.expand(*x.shape[:-1], *step.params.shape))
    return x.index_copy(-1, torch.tensor(outputs), y), ladj


def one_by_one(c: Case, tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
    x, steps = build(c, tensors)
    total = None
    for step in steps:
        if isinstance(step, Order):
            x = x[..., list(step.order)]
            continue
        x, ladj = _alone(step, x)
        total = ladj if total is None else total + ladj
    assert total is not None
    return x, total


def assert_same_bits(a: list[Tensor], b: list[Tensor]) -> None:
    for i, (s, t) in enumerate(zip(a, b, strict=True)):
        assert torch.equal(s.contiguous().view(torch.uint8), t.contiguous().view(torch.uint8)), f"result {i}"


# ---- numbers ----


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_numbers(case, precision, all_isas) -> None:
    c = CASES[case]
    assert_numbers(lambda b, t: whole(c, t, b), draw(c), "flow", precision, all_isas, shared=True)


# A scale that is no logarithm and the base have no ops of their own: torch multiplies and adds, and rounds in between.
EXACT = {
    name: c for name, c in CASES.items() if not any(isinstance(p, Own) and p.kind in ("scale", "base") for p in c.steps)
}
EXACT["mixed without scales"] = Case(
    (37,), 6, tuple(p for p in _mixed(6) if not (isinstance(p, Own) and p.kind == "scale"))
)
EXACT["mixed without scales, many rows"] = EXACT["mixed without scales"]._replace(rows=(300,))


@pytest.mark.parametrize("case", EXACT)
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_bits_of_the_ops_one_by_one(case, precision, isa) -> None:
    """y, ladj, the gradient of x and those of nets; the steps' own are sums over rows in another order, and so is ladj
    of the maps without a net."""
    c = EXACT[case]
    has_maps = any(isinstance(p, Own) and p.kind in MAPS for p in c.steps)
    given = draw(c, precision)
    mine = values_and_gradients(lambda t: whole(c, t), given)
    theirs = values_and_gradients(lambda t: one_by_one(c, t), given)
    at, same = 3, [0, 2] if has_maps else [0, 1, 2]
    for p in c.steps:
        n = len(_shapes(p, c.D)) + (isinstance(p, Own) and p.kind == "lu")
        same += range(at, at + n) if isinstance(p, Net) else ()
        at += n
    assert at == len(mine)
    assert_same_bits([mine[i] for i in same], [theirs[i] for i in same])
    rounding = 1e3 * torch.finfo(precision).eps
    for s, t in zip(mine, theirs, strict=True):
        torch.testing.assert_close(s, t, rtol=rounding, atol=rounding * (1 + float(t.abs().max()) if t.numel() else 0))


@pytest.mark.parametrize("case", CASES)
def test_flat_memory_gives_the_same_bits(case, isa) -> None:
    given = draw(CASES[case], torch.float32)
    fast = values_and_gradients(lambda t: whole(CASES[case], t), given)
    assert_same_bits(values_and_gradients(lambda t: whole(CASES[case], t, memory="flat"), given), fast)


@pytest.mark.parametrize("case", CASES)
def test_the_reference_is_the_ops_written_out(case) -> None:
    c = CASES[case]
    mine = values_and_gradients(lambda t: whole(c, t, "reference"), draw(c))
    torch.testing.assert_close(mine, values_and_gradients(lambda t: one_by_one(c, t), draw(c)), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("case", ["lu", "mixed", "wide"])
def test_the_inverse_undoes(case, isa) -> None:
    c = CASES[case]
    x, *rest = draw(c)
    _, steps = build(c, [x, *rest])
    back: list[Any] = []
    for step in reversed(steps):
        if isinstance(step, Order):
            back.append(Order(tuple(sorted(range(c.D), key=step.order.__getitem__))))
        elif isinstance(step, (Layer, Elementwise)):
            back.append(step._replace(univariate=step.univariate.inverted()))
        else:
            back.append(step._replace(inverse=not step.inverse))
    y, ladj = flow(x, steps, backend="cpu")
    again, ladj_back = flow(y, back, backend="cpu")
    torch.testing.assert_close(again, x, rtol=0, atol=1e-8)
    torch.testing.assert_close(ladj_back, -ladj, rtol=0, atol=1e-7)


@pytest.mark.parametrize("rows", [1, 2, 5, 16, 127, 129, 1000])
def test_the_bits_of_a_row_do_not_depend_on_how_rows_are_grouped(rows, isa) -> None:
    c = EXACT["mixed without scales"]._replace(rows=(rows,))
    given = draw(c, torch.float32)
    mine = values_and_gradients(lambda t: whole(c, t), given)
    assert_same_bits(mine[:3:2], values_and_gradients(lambda t: one_by_one(c, t), given)[:3:2])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_same_bits_twice_and_threads_agree(n, isa, threads) -> None:
    c = CASES["mixed"]._replace(rows=(1500,))
    given = draw(c)
    alone = values_and_gradients(lambda t: whole(c, t), given)
    threads(n)
    first = values_and_gradients(lambda t: whole(c, t), given)
    assert_same_bits(values_and_gradients(lambda t: whole(c, t), given), first)
    assert_same_bits(first[:3], alone[:3])
    torch.testing.assert_close(first, alone, rtol=1e-9, atol=1e-9)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.t().contiguous().t() if t.dim() == 2 else torch.stack([t, t], -1)[..., 0],
    "rows apart": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
    "negative bit": lambda t: torch.ops.aten._neg_view(-t),
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_gives_the_bits_of_its_copy(view) -> None:
    c = CASES["mixed"]
    given = draw(c, torch.float32)
    dense = [*whole(c, given)]
    for i, t in enumerate(given):
        assert_same_bits([*whole(c, [*given[:i], VIEWS[view](t), *given[i + 1 :]])], dense)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_value_stays_in_its_row(bad, isa) -> None:
    c = CASES["mixed"]
    given = draw(c, torch.float32)
    clean = values_and_gradients(lambda t: whole(c, t), given)
    for row, column in ((0, 0), (3, 1), (36, 5)):  # the first row also pads the last block
        wrong = [given[0].clone(), *given[1:]]
        wrong[0][row, column] = bad
        seen = values_and_gradients(lambda t: whole(c, t), wrong)
        others = [i for i in range(37) if i != row]
        for i in (0, 1, 2):
            assert torch.equal(seen[i][others], clean[i][others])


# ---- gradients ----


def test_only_some_gradients_wanted() -> None:
    c = CASES["mixed"]
    given = draw(c)
    every = values_and_gradients(lambda t: whole(c, t), given)[2:]
    for wanted in [[i] for i in range(len(given))] + [[0, 3], [2, len(given) - 1]]:
        leaves = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(given)]
        y, ladj = whole(c, leaves)
        grads = torch.autograd.grad((y, ladj), [leaves[i] for i in wanted], [weights(y), weights(ladj)])
        torch.testing.assert_close([*grads], [every[i] for i in wanted], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("used", [0, 1], ids=["y only", "ladj only"])
def test_only_one_output_used(used) -> None:
    c, grads = CASES["mixed"], []
    for backend in ("cpu", "reference"):
        leaves = [t.requires_grad_() for t in draw(c)]
        found = torch.autograd.grad(whole(c, leaves, backend)[used].square().sum(), leaves, allow_unused=True)
        grads.append([torch.zeros_like(t) if g is None else g for g, t in zip(found, leaves, strict=True)])
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-8)


def test_gradcheck_and_gradgradcheck() -> None:
    steps = (Own("lu"), Own("scale", True), _coupling(2), Own("lu", True), Own("log"), Own("affine", outputs=(1,)))
    c = Case((2,), 2, steps)
    leaves = [t.requires_grad_() for t in draw(c)]
    assert torch.autograd.gradcheck(lambda *t: whole(c, [*t]), leaves)
    assert torch.autograd.gradgradcheck(lambda *t: whole(c, [*t], None), leaves)


def test_it_is_one_node() -> None:
    given = [t.requires_grad_() for t in draw(CASES["mixed"])]
    y, ladj = whole(CASES["mixed"], given)
    assert type(y.grad_fn).__name__ == "flowkernels::flowBackward" and y.grad_fn is ladj.grad_fn


# ---- every way torch may call it ----


def test_transforms() -> None:
    c = Case((), 3, (Own("lu"), Own("scale", True), _coupling(3), Order((2, 0, 1)), Own("rqs"), Own("lu", True)))
    _, *rest = draw(c)
    x = draw(c._replace(rows=(4,)))[0]

    def f(v: Tensor) -> tuple[Tensor, Tensor]:
        return whole(c, [v, *rest], None)

    y = whole(c._replace(rows=(4,)), [x, *rest], None)
    torch.testing.assert_close(torch.func.vmap(f)(x), y)
    jacobian = torch.func.vmap(torch.func.jacrev(f))(x)[0]
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], y[1], rtol=1e-8, atol=1e-8)


def _spec(c: Case, given: list[Any]) -> tuple[FlowSpec, Tensor, list[Tensor]]:
    x, steps = build(c, given)
    parts = [checked(i, step, x) for i, step in enumerate(steps)]
    return spec_of(c.D, tuple(s for s, _ in parts)), x, [t for _, part in parts for t in part]


@pytest.mark.parametrize("case", ["lu", "mixed", "scales"])
def test_a_spec_in_words(case) -> None:
    spec, x, tensors = _spec(CASES[case], draw(CASES[case]))
    again = FlowSpec.from_packed(*spec.packed())
    assert again.text == spec.text and again.steps[0] == spec.steps[0]
    assert_same_bits([*flow_native.fwd(again, x, *tensors)], [*flow_native.fwd(spec, x, *tensors)])


def test_the_library_op() -> None:
    c = CASES["mixed"]._replace(rows=(7,))
    spec, x, tensors = _spec(c, [t.requires_grad_() for t in draw(c)])
    torch.library.opcheck(torch.ops.flowkernels.flow.default, ([x, *tensors], spec.text, "auto"))


def test_compile() -> None:
    c = CASES["mixed"]
    given = draw(c)
    torch._dynamo.reset()

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return whole(c, [*tensors], None)

    compiled: Any = torch.compile(run, backend="aot_eager", fullgraph=True)
    mine = values_and_gradients(lambda t: compiled(*t), given)
    torch.testing.assert_close(mine, values_and_gradients(lambda t: whole(c, t), given), rtol=1e-8, atol=1e-8)


def test_a_map_without_kernels(monkeypatch) -> None:
    monkeypatch.setattr(backends, "_warned", set())
    c = CASES["lu"]
    x, steps = build(c, draw(c))
    f = SinhArcsinh()
    steps.append(Elementwise(f, torch.zeros(5, f.n_params).double()))
    with pytest.raises(backends.BackendUnavailableError, match="no kernel for SinhArcsinh"):
        flow(x, steps, backend="cpu")


# ---- arguments ----


def _lu(**more: Any) -> LU:
    square, vector = torch.zeros(3, 3), torch.ones(3)
    return LU(square, square, vector, vector)._replace(**more)


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (_lu(lower=torch.zeros(3, 2)), ValueError, r"layers\[1\] lower must be \[3, 3\], got \[3, 2\]"),
        (_lu(upper=torch.zeros(4, 3)), ValueError, r"layers\[1\] upper must be \[3, 3\], got \[4, 3\]"),
        (_lu(upper=None), TypeError, r"layers\[1\] upper must be a tensor, got NoneType"),
        (Scale(None), TypeError, r"layers\[1\] scale must be a tensor, got NoneType"),  # type: ignore[arg-type]
        (_lu(log_s=torch.zeros(2)), ValueError, r"layers\[1\] log_s must be \[3\], got \[2\]"),
        (_lu(sign_s=torch.zeros(3, 1)), ValueError, r"layers\[1\] sign_s must be \[3\], got \[3, 1\]"),
        (_lu(bias=torch.zeros(1)), ValueError, r"layers\[1\] bias must be \[3\], got \[1\]"),
        (_lu(bias=torch.zeros(3).double()), TypeError, r"bias must be of the dtype of x = torch.float32, got"),
        (_lu(permutation=(0, 1)), ValueError, r"layers\[1\] permutation must be an order of 3 features, got"),
        (_lu(permutation=(0, 1, 1)), ValueError, r"layers\[1\] permutation must be an order of 3 features, got"),
        (_lu(inverse=1), ValueError, r"inverse must be"),
        (Scale(torch.zeros(2)), ValueError, r"layers\[1\] scale must be \[3\], got \[2\]"),
        (Scale(torch.zeros(3), torch.zeros(1)), ValueError, r"layers\[1\] shift must be \[3\], got \[1\]"),
        (Scale(torch.zeros(3), None, False, 2), ValueError, r"is_log must be"),  # type: ignore[arg-type]
        (Elementwise(Affine(), torch.zeros(2, 2)), ValueError, r"params must be \[3, 2\], got \[2, 2\]"),
        (Elementwise(Affine(), torch.zeros(2, 2), (0, 0)), ValueError, "outputs must be distinct features below 3"),
        (Elementwise(Affine(), torch.zeros(1, 2), (3,)), ValueError, "outputs must be distinct features below 3"),
        (Elementwise(3, torch.zeros(3, 2)), TypeError, "univariate must be a map"),  # type: ignore[arg-type]
        (Normal, TypeError, r"layers\[1\] must be a Layer or an Order, got type"),
    ],
)
def test_errors(step, error, message) -> None:
    c = Case((5,), 3, (_coupling(3),))
    x, steps = build(c, draw(c, torch.float32))
    with pytest.raises(error, match="ops.flow: " + ".*" + message):
        flow(x, [*steps, step])


def test_the_base_is_the_last_step() -> None:
    c = Case((5,), 3, (_coupling(3), _coupling(3)))
    x, (first, second) = build(c, draw(c, torch.float32))
    with pytest.raises(ValueError, match=r"^ops\.flow: a Normal must be the last of layers, got one at 1 of 3"):
        flow(x, [first, Normal(), second])
    with pytest.raises(ValueError, match="layers must have at least one Layer"):
        flow(x, [Normal()])


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 3e38, float("nan")])
def test_the_base_where_its_square_is_no_number(value, isa) -> None:
    """The density is 0, as torch has it, and not NaN; and other rows, in front and behind, are as they were."""
    c = Case((20,), 5, (_coupling(5), Own("base")))
    given = draw(c, torch.float32)
    given[0][7, 4] = value  # which is mapped, and no net sees
    y, ladj = whole(c, given)
    expected = torch.distributions.Normal(0.0, 1.0, validate_args=False).log_prob(y).sum(-1)
    assert ladj[7].isnan() if value != value else ladj[7] == -float("inf")
    _, without = whole(c._replace(steps=c.steps[:1]), given)
    torch.testing.assert_close(ladj, expected + without, equal_nan=True)


# ---- the gate in C++ ----


def _call(permutation: Any, outputs: Any, tensors: Any) -> Any:
    C: Any = _native.C
    f = C.Flow(3)
    f.add_lu(False, permutation, True)
    f.add_order((2, 0, 1))
    f.add_scale(True, True, True)
    f.add_elementwise(Affine().handle(C), outputs)
    return C.FlowCall(f, 7, tensors)


def _tensors(i: int = 0, t: Any = None) -> list[Any]:
    found: list[Any] = [torch.zeros(s) for s in [(3, 3), (3, 3), (3,), (3,), (3,), (3,), (3,), (2, 2)]]
    if t is not None:
        found[i] = t
    return found


GOOD = {"permutation": (2, 1, 0), "outputs": (2, 0), "tensors": _tensors()}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a short permutation": ({"permutation": (0, 1)}, "flow: a permutation must be a permutation of 0 to 2"),
    "a permutation twice": ({"permutation": (0, 1, 1)}, "flow: a permutation must be a permutation of 0 to 2"),
    "no outputs": ({"outputs": ()}, "distinct features below 3, at least one"),
    "an output beyond": ({"outputs": (0, 3)}, "distinct features below 3, at least one"),
    "an output twice": ({"outputs": (1, 1)}, "distinct features below 3, at least one"),
    "fewer tensors": ({"tensors": _tensors()[:-1]}, "flow: tensors must be 8 entries, got 7"),
    "doubles first": ({"tensors": _tensors(0, torch.zeros(3, 3).double())}, "layer 0: upper must be float64, got"),
    "halves": ({"tensors": [t.half() for t in _tensors()]}, "layer 0: weights must be float32 or float64, got float16"),
    "a wide lower": ({"tensors": _tensors(0, torch.zeros(3, 4))}, "layer 0: lower must be [3, 3], got [3, 4]"),
    "a flat upper": ({"tensors": _tensors(1, torch.zeros(9))}, "layer 0: upper must be [3, 3], got [9]"),
    "a short log_s": ({"tensors": _tensors(2, torch.zeros(2))}, "layer 0: log_s must be [3], got [2]"),
    "a short sign_s": ({"tensors": _tensors(3, torch.zeros(2))}, "layer 0: sign_s must be [3], got [2]"),
    "a short bias": ({"tensors": _tensors(4, torch.zeros(2))}, "layer 0: bias must be [3], got [2]"),
    "no bias": ({"tensors": [*_tensors()[:4], None, *_tensors()[5:]]}, "layer 0: bias must be a tensor, got None"),
    "a turned lower": ({"tensors": _tensors(0, torch.zeros(3, 3).t())}, "layer 0: lower must be contiguous, got"),
    "a null upper": ({"tensors": _tensors(1, told(torch.zeros(3, 3), data_ptr=0))}, "upper must be in memory"),
    "a short scale": ({"tensors": _tensors(5, torch.zeros(2))}, "layer 1: scale must be [3], got [2]"),
    "a scale of doubles": ({"tensors": _tensors(5, torch.zeros(3).double())}, "layer 1: weights must be float32, got"),
    "a long shift": ({"tensors": _tensors(6, torch.zeros(4))}, "layer 1: shift must be [3], got [4]"),
    "a shift with gaps": ({"tensors": _tensors(6, torch.zeros(6)[::2])}, "layer 1: shift must be contiguous, got"),
    "other params": ({"tensors": _tensors(7, torch.zeros(3, 2))}, "layer 2: params must be [2, 2], got [3, 2]"),
    "params of doubles": ({"tensors": _tensors(7, torch.zeros(2, 2).double())}, "layer 2: weights must be float32"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_call(case) -> None:
    _call(**GOOD)
    assert_refused(_call, GOOD, *WRONG[case])


def test_a_call_of_the_base_alone() -> None:
    """Of which nobody knows the dtype."""
    C: Any = _native.C
    f = C.Flow(3)
    f.add_normal()
    with pytest.raises(ValueError, match="layer 0: weights must be float32 or float64, got another dtype"):
        C.FlowCall(f, 7, ())


def _bwd(kept: Any, grads: Any) -> None:
    rows = torch.zeros(7, 3)
    _call(**GOOD).bwd(rows, rows, torch.zeros(7), torch.zeros(7, 3), kept, grads, 1)


BACKWARD = {"kept": torch.zeros(2 * 7 * 3), "grads": _tensors()}


@pytest.mark.parametrize("i", range(8))
def test_gradients_of_each(i) -> None:
    _bwd(**BACKWARD)
    n = _tensors()[i].numel()
    wrong = _tensors(i, torch.zeros(n + 1))
    assert_refused(_bwd, BACKWARD, {"grads": wrong}, f"a gradient must be of {n} elements, got [{n + 1}]")
    wrong = _tensors(i, torch.zeros(n).double())
    assert_refused(_bwd, BACKWARD, {"grads": wrong}, "flow: a gradient must be float32, got float64")


def test_room_for_what_enters_each() -> None:
    assert_refused(_bwd, BACKWARD, {"kept": torch.zeros(41)}, "flow: kept must be of 42 elements, got [41]")

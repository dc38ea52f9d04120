"""One masked layer: against a dense layer written out, the numbers rule, masks, gradients, contract."""

import copy
import gc
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from flowkernels import ops
from flowkernels.ops.net.plan import LayerPlan, _by_identity, layer_plan
from tests.device import here
from tests.ops.masked import ACTIVATIONS, assert_numbers, backends_of, values_and_gradients

pytestmark = pytest.mark.usefixtures("kernels", "one_thread", "narrow_blocks")

# (leading dims, K, N): features, hidden widths that are multiples of nothing, batches around blocks of rows
SHAPES = [
    ((1,), 1, 1),
    ((0,), 3, 5),
    ((5,), 2, 7),
    ((33,), 7, 3),
    ((130,), 43, 70),
    ((130,), 70, 129),
    ((3, 5), 64, 43),
    ((), 7, 11),
    ((5,), 300, 17),
]
BY_HAND = {
    "identity": lambda z: z,
    "relu": lambda z: z.clamp_min(0),
    "leaky_relu": lambda z: torch.where(z > 0, z, 0.01 * z),
    "elu": lambda z: torch.where(z > 0, z, z.clamp_max(0).expm1()),
    "gelu": lambda z: 0.5 * z * (1 + torch.erf(z / 2**0.5)),
    "silu": lambda z: z / (1 + torch.exp(-z)),
    "tanh": lambda z: 1 - 2 / (torch.exp(2 * z) + 1),
}


def degrees(K: int, N: int, seed: int = 0) -> tuple[list[int], list[int]]:
    g = torch.Generator().manual_seed(seed)
    highest = max(2, min(K, N))
    return tuple(torch.randint(0, highest, (n,), generator=g, device="cpu").tolist() for n in (K, N))  # type: ignore[return-value]


def draw(lead: tuple[int, ...], K: int, N: int) -> list[Tensor]:
    """x, weight, bias, residual in float64."""
    g = torch.Generator().manual_seed(1)
    shapes = ((*lead, K), (N, K), (N,), (*lead, N))
    x, w, b, r = (here(torch.randn(s, generator=g, dtype=torch.float64, device="cpu")) for s in shapes)
    return [x, w / K**0.5, b, r]


@pytest.mark.interpreted
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("strict", [False, True])
def test_is_a_dense_layer_with_zeros(activation, strict) -> None:
    ins, outs = degrees(7, 11)
    x, w, b, r = draw((3, 5), 7, 11)
    dense = w.clone()
    for o in range(11):
        for i in range(7):
            if outs[o] < ins[i] or (strict and outs[o] == ins[i]):
                dense[o, i] = 0
    wanted = BY_HAND[activation](x @ dense.T + b + r)
    for backend in backends_of("masked_linear"):
        found = ops.masked_linear(x, w, b, ins, outs, strict=strict, activation=activation, residual=r, backend=backend)
        torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)
        bare = ops.masked_linear(x, w, None, ins, outs, strict=strict, backend=backend)
        torch.testing.assert_close(bare, x @ dense.T, rtol=1e-13, atol=1e-13)


# Every shape with two activations, every activation with one shape.
NUMBERS = [(i, a) for i in range(len(SHAPES)) for a in ACTIVATIONS if a in ("relu", "tanh") or i == 4]


@pytest.mark.interpreted(
    "float32-0-relu",
    "float32-1-relu",
    "float32-3-relu",
    "float32-4-gelu",
    "float32-8-tanh",
    "float64-6-tanh",
    "float64-7-relu",
)
@pytest.mark.parametrize(("i", "activation"), NUMBERS)
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_numbers(i, activation, precision, all_isas) -> None:
    lead, K, N = SHAPES[i]
    plan = LayerPlan(*degrees(K, N), strict=bool(i % 2))
    has_bias, has_residual = i % 4 < 2, i % 2 == 0
    x, w, b, r = draw(lead, K, N)

    def f(backend, tensors):
        x, w, *rest = tensors
        bias, residual = rest[0] if has_bias else None, rest[-1] if has_residual else None
        return ops.masked_linear(x, w, bias, plan, activation=activation, residual=residual, backend=backend)

    tensors = [x, w, *([b] if has_bias else []), *([r] if has_residual else [])]
    assert_numbers(f, tensors, "masked_linear", precision, all_isas)


SLOPES_AT_0 = {"relu": 0.0, "leaky_relu": 0.01, "elu": 1.0, "gelu": 0.5, "silu": 0.5, "tanh": 1.0}  # those of torch


@pytest.mark.parametrize("activation", SLOPES_AT_0)
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_slope_at_exactly_zero(activation, precision, all_isas) -> None:
    """Where a unit is dead (its weights, or what it sees, are 0) this slope is all that may revive it."""
    x, w, b, _ = (t.to(precision) for t in draw((9,), 7, 11))
    ins, outs = degrees(7, 11)
    for isa in all_isas:
        for backend in backends_of("masked_linear"):
            bias = torch.zeros_like(b).requires_grad_()
            y = ops.masked_linear(torch.zeros_like(x), w, bias, ins, outs, activation=activation, backend=backend)
            (slope,) = torch.autograd.grad(y.sum() / 9, bias)
            torch.testing.assert_close(slope, torch.full_like(slope, SLOPES_AT_0[activation]), msg=f"{isa}, {backend}")


@pytest.mark.parametrize("activation", ["elu", "tanh"])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_near_zero_an_activation_keeps_its_digits(activation, precision, all_isas) -> None:
    """e^v - 1 and 1 - 2 / (e^2v + 1) would cancel: of v = 1e-8 nothing would be left in float32."""
    v = 10.0 ** torch.arange(-30.0, 0.0, 0.25, dtype=torch.float64, device="cpu")
    v = torch.cat([v, -v]).to(precision)[:, None]
    exact = v.numpy().astype(np.longdouble)
    exact = np.tanh(exact) if activation == "tanh" else np.where(exact > 0, exact, np.expm1(exact))
    one, none = here(torch.ones(1, 1, dtype=precision, device="cpu")), None
    for isa in all_isas:
        for backend in backends_of("masked_linear"):
            found = ops.masked_linear(here(v), one, none, [0], [0], activation=activation, backend=backend)
            off = np.abs(found.cpu().numpy() / exact - 1).max()
            assert off <= 4 * torch.finfo(precision).eps, f"{isa}, {backend}: {off:.3g} of the value"


def test_long_sums_lose_no_more_than_torch(isa) -> None:
    """A sum of a thousand products in one chain errs by several times what torch's blocks do."""
    g = torch.Generator().manual_seed(0)
    shapes = ((2000, 1024), (1030, 1024), (2000, 1030))
    x, w, grad = (torch.randn(s, generator=g, device="cpu").requires_grad_() for s in shapes)

    def results(x: Tensor, w: Tensor, grad: Tensor, backend: str) -> list[Tensor]:
        y = ops.masked_linear(x, w, None, [0] * 1024, [0] * 1030, backend=backend)
        return [y.detach(), *torch.autograd.grad(y, [x, w], grad)]

    truth = results(x.double(), w.double(), grad.double(), "reference")
    mine, its = (results(x, w, grad, backend) for backend in ("cpu", "reference"))
    for a, b, right in zip(mine, its, truth, strict=True):
        assert (a - right).norm() <= 2 * (b - right).norm()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck_and_gradgradcheck(activation) -> None:
    ins, outs = degrees(4, 5)
    tensors = [t.requires_grad_() for t in draw((3,), 4, 5)]
    for backend in backends_of("masked_linear"):

        def f(x, w, b, r, backend=backend):
            return ops.masked_linear(x, w, b, ins, outs, activation=activation, residual=r, backend=backend)

        assert torch.autograd.gradcheck(f, tensors)
        assert torch.autograd.gradgradcheck(f, tensors)


@pytest.mark.interpreted
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_masked_weights_have_no_gradient_and_no_effect(precision) -> None:
    ins, outs = degrees(43, 70)
    plan = LayerPlan(ins, outs, strict=False)
    x, w, b, r = (t.to(precision) for t in draw((130,), 43, 70))
    hidden = plan.mask(w) == 0
    for backend in backends_of("masked_linear"):

        def f(t, backend=backend):
            return ops.masked_linear(t[0], t[1], t[2], plan, activation="silu", residual=t[3], backend=backend)

        found = values_and_gradients(f, [x, w, b, r])
        assert hidden.any() and (found[2][hidden] == 0).all() and (found[2][~hidden] != 0).all()
        other = torch.where(hidden, float("nan"), w)
        for a, c in zip(found, values_and_gradients(f, [x, other, b, r]), strict=True):
            assert torch.equal(a, c)


@pytest.mark.interpreted
@pytest.mark.parametrize("wanted", [[0], [1], [2], [3], [1, 3]])
def test_only_some_gradients_wanted(wanted) -> None:
    ins, outs = degrees(7, 11)
    every = None
    for backend in backends_of("masked_linear"):
        leaves = [t.requires_grad_() for t in draw((5,), 7, 11)]
        y = ops.masked_linear(*leaves[:3], ins, outs, activation="tanh", residual=leaves[3], backend="reference")
        every = torch.autograd.grad(y.square().sum(), leaves)
        for i, t in enumerate(leaves):
            t.requires_grad_(i in wanted)
        y = ops.masked_linear(*leaves[:3], ins, outs, activation="tanh", residual=leaves[3], backend=backend)
        found = torch.autograd.grad(y.square().sum(), [leaves[i] for i in wanted])
        torch.testing.assert_close(found, tuple(every[i] for i in wanted), rtol=1e-12, atol=1e-12)


@pytest.mark.interpreted
def test_residual_broadcasts() -> None:
    ins, outs = degrees(7, 11)
    x, w, b, _ = draw((3, 5), 7, 11)
    for shape in ((11,), (1, 11), (5, 11), (3, 1, 11)):
        r = torch.randn(shape, dtype=torch.float64)
        wanted = ops.masked_linear(x, w, b, ins, outs, residual=r.expand(3, 5, 11).contiguous())
        for backend in backends_of("masked_linear"):
            torch.testing.assert_close(ops.masked_linear(x, w, b, ins, outs, residual=r, backend=backend), wanted)


@pytest.mark.interpreted
def test_any_layout_of_the_inputs() -> None:
    ins, outs = degrees(7, 11)
    x, w, b, r = draw((5,), 7, 11)
    wanted = ops.masked_linear(x, w, b, ins, outs, residual=r)
    strided = [torch.stack([t, t + 1], -1)[..., 0] for t in (x, w, b, r)]
    turned = [x.mT.contiguous().mT, w.mT.contiguous().mT, b, r]
    for backend in backends_of("masked_linear"):
        for given in (strided, turned):
            found = ops.masked_linear(*given[:3], ins, outs, residual=given[3], backend=backend)
            torch.testing.assert_close(found, wanted)


def test_an_output_without_activation_may_be_written_to() -> None:
    """As that of a linear layer: other libraries divide and add in place."""
    ins, outs = degrees(7, 11)
    grads = []
    for write in (lambda y: y.mul_(2), lambda y: y * 2):
        leaves = [t.clone().requires_grad_() for t in draw((5,), 7, 11)[:3]]
        write(ops.masked_linear(*leaves, ins, outs)).square().sum().backward()
        grads.append([t.grad for t in leaves])
    torch.testing.assert_close(*grads)


@pytest.mark.interpreted
def test_bad_row_stays_in_its_row() -> None:
    ins, outs = degrees(43, 70)
    x, w, b, _ = (t.float() for t in draw((33,), 43, 70))
    bad, others = x.clone(), [i for i in range(33) if i != 4]
    bad[4, 2] = float("nan")
    for backend in backends_of("masked_linear"):
        clean, found = (ops.masked_linear(t, w, b, ins, outs, activation="relu", backend=backend) for t in (x, bad))
        assert torch.equal(found[others], clean[others]) and not found[4].isfinite().all()


def test_transforms_compile_and_autocast() -> None:
    x, w, b, r = draw((5,), 7, 11)
    plan = LayerPlan(*degrees(7, 11), strict=False)

    def f(x, r):
        return ops.masked_linear(x, w, b, plan, activation="tanh", residual=r)

    y = f(x, r)
    torch.testing.assert_close(torch.func.vmap(f)(x, r), y)
    jacobian = torch.func.jacrev(f)(x[0], r[0])
    torch.testing.assert_close(torch.func.jacfwd(f)(x[0], r[0]), jacobian)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(f, backend="aot_eager", fullgraph=True)(x, r), y)
    with torch.autocast(x.device.type, torch.bfloat16):
        found = ops.masked_linear(x.float(), w.float(), b.float(), plan)
    assert found.dtype == torch.bfloat16


def test_compile_with_degrees() -> None:
    x, w, b, _ = draw((5,), 7, 11)
    ins, outs = (tuple(d) for d in degrees(7, 11))

    def f(x):
        return ops.masked_linear(x, w, b, ins, outs)

    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(f, backend="aot_eager", fullgraph=True)(x), f(x))


@pytest.mark.interpreted("relu", "silu")
@pytest.mark.parametrize("activation", ["identity", "relu", "silu"])
def test_library_op(activation) -> None:
    """One node of a compiler's graph, its gradients those of the eager call; and what the dispatcher is promised."""
    ins, outs = degrees(7, 11)
    leaves = [t.requires_grad_() for t in draw((3, 5), 7, 11)]
    plan, graphs = LayerPlan(ins, outs, strict=True), []

    def f(x, w, b, r):
        return ops.masked_linear(x, w, b, plan, activation=activation, residual=r, backend=backend)

    def keep(graph, _):
        graphs.append(graph)
        return graph

    for backend in backends_of("masked_linear"):
        if backend == "reference":
            continue  # a compiler sees through it
        torch._dynamo.reset()
        graphs.clear()
        wanted = values_and_gradients(lambda t: f(*t), leaves)
        found = values_and_gradients(lambda t: torch.compile(f, backend=keep, fullgraph=True)(*t), leaves)
        torch.testing.assert_close(found, wanted)
        targets = [node.target for graph in graphs for node in graph.graph.nodes if node.op == "call_function"]
        assert targets.count(torch.ops.flowkernels.masked_linear.default) == 1
        assert not {torch.where, torch.nn.functional.linear} & set(targets)
        found = values_and_gradients(lambda t: torch.compile(f, backend="aot_eager", fullgraph=True)(*t), leaves)
        torch.testing.assert_close(found, wanted)
        settings = (plan.text, activation, True, True, backend)
        torch.library.opcheck(torch.ops.flowkernels.masked_linear.default, (leaves, *settings))
        y = f(*leaves).detach()
        kept = [y] if activation == "relu" else []
        given = ([y], [*(t.detach() for t in leaves), *kept], [True, False, True, True], *settings)
        utils = ("test_schema", "test_faketensor")
        torch.library.opcheck(torch.ops.flowkernels.masked_linear_bwd.default, given, test_utils=utils)
        for g in torch.ops.flowkernels.masked_linear_bwd.default(*given):
            assert g.untyped_storage().data_ptr() != y.untyped_storage().data_ptr()


@pytest.mark.interpreted
def test_dtypes(dtype, device) -> None:
    ins, outs = degrees(7, 11)
    x, w, b, r = (t.to(device, dtype) for t in draw((5,), 7, 11))
    wide = [t.double() for t in (x, w, b, r)]
    wanted = ops.masked_linear(*wide[:3], ins, outs, activation="gelu", residual=wide[3])
    for backend in {None, *backends_of("masked_linear")} - {"cpu", "reference"}:
        y = ops.masked_linear(x, w, b, ins, outs, activation="gelu", residual=r, backend=backend)
        assert y.dtype == dtype
        assert (y.double() - wanted).abs().max() <= 4 * torch.finfo(dtype).eps * wanted.abs().max()


class TestLayerPlan:
    def test_is_its_definition(self) -> None:
        for seed, strict in ((0, False), (1, True), (2, False)):
            ins, outs = degrees(9, 13, seed)
            plan = LayerPlan(ins, outs, strict=strict)
            mask = torch.tensor([[float(o > i if strict else o >= i) for i in ins] for o in outs])
            assert torch.equal(plan.mask(torch.empty(0)), mask)
            ordered = mask[plan.out_order][:, plan.in_order]
            for row, limit in zip(ordered, plan.limit.tolist(), strict=True):
                assert row.tolist() == [1.0] * limit + [0.0] * (9 - limit)
            assert plan.limit.tolist() == sorted(plan.limit.tolist())
            assert (plan.n_in, plan.n_out, plan.strict) == (9, 13, strict)
            for order, values in ((plan.in_order, ins), (plan.out_order, outs)):
                assert order.tolist() == sorted(range(len(values)), key=values.__getitem__)
                assert order.dtype == plan.limit.dtype == torch.int32 and order.is_contiguous()
            assert plan.degrees_in.tolist() == ins and plan.degrees_out.dtype == torch.int64

    def test_from_text(self) -> None:
        for strict in (False, True):
            plan = LayerPlan([3, 1, 10], [2, 0], strict=strict)
            again = LayerPlan.from_text(plan.text)
            assert torch.equal(again.mask(torch.empty(0)), plan.mask(torch.empty(0))) and again.strict == strict
            assert again is LayerPlan.from_text(plan.text) is layer_plan([3, 1, 10], [2, 0], strict)
            with FakeTensorMode():
                assert LayerPlan.from_text(plan.text) is not again
        assert LayerPlan([1], [1], strict=False).text != LayerPlan([1], [1], strict=True).text

    def test_equal_degrees_share_a_plan(self) -> None:
        one = layer_plan([1, 2], (1, 1, 2))
        assert one is layer_plan((1, 2), torch.tensor([1, 1, 2]))
        assert one is layer_plan(torch.tensor([1, 2]), torch.tensor([1, 1, 2]))
        assert one is not layer_plan([1, 2], [1, 1, 2], True) and one is not layer_plan([1, 2], [1, 2, 2])

    def test_tensors_are_read_once_and_followed(self) -> None:
        ins, outs = torch.tensor([1, 2, 3]), torch.tensor([2, 2])
        first = layer_plan(ins, outs)
        assert layer_plan(ins, outs) is first
        outs[0] = 3
        assert layer_plan(ins, outs).limit.tolist() == [2, 3] != first.limit.tolist()
        n = len(_by_identity)
        del ins
        gc.collect()
        assert len(_by_identity) < n
        with torch.inference_mode():
            assert layer_plan(torch.tensor([1, 2, 3]), torch.tensor([2, 2])) is first

    def test_masks_are_kept_per_dtype_and_fit_for_autograd(self) -> None:
        plan = LayerPlan([1, 2], [1, 2], strict=False)
        with torch.inference_mode():
            plan.mask(torch.empty(0))
        weight = torch.ones(2, 2, requires_grad=True)
        (weight * plan.mask(weight)).sum().backward()
        assert plan.mask(weight) is plan.mask(torch.empty(3)) and plan.mask(weight.double()).dtype == torch.float64

    def test_fake_tensors_do_not_stay(self) -> None:
        ins, outs = [1, 2, 3, 4], [1, 3, 1, 3]
        with FakeTensorMode():
            ops.masked_linear(torch.empty(5, 4), torch.empty(4, 4), None, ins, outs)
        assert ops.masked_linear(torch.ones(5, 4), torch.ones(4, 4), None, ins, outs)[0].tolist() == [1, 3, 1, 3]

    def test_copies_are_itself(self) -> None:
        plan = layer_plan([1, 2], [1, 2])
        assert copy.deepcopy(plan) is plan and pickle.loads(pickle.dumps(plan)) is plan
        assert hash(plan) != hash(LayerPlan([1, 2], [1, 2], strict=False))


X, W, B = torch.zeros(4, 3), torch.zeros(2, 3), torch.zeros(2)
INS, OUTS = [1, 2, 3], [1, 2]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.masked_linear([1.0], W, B, INS, OUTS), TypeError, "x must be a tensor, got list"),
        (lambda: ops.masked_linear(X.long(), W, B, INS, OUTS), TypeError, "x must be float32, .*, got torch.int64"),
        (lambda: ops.masked_linear(X.to_sparse(), W, B, INS, OUTS), TypeError, "x must be a dense tensor"),
        (lambda: ops.masked_linear(X[0, 0], W, B, INS, OUTS), ValueError, r"x must be \[..., D\], got a scalar"),
        (lambda: ops.masked_linear(X[:, :2], W, B, INS, OUTS), ValueError, r"x must be \[..., 3\].*, got \[4, 2\]"),
        (lambda: ops.masked_linear(X, W.double(), B, INS, OUTS), TypeError, "weight must be of the dtype of x"),
        (lambda: ops.masked_linear(X, W.to("meta"), B, INS, OUTS), ValueError, "weight must be on the device of x"),
        (lambda: ops.masked_linear(X, W.T, B, INS, OUTS), ValueError, r"weight must be \[2, 3\], got \[3, 2\]"),
        (lambda: ops.masked_linear(X, W, X, INS, OUTS), ValueError, r"bias must be \[2\], got \[4, 3\]"),
        (lambda: ops.masked_linear(X, W, B, INS, OUTS, residual=X), ValueError, r"residual must broadcast to \[4, 2\]"),
        (lambda: ops.masked_linear(X, W, B, INS, OUTS, residual=B[:1]), ValueError, r"residual must .* got \[1\]"),
        (lambda: ops.masked_linear(X, W, B, INS, OUTS, residual=B[None, None]), ValueError, "residual must broadcast"),
        (lambda: ops.masked_linear(X, W, B, INS), ValueError, "degrees_out must be integers, .*, got None"),
        (lambda: ops.masked_linear(X, W, B, layer_plan(INS, OUTS), OUTS), ValueError, "degrees_out must be None"),
        (lambda: ops.masked_linear(X, W, B, [1, 2], OUTS), ValueError, r"x must be \[..., 2\]"),
        (lambda: ops.masked_linear(X, W, B, INS, OUTS, activation="selu"), ValueError, "activation must be one of"),
        (lambda: LayerPlan([], [1], strict=False), ValueError, r"degrees_in must be one row of integers.*, got \[\]"),
        (lambda: LayerPlan([1], [-1], strict=False), ValueError, r"degrees_out must be .* from 0 on, got \[-1\]"),
        (lambda: LayerPlan([1.5], [1], strict=False), ValueError, r"degrees_in must be .*, got \[1.5\]"),
        (lambda: LayerPlan(torch.ones(2), [1], strict=False), ValueError, "got torch.float32"),
        (lambda: LayerPlan(torch.ones(2, 2).long(), [1], strict=False), ValueError, r"got torch.int64 \[2, 2\]"),
    ],
)
def test_errors(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()

"""A whole MADE: against a dense network written out and against nflows, the numbers rule, plans, contract."""

import copy
import pickle

import pytest
import torch

from flowkernels import ops
from flowkernels.ops import MadePlan
from tests.ops.masked import ACTIVATIONS, SHAPES, Shape, assert_numbers, backends_of, draw, values_and_gradients
from tests.ops.test_masked_linear import BY_HAND

pytestmark = pytest.mark.usefixtures("kernels", "one_thread", "narrow_blocks")

EVERY = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def call(problem, backend, tensors, activation="relu"):
    x, layers, adds = problem.split(tensors)
    adds = adds if any(problem.flags) else None
    return ops.made(x, layers, problem.plan, activation=activation, adds=adds, backend=backend)


def by_hand(problem, activation):
    """With dense weights whose masked entries are set to zero one by one, from the degrees."""
    x, layers, adds = problem.split(problem.tensors)
    degrees, act = problem.plan._degrees, BY_HAND[activation]
    dense = []
    for i, (w, b) in enumerate(layers):
        w = w.clone()
        for o, out in enumerate(degrees[i + 1]):
            for k, seen in enumerate(degrees[i]):
                if out < seen or (i == len(layers) - 1 and out == seen):
                    w[o, k] = 0
        dense.append(lambda h, w=w, b=b, c=adds[i]: h @ w.T + b + (0 if c is None else c))
    h = dense[0](x)
    if problem.plan.residual:
        for first, second in zip(dense[1:-1:2], dense[2:-1:2], strict=True):
            h = h + second(act(first(act(h))))
        return dense[-1](h)
    for layer in dense[1:]:
        h = layer(act(h))
    return h


@pytest.mark.interpreted("one of everything", "no rows, residual", "two leading dims", "residual")
@EVERY
def test_is_a_dense_network_with_zeros(shape) -> None:
    problem = draw(shape)
    wanted = by_hand(problem, "silu")
    for backend in backends_of("made"):
        found = call(problem, backend, problem.tensors, "silu")
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@EVERY
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_numbers(shape, precision, all_isas) -> None:
    problem = draw(shape)
    assert_numbers(lambda b, t: call(problem, b, t, "tanh"), problem.tensors, "made", precision, all_isas)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_numbers_of_every_activation(activation, residual, precision, all_isas) -> None:
    problem = draw(Shape((33,), 7, (23, 23), 3, residual, "random", "random", "first"))
    assert_numbers(lambda b, t: call(problem, b, t, activation), problem.tensors, "made", precision, all_isas)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("order", ["natural", "reversed", "random"])
def test_autoregressive(order, residual) -> None:
    """By the Jacobian: parameters of a feature move with all features before it, and with no other."""
    problem = draw(Shape((), 6, (40, 40), 3, residual, order))
    order = problem.plan.order.tolist()
    assert sorted(order) == list(range(6)) and problem.plan.groups == tuple((d,) for d in order)
    for backend in backends_of("made"):

        def f(x, backend=backend):
            return call(problem, backend, [x, *problem.tensors[1:]], "tanh")

        x = problem.tensors[0]
        J = torch.autograd.functional.jacobian(f, x).unflatten(0, (6, 3)).abs().amax(1)
        rank = {d: k for k, d in enumerate(order)}
        for d in range(6):
            for i in range(6):
                assert (J[d, i] > 0) == (rank[i] < rank[d]), (d, i)


@pytest.mark.interpreted("precision0-residual")
@pytest.mark.parametrize("shape", ["three features", "residual"])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_masked_weights_have_no_gradient_and_no_effect(shape, precision) -> None:
    problem = draw(SHAPES[shape])
    tensors = [t.to(precision) for t in problem.tensors]
    hidden = [layer.mask(tensors[0]) == 0 for layer in problem.plan.layers]
    changed = list(tensors)
    for i, h in enumerate(hidden):
        changed[1 + 2 * i] = torch.where(h, float("nan"), tensors[1 + 2 * i])
    for backend in backends_of("made"):
        found, again = (
            values_and_gradients(lambda t, b=backend: call(problem, b, t, "tanh"), given)
            for given in (tensors, changed)
        )
        for i, h in enumerate(hidden):
            g = found[1 + 1 + 2 * i]
            assert h.any() and (g[h] == 0).all() and (g[~h] != 0).any()
        for a, b in zip(found, again, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ["tanh", "gelu", "relu"])
def test_gradcheck_and_gradgradcheck(activation, residual) -> None:
    problem = draw(Shape((3,), 3, (5, 5), 2, residual, "random", adds="all"))
    tensors = [t.requires_grad_() for t in problem.tensors]
    for backend in backends_of("made"):

        def f(*t, backend=backend):
            return call(problem, backend, list(t), activation)

        assert torch.autograd.gradcheck(f, tensors, fast_mode=True)
        assert torch.autograd.gradgradcheck(f, tensors, fast_mode=True)


@pytest.mark.parametrize("shape", ["three features", "residual"])
def test_only_some_gradients_wanted(shape) -> None:
    problem = draw(SHAPES[shape])
    leaves = [t.requires_grad_() for t in problem.tensors]
    every = torch.autograd.grad(call(problem, "reference", leaves).square().sum(), leaves)
    for backend in backends_of("made"):
        for i in range(len(leaves)):
            for k, t in enumerate(leaves):
                t.requires_grad_(k == i)
            (found,) = torch.autograd.grad(call(problem, backend, leaves).square().sum(), [leaves[i]])
            torch.testing.assert_close(found, every[i], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("context", [0, 4])
@pytest.mark.parametrize("D", [1, 2, 6])
def test_is_nflows(D, context, residual) -> None:
    made = pytest.importorskip("nflows.transforms.made", reason="nflows is not installed")
    torch.manual_seed(0)
    net = made.MADE(
        D, 17, context or None, num_blocks=2, output_multiplier=3, use_residual_blocks=residual,
        activation=torch.tanh,
    ).double()  # fmt: skip
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(0, 0.5)
    inner = [m for b in net.blocks for m in (b.linear_layers if residual else [b.linear])]
    linears = [net.initial_layer, *inner, net.final_layer]
    plan = MadePlan([range(1, D + 1), *(m.degrees for m in linears)], residual=residual)
    x, c = torch.randn(9, D).double(), torch.randn(9, 4).double() if context else None
    adds = None
    if c is not None:
        adds = [None] * len(linears)
        adds[0] = torch.tanh(net.context_layer(c))
        if residual:
            adds[1], adds[3] = (b.context_layer(c) for b in net.blocks)
    for backend in backends_of("made"):
        found = ops.made(x, [(m.weight, m.bias) for m in linears], plan, activation="tanh", adds=adds, backend=backend)
        torch.testing.assert_close(found, net(x, c), rtol=1e-12, atol=1e-12)
        mine, its = (torch.autograd.grad(y.sin().sum(), list(net.parameters()), allow_unused=True, retain_graph=True)
                     for y in (found, net(x, c)))  # fmt: skip
        for a, b in zip(mine, its, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_no_hidden_layer_and_equal_degrees() -> None:
    plan = MadePlan([[2, 1, 2], [2, 2, 1, 1, 2, 2]])
    assert plan.groups == ((1,), (0, 2)) and plan.params_per_feature == 2
    w, b, x = torch.randn(6, 3), torch.randn(6), torch.randn(4, 3)
    mask = torch.tensor([[0.0, 1, 0]] * 2 + [[0.0, 0, 0]] * 2 + [[0.0, 1, 0]] * 2)
    for backend in backends_of("made"):
        torch.testing.assert_close(ops.made(x, [(w, b)], plan, backend=backend), x @ (w * mask).T + b)


def test_bad_row_stays_in_its_row() -> None:
    problem = draw(SHAPES["blocks"])
    tensors = [t.float() for t in problem.tensors]
    others = [i for i in range(130) if i != 4]
    for backend in backends_of("made"):
        clean = call(problem, backend, tensors)
        for bad in (float("nan"), float("inf")):
            x = tensors[0].clone()
            x[4, 2] = bad
            found = call(problem, backend, [x, *tensors[1:]])
            assert torch.equal(found[others], clean[others]) and not found[4].isfinite().all()


def test_transforms_compile_and_autocast() -> None:
    problem = draw(Shape((33,), 7, (23, 23), 2, True, "random", "random", "one row"))
    x = problem.tensors[0]

    def f(x):
        return call(problem, None, [x, *problem.tensors[1:]], "tanh")

    y = f(x)
    torch.testing.assert_close(torch.func.vmap(f)(x), y)
    jacobian = torch.func.jacrev(f)(x[0])
    torch.testing.assert_close(torch.func.jacfwd(f)(x[0]), jacobian)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(f, backend="aot_eager", fullgraph=True)(x), y)
    problem = draw(SHAPES["wide outputs"])
    with torch.autocast("cpu", torch.bfloat16):
        assert call(problem, None, [t.float() for t in problem.tensors]).dtype == torch.bfloat16


def test_dtypes(dtype, device) -> None:
    problem = draw(SHAPES["three features"])
    tensors = [t.to(device, dtype) for t in problem.tensors]
    wanted = call(problem, None, [t.double() for t in tensors])
    for backend in {None, *backends_of("made")} - {"cpu", "reference"}:
        y = call(problem, backend, tensors)
        assert y.dtype == dtype
        assert (y.double() - wanted).abs().max() <= 16 * torch.finfo(dtype).eps * wanted.abs().max()


class TestMadePlan:
    def test_parts(self) -> None:
        plan = MadePlan([[3, 1, 2], (1, 2, 2, 1), torch.tensor([3, 3, 1, 1, 2, 2])])
        assert (plan.features, plan.params_per_feature, plan.residual) == (3, 2, False)
        assert plan.order.tolist() == [1, 2, 0] and plan.order.dtype == torch.int32
        assert [layer.strict for layer in plan.layers] == [False, True]
        assert [(layer.n_in, layer.n_out) for layer in plan.layers] == [(3, 4), (4, 6)]

    def test_copies(self) -> None:
        plan = MadePlan([[1, 2], [1, 1], [1, 1], [1, 1], [1, 1, 2, 2]], residual=True)
        assert copy.deepcopy(plan) is plan
        other = pickle.loads(pickle.dumps(plan))
        assert other._degrees == plan._degrees and other.residual and other.layers == plan.layers
        assert repr(plan) == "MadePlan(2 -> 2 -> 2 -> 2 -> 4, residual)"

    @pytest.mark.parametrize(
        ("degrees", "residual", "message"),
        [
            ([[1, 2]], False, "degrees must be those of the inputs, of each hidden layer and of the outputs, got 1"),
            ([[0, 1], [0, 1]], False, r"degrees of the inputs must be at least 1, got \[0, 1\]"),
            ([[1, 2], [1], [1, 2, 1, 2]], False, r"degrees of the outputs must be .*, got \[1, 2, 1, 2\]"),
            ([[1, 2], [1], [1, 1, 2]], False, r"degrees of the outputs must be .*, got \[1, 1, 2\]"),
            ([[1, 2], [], [1, 2]], False, r"degrees\[1\] must be one row of integers from 0 on, got \[\]"),
            ([[1, 2], [1.0], [1, 2]], False, r"degrees\[1\] must be one row of integers from 0 on, got \[1.0\]"),
            ([[1, 2**63], [1], [1, 2**63]], False, r"degrees\[0\] must be below 2\*\*63, got 9223372036854775808"),
            ([[1, 2], [1, 1], [1, 1], [1, 2]], True, r"hidden layers must be 1 \+ 2 \* blocks, got 2"),
            ([[1, 2], [1, 2]], True, r"hidden layers must be 1 \+ 2 \* blocks, got 0"),
            (
                [[1, 2, 3], [1, 2], [1], [1, 1], [1, 2, 3]],
                True,
                r"degrees\[3\] must be equal to degrees\[1\] = \[1, 2\]",
            ),
            ([[1, 2, 3], [1, 2], [1], [1], [1, 2, 3]], True, r"degrees\[3\] must be equal to degrees\[1\]"),
        ],
    )
    def test_errors(self, degrees, residual, message) -> None:
        with pytest.raises(ValueError, match="MadePlan: .*" + message):
            MadePlan(degrees, residual=residual)


X = torch.zeros(4, 2)
PLAN = MadePlan([[1, 2], [1, 1, 1], [1, 2]])
ONE, TWO = (torch.zeros(3, 2), torch.zeros(3)), (torch.zeros(2, 3), torch.zeros(2))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: ops.made(X, [ONE, TWO], None), TypeError, "plan must be a MadePlan, got NoneType"),
        (lambda: ops.made(X, [ONE], PLAN), ValueError, "layers must be 2, one per layer of the plan, got 1"),
        (lambda: ops.made(X, [ONE, TWO], PLAN, adds=[None]), ValueError, "adds must be 2, .*, got 1"),
        (lambda: ops.made(X, [ONE, TWO[:1]], PLAN), ValueError, r"layers\[1\] must be \(weight, bias\), got 1 parts"),
        (lambda: ops.made(X, [TWO, ONE], PLAN), ValueError, r"layers\[0\] weight must be \[3, 2\], got \[2, 3\]"),
        (lambda: ops.made(X, [(ONE[0], TWO[1]), TWO], PLAN), ValueError, r"layers\[0\] bias must be \[3\], got \[2\]"),
        (lambda: ops.made(X, [(ONE[0], None), TWO], PLAN), TypeError, r"layers\[0\] bias must be a tensor, got None"),
        (lambda: ops.made(X.double(), [ONE, TWO], PLAN), TypeError, r"layers\[0\] weight must be of the dtype of x"),
        (lambda: ops.made(X[:, :1], [ONE, TWO], PLAN), ValueError, r"x must be \[\.\.\., 2\], got \[4, 1\]"),
        (lambda: ops.made(X[0, 0], [ONE, TWO], PLAN), ValueError, r"x must be \[\.\.\., D\], got a scalar"),
        (lambda: ops.made(X, [ONE, TWO], PLAN, activation="selu"), ValueError, "activation must be one of .* 'selu'"),
        (lambda: ops.made(X, [ONE, TWO], PLAN, adds=[X, None]), ValueError, r"adds\[0\] must broadcast to \[4, 3\]"),
        (lambda: ops.made(X, [ONE, TWO], PLAN, adds=[None, 1.0]), TypeError, r"adds\[1\] must be a tensor, got float"),
    ],
)
def test_errors(build, error, message) -> None:
    with pytest.raises(error, match="ops.made: .*" + message):
        build()


def test_bits_of_a_row_do_not_depend_on_its_batch(all_isas) -> None:
    """Of more than four rows: fewer take another way, where weights are not packed. A half-full vector does not."""
    problem = draw(SHAPES["many features, wide"])
    x, layers, _ = problem.split([t.float() for t in problem.tensors])
    for isa in all_isas:
        whole, few = (ops.made(x[:n], layers, problem.plan) for n in (33, 4))
        for n in (5, 7, 16, 17):
            assert torch.equal(ops.made(x[:n], layers, problem.plan), whole[:n]), (isa, n)
        for n in (2, 3):
            assert torch.equal(ops.made(x[:n], layers, problem.plan), few[:n]), (isa, n)

"""The one-sweep inverse: it solves the equation, its gradients are those of the solution, its numbers keep the rule."""

import functools

import pytest
import torch

from flowkernels import ops
from flowkernels._machine import CUDA
from flowkernels.ops import MadePlan, Mixture, Polynomial
from flowkernels.transforms import RQS, Affine
from tests.device import UNDER_TEST, here
from tests.emulator import emulated
from tests.numbers import assert_within_rule
from tests.ops.masked import ACTIVATIONS, SHAPES, Shape, assert_numbers, backends_of, draw, values_and_gradients

pytestmark = pytest.mark.usefixtures("kernels", "one_thread")

OP = "autoregressive_inverse"


@pytest.fixture
def exact_instructions(kernels):
    """A chain of features multiplies errors; each spline of it keeps the rule with them, as test_rqs.py asks."""
    if CUDA.device_type == "cpu":  # the emulator is here
        with emulated().exact():
            yield
    else:
        yield


UNIVARIATES = {
    "exp": Affine("exp"),
    "softplus": Affine("softplus"),
    "sigmoid": Affine("sigmoid", 0.0),
    "additive": Affine("additive"),
    "spline": RQS(bins=4),
    "circular": RQS(bins=3, tails="circular", tail_bound=2.0),
    "no tails": RQS(bins=5, tails=None, box=(-5.0, 5.0, -5.0, 5.0)),
    "soft clip": RQS(bins=8, parametrization="soft_clip"),
    "order linear": RQS(bins=4, order="linear"),
    "mixture": Mixture(3),
    "normals": Mixture(2, "normal", "probit"),
    "squares": Polynomial(degree=2, terms=2, bound=2.0),
    "Bernstein": Polynomial("bernstein", 6),
    "circle shift": RQS(bins=4, tail_bound=6.0, circle_shift=True),
    "circle shift, another box": RQS(bins=5, tails=None, box=(-2.0, 9.0, -5.0, 5.0), circle_shift=True),
}
EVERY = pytest.mark.parametrize("univariate", UNIVARIATES.values(), ids=UNIVARIATES)


def kernels_of(univariate):
    """The backends under test that have this map: linear splines on CPUs, mixtures and polynomials not on Triton."""
    return [b for b in backends_of(OP) if b == "reference" or univariate.why_not(b) is None]


def make(shape, univariate):
    """Scaled so that a rounding does not grow from feature to feature."""
    return draw(shape._replace(P=univariate.n_params), scale=0.4 if shape.residual else 0.7)


def solve(problem, univariate, backend, tensors, activation="tanh"):
    z, layers, adds = problem.split(tensors)
    return ops.autoregressive_inverse(
        z, layers, problem.plan, univariate, activation=activation, adds=adds, backend=backend
    )  # fmt: skip


def forward(problem, univariate, x, tensors, activation="tanh"):
    _, layers, adds = problem.split(tensors)
    params = ops.made(x, layers, problem.plan, activation=activation, adds=adds, backend="reference")
    return univariate(x, params.unflatten(-1, (problem.plan.features, -1)), False)


@EVERY
@pytest.mark.parametrize("shape", ["three features", "residual", "two leading dims", "narrower than D"])
def test_solves_the_equation(univariate, shape) -> None:
    problem = make(SHAPES[shape], univariate)
    for backend in kernels_of(univariate):
        x, ladj = solve(problem, univariate, backend, problem.tensors)
        z, forwards = forward(problem, univariate, x, problem.tensors)
        assert x.shape == z.shape and ladj.shape == z.shape[:-1]
        torch.testing.assert_close(z, problem.tensors[0], rtol=0, atol=1e-9)
        torch.testing.assert_close(ladj, -forwards, rtol=0, atol=1e-8)


@EVERY
@pytest.mark.parametrize("residual", [False, True])
def test_ladj_is_the_slogdet(univariate, residual) -> None:
    problem = make(Shape((9,), 5, (12, 12), 0, residual, "random", adds="all"), univariate)
    rest = problem.tensors[1:]
    for backend in kernels_of(univariate):
        ladj = solve(problem, univariate, backend, problem.tensors)[1]
        J = torch.autograd.functional.jacobian(
            lambda v, b=backend: solve(problem, univariate, b, [v, *rest])[0].sum(0), problem.tensors[0]
        ).movedim(1, 0)
        torch.testing.assert_close(ladj, torch.linalg.slogdet(J).logabsdet, rtol=1e-9, atol=1e-9)
        order = problem.plan.order.tolist()
        triangle = J[:, order][:, :, order]
        assert torch.equal(triangle, triangle.tril())


# Every shape with two maps, every map with two shapes.
NUMBERS = [
    (s, u)
    for s in SHAPES
    for u in UNIVARIATES
    if u in ("softplus", "spline") or s in ("three features", "two leading dims")
]


# What the emulator takes too long for.
SLOW_EMULATED = {"many features", "blocks"}
SPLINES_EMULATED = {"two features", "three features", "residual", "one row", "two leading dims"}


def affordable(shape, univariate, precision):
    """The backends under test, without an emulated one that would take too long."""
    many = shape in SLOW_EMULATED or (precision == torch.float64 and SHAPES[shape].D > 10)
    dear = many or (univariate == "spline" and shape not in SPLINES_EMULATED)
    dear = dear or (univariate not in ("softplus", "spline") and shape != "two leading dims")
    return [b for b in kernels_of(UNIVARIATES[univariate]) if not (dear and b == "cuda" and UNDER_TEST.type == "cpu")]


@pytest.mark.thinned(3)
@pytest.mark.interpreted("float32-no rows, residual-softplus", "float32-one feature-softplus")
@pytest.mark.parametrize(("shape", "univariate"), NUMBERS)
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_numbers(shape, univariate, precision, all_isas, exact_instructions) -> None:
    map_, only = UNIVARIATES[univariate], affordable(shape, univariate, precision)
    problem = make(SHAPES[shape], map_)
    run = functools.partial(solve, problem, map_)
    shared = SHAPES[shape].few and isinstance(map_, RQS)
    assert_numbers(run, problem.tensors, OP, precision, all_isas, only=only, shared=shared)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_numbers_of_every_activation(activation, residual, precision, all_isas) -> None:
    univariate = UNIVARIATES["softplus"]
    problem = make(Shape((33,), 7, (23, 23), 0, residual, "random", "random", "first"), univariate)
    wide = precision == torch.float64
    only = [b for b in backends_of(OP) if b != "cuda" or residual == wide]  # in the emulator they take their time

    def run(backend, tensors):
        return solve(problem, univariate, backend, tensors, activation)

    assert_numbers(run, problem.tensors, OP, precision, all_isas, only=only)


def test_gradient_is_that_of_the_implicit_function() -> None:
    """dz = J dx + (∂z/∂θ) dθ = 0: the gradient of a weight is minus that of z at x, pulled back through J."""
    univariate = UNIVARIATES["spline"]
    problem = make(Shape((7,), 4, (11,), 0, order="reversed"), univariate)
    for backend in backends_of(OP):
        found = values_and_gradients(
            lambda t, b=backend: solve(problem, univariate, b, t)[0].sin().sum(), problem.tensors
        )[1:]
        leaves = [t.detach().requires_grad_() for t in problem.tensors[1:]]
        x = solve(problem, univariate, "reference", problem.tensors)[0].detach().requires_grad_()
        z = forward(problem, univariate, x, [x, *leaves])[0]
        J = torch.autograd.functional.jacobian(
            lambda v: forward(problem, univariate, v, problem.tensors)[0].sum(0), x
        ).movedim(1, 0)
        weight = 0.5 * x.detach().cos()  # of sin; `values_and_gradients` weighs a single output by 0.5
        g = torch.linalg.solve(J.mT, weight[..., None])[..., 0]
        torch.testing.assert_close(found[0], g)
        wanted = torch.autograd.grad(z, leaves, -g)
        torch.testing.assert_close(found[1:], list(wanted))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("name", ["exp", "softplus", "spline"])
def test_gradcheck_and_gradgradcheck(name, residual) -> None:
    univariate = UNIVARIATES[name]
    problem = make(Shape((2,), 3, (4,), 0, residual, "random", adds="all"), univariate)
    tensors = [t.requires_grad_() for t in problem.tensors]
    for backend in backends_of(OP):

        def f(*t, backend=backend):
            return solve(problem, univariate, backend, list(t))

        assert torch.autograd.gradcheck(f, tensors, fast_mode=True)
        assert torch.autograd.gradgradcheck(f, tensors, fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("shape", ["three features", "residual"])
def test_masked_weights_have_no_gradient_and_no_effect(shape) -> None:
    univariate = UNIVARIATES["spline"]
    problem = make(SHAPES[shape], univariate)
    hidden = [layer.mask(problem.tensors[0]) == 0 for layer in problem.plan.layers]
    changed = list(problem.tensors)
    for i, h in enumerate(hidden):
        changed[1 + 2 * i] = torch.where(h, float("nan"), changed[1 + 2 * i])
    for backend in backends_of(OP):
        found, again = (
            values_and_gradients(lambda t, b=backend: solve(problem, univariate, b, t), given)
            for given in (problem.tensors, changed)
        )
        for i, h in enumerate(hidden):
            g = found[2 + 1 + 2 * i]
            assert h.any() and (g[h] == 0).all() and (g[~h] != 0).any()
        for a, b in zip(found, again, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["softplus", "spline"])
def test_one_output_or_some_gradients_wanted(name) -> None:
    univariate = UNIVARIATES[name]
    problem = make(SHAPES["residual"], univariate)
    leaves = [t.requires_grad_() for t in problem.tensors]
    for pick in (0, 1):
        y = solve(problem, univariate, "reference", leaves)[pick]
        every = torch.autograd.grad(y.square().sum(), leaves, allow_unused=True, materialize_grads=True)
        for backend in backends_of(OP):
            for i in range(len(leaves)):
                for k, t in enumerate(leaves):
                    t.requires_grad_(k == i)
                y = solve(problem, univariate, backend, leaves)[pick]
                (found,) = torch.autograd.grad(y.square().sum(), [leaves[i]], allow_unused=True, materialize_grads=True)
                torch.testing.assert_close(found, every[i], rtol=1e-10, atol=1e-10)
            for t in leaves:
                t.requires_grad_()


@pytest.mark.interpreted
def test_bad_row_stays_in_its_row() -> None:
    """And in the features after it."""
    univariate = UNIVARIATES["softplus"]
    problem = make(SHAPES["three features"], univariate)
    tensors = [t.float() for t in problem.tensors]
    order = problem.plan.order.tolist()
    for backend in backends_of(OP):
        clean = solve(problem, univariate, backend, tensors)
        for bad in (float("nan"), float("inf")):
            broken = tensors[0].clone()
            broken[4, order[1]] = bad
            x, ladj = solve(problem, univariate, backend, [broken, *tensors[1:]])
            others = [i for i in range(130) if i != 4]
            assert torch.equal(x[others], clean[0][others]) and torch.equal(ladj[others], clean[1][others])
            assert x[4, order[0]] == clean[0][4, order[0]] and not x[4, order[1]].isfinite()


def test_circle_shift_brings_what_tails_leave_outside_back_into_the_box() -> None:
    """From any number of turns away, and the network sees it there; what is not finite stays in its row."""
    univariate = RQS(bins=4, tail_bound=2.0, circle_shift=True)
    problem = make(SHAPES["three features"], univariate)
    z = 20 * problem.tensors[0]
    wanted = solve(problem, univariate, "reference", [z, *problem.tensors[1:]])
    assert (z.abs() > 6).any() and (wanted[0].abs() <= 2).all()
    broken = z.clone()
    broken[4, problem.plan.order[1]], broken[5, problem.plan.order[1]] = float("nan"), float("inf")
    for backend in backends_of(OP):
        found = solve(problem, univariate, backend, [z, *problem.tensors[1:]])
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
        x, ladj = solve(problem, univariate, backend, [broken, *problem.tensors[1:]])
        others = [i for i in range(130) if i not in (4, 5)]
        assert torch.equal(x[others], found[0][others]) and torch.equal(ladj[others], found[1][others])
        assert not x[4:6, problem.plan.order[1]].isfinite().any()


@pytest.mark.interpreted
def test_groups_of_equal_degree() -> None:
    """Features that do not see each other are solved together."""
    plan = MadePlan([[1, 2, 1, 2], [1, 1, 1], [d for d in (1, 2, 1, 2) for _ in range(2)]])
    torch.manual_seed(0)
    layers = [(torch.randn(p.n_out, p.n_in).double(), torch.randn(p.n_out).double()) for p in plan.layers]
    z, affine = torch.randn(5, 4).double(), Affine("exp")
    for backend in backends_of(OP):
        x, ladj = ops.autoregressive_inverse(z, layers, plan, affine, backend=backend)
        back, forwards = affine(x, ops.made(x, layers, plan, backend="reference").view(5, 4, 2), False)
        torch.testing.assert_close(back, z)
        torch.testing.assert_close(ladj, -forwards)


def test_transforms_compile_and_autocast() -> None:
    univariate = UNIVARIATES["spline"]
    problem = make(Shape((5,), 4, (9,), 0, adds="one row"), univariate)
    z = problem.tensors[0]

    def f(z):
        return solve(problem, univariate, None, [z, *problem.tensors[1:]])

    wanted = f(z)
    torch.testing.assert_close(torch.func.vmap(f)(z), wanted)
    jacobian = torch.func.jacrev(lambda v: f(v)[0])(z[0])
    torch.testing.assert_close(torch.func.jacfwd(lambda v: f(v)[0])(z[0]), jacobian)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(f, backend="aot_eager", fullgraph=True)(z), wanted)
    with torch.autocast(z.device.type, torch.bfloat16):
        x, ladj = solve(problem, univariate, None, [t.float() for t in problem.tensors])
    assert x.dtype == ladj.dtype == torch.float32 and x.isfinite().all()


@pytest.mark.interpreted
def test_dtypes(dtype, device) -> None:
    problem = make(SHAPES["three features"], UNIVARIATES["softplus"])
    tensors = [t.to(device, dtype) for t in problem.tensors]
    x, ladj = solve(problem, UNIVARIATES["softplus"], None, tensors)
    assert x.dtype == dtype and ladj.dtype == torch.promote_types(dtype, torch.float32)
    assert x.isfinite().all() and ladj.isfinite().all()


Z = torch.zeros(4, 2)
PLAN = MadePlan([[1, 2], [1, 1, 1], [1, 1, 2, 2]])
LAYERS = [(torch.zeros(3, 2), torch.zeros(3)), (torch.zeros(4, 3), torch.zeros(4))]
EXP = Affine("exp")


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda f: f(Z, LAYERS, PLAN, Affine), TypeError, "univariate must be a map of one feature, .*, got Affine"),
        (lambda f: f(Z, LAYERS, PLAN, "exp"), TypeError, "univariate must be a map of one feature, .*, got str"),
        (lambda f: f(Z, LAYERS, PLAN, EXP.inverted()), ValueError, "univariate must be of the direction"),
        (lambda f: f(Z, LAYERS, PLAN, RQS(4)), ValueError, "plan must have 11 outputs per feature .*, got 2"),
        (lambda f: f(Z[:, :1], LAYERS, PLAN, EXP), ValueError, r"z must be \[\.\.\., 2\], got \[4, 1\]"),
        (lambda f: f(None, LAYERS, PLAN, EXP), TypeError, "z must be a tensor, got NoneType"),
        (lambda f: f(Z, LAYERS[:1], PLAN, EXP), ValueError, "layers must be 2"),
        (lambda f: f(Z, LAYERS, LAYERS, EXP), TypeError, "plan must be a MadePlan, got list"),
        (lambda f: f(Z, LAYERS, PLAN, EXP, activation=torch.relu), ValueError, "activation must be one of"),
        (lambda f: f(Z, LAYERS, PLAN, EXP, adds=[None, Z]), ValueError, r"adds\[1\] must broadcast to \[4, 4\]"),
    ],
)
def test_errors(build, error, message) -> None:
    with pytest.raises(error, match="ops.autoregressive_inverse: .*" + message):
        build(ops.autoregressive_inverse)


@pytest.mark.parametrize("univariate", ["softplus", "spline"])
def test_a_thousand_features(univariate) -> None:
    """One sweep gives the numbers of 1024 passes, at a depth where sums are long and every feature sees all before."""
    problem = make(Shape((5,), 1024, (70,), 0, order="random", degrees="even"), UNIVARIATES[univariate])

    def found(backend, dtype):
        with torch.no_grad():
            return solve(problem, UNIVARIATES[univariate], backend, [t.to(dtype) for t in problem.tensors])

    truth, kernels = found("reference", torch.float64), backends_of(OP)[0]
    if kernels == "cpu":  # on a GPU, doubles of so many features do not fit
        torch.testing.assert_close(found("cpu", torch.float64), truth, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        rounded = [t.float().double() for t in problem.tensors]
        right = solve(problem, UNIVARIATES[univariate], "reference", rounded)
    narrow = (found(backend, torch.float32) for backend in (kernels, "reference"))
    for kernel, eager, exact in zip(*narrow, right, strict=True):
        assert_within_rule(kernel, eager, exact)


def test_a_block_waits_for_the_stream_it_adds_to() -> None:
    """A unit that sees nothing of its block could be computed at once, but the stream's unit is not there yet."""
    plan = MadePlan([[1, 2, 3], [1, 2, 2], [2, 2], [1, 2, 2], [1, 1, 2, 2, 3, 3]], residual=True)
    g = torch.Generator().manual_seed(0)
    tensors = [torch.randn(9, 3, generator=g, dtype=torch.float64, device="cpu")]
    for layer in plan.layers:
        for shape in ((layer.n_out, layer.n_in), (layer.n_out,)):
            tensors.append(0.3 * torch.randn(shape, generator=g, dtype=torch.float64, device="cpu"))

    def f(backend: str, tensors: list[torch.Tensor]):
        z, *rest = tensors
        layers = list(zip(rest[::2], rest[1::2], strict=True))
        return ops.autoregressive_inverse(z, layers, plan, Affine("exp"), activation="tanh", backend=backend)

    tensors = [here(t) for t in tensors]
    wanted = values_and_gradients(lambda t: f("reference", t), tensors)
    for backend in backends_of("autoregressive_inverse"):
        torch.testing.assert_close(values_and_gradients(lambda t, b=backend: f(b, t), tensors), wanted)

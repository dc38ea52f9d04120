"""The inverse of a layer whose network sees waves of features, and 0 outside of its box: normflows' circular one."""

import pytest
import torch

from flowkernels import ops
from flowkernels.backends import BackendUnavailableError
from flowkernels.transforms import RQS, Affine
from tests.device import here
from tests.ops.masked import Shape, assert_numbers, backends_of, draw

pytestmark = pytest.mark.usefixtures("one_thread")

OP = "autoregressive_inverse"
SHAPES = {
    "residual": Shape((33,), 7, (23,), 2, True, "random", "random", "all"),
    "two leading dims": Shape((2, 3), 4, (9, 6), 2, order="reversed"),
    "one row": Shape((1,), 5, (20, 20), 2, True, adds="first"),
    "several strips": Shape((130,), 3, (13,), 2),
    "no rows": Shape((0,), 3, (8,), 2, True),
}
MAPS = {
    "affine": Affine("softplus"),
    "spline": RQS(bins=4),
    "spline on its box": RQS(bins=3, tails=None, box=(-1.5, 1.0, -1.0, 1.2), zero_outside=True),
}
MORE = {"spline with its outside": RQS(bins=3, tails=None, box=(-1.5, 1.0, -1.0, 1.2))}  # no bijection


def kernels():
    """Of the backends under test those that know waves."""
    return [b for b in backends_of(OP) if b in ("cpu", "reference")]


def periodic_of(features, seed=3):
    """Waves, lines, what is both, and a cosine alone."""
    g = torch.Generator().manual_seed(seed)
    table = torch.randn(features, 5, generator=g).double()
    table[:, 0] *= torch.arange(features) % 3 != 1
    table[:, 1:3] *= (torch.arange(features) % 3 != 0)[:, None]
    table[:, 1] *= torch.arange(features) % 6 != 4
    return here(table)


class Problem:
    def __init__(self, shape: Shape, map_: str) -> None:
        self.univariate = (MAPS | MORE)[map_]
        self.problem = draw(shape._replace(P=self.univariate.n_params), scale=0.4)
        self.plan, self.tensors = self.problem.plan, [*self.problem.tensors, periodic_of(shape.D)]

    def solve(self, backend, tensors, **settings):
        z, layers, adds = self.problem.split(tensors[:-1])
        settings = {"periodic_features": tensors[-1], **settings}
        return ops.autoregressive_inverse(
            z, layers, self.plan, self.univariate, activation="tanh", adds=adds, backend=backend, **settings
        )

    def parameters(self, x):
        linear, of_sin, of_cos, frequency, offset = self.tensors[-1].T
        seen = linear * x + of_sin * torch.sin(frequency * x) + of_cos * torch.cos(frequency * x) + offset
        _, layers, adds = self.problem.split(self.tensors[:-1])
        params = ops.made(seen, layers, self.plan, activation="tanh", adds=adds, backend="reference")
        return params.unflatten(-1, (self.plan.features, -1))


@pytest.mark.parametrize("map_", MAPS)
@pytest.mark.parametrize("shape", ["residual", "two leading dims"])
def test_solves_the_equation(map_, shape) -> None:
    problem = Problem(SHAPES[shape], map_)
    given = problem.tensors[0]
    for backend in kernels():
        x, ladj = problem.solve(backend, problem.tensors)
        z, forwards = problem.univariate(x, problem.parameters(x), False)
        if problem.univariate.zero_outside:  # where z is outside of the box, x is 0 and adds nothing to ladj
            outside = (given < -1.0) | (given > 1.2)
            assert outside.any() and not outside.all() and (x[outside] == 0).all() and (x[~outside] != 0).any()
            params = problem.parameters(x)
            steps = [problem.univariate(x[..., [i]], params[..., [i], :], False) for i in range(x.shape[-1])]
            z = torch.where(outside, given, torch.cat([y for y, _ in steps], -1))
            forwards = torch.where(outside, 0, torch.stack([j for _, j in steps], -1)).sum(-1)
        torch.testing.assert_close(z, given, rtol=0, atol=1e-9)
        torch.testing.assert_close(ladj, -forwards, rtol=0, atol=1e-8)


@pytest.mark.parametrize("map_", MAPS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_numbers(map_, shape, precision, all_isas) -> None:
    problem = Problem(SHAPES[shape], map_)
    # The box is a narrow one, whose thin bins decide over the gradients of whole tensors.
    shared = map_ == "spline on its box" or (map_ == "spline" and SHAPES[shape].few)
    assert_numbers(problem.solve, problem.tensors, OP, precision, all_isas, only=kernels(), shared=shared)


@pytest.mark.parametrize("map_", ["affine", "spline on its box"])
def test_gradcheck_and_gradgradcheck(map_) -> None:
    problem = Problem(Shape((2,), 4, (5,), 0, True, "random", adds="all"), map_)
    tensors = [t.requires_grad_() for t in problem.tensors]
    for backend in kernels():

        def f(*t, backend=backend):
            return problem.solve(backend, list(t))

        assert torch.autograd.gradcheck(f, tensors, fast_mode=True)
        assert torch.autograd.gradgradcheck(f, tensors, fast_mode=True, atol=1e-4)


def test_the_edges_of_the_box_are_inside() -> None:
    """There the inverse is an edge too, not 0."""
    problem = Problem(SHAPES["residual"], "spline on its box")
    z = problem.tensors[0].clone()
    z[0], z[1] = -1.0, 1.2
    for backend in kernels():
        x, ladj = problem.solve(backend, [z, *problem.tensors[1:]])
        torch.testing.assert_close(x[0], torch.full_like(x[0], -1.5))
        torch.testing.assert_close(x[1], torch.full_like(x[1], 1.0))
        assert (ladj[:2] != 0).all()


def test_one_without_the_other_and_one_gradient_at_a_time() -> None:
    for map_, settings in (
        ("spline on its box", {"periodic_features": None}),
        ("spline with its outside", {}),
        ("spline on its box", {}),
    ):
        problem = Problem(SHAPES["residual"], map_)
        for i in (0, 1, len(problem.tensors) - 1 - ("periodic_features" in settings)):
            tensors = [t.detach().requires_grad_(k == i) for k, t in enumerate(problem.tensors)]
            given = {**settings, **({} if "periodic_features" in settings else {"periodic_features": tensors[-1]})}
            wanted = None
            for backend in reversed(kernels()):
                y = sum(t.square().sum() for t in problem.solve(backend, tensors, **given))
                found = torch.autograd.grad(y, [tensors[i]], allow_unused=True, materialize_grads=True)[0]
                wanted = found if wanted is None else wanted
                torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_strides_and_bad_rows() -> None:
    problem = Problem(SHAPES["several strips"], "spline on its box")
    order = problem.plan.order.tolist()
    for backend in kernels():
        clean = problem.solve(backend, problem.tensors)
        turned = [problem.tensors[0].T.contiguous().T, *problem.tensors[1:-1], problem.tensors[-1].T.contiguous().T]
        for a, b in zip(problem.solve(backend, turned), clean, strict=True):
            assert torch.equal(a, b)
        broken = problem.tensors[0].clone()
        broken[4, order[1]] = float("nan")
        x, ladj = problem.solve(backend, [broken, *problem.tensors[1:]])
        others = [i for i in range(130) if i != 4]
        assert torch.equal(x[others], clean[0][others]) and torch.equal(ladj[others], clean[1][others])
        assert x[4, order[1]].isnan() and ladj[4].isnan()


def test_errors() -> None:
    problem = Problem(SHAPES["one row"], "affine")
    for settings, error, message in (
        ({"periodic_features": torch.zeros(5, 4).double()}, ValueError, r"must be \[5, 5\], got \[5, 4\]"),
        ({"periodic_features": torch.zeros(5, 5)}, TypeError, "periodic_features must be of the dtype of z"),
    ):
        with pytest.raises(error, match=f"ops.{OP}: .*{message}"):
            problem.solve(None, problem.tensors, **settings)


@pytest.mark.parametrize("missing", ["periodic features", "zero_outside"])
def test_a_gpu_has_no_kernel_and_says_so(missing) -> None:
    problem = Problem(SHAPES["one row"], "spline" if missing == "periodic features" else "spline on its box")
    settings = {} if missing == "periodic features" else {"periodic_features": None}
    with pytest.raises(
        BackendUnavailableError, match=f"op {OP} cannot run on backend 'triton': no kernel for {missing}"
    ):
        problem.solve("triton", problem.tensors, **settings)

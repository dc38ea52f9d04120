"""Gates of residual blocks, as normflows' masked networks have them with a context: the network and its inverse."""

import pytest
import torch
import torch.nn.functional as F

from flowkernels import ops
from flowkernels.backends import BackendUnavailableError
from flowkernels.transforms import RQS, Affine
from tests.device import here
from tests.ops.masked import Shape, assert_numbers, backends_of, draw

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = {
    "two blocks": Shape((33,), 7, (23, 23), 2, True, "random", "random", "all"),
    "two leading dims": Shape((2, 3), 4, (9,), 2, True, "reversed"),
    "one row": Shape((1,), 5, (20, 20, 20), 2, True, adds="first"),
    "several strips": Shape((130,), 3, (13,), 2, True),
    "no rows": Shape((0,), 3, (8,), 2, True),
}
AFFINE, SPLINE = Affine("softplus"), RQS(bins=4)


def kernels(op):
    """Of the backends under test those that know gates."""
    return [b for b in backends_of(op) if b in ("cpu", "reference")]


class Gated:
    """A problem of `tests.ops.masked` whose blocks have gates; one row for all of them in the first block."""

    def __init__(self, shape: Shape, univariate) -> None:
        self.problem = draw(shape._replace(P=univariate.n_params), scale=0.4)
        self.univariate, self.plan = univariate, self.problem.plan
        self.closing = range(2, len(self.plan.layers) - 1, 2)
        g = torch.Generator().manual_seed(5)
        gates = [
            torch.rand(*(shape.rows if i > 2 else (1,) * len(shape.rows)), self.plan.layers[i].n_out, generator=g)
            for i in self.closing
        ]
        self.tensors = [*self.problem.tensors, *(here(0.3 + t.double()) for t in gates)]

    def arguments(self, tensors):
        x, layers, adds = self.problem.split(tensors[: len(self.problem.tensors)])
        gates = [None] * len(layers)
        gates[2:-1:2] = tensors[len(self.problem.tensors) :]
        return x, {"layers": layers, "plan": self.plan, "activation": "tanh", "adds": adds, "gates": gates}

    def network(self, backend, tensors):
        x, arguments = self.arguments(tensors)
        return ops.made(x, **arguments, backend=backend)

    def inverse(self, backend, tensors):
        z, arguments = self.arguments(tensors)
        return ops.autoregressive_inverse(z, univariate=self.univariate, **arguments, backend=backend)


OPS = {"made": Gated.network, "autoregressive_inverse": Gated.inverse}


def by_hand(gated):
    x, a = gated.arguments(gated.tensors)
    weights = [mask.apply(w) for mask, (w, _) in zip(gated.plan.layers, a["layers"], strict=True)]

    def linear(i, h):
        z = F.linear(h, weights[i], a["layers"][i][1])
        return z if a["adds"][i] is None else z + a["adds"][i]

    h = linear(0, x)
    for i in gated.closing:
        h = h + a["gates"][i] * linear(i, linear(i - 1, h.tanh()).tanh())
    return linear(len(weights) - 1, h)


@pytest.mark.parametrize("shape", SHAPES)
def test_is_the_network_written_out(shape) -> None:
    gated = Gated(SHAPES[shape], AFFINE)
    for backend in kernels("made"):
        torch.testing.assert_close(gated.network(backend, gated.tensors), by_hand(gated), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("univariate", [AFFINE, SPLINE], ids=["affine", "spline"])
def test_the_inverse_solves_the_equation(univariate) -> None:
    gated = Gated(SHAPES["two blocks"], univariate)
    for backend in kernels("autoregressive_inverse"):
        x, ladj = gated.inverse(backend, gated.tensors)
        params = gated.network("reference", [x, *gated.tensors[1:]])
        z, forwards = univariate(x, params.unflatten(-1, (7, -1)), False)
        torch.testing.assert_close(z, gated.tensors[0], rtol=0, atol=1e-9)
        torch.testing.assert_close(ladj, -forwards, rtol=0, atol=1e-8)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_numbers(op, shape, precision, all_isas) -> None:
    gated = Gated(SHAPES[shape], SPLINE if shape == "two blocks" else AFFINE)

    def run(backend, tensors):
        return OPS[op](gated, backend, tensors)

    assert_numbers(run, gated.tensors, op, precision, all_isas, only=kernels(op))


@pytest.mark.parametrize("op", OPS)
def test_gradcheck_and_gradgradcheck(op) -> None:
    gated = Gated(Shape((2,), 3, (4, 4), 0, True, "random", adds="all"), AFFINE)
    tensors = [t.requires_grad_() for t in gated.tensors]
    for backend in kernels(op):

        def f(*t, backend=backend):
            return OPS[op](gated, backend, list(t))

        assert torch.autograd.gradcheck(f, tensors, fast_mode=True)
        assert torch.autograd.gradgradcheck(f, tensors, fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("op", OPS)
def test_a_gate_closes_a_residual_block(op) -> None:
    gated = Gated(SHAPES["several strips"], AFFINE)
    x, arguments = gated.arguments(gated.tensors)
    run = getattr(ops, op)
    more = {"univariate": AFFINE} if op == "autoregressive_inverse" else {}
    one = here(torch.ones(1, gated.plan.layers[1].n_out).double())
    for gates, message in (
        ([one], "gates must be 4, one per layer"),
        ([None, one, None, None], r"gates\[1\] must be None where layer 1 closes no residual block"),
        ([None, None, one[:, :5], None], r"gates\[2\] must broadcast to \[130, 13\], got \[1, 5\]"),
    ):
        with pytest.raises(ValueError, match=f"ops.{op}: {message}"):
            run(x, **{**arguments, "gates": gates}, **more)


@pytest.mark.parametrize("op", OPS)
def test_a_gpu_has_no_kernel_and_says_so(op) -> None:
    gated = Gated(SHAPES["two leading dims"], AFFINE)
    with pytest.raises(BackendUnavailableError, match=f"op {op} cannot run on backend 'triton': no kernel for gates"):
        OPS[op](gated, "triton", gated.tensors)

"""Where a density is zero it says so, -inf, in that row alone; and distributions made from flows know where."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from flowkernels.distributions import (
    DiagonalLogistic,
    DiagonalNormal,
    Distribution,
    StandardLogistic,
    StandardNormal,
    UniformBox,
)
from flowkernels.flows import NSF, Flow
from flowkernels.nets import MLP, Constant
from flowkernels.transforms import (
    RQS,
    Affine,
    Composite,
    Coupling,
    Dequantize,
    DiagonalScale,
    Inverse,
    Logit,
    MultiScale,
    Permutation,
    Squeeze,
    Transform,
    VariationalDequantize,
)

NAN, INF = math.nan, math.inf


def logit_flow(alpha: float, base: Distribution | None = None) -> Flow:
    torch.manual_seed(0)
    layers = [Permutation([1, 0]), Logit(alpha), *NSF(2, transforms=2, hidden=8).transform]  # type: ignore[misc]
    return Flow(Composite(layers), StandardNormal(2) if base is None else base)


def dequantized(variational: bool) -> Flow:
    noise = Coupling([0, 1], lambda i, o: MLP(i, o, (8,), context=2), Affine("tanh"))
    first = VariationalDequantize(noise, 4) if variational else Dequantize(4)
    return Flow(Composite([first, Logit()]), StandardNormal(2))


def spline_on_a_box(tails: str | None) -> Flow:
    return Flow(Coupling([1, 1], Constant, RQS(4, tails, tail_bound=1.0)), UniformBox([-1.0, -1.0], [1.0, 1.0]))


SPLINES = {str(t): (lambda t=t: spline_on_a_box(t), 0.3, (-1.1, 1.1, -INF, INF)) for t in ("linear", "circular", None)}
# A flow, a number inside of its support, and some outside.
CASES = SPLINES | {
    "logit": (lambda: logit_flow(0.05), 0.5, (-0.06, 1.06, -9.0, INF, -INF)),
    "logit-open-ends": (lambda: logit_flow(0.0), 0.5, (0.0, 1.0, -1e-3, 2.0, INF)),
    "logit-logistic": (lambda: logit_flow(0.0, StandardLogistic(2)), 0.5, (0.0, 1.0, -INF)),
    "dequantize": (lambda: dequantized(False), 3.0, (-1.0, 4.0, 1.5, 0.01, INF, -INF)),
    "variational": (lambda: dequantized(True), 3.0, (-1.0, 4.0, 1.5, 0.01, INF, -INF)),
    "box": (lambda: Flow(Composite([]), UniformBox([0.0, 0.0], [1.0, 2.0])), 0.5, (-0.1, 2.1, INF)),
    "scaled-logit": (lambda: Flow(Composite([DiagonalScale(2), Logit()]), StandardNormal(2)), 0.5, (-0.1, 1.1)),
}
EVERY = pytest.mark.parametrize("name", CASES)


@EVERY
def test_outside_is_minus_infinity(name) -> None:
    make, inside, outside = CASES[name]
    flow = make()
    for value in outside:
        for row in ([value, inside], [inside, value], [value, value]):
            x = torch.tensor([[inside, inside], row, [inside, inside]])
            found = flow.log_prob(x)
            assert found[1] == -INF and found[[0, 2]].isfinite().all(), (row, found)


@EVERY
def test_nan_is_nan_in_its_row(name) -> None:
    make, inside, _ = CASES[name]
    for row in ([NAN, inside], [inside, NAN]):
        found = make().log_prob(torch.tensor([[inside, inside], row]))
        assert found[1].isnan() and found[0].isfinite()


@EVERY
def test_gradients_of_other_rows_do_not_notice(name) -> None:
    """A row outside adds nothing that is infinite or NaN to the gradient of the weights, or of x."""
    make, inside, outside = CASES[name]
    flow = make()
    x = torch.tensor([[inside, inside]] + [[value, inside] for value in outside], requires_grad=True)
    found = flow.log_prob(x)
    torch.where(found.isfinite(), found, torch.zeros(())).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in flow.parameters())


def test_levels_may_be_off_by_rounding() -> None:
    levels = torch.arange(256.0)
    ladj = Dequantize(256)((levels / 255 * 255)[:, None])[1]
    assert ladj.isfinite().all()
    assert (Dequantize(256)((levels / 255)[1:-1, None])[1] == -INF).all()  # pixels that were scaled before


@pytest.mark.parametrize("base", [StandardLogistic(2), DiagonalLogistic(2), StandardNormal(2), DiagonalNormal(2)])
def test_infinity_has_no_density(base) -> None:
    for x in ([INF, 0.0], [-INF, 0.0], [INF, -INF]):
        assert base.log_prob(torch.tensor(x)) == -INF


def test_the_logit_of_infinity_goes_back() -> None:
    x, ladj = Logit(0.0).inverse(torch.tensor([[INF], [-INF]]))
    assert x.tolist() == [[1.0], [0.0]] and ladj.tolist() == [-INF, -INF]


# ---- the support of a distribution made from a flow ----


def flow_of(transform: Transform, base: Distribution | None = None) -> Flow:
    return Flow(transform, StandardNormal(2) if base is None else base)


def test_support_is_what_torch_has_a_word_for() -> None:
    assert NSF(2, hidden=8).as_distribution().support is constraints.real_vector
    for transform in (Logit(0.05), Composite([Permutation([1, 0]), Logit(0.05)]), Inverse(Inverse(Logit(0.05)))):
        support = flow_of(transform).as_distribution().support
        assert isinstance(support, constraints.independent) and support.event_dim == 1
        assert isinstance(support.base_constraint, constraints.interval)
        assert support.check(torch.tensor([[-0.05, 1.05], [-0.06, 0.5], [NAN, 0.5]])).tolist() == [True, False, False]
    levels = flow_of(Dequantize(4)).as_distribution().support
    assert levels.is_discrete and levels.check(torch.tensor([[0.0, 3.0], [0.5, 1.0], [0.0, 4.0]])).tolist() == [1, 0, 0]
    assert flow_of(Inverse(Logit())).as_distribution().support is constraints.real_vector


def test_support_of_images() -> None:
    flow = Flow(MultiScale([Composite([Squeeze(), Logit(0.0, event_dims=3)])], (1, 2, 2)), StandardNormal(4))
    support = flow.as_distribution().support
    assert support.event_dim == 3
    x = torch.full((2, 1, 2, 2), 0.5)
    x[1, 0, 1, 0] = 1.5
    assert support.check(x).tolist() == [True, False]


@EVERY
def test_support_agrees_with_the_density(name) -> None:
    make, inside, outside = CASES[name]
    distribution = make().as_distribution(validate_args=True)
    assert distribution.log_prob(torch.full((3, 2), inside)).isfinite().all()
    for value in (*outside, NAN):
        x = torch.tensor([[inside, inside], [inside, value]])
        if name in ("logit-open-ends", "logit-logistic") and value in (0.0, 1.0):  # closed, as torch's unit_interval is
            continue
        assert distribution.support.check(x).tolist() == [True, False]
        with pytest.raises(ValueError, match="within the support"):
            distribution.log_prob(x)


def test_support_beside_a_context() -> None:
    net = lambda i, o: MLP(i, o, (8,), context=3)  # noqa: E731
    flow = Flow(Coupling([0, 1], net, RQS(4, tail_bound=1.0)), UniformBox([-1.0, -1.0], [1.0, 1.0]))
    distribution = flow.as_distribution(torch.randn(4, 3), validate_args=True)
    assert distribution.log_prob(torch.tensor([0.5, -0.5])).shape == (4,)
    assert distribution.support.check(torch.tensor([[0.5, 0.5]] * 3 + [[0.5, 1.5]])).tolist() == [1, 1, 1, 0]


def test_support_leaves_no_gradient_and_no_state() -> None:
    flow = spline_on_a_box("linear")
    x = torch.zeros(1, 2, requires_grad=True)
    assert not flow.as_distribution().support.check(x).requires_grad


# ---- dtypes of base distributions ----


@pytest.mark.parametrize("kind", [DiagonalNormal, DiagonalLogistic])
def test_tensors_keep_their_dtype(kind) -> None:
    wide = torch.tensor([0.1, 0.2], dtype=torch.float64)
    base = kind(2, loc=wide, context=3)
    assert {t.dtype for t in base.state_dict().values()} == {torch.float64} and torch.equal(base.loc, wide)
    assert base.sample(5, torch.zeros(3).double()).dtype == torch.float64
    assert kind(2, log_scale=wide, learnable=False).loc.dtype == torch.float64
    assert kind(2, loc=wide.float(), log_scale=wide).loc.dtype == torch.float64  # promoted
    assert kind(2, loc=wide.half()).log_scale.dtype == torch.float16
    assert kind(2, loc=torch.tensor([1, 2]), log_scale=[0.5, 0.5]).loc.dtype == torch.get_default_dtype()


def test_a_box_keeps_its_dtype() -> None:
    corner = torch.tensor([0.1], dtype=torch.float64)
    box = UniformBox(corner, [1.0])
    assert box.low.dtype == box.high.dtype == box.sample().dtype == torch.float64 and torch.equal(box.low, corner)


def test_devices_must_agree() -> None:
    with pytest.raises(ValueError, match="loc and log_scale must be on one device, got cpu and meta"):
        DiagonalNormal(2, torch.zeros(2), torch.zeros(2, device="meta"))
    assert DiagonalNormal(2, torch.zeros(2, device="meta")).log_scale.is_meta


# ---- Pyro ----

PYRO = """
import torch, pyro, pyro.distributions as dist
from pyro.infer import SVI, Trace_ELBO
from flowkernels.flows import NSF

torch.manual_seed(0)
pyro.set_rng_seed(0)
q, p = NSF(2, transforms=2, hidden=8), NSF(2, context=3, transforms=2, hidden=8)

def model(x, c):
    pyro.module("p", p)
    pyro.sample("z", dist.Normal(torch.ones(2), 0.5).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", p.as_distribution(c), obs=x)

def guide(x, c):
    pyro.module("q", q)
    pyro.sample("z", q.as_distribution())

svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO(num_particles=16))
x, c = torch.randn(40, 2), torch.randn(40, 3)
losses = [svi.step(x, c) for _ in range(60)]
assert sum(losses[-10:]) < sum(losses[:10]), losses
assert pyro.sample("z", q.as_distribution()).shape == (2,)
with pyro.plate("three", 3):
    assert pyro.sample("z", q.as_distribution()).shape == (3, 2)
"""


def test_pyro_samples_flows_in_models_and_guides() -> None:
    """In a process of its own: whether Pyro is imported decides what a flow's distribution is."""
    done = subprocess.run([sys.executable, "-c", PYRO], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_pyros_methods_survive_copies() -> None:
    pytest.importorskip("pyro")
    import pyro.distributions as dist

    one = NSF(2, hidden=8, transforms=1).as_distribution()
    x = torch.zeros(2)
    for other in (one.expand((3,)), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert isinstance(other, dist.TorchDistribution | dist.torch_distribution.TorchDistributionMixin)
        assert isinstance(other, type(one)) and isinstance(other(), Tensor)
        assert torch.equal(other.log_prob(x), one.log_prob(x).expand(other.batch_shape))

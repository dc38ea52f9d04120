"""Native flows under sbi's trainers and posteriors."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from flowkernels.flows import MAF, NSF, Flow
from flowkernels.nets import MLP
from flowkernels.transforms import Standardize

inference = pytest.importorskip("sbi.inference")
utils = pytest.importorskip("sbi.utils")
from flowkernels.sbi import FlowEstimator, estimator  # noqa: E402  (which needs sbi)

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
SMALL = {"hidden": (16, 16), "transforms": 2}


def my_flow(features: int, context: int) -> Flow:
    return NSF(features, context, transforms=2, hidden=(16, 16), linear="lu")


class Summary(nn.Module):
    """As embeddings of sbi: one batch dim, no other."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.rows = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), []

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 3
        self.rows.append(len(x))
        return self.layers(x)


def two_moons(theta: Tensor) -> Tensor:
    angle = math.pi * (torch.rand(len(theta)) - 0.5)
    r = 0.1 + 0.01 * torch.randn(len(theta))
    moon = torch.stack([r * angle.cos() + 0.25, r * angle.sin()], -1)
    return moon + torch.stack([-(theta[:, 0] + theta[:, 1]).abs(), theta[:, 1] - theta[:, 0]], -1) / math.sqrt(2)


def data(n: int = 200) -> tuple[Tensor, Tensor]:
    """In odd units."""
    torch.manual_seed(0)
    theta = 2 * torch.rand(n, 2) - 1
    return 50 + 20 * theta, 1e-3 * torch.cat([theta, theta.prod(-1, keepdim=True)], -1) + 7e-3


def box(n: int = 2) -> object:
    return utils.BoxUniform(-torch.ones(n), torch.ones(n))


# ---- the estimator by itself ----


@pytest.mark.parametrize("flow", ["nsf", "maf", my_flow])
@pytest.mark.parametrize("score", ["independent", "structured", "none", None])
def test_shapes(flow, score) -> None:
    theta, x = data()
    q = estimator(flow, z_score_theta=score, z_score_x=score, **SMALL)(theta, x)
    assert (q.input_shape, q.condition_shape) == ((2,), (3,))
    many, few = theta[:10].view(5, 2, 2), x[:2]
    expected = torch.stack([q.net.log_prob(row, few) for row in many])
    torch.testing.assert_close(q.log_prob(many, few), expected)
    assert q.log_prob(theta[:2], few).shape == (1, 2)
    assert q.log_prob(many, x[:10].view(5, 2, 3)).shape == q.log_prob(many, x[:1]).shape == (5, 2)
    torch.testing.assert_close(q.loss(theta[:2], few), -q.log_prob(theta[:2], few)[0])
    assert q.sample((), few).shape == (2, 2) and q.sample((4, 3), few).shape == (4, 3, 2, 2)
    draws, log_prob = q.sample_and_log_prob(torch.Size([6]), few)
    torch.testing.assert_close(q.log_prob(draws, few), log_prob, rtol=1e-3, atol=1e-3)
    assert q.inverse_transform(theta[:2], few[:1]).shape == (2, 2)


@pytest.mark.parametrize("flow", ["nsf", "maf"])
def test_densities_are_in_the_units_of_the_data(flow) -> None:
    theta, x = data()
    q = estimator(flow, **SMALL)(theta, x)
    q = q.double()
    grid = torch.linspace(-70, 170, 401, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    with torch.no_grad():
        density = q.log_prob(points[:, None], x[:1].double()).exp()
    assert abs(density.sum() * (grid[1] - grid[0]) ** 2 - 1) < 1e-3


def test_what_is_modelled_and_what_is_given_are_standardised() -> None:
    theta, x = data()
    posterior, likelihood = (estimator(target=target, **SMALL)(theta, x) for target in ("posterior", "likelihood"))
    assert (likelihood.input_shape, likelihood.condition_shape) == ((3,), (2,))
    for q, (input, condition) in ((posterior, (theta, x)), (likelihood, (x, theta))):
        first = q.net.transform[0]
        assert isinstance(first, Standardize)
        for z in (first(input)[0], q.embedding_net(condition)):
            torch.testing.assert_close(z.mean(0), torch.zeros(z.shape[1]), rtol=0, atol=1e-4)
            torch.testing.assert_close(z.std(0, correction=0), torch.ones(z.shape[1]), rtol=1e-4, atol=0)
    torch.testing.assert_close(estimator(z_score_x=None, **SMALL)(theta, x).embedding_net(x), x)
    shared = estimator(z_score_theta="structured", **SMALL)(theta, x).net.transform[0]
    assert len(shared.mean.unique()) == len(shared.std.unique()) == 1


def test_bad_simulations_and_constants_do_not_spoil_the_standardising() -> None:
    theta, x = data()
    x[3], x[5, 1], x[:, 2] = math.nan, math.inf, 1e6 / 3
    q = estimator(**SMALL)(theta, x)
    embedded = q.embedding_net(x[:3])
    assert embedded.isfinite().all() and embedded.abs().max() < 10


def test_an_embedding_sees_one_batch_dim_and_each_condition_once() -> None:
    theta, x = data()
    net = Summary()
    q = estimator("maf", embedding_net=net, **SMALL)(theta, x.repeat(1, 4).view(-1, 3, 4))
    net.rows.clear()
    condition = torch.ones(2, 3, 4)
    q.log_prob(theta[:20].view(10, 2, 2), condition)
    q.sample((10,), condition)
    assert net.rows == [2, 2]
    q.loss(theta[:2], condition).sum().backward()
    assert net.layers[1].weight.grad.abs().sum() > 0


def test_it_takes_the_dtype_of_the_data() -> None:
    theta, x = data()
    q = estimator("nsf", embedding_net=MLP(3, 4, hidden=(8,)), **SMALL)(theta.double(), x.double())
    assert {p.dtype for p in q.parameters()} == {torch.float64} and q.log_prob(theta.double(), x.double()).shape


def test_it_is_pickled_and_saved() -> None:
    theta, x = data()
    builder = pickle.loads(pickle.dumps(estimator("maf", **SMALL)))
    q = builder(theta, x)
    again = pickle.loads(pickle.dumps(q))
    other = builder(theta, x)
    other.load_state_dict(q.state_dict())
    for twin in (again, other):
        assert torch.equal(twin.log_prob(theta, x), q.log_prob(theta, x))


# ---- with sbi ----


def trained(method: str, builder: object, tmp_path, monkeypatch, n: int = 400, epochs: int = 3):
    monkeypatch.chdir(tmp_path)  # where sbi writes its logs
    torch.manual_seed(1)
    prior = box()
    trainer = getattr(inference, method)(prior, density_estimator=builder, show_progress_bars=False)
    theta = prior.sample((n,))
    trainer.append_simulations(theta, two_moons(theta)).train(training_batch_size=100, max_num_epochs=epochs)
    return trainer


@pytest.mark.parametrize("flow", ["nsf", "maf", my_flow])
def test_npe(flow, tmp_path, monkeypatch) -> None:
    trainer = trained("NPE", estimator(flow, **SMALL), tmp_path, monkeypatch)
    trainer = pickle.loads(pickle.dumps(trainer))
    posterior = trainer.build_posterior()
    assert isinstance(posterior.posterior_estimator, FlowEstimator)
    draws = posterior.sample((30,), x=torch.zeros(2), show_progress_bars=False)
    assert draws.shape == (30, 2) and (draws.abs() <= 1).all()
    assert posterior.log_prob(draws, x=torch.zeros(2)).isfinite().all()
    assert posterior.sample_batched((5,), x=torch.zeros(4, 2), show_progress_bars=False).shape == (5, 4, 2)


def test_npe_of_two_rounds(tmp_path, monkeypatch) -> None:
    trainer = trained("NPE", estimator("maf", **SMALL), tmp_path, monkeypatch, n=200)
    proposal = trainer.build_posterior().set_default_x(torch.zeros(2))
    theta = proposal.sample((100,), show_progress_bars=False)
    trainer.append_simulations(theta, two_moons(theta), proposal=proposal)
    trainer.train(training_batch_size=50, max_num_epochs=1)
    assert trainer.build_posterior().sample((5,), x=torch.zeros(2), show_progress_bars=False).shape == (5, 2)


def test_nle(tmp_path, monkeypatch) -> None:
    trainer = trained("NLE", estimator("maf", target="likelihood", **SMALL), tmp_path, monkeypatch, n=200)
    likelihood = trainer._neural_net
    assert (likelihood.input_shape, likelihood.condition_shape) == ((2,), (2,))
    potential = trainer.build_posterior(sample_with="rejection").potential(torch.zeros(3, 2), x=torch.zeros(4, 2))
    assert potential.shape == (3,)  # four observations, summed


@pytest.mark.slow
@pytest.mark.parametrize("flow", ["nsf", "maf"])
def test_two_moons(flow, tmp_path, monkeypatch) -> None:
    """What the posterior draws gives the observation back: a tenth of the distance of the prior's."""
    builder = estimator(flow, hidden=(50, 50), transforms=5)
    posterior = trained("NPE", builder, tmp_path, monkeypatch, n=3000, epochs=30).build_posterior()
    draws = posterior.sample((2000,), x=torch.zeros(2), show_progress_bars=False)
    distance = two_moons(draws).norm(dim=-1).mean()
    prior = two_moons(box().sample((2000,))).norm(dim=-1).mean()
    assert distance < prior / 3
    share = (draws.sum(-1) > 0).double().mean()  # of one of the two moons
    assert 0.25 < share < 0.75


# ---- errors ----


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: estimator("nice"), ValueError, r'flow must be "maf", "nsf" or a function .*, got \'nice\'$'),
        (lambda: estimator(MAF(2)), ValueError, r"flow must be .*, got MAF"),
        (lambda: estimator(target="x"), ValueError, r"target must be .*, got 'x'$"),
        (lambda: estimator(z_score_x="yes"), ValueError, r"z_score_x must be one of .*, got 'yes'$"),
        (lambda: estimator(hidden=0), ValueError, r"hidden must be .*, got 0$"),
        (lambda: estimator(transforms=0), ValueError, r"transforms must be .*, got 0$"),
        (lambda: estimator(embedding_net=torch.relu), TypeError, r"embedding_net must be a torch\.nn\.Module or None"),
        (lambda: estimator()(torch.zeros(3, 2), [[1.0]]), TypeError, r"x must be a torch\.Tensor, got list"),
        (lambda: estimator()(torch.zeros(3), torch.zeros(3, 1)), ValueError, r"theta must be .*, got \[3\], torch"),
        (lambda: estimator()(torch.zeros(3, 2), torch.zeros(4, 2)), ValueError, r"as many rows, got 3 and 4$"),
        (lambda: estimator(lambda d, c: nn.Identity())(*data()), TypeError, r"flow must make .*, got Identity$"),
        (
            lambda: estimator(lambda d, c: NSF(d, c, embedding=nn.Identity()))(*data()),
            ValueError, r"the flow must come without an embedding, .*, got Identity\(\)$",
        ),
    ],
)  # fmt: skip
def test_errors(call, error, message) -> None:
    with pytest.raises(error, match=r"^sbi\.estimator: .*" + message):
        call()


def test_an_estimator_is_of_a_flow_of_that_many_features() -> None:
    with pytest.raises(TypeError, match=r"^sbi\.FlowEstimator: net must be a .*, got Identity$"):
        FlowEstimator(nn.Identity(), (2,), (3,))
    with pytest.raises(ValueError, match=r"^sbi\.FlowEstimator: net must be of the 6 features .*, got one of \[2\]$"):
        FlowEstimator(MAF(2), (2, 3), (3,))

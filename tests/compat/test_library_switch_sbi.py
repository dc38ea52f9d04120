"""sbi's trainers with one line in front of them: what they build, train, sample and pickle is accelerated."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import flowkernels
from flowkernels import compat
from flowkernels.compat.engine import patch

inference = pytest.importorskip("sbi.inference")
utils = pytest.importorskip("sbi.utils")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

MODELS = ["maf", "nsf", "maf_rqs", "zuko_maf", "zuko_nsf", "zuko_ncsf", "zuko_nice"]


def simulations() -> tuple[torch.Tensor, torch.Tensor]:
    """Parameters in [-1, 1]² and what a simulator of one nonlinear line makes of them."""
    torch.manual_seed(0)
    theta = 2 * torch.rand(200, 2) - 1
    return theta, theta + 0.3 * theta.square() + 0.1 * torch.randn(200, 2)


def trained(method: str, model: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where sbi writes its logs
    torch.manual_seed(1)
    prior = utils.BoxUniform(-torch.ones(2), torch.ones(2))
    trainer = getattr(inference, method)(prior, density_estimator=model, show_progress_bars=False)
    estimator = trainer.append_simulations(*simulations()).train(training_batch_size=50, max_num_epochs=3)
    return trainer, estimator


def fast(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if patch.is_fast_layer(module)]


@pytest.mark.parametrize("method", ["NPE", "NLE"])
@pytest.mark.parametrize("model", MODELS)
def test_trainers(method, model, tmp_path, monkeypatch):
    plain_trainer, plain = trained(method, model, tmp_path, monkeypatch)
    with flowkernels.accelerate_library("sbi"):
        trainer, estimator = trained(method, model, tmp_path, monkeypatch)
    assert not fast(plain)
    assert fast(estimator)
    report = compat.accelerate(estimator)
    assert report.accelerated == fast(estimator)
    first = str(report).splitlines()[0]
    n = len(report.accelerated)
    assert first.startswith(f"flowkernels: {n} of {n} modules accelerated")
    losses = [torch.tensor(t.summary["training_loss"]) for t in (plain_trainer, trainer)]
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)
    assert [*plain.state_dict()] == [*estimator.state_dict()]


@pytest.mark.parametrize("model", ["maf", "nsf", "zuko_nsf"])
def test_a_posterior_samples_as_before_and_after_a_pickle(model, tmp_path, monkeypatch):
    with flowkernels.accelerate_library("sbi"):
        trainer, _ = trained("NPE", model, tmp_path, monkeypatch)
        posterior = trainer.build_posterior()
        state = pickle.dumps(posterior)
        loaded, twin = pickle.loads(state), copy.deepcopy(posterior)
    assert b"flowkernels" not in state
    plain = pickle.loads(state)
    assert not fast(plain.posterior_estimator)
    draws = []
    for one in (posterior, loaded, twin, plain):
        torch.manual_seed(2)
        draws.append(one.sample((50,), x=torch.zeros(2), show_progress_bars=False))
    assert draws[0].shape == (50, 2)
    assert torch.equal(draws[1], draws[0]) and torch.equal(draws[2], draws[0])
    torch.testing.assert_close(draws[3], draws[0], rtol=2e-4, atol=2e-4)


def test_layers_by_themselves_stay():
    import zuko
    from nflows.transforms import MaskedAffineAutoregressiveTransform

    with flowkernels.accelerate_library("sbi"):
        assert not fast(MaskedAffineAutoregressiveTransform(3, 8))
        assert not fast(zuko.flows.MAF(3, transforms=1))


def test_an_unconditional_flow():
    from sbi.neural_nets.net_builders.flow import build_zuko_unconditional_flow

    with flowkernels.accelerate_library("sbi"):
        estimator = build_zuko_unconditional_flow("NSF", simulations()[0], "none", hidden_features=8, num_transforms=2)
    assert len(fast(estimator)) == 2
    assert estimator.log_prob(torch.zeros(1, 5, 2)).isfinite().all()

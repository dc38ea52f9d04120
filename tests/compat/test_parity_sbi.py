"""Estimators built with sbi, of nflows' and of zuko's layers, compute the same when accelerated by one call."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import flowkernels
from flowkernels import compat
from tests.compat.nflows_models import assert_numbers
from tests.compat.parity import B, accelerated_copy, table

builders = pytest.importorskip("sbi.neural_nets.net_builders")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

# builder → a module of every layer that must be accelerated
ZUKO = "MaskedAutoregressiveTransform"
BUILDERS = {
    "build_nsf": "PiecewiseRationalQuadraticCouplingTransform",
    "build_maf": "MaskedAffineAutoregressiveTransform",
    "build_maf_rqs": "MaskedPiecewiseRationalQuadraticAutoregressiveTransform",
    "build_zuko_nsf": ZUKO,
    "build_zuko_maf": ZUKO,
    "build_zuko_ncsf": ZUKO,
}


def build(name, theta, x):
    torch.manual_seed(0)
    return getattr(builders, name)(
        theta, x, z_score_x="independent", z_score_y="structured", hidden_features=16, num_transforms=2,
        embedding_net=nn.Sequential(nn.Linear(x.shape[1], 6), nn.ReLU(), nn.Linear(6, 4)),
    )  # fmt: skip


def data():
    """Six columns of the wines: the last three given the first three, with standardising transforms in front."""
    wines = 3 * table()[:B].float() + 1
    return (wines[:, 3:], wines[:, :3])


@pytest.mark.parametrize("name", BUILDERS)
def test_log_prob_and_loss(name):
    """A batch of conditions, an embedding net in front of them, z-scoring of both sides."""

    def theirs(estimator, theta, x, dtype):
        estimator = copy.deepcopy(estimator).to(dtype)
        theta, x = theta.to(dtype, copy=True).requires_grad_(), x.to(dtype)
        log_prob = estimator.log_prob(theta[None], x)
        loss = estimator.loss(theta.detach(), x).mean()
        (log_prob.sum() + loss).backward()
        found = {"log_prob": log_prob.detach(), "grad of theta": theta.grad, "loss": loss.detach()}
        return found | {n: p.grad for n, p in estimator.named_parameters() if p.grad is not None}

    def ours(estimator, *rest):
        estimator = copy.deepcopy(estimator)
        rows = [row for row in compat.accelerate(estimator).rows if row.class_name == BUILDERS[name]]
        assert len(rows) == 2 and all(row.accelerated for row in rows)
        return theirs(estimator, *rest)

    assert_numbers(theirs, ours, build(name, *data()), *data(), draws=4)


@pytest.mark.parametrize("name", BUILDERS)
def test_samples(name):
    plain, (_, x) = build(name, *data()), data()
    results = []
    for estimator in (plain, accelerated_copy(plain)):
        torch.manual_seed(1)
        with torch.no_grad():
            results.append(estimator.sample((20,), x[:5]))
            results.append(estimator.sample_and_log_prob((4,), x[:3]))
    assert results[0].shape == (20, 5, 3)
    for a, b in zip(results[:2], results[2:], strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4)  # in float32, noise drawn in it


@pytest.mark.parametrize("method", ["NPE", "NLE"])
@pytest.mark.parametrize("name", ["build_nsf", "build_zuko_nsf"])
def test_inference(name, method, tmp_path, monkeypatch):
    """The builder handed to sbi's trainer, with one more call in it: the losses of what it trains on real data."""
    inference = pytest.importorskip("sbi.inference")
    monkeypatch.chdir(tmp_path)  # where sbi writes its logs
    theta, x = data()
    losses, estimators = [], []
    for accelerated in (False, True):

        def density_estimator(theta, x, accelerated=accelerated):
            # NLE hands over (x, theta): the data come first in both.
            estimator = build(name, theta, x)
            if accelerated:
                compat.accelerate(estimator)
            return estimator

        torch.manual_seed(2)
        trainer = getattr(inference, method)(density_estimator=density_estimator, show_progress_bars=False)
        trainer.append_simulations(theta, x)
        estimators.append(trainer.train(training_batch_size=20, max_num_epochs=4))
        losses.append(torch.tensor(trainer.summary["training_loss"]))
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)
    assert [*estimators[0].state_dict()] == [*estimators[1].state_dict()]


@pytest.mark.parametrize("name", ["build_nsf", "build_maf", "build_maf_rqs", "build_zuko_nsf", "build_zuko_maf"])
def test_convert(name):
    """The net of an estimator as a native flow; zuko's has its embedding outside."""
    (theta, x), estimator = data(), build(name, *data()).eval()
    ours = flowkernels.convert(estimator.net)
    context = estimator._embedding_net(x) if "zuko" in name else x
    with torch.no_grad():
        torch.testing.assert_close(
            ours.log_prob(theta, context), estimator.log_prob(theta[None], x)[0], rtol=1e-4, atol=1e-4
        )

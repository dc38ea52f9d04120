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


def test_trainers_have_a_fused_adam_while_it_is_on(tmp_path, monkeypatch):
    from sbi.inference.trainers import base

    theirs = base.Adam, base.clip_grad_norm_
    with flowkernels.accelerate_library("sbi"):
        inner = flowkernels.accelerate_library("sbi")
        trainer, _ = trained("NPE", "maf", tmp_path, monkeypatch)
        inner.restore()
        assert base.Adam is not theirs[0]  # the block is open
        assert type(base.Adam([nn.Parameter(torch.ones(2, dtype=torch.cfloat))], lr=0.1)) is torch.optim.Adam
        given = base.Adam([nn.Parameter(torch.ones(2))], lr=0.1, foreach=True)
        assert given.defaults["foreach"] and not given.defaults["fused"]
        assert type(base.Adam(params=[nn.Parameter(torch.ones(2))], lr=0.1)) is torch.optim.Adam
    assert (base.Adam, base.clip_grad_norm_) == theirs
    assert type(trainer.optimizer) is torch.optim.Adam and trainer.optimizer.defaults["fused"] is True
    assert trained("NPE", "maf", tmp_path, monkeypatch)[0].optimizer.defaults["fused"] is None


def test_a_step_is_that_of_torchs_loop(tmp_path, monkeypatch):
    """Clipped gradients have the same bits, and a step differs by rounding."""
    from sbi.inference.trainers import base

    def steps() -> list[torch.Tensor]:
        torch.manual_seed(0)
        weights = [nn.Parameter(torch.randn(n, 3)) for n in (1, 5, 40)]
        adam = base.Adam(weights, lr=0.1)
        clipped = []
        for i in range(5):
            adam.zero_grad()
            sum((w.sin() * (i + 1)).square().sum() for w in weights).backward()  # type: ignore[union-attr]
            base.clip_grad_norm_(weights, max_norm=1.0)
            clipped += [w.grad.clone() for w in weights] if i == 0 else []
            adam.step()
        return [*clipped, *(w.detach() for w in weights)]

    loop = steps()
    with flowkernels.accelerate_library("sbi"):
        fast_steps = steps()
    for a, b in zip(fast_steps[:3], loop[:3], strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(fast_steps, loop, rtol=1e-5, atol=1e-6)


def test_a_trainer_of_another_version_is_left_alone(monkeypatch):
    from sbi.inference.trainers import base

    monkeypatch.delattr(base, "clip_grad_norm_")
    monkeypatch.setattr(base, "Adam", theirs := type("Adam", (), {}))  # their own
    with flowkernels.accelerate_library("sbi"):
        assert base.Adam is theirs
    assert base.Adam is theirs and not hasattr(base, "clip_grad_norm_")


def test_parameters_that_come_one_by_one(tmp_path, monkeypatch):
    """sbi hands over a generator. What torch refuses is refused, and what has no fused step takes torch's own."""
    from sbi.inference.trainers import base

    with flowkernels.accelerate_library("sbi"):
        q = nn.Parameter(torch.ones(3))
        q.grad = torch.full((3,), 4.0)
        assert base.clip_grad_norm_(iter([q]), 1.0) > 6 and q.grad.norm() < 1.01
        q.grad = torch.full((3,), float("inf"))
        with pytest.raises(RuntimeError, match="non-finite"):
            base.clip_grad_norm_(iter([q]), 1.0, error_if_nonfinite=True)
        q.grad = torch.full((3,), 4.0).to_sparse()
        with pytest.raises((RuntimeError, NotImplementedError)) as ours:
            base.clip_grad_norm_(iter([q]), 1.0)
        with pytest.raises(type(ours.value)):
            torch.nn.utils.clip_grad_norm_(iter([q]), 1.0)
        waves = nn.Parameter(torch.ones(2, dtype=torch.cfloat))
        adam = base.Adam(iter([waves]), lr=0.1)
        (waves.abs().sum()).backward()
        adam.step()
        assert not adam.defaults["fused"]

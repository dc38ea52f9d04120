"""Training: what it finds, keeps, refuses and says."""

from __future__ import annotations

import builtins
import math
from typing import Any

import pytest
import torch
from torch import nn

from flowkernels.distributions import UniformBox
from flowkernels.flows import MAF, NSF, Flow
from flowkernels.training import Epoch, Fit, fit, standardised
from flowkernels.transforms import BatchNorm, Dequantize, DiagonalScale, Permutation

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK: dict[str, Any] = {"batch_size": 64, "progress": False}


def small(context: int = 0, **settings: Any) -> NSF:
    torch.manual_seed(0)
    return NSF(2, context, transforms=2, bins=4, hidden=(8,), **settings)


def rows(n: int = 200, seed: int = 0) -> torch.Tensor:
    """Two features, of which the second follows the first."""
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    x[:, 1] = 0.2 * x[:, 1] + x[:, 0].tanh()
    return x


def test_it_learns_and_says_how() -> None:
    flow, x = small(), rows(600)
    before = -flow.log_prob(x).mean().item()
    said: list[Epoch] = []
    found = fit(flow, x, epochs=8, batch_size=64, lr=1e-2, progress=said.append)
    assert isinstance(found, Fit) and found.flow is flow and not flow.training
    assert -flow.log_prob(x).mean().item() < before - 0.7
    assert len(found.train) == len(found.validation) == 8 and found.stopped == "epochs" and found.seconds > 0
    assert found.best_epoch == 1 + min(range(8), key=found.validation.__getitem__)
    assert [e.epoch for e in said] == list(range(1, 9)) and {e.epochs for e in said} == {8}
    assert tuple(e.train for e in said) == found.train and tuple(e.validation for e in said) == found.validation
    with pytest.raises(AttributeError):
        found.seconds = 0.0  # type: ignore[misc]


def test_validation_loss_is_that_of_the_weights_it_ends_with() -> None:
    x, own = rows(), rows(50, seed=1)
    found = fit(small(), x, epochs=4, lr=1e-2, validation=own, **QUICK)
    expected = -found.flow.log_prob(own).double().mean().item()
    assert found.validation[found.best_epoch - 1] == pytest.approx(expected, rel=1e-6)


def test_the_first_training_loss_is_the_mean_over_all_rows() -> None:
    """With a rate that moves nothing: every row once, whatever the batches."""
    flow, x = small(), rows(101)
    expected = -flow.log_prob(x).double().mean().item()
    found = fit(flow, x, epochs=1, lr=1e-30, validation=None, schedule=None, batch_size=10, progress=False)
    assert found.train[0] == pytest.approx(expected, rel=1e-6) and found.validation == () and found.best_epoch == 1


def test_patience_stops_and_the_best_weights_come_back() -> None:
    flow, x, own = small(), rows(64), rows(64, seed=1)
    weights: list[dict[str, torch.Tensor]] = []
    keep = lambda _: weights.append({k: v.clone() for k, v in flow.state_dict().items()})  # noqa: E731
    settings = {"lr": 0.1, "schedule": None, "patience": 3, "batch_size": 16}
    found = fit(flow, x, epochs=200, validation=own, progress=keep, **settings)
    assert found.stopped == "patience" and len(found.train) == found.best_epoch + 3 < 200
    best = weights[found.best_epoch - 1]
    assert all(torch.equal(best[k], v) for k, v in flow.state_dict().items())
    assert not all(torch.equal(weights[-1][k], v) for k, v in flow.state_dict().items())


def test_the_same_call_gives_the_same_bits_and_leaves_the_global_generator_alone() -> None:
    runs = []
    for _ in range(2):
        flow = small(net="mlp", dropout=0.2)
        torch.manual_seed(torch.seed() % 1000)
        state = torch.get_rng_state()
        fit(flow, rows(), epochs=2, **QUICK)
        assert torch.equal(torch.get_rng_state(), state)
        runs.append(flow.state_dict())
    other = small(net="mlp", dropout=0.2)
    fit(other, rows(), epochs=2, seed=1, **QUICK)
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])
    assert not all(torch.equal(runs[0][k], v) for k, v in other.state_dict().items())


def test_context_follows_its_rows() -> None:
    """x is its context, but for a little noise: no order of one alone could learn that."""
    c = torch.randn(400, 1, generator=torch.Generator().manual_seed(1))
    x = torch.cat((c, -c), 1) + 0.05 * rows(400)
    found = fit(small(1), x, c, epochs=12, lr=1e-2, **QUICK)
    alone = fit(small(), x, epochs=12, lr=1e-2, **QUICK)
    assert min(found.validation) < min(alone.validation) - 0.5
    own = fit(small(1), x, c, epochs=1, validation=(x[:9], c[:9]), **QUICK)
    expected = -own.flow.log_prob(x[:9], c[:9]).double().mean().item()
    assert own.validation[0] == pytest.approx(expected, rel=1e-6)


def test_schedules() -> None:
    """Adam's first steps have the length of the rate: a scale that always wants to grow shows it."""

    def moved(**settings: Any) -> float:
        flow = Flow(DiagonalScale(1), UniformBox([-1e9], [1e9]))  # log_prob is the log-scale, and nothing else
        fit(flow, torch.zeros(4, 1), batch_size=1, epochs=1, validation=None, progress=False, lr=0.1, **settings)
        return flow.transform.log_scale.item()

    assert moved(schedule=None) == pytest.approx(0.4, rel=1e-4)
    rates = [0.05 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]
    assert moved() == pytest.approx(sum(rates), rel=1e-4)
    assert moved(schedule=lambda done: 1 - done) == pytest.approx(0.1 * (1 + 0.75 + 0.5 + 0.25), rel=1e-4)


def test_modes_and_frozen_parts_stay() -> None:
    embedding = nn.Sequential(nn.Linear(1, 3), nn.Dropout(0.5)).eval()
    for p in embedding.parameters():
        p.requires_grad_(False)
    flow = small(3, embedding=embedding)
    flow.train()
    embedding.eval()
    before, modes = embedding[0].weight.clone(), []
    embedding[1].register_forward_hook(lambda m, *_: modes.append(m.training))
    fit(flow, rows(), rows()[:, :1], epochs=2, **QUICK)
    assert torch.equal(embedding[0].weight, before) and modes and not any(modes)
    norm = BatchNorm(2)
    seen = []
    flow = Flow(norm, UniformBox([-9.0, -9.0], [9.0, 9.0])).eval()
    norm.register_forward_hook(lambda m, *_: seen.append(m.training))
    fit(flow, rows(), epochs=2, validation=0.1, **QUICK)
    assert seen == [True, True, True, False] * 2 and not flow.training  # 180 rows, 64 a batch


def test_whole_numbers_for_a_flow_that_dequantises() -> None:
    torch.manual_seed(0)
    flow = MAF(2, transforms=1, hidden=(8,))
    flow = Flow(Composed := flow.transform, flow.base)
    flow.transform = type(Composed)([Dequantize(8), *Composed])
    levels = torch.randint(8, (100, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = fit(flow, levels, epochs=3, **QUICK)
    again = fit(flow, levels, epochs=1, lr=1e-30, schedule=None, **QUICK)
    same = fit(flow, levels, epochs=2, lr=1e-30, schedule=None, **QUICK)
    assert all(map(math.isfinite, found.validation))
    assert again.validation[0] == same.validation[0] == same.validation[1]  # the same noise after every epoch


def test_a_loss_that_is_no_number() -> None:
    flow = small()
    before = {k: v.clone() for k, v in flow.state_dict().items()}
    with pytest.raises(FloatingPointError, match=r"the loss must be finite, got nan at step \d+ of 3 of epoch 1;"):
        fit(flow, rows(), epochs=3, lr=1e30, schedule=None, clip=None, **QUICK)
    assert all(torch.equal(before[k], v) for k, v in flow.state_dict().items())

    box = Flow(DiagonalScale(2), UniformBox([-1.0, -1.0], [1.0, 1.0]))
    with pytest.raises(FloatingPointError, match=r"must be finite, got inf at step 1 of 1 of epoch 1.*flow.base"):
        fit(box, 5 * torch.ones(20, 2), epochs=1, **QUICK)
    with pytest.raises(FloatingPointError, match=r"got inf of the validation rows after epoch 1; the flow"):
        fit(box, torch.zeros(20, 2), epochs=1, validation=5 * torch.ones(2, 2), **QUICK)


def test_after_better_epochs_they_are_what_stays() -> None:
    flow = small()
    kept: list[dict[str, torch.Tensor]] = []
    keep = lambda _: kept.append({k: v.clone() for k, v in flow.state_dict().items()})  # noqa: E731
    explodes = lambda done: 1.0 if done < 0.5 else 1e33  # noqa: E731
    with pytest.raises(FloatingPointError, match=r"epoch 2; the flow has the weights of epoch 1"):
        fit(flow, rows(), epochs=2, schedule=explodes, clip=None, batch_size=64, progress=keep)
    assert len(kept) == 1 and all(torch.equal(kept[0][k], v) for k, v in flow.state_dict().items())


def test_an_interruption_keeps_the_best_weights() -> None:
    def stop(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    found = fit(small(), rows(), epochs=9, batch_size=64, progress=stop)
    assert found.stopped == "interrupted" and len(found.train) == 2 and found.best_epoch in (1, 2)


X, NAN = rows(20), rows(20).index_fill(0, torch.tensor([3, 5]), math.nan)


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "message"),
    [
        ((X.numpy(),), {}, TypeError, r"x must be a torch.Tensor, got numpy.ndarray \(torch.as_tensor makes one\)"),
        (
            (X.double(),),
            {},
            TypeError,
            r"x must be of the dtype of the weights, torch.float32, got torch.float64 \(try",
        ),
        ((X[0],), {}, ValueError, r"x must be \[N, 2\] with at least one row, got \[2\]"),
        ((X[:0],), {}, ValueError, r"x must be \[N, 2\] with at least one row, got \[0, 2\]"),
        ((X.T,), {}, ValueError, r"x must be \[N, 2\] with at least one row, got \[2, 20\]"),
        ((NAN,), {}, ValueError, "x must be finite, got NaN or infinity in 2 of 20 rows, first in row 3"),
        ((X, X[:9]), {}, ValueError, r"context must be \[N, C\] with N = 20 as x, got \[9, 2\]"),
        ((X, X[:, 0]), {}, ValueError, r"context must be \[N, C\] with N = 20 as x, got \[20\]"),
        ((X, NAN), {}, ValueError, "context must be finite, got NaN"),
        ((X,), {"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ((X,), {"batch_size": 2.0}, ValueError, "batch_size must be an integer, at least 1, got 2.0"),
        ((X,), {"lr": "1e-3"}, ValueError, "lr must be a finite number above 0, got '1e-3'"),
        ((X,), {"lr": -1}, ValueError, "lr must be a finite number above 0, got -1"),
        ((X,), {"clip": 0}, ValueError, "clip must be a finite number above 0, got 0"),
        ((X,), {"patience": 0}, ValueError, "patience must be at least 1, got 0"),
        ((X,), {"weight_decay": -1}, ValueError, "weight_decay must be a finite number from 0 on, got -1"),
        ((X,), {"schedule": "linear"}, ValueError, "schedule must be \"cosine\", None or a function .* got 'linear'"),
        ((X,), {"validation": 1.0}, ValueError, "validation must be a share from 0 to below 1, or tensors, got 1.0"),
        ((X,), {"validation": (X, X, X)}, ValueError, r"validation must be a share, x or \(x, context\), got 3 things"),
        ((X,), {"validation": (X, X)}, ValueError, "validation must have no context, got one"),
        ((X,), {"validation": X.numpy()}, TypeError, "validation x must be a torch.Tensor, got numpy.ndarray"),
        ((X,), {"validation": NAN}, ValueError, "validation x must be finite"),
        ((X[:1],), {}, ValueError, "x must have rows for training beside 1 for validation, got 1"),
        ((X,), {"seed": 0.5}, TypeError, "seed must be an integer, got 0.5"),
        ((X,), {"resume": "no"}, ValueError, "resume must be True or False, got 'no'"),
        ((X,), {"standardise": 1}, ValueError, "standardise must be True or False, got 1"),
        ((X,), {"progress": None}, ValueError, "progress must be True, False or a function of an Epoch, got None"),
    ],
)
def test_wrong_arguments(arguments, settings, error, message) -> None:
    with pytest.raises(error, match=r"training.fit: " + message):
        fit(small(), *arguments, **{"progress": False, **settings})


def test_flows_that_cannot_be_trained() -> None:
    with pytest.raises(TypeError, match=r"training.fit: flow must be a flowkernels.flows.Flow, got Linear"):
        fit(nn.Linear(2, 2), X)  # type: ignore[arg-type]
    fixed = Flow(Permutation.reverse(2), UniformBox([0.0, 0.0], [1.0, 1.0]))
    with pytest.raises(ValueError, match=r"flow must have parameters that require gradients, got none of them"):
        fit(fixed, X, progress=False)


@pytest.mark.parametrize("installed", [True, False])
def test_what_is_shown(installed, monkeypatch, capsys) -> None:
    if installed:
        pytest.importorskip("rich")
    else:
        real = builtins.__import__

        def without_rich(name, *rest):
            if name.startswith("rich"):
                raise ImportError(name)
            return real(name, *rest)

        monkeypatch.setattr(builtins, "__import__", without_rich)
    found = fit(small(), rows(60), epochs=2, batch_size=64)
    said = capsys.readouterr().out
    assert ("2/2 epochs" if installed else f"epoch 2/2: loss {found.train[1]:.3f}, validation") in said
    fit(small(), rows(60), epochs=1, **QUICK)
    assert capsys.readouterr().out == ""


def test_standardised_flow_is_what_fit_returns() -> None:
    x = rows() * torch.tensor([1000.0, 1e-3]) + torch.tensor([5000.0, 1.0])
    flow = small()
    found = fit(flow, x, epochs=3, lr=1e-2, standardise=True, validation=x[:20], **QUICK)
    by_hand = small()
    fit(wrapped := standardised(by_hand, x), x, epochs=3, lr=1e-2, validation=x[:20], **QUICK)
    assert found.flow is not flow and torch.equal(found.flow.log_prob(x), wrapped.log_prob(x))
    assert all(torch.equal(p, q) for p, q in zip(flow.parameters(), by_hand.parameters(), strict=True))
    assert found.flow.sample(50).mean(0)[0] > 1000  # of x as it was given


def test_rows_for_validation_have_no_part_in_the_standardisation() -> None:
    """Powers of two: their sum says which were counted."""
    x = 2.0 ** torch.arange(8).view(8, 1)
    layer = fit(MAF(1, hidden=(4,)), x, epochs=1, validation=0.5, standardise=True, **QUICK).flow.transform.transforms[
        0
    ]
    total = 4 * (-layer.shift / layer.log_scale.exp()).item()
    assert total == pytest.approx(round(total), abs=1e-3) and bin(round(total)).count("1") == 4

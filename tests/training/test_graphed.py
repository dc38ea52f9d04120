"""Steps of a graph are those of the loop by hand. The device is played: a capture keeps what would run, a replay runs
it. tests/cuda/test_device.py has the same on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import flowkernels
from flowkernels import graphed
from flowkernels.flows import MAF, Glow
from flowkernels.training import graphed as module

pytestmark = pytest.mark.usefixtures("one_thread")


class Played:
    """Streams and graphs of nothing; counts what is asked."""

    fails: str | None = None
    optimizer: torch.optim.Optimizer | None = None  # whose numbers a graph keeps

    def __init__(self, device: torch.device) -> None:
        self.apart_, self.captures, self.replays = 0, 0, 0

    def settings(self) -> list[dict[str, object]]:
        groups = self.optimizer.param_groups if self.optimizer else []
        return [{k: v for k, v in g.items() if k != "params" and not isinstance(v, Tensor)} for g in groups]

    def apart(self, run: Callable[[], Tensor]) -> Tensor:
        self.apart_ += 1
        return run()

    def captured(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        if self.fails:
            raise RuntimeError(self.fails)
        self.captures += 1
        found = torch.zeros(())
        settings = self.settings()

        def replay() -> None:
            self.replays += 1
            assert settings == self.settings(), "a number of the graph has changed since the capture"
            found.copy_(run())

        return replay, found


@pytest.fixture
def played(monkeypatch) -> None:
    monkeypatch.setattr(module, "_Cuda", Played)
    monkeypatch.setattr(module, "_why_not", lambda *_: None)


def flow() -> MAF:
    torch.manual_seed(0)
    return MAF(3, 2, transforms=2, hidden=(8,))


def batches(n: int, rows: int = 16) -> list[tuple[Tensor, Tensor]]:
    draws = torch.Generator().manual_seed(1)
    return [(torch.randn(rows, 3, generator=draws), torch.randn(rows, 2, generator=draws)) for _ in range(n)]


def by_hand(model: MAF, optimizer: torch.optim.Optimizer, x: Tensor, context: Tensor, clip: float | None) -> Tensor:
    loss = -model.log_prob(x, context).mean()
    optimizer.zero_grad()
    loss.backward()
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.detach()


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)


def test_it_is_the_loop_by_hand(played) -> None:
    ours, theirs = flow(), flow()
    first, second = sgd(ours), sgd(theirs)
    given = [*batches(7), *batches(1, rows=5), *batches(2)]  # the last batch of an epoch is a small one
    step = graphed(ours, first, given[0], clip=1.0)
    for batch in given:
        assert torch.equal(step(*batch), by_hand(theirs, second, *batch, clip=1.0))
    machine = step._machine
    assert (machine.apart_, machine.captures, machine.replays) == (3, 1, 6) and step.reason is None
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_replay_changes_the_versions_of_parameters(played, monkeypatch) -> None:
    """A real one runs beside Python: what is kept for a version of the parameters would be taken for the next."""
    model = flow()
    step = graphed(model, sgd(model), batches(1)[0])
    for batch in batches(4):
        step(*batch)
    monkeypatch.setattr(step, "_replay", lambda: None)
    before = [p._version for p in model.parameters()]
    step(*batches(1)[0])
    assert all(p._version > v for p, v in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("how", ["scheduler", "by hand"])
def test_learning_rates_change_with_numbers(played, how) -> None:
    """A rate that is a number is part of the graph, which is then made anew."""
    ours, theirs = flow(), flow()
    first, second = sgd(ours), sgd(theirs)
    schedules = [torch.optim.lr_scheduler.StepLR(o, 5, 0.1) for o in (first, second)]
    step = graphed(ours, first, batches(1)[0])
    for i, batch in enumerate(batches(8)):
        assert torch.equal(step(*batch), by_hand(theirs, second, *batch, clip=None))
        if how == "scheduler":
            for schedule in schedules:
                schedule.step()
        elif i == 5:
            first.param_groups[0]["lr"] = second.param_groups[0]["lr"] = 1e-3
    assert step._machine.captures == 2


def test_a_rate_that_is_a_tensor_stays_the_graphs_own(played) -> None:
    model = flow()
    optimizer = sgd(model)
    optimizer.param_groups[0]["capturable"] = True
    step = graphed(model, optimizer, batches(1)[0])
    rate = optimizer.param_groups[0]["lr"]
    assert isinstance(rate, Tensor) and rate.item() == pytest.approx(0.05)
    optimizer.param_groups[0]["lr"] = 0.25  # as a loop by hand writes it
    step._take_rates()
    assert optimizer.param_groups[0]["lr"] is rate and rate.item() == 0.25


def test_what_cannot_be_captured_runs_without_a_graph_and_says_why(played, monkeypatch) -> None:
    monkeypatch.setattr(Played, "fails", "operation not permitted when stream is capturing\nmore")
    ours, theirs = flow(), flow()
    first, second = sgd(ours), sgd(theirs)
    step = graphed(ours, first, batches(1)[0])
    for batch in batches(6):
        assert torch.equal(step(*batch), by_hand(theirs, second, *batch, clip=None))
    assert step.reason == "the step cannot be captured: operation not permitted when stream is capturing"


def test_without_a_gpu_it_says_so() -> None:
    model = flow()
    step = graphed(model, sgd(model), batches(1)[0])
    assert step.reason == "a parameter is on cpu"
    assert step(*batches(1)[0]).shape == ()


def test_an_optimizer_that_cannot_be_captured_is_named(monkeypatch) -> None:
    model = flow()
    monkeypatch.setattr(torch.nn.Parameter, "is_cuda", True, raising=False)
    assert module._why_not(list(model.parameters()), torch.optim.Adam(model.parameters())) == (
        "Adam was made without capturable=True"
    )
    assert module._why_not(list(model.parameters()), sgd(model)) is None


def test_other_settings_change_with_cycles(played) -> None:
    """OneCycleLR changes momentum in every step, which is a number in the graph."""
    ours, theirs = flow(), flow()
    first, second = sgd(ours), sgd(theirs)
    cycles = [torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=8) for o in (first, second)]
    step = graphed(ours, first, batches(1)[0])
    step._machine.optimizer = first
    for batch in batches(7):
        assert torch.equal(step(*batch), by_hand(theirs, second, *batch, clip=None))
        for cycle in cycles:
            cycle.step()
    assert step._machine.captures == 4


def test_a_loss_of_ones_own() -> None:
    model = flow()
    x, context = batches(1)[0]
    step = graphed(model, sgd(model), (x, context), loss=lambda x, context: model.log_prob(x, context).square().mean())
    assert torch.equal(step(x, context), flow().log_prob(x, context).square().mean().detach())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"flow": 3}, TypeError, "flow must be a torch.nn.Module, got int"),
        ({"optimizer": None}, TypeError, "optimizer must be a torch.optim.Optimizer"),
        ({"optimizer": lambda m: torch.optim.LBFGS(m.parameters())}, TypeError, "got LBFGS"),
        ({"example": "x"}, TypeError, "example must be a tensor, or a tuple of x and context, got str"),
        ({"example": ()}, TypeError, "got nothing"),
        ({"clip": -1.0}, ValueError, "clip"),
        ({"loss": 3}, TypeError, "loss must be a function of a batch, got 3"),
        ({"frozen": True}, ValueError, "flow must have parameters that require gradients, got none"),
    ],
    ids=["flow", "optimizer", "LBFGS", "example", "empty", "clip", "loss", "frozen"],
)
def test_errors_name_the_contract(change, error, words) -> None:
    model = flow()
    if change.pop("frozen", False):
        model.requires_grad_(False)
    given = {"flow": model, "optimizer": sgd, "example": batches(1)[0], "clip": None, "loss": None, **change}
    if callable(given["optimizer"]):
        given["optimizer"] = given["optimizer"](flow())
    with pytest.raises(error, match=words):
        graphed(given["flow"], given["optimizer"], given["example"], clip=given["clip"], loss=given["loss"])


def test_warm_up_leaves_everything_as_it_was() -> None:
    model = Glow((1, 4, 4), levels=1, steps=1, hidden=4)
    assert model.training
    x = torch.randn(4, 1, 4, 4)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    generator = torch.get_rng_state()
    flowkernels.warm_up(model, x)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(p.grad is None for p in model.parameters()) and all(m.training for m in model.modules())


def test_warm_up_calls_what_will_be_called(monkeypatch) -> None:
    model, calls = flow(), []
    for name in ("log_prob", "sample"):
        method = getattr(model, name)

        def called(*given: Tensor, method=method, name=name) -> Tensor:
            calls.append((name, model.training))
            return method(*given)

        monkeypatch.setattr(model, name, called)
    flowkernels.warm_up(model, *batches(1)[0])
    assert calls == [("log_prob", False), ("sample", False), ("log_prob", False)] and model.training
    with pytest.raises(TypeError, match=r"warm_up: flow must be a torch\.nn\.Module with log_prob, got Linear"):
        flowkernels.warm_up(torch.nn.Linear(1, 1), torch.zeros(1, 1))
    with pytest.raises(TypeError, match=r"warm_up: x must be a torch\.Tensor"):
        flowkernels.warm_up(model, 3)

"""One pass over the rows, and one over those for validation."""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .data import Rows
from .ranks import Ranks
from .schedule import Schedule
from .state import State


class Settings(NamedTuple):
    """What an epoch depends on beside the state and the rows."""

    epochs: int
    batch_size: int
    lr: float
    schedule: Schedule
    clip: float | None
    seed: int


class Place(NamedTuple):
    """Where a loss was none."""

    step: int
    steps: int
    loss: float


def seed_of(seed: int, *what: object) -> int:
    """A seed of its own for each use of one seed: a resumed training finds them by the number of its epoch."""
    digest = hashlib.sha256(" ".join(map(str, (seed, *what))).encode()).digest()
    return int.from_bytes(digest[:4], "big")  # all that torch's generator on the CPU takes


def seed_generators(device: torch.device, seed: int) -> None:
    """Of the CPU and of the flow's device, and of no other one, as `torch.manual_seed` would."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def order_of(seed: int, epoch: int, rows: int, batch_size: int) -> tuple[Tensor, ...]:
    """The rows of every batch; batches differ by one row at most, so that none is of a few rows."""
    draws = torch.Generator().manual_seed(seed_of(seed, "order", epoch))
    return torch.randperm(rows, generator=draws, device="cpu").tensor_split(math.ceil(rows / batch_size))


def train(state: State, model: nn.Module, rows: Rows, settings: Settings, ranks: Ranks) -> float | Place:
    """The mean loss of the next epoch, in nats, or where it is not finite. ``model`` is the flow, wrapped or not."""
    epoch, device = state.epochs, next(state.flow.parameters()).device
    seed_generators(device, seed_of(settings.seed, "noise", epoch, ranks.rank))
    batches = order_of(settings.seed, epoch, len(rows), settings.batch_size)
    parameters = [p for p in state.flow.parameters() if p.requires_grad]
    sums: list[Tensor] = []  # over the rows of a batch
    for step, batch in enumerate(batches):
        done = (epoch * len(batches) + step) / (settings.epochs * len(batches))
        for group in state.optimizer.param_groups:
            group["lr"] = settings.lr * settings.schedule(done)
        x, context = rows.at(batch[ranks.rank :: ranks.size]).to(device)
        total = -model(x, context).sum()
        state.optimizer.zero_grad()
        # The ranks' gradients are averaged, so that a step is that of the whole batch, however many rows each has.
        (total * (ranks.size / len(batch))).backward()
        sums.append(total.detach().double())
        if device.type == "cpu" and ranks.size == 1 and not math.isfinite(sums[-1]):
            break  # elsewhere a look would wait for the device, or leave the other ranks alone
        if settings.clip is not None:
            nn.utils.clip_grad_norm_(parameters, settings.clip)
        state.optimizer.step()
    found = ranks.sum(torch.stack(sums))
    bad = ~found.isfinite()
    if bad.any():
        step = int(bad.nonzero()[0, 0])
        return Place(step + 1, len(batches), found[step].item() / len(batches[step]))
    return found.sum().item() / len(rows)


@torch.no_grad()
def validate(state: State, rows: Rows, settings: Settings, ranks: Ranks) -> float:
    """The mean loss of rows in evaluation mode, in nats; noise is the same after every epoch."""
    device = next(state.flow.parameters()).device
    seed_generators(device, seed_of(settings.seed, "validation noise", ranks.rank))
    total = torch.zeros((), dtype=torch.float64, device=device)
    for batch in torch.arange(ranks.rank, len(rows), ranks.size, device="cpu").split(settings.batch_size):
        total -= state.flow.log_prob(*rows.at(batch).to(device)).double().sum()
    return ranks.sum(total).item() / len(rows)


class Modes:
    """Training and evaluation mode of every part: what a user froze in evaluation mode stays there."""

    def __init__(self, flow: nn.Module) -> None:
        if not flow.training:
            flow.train()
        self.flow, self.training = flow, {m: m.training for m in flow.modules()}

    def train(self) -> None:
        for module, training in self.training.items():
            module.training = training

    def evaluate(self) -> None:
        self.flow.eval()

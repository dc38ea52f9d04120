"""A run, the loop that all models are trained by, and the file of all runs."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.grid.rivals import n_params

from . import models, tables

BATCH, STEPS, LOOKS, ROWS = 256, 600, 24, 5000  # looks at the validation rows
LEARNING_RATES = (1e-3, 1e-2, 3e-2, 1e-1)
REFUSALS = (ValueError, RuntimeError, AssertionError)  # of some libraries, of numbers that are none
KINDS = {"tuning": 0, "fresh": 1000}  # of seeds, and the first of each


class Run(NamedTuple):
    """One model on one split of one table; `steps` and `rows` say how long and on how much."""

    table: str
    model: str
    lr: float
    split: int
    kind: str
    seed: int
    steps: int
    rows: int


Found = dict[str, Any]  # test nats (None where no number came out), whether it diverged, weights, seconds


def measure(run: Run) -> Found:
    """Trains one model and looks at the test rows once, with the weights that were best on the validation rows.

    A run diverged if its loss stopped to be a number, or ended worse on the validation rows than it began.
    """
    data = tables.split(run.table, run.split, run.rows)
    seed = KINDS[run.kind] + run.seed
    module = models.build(run.model, data.train.shape[1], seed)
    log_prob = models.log_prob_of(run.model, module)
    orders = torch.Generator().manual_seed(seed)
    start = time.process_time()
    first, best, last = _train(module, log_prob, data, run, orders)
    seconds = time.process_time() - start
    test = _mean_or_nan(module, log_prob, data.test)
    return {
        "nats": test if math.isfinite(test) else None,
        "diverged": not math.isfinite(last) or last > first,
        "validation": best if math.isfinite(best) else None,
        "weights": n_params(module),
        "seconds": round(seconds, 2),
    }


def _train(
    module: Any, log_prob: Callable[[Tensor], Tensor], data: tables.Split, run: Run, orders: torch.Generator
) -> tuple[float, float, float]:
    """Validation losses: untrained, best and last, NaN where it broke down. The module ends with its best weights.

    The first loss that is not finite ends the training: no later step would undo it.
    """
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=run.lr)
    first = best = now = -_mean(module, log_prob, data.validation)
    kept = copy.deepcopy(module.state_dict())
    every = max(run.steps // LOOKS, 1)
    batches = _batches(data.train, orders)
    module.train()
    for step in range(1, run.steps + 1):
        optimizer.zero_grad()
        try:
            loss = -log_prob(next(batches)).mean()
            loss.backward()
        except REFUSALS:
            if step == 1:
                raise
            now = math.nan
            break
        if not math.isfinite(loss.item()):
            now = math.nan
            break
        optimizer.step()
        if step % every == 0 or step == run.steps:
            now = -_mean_or_nan(module, log_prob, data.validation)
            if now < best:
                best, kept = now, copy.deepcopy(module.state_dict())
    module.load_state_dict(kept)
    return first, best, now


def _batches(x: Tensor, orders: torch.Generator) -> Iterator[Tensor]:
    """Epoch after epoch, each in an order of its own, without the rows that fill no batch."""
    size = min(BATCH, len(x))
    while True:
        order = torch.randperm(len(x), generator=orders)
        yield from (x[rows] for rows in order[: len(x) // size * size].split(size))


@torch.no_grad()
def _mean(module: Any, log_prob: Callable[[Tensor], Tensor], x: Tensor) -> float:
    training = module.training
    module.eval()
    try:
        return float(torch.cat([log_prob(part) for part in x.split(4096)]).double().mean())
    finally:
        module.train(training)


def _mean_or_nan(module: Any, log_prob: Callable[[Tensor], Tensor], x: Tensor) -> float:
    try:
        return _mean(module, log_prob, x)
    except REFUSALS:
        return math.nan


# ---- the file ----


def read(path: Path) -> dict[Run, Found]:
    """What is there; a line that was not written to its end is none."""
    if not path.exists():
        return {}
    whole = path.read_text().rpartition("\n")[0]
    entries = [json.loads(line) for line in whole.splitlines() if line]
    return {Run(*entry["run"]): entry["found"] for entry in entries}


def append(path: Path, run: Run, found: Found) -> None:
    """One line by one write, on the disk before it returns. Half a line of a run that was killed is cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"run": list(run), "found": found}, allow_nan=False) + "\n"
    with open(path, "ab+") as file:
        file.seek(0)
        content = file.read()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())

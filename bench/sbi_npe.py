"""sbi end to end, before and after one line: `python -m bench.sbi_npe [--turns N] [--threads N] [estimator ...]`.

NPE on two moons at sbi's sizes: 2,000 simulations (a tenth of them for validation), three epochs, 10,000 posterior
samples, 2,000 log-probabilities. Each turn runs the original and the accelerated one, in turns of who is first, from
the same seed; medians over the turns. An estimator's row ends with the largest difference of the losses of an epoch.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Sequence

import torch
from torch import Tensor

import flowkernels

ESTIMATORS = ("maf", "nsf", "zuko_maf", "zuko_nsf", "maf_rqs")
PARTS = ("training", "sampling", "log_prob", "whole")
SIMULATIONS, EPOCHS, SAMPLES, POINTS = 2000, 3, 10_000, 2000


def two_moons(theta: Tensor) -> Tensor:
    """A crescent of noise, moved by theta ``[n, 2]``: two ways to explain each x ``[n, 2]``."""
    angle = torch.pi * (torch.rand(len(theta)) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(len(theta))
    crescent = torch.stack((radius * angle.cos() + 0.25, radius * angle.sin()), 1)
    a, b = theta.unbind(1)
    return crescent + torch.stack((-(a + b).abs(), b - a), 1) / 2**0.5


def turn(estimator: str) -> tuple[dict[str, float], list[float]]:
    """Seconds of each part, and the training loss of each epoch."""
    from sbi.inference import NPE
    from sbi.utils import BoxUniform

    torch.manual_seed(0)
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    theta = prior.sample((SIMULATIONS,))
    x = two_moons(theta)
    inference = NPE(prior, density_estimator=estimator, show_progress_bars=False)
    inference.append_simulations(theta, x)
    clock = [time.perf_counter()]
    trained = inference.train(max_num_epochs=EPOCHS - 1)  # sbi counts from 0, and trains one more
    clock.append(time.perf_counter())
    posterior = inference.build_posterior(trained)
    observed = torch.zeros(1, 2)
    posterior.sample((SAMPLES,), x=observed, show_progress_bars=False)
    clock.append(time.perf_counter())
    with torch.no_grad():
        trained.log_prob(theta[None, :POINTS], condition=x[:POINTS])
    clock.append(time.perf_counter())
    spent = [after - before for before, after in itertools.pairwise(clock)]
    return dict(zip(PARTS, [*spent, sum(spent)], strict=True)), inference.summary["training_loss"]


def accelerated(estimator: str) -> tuple[dict[str, float], list[float]]:
    with flowkernels.accelerate_library("sbi"):
        return turn(estimator)


def row(estimator: str, turns: int) -> str:
    """A line of the table: original / accelerated of each part."""
    seconds: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    apart = 0.0
    for i in range(turns + 1):  # the first warms up
        losses = {}
        for fast in (i % 2 == 1, i % 2 == 0):
            spent, losses[fast] = accelerated(estimator) if fast else turn(estimator)
            seconds[fast] += [spent] if i else []
        apart = max(apart, *(abs(a - b) for a, b in zip(losses[False], losses[True], strict=True)))
    middle = {fast: {p: statistics.median(s[p] for s in seconds[fast]) for p in PARTS} for fast in seconds}
    ratios = [f"{middle[False][p] / middle[True][p]:.2f}" for p in PARTS]
    whole = [f"{1e3 * middle[fast]['whole']:.0f}" for fast in (False, True)]
    return f"| {' | '.join([estimator, *ratios, *whole])} | {apart:.0e} |"


def table(estimators: Sequence[str], turns: int) -> None:
    """Prints a row for each estimator as it is done."""
    print("| original / accelerated |", " | ".join(PARTS), "| before, ms | after, ms | losses apart |")
    print("| --- |", "---: | " * (len(PARTS) + 3))
    for estimator in estimators:
        print(row(estimator, turns), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sbi_npe", description="NPE on two moons, turn by turn")
    parser.add_argument("estimators", nargs="*", default=ESTIMATORS)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as logs:  # sbi writes its own where it stands
        os.chdir(logs)
        table(given.estimators, given.turns)
        os.chdir(here)


if __name__ == "__main__":
    main()

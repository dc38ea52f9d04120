"""Posteriors of two simulators, by flowkernels' npe and by sbi, plain and accelerated, against reference samples.

Two moons (crescents; the posterior is drawn exactly) and SLCP (simple likelihood, complex posterior: four modes, drawn
by long Hamiltonian chains in one of them and the symmetry of the others) are tasks of Lueckmann et al. (2021), whose
measure this is: C2ST, the accuracy of a network that tells samples of the posterior from reference ones, in five-fold
cross-validation. 0.5: it cannot; 1: it always can. A table has its mean over observations and the seconds of training
and of sampling; a picture the samples of the first observation.

All see the same simulations. sbi is optional: without it its rows are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from common import arguments, begin, new_console, positive
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from torch import Tensor

import flowkernels
from flowkernels import inference
from flowkernels.distributions import StandardNormal
from flowkernels.flows import Flow
from flowkernels.transforms import Permutation

# ---- tasks ----


class Task(NamedTuple):
    """A simulator of theta, uniform in a box of half-width `bound`, and exact posteriors."""

    features: int
    bound: float
    simulate: Callable[[Tensor], Tensor]
    reference: Callable[[Tensor, int], Tensor]


def _crescent(n: int) -> Tensor:
    angle, radius = math.pi * (torch.rand(n) - 0.5), 0.1 + 0.01 * torch.randn(n)
    return torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], 1)


def two_moons(theta: Tensor) -> Tensor:
    a, b = theta.unbind(1)
    return _crescent(len(theta)) + torch.stack([-(a + b).abs(), b - a], 1) / 2**0.5


def moons_given(x: Tensor, n: int) -> Tensor:
    """Each point of the crescent that may have made x names two thetas, one for each sign, if they lie in the box."""
    found: list[Tensor] = []
    while sum(map(len, found)) < n:
        noise = _crescent(4 * n)
        along, across = noise[:, 0] - x[0], x[1] - noise[:, 1]
        along = along * (torch.randint(2, (4 * n,)) * 2 - 1)
        theta = torch.stack([along - across, along + across], 1) / 2**0.5
        found.append(theta[(noise[:, 0] >= x[0]) & (theta.abs() <= 1).all(1)])
    return torch.cat(found)[:n]


def slcp(theta: Tensor) -> Tensor:
    """Four draws of a normal density of the plane, whose mean and covariance are theta's."""
    noise = torch.randn(len(theta), 4, 2)
    first, second, correlation = theta[:, 2, None].square(), theta[:, 3, None].square(), theta[:, 4, None].tanh()
    x = theta[:, 0, None] + first * noise[..., 0]
    other = correlation * noise[..., 0] + (1 - correlation.square()).sqrt() * noise[..., 1]
    return torch.stack([x, theta[:, 1, None] + second * other], -1).flatten(1)


def _slcp_log_likelihood(theta: Tensor, x: Tensor) -> Tensor:
    first, second = theta[..., 2, None].square(), theta[..., 3, None].square()
    correlation = theta[..., 4, None].tanh()
    pairs = x.view(4, 2)
    a, b = (pairs[:, 0] - theta[..., 0, None]) / first, (pairs[:, 1] - theta[..., 1, None]) / second
    free = 1 - correlation.square()
    squares = (a.square() - 2 * correlation * a * b + b.square()) / free
    return (-0.5 * squares - first.log() - second.log() - 0.5 * free.log()).sum(-1)


def slcp_given(x: Tensor, n: int) -> Tensor:
    """Chains where both scales are positive; their signs, which no x tells, are drawn."""
    low, high = torch.tensor([-3.0, -3, 0, 0, -3]), torch.full((5,), 3.0)

    def log_target(z: Tensor) -> Tensor:
        share = torch.sigmoid(z)
        theta = low + (high - low) * share
        return _slcp_log_likelihood(theta, x) + (share.log() + (1 - share).log()).sum(-1)

    plain = Flow(Permutation(list(range(5))), StandardNormal(5))
    steps = max(2, -(-n // 100) * 10)
    chains = inference.latent_hmc(plain, log_target, steps, chains=100, warmup=max(20, steps // 2), leapfrog=10)
    theta = low + (high - low) * torch.sigmoid(chains.x[9::10] if steps >= 10 else chains.x).flatten(0, 1)
    theta = theta[torch.randperm(len(theta))[:n]]
    theta[:, 2:4] *= torch.randint(2, (len(theta), 2)) * 2 - 1
    return theta


TASKS = {"two moons": Task(2, 1.0, two_moons, moons_given), "SLCP": Task(5, 3.0, slcp, slcp_given)}

# ---- methods: (prior, theta, x, arguments) → a function that draws ----

Draw = Callable[[Tensor, int], Tensor]


def ours(prior: Any, theta: Tensor, x: Tensor, args: argparse.Namespace) -> Draw:
    settings = {"epochs": args.epochs, "progress": False, "seed": args.seed}
    posterior = inference.npe(prior.base_dist, (theta, x), batch_size=200, **settings)
    return lambda observed, n: posterior.sample(n, observed)


def with_sbi(kind: str, fast: bool) -> Callable[..., Draw]:
    def fit(prior: Any, theta: Tensor, x: Tensor, args: argparse.Namespace) -> Draw:
        from sbi.inference import NPE

        warnings.filterwarnings("ignore", "Maximum number of epochs")
        with flowkernels.accelerate_library("sbi") if fast else contextlib.nullcontext():
            method = NPE(prior, density_estimator=kind, show_progress_bars=False)
            estimator = method.append_simulations(theta, x).train(max_num_epochs=args.epochs)
            posterior = method.build_posterior(estimator)
        return lambda observed, n: posterior.sample((n,), x=observed[None], show_progress_bars=False)

    return fit


METHODS: dict[str, Callable[..., Draw]] = {
    "npe (NSF)": ours,
    **{
        f"sbi {kind}{', accelerated' * fast}": with_sbi(kind, fast) for kind in ("maf", "nsf") for fast in (False, True)
    },
}


def c2st(samples: Tensor, reference: Tensor, seed: int) -> float:
    """The accuracy of a small network in telling them apart; both standardised by the reference."""
    mean, std = reference.mean(0), reference.std(0)
    x = torch.cat([(reference - mean) / std, (samples - mean) / std]).numpy()
    y = torch.arange(2).repeat_interleave(len(reference)).numpy()
    units = 10 * x.shape[1]
    network = MLPClassifier((units, units), max_iter=1000, random_state=seed)
    folds = KFold(5, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        return float(cross_val_score(network, x, y, cv=folds, scoring="accuracy").mean())


# ---- the story ----


class Found(NamedTuple):
    task: str
    method: str
    c2st: list[float]
    training: float
    sampling: float
    samples: Tensor
    reference: Tensor


def run(name: str, methods: list[str], args: argparse.Namespace, console: Console) -> list[Found]:
    from torch.distributions import Independent, Uniform

    torch.manual_seed(args.seed)
    task, found = TASKS[name], []
    prior = Independent(Uniform(-task.bound * torch.ones(task.features), task.bound * torch.ones(task.features)), 1)
    theta = prior.sample((args.simulations,))
    x = task.simulate(theta)
    observed = task.simulate(prior.sample((args.observations,)))
    watched = track(observed, f"{name}: reference samples", console=console, transient=True)
    references = [task.reference(o, args.samples) for o in watched]
    for method in methods:
        torch.manual_seed(args.seed)
        start = time.perf_counter()
        draw = METHODS[method](prior, theta, x, args)
        training = time.perf_counter() - start
        start = time.perf_counter()
        samples = [draw(o, args.samples).detach() for o in observed]
        sampling = time.perf_counter() - start
        pairs = track(list(zip(samples, references, strict=True)), f"{name}: C2ST", console=console, transient=True)
        apart = [c2st(s, r, args.seed) for s, r in pairs]
        found.append(Found(name, method, apart, training, sampling, samples[0], references[0]))
        each = " ".join(f"{c:.2f}" for c in apart)
        console.print(f"{name}, {method}: C2ST {each}, {training:.1f} s of training", highlight=False)
    return found


def show(console: Console, found: list[Found], args: argparse.Namespace) -> None:
    table = Table(title=f"{args.simulations:,} simulations, {args.samples:,} samples, 0.5 is the best C2ST")
    for heading in ("task", "posterior", "C2ST", "training, s", "sampling, s"):
        table.add_column(heading, justify="left" if heading in ("task", "posterior") else "right", no_wrap=True)
    for f in found:
        mean = f"{sum(f.c2st) / len(f.c2st):.3f}"
        table.add_row(f.task, f.method, mean, f"{f.training:.1f}", f"{f.sampling:.2f}")
    console.print(table)


def picture(path: Path, found: list[Found]) -> None:
    tasks = list(dict.fromkeys(f.task for f in found))
    columns = 1 + max(sum(f.task == t for f in found) for t in tasks)
    size = (2.2 * columns, 2.4 * len(tasks))
    figure, axes = plt.subplots(len(tasks), columns, figsize=size, squeeze=False, layout="constrained")
    for row, task in zip(axes, tasks, strict=True):
        of_task = [f for f in found if f.task == task]
        a, b = (0, 1) if TASKS[task].features == 2 else (2, 3)
        shown = [("reference", of_task[0].reference), *((f.method.replace(", ", "\n"), f.samples) for f in of_task)]
        for ax, entry in itertools.zip_longest(row, shown):
            if entry is None:
                ax.set_axis_off()
                continue
            ax.plot(*entry[1][:2000, [a, b]].T.numpy(), ".", color="#1b6ca8", markersize=1)
            edge = TASKS[task].bound
            ax.set(xlim=(-edge, edge), ylim=(-edge, edge), xticks=[], yticks=[], aspect="equal")
            ax.set_title(entry[0], fontsize=8)
        row[0].set_ylabel(task)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="default: all")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument("--simulations", type=positive, default=10_000, help="(default: 10,000)")
    parser.add_argument("--observations", type=positive, default=3, help="whose posteriors are judged (default: 3)")
    parser.add_argument("--samples", type=positive, default=2000, help="of each posterior (default: 2000)")
    parser.add_argument("--epochs", type=positive, default=100, help="at most (default: 100)")
    args = parser.parse_args(argv)
    if args.quick:
        args.simulations, args.observations, args.samples, args.epochs = 300, 1, 40, 1
    begin(args)
    console, found = new_console(), []
    methods = [m for m in args.methods if not m.startswith("sbi") or importlib.util.find_spec("sbi")]
    if len(methods) < len(args.methods):
        console.print("sbi is not installed: its rows are left out")
    try:
        for name in args.tasks:
            found += run(name, methods, args, console)
    except KeyboardInterrupt:
        console.print("interrupted: tasks that are finished are drawn")
    if found:
        show(console, found, args)
        picture(args.out / "sbi_c2st.png", found)
        console.print(f"wrote {args.out / 'sbi_c2st.png'}", highlight=False)


if __name__ == "__main__":
    main()

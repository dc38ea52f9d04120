"""Samples a funnel and a banana by Hamiltonian Monte Carlo, in the latent space of a flow and without one.

Neal's funnel, whose neck is e^9 times narrower than its mouth, and a bent normal density have known moments. A flow is
fitted to each by reverse KL, then chains run in its latent (NeuTra); plain chains run on the target, by the same code
and with the same number of gradients of the target. A table has R-hat, effective samples a thousand gradients and a
second, and the mean and deviation of the hard coordinate beside the truth; a picture the samples.

What to expect: plain chains never enter the neck, and nothing of theirs says so but R-hat and the moments of the hard
coordinate. Chains in the latent go where the flow goes, and R-hat cannot show what none of them has seen: reverse KL
may leave out an arm of a more bent banana, and chains then agree on the other.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from common import arguments, begin, descend, new_console, positive
from rich.console import Console
from rich.table import Table
from torch import Tensor

from flowkernels import inference, objectives
from flowkernels.distributions import StandardNormal
from flowkernels.flows import MAF, Flow
from flowkernels.inference import Chains
from flowkernels.transforms import Inverse, Permutation, Transform

BATCH, LEAPFROG = 256, 8


class Target(NamedTuple):
    """A density whose first coordinate is the hard one, with its true mean and deviation."""

    features: int
    log_prob: Callable[[Tensor], Tensor]
    draw: Callable[[int], Tensor]
    mean: float
    deviation: float


def _funnel(features: int) -> Target:
    def log_prob(x: Tensor) -> Tensor:
        v, rest = x[..., 0], x[..., 1:]
        normal = -0.5 * (v / 3).square() - math.log(3) - 0.5 * features * math.log(2 * math.pi)
        return normal - 0.5 * rest.square().sum(-1) * torch.exp(-v) - 0.5 * (features - 1) * v

    def draw(n: int) -> Tensor:
        v = 3 * torch.randn(n, 1)
        return torch.cat([v, torch.exp(v / 2) * torch.randn(n, features - 1)], 1)

    return Target(features, log_prob, draw, 0.0, 3.0)


def _banana(bend: float = 0.1, length: float = 5.0) -> Target:
    """x2 normal and long, x1 = normal + bend (x2² - length²)."""

    def log_prob(x: Tensor) -> Tensor:
        across = x[..., 0] - bend * (x[..., 1].square() - length**2)
        return -0.5 * (across.square() + (x[..., 1] / length).square()) - math.log(2 * math.pi * length)

    def draw(n: int) -> Tensor:
        along = length * torch.randn(n)
        return torch.stack([torch.randn(n) + bend * (along.square() - length**2), along], 1)

    return Target(2, log_prob, draw, 0.0, math.sqrt(1 + 2 * bend**2 * length**4))


TARGETS = {"funnel": _funnel(10), "banana": _banana()}


def plain(features: int) -> Flow:
    """A flow that does nothing: its latent is the target's own space."""
    same: Transform = Permutation(list(range(features)))
    return Flow(same, StandardNormal(features))


def flow_for(target: Target, hidden: int) -> Flow:
    """A MAF whose cheap direction is from the latent to x, where chains and reverse KL need it."""
    maf = MAF(target.features, transforms=3, hidden=(hidden, hidden))
    return Flow(Inverse(maf.transform), StandardNormal(target.features))


def train(target: Target, args: argparse.Namespace, console: Console) -> Flow:
    flow = flow_for(target, args.hidden)

    def loss() -> Tensor:
        return objectives.reverse_kl(flow, target.log_prob, BATCH, path_gradient=True).value

    descend(flow, loss, args.train, 2e-3, "reverse KL", console)
    return flow.eval()


class Ran(NamedTuple):
    target: str
    how: str
    chains: Chains
    training: float
    seconds: float
    gradients: int


def run(name: str, args: argparse.Namespace, console: Console) -> list[Ran]:
    target, found = TARGETS[name], []
    for how in ("plain", "latent"):
        torch.manual_seed(args.seed)
        start = time.perf_counter()
        flow = plain(target.features) if how == "plain" else train(target, args, console)
        training = time.perf_counter() - start
        start = time.perf_counter()
        chains = inference.latent_hmc(
            flow, target.log_prob, args.steps, chains=args.chains, warmup=args.warmup, leapfrog=LEAPFROG
        )
        seconds = time.perf_counter() - start
        found.append(Ran(name, how, chains, training, seconds, (args.steps + args.warmup) * args.chains * LEAPFROG))
        console.print(f"{name}, {how}: {training:.1f} s of training, {seconds:.1f} s of chains", highlight=False)
    return found


def show(console: Console, found: list[Ran], args: argparse.Namespace) -> None:
    table = Table(title=f"{args.chains} chains of {args.steps} states; moments of the hard coordinate")
    for heading in ("target", "chains", "R-hat", "ESS", "ESS/1000 grad.", "ESS/s", "mean", "deviation"):
        table.add_column(heading, justify="left" if heading in ("target", "chains") else "right", no_wrap=True)
    for r in found:
        ess, hard = r.chains.ess.min().item(), r.chains.x[..., 0]
        table.add_row(
            r.target, r.how, f"{r.chains.rhat.max().item():.3f}", f"{ess:.0f}", f"{1000 * ess / r.gradients:.2f}",
            f"{ess / r.seconds:.0f}", f"{hard.mean().item():.2f}", f"{hard.std().item():.2f}",
        )  # fmt: skip
    for name in dict.fromkeys(r.target for r in found):
        table.add_row(name, "truth", "", "", "", "", f"{TARGETS[name].mean:.2f}", f"{TARGETS[name].deviation:.2f}")
    console.print(table)


def picture(found: list[Ran], args: argparse.Namespace) -> None:
    names = list(dict.fromkeys(r.target for r in found))
    size = (8.4, 2.9 * len(names))
    figure, axes = plt.subplots(len(names), 3, figsize=size, squeeze=False, layout="constrained")
    for row, name in zip(axes, names, strict=True):
        torch.manual_seed(args.seed)
        truth = TARGETS[name].draw(2000)
        of = {r.how: r.chains.x.flatten(0, 1) for r in found if r.target == name}
        low, high = truth[:, :2].quantile(0.001, 0), truth[:, :2].quantile(0.999, 0)
        for ax, (how, x) in zip(row, (("truth", truth), *of.items()), strict=False):
            some = x[torch.randperm(len(x))[:2000]]
            ax.plot(*some[:, :2].flip(1).T.numpy(), ".", color="#1b6ca8", markersize=1.5)
            ax.set(xlim=(low[1], high[1]), ylim=(low[0], high[0]), title=f"{name}: {how}")
    figure.savefig(args.out / "latent_hmc.png", dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), help="default: all")
    parser.add_argument("--train", type=positive, default=3000, help="steps of reverse KL (default: 3000)")
    parser.add_argument("--hidden", type=positive, default=64, help="units of the flow's layers (default: 64)")
    parser.add_argument("--steps", type=positive, default=1000, help="states of each chain (default: 1000)")
    parser.add_argument("--warmup", type=positive, default=500, help="states before them (default: 500)")
    parser.add_argument("--chains", type=positive, default=32, help="in one batch (default: 32)")
    args = parser.parse_args(argv)
    if args.quick:
        args.train, args.hidden, args.steps, args.warmup, args.chains = 3, 8, 20, 5, 4
    begin(args)
    console, found = new_console(), []
    try:
        for name in args.targets:
            found += run(name, args, console)
    except KeyboardInterrupt:
        console.print("interrupted: what is finished is drawn")
    if found:
        show(console, found, args)
        picture(found, args)
        console.print(f"wrote {args.out / 'latent_hmc.png'}", highlight=False)


if __name__ == "__main__":
    main()

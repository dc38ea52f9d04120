"""Fits one flow to one target by each divergence, to see which bias each has, and what each is worth as a proposal.

The target are three islands of unequal weight, of which everything is known. Forward KL, MMD and sliced Wasserstein
see samples of it, all others its density and samples of the flow alone. A table has both KL divergences of the result
(test, nats), the weight that each island got, and the effective sample size of importance sampling, as a share of the
samples; a picture has every density.

What to expect: forward KL covers all islands. Whatever is estimated from the flow's own samples sees only where the
flow is: reverse KL and its kin end on the islands that they find first, which ones is chance, and the effective
sample size, seen from there, may be 100 % of a third of the truth. Distances of samples weigh the islands rightly and
see no density.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from common import arguments, begin, descend, new_console, positive, positive_number
from rich.console import Console
from rich.table import Table
from torch import Tensor

from flowkernels import inference, objectives
from flowkernels.flows import NSF, Flow

CENTRES = torch.tensor([[-2.5, 1.5], [2.5, 1.5], [0.0, -2.5]])
WEIGHTS = torch.tensor([0.5, 0.3, 0.2])
DEVIATION, BATCH, EDGE = 0.5, 512, 5.0


def log_target(x: Tensor) -> Tensor:
    squares = (x.unsqueeze(-2) - CENTRES).square().sum(-1) / DEVIATION**2
    return (WEIGHTS.log() - 0.5 * squares - math.log(2 * math.pi * DEVIATION**2)).logsumexp(-1)


def draw(n: int) -> Tensor:
    return CENTRES[torch.multinomial(WEIGHTS, n, replacement=True)] + DEVIATION * torch.randn(n, 2)


def by_ratio(kind: str) -> Callable[[Flow], Tensor]:
    return lambda flow: objectives.f_divergence(flow, log_target, BATCH, kind=kind).value


# name → loss of a flow
OBJECTIVES: dict[str, Callable[[Flow], Tensor]] = {
    "forward KL (samples)": lambda flow: objectives.forward_kl(flow, draw(BATCH)).value,
    "reverse KL": lambda flow: objectives.reverse_kl(flow, log_target, BATCH).value,
    "reverse KL, path": lambda flow: objectives.reverse_kl(flow, log_target, BATCH, path_gradient=True).value,
    "Jensen-Shannon": by_ratio("js"),
    "Hellinger": by_ratio("hellinger"),
    "alpha = 0.5": by_ratio("alpha"),
    "chi squared": by_ratio("chi2"),
    "MMD (samples)": lambda flow: objectives.mmd(flow.rsample(BATCH // 2), draw(BATCH // 2)).value,
    "sliced W2 (samples)": lambda flow: objectives.sliced_wasserstein(flow.rsample(BATCH), draw(BATCH)).value,
}


class Fitted(NamedTuple):
    name: str
    flow: Flow
    forward: float
    reverse: float
    shares: list[float]
    ess: float
    seconds: float


def fit(name: str, args: argparse.Namespace, console: Console) -> Fitted:
    torch.manual_seed(args.seed)
    flow = NSF(2, transforms=args.transforms, hidden=(64, 64), bins=16, tail_bound=EDGE)
    seconds = descend(flow, lambda: OBJECTIVES[name](flow), args.steps, args.lr, name, console)
    flow.eval()
    with torch.no_grad():
        x = draw(args.test)
        forward = objectives.forward_kl(flow, x, log_p=log_target(x)).value.item()
        reverse = objectives.reverse_kl(flow, log_target, args.test).value.item()
        weighted = inference.importance_sampling(flow, log_target, args.test)
        nearest = torch.cdist(flow.sample(args.test), CENTRES).argmin(1)
        shares = (nearest.bincount(minlength=3) / args.test).tolist()
    return Fitted(name, flow, forward, reverse, shares, weighted.ess.item() / args.test, seconds)


def show(console: Console, found: list[Fitted], args: argparse.Namespace) -> None:
    table = Table(title=f"after {args.steps} steps of {BATCH} samples; islands weigh 50, 30 and 20 %")
    for heading in ("trained by", "KL(p, q)", "KL(q, p)", "islands %", "ESS %", "seconds"):
        table.add_column(heading, justify="left" if heading == "trained by" else "right", no_wrap=True)
    for f in found:
        shares = " ".join(f"{100 * s:.0f}" for s in f.shares)
        table.add_row(f.name, f"{f.forward:.3f}", f"{f.reverse:.3f}", shares, f"{100 * f.ess:.0f}", f"{f.seconds:.0f}")
    console.print(table)


@torch.no_grad()
def picture(found: list[Fitted], args: argparse.Namespace) -> None:
    line = torch.linspace(-EDGE, EDGE, args.cells)
    y, x = torch.meshgrid(line, line, indexing="ij")
    points = torch.stack([x, y], -1).view(-1, 2)
    shown = [("target", log_target(points)), *((f.name, f.flow.log_prob(points)) for f in found)]
    columns = min(5, len(shown))
    rows = math.ceil(len(shown) / columns)
    size = (2.3 * columns, 2.5 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for ax in axes.flat:
        ax.set_axis_off()
    top = shown[0][1].exp().sqrt().max().item()
    for ax, (name, log_density) in zip(axes.flat, shown, strict=False):
        # Of the root: what is faint between islands is what differs.
        of_cells = log_density.exp().sqrt().view(args.cells, args.cells).numpy()
        box = (-EDGE, EDGE, -EDGE, EDGE)
        ax.imshow(of_cells, origin="lower", extent=box, cmap="Blues", vmin=0, vmax=top)
        ax.set_title(name, fontsize=9)
    figure.suptitle("square roots of densities", fontsize=10)
    path = args.out / "which_divergence.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES), help="default: all")
    parser.add_argument("--steps", type=positive, default=1000, help="of training (default: 1000)")
    parser.add_argument("--transforms", type=positive, default=4, help="of the flow (default: 4)")
    parser.add_argument("--lr", type=positive_number, default=2e-3, help="learning rate at its highest (default: 2e-3)")
    args = parser.parse_args(argv)
    args.test, args.cells = 20_000, 120
    if args.quick:
        args.steps, args.transforms, args.test, args.cells = 3, 2, 200, 10
    begin(args)
    console, found = new_console(), []
    try:
        for name in args.objectives:
            found.append(fit(name, args, console))
            console.print(f"{name}: {found[-1].seconds:.1f} s", highlight=False)
    except KeyboardInterrupt:
        console.print("interrupted: what is finished is drawn")
    if found:
        show(console, found, args)
        picture(found, args)
        console.print(f"wrote {args.out / 'which_divergence.png'}", highlight=False)


if __name__ == "__main__":
    main()

"""Fits densities of the plane, those of the papers of continuous and residual flows, by four kinds of flow.

Eight Gaussians, two spirals, a chequered board and rings: each model sees new points in every step. A table has
the test nats (of 10,000 points that choose nothing, per point), parameters and seconds of training; one picture the
data beside each model's density and samples, one the ways that points take from the latent to the data in the CNF.

No picture says that a flow is right where a density has holes: a flow is continuous both ways, so bridges stay
between islands, thinner the longer it trains.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from common import arguments, begin, descend, new_console, positive, positive_number
from rich.console import Console
from rich.table import Table
from torch import Tensor

from flowkernels import ops
from flowkernels.flows import CNF, NSF, Flow, Planar, ResidualFlow
from flowkernels.transforms import Continuous

BATCH, TEST, TEST_SEED, EDGE = 512, 10_000, 1 << 40, 4.0

# ---- densities ----


def gaussians(n: int) -> Tensor:
    angle = torch.randint(8, (n,)) * (math.pi / 4)
    return 2.8 * torch.stack([angle.cos(), angle.sin()], 1) + 0.3 * torch.randn(n, 2)


def spirals(n: int) -> Tensor:
    turn = torch.rand(n).sqrt() * 3 * math.pi
    arm = torch.randint(2, (n, 1)) * 2.0 - 1
    return arm * torch.stack([-turn.cos(), turn.sin()], 1) * turn[:, None] / 3 + 0.1 * torch.randn(n, 2)


def chequers(n: int) -> Tensor:
    x, row = torch.rand(n) * 4, torch.randint(2, (n,))
    y = torch.rand(n) + 2 * row + x.floor() % 2
    return 1.6 * (torch.stack([x, y], 1) - 2)


def rings(n: int) -> Tensor:
    angle, radius = 2 * math.pi * torch.rand(n), (1 + torch.randint(3, (n,))) * 1.1 + 0.08 * torch.randn(n)
    return torch.stack([angle.cos(), angle.sin()], 1) * radius[:, None]


DENSITIES: dict[str, Callable[[int], Tensor]] = {f.__name__: f for f in (gaussians, spirals, chequers, rings)}
MODELS: dict[str, Callable[[int], Flow]] = {
    "planar": lambda h: Planar(2, transforms=h, fast_sampling=False),
    "splines": lambda h: NSF(2, transforms=4, hidden=(h, h), bins=16, tail_bound=5.0),
    "residual": lambda h: ResidualFlow(2, transforms=8, hidden=(h, h)),
    "CNF": lambda h: CNF(2, hidden=(h, h)),
}
RATES = {"planar": 5.0}  # times --lr: five numbers a layer, which start far from the identity

# ---- training ----


class Trained(NamedTuple):
    density: str
    model: str
    flow: Flow
    nats: float
    seconds: float


@torch.no_grad()
def test(flow: Flow, draw: Callable[[int], Tensor], points: int) -> float:
    flow.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(TEST_SEED)
        x = draw(points)
    return torch.cat([flow.log_prob(part) for part in x.split(2000)]).double().mean().item()


def train(density: str, model: str, args: argparse.Namespace, console: Console) -> Trained:
    torch.manual_seed(args.seed)
    flow, draw = MODELS[model](args.hidden), DENSITIES[density]
    title = f"{density}, {model}"
    lr = args.lr * RATES.get(model, 1.0)
    seconds = descend(flow, lambda: -flow.log_prob(draw(BATCH)).mean(), args.steps, lr, title, console)
    return Trained(density, model, flow, test(flow, draw, args.test), seconds)


# ---- what is shown ----


def show(console: Console, found: list[Trained], args: argparse.Namespace) -> None:
    table = Table(title=f"test nats per point after {args.steps} steps of {BATCH} points; higher is better")
    for heading in ("", *DENSITIES, "parameters", "seconds"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for model in MODELS:
        runs = {t.density: t for t in found if t.model == model}
        if runs:
            nats = (f"{runs[d].nats:.3f}" if d in runs else "" for d in DENSITIES)
            size = sum(p.numel() for p in next(iter(runs.values())).flow.parameters())
            table.add_row(model, *nats, f"{size:,}", f"{sum(t.seconds for t in runs.values()) / len(runs):.0f}")
    console.print(table)


@torch.no_grad()
def density_on_grid(flow: Flow, cells: int) -> Tensor:
    """``[cells, cells]``, rows from the lowest y on."""
    line = torch.linspace(-EDGE, EDGE, cells)
    y, x = torch.meshgrid(line, line, indexing="ij")
    points = torch.stack([x, y], -1).view(-1, 2)
    return torch.cat([flow.log_prob(part) for part in points.split(4000)]).exp().view(cells, cells)


def bare(ax: plt.Axes, title: str = "") -> None:
    ax.set(xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE), xticks=[], yticks=[], aspect="equal", title=title)


def draw_densities(path: Path, found: list[Trained], args: argparse.Namespace) -> None:
    names = [d for d in DENSITIES if any(t.density == d for t in found)]
    models = [m for m in MODELS if any(t.model == m for t in found)]
    columns = 1 + 2 * len(models)
    size = (1.7 * columns, 1.8 * len(names) + 0.3)
    figure, axes = plt.subplots(len(names), columns, figsize=size, squeeze=False, layout="constrained")
    for row, name in zip(axes, names, strict=True):
        torch.manual_seed(args.seed)
        bare(row[0], "data" if name == names[0] else "")
        row[0].plot(*DENSITIES[name](2000).T.numpy(), ".", color="#d95f02", markersize=1)
        row[0].set_ylabel(name)
        for i, model in enumerate(models):
            at, drawn = row[1 + 2 * i], row[2 + 2 * i]
            bare(at, f"{model}: density" if name == names[0] else "")
            bare(drawn, "samples" if name == names[0] else "")
            flow = next((t.flow for t in found if (t.density, t.model) == (name, model)), None)
            if flow is not None:
                box = (-EDGE, EDGE, -EDGE, EDGE)
                at.imshow(density_on_grid(flow, args.cells).numpy(), origin="lower", extent=box, cmap="Blues")
                drawn.plot(*flow.sample(2000).T.numpy(), ".", color="#1b6ca8", markersize=1)
    figure.savefig(path, dpi=110)
    plt.close(figure)


@torch.no_grad()
def ways(flow: Flow, z: Tensor, times: int) -> Tensor:
    """``[times, N, 2]``: where points of the latent are on their way to the data."""
    (layer,) = (m for m in flow.modules() if isinstance(m, Continuous))
    names = ("activation", "solver", "rtol", "atol", "time", "frequencies")
    settings = {name: getattr(layer, name) for name in names}
    at = [layer.t1 - (layer.t1 - layer.t0) * i / times for i in range(1, times + 1)]
    later = [ops.ode_flow(z, layer.layers(), t0=t, t1=layer.t1, inverse=True, **settings)[0] for t in at]
    return torch.stack([z, *later])


def draw_ways(path: Path, found: list[Trained], args: argparse.Namespace) -> None:
    runs = [t for t in found if t.model == "CNF"]
    size = (2.6 * len(runs), 2.8)
    figure, axes = plt.subplots(1, len(runs), figsize=size, squeeze=False, layout="constrained")
    for ax, run in zip(axes[0], runs, strict=True):
        torch.manual_seed(args.seed)
        moved = ways(run.flow, torch.randn(150, 2), 20)
        bare(ax, run.density)
        ax.plot(moved[..., 0].numpy(), moved[..., 1].numpy(), color="#777777", linewidth=0.4, alpha=0.7)
        ax.plot(*moved[0].T.numpy(), ".", color="#d95f02", markersize=3)
        ax.plot(*moved[-1].T.numpy(), ".", color="#1b6ca8", markersize=3)
    figure.suptitle("from the latent (orange) to the data (blue)", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


# ---- the story ----


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--densities", nargs="+", choices=DENSITIES, default=list(DENSITIES), help="default: all")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: all")
    parser.add_argument("--steps", type=positive, default=1500, help="of training (default: 1500)")
    parser.add_argument("--hidden", type=positive, default=64, help="units; planar layers (default: 64)")
    parser.add_argument("--lr", type=positive_number, default=2e-3, help="learning rate at its highest (default: 2e-3)")
    args = parser.parse_args(argv)
    args.test, args.cells = TEST, 100
    if args.quick:
        args.steps, args.hidden, args.test, args.cells = 3, 8, 200, 10
    begin(args)
    console, found = new_console(), []
    try:
        for density in args.densities:
            for model in args.models:
                found.append(train(density, model, args, console))
                said = f"{density}, {model}: {found[-1].nats:.3f} nats, {found[-1].seconds:.1f} s"
                console.print(said, highlight=False)
    except KeyboardInterrupt:
        console.print("interrupted: what is finished is drawn")
    if not found:
        return
    show(console, found, args)
    draw_densities(args.out / "densities_2d.png", found, args)
    said = f"wrote {args.out / 'densities_2d.png'}"
    if any(t.model == "CNF" for t in found):
        draw_ways(args.out / "densities_2d_ways.png", found, args)
        said += f" and {args.out / 'densities_2d_ways.png'}"
    console.print(said, highlight=False)


if __name__ == "__main__":
    main()

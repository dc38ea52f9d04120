"""Regression by a conditional density: a Gaussian head against flows of one feature, on scikit-learn's tables.

A head is p(y | features), all of them flows of the one number y whose network sees the features: a normal of one width
(least squares), a normal with a width of its own for every row, a mixture of normals (`Gaussianization`, one layer: a
mixture density network) and two layers of splines. Three tables, each with what a normal of one width gets wrong:

diabetes       progression of 442 patients given ten features: the width varies a little
breast cancer  standard error of the area of a tumour's nuclei given their mean radius: it grows with the radius, skewed
iris           petal length given sepal width: two modes, as the species is not told

Reported are test nats per row in units of y, higher is better, over random splits: a fifth of the rows is tested, a
fifth of the others chooses the epoch. Splits are the same for all heads, so the table has the difference from the
Gaussian head split by split too. Errors are standard errors over splits; splits share rows, so they are too small
rather than too large. y is rounded as it was measured, which a density could exploit: each y gets uniform noise of one
unit of its rounding, the same for all heads. The last column is calibration: how many test rows lie in the central 90 %
of their density, which a flow tells by its latent.

What ten splits said, in nats more than the Gaussian head: the mixture +0.07 ± 0.03 on diabetes, +0.21 ± 0.03 on breast
cancer and +0.48 ± 0.08 on iris, the splines +0.05 ± 0.03, -0.23 ± 0.14 and +0.56 ± 0.07. Where the splines lose, two y
lie eleven deviations out: beyond the box of a spline a density has the tails of a normal, which no network widens.

Results are kept in a file after every split: the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from common import new_console, positive, positive_number
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as Shown
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from torch import Tensor

from flowkernels.distributions import StandardNormal
from flowkernels.flows import MAF, Flow, Gaussianization
from flowkernels.training import fit
from flowkernels.transforms import RQS, Affine, Composite, DiagonalScale

CENTRAL_90 = 1.6448536269514722  # quantile of the standard normal at 95 %

# ---- tables ----


class Table(NamedTuple):
    y: Tensor  # [N, 1]
    features: Tensor  # [N, C], the one of the picture first
    unit: float  # to which y was rounded
    names: tuple[str, str]  # of the first feature and of y


def diabetes() -> Table:
    data: Any = load_diabetes(scaled=False)
    features = torch.tensor(data.data).roll(-2, 1)  # the body mass index first
    return Table(torch.tensor(data.target)[:, None], features, 1.0, ("body mass index", "progression"))


def breast_cancer() -> Table:
    data: Any = load_breast_cancer()
    names = list(data.feature_names)
    radius, error = (torch.tensor(data.data[:, names.index(name)])[:, None] for name in ("mean radius", "area error"))
    return Table(error, radius, 0.01, ("mean radius", "area error"))


def iris() -> Table:
    x = torch.tensor(load_iris().data)  # type: ignore[union-attr]
    return Table(x[:, 2:3], x[:, 1:2], 0.1, ("sepal width, cm", "petal length, cm"))


TABLES: dict[str, Callable[[], Table]] = {"diabetes": diabetes, "breast cancer": breast_cancer, "iris": iris}

# ---- heads ----


def one_width(C: int, hidden: tuple[int, ...]) -> Flow:
    mean = MAF(1, C, transforms=1, hidden=hidden, univariate=Affine("additive")).transform
    return Flow(Composite([mean, DiagonalScale(1)]), StandardNormal(1))


HEADS: dict[str, Callable[[int, tuple[int, ...]], Flow]] = {
    "one width": one_width,
    "Gaussian": lambda C, h: MAF(1, C, transforms=1, hidden=h, univariate=Affine("exp")),
    "mixture": lambda C, h: Gaussianization(1, C, transforms=1, hidden=h, components=5),
    "splines": lambda C, h: MAF(1, C, transforms=2, hidden=h, univariate=RQS(bins=8, tail_bound=4.0)),
}

# ---- training ----


class Score(NamedTuple):
    nats: float  # mean over test rows
    inside: float  # share of them in the central 90 %


def trained(table: Table, head: str, split: int, args: argparse.Namespace) -> tuple[Flow, Score]:
    draws = torch.Generator().manual_seed(split)
    order = torch.randperm(len(table.y), generator=draws)
    noise = torch.rand(table.y.shape, generator=draws) - 0.5
    y, features = (table.y + table.unit * noise).float(), table.features.float()
    test, train = order[: len(order) // 5], order[len(order) // 5 :]
    torch.manual_seed(split)
    found = fit(
        HEADS[head](features.shape[1], (args.hidden,) * 2), y[train], features[train],
        epochs=args.epochs, batch_size=args.batch, lr=args.lr, validation=0.2, patience=30, weight_decay=1e-2,
        standardise=True, seed=split, progress=False,
    )  # fmt: skip
    if found.stopped == "interrupted":
        raise KeyboardInterrupt
    with torch.no_grad():
        nats = found.flow.log_prob(y[test], features[test]).double().mean().item()
        inside = (found.flow.encode(y[test], features[test]).abs() < CENTRAL_90).double().mean().item()
    return found.flow, Score(nats, inside)


# ---- results, kept ----


def key(table: str, head: str, split: int) -> str:
    return f"{table}/{head}/{split}"


def read(path: Path, settings: dict[str, Any]) -> dict[str, Score]:
    """The scores of a file of these settings; of other settings none are of use."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    return {name: Score(*score) for name, score in found["scores"].items()} if found["settings"] == settings else {}


def write(path: Path, settings: dict[str, Any], scores: dict[str, Score]) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps({"settings": settings, "scores": scores}))
    os.replace(part, path)


# ---- what is shown ----


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and standard error; of one value there is no error."""
    t = torch.tensor(values, dtype=torch.float64)
    return t.mean().item(), t.std().item() / len(t) ** 0.5 if len(t) > 1 else math.nan


def show(console: Console, name: str, scores: dict[str, Score], args: argparse.Namespace) -> None:
    shown = Shown(title=f"{name}: test nats per row of {args.splits} splits, mean ± standard error", width=88)
    for heading in ("head", "nats", "more than the Gaussian head", "in the central 90 %"):
        shown.add_column(heading, justify="left" if heading == "head" else "right", no_wrap=True)
    of = {head: [scores[key(name, head, i)] for i in range(args.splits)] for head in HEADS}
    for head, found in of.items():
        more = [a.nats - b.nats for a, b in zip(found, of["Gaussian"], strict=True)]
        inside = mean_and_error([100 * s.inside for s in found])
        cells = ["{:.3f} ± {:.3f}".format(*mean_and_error([s.nats for s in found]))]
        cells.append("" if head == "Gaussian" else "{:+.3f} ± {:.3f}".format(*mean_and_error(more)))
        shown.add_row(head, *cells, "{:.1f} ± {:.1f} %".format(*inside))
    console.print(shown)


@torch.no_grad()
def density(flow: Flow, table: Table, x: Tensor, y: Tensor) -> Tensor:
    """p(y | x) ``[len(y), len(x)]``, other features at their means."""
    features = table.features.mean(0).float().repeat(len(x), 1)
    features[:, 0] = x
    return flow.log_prob(y.view(-1, 1, 1), features).exp()


def draw(path: Path, flows: dict[str, dict[str, Flow]]) -> None:
    heads = ("Gaussian", "mixture", "splines")
    size = (4 * len(heads), 2.7 * len(flows))
    figure, axes = plt.subplots(len(flows), len(heads), figsize=size, squeeze=False, layout="constrained")
    for row, (name, fitted) in zip(axes, flows.items(), strict=True):
        table = TABLES[name]()
        (left, right), (low, high) = ((t.min().item(), t.max().item()) for t in (table.features[:, 0], table.y))
        x, y = torch.linspace(left, right, 120), torch.linspace(low - 0.1 * (high - low), high, 160)
        for ax, head in zip(row, heads, strict=True):
            p = density(fitted[head], table, x, y)
            shade = (p / p.amax(0)).numpy()  # of every x its own scale: widths differ by a hundred
            ax.imshow(shade, origin="lower", extent=(left, right, y[0], y[-1]), aspect="auto", cmap="Blues")
            ax.plot(table.features[:, 0], table.y[:, 0], ".", color="#d95f02", markersize=2)
            ax.set(xlabel=table.names[0], ylabel=table.names[1], title=f"{name}: {head}")
    figure.savefig(path, dpi=110)
    plt.close(figure)


# ---- the story ----


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="default: all")
    parser.add_argument("--splits", type=positive, default=10, help="of each table (default: 10)")
    parser.add_argument("--epochs", type=positive, default=150, help="at most (default: 150)")
    parser.add_argument("--hidden", type=positive, default=32, help="units of both hidden layers (default: 32)")
    parser.add_argument("--batch", type=positive, default=128, help="rows of a step (default: 128)")
    parser.add_argument("--lr", type=positive_number, default=5e-3, help="learning rate at its highest (default: 5e-3)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of what is written (default: out)")
    parser.add_argument("--threads", type=positive, default=1, help="of torch and of flowkernels (default: 1)")
    parser.add_argument("--quick", action="store_true", help="two splits, three epochs, small networks: seconds")
    args = parser.parse_args(argv)
    if args.quick:
        args.splits, args.epochs, args.hidden = 2, 3, 8
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(args, name) for name in ("epochs", "hidden", "batch", "lr")}
    kept, console = args.out / "regression_heads.json", new_console()
    scores = read(kept, settings)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("fits"), TimeRemainingColumn()
    )  # fmt: skip
    flows: dict[str, dict[str, Flow]] = {}
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            for name in args.tables:
                table, of = TABLES[name](), flows.setdefault(name, {})
                task = progress.add_task(name, total=args.splits * len(HEADS))
                for split in range(args.splits):
                    for head in HEADS:
                        # The first split is fitted anew, for the picture.
                        if split == 0 or key(name, head, split) not in scores:
                            flow, scores[key(name, head, split)] = trained(table, head, split, args)
                            of.setdefault(head, flow)
                        progress.advance(task)
                    write(kept, settings, scores)
                progress.remove_task(task)
                show(console, name, scores, args)
    except KeyboardInterrupt:
        console.print("interrupted: the same command goes on from here")
        return
    draw(args.out / "regression_heads.png", flows)
    console.print(f"wrote {args.out / 'regression_heads.png'}", highlight=False)


if __name__ == "__main__":
    main()

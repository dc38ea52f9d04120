"""Detects strange images by the density of a spline flow, and shows where a high density means nothing.

The flow sees scikit-learn's digits (8 x 8 pixels of 0 ... 16) of nine classes. Then it is asked for the log-density of
digits that it has not seen, of the tenth class, and of unseen digits that were turned, shifted, spoiled by noise, made
dimmer, blurred, or wiped out. AUC is the chance that such an image scores as stranger than an unseen digit of the nine
classes does: 1/2 is a guess, below 1/2 the strange images look more normal than digits. Three scores of strangeness:

density      -log p(x)
typicality   |log p(x) - mean over training digits|: neither too small nor too large (Nalisnick et al.,
             arXiv:1906.02994)
nearest      distance to the nearest training digit, without any model

What is known to fail fails here too (Nalisnick et al., arXiv:1810.09136): simple images have a high density, for it is
one per volume of pixels, and where little varies it is large. Ten flows said: a blank image is more normal than most
digits (AUC 0.15 ± 0.05), and typicality does not mend it (0.23 ± 0.04), as the digits' own log-densities spread wider
than its distance from their mean; ones, left out, pass for digits too (0.62, the mean of all classes is 0.91 ± 0.03).
Turned by 90°, shifted, inverted and blurred digits and noise are all found (1.00), one pixel in ten that is spoiled
mostly (0.96). The distance to the data, without a model, is better on the class left out (0.99) and on blank and dim
images, worse on spoiled pixels and blur: look at all columns before you trust one.

Each class is left out once, by a flow of its own: numbers are means over these flows, with standard errors. Training
digits are the same four fifths of each class for all flows. log p is in nats per image, of whole numbers (a lower bound
by uniform noise, the mean of a few draws).
Every flow has a checkpoint: the same command goes on from there.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from common import new_console, positive, positive_number, sheet
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from flowkernels.distributions import StandardNormal
from flowkernels.flows import NSF, Flow
from flowkernels.training import Epoch, fit
from flowkernels.transforms import Composite, Dequantize, Logit

SIDE, LEVELS, SEED = 8, 17, 1 << 40  # SEED: of test noise and of what spoils images
SCORES = ("density", "typicality", "nearest")
COLOURS = ("#1b6ca8", "#d95f02", "#555555")

# ---- data ----


class Split(NamedTuple):
    train: Tensor  # whole numbers [N, 64], as the others
    test: Tensor
    other: Tensor  # unseen digits of the class that was left out


def digits(left_out: int) -> Split:
    data: Any = load_digits()
    x, label = torch.from_numpy(data.data).float(), torch.from_numpy(data.target)
    seen = torch.zeros(len(x), dtype=torch.bool)
    draws = torch.Generator().manual_seed(0)
    for c in range(10):
        rows = (label == c).nonzero()[:, 0]
        seen[rows[torch.randperm(len(rows), generator=draws)][: 4 * len(rows) // 5]] = True
    kept = label != left_out
    return Split(x[seen & kept], x[~seen & kept], x[~seen & ~kept])


def image(x: Tensor) -> Tensor:
    return x.view(-1, SIDE, SIDE)


def spoiled(x: Tensor) -> Tensor:
    """One pixel in ten black or white."""
    draws = torch.Generator().manual_seed(SEED)
    hit = torch.rand(x.shape, generator=draws) < 0.1
    return torch.where(hit, (LEVELS - 1.0) * torch.randint(2, x.shape, generator=draws), x)


STRANGE: dict[str, Callable[[Tensor], Tensor]] = {
    "turned by 90°": lambda x: image(x).rot90(1, (1, 2)),
    "turned by 180°": lambda x: image(x).rot90(2, (1, 2)),
    "shifted by 2 pixels": lambda x: image(x).roll(2, 2),
    "one pixel in ten spoiled": spoiled,
    "uniform noise": lambda x: torch.randint(LEVELS, x.shape, generator=torch.Generator().manual_seed(SEED)).float(),
    "inverted": lambda x: LEVELS - 1 - x,
    "blurred": lambda x: F.avg_pool2d(image(x)[:, None], 3, 1, 1).round(),
    "half as bright": lambda x: (x / 2).floor(),
    "blank": torch.zeros_like,
}
CLASS = "the class left out"
DRAWN = (CLASS, "turned by 90°", "one pixel in ten spoiled", "half as bright", "blank")

# ---- the flow and its scores ----


def new_flow(hidden: int, layers: int) -> Flow:
    steps = NSF(SIDE**2, transforms=layers, hidden=(hidden, hidden), bins=8, tail_bound=4.0, linear="lu").transform
    return Flow(Composite([Dequantize(LEVELS), Logit(0.05), steps]), StandardNormal(SIDE**2))


@torch.no_grad()
def log_prob(flow: Flow, x: Tensor, draws: int) -> Tensor:
    """In nats, the mean of a few draws of the noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return torch.stack([flow.log_prob(x) for _ in range(draws)]).double().mean(0)


def nearest(x: Tensor, train: Tensor) -> Tensor:
    return torch.cdist(x, train).amin(1).double()


class Found(NamedTuple):
    left_out: int
    log_p: dict[str, Tensor]  # by kind of image; "test" the unseen digits
    strange: dict[str, dict[str, Tensor]]  # by score, then by kind

    def auc(self, score: str, kind: str) -> float:
        return roc_auc_score(*self.labelled(score, kind))

    def labelled(self, score: str, kind: str) -> tuple[Tensor, Tensor]:
        a, b = self.strange[score]["test"], self.strange[score][kind]
        return torch.cat([torch.zeros(len(a)), torch.ones(len(b))]), torch.cat([a, b])


def run(left_out: int, args: argparse.Namespace, progress: Progress) -> Found:
    data = digits(left_out)
    torch.manual_seed(args.seed)
    task = progress.add_task(f"without {left_out}", total=args.epochs, loss="")

    def show(epoch: Epoch) -> None:
        progress.update(task, completed=epoch.epoch, loss=f"{epoch.validation:.1f}")

    name = f"one_class_digits_{left_out}_{args.layers}_{args.hidden}.safetensors"
    fitted = fit(
        new_flow(args.hidden, args.layers), data.train, epochs=args.epochs, batch_size=args.batch, lr=args.lr,
        validation=0.1, patience=None, weight_decay=args.weight_decay, seed=args.seed, checkpoint=args.out / name,
        progress=show,
    )  # fmt: skip
    progress.remove_task(task)
    if fitted.stopped == "interrupted":
        raise KeyboardInterrupt
    images = {"test": data.test, CLASS: data.other, **{kind: f(data.test).flatten(1) for kind, f in STRANGE.items()}}
    log_p = {kind: log_prob(fitted.flow, x, args.draws) for kind, x in images.items()}
    usual = log_prob(fitted.flow, data.train, 1).mean()
    strange = {
        "density": {kind: -p for kind, p in log_p.items()},
        "typicality": {kind: (p - usual).abs() for kind, p in log_p.items()},
        "nearest": {kind: nearest(x, data.train) for kind, x in images.items()},
    }
    return Found(left_out, log_p, strange)


# ---- what is shown ----


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and standard error; of one value there is no error."""
    t = torch.tensor(values, dtype=torch.float64)
    return t.mean().item(), t.std().item() / len(t) ** 0.5 if len(t) > 1 else math.nan


def show(console: Console, found: list[Found]) -> None:
    table = Table(title=f"{len(found)} flows, each without one class: mean ± standard error", width=100)
    for heading in ("images", "log p, nats", *(f"AUC, {score}" for score in SCORES)):
        table.add_column(heading, justify="left" if heading == "images" else "right", no_wrap=True)
    for kind in ("test", CLASS, *STRANGE):
        nats = "{:.1f} ± {:.1f}".format(*mean_and_error([f.log_p[kind].mean().item() for f in found]))
        aucs = ["{:.3f} ± {:.3f}".format(*mean_and_error([f.auc(s, kind) for f in found])) for s in SCORES]
        table.add_row("unseen digits" if kind == "test" else kind, nats, *(["", "", ""] if kind == "test" else aucs))
    console.print(table)
    by_class = ", ".join(f"{f.left_out}: {f.auc('density', CLASS):.2f}" for f in found)
    console.print(f"AUC of the density by the class left out: {by_class}", highlight=False)


def draw(path: Path, found: list[Found]) -> None:
    first = found[0]
    data = digits(first.left_out)
    figure, axes = plt.subplots(2, len(DRAWN), figsize=(2.4 * len(DRAWN), 4.8), layout="constrained")
    low = torch.cat(list(first.log_p.values())).quantile(0.02).item()
    high = max(p.max().item() for p in first.log_p.values())
    for i, (above, below, kind) in enumerate(zip(*axes, DRAWN, strict=True)):
        for name, colour in (("test", "#bbbbbb"), (kind, COLOURS[0])):
            values = first.log_p[name].clamp(low, high).numpy()
            above.hist(values, bins=40, range=(low, high), density=True, histtype="stepfilled", color=colour, alpha=0.7)
        above.set(yticks=[], title=kind, xlabel="log p, nats")
        below.plot([0, 1], [0, 1], ":", color="#999999")
        for score, colour in zip(SCORES, COLOURS, strict=True):
            false, true, _ = roc_curve(*first.labelled(score, kind))
            below.plot(false, true, color=colour, label=f"{score} {first.auc(score, kind):.2f}")
        below.set(xticks=[0, 1], yticks=[0, 1], xlabel="false alarms", ylabel="detected" if i == 0 else "")
        below.legend(fontsize=7, frameon=False, loc="lower right")
        example = data.other if kind == CLASS else STRANGE[kind](data.test).flatten(1)
        inset = above.inset_axes((0.02, 0.62, 0.35, 0.35))
        inset.imshow(sheet(image(example[:1]) / (LEVELS - 1), 1), cmap="gray", vmin=0, vmax=1)
        inset.set(xticks=[], yticks=[])
        above.title.set_fontsize(9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


# ---- the story ----


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--left-out", nargs="+", type=int, choices=range(10), default=list(range(10)), metavar="CLASS",
        help="classes, each by a flow of its own (default: all ten)",
    )  # fmt: skip
    parser.add_argument("--epochs", type=positive, default=60, help="passes over the digits (default: 60)")
    parser.add_argument("--layers", type=positive, default=4, help="couplings (default: 4)")
    parser.add_argument("--hidden", type=positive, default=64, help="units of their networks (default: 64)")
    parser.add_argument("--batch", type=positive, default=64, help="digits of a step (default: 64)")
    parser.add_argument("--lr", type=positive_number, default=2e-3, help="learning rate at its highest (default: 2e-3)")
    parser.add_argument("--weight-decay", type=positive_number, default=1e-2, help="(default: 1e-2)")
    parser.add_argument("--draws", type=positive, default=8, help="of noise, of every log-density (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and noise (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of what is written (default: out)")
    parser.add_argument("--threads", type=positive, default=2, help="of torch and of flowkernels (default: 2)")
    parser.add_argument("--quick", action="store_true", help="one small flow, two epochs: seconds")
    args = parser.parse_args(argv)
    if args.quick:
        args.left_out, args.epochs, args.layers, args.hidden, args.draws = args.left_out[:1], 2, 1, 8, 1
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    console, found = new_console(), []
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"),
        TimeRemainingColumn(), TextColumn("validation {task.fields[loss]} nats"),
    )  # fmt: skip
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            for left_out in args.left_out:
                found.append(run(left_out, args, progress))
                last = found[-1]
                said = f"without {left_out}: unseen digits {last.log_p['test'].mean():.1f} nats"
                console.print(f"{said}, AUC of class {left_out} {last.auc('density', CLASS):.3f}", highlight=False)
    except KeyboardInterrupt:
        console.print("interrupted: the same command goes on from here")
    if found:
        show(console, found)
        draw(args.out / "one_class_digits.png", found)
        console.print(f"wrote {args.out / 'one_class_digits.png'}", highlight=False)


if __name__ == "__main__":
    main()

"""What each part of Glow is worth: mixings x couplings x depths x levels, from several seeds; and its latent.

By default on scikit-learn's digits (8 x 8, levels 0 ... 16); with `--data FOLDER` on MNIST, padded by zeros to 32 x 32.
Data, noise and bits per dimension are those of `glow_digits.py`, which says what the number means. Every variant is
trained for the same epochs; reported is the last epoch's test figure, mean and standard deviation of the seeds:

mixing    a learned 1 x 1 convolution, a fixed random order of the channels, their reverse
coupling  affine or additive
steps     of each level: the depth
levels    how often the image is squeezed and half of it is done; the paper has samples of four and of six

A figure is kept in a file as soon as it is there: the same command goes on from there, with other `--depths`,
`--levels` or `--seeds`, too. Pictures are of the first seed of the learned, affine, deepest variant, whose weights are
kept as well: from one test digit to the next on straight lines in the latent; digits moved along the latent direction
from thin to thick ones (an attribute vector); the ten masks of NICE's paper, filled in by ascent on the density.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from common import new_console, positive, save, sheet
from glow_digits import ALPHA, BATCH, LEARNING_RATE, Digits, mnist, small_digits, spread, test_bits
from matplotlib.axes import Axes
from nice_mnist import LONGEST_STEP, MASKS, masks
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from safetensors import safe_open
from torch import Tensor

from flowkernels.flows import Flow, Glow, attribute_vector, inpaint
from flowkernels.training import Epoch, fit
from flowkernels.transforms import Affine, Composite, Dequantize, Logit

MIXINGS = {"lu": "1x1", "shuffle": "shuffle", "reverse": "reverse"}
COUPLINGS = {"affine": None, "additive": Affine("additive")}
COLOURS = {"1x1": "#1b6ca8", "shuffle": "#d95f02", "reverse": "#1b9e77"}
LINES = {"affine": "-", "additive": "--"}
MOVES = (-1.0, -0.5, 0.0, 0.5, 1.0)  # along the attribute vector, of the way from the one mean to the other

# ---- variants ----


class Variant(NamedTuple):
    """One row of the table."""

    mixing: str
    coupling: str
    steps: int
    levels: int

    def __str__(self) -> str:
        return f"{MIXINGS[self.mixing]}, {self.coupling}, {self.levels} x {self.steps} steps"


class Run(NamedTuple):
    """A variant from one seed, and what else its figure depends on."""

    variant: Variant
    seed: int
    data: str
    images: int
    epochs: int
    hidden: int


Figures = dict[Run, tuple[float, float]]  # bits per dimension, seconds of processor time


def wanted(digits: Digits, args: argparse.Namespace) -> list[Run]:
    """Seed by seed, so that an interruption leaves every variant as many seeds, give or take one."""
    variants = map(Variant._make, itertools.product(args.mixings, args.couplings, args.depths, args.levels))
    of_data = (digits.name, len(digits.train), args.epochs, args.hidden)
    return [Run(variant, seed, *of_data) for seed, variant in itertools.product(range(args.seeds), list(variants))]


def new_flow(digits: Digits, run: Run) -> Flow:
    torch.manual_seed(run.seed)
    return Glow(
        digits.train.shape[1:], levels=run.variant.levels, steps=run.variant.steps, hidden=(run.hidden,) * 2,
        permutation=run.variant.mixing, seed=run.seed, univariate=COUPLINGS[run.variant.coupling],
        preprocessing=[Dequantize(digits.levels, event_dims=3), Logit(ALPHA, event_dims=3)],
    )  # fmt: skip


# ---- the file of figures ----


def read(path: Path) -> Figures:
    """Figures that are there; a line that was not written to its end is none."""
    found: Figures = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            (variant, *rest), bits, seconds = json.loads(line)
            found[Run(Variant(*variant), *rest)] = (bits, seconds)
    return found


def append(path: Path, run: Run, bits: float, seconds: float) -> None:
    with path.open("a") as file:
        file.write(f"\n{json.dumps([run, bits, seconds])}")  # a new line first: one that was cut short stays alone
        file.flush()
        os.fsync(file.fileno())


# ---- training ----


def train(digits: Digits, run: Run, progress: Progress) -> tuple[Flow, float, float]:
    """The trained flow, its bits per dimension and seconds of processor time; test digits choose nothing."""
    flow, start = new_flow(digits, run), time.process_time()
    task = progress.add_task(f"{run.variant}, seed {run.seed}", total=run.epochs)

    def tell(epoch: Epoch) -> None:
        progress.advance(task)

    found = fit(
        flow, digits.train, validation=None, epochs=run.epochs, batch_size=BATCH, lr=LEARNING_RATE, schedule=None,
        clip=500.0, seed=run.seed, progress=tell,
    )  # fmt: skip
    seconds = time.process_time() - start
    progress.remove_task(task)
    if found.stopped == "interrupted":
        raise KeyboardInterrupt
    return flow, test_bits(flow, digits.test), seconds


def shown_of(runs: list[Run]) -> Run:
    """The run whose latent is shown."""
    return max(runs, key=lambda run: (run.variant.mixing == "lu", run.variant.coupling == "affine", run.variant.steps,
                                      run.variant.levels, -run.seed))  # fmt: skip


def train_all(digits: Digits, runs: list[Run], args: argparse.Namespace, console: Console) -> Figures:
    path, weights = args.out / "glow_ablations.jsonl", weights_of(args)
    found = read(path)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with contextlib.suppress(KeyboardInterrupt), Progress(*columns, console=console, transient=True) as progress:
        whole = progress.add_task("all runs", total=len(runs), completed=sum(run in found for run in runs))
        for run in runs:
            keeps = run == shown_of(runs)
            if run in found and not (keeps and kept(weights, run) is None):
                continue
            flow, bits, seconds = train(digits, run, progress)
            if keeps:
                save(weights, dict(flow.state_dict()), {"run": json.dumps(run)})
            if run not in found:
                append(path, run, bits, seconds)
                found[run] = (bits, seconds)
                progress.advance(whole)
            console.print(f"{run.variant}, seed {run.seed}: {bits:.3f} bits/dim, {seconds:.1f} s", highlight=False)
    return {run: found[run] for run in runs if run in found}


def weights_of(args: argparse.Namespace) -> Path:
    return args.out / "glow_ablations.safetensors"


def kept(path: Path, run: Run) -> dict[str, Tensor] | None:
    """The weights in the file, if they are those of the run."""
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        if (file.metadata() or {}).get("run") != json.dumps(run):
            return None
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)


# ---- the table and its picture ----


class Row(NamedTuple):
    variant: Variant
    bits: Tensor  # [seeds]
    seconds: float


def rows_of(found: Figures) -> list[Row]:
    rows = []
    for variant in dict.fromkeys(run.variant for run in found):
        figures = [figure for run, figure in found.items() if run.variant == variant]
        rows.append(Row(variant, torch.tensor([b for b, _ in figures]), sum(s for _, s in figures) / len(figures)))
    return rows


def show(console: Console, digits: Digits, rows: list[Row], args: argparse.Namespace) -> None:
    table = Table(title=f"{digits.name}: {len(digits.test):,} test digits after {args.epochs} epochs")
    for heading in ("mixing", "coupling", "levels", "steps", "seeds", "bits/dim", "± of seeds", "processor, s"):
        table.add_column(heading, justify="left" if heading in ("mixing", "coupling") else "right")
    for (mixing, coupling, steps, levels), bits, seconds in rows:
        table.add_row(
            MIXINGS[mixing], coupling, f"{levels}", f"{steps}", f"{len(bits)}", f"{bits.mean().item():.3f}",
            f"{spread(bits).item():.3f}", f"{seconds:.1f}",
        )  # fmt: skip
    table.caption = "upper bound, one draw of uniform noise per pixel; lower is better"
    console.print(table)


def draw_ablation(path: Path, digits: Digits, rows: list[Row]) -> None:
    """Bits over the depth, a panel for each number of levels."""
    levels = sorted({row.variant.levels for row in rows})
    figure, axes = plt.subplots(
        1, len(levels), figsize=(1.5 + 4.2 * len(levels), 4), sharey=True, squeeze=False, layout="constrained"
    )
    for ax, level in zip(axes[0], levels, strict=True):
        here = [row for row in rows if row.variant.levels == level]
        for mixing, coupling in dict.fromkeys(row.variant[:2] for row in here):
            line = sorted((r for r in here if r.variant[:2] == (mixing, coupling)), key=lambda r: r.variant.steps)
            ax.errorbar(
                [r.variant.steps for r in line], [r.bits.mean().item() for r in line],
                yerr=[spread(r.bits).item() for r in line], color=COLOURS[MIXINGS[mixing]], linestyle=LINES[coupling],
                marker="o", markersize=3, capsize=3, linewidth=1.4, label=f"{MIXINGS[mixing]}, {coupling}",
            )  # fmt: skip
        ax.set(xlabel="steps of a level", title=f"{level} level{'s' if level > 1 else ''}")
        ax.set_xticks(sorted({r.variant.steps for r in here}))
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
    axes[0, 0].set_ylabel("bits per dimension of test digits")
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{digits.name}: mean ± deviation of the seeds", fontsize=11)
    figure.savefig(path, dpi=120)
    plt.close(figure)


# ---- the latent ----


def thick_and_thin(images: Tensor) -> tuple[Tensor, Tensor]:
    """The quarter of the images with most ink, and the one with least."""
    order = images.flatten(1).sum(1).argsort()
    quarter = max(1, len(images) // 4)
    return images[order[-quarter:]], images[order[:quarter]]


@torch.no_grad()
def moved(flow: Flow, digits: Digits, images: Tensor) -> Tensor:
    """``[N, moves, H, W]``: each image made thinner and thicker."""
    vector = attribute_vector(flow, *thick_and_thin(digits.train))
    latent = flow.encode(images)
    return torch.stack([flow.decode(latent + w * vector)[:, 0] for w in MOVES], 1)


def without_noise(flow: Flow) -> Flow:
    """The density of real images in [0, 1], behind the dequantisation."""
    return Flow(Composite(list(flow.transform.transforms)[1:]), flow.base)


def filled(flow: Flow, digits: Digits, images: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """What the ascent starts from and where it ends, ``[masks, N, H, W]`` in [0, 1]."""
    noise = torch.Generator().manual_seed(0)
    known = masks(*images.shape[-2:], noise)[:, None, None]
    x = ((images + torch.rand(images.shape, generator=noise)) / digits.levels).expand(len(known), *images.shape)
    start = torch.where(known, x, torch.rand(x.shape, generator=noise))
    torch.manual_seed(0)
    flat = start.flatten(0, 1)
    hidden = known.expand(x.shape).flatten(0, 1)
    found = inpaint(without_noise(flow), flat, hidden, steps, step_size=lambda i: LONGEST_STEP * (1 - i / steps))
    return start[:, :, 0], found.view(x.shape)[:, :, 0]


def draw_sheet(ax: Axes, images: Tensor, title: str, marks: tuple[str, ...] = ()) -> None:
    """``[rows, columns, H, W]`` in [0, 1]."""
    ax.imshow(sheet(images.flatten(0, 1), images.shape[1]), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[], title=title)
    if marks:
        height = images.shape[2] + 1
        ax.set_yticks([height * (i + 0.5) for i in range(len(marks))], marks, fontsize=8)
        ax.tick_params(left=False)


def draw_latent(path: Path, digits: Digits, flow: Flow, run: Run, steps: int, console: Console) -> None:
    images = digits.test[torch.linspace(0, len(digits.test) - 1, 8).long()]
    scale = digits.levels - 1
    torch.manual_seed(0)
    with torch.no_grad():
        between = flow.interpolate(images, images.roll(-1, 0), 9).transpose(0, 1)[:, :, 0] / scale
    along = moved(flow, digits, images) / scale
    with console.status("in-painting"):
        start, end = filled(flow, digits, images, steps)
    figure, axes = plt.subplots(2, 2, figsize=(11, 11), layout="constrained")
    draw_sheet(axes[0, 0], between, "from one digit to the next")
    draw_sheet(axes[0, 1], along, "thinner, as it is, thicker")
    draw_sheet(axes[1, 0], start, "what is known, and noise", MASKS)
    draw_sheet(axes[1, 1], end, "filled in")
    figure.suptitle(f"{digits.name}: Glow, {run.variant}, seed {run.seed}", fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)


# ---- the story ----


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    found.add_argument("--data", type=Path, help="folder of the four MNIST files (default: scikit-learn's digits)")
    found.add_argument("--images", type=positive, default=6000, help="training digits at most; a fifth for testing")
    found.add_argument("--epochs", type=positive, default=15, help="passes over the data (default: 15)")
    found.add_argument("--seeds", type=positive, default=3, help="runs of every variant (default: 3)")
    found.add_argument("--mixings", nargs="+", choices=list(MIXINGS), default=list(MIXINGS), help="default: all")
    found.add_argument("--couplings", nargs="+", choices=list(COUPLINGS), default=list(COUPLINGS), help="default: both")
    found.add_argument("--depths", nargs="+", type=positive, default=[2, 4], help="steps of a level (default: 2 4)")
    found.add_argument("--levels", nargs="+", type=positive, default=[2], help="default: 2")
    found.add_argument("--hidden", type=positive, default=32, help="channels of the networks (default: 32)")
    found.add_argument("--inpaint-steps", type=positive, default=500, help="of the ascent (default: 500)")
    found.add_argument("--out", type=Path, default=Path("out"), help="folder of figures and pictures (default: out)")
    found.add_argument("--threads", type=positive, default=2, help="of torch and of flowkernels (default: 2)")
    found.add_argument("--quick", action="store_true", help="tiny models, one epoch, two seeds, few digits: seconds")
    return found


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.quick:
        args.epochs, args.seeds, args.depths, args.hidden, args.images, args.inpaint_steps = 1, 2, [1, 2], 8, 128, 10
    torch.set_num_threads(args.threads)
    console = new_console()
    try:
        digits = small_digits() if args.data is None else mnist(args.data)
        args.out.mkdir(parents=True, exist_ok=True)
        digits = digits._replace(train=digits.train[: args.images], test=digits.test[: max(1, args.images // 5)])
        runs = wanted(digits, args)
        new_flow(digits, max(runs, key=lambda run: run.variant.levels))  # are there so many levels?
    except (OSError, ValueError) as error:  # of what was given; a bug elsewhere keeps its traceback
        raise SystemExit(f"glow_ablations: {error}") from error
    console.print(
        f"{digits.name}: {len(digits.train):,} training digits, {len(digits.test):,} test digits of "
        f"{' x '.join(map(str, digits.train.shape[1:]))}; {len(runs)} runs; threads: {torch.get_num_threads()}",
        highlight=False,
    )
    found = train_all(digits, runs, args, console)
    if not found:
        console.print("interrupted before the first run was done")
        return
    rows = rows_of(found)
    show(console, digits, rows, args)
    paths = [args.out / "glow_ablations.png"]
    draw_ablation(paths[0], digits, rows)
    shown = shown_of(runs)
    weights = kept(weights_of(args), shown)
    if weights is not None:
        flow = new_flow(digits, shown)
        flow.load_state_dict(weights)
        paths.append(args.out / "glow_ablations_latent.png")
        draw_latent(paths[1], digits, flow.eval(), shown, args.inpaint_steps, console)
    console.print("pictures: " + ", ".join(map(str, paths)), soft_wrap=True)


if __name__ == "__main__":
    main()

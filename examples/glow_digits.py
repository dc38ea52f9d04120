"""Trains small multi-scale Glow and RealNVP flows on images of digits; compares three ways to mix channels.

By default on scikit-learn's digits (8 x 8, levels 0 ... 16; every fifth one is a test digit); with `--data FOLDER` on
MNIST, padded by zeros to 32 x 32. Glow is trained with each of its mixings between couplings (a learned 1 x 1
convolution, a fixed random order of the channels, their reverse), RealNVP beside it, all for the same epochs from three
seeds.

What is reported: bits per dimension of the test digits, the mean over them of -log2 p(k) / D, where D counts every
pixel, padding too (so with MNIST multiply by 1024/784 for the bits per true pixel, padding included), and p(k) is
estimated by the density of the flow at k + u, u uniform noise in [0, 1)^D: an upper bound of the bits of the whole
numbers k, averaged over noise. The noise is one draw per pixel from a fixed seed, the same for every model and epoch.
The figure is that of the last epoch; test digits choose nothing.

Writes two pictures: the test bits per dimension over the epochs, mean and standard deviation of the seeds; and samples
at temperatures from 0 to 1, a row of the same noise each. Ctrl-C draws the models that are finished.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from common import new_console, positive, read_mnist, sheet
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor

from flowkernels.flows import Flow, Glow, RealNVP, bits_per_dim
from flowkernels.training import Epoch, fit
from flowkernels.transforms import Affine, Dequantize, Logit

BATCH, LEARNING_RATE, ALPHA, TEST_SEED = 64, 1e-3, 0.05, 1 << 40
MODELS = {"Glow, 1x1": "lu", "Glow, shuffle": "shuffle", "Glow, reverse": "reverse", "RealNVP": None}
COLOURS = ("#1b6ca8", "#d95f02", "#1b9e77", "#777777")
TEMPERATURES = (0.0, 0.25, 0.6, 0.7, 0.8, 0.9, 1.0)

# ---- data ----


class Digits(NamedTuple):
    name: str
    train: Tensor  # uint8 [N, 1, H, W]
    test: Tensor
    levels: int  # pixels are 0 ... levels - 1
    scales: int  # of the models


def small_digits() -> Digits:
    images = torch.from_numpy(load_digits().images).to(torch.uint8)[:, None]
    testing = torch.arange(len(images)) % 5 == 0
    return Digits("scikit-learn's digits", images[~testing], images[testing], 17, 2)


def mnist(folder: Path) -> Digits:
    train, test = (padded(read_mnist(folder, part)[0]) for part in ("train", "t10k"))
    return Digits("MNIST", train, test, 256, 3)


def padded(images: Tensor, size: int = 32) -> Tensor:
    """``[N, H, W]`` → ``[N, 1, size, size]``, zeros around."""
    height, width = images.shape[1:]
    if max(height, width) > size:
        raise ValueError(f"digits must be at most {size} x {size}, got {height} x {width}")
    top, left = (size - height) // 2, (size - width) // 2
    return F.pad(images, (left, size - width - left, top, size - height - top))[:, None]


# ---- models ----


def new_flow(model: str, digits: Digits, seed: int, args: argparse.Namespace) -> Flow:
    torch.manual_seed(seed)
    shape, permutation = digits.train.shape[1:], MODELS[model]
    preprocessing = [Dequantize(digits.levels, event_dims=3), Logit(ALPHA, event_dims=3)]
    hidden = (args.hidden, args.hidden)
    if permutation is None:
        return RealNVP(shape, levels=digits.scales, transforms=2, hidden=hidden, preprocessing=preprocessing)
    return Glow(
        shape, levels=digits.scales, steps=args.steps, hidden=hidden, permutation=permutation, seed=seed,
        univariate=Affine("additive") if args.additive else None, preprocessing=preprocessing,
    )  # fmt: skip


class Trained(NamedTuple):
    model: str
    flow: Flow
    bits: list[float]  # of the test digits, after every epoch
    seconds: float


@torch.no_grad()
def test_bits(flow: Flow, images: Tensor) -> float:
    """Bits per dimension; see the top of this file."""
    flow.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(TEST_SEED)
        log_prob = torch.cat([flow.log_prob(part) for part in images.split(500)])
    flow.train()
    return bits_per_dim(log_prob.double().mean(), images[0].numel(), bins=1).item()


def train(model: str, digits: Digits, seed: int, args: argparse.Namespace, progress: Progress) -> Trained:
    """All epochs: test digits choose nothing."""
    flow, start = new_flow(model, digits, seed, args), time.perf_counter()
    task = progress.add_task(f"{model}, seed {seed}", total=args.epochs, bits="")
    bits: list[float] = []

    def test(epoch: Epoch) -> None:
        bits.append(test_bits(flow, digits.test))
        progress.update(task, advance=1, bits=f"{bits[-1]:.3f}")

    found = fit(
        flow, digits.train, validation=None, epochs=args.epochs, batch_size=BATCH, lr=LEARNING_RATE, schedule=None,
        clip=500.0, seed=seed, progress=test,
    )  # fmt: skip
    progress.remove_task(task)
    if found.stopped == "interrupted":
        raise KeyboardInterrupt
    return Trained(model, flow, bits, time.perf_counter() - start)


def train_all(digits: Digits, args: argparse.Namespace, console: Console) -> list[Trained]:
    """Seed by seed, so that an interruption leaves every model as many seeds, give or take one."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"),
        TimeRemainingColumn(), TextColumn("{task.fields[bits]} bits/dim"),
    )  # fmt: skip
    found: list[Trained] = []
    with contextlib.suppress(KeyboardInterrupt), Progress(*columns, console=console, transient=True) as progress:
        for seed in range(args.seeds):
            for model in args.models:
                found.append(train(model, digits, seed, args, progress))
                said = f"{model}, seed {seed}: {found[-1].bits[-1]:.3f} bits/dim, {found[-1].seconds:.1f} s"
                console.print(said, highlight=False)
    return found


# ---- what is shown ----


def of_model(found: list[Trained]) -> dict[str, list[Trained]]:
    return {model: runs for model in MODELS if (runs := [t for t in found if t.model == model])}


def spread(values: Tensor) -> Tensor:
    """Standard deviation over the seeds; zero of one."""
    return values.std(0) if len(values) > 1 else torch.zeros_like(values[0])


def show(console: Console, digits: Digits, found: list[Trained], args: argparse.Namespace) -> None:
    table = Table(title=f"{digits.name}: {len(digits.test):,} test digits after {args.epochs} epochs", width=80)
    for heading in ("", "parameters", "seeds", "bits/dim", "± of seeds", "training, s"):
        table.add_column(heading, justify="right" if heading else "left")
    for model, runs in of_model(found).items():
        last = torch.tensor([t.bits[-1] for t in runs])
        size = sum(p.numel() for p in runs[0].flow.parameters())
        seconds = sum(t.seconds for t in runs) / len(runs)
        table.add_row(
            model, f"{size:,}", f"{len(runs)}", f"{last.mean().item():.3f}", f"{spread(last).item():.3f}",
            f"{seconds:.1f}",
        )  # fmt: skip
    table.caption = "upper bound, one draw of uniform noise per pixel; lower is better"
    console.print(table)


def draw_ablation(path: Path, digits: Digits, found: list[Trained]) -> None:
    figure, ax = plt.subplots(figsize=(7, 4.4), layout="constrained")
    for model, runs in of_model(found).items():
        bits = torch.tensor([t.bits for t in runs])
        mean, deviation = bits.mean(0), spread(bits)
        epochs, colour = range(1, bits.shape[1] + 1), COLOURS[list(MODELS).index(model)]
        ax.plot(epochs, mean.numpy(), color=colour, linewidth=1.6, label=f"{model}, seeds: {len(runs)}")
        ax.fill_between(epochs, (mean - deviation).numpy(), (mean + deviation).numpy(), color=colour, alpha=0.2)
    ax.set(xlabel="epoch", ylabel="bits per dimension of test digits", title=f"{digits.name}: mean ± deviation")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)
    ax.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def at_temperatures(flow: Flow, rows: int, seed: int) -> Tensor:
    """``[rows, temperatures, H, W]``: along a row the same noise, ever further from the centre."""
    images = []
    for temperature in TEMPERATURES:
        torch.manual_seed(seed)
        images.append(flow.sample(rows, temperature=temperature)[:, 0])
    return torch.stack(images, 1)


def draw_temperatures(path: Path, digits: Digits, found: list[Trained], rows: int = 6) -> None:
    models = of_model(found)
    width = digits.train.shape[3]
    figure, axes = plt.subplots(1, len(models), figsize=(4 * len(models), 4), squeeze=False, layout="constrained")
    for ax, (model, runs) in zip(axes[0], models.items(), strict=True):
        images = at_temperatures(runs[0].flow, rows, seed=7) / (digits.levels - 1)
        ax.imshow(sheet(images.flatten(0, 1), len(TEMPERATURES)), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        places = [(width + 1) * (i + 0.5) for i in range(len(TEMPERATURES))]
        ax.set_xticks(places, [f"{t:g}" for t in TEMPERATURES])
        ax.set(yticks=[], xlabel="temperature", title=model)
        ax.tick_params(bottom=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


# ---- the story ----


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", type=Path, help="folder of the four MNIST files (default: scikit-learn's digits)")
    parser.add_argument("--images", type=positive, default=6000, help="training digits at most; a fifth for testing")
    parser.add_argument("--epochs", type=positive, default=15, help="passes over the data (default: 15)")
    parser.add_argument("--seeds", type=positive, default=3, help="runs of every model (default: 3)")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="default: all")
    parser.add_argument("--steps", type=positive, default=4, help="steps of Glow per level (default: 4)")
    parser.add_argument("--hidden", type=positive, default=32, help="channels of the networks (default: 32)")
    parser.add_argument("--additive", action="store_true", help="additive couplings in Glow instead of affine ones")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the pictures (default: out)")
    parser.add_argument("--threads", type=positive, default=2, help="of torch and of flowkernels (default: 2)")
    parser.add_argument("--quick", action="store_true", help="tiny models, two epochs, two seeds, few digits: seconds")
    args = parser.parse_args(argv)
    if args.quick:
        args.epochs, args.seeds, args.steps, args.hidden, args.images = 2, 2, 1, 8, 128
    torch.set_num_threads(args.threads)

    console = new_console()
    try:
        digits = small_digits() if args.data is None else mnist(args.data)
        args.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # of what was given; a bug elsewhere keeps its traceback
        parser.exit(2, f"glow_digits: {error}\n")
    digits = digits._replace(train=digits.train[: args.images], test=digits.test[: max(1, args.images // 5)])
    console.print(
        f"{digits.name}: {len(digits.train):,} training digits, {len(digits.test):,} test digits of "
        f"{' x '.join(map(str, digits.train.shape[1:]))}, {digits.levels} levels; threads: {torch.get_num_threads()}",
        highlight=False,
    )
    found = train_all(digits, args, console)
    if not found:
        console.print("interrupted before the first model was done")
        return
    show(console, digits, found, args)
    paths = [args.out / f"glow_digits_{name}.png" for name in ("ablation", "temperatures")]
    draw_ablation(paths[0], digits, found)
    draw_temperatures(paths[1], digits, found)
    console.print(f"pictures: {paths[0]}, {paths[1]}", soft_wrap=True)


if __name__ == "__main__":
    main()

"""Trains a neural spline flow on handwritten digits twice: as nflows runs it, and accelerated by flowkernels.

Both start from the same weights and see the same batches of scikit-learn's digits (1,797 images of 8 x 8, made
continuous by uniform noise and unbounded by a logit), so their loss curves must lie on each other. Prints one table of
times and the largest difference of log_prob, and draws the curves and samples of both.

Training amplifies rounding, so the curves are not the same to the last digit: they part by about 1e-2 nats per pixel,
and so do two runs of nflows itself whose first weights differ in their last bits.

How times are measured: both models in this process, turn by turn, after a warm-up, on one batch; the table gives the
median of the calls. Another program on the machine disturbs both alike.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from common import new_console, sheet
from matplotlib.axes import Axes
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.nn.nets import ResidualNet
from nflows.transforms import CompositeTransform, LULinear, PiecewiseRationalQuadraticCouplingTransform
from nflows.utils import create_alternating_binary_mask
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor

from flowkernels import compat

FEATURES, LEVELS, ALPHA = 64, 17, 0.05  # pixels 0..16; alpha keeps the logit finite
LAYERS, HIDDEN, BINS, TAIL_BOUND = 5, 64, 8, 3.0
BATCH, LEARNING_RATE = 256, 2e-3
NAMES = ("nflows", "accelerated")
COLOURS = ("#d95f02", "#1b6ca8")

# ---- data ----


def pixels() -> Tensor:
    return torch.from_numpy(load_digits().data).float()


def to_latent_scale(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pixels 0..16 → dequantised in (0, 1) → logit, standardised by constants of this data set."""
    u = (images + torch.rand(images.shape, generator=generator)) / LEVELS
    return torch.logit(ALPHA + (1 - 2 * ALPHA) * u) / 2


def to_pixels(x: Tensor) -> Tensor:
    return ((torch.sigmoid(2 * x) - ALPHA) / (1 - 2 * ALPHA)).clamp(0, 1)


# ---- model ----


def spline_flow() -> Flow:
    transforms = []
    for i in range(LAYERS):
        transforms += [
            LULinear(FEATURES, identity_init=True),
            PiecewiseRationalQuadraticCouplingTransform(
                create_alternating_binary_mask(FEATURES, even=i % 2 == 0),
                lambda n_in, n_out: ResidualNet(n_in, n_out, hidden_features=HIDDEN, num_blocks=2),
                num_bins=BINS,
                tails="linear",
                tail_bound=TAIL_BOUND,
            ),
        ]
    return Flow(CompositeTransform(transforms), StandardNormal([FEATURES]))


def loss_of(model: Flow, batch: Tensor) -> Tensor:
    """Negative log-likelihood in nats per pixel."""
    return -model.log_prob(batch).mean() / FEATURES


def step(model: Flow, optimizer: torch.optim.Optimizer, batch: Tensor) -> float:
    loss = loss_of(model, batch)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


# ---- training and timing ----


def train(models: list[Flow], images: Tensor, epochs: int, console: Console) -> list[list[float]]:
    """Both models side by side on the same batches; returns their losses so far where the user interrupts."""
    optimizers = [torch.optim.Adam(m.parameters(), lr=LEARNING_RATE, fused=True) for m in models]
    generator = torch.Generator().manual_seed(0)
    curves: list[list[float]] = [[] for _ in models]
    batches = len(images) // BATCH
    columns = (
        TextColumn("training both"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]} nats/pixel"),
    )  # fmt: skip
    try:
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=epochs * batches, loss="")
            for _ in range(epochs):
                order = torch.randperm(len(images), generator=generator)
                for rows in order[: batches * BATCH].view(batches, BATCH):
                    batch = to_latent_scale(images[rows], generator)
                    for model, optimizer, curve in zip(models, optimizers, curves, strict=True):
                        curve.append(step(model, optimizer, batch))
                    progress.update(task, advance=1, loss=" / ".join(f"{c[-1]:+.3f}" for c in curves))
    except KeyboardInterrupt:
        console.print("interrupted: timing and drawing what there is")
    return [c[: len(curves[-1])] for c in curves]


def median_times(calls: list[Callable[[], object]], repeats: int) -> list[float]:
    """Milliseconds of each call, median of `repeats`, turn by turn."""
    times: list[list[float]] = [[] for _ in calls]
    for i in range(repeats + 2):
        for call, found in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if i >= 2:  # the first two warm up
                found.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(t) for t in times]


def measure(models: list[Flow], batch: Tensor, repeats: int) -> dict[str, list[float]]:
    """name → [before, after]; on copies, because a training step changes a model."""
    models = [copy.deepcopy(m) for m in models]
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-6, fused=True) for m in models]

    def without_grad(call: Callable[[Flow], object]) -> list[Callable[[], object]]:
        return [torch.no_grad()(lambda m=m: call(m)) for m in models]

    steps = [lambda m=m, o=o: step(m, o, batch) for m, o in zip(models, optimizers, strict=True)]
    return {
        "log_prob": median_times(without_grad(lambda m: m.log_prob(batch)), repeats),
        "sample": median_times(without_grad(lambda m: m.sample(len(batch))), repeats),
        "training step": median_times(steps, repeats),
    }


def difference(reference: Flow, x: Tensor) -> tuple[float, float]:
    """Largest difference of log_prob, in nats, between nflows and the same weights accelerated; and the error of
    nflows itself against float64, to compare it with."""
    fast, exact = copy.deepcopy(reference), copy.deepcopy(reference).double()
    compat.accelerate(fast)
    with torch.no_grad():
        before = reference.log_prob(x)
        after, truth = fast.log_prob(x), exact.log_prob(x.double())
    return (after - before).abs().max().item(), (before - truth).abs().max().item()


# ---- what is shown ----


def show_table(
    console: Console, times: dict[str, list[float]], gap: tuple[float, float], curves: list[list[float]], repeats: int
) -> None:
    table = Table(title=f"nflows spline flow, {BATCH} x {FEATURES}, threads: {torch.get_num_threads()}", width=72)
    for heading in ("", "before, ms", "after, ms", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, (before, after) in times.items():
        table.add_row(name, f"{before:.1f}", f"{after:.1f}", f"{before / after:.2f} x")
    table.add_section()
    table.add_row("largest difference of log_prob", "", f"{gap[0]:.1e}", "nats")
    parted = max((abs(a - b) for a, b in zip(*curves, strict=True)), default=0.0)
    table.add_row("largest gap of the loss curves", "", f"{parted:.1e}", "nats/pixel")
    table.caption = (
        f"median of {repeats} calls each, turn by turn in one process; nflows' own float32 error is {gap[1]:.1e} nats"
    )
    console.print(table)


def draw_curves(axes: Axes, curves: list[list[float]]) -> None:
    # nflows wide and pale under a thin dark line: two curves that agree are still both seen.
    axes.plot(curves[0], color=COLOURS[0], linewidth=6, alpha=0.4, solid_capstyle="round", label=NAMES[0])
    axes.plot(curves[1], color=COLOURS[1], linewidth=1.4, label=NAMES[1])
    axes.set(xlabel="training step", ylabel="negative log-likelihood, nats per pixel", title="same seeds, same batches")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)


def draw_digits(axes: Axes, images: Tensor, title: str, colour: str, rows: int = 6, columns: int = 6) -> None:
    shown = images[: rows * columns].view(-1, 8, 8)
    axes.imshow(sheet(shown, columns), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, color=colour)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(edgecolor=colour, linewidth=1.5)


def draw(path: Path, curves: list[list[float]], models: list[Flow], images: Tensor) -> None:
    figure, axes = plt.subplots(1, 4, figsize=(16, 4.4), width_ratios=(1.35, 1, 1, 1), layout="constrained")
    draw_curves(axes[0], curves)
    draw_digits(axes[1], images / (LEVELS - 1), "data", "#555555")
    for ax, model, name, colour in zip(axes[2:], models, NAMES, COLOURS, strict=True):
        torch.manual_seed(7)  # the same noise for both, so the same digits
        with torch.no_grad():
            draw_digits(ax, to_pixels(model.sample(36)), f"samples, {name}", colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--epochs", type=int, default=40, help="passes over the data (default: 40); Ctrl-C stops early")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the picture (default: out)")
    parser.add_argument("--threads", type=int, help="threads of torch and of flowkernels (default: torch's choice)")
    parser.add_argument("--repeats", type=int, default=15, help="timed calls of each kind (default: 15)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    # nflows' LULinear, the same in both models.
    warnings.filterwarnings("ignore", message="torch.triangular_solve is deprecated")

    console = new_console()
    torch.manual_seed(0)
    plain = spline_flow()
    fast = copy.deepcopy(plain)
    console.print(str(compat.accelerate(fast)), highlight=False, soft_wrap=True)

    images, models = pixels(), [plain, fast]
    curves = train(models, images, args.epochs, console)
    batch = to_latent_scale(images[:BATCH], torch.Generator().manual_seed(1))
    times = measure(models, batch, args.repeats)
    show_table(console, times, difference(plain, batch), curves, args.repeats)
    path = args.out / "digits_nsf.png"
    draw(path, curves, models, images)
    console.print(f"curves and samples: {path}", soft_wrap=True)


if __name__ == "__main__":
    main()

"""Trains the NICE of Dinh, Krueger and Bengio on MNIST: learning curve, samples, in-painting, interpolation.

Four additive couplings between the even and the odd pixels, five hidden layers of 1000 in each, a diagonal scale and a
logistic prior; no whitening. Adam has the paper's settings (learning rate 1e-3, betas 0.9 and 0.99, epsilon 1e-4), but
for the log-scales, which learn 30 times as fast: the couplings keep volumes, so the scales must grow a thousandfold
first, and at 1e-3 a step that alone takes twenty epochs. The paper's batches are not known, here they hold 200 digits.
All 60,000 training digits are trained on.

What is reported: after every epoch the mean log-likelihood of the 10,000 test digits, in nats (natural logarithm) per
digit. Digits are whole numbers k = 0 ... 255, which have no density, so uniform noise u in [0, 1) is added to every
pixel and x = (k + u)/256 lies in [0, 1]; the number is the mean of log p(x), p the density of the flow on [0, 1]^784,

    log p(x) = sum of the 784 logistic log-densities of the latent + sum of the 784 log-scales,

exact for that x. Training draws new noise at every step. Test noise is drawn once, from a seed of its own, and is the
same after every epoch and in every run; the standard error beside the number is that over the test digits. These are
the units of the paper's 1980.50 nats. The mean over noise bounds from below the log-probability of the whole numbers,
which lies 784 log 256 = 4347.45 nats lower: 1980.50 nats are 4.36 bits per pixel. Test digits choose nothing: the
figure is always that of the last epoch. The training figure is the mean over an epoch while the weights move.

A checkpoint (safetensors: weights, state of Adam, curve) is written after every epoch; the same command goes on from
it, to the same numbers as if it had never stopped, for the noise of an epoch depends on its number only. Ctrl-C loses
the epoch it falls in.

Missing parts of digits are filled in by projected gradient ascent on log p, with ten masks as in the paper: the known
pixels stay, the others start as uniform noise. The steps fall from 1e-3 to 0; the paper's 10/(100 + i) is too long for
slopes of hundreds of nats per unit, and throws pixels from one bound to the other.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from common import new_console, positive, positive_number, read_mnist, save, sheet
from matplotlib.axes import Axes
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flowkernels.flows import NICE, Flow, bits_per_dim, inpaint

LEVELS, PAPER, SCALES_FASTER, LONGEST_STEP = 256, 1980.50, 30, 1e-3
TEST_SEED = 1 << 40  # of the noise on the test digits; no epoch has this seed
MASKS = (
    "top rows", "bottom rows", "odd pixels", "even pixels", "left side", "right side", "middle, vertical",
    "middle, horizontal", "75% random", "90% random",
)  # fmt: skip
COLOURS = ("#d95f02", "#1b6ca8", "#555555")

# ---- data ----


class Data(NamedTuple):
    train: Tensor  # uint8 [N, D]
    test: Tensor
    labels: Tensor  # of the test digits
    size: tuple[int, int]  # H, W


def read(folder: Path, device: torch.device) -> Data:
    train, _ = read_mnist(folder, "train")
    test, labels = read_mnist(folder, "t10k")
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(f"{folder}: test must be images {list(train.shape[1:])}, got {list(test.shape[1:])}")
    return Data(train.flatten(1).to(device), test.flatten(1).to(device), labels, (train.shape[1], train.shape[2]))


def generator(seed: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def dequantise(pixels: Tensor, noise: torch.Generator) -> Tensor:
    """Whole numbers 0 ... 255 → [0, 1]."""
    return (pixels + torch.rand(pixels.shape, generator=noise, device=pixels.device)) / LEVELS


# ---- training ----


class Epoch(NamedTuple):
    """One point of the curve; minutes from the start of the training, over all runs, without pictures."""

    epoch: int
    train: float  # nats; NaN before the first
    test: float
    error: float  # standard error of test
    minutes: float
    processor_minutes: float


class Run(NamedTuple):
    flow: Flow
    optimizer: torch.optim.Optimizer
    curve: list[Epoch]


def new_run(data: Data, args: argparse.Namespace) -> Run:
    torch.manual_seed(args.seed)
    flow = NICE(data.train.shape[1], transforms=args.transforms, hidden=args.hidden).to(data.train.device)
    *couplings, scale = flow.transform.transforms
    groups = [
        {"params": [p for coupling in couplings for p in coupling.parameters()]},
        {"params": scale.parameters(), "lr": SCALES_FASTER * args.learning_rate},
    ]
    optimizer = torch.optim.Adam(groups, lr=args.learning_rate, betas=(0.9, 0.99), eps=1e-4, fused=True)
    return Run(flow, optimizer, [])


@torch.no_grad()
def log_likelihoods(flow: Flow, pixels: Tensor) -> Tensor:
    """Of every test digit, in nats; see the top of this file."""
    noise = generator(TEST_SEED, pixels.device)
    return torch.cat([flow.log_prob(dequantise(part, noise)) for part in pixels.split(1000)]).double()


def train_epoch(run: Run, data: Data, epoch: int, args: argparse.Namespace, progress: Progress) -> float:
    """Mean log-likelihood of the training digits, in nats, while the weights moved."""
    noise = generator(args.seed * 1_000_000 + epoch, data.train.device)
    order = torch.randperm(len(data.train), generator=noise, device=data.train.device).split(args.batch)
    task = progress.add_task(f"epoch {epoch}", total=len(order))
    total = torch.zeros((), dtype=torch.float64, device=data.train.device)
    for rows in order:
        log_prob = run.flow.log_prob(dequantise(data.train[rows], noise))
        run.optimizer.zero_grad()
        (-log_prob.mean()).backward()
        run.optimizer.step()
        total += log_prob.detach().sum()
        progress.advance(task)
    progress.remove_task(task)
    return total.item() / len(data.train)


def train(run: Run, data: Data, args: argparse.Namespace, console: Console) -> None:
    """Until ``--epochs`` are done, or ``--minutes`` would be over before the end of the next one."""
    start, processor_start = time.perf_counter(), time.process_time()
    before = run.curve[-1] if run.curve else Epoch(-1, math.nan, 0, 0, 0, 0)
    spent, slowest = 0.0, 0.0
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        for epoch in range(before.epoch + 1, args.epochs + 1):
            if spent + slowest > 60 * args.minutes:
                break
            mean = train_epoch(run, data, epoch, args, progress) if epoch else math.nan
            values = log_likelihoods(run.flow, data.test)
            if not (math.isfinite(mean) or epoch == 0):
                raise FloatingPointError(
                    f"epoch {epoch}: the log-likelihood must be a number, got {mean}; epoch {epoch - 1} is kept"
                )
            slowest = max(slowest, time.perf_counter() - start - spent)
            spent = time.perf_counter() - start
            point = Epoch(
                epoch,
                mean,
                values.mean().item(),
                values.std().item() / len(values) ** 0.5,
                before.minutes + spent / 60,
                before.processor_minutes + (time.process_time() - processor_start) / 60,
            )
            run.curve.append(point)
            save_run(args.checkpoint, run, settings(data, args))
            console.print(said(point, data.train.shape[1]), highlight=False, soft_wrap=True)


def said(p: Epoch, D: int) -> str:
    bits = bits_per_dim(torch.tensor(p.test), D, LEVELS)
    train = "untrained" if math.isnan(p.train) else f"training {p.train:8.2f}"
    return (
        f"epoch {p.epoch:4d}: test {p.test:8.2f} ± {p.error:.2f} nats ({bits:.3f} bits/dim), {train}, "
        f"{p.minutes:.1f} minutes, {p.processor_minutes:.1f} of processor time"
    )


# ---- checkpoints ----


def settings(data: Data, args: argparse.Namespace) -> dict[str, Any]:
    """What must be the same for a run to go on."""
    names = ("seed", "batch", "transforms", "hidden", "learning_rate")
    digits = [len(data.train), len(data.test), *data.size]
    return {name: getattr(args, name) for name in names} | {"digits": digits}


def save_run(path: Path, run: Run, kept: dict[str, Any]) -> None:
    tensors = {f"flow.{name}": t for name, t in run.flow.state_dict().items()}
    for i, state in run.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": t for name, t in state.items()}
    # JSON has no NaN, which the training figure of epoch 0 is.
    curve = [[None if isinstance(v, float) and math.isnan(v) else v for v in point] for point in run.curve]
    save(path, tensors, {"settings": json.dumps(kept), "curve": json.dumps(curve)})


def load_run(path: Path, run: Run, kept: dict[str, Any]) -> None:
    """Puts the state of the file into ``run``."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    if "curve" not in metadata:
        raise ValueError(f"{path}: must be a checkpoint of this example, got {list(metadata)} as its metadata")
    found = json.loads(metadata["settings"])
    for name, value in kept.items():
        if found.get(name) != value:
            raise ValueError(f"{path}: {name} must be {found.get(name)}, as when it was written, got {value}")
    run.curve[:] = [Epoch(*(math.nan if v is None else v for v in point)) for point in json.loads(metadata["curve"])]
    run.flow.load_state_dict({n.removeprefix("flow."): t for n, t in tensors.items() if n.startswith("flow.")})
    state: dict[int, dict[str, Tensor]] = {}
    for name, t in tensors.items():
        if name.startswith("optimizer."):
            _, i, part = name.split(".")
            state.setdefault(int(i), {})[part] = t
    run.optimizer.load_state_dict({"state": state, "param_groups": run.optimizer.state_dict()["param_groups"]})


# ---- pictures ----


def masks(height: int, width: int, noise: torch.Generator) -> Tensor:
    """True where a pixel is known, ``[10, H, W]`` in the order of MASKS, which name what is hidden."""
    rows, columns = torch.arange(height).view(-1, 1), torch.arange(width).view(1, -1)
    number = rows * width + columns  # pixels are counted from 0, row by row
    middle = (columns >= width // 4) & (columns < width - width // 4)
    across = (rows >= height // 4) & (rows < height - height // 4)
    random = torch.rand(height, width, generator=noise)
    hidden = (
        rows < height // 2, rows >= height // 2, number % 2 == 1, number % 2 == 0, columns < width // 2,
        columns >= width // 2, middle, across, random < 0.75, random < 0.9,
    )  # fmt: skip
    return torch.stack([~h.expand(height, width) for h in hidden])


def one_of_each(data: Data, seed: int) -> Tensor:
    """The first test digit of every class there is, dequantised, ``[10, D]``."""
    rows = torch.stack([(data.labels == label).nonzero()[0, 0] for label in data.labels.unique()])
    return dequantise(data.test[rows.to(data.test.device)], generator(seed, data.test.device))


def picture(path: Path, parts: list[tuple[str, Tensor, int]], marks: tuple[str, ...] = ()) -> None:
    """Sheets side by side: title, images [N, H, W], columns; ``marks`` beside the rows of the first one."""
    figure, axes = plt.subplots(1, len(parts), figsize=(5.2 * len(parts), 5.4), squeeze=False, layout="constrained")
    for ax, (title, images, columns) in zip(axes[0], parts, strict=True):
        ax.imshow(sheet(images.cpu(), columns), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ax.set(xticks=[], yticks=[], title=title)
    if marks:
        height = parts[0][1].shape[1] + 1
        axes[0, 0].set_yticks([height * (i + 0.5) for i in range(len(marks))], marks)
        axes[0, 0].tick_params(left=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_curve(path: Path, curve: list[Epoch]) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for ax, field, label in ((axes[0], "epoch", "epoch"), (axes[1], "minutes", "minutes of training")):
        draw_line(ax, curve, field, label)
    axes[0].set_ylabel("nats per digit")
    axes[0].legend(frameon=False, loc="lower right")
    figure.suptitle("NICE on MNIST: log-likelihood of x = (k + u)/256, uniform noise u", fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_line(ax: Axes, curve: list[Epoch], field: str, label: str) -> None:
    places = [getattr(p, field) for p in curve]
    ax.plot(places, [p.train for p in curve], color=COLOURS[0], linewidth=1.2, label="training, weights moving")
    ax.plot(places, [p.test for p in curve], color=COLOURS[1], linewidth=1.6, marker=".", label="test")
    ax.axhline(PAPER, color=COLOURS[2], linestyle="--", linewidth=1, label=f"the paper's {PAPER:.2f}")
    ax.set(xlabel=label)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)


def draw_in_painting(path: Path, run: Run, data: Data, args: argparse.Namespace, console: Console) -> None:
    height, width = data.size
    device = data.test.device
    noise = generator(args.seed, torch.device("cpu"))
    known = masks(height, width, noise).to(device).flatten(1)[:, None]  # [10, 1, D]
    digits = one_of_each(data, args.seed)
    digits = digits.expand(len(MASKS), *digits.shape)  # [10, 10, D]: masks, classes
    start = torch.where(known, digits, torch.rand(digits.shape, generator=noise).to(device))
    steps = args.inpaint_steps
    torch.manual_seed(args.seed)
    with console.status("in-painting"):
        filled = inpaint(run.flow, start, known, steps, step_size=lambda i: LONGEST_STEP * (1 - i / steps))
    with torch.no_grad():
        nats = [run.flow.log_prob(x).double().mean().item() for x in (start, filled, digits)]
    console.print(
        "in-painting, mean log-likelihood in nats: {:.0f} at the start, {:.0f} filled in, {:.0f} of the digits "
        "themselves".format(*nats),
        highlight=False,
        soft_wrap=True,
    )
    titles = ("test digits", "start: what is known, and noise", "filled in")
    parts = [
        (title, x.reshape(-1, height, width), digits.shape[1])
        for title, x in zip(titles, (digits, start, filled), strict=True)
    ]
    picture(path, parts, MASKS)


def draw(run: Run, data: Data, args: argparse.Namespace, console: Console) -> None:
    flow, size = run.flow, data.size
    paths = [args.out / f"nice_mnist_{name}.png" for name in ("curve", "samples", "interpolation", "in-painting")]
    draw_curve(paths[0], run.curve)
    torch.manual_seed(args.seed)
    epochs = f"after {run.curve[-1].epoch} epochs"
    picture(paths[1], [(f"samples {epochs}", flow.sample(100).view(-1, *size), 10)])
    digits = one_of_each(data, args.seed)
    between = flow.interpolate(digits, digits.roll(-1, 0), 11).transpose(0, 1)  # every digit towards the next
    picture(paths[2], [(f"straight lines in the latent, {epochs}", between.reshape(-1, *size), 11)])
    draw_in_painting(paths[3], run, data, args, console)
    console.print("pictures: " + ", ".join(str(p) for p in paths), soft_wrap=True)


# ---- the story ----


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the four MNIST files, IDX or IDX in gzip")
    parser.add_argument("--epochs", type=positive, default=1500, help="at most, over all runs (default: 1500)")
    parser.add_argument("--minutes", type=positive_number, default=60.0, help="of training in this run (default: 60)")
    parser.add_argument("--batch", type=positive, default=200, help="digits per step (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order, noise and pictures (default: 0)")
    parser.add_argument("--checkpoint", type=Path, help="default: nice_mnist.safetensors in the folder of --out")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the pictures (default: out)")
    parser.add_argument("--threads", type=positive, default=2, help="of torch and of flowkernels (default: 2)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--transforms", type=positive, default=4, help="coupling layers (default: 4)")
    parser.add_argument(
        "--hidden", type=positive, nargs="+", default=[1000] * 5, help="widths of the networks (default: 1000 x 5)"
    )
    parser.add_argument("--learning-rate", type=positive_number, default=1e-3, help="default: 0.001")
    parser.add_argument("--inpaint-steps", type=positive, default=500, help="steps of the ascent (default: 500)")
    args = parser.parse_args(argv)
    args.checkpoint = args.checkpoint or args.out / "nice_mnist.safetensors"
    torch.set_num_threads(args.threads)

    console = new_console()
    try:
        data = read(args.data, torch.device(args.device))
        run = new_run(data, args)
        args.out.mkdir(parents=True, exist_ok=True)
        args.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        resumed = args.checkpoint.exists()
        if resumed:
            load_run(args.checkpoint, run, settings(data, args))
    except (OSError, ValueError, SafetensorError) as error:  # of what was given; a bug elsewhere keeps its traceback
        parser.exit(2, f"nice_mnist: {error}\n")

    D = data.train.shape[1]
    console.print(
        f"{len(data.train):,} training digits, {len(data.test):,} test digits; "
        f"{sum(p.numel() for p in run.flow.parameters()):,} parameters; threads: {torch.get_num_threads()}\n"
        f"log-likelihood: mean of log p(x) in nats per digit, x = (k + u)/{LEVELS} in [0, 1]^{D}, k the pixels, u "
        f"uniform noise; one draw of u per test pixel, the same every epoch; the paper has {PAPER:.2f} for MNIST",
        highlight=False,
        soft_wrap=True,
    )
    if resumed:
        console.print(f"going on from {args.checkpoint}\n{said(run.curve[-1], D)}", highlight=False, soft_wrap=True)
    try:
        train(run, data, args, console)
    except KeyboardInterrupt:
        if not args.checkpoint.exists():
            console.print("interrupted before the first checkpoint")
            return
        load_run(args.checkpoint, run, settings(data, args))
        console.print(f"interrupted: epoch {run.curve[-1].epoch} is kept; the same command goes on from it")
    except (FloatingPointError, OSError, SafetensorError) as error:
        parser.exit(1, f"nice_mnist: {error}\n")
    console.print(f"checkpoint: {args.checkpoint}", soft_wrap=True)
    draw(run, data, args, console)


if __name__ == "__main__":
    main()

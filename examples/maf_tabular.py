"""Trains a masked autoregressive flow and an autoregressive neural spline flow on tables, and times their samples.
`--models all` trains a flow of every map, of equal depth and for as many epochs: which map should one take?

By default on two data sets of scikit-learn, or on every .npy, .csv or .parquet file that is given: rows of numbers,
one column per feature. Per table and model: standardises, splits into training, validation and test rows, trains until
the validation rows get no better, reports the log-likelihood of the test rows in nats, in the units of the data given
(a column in metres instead of millimetres adds log 1000), writes a checkpoint and a pair plot, and times samples
beside nflows and zuko. Digits are whole numbers, so they get uniform noise, without which no density exists; columns
of a file that hold few distinct values want the same.

How times are measured: in this process, turn by turn, after a warm-up; the table gives the median of the calls. All
are processor times, which a busy machine disturbs less: with `--threads 1` as long as by a clock, with more the sum.
The peers need one pass of every network per feature, so they draw fewer points, and the ratio is of the time per point.
Of more than two models, a last table has test nats, training and sampling beside each other, and a picture of them.
"""

from __future__ import annotations

import argparse
import copy
import csv
import importlib
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import common
import matplotlib.pyplot as plt
import numpy as np
import torch
from common import new_console, positive
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_breast_cancer, load_digits
from tabular_flows import BINS, KINDS, LAYERS, TAIL_BOUND, new_flow
from torch import Tensor

from flowkernels import compat, nets
from flowkernels.flows import Flow
from flowkernels.training import Epoch, fit

BATCH, LEARNING_RATE = 256, 1e-3
FEWEST_ROWS, REPEATS = 30, 3
PEERS = ("maf", "nsf")  # the models that other libraries have too
COLOURS = ("#d95f02", "#1b6ca8")

# ---- data ----


class Data(NamedTuple):
    name: str
    columns: list[str]
    rows: Tensor  # [N, D], in the units given


def built_in(generator: torch.Generator) -> list[Data]:
    digits, cancer = load_digits(), load_breast_cancer()
    pixels = torch.from_numpy(digits.data)
    noisy = pixels + torch.rand(pixels.shape, generator=generator, dtype=pixels.dtype)
    return [
        Data("digits", list(digits.feature_names), noisy),
        Data("breast_cancer", list(cancer.feature_names), torch.from_numpy(cancer.data)),
    ]


def read(path: Path) -> Data:
    readers = {".npy": read_npy, ".csv": read_csv, ".parquet": read_parquet}
    if path.suffix not in readers:
        raise ValueError(f"{path}: must be one of {', '.join(readers)}, got {path.suffix or 'no suffix'}")
    columns, rows = readers[path.suffix](path)
    return Data(path.stem, columns, torch.from_numpy(rows))


def read_npy(path: Path) -> tuple[list[str], np.ndarray]:
    rows = np.load(path, allow_pickle=False)
    if rows.ndim != 2 or rows.dtype.kind not in "fiub":
        raise ValueError(f"{path}: must be numbers [rows, features], got {rows.dtype} {list(rows.shape)}")
    return [f"column {i}" for i in range(rows.shape[1])], rows.astype(np.float64)


def read_csv(path: Path) -> tuple[list[str], np.ndarray]:
    """The first line may be names; an empty cell is a missing value."""
    with path.open(newline="") as file:
        lines = [line for line in csv.reader(file) if line]
    if not lines:
        raise ValueError(f"{path}: must have lines of numbers, got none")
    columns = [f"column {i}" for i in range(len(lines[0]))]
    try:
        [float(cell or "nan") for cell in lines[0]]
    except ValueError:
        columns = lines.pop(0)
    rows = np.empty((len(lines), len(columns)))
    for i, line in enumerate(lines):
        try:
            rows[i] = [float(cell or "nan") for cell in line]
        except ValueError as error:
            raise ValueError(f"{path}: row {i + 1} must be {len(columns)} numbers, got {','.join(line)}") from error
    return columns, rows


def read_parquet(path: Path) -> tuple[list[str], np.ndarray]:
    try:
        frame = importlib.import_module("pandas").read_parquet(path)
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise ImportError(f"{path}: reading parquet takes pandas and pyarrow, got: {reason}") from error
    try:
        return [str(c) for c in frame.columns], frame.to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: columns must be numbers, got {dict(frame.dtypes)}") from error


class Split(NamedTuple):
    """Standardised by the training rows: z = (x - mean) / std."""

    train: Tensor
    validation: Tensor
    test: Tensor
    mean: Tensor
    std: Tensor

    @property
    def log_units(self) -> float:
        """What to subtract from a log-density of z to get that of x."""
        return self.std.log().sum().item()


def clean(data: Data, console: Console) -> Data:
    """Without what no density has: rows with missing values, columns of one value."""
    whole = data.rows.isfinite().all(1)
    if not whole.all():
        console.print(f"{data.name}: left out {int((~whole).sum())} rows with missing or infinite values")
    rows = data.rows[whole]
    if len(rows) < FEWEST_ROWS:
        raise ValueError(f"{data.name}: must have {FEWEST_ROWS} rows of finite numbers or more, got {len(rows)}")
    varies = (rows != rows[0]).any(0)
    if not varies.any():
        raise ValueError(f"{data.name}: must have a column that varies, got {len(varies)} of one value each")
    names = [name for name, keep in zip(data.columns, varies.tolist(), strict=True) if keep]
    if len(names) < len(varies):
        console.print(f"{data.name}: left out {len(varies) - len(names)} columns that hold one value only")
    return Data(data.name, names, rows[:, varies])


def split(rows: Tensor, generator: torch.Generator) -> Split:
    """8 : 1 : 1, in random order."""
    rows = rows[torch.randperm(len(rows), generator=generator)]
    tenth = len(rows) // 10
    parts = rows[2 * tenth :], rows[tenth : 2 * tenth], rows[:tenth]
    std, mean = torch.std_mean(parts[0], dim=0)
    std = torch.where(std > 0, std, torch.ones_like(std))  # a column that varies in other rows only
    return Split(*(((part - mean) / std).float() for part in parts), mean, std)


# ---- models ----


def same_in_nflows(kind: str, flow: Flow, args: argparse.Namespace) -> Any:
    """An nflows model with the weights and the masks of ours.

    Every second layer of ours sees the features in reverse. nflows turns the features round instead; the rows and
    columns of the weights follow.
    """
    transforms = importlib.import_module("nflows.transforms")
    theirs_linear = importlib.import_module("nflows.transforms.made").MaskedLinear
    D, layers = flow.base.features, []
    for i, ours in enumerate(flow.transform.transforms):
        settings = {"features": D, "hidden_features": args.hidden}
        if kind == "maf":
            theirs = transforms.MaskedAffineAutoregressiveTransform(
                **settings, num_blocks=LAYERS - 1, use_residual_blocks=False
            )
        else:
            theirs = transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                **settings, num_blocks=LAYERS, num_bins=BINS, tails="linear", tail_bound=TAIL_BOUND
            )
        net = ours.conditioner
        linears = [m for m in net.modules() if isinstance(m, nets.MaskedLinear)]
        copies = [m for m in theirs.modules() if isinstance(m, theirs_linear)]
        for j, (source, target, plan) in enumerate(zip(linears, copies, net.plan.layers, strict=True)):
            weight, bias, mask = source.weight, source.bias, plan.mask(source.weight)
            if i % 2 and j == 0:
                weight, mask = weight.flip(1), mask.flip(1)
            if i % 2 and j == len(linears) - 1:
                weight, bias, mask = (t.unflatten(0, (D, -1)).flip(0).flatten(0, 1) for t in (weight, bias, mask))
            elif j < len(linears) - 1:
                target.degrees.copy_(plan.degrees_out)
            with torch.no_grad():
                for to, value in ((target.weight, weight), (target.bias, bias), (target.mask, mask)):
                    to.copy_(value)
        layers += [theirs, transforms.ReversePermutation(D)]
    base = importlib.import_module("nflows.distributions").StandardNormal([D])
    flow_class = importlib.import_module("nflows.flows").Flow
    return flow_class(transforms.CompositeTransform(layers), base)


def alike_in_zuko(kind: str, features: int, args: argparse.Namespace) -> Any:
    """A fresh zuko model of the same sizes."""
    flows = importlib.import_module("zuko.flows")
    sizes = {"features": features, "transforms": args.transforms, "hidden_features": (args.hidden,) * LAYERS}
    return flows.MAF(**sizes) if kind == "maf" else flows.NSF(**sizes, bins=BINS, residual=True)


# ---- training ----


@torch.no_grad()
def log_likelihoods(flow: Flow, z: Tensor) -> Tensor:
    """Of standardised rows, in nats."""
    return torch.cat([flow.log_prob(part) for part in z.split(4096)])


def train(flow: Flow, data: Split, args: argparse.Namespace, console: Console) -> int:
    """Until `patience` epochs bring the validation rows nothing; the flow keeps its best weights. Returns epochs."""
    columns = (
        TextColumn("  training"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"), TimeRemainingColumn(),
        TextColumn("validation {task.fields[now]} nats, best {task.fields[best]}"),
    )  # fmt: skip
    best = -math.inf
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=args.epochs, now="", best="")

        def show(epoch: Epoch) -> None:
            nonlocal best
            now = -epoch.validation - data.log_units
            best = max(best, now)
            progress.update(task, completed=epoch.epoch, now=f"{now:.3f}", best=f"{best:.3f}")

        try:
            fit(
                flow, data.train, validation=data.validation, epochs=args.epochs, patience=args.patience,
                batch_size=BATCH, lr=LEARNING_RATE, schedule=None, seed=args.seed, progress=show,
            )  # fmt: skip
        except FloatingPointError as error:  # of one model, which keeps the weights of the epoch before
            console.print(f"  {error}", style="red")
    return int(progress.tasks[task].completed)


def normal_density(data: Split) -> Tensor:
    """Log-likelihoods of the test rows under one normal with all covariances: what a flow has to beat."""
    z = data.train.double()
    covariance = z.T.cov().reshape(z.shape[1], z.shape[1]) + 1e-6 * torch.eye(z.shape[1], dtype=z.dtype)
    return torch.distributions.MultivariateNormal(z.mean(0), covariance).log_prob(data.test.double())


# ---- checkpoints ----


def save(folder: Path, name: str, flow: Flow, data: Split, settings: dict[str, Any]) -> Path:
    """Weights, scales and settings."""
    path = folder / f"{name}.safetensors"
    tensors = {"data.mean": data.mean, "data.std": data.std, **flow.state_dict()}
    common.save(path, tensors, {"settings": json.dumps(settings)})
    return path


# ---- timing ----


class Sampler(NamedTuple):
    name: str
    points: int
    draw: Callable[[int], object]


def samplers(
    kind: str, flow: Flow, data: Split, args: argparse.Namespace, console: Console
) -> Iterator[tuple[Sampler, str]]:
    """Ours and the peers that are installed, each with what to say about it."""
    yield Sampler("flowkernels", args.samples, flow.sample), ""
    if kind not in PEERS:
        return
    if args.peer_samples != args.samples:  # beside the peers at their own batch size
        yield Sampler("flowkernels", args.peer_samples, flow.sample), ""
    try:
        theirs = same_in_nflows(kind, flow, args)
    except ImportError:
        console.print("  nflows is not installed: skipped")
    else:
        gap = (log_likelihoods(theirs, data.test) - log_likelihoods(flow, data.test)).abs().max()
        fast = copy.deepcopy(theirs)
        compat.accelerate(fast)
        yield (
            Sampler("nflows, accelerated", args.samples, fast.sample),
            "nflows: the weights of the trained model",
        )
        yield (
            Sampler("nflows", args.peer_samples, theirs.sample),
            f"log_prob of test rows within {gap:.1e} nats of ours",
        )
    try:
        peer = alike_in_zuko(kind, data.test.shape[1], args)
    except ImportError:
        console.print("  zuko is not installed: skipped")
    else:
        yield Sampler("zuko", args.peer_samples, lambda n: peer().sample((n,))), "zuko: new weights, equal sizes"


@torch.no_grad()
def median_seconds(found: list[Sampler]) -> list[float]:
    for sampler in found:
        sampler.draw(2)
    times: list[list[float]] = [[] for _ in found]
    for _ in range(REPEATS):
        for sampler, seconds in zip(found, times, strict=True):
            start = time.process_time()
            sampler.draw(sampler.points)
            seconds.append(time.process_time() - start)
    return [statistics.median(t) for t in times]


def show_times(kind: str, flow: Flow, data: Split, args: argparse.Namespace, console: Console) -> float:
    """Returns our seconds for a point."""
    found, notes = zip(*samplers(kind, flow, data, args, console), strict=True)
    seconds = median_seconds(list(found))
    D = data.test.shape[1]
    table = Table(title=f"sampling the {KINDS[kind].title}, {D} features, threads: {torch.get_num_threads()}", width=80)
    for heading in ("", "points", "time, s", "µs per point", "times ours"):
        table.add_column(heading, justify="right" if heading else "left")
    ours = seconds[0] / found[0].points
    for sampler, s in zip(found, seconds, strict=True):
        each = s / sampler.points
        table.add_row(sampler.name, f"{sampler.points:,}", f"{s:.3f}", f"{1e6 * each:.1f}", f"{each / ours:.1f}")
    table.caption = "; ".join([f"median of {REPEATS} calls; the ratio is of times per point", *filter(None, notes)])
    console.print(table)
    return ours


# ---- the pictures ----


def worth_seeing(rows: Tensor, most: int = 4) -> list[int]:
    """The columns that the others say most about, without near copies of one chosen already."""
    correlation = rows.T.corrcoef().reshape(rows.shape[1], -1).abs()
    chosen: list[int] = []
    for i in correlation.square().sum(0).argsort(descending=True).tolist():
        if len(chosen) < most and all(correlation[i, j] < 0.9 for j in chosen):
            chosen.append(i)
    return chosen


def draw_pairs(path: Path, data: Data, samples: Tensor, title: str) -> None:
    """Data below the diagonal, samples above it, both in it."""
    chosen = worth_seeing(data.rows)
    n = min(len(data.rows), len(samples), 1000)
    size = 2.1 * len(chosen) + 0.6
    figure, axes = plt.subplots(
        len(chosen), len(chosen), figsize=(size, size), squeeze=False, sharex="col", layout="constrained"
    )
    low, high = torch.quantile(data.rows[:, chosen], torch.tensor([0.005, 0.995], dtype=data.rows.dtype), dim=0)
    pad = 0.1 * (high - low) + 1e-12
    limits = torch.stack((low - pad, high + pad), 1).tolist()
    for row, i in enumerate(chosen):
        for column, j in enumerate(chosen):
            ax = axes[row, column]
            ax.set_xlim(limits[column])
            if row == column:
                bins = np.linspace(*limits[row], 40)
                for points, colour in ((data.rows, COLOURS[0]), (samples, COLOURS[1])):
                    ax.hist(points[:, i].numpy(), bins, density=True, histtype="step", color=colour, linewidth=1.4)
                ax.set_yticks([])
            else:
                points, colour = (data.rows, COLOURS[0]) if row > column else (samples, COLOURS[1])
                ax.plot(points[:n, j].numpy(), points[:n, i].numpy(), ".", color=colour, markersize=2.5, alpha=0.4)
                ax.set_ylim(limits[row])
            ax.spines[["top", "right"]].set_visible(False)
            ax.tick_params(labelsize=7)
            if row == len(chosen) - 1:
                ax.set_xlabel(data.columns[j], fontsize=9)
            if column == 0:
                ax.set_ylabel(data.columns[i], fontsize=9)
    figure.suptitle(f"{title}: data (orange, lower left) and samples (blue, upper right)", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


class Found(NamedTuple):
    """What one model came to."""

    title: str
    values: Tensor  # log-likelihoods of the test rows, standardised
    epochs: int = 0
    seconds: float = 0.0  # of training
    per_point: float = 0.0  # seconds
    parameters: int = 0


def show_maps(found: list[Found], data: Data, parts: Split, path: Path, console: Console) -> None:
    """All models of one table beside each other, and their picture."""
    table = Table(title=f"{data.name}: the maps beside each other, threads: {torch.get_num_threads()}")
    headings = (
        "",
        "nats per row",
        "± std. error",
        "parameters",
        "epochs",
        "training, s",
        "s per epoch",
        "µs per sample",
    )
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left", no_wrap=not heading)
    for f in found:
        error, each = f.values.std().item() / len(f.values) ** 0.5, f.seconds / max(f.epochs, 1)
        table.add_row(
            f.title, f"{f.values.mean().item() - parts.log_units:.3f}", f"{error:.3f}", f"{f.parameters:,}",
            str(f.epochs), f"{f.seconds:.1f}", f"{each:.2f}", f"{1e6 * f.per_point:.1f}",
        )  # fmt: skip
    console.print(table)
    panels = (
        ("test nats per row above a normal density", [(f.values - found[0].values).mean().item() for f in found[1:]]),
        ("training, seconds an epoch", [f.seconds / max(f.epochs, 1) for f in found[1:]]),
        ("sampling, µs a point", [1e6 * f.per_point for f in found[1:]]),
    )
    figure, axes = plt.subplots(1, 3, figsize=(11, 0.4 * len(found) + 1.2), sharey=True, layout="constrained")
    for ax, (title, values), colour in zip(axes, panels, (COLOURS[1], COLOURS[0], COLOURS[0]), strict=True):
        bars = ax.barh([f.title for f in found[1:]], values, color=colour, height=0.6)
        ax.bar_label(bars, [f"{v:.3g}" for v in values], padding=3, fontsize=8)
        if colour == COLOURS[0]:
            ax.set_xscale("log")
            ax.margins(x=0.3)
        else:
            ax.margins(x=0.15)
        ax.set_title(title, fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    axes[0].invert_yaxis()
    figure.suptitle(f"{data.name}: {len(data.columns)} features", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    console.print(f"  picture of the maps: {path}", soft_wrap=True)


# ---- the story ----


def run(data: Data, args: argparse.Namespace, console: Console) -> None:
    parts = split(data.rows, torch.Generator().manual_seed(args.seed))
    sizes = " / ".join(f"{len(p):,}" for p in parts[:3])
    console.rule(f"{data.name}: {len(data.columns)} features, rows {sizes}")
    found = [Found("normal density", normal_density(parts))]
    for kind in args.models:
        torch.manual_seed(args.seed)
        flow = new_flow(kind, len(data.columns), args)
        parameters = sum(p.numel() for p in flow.parameters())
        console.print(f"{KINDS[kind].title}, {parameters:,} parameters")
        start = time.process_time()
        epochs = train(flow, parts, args, console)
        seconds = time.process_time() - start
        settings = {
            "model": kind,
            "features": len(data.columns),
            "columns": data.columns,
            "transforms": args.transforms,
        }
        settings |= {"hidden": args.hidden, "layers": LAYERS, "bins": BINS, "tail_bound": TAIL_BOUND}
        name = f"{data.name}_{kind}"
        console.print(f"  checkpoint: {save(args.out, name, flow, parts, settings)}", soft_wrap=True)
        picture = args.out / f"{name}.png"
        samples = flow.sample(min(args.samples, 2000)).double() * parts.std + parts.mean
        draw_pairs(picture, data, samples, f"{data.name}, {KINDS[kind].title}")
        console.print(f"  pair plot: {picture}", soft_wrap=True)
        per_point = show_times(kind, flow, parts, args, console)
        values = log_likelihoods(flow, parts.test)
        found.append(Found(KINDS[kind].title, values, epochs, seconds, per_point, parameters))
    if len(args.models) > 2:
        show_maps(found, data, parts, args.out / f"{data.name}_maps.png", console)
        return
    table = Table(title=f"{data.name}: log-likelihood of {len(parts.test):,} test rows", width=80)
    for heading in ("", "nats per row", "± standard error", "training"):
        table.add_column(heading, justify="right" if heading else "left")
    for f in found:
        error, note = f.values.std().item() / len(f.values) ** 0.5, f"{f.epochs} epochs, {f.seconds:.1f} s"
        table.add_row(
            f.title, f"{f.values.mean().item() - parts.log_units:.3f}", f"{error:.3f}", note if f.epochs else ""
        )
    table.caption = "in the units of the data given; higher is better"
    console.print(table)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("files", nargs="*", type=Path, help=".npy, .csv or .parquet (default: digits, breast cancer)")
    parser.add_argument(
        "--models", nargs="+", choices=[*KINDS, "all"], default=list(PEERS), help=f"default: {' '.join(PEERS)}"
    )
    parser.add_argument("--epochs", type=positive, default=200, help="at most (default: 200); Ctrl-C stops early")
    parser.add_argument(
        "--patience", type=positive, default=15, help="epochs without a better validation (default: 15)"
    )
    parser.add_argument("--transforms", type=positive, default=5, help="layers of the flow (default: 5)")
    parser.add_argument("--hidden", type=positive, default=128, help="width of the networks (default: 128)")
    parser.add_argument("--samples", type=positive, default=10_000, help="points that ours draws (default: 10000)")
    parser.add_argument("--peer-samples", type=positive, default=1_000, help="points that peers draw (default: 1000)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of what is written (default: out)")
    parser.add_argument(
        "--threads", type=positive, help="threads of torch and of flowkernels (default: torch's choice)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split, the noise and the weights (default: 0)")
    parser.add_argument("--quick", action="store_true", help="tiny models, two epochs, few samples: seconds")
    args = parser.parse_args(argv)
    if "all" in args.models:
        args.models = list(KINDS)
    if args.quick:
        args.epochs, args.transforms, args.hidden = 2, 2, 32
        args.samples, args.peer_samples = min(args.samples, 500), min(args.peer_samples, 50)
    if args.threads:
        torch.set_num_threads(args.threads)

    console = new_console()
    try:
        tables = [read(path) for path in args.files] or built_in(torch.Generator().manual_seed(args.seed))
        tables = [clean(data, console) for data in tables]
        args.out.mkdir(parents=True, exist_ok=True)
    except (ImportError, OSError, ValueError) as error:  # of what was given; a bug elsewhere keeps its traceback
        parser.exit(2, f"maf_tabular: {error}\n")
    for data in tables:
        run(data, args, console)


if __name__ == "__main__":
    main()

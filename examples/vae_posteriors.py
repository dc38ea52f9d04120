"""Trains a variational autoencoder with four posteriors: diagonal, planar, Sylvester, inverse autoregressive.

The comparison of the Sylvester paper (van den Berg et al. 2018), on a budget of minutes: the same small networks, steps
and learning rate for every posterior, from three seeds. By default on scikit-learn's digits (8 x 8, levels 0 ... 16),
with `--data FOLDER` on MNIST, both binarized by a new draw whenever they are seen, and with `--faces FILE` on the Frey
faces (a .npz whose array `faces` is uint8 [1965, 28, 20]) with all of their 256 levels.

The encoder makes a code of an image; the posterior is a flow with that code as its context: a normal base whose mean
and deviation it sets and, but for the diagonal one, layers whose every parameter it sets too (planar, Sylvester) or
whose network sees it (IAF). Pixels are Bernoulli, or logistic distributions cut into whole levels.

What is reported, of test images that choose nothing, in nats per image: the ELBO, and the importance-weighted bound
(IWAE) of many particles, which is nearer to log p(x); mean and deviation over the seeds. Validation images choose the
epoch. Writes a picture: both bounds, and samples of each model. Every model is trained with a checkpoint of its own in
the folder of `--out`: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from common import new_console, positive, positive_number, read_mnist, sheet
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

from flowkernels.distributions import DiagonalNormal
from flowkernels.flows import IAF, Flow, Planar, Sylvester
from flowkernels.objectives import elbo, iwae
from flowkernels.training import Epoch, fit
from flowkernels.transforms import Permutation

POSTERIORS = ("diagonal", "planar", "Sylvester", "IAF")
COLOURS = ("#777777", "#d95f02", "#1b6ca8", "#1b9e77")
BATCH, SPLIT_SEED, TEST_SEED = 100, 0, 1 << 40

# ---- data ----


class Images(NamedTuple):
    """``[N, pixels]`` in 0 ... levels - 1; of two levels what is between them is the probability of the higher one."""

    name: str
    train: Tensor
    validation: Tensor
    test: Tensor
    shape: tuple[int, int]
    levels: int


def split(name: str, images: Tensor, held_out: int, levels: int) -> Images:
    """Two lots held out: the first chooses epochs, the second is the test."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    parts = images[order].flatten(1).split([len(images) - 2 * held_out, held_out, held_out])
    height, width = images.shape[1:]
    return Images(name, *parts, (height, width), levels)


def small_digits() -> Images:
    return split("scikit-learn's digits", torch.from_numpy(load_digits().images).float() / 16, 250, 2)


def mnist(folder: Path) -> Images:
    train, test = (read_mnist(folder, part)[0].float() / 255 for part in ("train", "t10k"))
    found = split("MNIST", train, len(train) // 12, 2)
    return found._replace(train=torch.cat([found.train, found.validation]), validation=found.test, test=test.flatten(1))


def frey_faces(file: Path) -> Images:
    with np.load(file, allow_pickle=False) as arrays:
        if "faces" not in arrays:
            raise ValueError(f"{file}: must hold an array named faces, got {sorted(arrays)}")
        faces = torch.from_numpy(arrays["faces"])
    if faces.dtype != torch.uint8 or faces.dim() != 3:
        raise ValueError(f"{file}: faces must be uint8 [N, H, W], got {faces.dtype} {list(faces.shape)}")
    return split("Frey faces", faces.float(), len(faces) // 10, 256)


# ---- the model ----


def network(*sizes: int) -> nn.Sequential:
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ELU())]
    return nn.Sequential(*layers[:-1])


class Encoder(nn.Module):
    """Pixels → code, from 0 ... levels - 1 to about the unit size first."""

    def __init__(self, pixels: int, levels: int, hidden: int, code: int) -> None:
        super().__init__()
        self.top, self.net = levels - 1, nn.Sequential(network(pixels, hidden, hidden, code), nn.ELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(2 * x / self.top - 1)


def posterior(kind: str, latent: int, code: int, encoder: nn.Module) -> Flow:
    """q(z given x): the encoder's code is the context of the base and of every layer."""
    base = DiagonalNormal(latent, context=code)
    if kind == "planar":
        return Planar(latent, code, transforms=10, base=base, embedding=encoder)
    if kind == "Sylvester":
        return Sylvester(latent, code, transforms=4, width=latent, reflections=8, base=base, embedding=encoder)
    if kind == "IAF":
        return IAF(latent, code, transforms=4, hidden=(4 * latent,), base=base, embedding=encoder)
    return Flow(Permutation.reverse(latent), base, encoder, context_to_base=True)


class VAE(Flow):
    """A posterior beside a decoder. ``log_prob`` of images is a draw of the ELBO, in nats: what `fit` climbs."""

    def __init__(self, q: Flow, latent: int, images: Images, hidden: int) -> None:
        super().__init__(q.transform, q.base, q.embedding, context_to_base=q.context_to_base)
        self.latent, self.levels, pixels = latent, images.levels, images.train.shape[1]
        self.pixels, self.decoder = pixels, network(latent, hidden, hidden, pixels * min(self.levels - 1, 2))

    @property
    def event_shape(self) -> torch.Size:
        return torch.Size([self.pixels])

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = self.seen(x)
        return elbo(self, functools.partial(self.log_joint, x), context=x).value

    def bound(self, x: Tensor, particles: int) -> Tensor:
        return iwae(self, functools.partial(self.log_joint, x), particles, context=x).value

    def seen(self, x: Tensor) -> Tensor:
        """Binary pixels are drawn anew; what is 0 or 1 already stays."""
        return torch.bernoulli(x) if self.levels == 2 else x

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x given z) + log p(z), z standard normal."""
        log_prior = -0.5 * (z.square() + np.log(2 * np.pi)).sum(-1)
        said = self.decoder(z)
        if self.levels == 2:
            return log_prior - F.binary_cross_entropy_with_logits(said, x.expand_as(said), reduction="none").sum(-1)
        return log_prior + self._levels(x, said).sum(-1)

    def _levels(self, x: Tensor, said: Tensor) -> Tensor:
        """log of sigma(b) - sigma(a) = sigma(b) sigma(-a) (1 - e^(a - b)): a logistic's share between k -/+ 1/2."""
        mean, log_scale = said.chunk(2, -1)
        scale, top = (log_scale - 3).exp(), self.levels - 1
        k = 2 * x / top - 1
        low, high = (k - 1 / top - mean.tanh()) / scale, (k + 1 / top - mean.tanh()) / scale
        below, above = F.logsigmoid(high), F.logsigmoid(-low)
        inner = below + above + torch.log(-torch.expm1(low - high))
        return torch.where(x == 0, below, torch.where(x == top, above, inner))

    @torch.no_grad()
    def images(self, n: int) -> Tensor:
        """Means of pixels of n draws of the prior, 0 ... 1."""
        said = self.decoder(torch.randn(n, self.latent))
        return said.sigmoid() if self.levels == 2 else (said.chunk(2, -1)[0].tanh() + 1) / 2


# ---- training ----


class Trained(NamedTuple):
    kind: str
    model: VAE
    elbo: float  # of the test images, as is the next
    iwae: float
    seconds: float


@torch.no_grad()
def test(model: VAE, images: Images, particles: int) -> tuple[float, float]:
    """The mean over test images of both bounds: one binarization, the same for every model."""
    model.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(TEST_SEED)
        x = model.seen(images.test)
        draws = torch.stack([model.log_prob(x) for _ in range(20)])
        bounds = torch.cat([model.bound(part, particles) for part in x.split(max(1, 20_000 // particles))])
    return draws.double().mean().item(), bounds.double().mean().item()


def train(kind: str, images: Images, seed: int, args: argparse.Namespace, progress: Progress) -> Trained:
    torch.manual_seed(seed)
    encoder = Encoder(images.train.shape[1], images.levels, args.hidden, args.hidden)
    model = VAE(posterior(kind, args.latent, args.hidden, encoder), args.latent, images, args.hidden)
    task = progress.add_task(f"{kind}, seed {seed}", total=args.epochs, bound="")

    def show(epoch: Epoch) -> None:
        progress.update(task, completed=epoch.epoch, bound=f"{-epoch.validation:.1f}")

    start = time.perf_counter()
    name = f"vae_{images.name.split()[0]}_{kind}_{seed}_{args.latent}_{args.hidden}.safetensors"
    found = fit(
        model, images.train, validation=images.validation, epochs=args.epochs, batch_size=BATCH, lr=args.lr,
        patience=None, seed=seed, checkpoint=args.out / name, progress=show,
    )  # fmt: skip
    progress.remove_task(task)
    if found.stopped == "interrupted":
        raise KeyboardInterrupt
    seconds = time.perf_counter() - start
    return Trained(kind, model, *test(model, images, args.particles), seconds)


# ---- what is shown ----


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and deviation over the seeds; of one there is no deviation."""
    t = torch.tensor(values, dtype=torch.float64)
    return t.mean().item(), t.std().item() if len(t) > 1 else 0.0


def by_kind(found: list[Trained]) -> dict[str, list[Trained]]:
    return {kind: runs for kind in POSTERIORS if (runs := [t for t in found if t.kind == kind])}


def show(console: Console, images: Images, found: list[Trained], args: argparse.Namespace) -> None:
    table = Table(title=f"{images.name}: {len(images.test):,} test images, nats per image, higher is better", width=88)
    for heading in ("posterior", "parameters", "seeds", "ELBO", "IWAE", "training, s"):
        table.add_column(heading, justify="left" if heading == "posterior" else "right")
    for kind, runs in by_kind(found).items():
        size = sum(p.numel() for p in runs[0].model.parameters())
        bounds = ("{:.2f} ± {:.2f}".format(*spread(v)) for v in ([t.elbo for t in runs], [t.iwae for t in runs]))
        seconds = sum(t.seconds for t in runs) / len(runs)
        table.add_row(kind, f"{size:,}", str(len(runs)), *bounds, f"{seconds:.1f}")
    table.caption = f"mean ± deviation of the seeds; IWAE of {args.particles} particles; {args.epochs} epochs"
    console.print(table)


def draw(path: Path, images: Images, found: list[Trained]) -> None:
    kinds = by_kind(found)
    figure, axes = plt.subplots(1, 1 + len(kinds), figsize=(3.2 * (1 + len(kinds)), 3.6), layout="constrained")
    ax, *sheets = axes
    for i, (kind, runs) in enumerate(kinds.items()):
        colour = COLOURS[POSTERIORS.index(kind)]
        for values, marker in (([t.elbo for t in runs], "o"), ([t.iwae for t in runs], "s")):
            mean, deviation = spread(values)
            ax.errorbar([i], [mean], yerr=[deviation], marker=marker, color=colour, capsize=4)
    ax.set_xticks(range(len(kinds)), list(kinds))
    ax.set(ylabel="nats per test image", title=f"{images.name}: ELBO (o), IWAE (square)")
    ax.spines[["top", "right"]].set_visible(False)
    for ax, (kind, runs) in zip(sheets, kinds.items(), strict=True):
        torch.manual_seed(TEST_SEED)
        drawn = runs[0].model.images(36).view(-1, *images.shape)
        light = drawn if images.levels == 2 else 1 - drawn  # ink is dark, faces are light
        ax.imshow(sheet(light, 6), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ax.set(xticks=[], yticks=[], title=kind)
    figure.savefig(path, dpi=120)
    plt.close(figure)


# ---- the story ----


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--data", type=Path, help="folder of the four MNIST files (default: scikit-learn's digits)")
    data.add_argument("--faces", type=Path, help="the Frey faces, a .npz file")
    parser.add_argument("--epochs", type=positive, default=100, help="passes over the data (default: 100)")
    parser.add_argument("--seeds", type=positive, default=3, help="runs of every model (default: 3)")
    parser.add_argument("--posteriors", nargs="+", choices=POSTERIORS, default=list(POSTERIORS), help="default: all")
    parser.add_argument("--latent", type=positive, default=16, help="dimensions of the latent (default: 16)")
    parser.add_argument("--hidden", type=positive, default=200, help="units of both networks (default: 200)")
    parser.add_argument("--lr", type=positive_number, default=1e-3, help="learning rate at its highest (default: 1e-3)")
    parser.add_argument("--particles", type=positive, default=500, help="of the second bound (default: 500)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of what is written (default: out)")
    parser.add_argument("--threads", type=positive, default=2, help="of torch and of flowkernels (default: 2)")
    parser.add_argument("--quick", action="store_true", help="tiny models, two epochs, one seed: seconds")
    args = parser.parse_args(argv)
    if args.quick:
        args.epochs, args.seeds, args.latent, args.hidden, args.particles = 2, 1, 4, 16, 10
    torch.set_num_threads(args.threads)
    images = mnist(args.data) if args.data else frey_faces(args.faces) if args.faces else small_digits()
    args.out.mkdir(parents=True, exist_ok=True)
    console, found = new_console(), []
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"),
        TimeRemainingColumn(), TextColumn("validation {task.fields[bound]} nats"),
    )  # fmt: skip
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            for seed in range(args.seeds):
                for kind in args.posteriors:
                    found.append(train(kind, images, seed, args, progress))
                    said = f"{kind}, seed {seed}: ELBO {found[-1].elbo:.2f}, IWAE {found[-1].iwae:.2f}"
                    console.print(said, highlight=False)
    except KeyboardInterrupt:
        console.print("interrupted: the same command goes on from here")
    if found:
        show(console, images, found, args)
        draw(args.out / "vae_posteriors.png", images, found)
        console.print(f"wrote {args.out / 'vae_posteriors.png'}", highlight=False)


if __name__ == "__main__":
    main()

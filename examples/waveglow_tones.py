"""Waveforms given a mel spectrogram: WaveGlow, FloWaveNet and WaveNet on chords that this file makes.

A chord is three notes of some harmonics that die away, at 4 kHz, with a little noise. The condition is what a vocoder
has: the logarithm of a mel spectrogram, which says how loud each band is in each frame of 32 samples, and nothing of
the phases. Each model learns p(waveform given mel) by `fit`, with a progress bar and a checkpoint of its own in the
folder of `--out`: the same command goes on where it was stopped.

What is reported, of test chords, in nats per sample (lower is better, with waveforms scaled to the unit deviation of
all): each model's, those of white noise, and those of a normal distribution with the mean spectrum of the data; and how
long a batch of samples takes, which for WaveNet are drawn one after another. Writes a picture, waveforms and
spectrograms of test chords and of draws given the same mel, and a .wav of each to listen to.
"""

from __future__ import annotations

import argparse
import math
import time
import wave
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from common import new_console, positive, positive_number
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from flowkernels.flows import Flow, FloWaveNet, WaveGlow, WaveNet
from flowkernels.training import Epoch, fit

RATE, HOP, WINDOW, BANDS = 4000, 32, 128, 20
NOISE, BATCH, SHOWN = 0.02, 32, 3
MODELS = ("WaveGlow", "FloWaveNet", "WaveNet")

# ---- data ----


def chords(n: int, length: int, seed: int) -> Tensor:
    """``[n, 1, length]``: three notes of the chromatic scale from 110 to 440 Hz, six harmonics each."""
    draws = torch.Generator().manual_seed(seed)
    notes = 110 * 2 ** (torch.randint(25, (n, 3, 1, 1), generator=draws) / 12)
    number = torch.arange(1, 7).view(6, 1)
    phase = 2 * math.pi * torch.rand(n, 3, 6, 1, generator=draws)
    rate = (2 + 6 * torch.rand(n, 3, 1, 1, generator=draws)) * number**0.5  # high ones die away sooner
    loud = 0.3 + torch.rand(n, 3, 1, 1, generator=draws)
    t = torch.arange(length) / RATE
    waves = loud / number * torch.exp(-rate * t) * torch.sin(2 * math.pi * notes * number * t + phase)
    x = (waves * (notes * number < RATE / 2)).sum((1, 2))
    return (x + NOISE * torch.randn(n, length, generator=draws))[:, None]


def filters() -> Tensor:
    """Triangles evenly spaced in mel, ``[BANDS, WINDOW / 2 + 1]``."""
    top = 2595 * math.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, BANDS + 2) / 2595) - 1)
    hertz = torch.linspace(0, RATE / 2, WINDOW // 2 + 1)
    rise = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rise, fall).clamp_min(0)


def spectrogram(x: Tensor) -> Tensor:
    """Power of ``[n, 1, length]`` in frames, ``[n, WINDOW / 2 + 1, length / HOP]``."""
    window = torch.hann_window(WINDOW)
    found = torch.stft(x[:, 0], WINDOW, HOP, window=window, center=True, pad_mode="constant", return_complex=True)
    return found[..., : x.shape[-1] // HOP].abs().square()


def mel(x: Tensor) -> Tensor:
    """``[n, BANDS, length / HOP]``, of about the unit size."""
    return 0.5 * torch.log(filters() @ spectrogram(x) + 1e-3)


class Chords(NamedTuple):
    """Waveforms beside their mel spectrograms; one factor brings all of them to the unit deviation."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def data(n: int, length: int) -> Chords:
    lots = [chords(size, length, seed) for seed, size in enumerate((n, max(n // 8, 8), max(n // 8, 8)))]
    scale = lots[0].std()
    return Chords(*[(x / scale, mel(x / scale)) for x in lots])


# ---- models ----


def new_flow(kind: str, length: int, hidden: int) -> Flow:
    if kind == "WaveGlow":
        return WaveGlow((1, length), BANDS, hidden=hidden, hop=HOP, seed=0)
    if kind == "FloWaveNet":
        return FloWaveNet((1, length), BANDS, hidden=hidden, hop=HOP)
    return WaveNet((1, length), BANDS, hidden=hidden, layers=8, hop=HOP)


class Trained(NamedTuple):
    kind: str
    flow: Flow
    nats: float  # per sample, of the test chords
    training: float  # seconds, as is the next
    sampling: float
    drawn: Tensor


def train(kind: str, given: Chords, args: argparse.Namespace, progress: Progress) -> Trained:
    torch.manual_seed(args.seed)
    x, frames = given.train
    flow = new_flow(kind, args.length, args.hidden)
    task = progress.add_task(kind, total=args.epochs, nats="")

    def show(epoch: Epoch) -> None:
        progress.update(task, completed=epoch.epoch, nats=f"{epoch.validation / args.length:.3f}")

    start = time.perf_counter()
    name = f"waveglow_tones_{kind}_{len(x)}_{args.length}_{args.hidden}_{args.seed}.safetensors"
    found = fit(
        flow, x, frames, validation=given.validation, epochs=args.epochs, batch_size=BATCH, lr=args.lr, patience=None,
        seed=args.seed, checkpoint=args.out / name, progress=show,
    )  # fmt: skip
    progress.remove_task(task)
    if found.stopped == "interrupted":
        raise KeyboardInterrupt
    training = time.perf_counter() - start
    flow.eval()
    with torch.no_grad():
        nats = -torch.cat([flow.log_prob(*part) for part in zip(*(t.split(BATCH) for t in given.test), strict=True)])
    torch.manual_seed(args.seed)
    start = time.perf_counter()
    drawn = flow.sample(context=given.test[1][:SHOWN], temperature=args.temperature)
    sampling = time.perf_counter() - start
    return Trained(kind, flow, nats.double().mean().item() / args.length, training, sampling, drawn)


def of_white_noise(given: Chords) -> float:
    """Nats per sample of a normal distribution with the deviation of the training chords."""
    v = given.train[0].square().mean()
    return (0.5 * (torch.log(2 * math.pi * v) + given.test[0].square().mean() / v)).item()


def of_mean_spectrum(given: Chords) -> float:
    """The same of one with their mean spectrum, as if a chord began again where it ends."""
    power, x = (torch.fft.fft(part[0].double(), norm="ortho").abs().square() for part in (given.train, given.test))
    v = power.mean((0, 1))
    return (0.5 * (torch.log(2 * math.pi * v) + x / v)).mean().item()


# ---- what is shown ----


def show(console: Console, given: Chords, found: list[Trained]) -> None:
    table = Table(title=f"{len(given.test[0]):,} test chords, nats per sample, lower is better", width=88)
    for heading in ("model", "parameters", "nats", "training, s", f"{SHOWN} samples, s"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    table.add_row("white noise", "", f"{of_white_noise(given):.3f}", "", "")
    table.add_row("normal, mean spectrum", "", f"{of_mean_spectrum(given):.3f}", "", "")
    for t in found:
        size = sum(p.numel() for p in t.flow.parameters())
        table.add_row(t.kind, f"{size:,}", f"{t.nats:.3f}", f"{t.training:.1f}", f"{t.sampling:.2f}")
    console.print(table)


def draw(path: Path, given: Chords, found: list[Trained]) -> None:
    rows = [("data", given.test[0][:SHOWN]), *((t.kind, t.drawn) for t in found)]
    size = (4.2 * SHOWN, 3.0 * len(rows))
    figure, axes = plt.subplots(2 * len(rows), SHOWN, figsize=size, layout="constrained", squeeze=False)
    highest = spectrogram(rows[0][1]).max().log10().item()
    for i, (name, x) in enumerate(rows):
        power = (spectrogram(x) + 1e-9).log10()
        for j in range(SHOWN):
            above, below = axes[2 * i][j], axes[2 * i + 1][j]
            above.plot(x[j, 0].numpy(), linewidth=0.5, color="#1b6ca8" if i else "#222222")
            above.set(xlim=(0, x.shape[-1]), ylim=(-6, 6), xticks=[], yticks=[])
            above.set_title(f"{name}, chord {j + 1}", fontsize=9)
            below.imshow(power[j].numpy(), origin="lower", aspect="auto", cmap="magma", vmin=highest - 5, vmax=highest)
            below.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_sound(path: Path, x: Tensor) -> None:
    """Chords one after another, 16 bits."""
    loud = (x.flatten() / 6).clamp(-1, 1)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((32767 * loud).short().numpy().tobytes())


# ---- the story ----


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS[:1]), help="default: WaveGlow")
    parser.add_argument("--chords", type=positive, default=1024, help="to train on (default: 1024)")
    parser.add_argument("--length", type=positive, default=512, help="samples of each, a multiple of 32 (default: 512)")
    parser.add_argument("--hidden", type=positive, default=48, help="channels of the networks (default: 48)")
    parser.add_argument("--epochs", type=positive, default=20, help="passes over the data (default: 20)")
    parser.add_argument("--lr", type=positive_number, default=2e-3, help="learning rate at its highest (default: 2e-3)")
    parser.add_argument("--temperature", type=positive_number, default=0.8, help="of the draws (default: 0.8)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and draws (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of what is written (default: out)")
    parser.add_argument("--threads", type=positive, default=2, help="of torch and of flowkernels (default: 2)")
    parser.add_argument("--quick", action="store_true", help="tiny models, two epochs: seconds")
    args = parser.parse_args(argv)
    if args.quick:
        args.chords, args.length, args.hidden, args.epochs = 16, 128, 4, 2
    if args.length % HOP:
        parser.error(f"argument --length: must be a multiple of {HOP}, got {args.length}")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    given, console, found = data(args.chords, args.length), new_console(), []
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"),
        TimeRemainingColumn(), TextColumn("validation {task.fields[nats]} nats per sample"),
    )  # fmt: skip
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            for kind in args.models:
                found.append(train(kind, given, args, progress))
                console.print(f"{kind}: {found[-1].nats:.3f} nats per sample", highlight=False)
    except KeyboardInterrupt:
        console.print("interrupted: the same command goes on from here")
    if found:
        show(console, given, found)
        draw(args.out / "waveglow_tones.png", given, found)
        write_sound(args.out / "waveglow_tones_data.wav", given.test[0][:SHOWN])
        for t in found:
            write_sound(args.out / f"waveglow_tones_{t.kind}.wav", t.drawn)
        console.print(f"wrote {args.out / 'waveglow_tones.png'} and .wav files beside it", highlight=False)


if __name__ == "__main__":
    main()

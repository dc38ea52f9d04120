"""What the examples share: arguments, MNIST files, checkpoints, sheets of images."""

from __future__ import annotations

import argparse
import gzip
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor


def positive(text: str) -> int:
    """An argument that is a whole number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def positive_number(text: str) -> float:
    """An argument that is a number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with what every story takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, samples and pictures (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the pictures (default: out)")
    parser.add_argument("--threads", type=positive, default=2, help="of torch and of flowkernels (default: 2)")
    parser.add_argument("--quick", action="store_true", help="few steps and samples: seconds")
    return parser


def begin(given: argparse.Namespace) -> None:
    """Threads, seed and folder as the arguments say."""
    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    given.out.mkdir(parents=True, exist_ok=True)


def new_console() -> Console:
    """As wide as the terminal; in a file, wide enough for every table."""
    found = Console()
    return found if found.is_terminal or "COLUMNS" in os.environ else Console(width=130)


def descend(
    flow: torch.nn.Module, loss: Callable[[], Tensor], steps: int, lr: float, title: str, console: Console
) -> float:
    """So many steps of Adam under a cosine, with clipped gradients and a progress bar; seconds."""
    optimizer = torch.optim.Adam(flow.parameters(), lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    start = time.perf_counter()
    for _ in track(range(steps), title, console=console, transient=True):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    return time.perf_counter() - start


# ---- MNIST ----


def read_mnist(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images ``uint8 [N, H, W]`` and labels ``uint8 [N]`` of ``part``, ``"train"`` or ``"t10k"``.

    The files are the four of MNIST: IDX, as they are or packed by gzip, under their usual names.
    """
    images, labels = (_read_idx(_find(folder, f"{part}-{kind}-ubyte")) for kind in ("images-idx3", "labels-idx1"))
    if images.dim() != 3 or labels.shape != images.shape[:1]:
        given = f"{list(images.shape)} and {list(labels.shape)}"
        raise ValueError(f"{folder}: {part} must be images [N, H, W] and labels [N], got {given}")
    return images, labels


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder}: must hold {name} or {name}.gz, got neither")


def _read_idx(path: Path) -> Tensor:
    """IDX: two zeros, a type (8: bytes), the number of dims, each as four bytes from the highest down, the numbers."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except EOFError as error:
        raise ValueError(f"{path}: must be a whole gzip file, got one that is cut short") from error
    if len(content) < 4 or content[:3] != bytes([0, 0, 8]):
        raise ValueError(f"{path}: must be an IDX file of bytes, got {content[:4].hex()!r} as its first bytes")
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    if len(content) != start + math.prod(shape):
        raise ValueError(f"{path}: must be {start} + {math.prod(shape)} bytes for {shape}, got {len(content)}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[start:].view(shape)


# ---- checkpoints ----


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes safetensors; ``path`` is the old file or the new one, whole, whatever happens meanwhile."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, part, metadata=metadata)
        with part.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut may leave the new name before the new content
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


# ---- pictures ----


def sheet(images: Tensor, columns: int) -> np.ndarray:
    """``[N, H, W]``, 0 … 1, as one sheet of dark ink with light lines between them, row by row."""
    n, height, width = images.shape
    rows = math.ceil(n / columns)
    whole = torch.ones(rows * (height + 1) + 1, columns * (width + 1) + 1)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        whole[top : top + height, left : left + width] = 1 - image.clamp(0, 1)
    return whole.numpy()

"""Loads the examples, and writes data for them."""

from __future__ import annotations

import gzip
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(EXAMPLES))  # where Python looks when it runs the file
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(EXAMPLES))
    return module


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, height: int = 8, width: int = 6, train: int = 60, test: int = 20) -> None:
    """Ten classes of bright squares on a dark ground; two of the four files packed."""
    draws = np.random.default_rng(0)
    folder.mkdir()
    for part, n in (("train", train), ("t10k", test)):
        labels = np.arange(n) % 10
        images = draws.integers(0, 20, (n, height, width))
        for image, label in zip(images, labels, strict=True):
            image[label // 3 : label // 3 + 4, label % 3 : label % 3 + 3] += 180
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))

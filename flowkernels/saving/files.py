"""Files of weights: written whole or not at all, read without trust."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Path = str | os.PathLike[str]


def _safetensors(where: str) -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            f"{where}: safetensors must be installed, got {error} (pip install 'flowkernels[io]', or safetensors alone)"
        ) from error
    return safetensors


def write(where: str, path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes one safetensors file: who reads ``path`` at any moment, of a crash too, finds the old one or this one."""
    data = _safetensors(where).torch.save(tensors, metadata)
    target = os.path.realpath(path)  # a link stays one
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(8)}.tmp")  # in the same folder: a rename is atomic
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if os.name == "posix":  # so that the new name outlives a loss of power too
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def apart(where: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, each with memory of its own, as a file has no views."""
    found, seen = {}, set()
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.is_meta:
            given = "one on the meta device" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{where}: {name} must be a tensor with values, got {given}")
        t = tensor.detach().cpu().contiguous()
        memory = t.untyped_storage().data_ptr()
        found[name] = t.clone() if memory in seen else t
        seen.add(memory)
    return found


def read(where: str, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, on the CPU, and its metadata."""
    safetensors = _safetensors(where)
    with open(path, "rb"):  # the system's own error where there is no such file
        pass
    try:
        with (
            torch.device("cpu"),  # whatever torch.set_default_device says
            safetensors.safe_open(os.fspath(path), framework="pt", device="cpu") as file,
        ):
            # Copies: the file may change later, and kernels see the memory that torch would have allocated.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{where}: path must be a whole safetensors file, got {os.fspath(path)!r} ({error}): truncated, or of "
            "another kind"
        ) from error

"""Flows as files: weights and the way to build the flow in one safetensors file, without pickle."""

from __future__ import annotations

import json
import os
from typing import Any, TypeVar

import torch
from torch import Tensor

from flowkernels._arguments import flag
from flowkernels.flows import Flow

from .description import CannotBuildError, CannotDescribeError, build, describe
from .files import Path, apart, read, write

__all__ = ["FORMAT", "CannotBuildError", "CannotDescribeError", "check_tensors", "load", "save"]

FORMAT = 1  # of the description; a release that changes what is written counts on, and reads the older ones
_FORMAT, _CONFIG, _VERSION = "flowkernels.format", "flowkernels.config", "flowkernels.version"
# What a file may count to, unless it holds as many numbers; float32 does not tell more levels of `Dequantize` apart.
_LARGEST = 2**24

F = TypeVar("F", bound=Flow)


def save(flow: Flow, path: Path, *, config: bool = True) -> None:
    """What `flowkernels.flows.Flow.save` does, where it is documented."""
    where = f"flows.{type(flow).__name__}.save"
    tensors = apart(where, flow.state_dict())
    metadata = {"format": "pt"}  # as other tools expect it of torch's tensors
    if flag(where, "config", config):
        from flowkernels import __version__

        described = json.dumps(describe(flow, where), allow_nan=False)
        metadata |= {_FORMAT: str(FORMAT), _CONFIG: described, _VERSION: __version__}
    write(where, path, tensors, metadata)


def load(path: Path, device: torch.device | str | None = None, *, flow: Flow | None = None) -> Flow:
    """The flow of a file that `flowkernels.flows.Flow.save` wrote: same class, same weights, same numbers.

    With the dtypes, the mode (training or evaluation) and the frozen parameters it was saved with, bit for bit. Nothing
    that a file holds is run or imported: it names classes of one fixed table, and holds tensors.

    Args:
        path: of the file.
        device: where the flow shall be; torch's default device by default.
        flow: one that you built: the weights of the file go into it, where it is, and it is what comes back. For flows
            with modules of your own. Any safetensors file with the weights of its ``state_dict`` will do.

    Raises:
        ValueError: the file is no whole safetensors file, holds no flow, or one in a format or of a class that this
            version does not know; its tensors are not those of the flow; a ``device`` stands beside a ``flow``.
        TypeError: ``flow`` is not a `flowkernels.flows.Flow`.
        ImportError: safetensors is not installed (``pip install 'flowkernels[io]'``).

    Example:
        >>> import os, tempfile, torch, flowkernels
        >>> from flowkernels.flows import NSF
        >>> flow, x = NSF(2, transforms=2, hidden=(16, 16), linear="lu"), torch.randn(5, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "flow.safetensors")
        ...     flow.save(path)
        ...     again = flowkernels.load(path)
        >>> type(again).__name__, torch.equal(again.log_prob(x), flow.log_prob(x))
        ('NSF', True)
    """
    if flow is not None:
        return _load_into(flow, path, device)
    # get_default_device() of torch 2.6 does not see `with torch.device(...)`.
    device = torch.empty(0).device if device is None else torch.device(device)
    tensors, metadata = read("flowkernels.load", path)
    made = _built(path, metadata, max(_LARGEST, sum(t.numel() for t in tensors.values())))
    check_tensors("flowkernels.load", path, tensors, made)
    made.load_state_dict(tensors, strict=True, assign=True)
    for module in made.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:  # one that is not stored, and holds nothing but its dtype
                module._buffers[name] = torch.empty_like(buffer, device="cpu")
    return made.to(device)


def _load_into(flow: F, path: Path, device: object) -> F:
    if not isinstance(flow, Flow):
        raise TypeError(f"flowkernels.load: flow must be a flowkernels.flows.Flow, got {type(flow).__name__}")
    if device is not None:
        raise ValueError(f"flowkernels.load: device must be None beside a flow, which stays where it is, got {device}")
    tensors, _ = read("flowkernels.load", path)
    check_tensors("flowkernels.load", path, tensors, flow)
    flow.load_state_dict(tensors, strict=True)
    return flow


def _built(path: Path, metadata: dict[str, str], largest: int) -> Flow:
    """The flow that the metadata of a file describes, on the meta device."""
    file, version = os.fspath(path), metadata.get(_FORMAT)
    if version is None or _CONFIG not in metadata:
        raise ValueError(
            f"flowkernels.load: path must be a file of flow.save, which says how to build the flow, got {file!r}, "
            "which holds tensors alone (flowkernels.load(path, flow=...) loads them into a flow that you build)"
        )
    by = f"written by flowkernels {metadata.get(_VERSION)!s:.20}"
    if version not in map(str, range(1, FORMAT + 1)):
        raise ValueError(
            f"flowkernels.load: the format of {file!r} must be {FORMAT} at most, got {version:.20} ({by}): a newer "
            "flowkernels reads it"
        )
    try:
        return build(json.loads(metadata[_CONFIG]), largest)
    except (ValueError, RecursionError) as error:
        raise CannotBuildError(
            f"flowkernels.load: the description in {file!r} ({by}) must be of a flow that this version can build: "
            f"{error}"
        ) from error


def check_tensors(where: str, path: Path, tensors: dict[str, Tensor], flow: Flow) -> None:
    """Raises unless the tensors are those of the flow: names, shapes and kinds. Before any is copied."""
    expected = flow.state_dict()
    missing, unexpected = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or unexpected:
        lists = [f"{what} {_some(names)}" for what, names in (("no", missing), ("also", unexpected)) if names]
        raise ValueError(
            f"{where}: the tensors of {os.fspath(path)!r} must be the {len(expected)} of the flow, got "
            f"{' and '.join(lists)}"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{where}: {name} of {os.fspath(path)!r} must be {list(expected[name].shape)}, got {list(tensor.shape)}"
            )
        # Weights may come in any precision; masks and orders in their own type.
        wanted, floating = expected[name].dtype, tensor.is_floating_point() and expected[name].is_floating_point()
        if not floating and tensor.dtype is not wanted:
            raise ValueError(f"{where}: {name} of {os.fspath(path)!r} must be of {wanted}, got {tensor.dtype}")


def _some(names: Any) -> str:
    found = sorted(names)
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")

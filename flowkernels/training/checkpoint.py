"""A training as one safetensors file: written whole or not at all, without pickle."""

from __future__ import annotations

import ctypes
import json
import os
import zlib
from typing import Any

from torch import Tensor

from flowkernels.saving import check_tensors
from flowkernels.saving.files import Path, apart, read, write

from .data import Rows
from .state import State

_WHERE, _KEY, _FORMAT = "training.fit", "flowkernels.training", 1
Contents = tuple[dict[str, Tensor], dict[str, Any]]


def save(path: Path, state: State, settings: dict[str, Any]) -> None:
    """Weights, the best ones where they are others, the state of the optimiser; losses and settings as JSON.

    Learning rates, orders and noise follow from the settings and the number of the epoch.
    """
    tensors = {f"flow.{name}": t for name, t in state.flow.state_dict().items()}
    if state.best_epoch != state.epochs:
        tensors |= {f"best.{name}": t for name, t in state.best.items()}
    for i, of_parameter in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": t for name, t in of_parameter.items()}
    about = {
        "format": _FORMAT, "settings": settings, "train": state.train, "validation": state.validation,
        "best_epoch": state.best_epoch, "seconds": state.seconds,
    }  # fmt: skip
    write(_WHERE, path, apart(_WHERE, tensors), {"format": "pt", _KEY: json.dumps(about, allow_nan=False)})


def contents(path: Path, settings: dict[str, Any]) -> Contents | None:
    """What a file holds, None where there is none; raises where it is of another training."""
    if not os.path.exists(path):
        return None
    tensors, metadata = read(_WHERE, path)
    about = json.loads(metadata.get(_KEY, "{}"))
    if about.get("format") != _FORMAT:
        raise ValueError(
            f"{_WHERE}: checkpoint must be a file of training.fit in format {_FORMAT}, got {os.fspath(path)!r}, which "
            "is none (resume=False writes over it)"
        )
    for name, now in settings.items():
        before = about["settings"].get(name)
        if before != now:
            raise ValueError(
                f"{_WHERE}: {name} must be {before!r:.60} to go on from {os.fspath(path)!r}, got {now!r:.60} "
                "(resume=False starts anew)"
            )
    return tensors, about


def restore(path: Path, state: State, found: Contents) -> None:
    """Puts into ``state`` what a file holds."""
    tensors, about = found
    parts: dict[str, dict[str, Tensor]] = {"flow": {}, "best": {}, "optimizer": {}}
    for name, t in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = t
    check_tensors(_WHERE, path, parts["flow"], state.flow)
    state.flow.load_state_dict(parts["flow"])
    of_parameters: dict[int, dict[str, Tensor]] = {}
    for name, t in parts["optimizer"].items():
        i, _, key = name.partition(".")
        of_parameters.setdefault(int(i), {})[key] = t
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": of_parameters, "param_groups": groups})
    state.train, state.validation = list(about["train"]), list(about["validation"])
    state.best_epoch, state.seconds = about["best_epoch"], about["seconds"]
    state.keep()
    state.best |= {name: t.to(state.best[name].device) for name, t in parts["best"].items()}


def fingerprint(rows: Rows | None) -> list[Any] | None:
    """Shapes, dtypes and a checksum: other data under the same checkpoint are a mistake."""
    return None if rows is None else [[list(t.shape), str(t.dtype), _checksum(t)] for t in rows if t is not None]


def _checksum(t: Tensor) -> int:
    t = t.detach().cpu().contiguous()
    if t.numel() == 0:
        return 0
    # Its memory as it lies; numpy, whose arrays could be read so too, need not be installed.
    return zlib.crc32((ctypes.c_char * t.nbytes).from_address(t.data_ptr()))

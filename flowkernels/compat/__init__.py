"""Makes models of other libraries run on the fused kernels, in place and reversibly: one file per library."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

from torch import nn

from . import swap
from .report import Report, Row

__all__ = ["Report", "accelerate", "accelerated", "restore"]

# Module whose presence in sys.modules means that the user has imported the library → our adapter for it.
# An adapter has `match(module)`: a layer of methods for `swap`, a reason to leave the module alone, or None: not ours.
_ADAPTERS = {"nflows.transforms": "nflows"}


def _adapters() -> tuple[list[ModuleType], list[str]]:
    found, notes = [], []
    for library, name in _ADAPTERS.items():
        if library not in sys.modules:
            continue
        try:
            found.append(importlib.import_module(f"{__name__}.{name}"))
        except ImportError as error:
            notes.append(f"{name} is imported, but its layout is not one that flowkernels knows ({error})")
    if not found and not notes:
        notes.append(f"no supported library is imported (supported: {', '.join(_ADAPTERS.values())})")
    return found, notes


def _accelerate(model: nn.Module) -> tuple[Report, list[nn.Module]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be a torch.nn.Module, got {type(model).__name__}")
    rows, swapped = [], []
    with swap.lock:
        adapters, notes = _adapters()
        for path, module in model.named_modules():
            if swap.is_fast(module):
                rows.append(Row(path, type(module).__name__, ""))
                continue
            layer = next((m for a in adapters if (m := a.match(module)) is not None), None)
            if layer is None:
                continue
            reason = ""
            if isinstance(layer, str):
                reason = layer
            else:
                try:
                    swap.swap(module, layer)
                    swapped.append(module)
                except Exception as error:  # a metaclass or __init_subclass__ of the user's that refuses a subclass
                    reason = f"its class cannot be extended: {error}"
            rows.append(Row(path, type(module).__name__, reason))
    if adapters and not rows:
        notes.append(f"nothing in {type(model).__name__} is of a supported library, so it is unchanged")
    return Report(rows, notes), swapped


def accelerate(model: nn.Module) -> Report:
    """Makes the parts of a model that flowkernels knows run on its kernels, in place.

    The function computed is the same: outputs agree with the original's within its own rounding error. Parameters,
    buffers, `state_dict` keys, hooks, training mode, `repr` and `isinstance` do not change; copies of the model are
    accelerated too, pickles of it are not (they hold the original classes). Calling it again changes nothing.
    Where a layer's inputs lie outside its domain, see `flowkernels.compat.nflows`.

    Args:
        model: any `torch.nn.Module`; its submodules are searched. A module whose class overrides something the fast
            path would bypass is left alone.

    Returns:
        A report of what was accelerated, what was not, and why; it prints as a table.

    Raises:
        TypeError: `model` is not a `torch.nn.Module`. An unknown model is no error: it is returned unchanged.

    Reference:
        Durkan, Bekasov, Murray, Papamakarios: Neural Spline Flows, NeurIPS 2019, arXiv:1906.04032.

    Example:
        >>> from nflows.nn.nets import ResidualNet
        >>> from nflows.transforms import PiecewiseRationalQuadraticCouplingTransform
        >>> from flowkernels import compat
        >>> layer = PiecewiseRationalQuadraticCouplingTransform(
        ...     mask=[0, 1, 0, 1],
        ...     transform_net_create_fn=lambda i, o: ResidualNet(i, o, hidden_features=16),
        ...     tails="linear",
        ...     tail_bound=3.0,
        ... )
        >>> compat.accelerate(layer)
        flowkernels: 1 of 1 modules accelerated
        module       class                                        status
        (the model)  PiecewiseRationalQuadraticCouplingTransform  accelerated
        >>> compat.restore(layer)
    """
    return _accelerate(model)[0]


def restore(model: nn.Module) -> None:
    """Undoes `accelerate`: every submodule gets its original class back; an untouched model stays as it is.

    Raises:
        TypeError: `model` is not a `torch.nn.Module`.

    Example:
        >>> import torch
        >>> from flowkernels import compat
        >>> compat.restore(torch.nn.Linear(2, 2))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"restore: model must be a torch.nn.Module, got {type(model).__name__}")
    with swap.lock:
        for module in model.modules():
            swap.unswap(module)


@contextlib.contextmanager
def accelerated(model: nn.Module) -> Iterator[Report]:
    """Accelerates a model inside a `with` block; what was accelerated before the block stays so after it.

    Raises:
        TypeError: `model` is not a `torch.nn.Module`.

    Example:
        >>> from nflows.transforms import PiecewiseRationalQuadraticCDF
        >>> from flowkernels import compat
        >>> with compat.accelerated(PiecewiseRationalQuadraticCDF(shape=[3], tails="linear")) as report:
        ...     len(report.accelerated)
        1
    """
    report, swapped = _accelerate(model)
    try:
        yield report
    finally:
        with swap.lock:
            for module in swapped:
                swap.unswap(module)

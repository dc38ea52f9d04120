"""Makes models of other libraries run on the fused kernels, in place and reversibly: one folder per library.

A library registers itself by having a folder here, named like its top-level package in lower case. The folder has a
`LIBRARY` with `match(module)`, which gives a layer of methods for `engine.patch`, a reason to leave the module alone,
or None for a module that is none of the library's transforms, and `rows()`, the lines of the site's table.
`flowkernels.compat.engine.registry.Library` makes one from a table of classes. A table names the classes it knows and
imports none of them: it is asked only about models that have them, and loads without the library. Its docstring is the
one place that says what differs by design. Its `describe` says what a module is, as a `layer.Layer` of map, net and
split, or why it is none that kernels have: calls, inverses and `convert` start from that. `engine` is what serves every
library, `reading` what reads their networks, masks and columns.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from collections.abc import Iterator

from torch import nn

from .engine import patch, runs
from .engine.design import ByDesign, cheap
from .engine.models import Model, modules_of, parts_of
from .engine.reads import forget
from .engine.registry import Library, Target
from .engine.report import Report, Row
from .engine.switch import LibrarySwitch, accelerate_library

__all__ = ["LibrarySwitch", "Report", "accelerate", "accelerate_library", "accelerated", "restore"]

# Top-level packages, in lower case; what is known of each is in the folder of that name.
_LIBRARIES = frozenset(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg) - {"engine", "reading"}


_NO_MODULE = "it is no torch.nn.Module"


def _libraries(module: nn.Module) -> list[str]:
    """The supported libraries that the classes of a module come from, its own class first."""
    packages = (cls.__module__.partition(".")[0].lower() for cls in type(module).__mro__)
    return [name for name in dict.fromkeys(packages) if name in _LIBRARIES]


def _match(module: nn.Module) -> Target | str | None:
    """How a module is accelerated, a reason to leave it alone, or None: of no supported library."""
    # A function that is copied into packages of any name, and networks that are of none.
    for name in (*_libraries(module), "copies", "convolutions"):
        found = importlib.import_module(f"{__name__}.{name}").LIBRARY.match(module)
        if found is not None:
            return found
    return None


def _gain(module: nn.Module) -> str:
    """What of an accelerated module runs on the kernels, as its library's table says."""
    names = (*_libraries(module), "convolutions")
    tables = (importlib.import_module(f"{__name__}.{name}").LIBRARY for name in names)
    return next(filter(None, (table.gain(module) for table in tables if isinstance(table, Library))), "")


def _swap(module: nn.Module, swapped: list[nn.Module]) -> str | None:
    """Accelerates a module and appends it to `swapped`: why it is left alone, "", or None: of no supported library."""
    if patch.is_fast(module):
        return ""
    found = _match(module)
    if found is None or isinstance(found, str):
        return found
    try:
        patch.swap(module, found.layer, found.bypassed)
    except Exception as error:  # a metaclass or __init_subclass__ of the user's that refuses a subclass
        return f"its class cannot be extended: {error}"
    swapped.append(module)
    return ""


def _named_modules(model: Model, rows: list[Row]) -> Iterator[tuple[str, nn.Module]]:
    """Every module of a model once; transforms that are none get their rows here."""
    seen: set[nn.Module] = set()
    for path, part in parts_of("accelerate", model):
        if isinstance(part, nn.Module):
            yield from part.named_modules(seen, path)
        else:
            rows.append(Row(path, type(part).__name__, _NO_MODULE if cheap(part) is None else ByDesign(_NO_MODULE)))


def _accelerate(model: Model) -> tuple[Report, list[nn.Module]]:
    rows, notes, gained, swapped = [], [], {}, []
    parts: set[nn.Module] = set()  # of modules that run them
    containers: list[tuple[str, nn.Module]] = []
    with patch.lock:
        for path, module in _named_modules(model, rows):
            reason = _swap(module, swapped)
            layer = patch.layer_of(module)
            if layer is not None and layer.is_container:
                containers.append((path, module))
                continue
            if layer is not None and layer.runs_its_parts:
                parts.update(p for p in module.modules() if p is not module)
            if reason is not None and module not in parts:
                rows.append(Row(path, type(module).__name__, reason, getattr(layer, "_flowkernels_found", "")))
                gained[path] = _gain(module)
        notes += runs.settle(containers, swapped)
    if not rows:
        supported = ", ".join(sorted(_LIBRARIES))
        notes.append(f"nothing in {type(model).__name__} is of a supported library ({supported}), so it is unchanged")
    return Report(rows, notes, gained), swapped


def accelerate(model: Model) -> Report:
    """Makes the parts of a model that flowkernels knows run on its kernels, in place.

    The function computed is the same: outputs agree with the original's within its own rounding error. Parameters,
    buffers, `state_dict` keys, hooks, training mode, `repr` and `isinstance` do not change; copies of the model are
    accelerated too, pickles of it are not (they hold the original classes). Calling it again changes nothing.
    What is changed later is noticed: weights, hooks, activations and submodules that are replaced, masks and
    permutations that are assigned or written to; a method set on a module gives it its original class back. Two things
    are not: a buffer written to through its ``data`` (``mask.data.copy_(...)``), which torch itself does not count, and
    a method set on a class. Call `restore` and `accelerate` after them.
    Where a layer's inputs lie outside its domain, see `flowkernels.compat.nflows`; what differs by design for another
    library, the package of its name beside it.

    Args:
        model: any `torch.nn.Module`; its submodules are searched. A module whose class overrides something the fast
            path would bypass is left alone. Or a list or tuple of modules (of Pyro's transforms, say, among which some
            need not be modules), or a `torch.distributions.TransformedDistribution` of modules, conditional ones of
            Pyro too. Of a zuko flow give the flow, not the distribution that a call of it makes.

    Returns:
        A report of what was accelerated, what was not, and why; it prints one line for each kind of module, and counts
        apart those that are left alone by design, such as permutations, on which nothing could be gained.

    Raises:
        TypeError: `model` is none of these. An unknown model is no error: it is returned unchanged.

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
        flowkernels: 2 of 2 modules accelerated
        accelerated
          1 × PiecewiseRationalQuadraticCouplingTransform  residual network, spline and feature split run as one op
          1 × ResidualNet                                  one op; in training with batch norm, layer by layer
        >>> compat.restore(layer)
    """
    return _accelerate(model)[0]


def restore(model: Model) -> None:
    """Undoes `accelerate`: every submodule gets its original class back; an untouched model stays as it is.

    A module whose own parameters were parametrised since, so that torch derived a class from the accelerated one, stays
    accelerated; remove the parametrisation first.

    Raises:
        TypeError: `model` is nothing that `accelerate` takes.

    Example:
        >>> import torch
        >>> from flowkernels import compat
        >>> compat.restore(torch.nn.Linear(2, 2))
    """
    modules = modules_of("restore", model)
    with patch.lock:
        for module in (inner for part in modules for inner in part.modules()):
            patch.unswap(module)
            forget(module)
        runs.forget()


@contextlib.contextmanager
def accelerated(model: Model) -> Iterator[Report]:
    """Accelerates a model inside a `with` block; what was accelerated before the block stays so after it.

    Raises:
        TypeError: `model` is nothing that `accelerate` takes.

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
        with patch.lock:
            for module in swapped:
                patch.unswap(module)

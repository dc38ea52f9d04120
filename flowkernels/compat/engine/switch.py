"""One line for a whole library: every model of it that is made from then on is accelerated."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from flowkernels import compat

from . import made, patch, trainers

# Libraries whose models are made of another library's layers → the classes that hold a whole model.
_WHOLE_MODELS = {
    "sbi": (
        "neural_nets.estimators.nflows_flow.NFlowsFlow",
        "neural_nets.estimators.zuko_flow.ZukoFlow",
        "neural_nets.estimators.zuko_flow.ZukoUnconditionalFlow",
    )
}
_SPELLED = {"freia": "FrEIA"}
_FOR_GOOD = object()  # a holder: calls outside of `with` blocks, which are as one

_classes: dict[str, list[type]] = {}  # of every library that was switched on once
_holders: dict[str, list[object]] = {}  # library → the blocks it is on for, and `_FOR_GOOD`


class LibrarySwitch:
    """A library that is switched on; `accelerate_library` makes it."""

    def __init__(self, library: str) -> None:
        self.library = library
        self._is_block = False
        self._switched_on = _FOR_GOOD not in _holders.setdefault(library, [])
        if self._switched_on:
            self._hold(_FOR_GOOD)

    @property
    def on(self) -> bool:
        """Whether models of the library are accelerated as they are made, by this switch or another one."""
        return bool(_holders[self.library])

    def restore(self) -> None:
        """Switches the library off, except for `with` blocks that are still open.

        Once is enough, however often the library was switched on. On the switch of a `with` block it ends the effect
        of that block alone. Models made meanwhile stay accelerated; `flowkernels.restore(model)` undoes that.
        """
        self._release(self if self._is_block else _FOR_GOOD)

    def __enter__(self) -> LibrarySwitch:
        with patch.lock:
            self._hold(self)
            if self._switched_on and not self._is_block:
                self._release(_FOR_GOOD)
            self._is_block = True
        return self

    def __exit__(self, *error: object) -> None:
        self._release(self)

    def __repr__(self) -> str:
        return f"accelerate_library({self.library!r}): {'on' if self.on else 'off'}"

    def _hold(self, holder: object) -> None:
        _holders[self.library].append(holder)
        _hook(self.library)
        trainers.hasten(self.library)

    def _release(self, holder: object) -> None:
        with patch.lock:
            holders = _holders[self.library]
            if holder not in holders:
                return
            holders.remove(holder)
            if not holders:
                made.unhook(_classes[self.library])
                trainers.restore(self.library)
                for library in filter(_holders.get, _holders):
                    _hook(library)  # again, for classes that are derived from layers of both


def accelerate_library(library: str) -> LibrarySwitch:
    """Accelerates every model of a library that is made from now on, when its constructor ends.

    What `accelerate` says of a model holds for each of them, and so does what it may leave alone; `accelerate(model)`
    afterwards changes nothing and returns the report. Models that were there before stay as they are. Models that are
    unpickled or copied while the library is on count as made; pickles themselves hold the original classes, and load
    without flowkernels. The library's layers are recognised one by one, in models of your own too, and so are
    subclasses of them, those that you derive later included. Of sbi the estimators are: all that NPE and NLE train
    with ``maf``, ``nsf``, ``maf_rqs`` and ``zuko_*``; nflows and zuko by themselves stay off. sbi's trainers make their
    Adam with ``fused=True`` meanwhile and clip with ``foreach=True``, which is the same arithmetic in fewer calls.

    Calling it again changes nothing. In a `with` block it is on inside of the block and after it as it was before.
    Blocks of the same and of several libraries nest, in any order and in any thread; what one thread switches on is
    on in all of them.

    Args:
        library: ``"FrEIA"``, ``"glasflow"``, ``"nflows"``, ``"normflows"``, ``"pyro"``, ``"sbi"`` or ``"zuko"``, in
            upper or lower case; it is imported.

    Returns:
        A switch: its `restore()` puts the library's constructors back as they were, and so does leaving the `with`
        block that it opens. Models made meanwhile stay accelerated; `flowkernels.restore(model)` undoes that.

    Raises:
        TypeError: `library` is no string.
        ValueError: it is none of these names.
        ModuleNotFoundError: it is not installed.
        ImportError: it is installed in a version that has none of the classes flowkernels knows.

    Reference:
        Durkan, Bekasov, Murray, Papamakarios: Neural Spline Flows, NeurIPS 2019, arXiv:1906.04032.

    Example:
        >>> import flowkernels
        >>> from nflows.transforms import MaskedAffineAutoregressiveTransform
        >>> with flowkernels.accelerate_library("nflows"):
        ...     layer = MaskedAffineAutoregressiveTransform(features=4, hidden_features=16)
        >>> flowkernels.accelerate(layer)  # it is already: this gives the report alone
        flowkernels: 2 of 2 modules accelerated
        accelerated
          1 × MaskedAffineAutoregressiveTransform  affine map and network as one op; inverse in one sweep
          1 × MADE                                 network as one op
        >>> switch = flowkernels.accelerate_library("nflows")
        >>> switch.restore()
        >>> switch
        accelerate_library('nflows'): off
    """
    if not isinstance(library, str):
        raise TypeError(f"accelerate_library: library must be {_contract()}, got {type(library).__name__}")
    name = library.lower()
    if name not in _names():
        raise ValueError(f"accelerate_library: library must be {_contract()}, got {library!r}")
    with patch.lock:
        if name not in _classes:
            _classes[name] = _classes_of(name)
        return LibrarySwitch(name)


def _hook(library: str) -> None:
    made.hook(_classes[library], _accelerate_all if library in _WHOLE_MODELS else _accelerate)


def _accelerate(module: nn.Module) -> None:
    """A layer alone: its parts were made before it, and those of a shallow copy are the original's."""
    with patch.lock:
        compat._swap(module, [])


def _accelerate_all(model: nn.Module) -> None:
    try:
        list(model.modules())
    except AttributeError:  # a part that pickle has still to fill, as parts that hold each other are filled in turn
        return
    compat.accelerate(model)


def _names() -> list[str]:
    return sorted((compat._LIBRARIES - {"copies"}) | _WHOLE_MODELS.keys())


def _contract() -> str:
    *most, last = (repr(_SPELLED.get(name, name)) for name in _names())
    return f"{', '.join(most)} or {last}"


def _classes_of(library: str) -> list[type]:
    """The classes whose objects are to be accelerated, as far as the installed version has them."""
    if library in _WHOLE_MODELS:
        root, names = library, list(_WHOLE_MODELS[library])
    else:
        table: Any = importlib.import_module(f"{compat.__name__}.{library}").LIBRARY
        root, names = table.root, table.made()
    _check_installed(root.partition(".")[0])
    classes = [cls for cls in (_find(f"{root}.{name}") for name in names) if cls is not None]
    if not classes:
        raise ImportError(
            f"accelerate_library: {_SPELLED.get(library, library)} must be a version that has one of the classes "
            f"{', '.join(names)}, got one that has none"
        )
    return classes


def _check_installed(package: str) -> None:
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        message = f"accelerate_library: {package} must be installed to be accelerated, got no module of that name"
        raise ModuleNotFoundError(message, name=package) from error


def _find(full: str) -> type | None:
    module, _, name = full.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # something that the library itself needs
        return None

"""What a univariate map is: a monotone map of one feature, as a value that layers and ops hand to each other."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from flowkernels._arguments import flag
from flowkernels._renamed import renamed_property, warn_renamed
from flowkernels.backends import BackendUnavailableError
from flowkernels.ops._checks import check_device, check_floating
from flowkernels.ops._kept import Handled

_M = TypeVar("_M", bound="Map")


class Univariate(Protocol):
    """A monotone map of every feature, with its own P parameters; an `nn.Module` if it has weights.

    This is all that a layer asks of a map. One that derives from `Map`, as `RQS` and `Affine` do, is also inverted in
    one sweep by an autoregressive layer, and fused with its network where there is a kernel for it.
    """

    @property
    def n_params(self) -> int:
        """P."""
        ...

    @property
    def identity(self) -> tuple[float, ...]:
        """The P parameters at which the map is the identity, or as near to it as it gets."""
        ...

    def __call__(
        self, x: Tensor, params: Tensor, inverse: bool, event_dims: int = 1, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``x [..., *event]``, ``params [..., *event, P]`` → ``y [..., *event]`` and ``ladj [...]``, summed over it.

        The event is the last dim, or the last three of images. With a ``mask`` over it, False leaves an element as it
        is. Layers on features pass neither of the two.
        """
        ...


_COMPLETED = ("n_params", "identity", "_refusals", "_twin", "_handles")


@functools.lru_cache(maxsize=4096, typed=True)  # typed: 8.0 must not pass because 8 has
def _kept(cls: Any, **settings: Any) -> Any:
    return cls(**settings)


class Map(Handled):
    """Base of maps that are their settings: a frozen dataclass with a field ``inverse``, equal by value.

    Fused ops take any object with these members; a map without kernels needs `reference`, ``n_params`` and
    ``identity`` alone. A subclass checks its fields in `_settle`, and says in `_derived` what follows from them.

    >>> from flowkernels.ops import RQS
    >>> spline = RQS(bins=4)
    >>> spline.inverted().inverse, spline.inverted().inverted() is spline
    (True, True)
    """

    n_params: int
    identity: tuple[float, ...]
    inverse: bool
    bins = 0  # of a map that searches them: kernels keep room for so many
    circle_shift = False  # the map begins with a shift of x by half a period of its box
    zero_outside = False  # y is 0 where x is outside of its box
    takes_part = False  # its call has an argument ``part``: the channels of an image that are mapped

    params_per_feature = renamed_property("params_per_feature", "n_params")

    def __call__(
        self,
        x: Tensor,
        params: Tensor,
        inverse: bool = False,
        event_dims: int = 1,
        mask: Tensor | None = None,
        *,
        backend: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``x [..., *event]``, ``params [..., *event, P]`` → ``y [..., *event]`` and ``ladj [...]``, summed over it.

        Args:
            inverse: the map of the other direction than this one's.
            event_dims: how many of the last dims are the event.
            mask: over the event; False leaves an element as it is.
            backend: run on this one or raise; default: the fastest that can.
        """
        name = f"ops.{type(self).__name__}"
        if inverse is not False and flag(name, "inverse", inverse):
            self = self.inverted()
        if event_dims != 1 or mask is not None:
            return by_element(self, x, params, event_dims, mask, backend)
        refuse_tensors(name, x, params, self.n_params)
        return self._run(x, params, backend)

    def _run(self, x: Tensor, params: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
        """Of checked tensors. A map that is made of ops hands them the backend."""
        if backend not in (None, "auto", "reference"):
            name = f"ops.{type(self).__name__}"
            raise BackendUnavailableError(
                f"flowkernels: {name} cannot run on backend {backend!r}: no kernel for it yet"
            )
        return self.reference(x, params)

    # ---- what fused ops ask ----

    def reference(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """The definition in plain PyTorch: ``x [..., D]``, ``params [..., D, P]`` → ``y [..., D]``, ``ladj [...]``."""
        raise NotImplementedError

    def check(self, op: str, wide: bool) -> None:
        """Raises where the map has no numbers in the type that is computed in: float32, or (wide) float64."""

    def why_not(self, backend: str) -> str | None:
        """Why a backend of the fused layers lacks this map, or None where it has it."""
        return None if backend == "reference" else f"no kernel for {type(self).__name__} yet"

    def constants(self, wide: bool) -> dict[str, Any]:
        """The map as a Triton kernel's constants."""
        raise NotImplementedError

    def inverted(self: _M) -> _M:
        """The map of the other direction; made once, and whose own `inverted` is this one."""
        if not self._is_complete and torch.compiler.is_compiling():
            # As dataclasses.replace(), which the compiler of torch 2.6 does not know.
            settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.init}  # type: ignore[arg-type]
            return type(self)(**{**settings, "inverse": not self.inverse})
        return self._twin

    # ---- the value ----

    @classmethod
    def kept(cls: type[_M], **settings: Any) -> _M:
        """The map of these settings; the same one for equal ones, for whoever reads them anew on every call."""
        if torch.compiler.is_compiling():
            return cls(**settings)
        try:
            return _kept(cls, **settings)
        except TypeError:  # a setting without a hash, such as a list
            return cls(**settings)

    _twin: Any
    _is_complete = False

    def __post_init__(self) -> None:
        self._settle()
        if not torch.compiler.is_compiling():  # which could not trace it, and asks for nothing of it
            self._complete()

    def _settle(self) -> None:
        """Checks the fields, and puts each in its own type."""

    def _set(self, names: Sequence[str], values: Sequence[Any]) -> None:
        for name, value in zip(names, values, strict=True):
            object.__setattr__(self, name, value)  # the way to set a field of a frozen dataclass

    def _derived(self) -> dict[str, Any]:
        """What follows from the fields but for the direction, by name: attributes that cost nothing to read."""
        return {}

    def _complete(self) -> None:
        """Sets what follows from the fields, here and on the map of the other direction, which is made with it."""
        values, twin = {**self._derived(), "_is_complete": True}, object.__new__(type(self))
        vars(twin).update(vars(self), **values, inverse=not self.inverse, _twin=self, _handles={})
        vars(self).update(values, _twin=twin, _handles={})

    def __getattr__(self, name: str) -> Any:
        """Completes a map that a compiler's trace has made, and left to Python."""
        if name.startswith("__") or self._is_complete or name not in _COMPLETED:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self._complete()
        return getattr(self, name)

    def __reduce__(self) -> tuple[Any, ...]:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return type(self), tuple(getattr(self, f.name) for f in fields if f.init)

    def __copy__(self: _M) -> _M:
        return self

    def __deepcopy__(self: _M, memo: dict[int, Any]) -> _M:
        return self

    @property
    def spec(self: _M) -> _M:
        """Old spelling of the map itself."""
        warn_renamed(f"{type(self).__name__}(...).spec", f"{type(self).__name__}(...)")
        return self


_ASKED = (
    "reference", "check", "why_not", "handle", "constants", "inverted", "bins", "circle_shift", "zero_outside"
)  # fmt: skip


@functools.lru_cache(maxsize=256)
def can_fuse(kind: type) -> bool:
    """Whether a fused op can take maps of this class: whether it has all that one asks."""
    return all(hasattr(kind, member) for member in _ASKED)


def check_univariate(op: str, univariate: Any, dtype: torch.dtype) -> None:
    """Raises unless a fused op can take this map, and it has numbers in the dtype."""
    kind = type(univariate)
    if not can_fuse(kind):
        given = univariate.__qualname__ if inspect.isclass(univariate) else kind.__name__
        raise TypeError(f"{op}: univariate must be a map of one feature, e.g. RQS() or Affine(), got {given}")
    if kind.check is not Map.check:  # which says nothing
        univariate.check(op, dtype is torch.float64)


def n_params_of(univariate: Any) -> int:
    """P of any map; one that a user wrote may have it by its old name."""
    return univariate.n_params if hasattr(univariate, "n_params") else univariate.params_per_feature


def refuse_tensors(op: str, x: Tensor, params: Tensor, n_params: int) -> None:
    """Raises unless these are ``x [..., D]`` and ``params [..., D, P]``."""
    for name, t in (("x", x), ("params", params)):
        check_floating(op, name, t)
    if x.dim() == 0:
        raise ValueError(f"{op}: x must be [..., D], got a scalar")
    check_device(op, "params", params, x)
    expected, given = [*x.shape, n_params], list(params.shape)
    if expected != given:
        raise ValueError(f"{op}: params must be [..., D, P] = {expected}, got {given}")


def by_element(
    univariate: Any, x: Tensor, params: Tensor, event_dims: int, mask: Tensor | None, backend: str | None
) -> tuple[Tensor, Tensor]:
    """The map of an event of several dims, or under a mask, by one that knows the last dim alone."""
    if mask is not None:  # as events of one element each, whose ladj can be masked
        y, ladj = univariate(x.unsqueeze(-1), params.unsqueeze(-2), backend=backend)
        y, ladj = torch.where(mask, y.squeeze(-1), x), torch.where(mask, ladj, ladj.new_zeros(()))
        return y, ladj.sum(tuple(range(-event_dims, 0)))
    y, ladj = univariate(x, params, backend=backend)
    return y, ladj.sum(tuple(range(1 - event_dims, 0)))

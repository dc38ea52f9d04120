"""Which unit sees which: the masks of a MADE as degrees, sorted once and shared by every call."""

from __future__ import annotations

import functools
import operator
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from flowkernels._arguments import flag
from flowkernels.ops._kept import kept, made_to_stay
from flowkernels.ops._routing import _dispatch_modes, _transforms_active

Degrees = Sequence[int] | Tensor


def _fail(name: str, contract: str, given: object) -> NoReturn:
    raise ValueError(f"{name} must be {contract}, got {given}")


def _ints(name: str, degrees: Degrees) -> list[int]:
    """Degrees as Python integers, checked."""
    contract = "one row of integers from 0 on"
    if isinstance(degrees, Tensor):
        no_integers = degrees.is_floating_point() or degrees.is_complex() or degrees.dtype is torch.bool
        odd = no_integers or degrees.layout is not torch.strided
        if odd or degrees.dim() != 1 or degrees.is_meta:
            _fail(name, contract, f"{degrees.dtype} {list(degrees.shape)}, {degrees.layout}, on {degrees.device}")
        degrees = degrees.tolist()
    if isinstance(degrees, (bytes, bytearray)):  # whose items are integers
        _fail(name, contract, repr(degrees))
    try:
        given = list(degrees)
        values = [operator.index(d) for d in given]  # numpy's integers too become Python's
    except TypeError:
        _fail(name, contract, repr(degrees))
    if not values or min(values) < 0 or any(isinstance(d, bool) for d in given):
        _fail(name, contract, given)
    if max(values) >= 2**63:  # they become tensors
        _fail(name, "below 2**63", max(values))
    return values


def _order(degrees: Sequence[int]) -> list[int]:
    return sorted(range(len(degrees)), key=degrees.__getitem__)  # stable


class LayerPlan:
    """Which inputs each output unit may see: M[o, i] = degrees_out[o] >= degrees_in[i], > where strict.

    In sorted order the mask is a staircase: the j-th unit sees the first ``limit[j]`` inputs, and ``limit`` never
    falls. That is all a kernel needs. Compared and hashed by identity, and never changed after construction.

    Attributes:
        n_in, n_out, strict: sizes, and whether equal degrees are hidden from each other.
        degrees_in, degrees_out: int64 ``[n_in]`` and ``[n_out]``, on the CPU.
        in_order, out_order: int32, the stable argsort of the degrees.
        in_sorted, out_sorted: whether those change nothing.
        limit: int32 ``[n_out]``, in the order of ``out_order``.
        text: the degrees in words, for graphs that hold no Python objects; `from_text` reads it.

    Raises:
        ValueError: the degrees are not one row of integers from 0 on, each.

    Example:
        >>> import torch
        >>> from flowkernels.ops import LayerPlan
        >>> plan = LayerPlan([1, 2, 3], [2, 1, 2, 1], strict=False)
        >>> plan.mask(torch.empty(0))
        tensor([[1., 1., 0.],
                [1., 0., 0.],
                [1., 1., 0.],
                [1., 0., 0.]])
        >>> plan.out_order.tolist(), plan.limit.tolist()
        ([1, 3, 0, 2], [1, 1, 2, 2])
        >>> plan.text
        '1,2,3 <= 2,1,2,1'
    """

    def __init__(self, degrees_in: Degrees, degrees_out: Degrees, *, strict: bool) -> None:
        ins, outs = _ints("LayerPlan: degrees_in", degrees_in), _ints("LayerPlan: degrees_out", degrees_out)
        strict = flag("LayerPlan", "strict", strict)
        self.n_in, self.n_out, self.strict = len(ins), len(outs), strict
        cpu: dict[str, Any] = {"device": "cpu"}  # whatever torch.set_default_device says
        self.degrees_in = torch.tensor(ins, dtype=torch.int64, **cpu)
        self.degrees_out = torch.tensor(outs, dtype=torch.int64, **cpu)
        in_order, out_order = _order(ins), _order(outs)
        self.in_order = torch.tensor(in_order, dtype=torch.int32, **cpu)
        self.out_order = torch.tensor(out_order, dtype=torch.int32, **cpu)
        self.in_sorted, self.out_sorted = in_order == sorted(in_order), out_order == sorted(out_order)
        limit, seen = [], 0
        for o in out_order:
            while seen < len(ins) and (ins[in_order[seen]] < outs[o] + (not strict)):
                seen += 1
            limit.append(seen)
        self.limit = torch.tensor(limit, dtype=torch.int32, **cpu)
        self._degrees = (tuple(ins), tuple(outs))
        self.text = ",".join(map(str, ins)) + (" < " if strict else " <= ") + ",".join(map(str, outs))
        self._masks: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._handles: dict[Any, Any] = {}

    @staticmethod
    def from_text(text: str) -> LayerPlan:
        """The plan that has this `text`."""
        if _dispatch_modes() > 0:  # its tensors may be fake
            return _parsed(text)
        return _by_text(text)

    def mask(self, like: Tensor) -> Tensor:
        """M, ``[n_out, n_in]`` of 0 and 1, in the dtype and on the device of ``like``."""
        return self._cached(like.dtype, like.device)

    def apply(self, weight: Tensor) -> Tensor:
        """W∘M, ``[n_out, n_in]``; masked entries are ignored whatever they hold: a product would keep their NaN."""
        return torch.where(self._cached(torch.bool, weight.device), weight, 0)

    def handle(self, module: Any, device: torch.device | None = None) -> Any:
        """The mask as this compiled module takes it, with what its kernels read on `device` (None: the CPU)."""
        found = self._handles.get((module, device))
        if found is None:
            on_device, numbers = [], []
            for t, changes in ((self.in_order, not self.in_sorted), (self.out_order, not self.out_sorted)):
                numbers.append(t.tolist() if changes else [])
                on_device.append(t.to(device) if changes and device is not None else None)
            numbers.append(self.limit.tolist())
            if device is not None:
                on_device.append(self.limit.to(device))
            found = self._handles[module, device] = module.LayerMask(
                self.n_in, *numbers, *([] if device is None else on_device)
            )
        return found

    def _cached(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        if torch.compiler.is_compiling() or _dispatch_modes() > 0 or _transforms_active():
            return self._mask(dtype, device)  # what is made there may be fake, and must not stay
        key = (dtype, device)
        found = self._masks.get(key)
        if found is None:
            found = self._masks[key] = made_to_stay(self._mask, *key)
        return found

    def _mask(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        ins, outs = self.degrees_in.to(device), self.degrees_out.to(device)[:, None]
        return (outs > ins if self.strict else outs >= ins).to(dtype)

    # A copy of something that never changes is itself; a pickle carries the degrees only.
    def __deepcopy__(self, memo: object) -> LayerPlan:
        return self

    def __reduce__(self) -> Any:
        return layer_plan, (*self._degrees, self.strict)

    def __repr__(self) -> str:
        return f"LayerPlan({self.n_in} -> {self.n_out}{', strict' if self.strict else ''})"


def _parsed(text: str) -> LayerPlan:
    ins, sign, outs = text.split(" ")
    return _from_values(*([int(d) for d in side.split(",")] for side in (ins, outs)), strict=sign == "<")


_by_text = kept(maxsize=1024)(_parsed)


@kept(maxsize=1024)
def _by_value(degrees_in: tuple[int, ...], degrees_out: tuple[int, ...], strict: bool) -> LayerPlan:
    return LayerPlan(degrees_in, degrees_out, strict=strict)


# (ids, strict) → weak references, versions, plan: reading degrees off a tensor on every call would cost a copy, and a
# synchronisation on a GPU.
_by_identity: dict[tuple[int, int, bool], tuple[Any, Any, tuple[int, int], LayerPlan]] = {}


def layer_plan(degrees_in: Degrees, degrees_out: Degrees, strict: bool = False) -> LayerPlan:
    """The `LayerPlan` of these degrees; the same one for equal degrees, so that what hangs on it is made once.

    Example:
        >>> from flowkernels.ops import layer_plan
        >>> layer_plan([1, 2], [1, 1, 2]) is layer_plan((1, 2), (1, 1, 2))
        True
    """
    strict = flag("LayerPlan", "strict", strict)
    if not (isinstance(degrees_in, Tensor) and isinstance(degrees_out, Tensor)):
        return _from_values(degrees_in, degrees_out, strict)
    if degrees_in.is_inference() or degrees_out.is_inference():  # those have no version
        return _from_values(degrees_in, degrees_out, strict)
    key = (id(degrees_in), id(degrees_out), strict)
    versions = (degrees_in._version, degrees_out._version)
    found = _by_identity.get(key)
    if found and found[0]() is degrees_in and found[1]() is degrees_out and found[2] == versions:
        return found[3]
    plan = _from_values(degrees_in, degrees_out, strict)

    def forget(_: object) -> None:
        _by_identity.pop(key, None)

    _by_identity[key] = (weakref.ref(degrees_in, forget), weakref.ref(degrees_out, forget), versions, plan)
    return plan


def _from_values(degrees_in: Degrees, degrees_out: Degrees, strict: bool) -> LayerPlan:
    ins, outs = _ints("LayerPlan: degrees_in", degrees_in), _ints("LayerPlan: degrees_out", degrees_out)
    if torch.compiler.is_compiling() or _dispatch_modes() > 0:  # its tensors may be fake
        return LayerPlan(ins, outs, strict=strict)
    return _by_value(tuple(ins), tuple(outs), strict)


class MadePlan:
    """The masks of a whole MADE. Compared and hashed by identity, and never changed after construction.

    Args:
        degrees: of the D inputs (any order, at least 1), of each hidden layer's units (at least 0), and of the D·P
            outputs, feature-major: output d·P + p has the degree of feature d. An output sees smaller degrees only.
        residual: the hidden layers are an initial one and two per block; a block adds its second layer to the stream,
            so that both have the same degrees.

    Attributes:
        layers: one `LayerPlan` per layer; the last one is strict.
        features, params_per_feature, residual: D, P and whether there are blocks.
        order: the features sorted by degree, int32 on the CPU.
        groups: the features of equal degree, in order of degree; usually one each.

    Raises:
        ValueError: the degrees break the contract above.

    Example:
        >>> from flowkernels.ops import MadePlan
        >>> plan = MadePlan([[2, 1], [1, 1, 1], [2, 2, 2, 1, 1, 1]])
        >>> plan.layers, plan.params_per_feature, plan.groups
        ((LayerPlan(2 -> 3), LayerPlan(3 -> 6, strict)), 3, ((1,), (0,)))
    """

    def __init__(self, degrees: Sequence[Degrees], *, residual: bool = False) -> None:
        residual = flag("MadePlan", "residual", residual)
        if not isinstance(degrees, Iterable) or (isinstance(degrees, Tensor) and degrees.dim() == 0):
            _fail("MadePlan: degrees", "a list of rows of integers", f"{type(degrees).__name__} {degrees!r:.60}")
        rows = [_ints(f"MadePlan: degrees[{i}]", d) for i, d in enumerate(degrees)]
        if len(rows) < 2:
            _fail("MadePlan: degrees", "those of the inputs, of each hidden layer and of the outputs", f"{len(rows)}")
        inputs, outputs = rows[0], rows[-1]
        if min(inputs) < 1:
            _fail("MadePlan: degrees of the inputs", "at least 1", inputs)
        P, rest = divmod(len(outputs), len(inputs))
        if rest or outputs != [d for d in inputs for _ in range(P)]:
            _fail("MadePlan: degrees of the outputs", f"those of the inputs, {inputs}, each P times", outputs)
        if residual:
            if len(rows) % 2 == 0 or len(rows) < 3:
                _fail("MadePlan: residual hidden layers", "1 + 2 * blocks", len(rows) - 2)
            for i in range(3, len(rows) - 1, 2):
                if rows[i] != rows[i - 2]:
                    contract = f"equal to degrees[{i - 2}] = {rows[i - 2]}, to which a residual block adds"
                    _fail(f"MadePlan: degrees[{i}]", contract, rows[i])
        n = len(rows) - 1
        self.layers = tuple(_from_values(rows[i], rows[i + 1], i == n - 1) for i in range(n))
        self.features, self.params_per_feature, self.residual = len(inputs), P, residual
        self.order = self.layers[0].in_order
        levels: dict[int, list[int]] = {}
        for d in _order(inputs):
            levels.setdefault(inputs[d], []).append(d)
        self.groups = tuple(tuple(group) for group in levels.values())
        self._degrees = tuple(tuple(row) for row in rows)

    def __deepcopy__(self, memo: object) -> MadePlan:
        return self

    def __reduce__(self) -> Any:
        return functools.partial(MadePlan, residual=self.residual), (self._degrees,)

    def __repr__(self) -> str:
        widths = " -> ".join(str(len(row)) for row in self._degrees)
        return f"MadePlan({widths}{', residual' if self.residual else ''})"

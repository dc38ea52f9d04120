"""The affine map as a value: its settings, checked when they are put together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple, NoReturn

import torch
from torch import Tensor

from flowkernels._arguments import flag, is_number
from flowkernels._renamed import warn_renamed
from flowkernels.ops._checks import check_device, check_floating, expands
from flowkernels.ops.univariate import Map

from . import reference
from .layout import FEATURES, Layout, layout_of
from .scales import CLAMPED, FLOORED, RENAMED, SCALES

CLAMP = 2.0
LOW, HIGH = -5.0, 3.0
FLOOR = 1e-3


def _fail(name: str, contract: str, given: object) -> NoReturn:
    raise ValueError(f"ops.affine: {name} must be {contract}, got {given!r}")


def _two_numbers(given: object) -> tuple[float, float]:
    """Two numbers, as floats; NaN where they are not."""
    if isinstance(given, (tuple, list)) and len(given) == 2 and is_number(given[0]) and is_number(given[1]):
        return float(given[0]), float(given[1])
    return math.nan, math.nan


def checked(*settings: Any) -> tuple[Any, ...]:
    """Checks every setting, in the order of the fields of `Affine`, and returns them, each in its own type."""
    scale, min_scale, clamp, log_bounds, shift_first, inverse = settings
    if isinstance(scale, str) and scale in RENAMED:
        warn_renamed(f"scale {scale!r}", repr(RENAMED[scale]))
        scale = RENAMED[scale]
    if not (isinstance(scale, str) and scale in SCALES):
        _fail("scale", f"one of {', '.join(SCALES)}", scale)
    if min_scale is not None:
        if not is_number(min_scale) or not 0 <= min_scale <= 1e30:  # float32 has no square of more
            _fail("min_scale", "a number from 0 to 1e30", min_scale)
        if min_scale > 0 and scale not in FLOORED:
            _fail("min_scale", f"0 where scale is {scale!r}", min_scale)
        min_scale = float(min_scale)
    if clamp is not None:
        if scale not in CLAMPED:
            _fail("clamp", f"None where scale is {scale!r}", clamp)
        if not (is_number(clamp) and 1e-30 <= clamp <= 1e30):
            _fail("clamp", "positive, from 1e-30 to 1e30", clamp)
        clamp = float(clamp)
    if log_bounds is not None:
        if scale != "clip":
            _fail("log_bounds", f"None where scale is {scale!r}", log_bounds)
        low, high = _two_numbers(log_bounds)
        if not -1e30 <= low < high <= 1e30:
            _fail("log_bounds", "two finite numbers from -1e30 to 1e30, the lower one first", log_bounds)
        log_bounds = low, high
    inverse = flag("ops.affine", "inverse", inverse)
    return scale, min_scale, clamp, log_bounds, flag("ops.affine", "shift_first", shift_first), inverse


@dataclass(frozen=True)
class Affine(Map):
    r"""The affine map as a value: ``Affine(**s)(x, params)`` is ``ops.affine(x, params, **s)``, where formulas, shapes
    and dtypes are written, but for ``scale`` and ``min_scale``, which have other defaults here.

    P = ``n_params`` = 2, or 1 for ``"additive"``. Frozen, hashable, equal to one of the same settings; copies are the
    value itself. Where it finds its elements in x (``event_dims``, ``part``, ``mask``) is no part of it.

    Args:
        scale: ``"softplus"`` or ``"sigmoid"``, which keep the scale above ``min_scale``; ``"tanh"``, ``"atan"`` or
            ``"soft_clip"``, which keep it between exp(-clamp) and exp(clamp); ``"reciprocal_sigmoid"``, which keeps it
            above 1; ``"exp"`` (the papers'); ``"clip"``; or ``"additive"``.
        min_scale: None stands for 1e-3 where the scale has a floor, and 0 elsewhere.
        clamp: None stands for 2 where the scale has bounds.
        log_bounds, shift_first: see `flowkernels.ops.affine`.
        inverse: this is the map y → x.

    Raises:
        ValueError: a setting breaks the contract of `flowkernels.ops.affine`.

    Reference:
        Papamakarios, Pavlakou, Murray: Masked Autoregressive Flow for Density Estimation, NeurIPS 2017,
        arXiv:1705.07057.

    Example:
        >>> import torch
        >>> from flowkernels.ops import Affine
        >>> affine = Affine()
        >>> x = torch.randn(4, 2)
        >>> y, ladj = affine(x, torch.tensor(affine.identity).expand(4, 2, 2))
        >>> torch.allclose(y, x), affine == Affine("softplus")
        (True, True)
    """

    scale: str = "softplus"
    min_scale: float | None = None
    clamp: float | None = None
    log_bounds: tuple[float, float] | None = None
    shift_first: bool = False
    inverse: bool = False
    n_params: int = field(init=False, repr=False, compare=False)
    identity: tuple[float, ...] = field(init=False, repr=False, compare=False)

    takes_part: ClassVar[bool] = True
    _op: ClassVar[Any]  # set by the package, as the op's backends read this class

    def _settle(self) -> None:
        self._set(_FIELDS, checked(*[getattr(self, name) for name in _FIELDS]))
        object.__setattr__(self, "n_params", 1 if self.scale == "additive" else 2)

    def _derived(self) -> dict[str, Any]:
        logit = self._logit_of_one()
        pair = (0.0, logit) if self.shift_first else (logit, 0.0)
        shift_alone = self.scale == "additive"
        return {"n_params": 1 if shift_alone else 2, "identity": (0.0,) if shift_alone else pair}

    def __call__(
        self,
        x: Tensor,
        params: Tensor | Sequence[Tensor],
        inverse: bool = False,
        event_dims: int = 1,
        mask: Tensor | None = None,
        part: slice | None = None,
        *,
        backend: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``x [..., *event]``, ``params [..., *event, P]`` → ``y [..., *event]`` and ``ladj [...]``, summed over it.

        Args:
            inverse: the map of the other direction than this one's.
            event_dims, mask, part: see `flowkernels.ops.affine`.
            backend: run on this one or raise; default: the fastest that can.
        """
        if inverse is not False and (inverse is True or flag("ops.affine", "inverse", inverse)):
            self = self.inverted()
        plain = part is None and type(event_dims) is int and event_dims == 1
        layout = FEATURES if plain else layout_of(x, part, event_dims)
        shift = None
        if not isinstance(params, Tensor):
            params, shift = _pair(params, self)
        _check(x, params, shift, mask, self, layout)
        if mask is not None and mask.dtype is not torch.bool:
            mask = mask.bool()
        # By the class's name: a compiler that traced the making of self (torch 2.6) cannot tell the value of self._op.
        return Affine._op(AffineCall(self, layout), backend, x, params, shift, mask)

    # ---- what fused ops ask ----

    def reference(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return reference.fwd(AffineCall(self, FEATURES), x, params)

    def why_not(self, backend: str) -> str | None:
        return None

    def settings(self, module: Any, layout: Layout = FEATURES) -> Any:
        """The map in its place as this compiled module's `affine_fwd` takes it; made once."""
        found = self._handles.get((module, layout))
        if found is None:
            found = self._handles[module, layout] = module.AffineSpec(
                SCALES.index(self.scale), self.floor, self.bound, self.inverse, self.low, self.high, self.shift_first,
                tuple(layout),
            )  # fmt: skip
        return found

    def _handle(self, module: Any) -> Any:
        return module.UnivariateMap(self.settings(module))

    def constants(self, wide: bool) -> dict[str, Any]:
        return {"SPLINE": False, "SHIFT_FIRST": self.shift_first, **self.numbers}

    @property
    def numbers(self) -> dict[str, Any]:
        """The map without its place, as constants of a Triton kernel."""
        return {
            "SCALE": self.scale, "MIN": self.floor, "CLAMP": self.bound, "LOW": self.low, "HIGH": self.high,
            "INVERSE": self.inverse,
        }  # fmt: skip

    # ---- numbers that follow from the settings ----

    @property
    def floor(self) -> float:
        if self.min_scale is None:
            return FLOOR if self.scale in FLOORED else 0.0
        return self.min_scale

    @property
    def bound(self) -> float:
        return CLAMP if self.clamp is None else self.clamp

    @property
    def low(self) -> float:
        return LOW if self.log_bounds is None else self.log_bounds[0]

    @property
    def high(self) -> float:
        return HIGH if self.log_bounds is None else self.log_bounds[1]

    def _logit_of_one(self) -> float:
        """The logit at which the scale is 1, or as near to it as it gets."""
        rest = 1 - self.floor
        # Where the floor is 1 or more the identity is out of reach; logits of 0 are as good as any.
        if self.scale == "softplus" and rest > 0:
            return math.log(math.expm1(rest))
        if self.scale == "sigmoid" and 0 < rest < 1:
            return math.log(rest / self.floor) - 2
        if self.scale == "reciprocal_sigmoid" or (self.scale == "sigmoid" and rest == 1):
            return 4.0  # a sigmoid never is 1; here it is 0.9975
        return 0.0


_FIELDS = tuple(f.name for f in fields(Affine) if f.init)


class AffineCall(NamedTuple):
    """What a call of the op is told: the map, and where in x."""

    map: Affine
    layout: Layout = FEATURES

    schema = {  # noqa: RUF012  (an annotation would make it a field)
        "scale": str, "min_scale": float, "inverse": bool, "clamp": float, "event_dims": int, "shift_first": bool,
        "start": int, "stop": int, "step": int, "low": float, "high": float,
    }  # fmt: skip

    def packed(self) -> tuple[Any, ...]:
        f, (event_dims, start, stop, step) = self
        return (
            f.scale, f.floor, f.inverse, f.bound, event_dims, f.shift_first, start, stop, step, f.low, f.high
        )  # fmt: skip

    @staticmethod
    def from_packed(*numbers: Any) -> AffineCall:
        """Unchecked: with dynamic shapes the numbers are symbols, on which a check would be a guard."""
        given, f = dict(zip(AffineCall.schema, numbers, strict=True)), object.__new__(Affine)
        layout, bounds = Layout(*(given.pop(name) for name in Layout._fields)), (given.pop("low"), given.pop("high"))
        vars(f).update(given, log_bounds=bounds, n_params=1 if given["scale"] == "additive" else 2, _handles={})
        return AffineCall(f, layout)


def _pair(params: Sequence[Tensor], spec: Affine) -> tuple[Tensor, Tensor]:
    if not isinstance(params, (tuple, list)):
        raise TypeError(f"ops.affine: params must be a tensor or two, got {type(params).__name__} {params!r:.60}")
    if len(params) != 2 or spec.scale == "additive":
        contract = "one tensor where scale is 'additive'" if spec.scale == "additive" else "a tensor or two"
        raise ValueError(f"ops.affine: params must be {contract}, got {len(params)}")
    first, second = params
    return (second, first) if spec.shift_first else (first, second)


def _check(x: Tensor, params: Tensor, shift: Tensor | None, mask: Tensor | None, spec: Affine, layout: Layout) -> None:
    for name, t in (("x", x), ("params", params), ("params[1]", params if shift is None else shift)):
        check_floating("ops.affine", name, t)
    event_dims = layout.event_dims
    if x.dim() < event_dims:
        dims = "[..., D], got a scalar" if x.dim() == 0 else f"{event_dims}-dimensional, got {list(x.shape)}"
        raise ValueError(f"ops.affine: x must be {dims}")
    check_device("ops.affine", "params", params, x)
    shape = layout.mapped(x).shape
    if shift is None and params.shape != (*shape, spec.n_params):
        expected, given = [*shape, spec.n_params], list(params.shape)
        raise ValueError(f"ops.affine: params must be [..., D, P] = {expected}, got {given}")
    if shift is not None:
        if not params.shape == shift.shape == shape:
            given = [list(params.shape), list(shift.shape)]
            raise ValueError(f"ops.affine: two params must be [..., D] = {list(shape)}, got {given}")
        if (params.dtype, params.device) != (shift.dtype, shift.device):
            given = f"{params.dtype} on {params.device} and {shift.dtype} on {shift.device}"
            raise ValueError(f"ops.affine: two params must be of one dtype on one device, got {given}")
    if mask is not None:
        _check_mask(x, mask, shape[x.dim() - event_dims :])


def _check_mask(x: Tensor, mask: Tensor, event: torch.Size) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"ops.affine: mask must be a tensor, got {type(mask).__name__} {mask!r:.60}")
    check_device("ops.affine", "mask", mask, x)
    if mask.layout is not torch.strided:
        raise TypeError(f"ops.affine: mask must be a dense tensor, got layout {mask.layout}")
    if mask.is_floating_point() or mask.is_complex():
        raise TypeError(f"ops.affine: mask must be of bool or integers, as a share of a map is none, got {mask.dtype}")
    if not expands(mask.shape, event):
        raise ValueError(f"ops.affine: mask must broadcast to the event {list(event)}, got {list(mask.shape)}")

"""The spline as a value: its settings, checked when they are put together."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from flowkernels._arguments import flag, is_number, is_whole
from flowkernels._renamed import renamed_arguments, renamed_property
from flowkernels.ops._checks import DTYPES
from flowkernels.ops.univariate import Map, by_element, refuse_tensors

from . import reference
from .box import shifted, zeroed
from .half_ends import logits_of_bins

TAILS = ("none", "linear", "circular")  # the order of csrc/rqs/rqs.h
PARAMETRIZATIONS = ("softmax", "soft_clip", "half_ends")
MAX_BINS = 128
MIN_LAMBDA = 0.025  # of linear splines; Pyro's
NO_LINEAR = 'no kernel for splines of order "linear" there yet'


def count_params(bins: int, tails: str | None, linear: bool = False, half_ends: bool = False) -> int:
    """P: 3K-1 (linear tails), 3K (circular), 3K+1 (none); K more of order "linear", 2 fewer where ends are halves."""
    return (4 if linear else 3) * bins + {"linear": -1, "circular": 0, None: 1}[tails] - 2 * half_ends


def _fail(name: str, contract: str, given: object) -> NoReturn:
    raise ValueError(f"ops.rqs: {name} must be {contract}, got {given!r}")


def _number(name: str, given: Any) -> float:
    """A setting as a Python float; numpy's numbers count as numbers, strings do not. NaN and infinity are refused even
    where the parametrization has no use for the setting. By comparisons: with dynamic shapes torch.compile makes a
    setting symbolic, and cannot trace math.isfinite of it."""
    if is_number(given) and -math.inf < given < math.inf:
        return float(given)
    _fail(name, "a finite number", given)


def _box(box: object) -> tuple[float, float, float, float]:
    contract = "(left, right, bottom, top) with left < right and bottom < top, finite"
    if not isinstance(box, (tuple, list)) or len(box) != 4:
        _fail("box", contract, box)
    left, right, bottom, top = (_number("box", b) for b in box)
    if not (-math.inf < left < right < math.inf and -math.inf < bottom < top < math.inf):
        _fail("box", contract, box)
    return left, right, bottom, top


def checked(*settings: Any) -> tuple[Any, ...]:
    """Checks every setting, in the order of the fields of `RQS`, and returns them, each in its own type."""
    (
        bins, tails, tail_bound, box, min_bin_width, min_bin_height, min_derivative, logit_scale, parametrization,
        slope, circle_shift, order, edge_slope, zero_outside, inverse,
    ) = settings  # fmt: skip
    if not is_whole(bins) or not 1 <= bins <= MAX_BINS:
        _fail("bins", f"an integer from 1 to {MAX_BINS}", bins)
    if not (isinstance(order, str) and order in ("quadratic", "linear")):
        _fail("order", '"quadratic" or "linear"', order)
    if not (tails is None or (isinstance(tails, str) and tails in TAILS[1:])):
        _fail("tails", '"linear", "circular" or None', tails)
    tail_bound = _number("tail_bound", tail_bound)
    if box is None:
        if not 0 < tail_bound < math.inf:
            _fail("tail_bound", "positive and finite", tail_bound)
    else:
        box = _box(box)
    min_bin_width, min_bin_height = _number("min_bin_width", min_bin_width), _number("min_bin_height", min_bin_height)
    min_derivative, slope = _number("min_derivative", min_derivative), _number("slope", slope)
    logit_scale, edge_slope = _number("logit_scale", logit_scale), _number("edge_slope", edge_slope)
    # Bounded far beyond what has a use, and where gradients of float32 are numbers still.
    if not 1e-15 <= logit_scale <= 1e15:
        _fail("logit_scale", "positive, from 1e-15 to 1e15", logit_scale)
    if not (isinstance(parametrization, str) and parametrization in PARAMETRIZATIONS):
        _fail("parametrization", '"softmax", "soft_clip" or "half_ends"', parametrization)
    is_softmax = parametrization != "soft_clip"
    if edge_slope != 1 and not (tails == "linear" and is_softmax and 1e-30 <= edge_slope <= 1e30):
        _fail("edge_slope", 'positive, from 1e-30 to 1e30, and 1 for "soft_clip" and tails not "linear"', edge_slope)
    if is_softmax:
        n, shown = (bins - 1, "1/(bins - 1)") if parametrization == "half_ends" else (bins, "1/bins")
        if n < 1:
            _fail("bins", 'at least 2 where parametrization is "half_ends"', bins)
        for name, least in (("min_bin_width", min_bin_width), ("min_bin_height", min_bin_height)):
            if not 0 <= least * n <= 1:
                _fail(name, f"from 0 to {shown} = {1 / n:g}", least)
        most = edge_slope if tails == "linear" else 1e30
        if not 0 <= min_derivative < most:
            _fail("min_derivative", f"from 0 to {most:g} (exclusive)", min_derivative)
        if order == "linear" and min_derivative < 1e-30:  # its formulas divide by the roots of slopes
            _fail("min_derivative", 'positive, from 1e-30 on, where order is "linear"', min_derivative)
    elif not 1e-30 <= slope < 1:
        _fail("slope", "between 0 and 1, from 1e-30 on", slope)
    flags = [
        flag("ops.rqs", name, given)
        for name, given in (("circle_shift", circle_shift), ("zero_outside", zero_outside), ("inverse", inverse))
    ]
    return (
        int(bins), tails, tail_bound, box, min_bin_width, min_bin_height, min_derivative, logit_scale, parametrization,
        slope, flags[0], order, edge_slope, flags[1], flags[2],
    )  # fmt: skip


@renamed_arguments(half_turn="circle_shift")
@dataclass(frozen=True)
class RQS(Map):
    r"""The monotonic rational spline, quadratic or linear, as a value: ``RQS(**s)(x, params)`` is ``ops.rqs(x, params,
    **s)``, where formula, shapes and dtypes are written.

    P = ``n_params`` = 3K-1 (linear tails), 3K (circular), 3K+1 (no tails), K = ``bins``; K more of order ``"linear"``,
    2 fewer of ``"half_ends"``. Frozen, hashable, equal to one of the same settings; copies are the value itself.

    flowjax's spline with K-1 ``knots`` on [-B, B], B its ``interval``, is ``RQS(K, None, B, min_bin_width=w,
    min_bin_height=w)`` with w = ``min_width``/2B from version 18 on, and up to 17 the same with
    ``parametrization="half_ends"`` and w = a/((1 + a)(K-1)), a its ``softmax_adjust``. (Of an interval of two ends,
    ``box``, and its length in place of 2B.) flowjax adds what its networks return to ``identity``.

    Args:
        bins, tails, tail_bound, box, min_bin_width, min_bin_height, min_derivative, logit_scale, parametrization,
            slope, circle_shift, order, edge_slope, zero_outside: see `flowkernels.ops.rqs`.
        inverse: this is the map y → x.

    Raises:
        ValueError: a setting breaks the contract of `flowkernels.ops.rqs`.

    Reference:
        Durkan, Bekasov, Murray, Papamakarios: Neural Spline Flows, NeurIPS 2019, arXiv:1906.04032.

    Example:
        >>> import torch
        >>> from flowkernels.ops import RQS
        >>> spline = RQS(bins=8, tail_bound=5.0)
        >>> x, params = torch.randn(4, 2), torch.randn(4, 2, spline.n_params)
        >>> y, ladj = spline(x, params)
        >>> back, _ = spline.inverted()(y, params)
        >>> torch.allclose(back, x, atol=1e-4), spline == RQS(8, tail_bound=5)
        (True, True)
    """

    bins: int = 8
    tails: str | None = "linear"
    tail_bound: float = 3.0
    box: tuple[float, float, float, float] | None = None
    min_bin_width: float = 1e-3
    min_bin_height: float = 1e-3
    min_derivative: float = 1e-3
    logit_scale: float = 1.0
    parametrization: str = "softmax"
    slope: float = 1e-3
    circle_shift: bool = False
    order: str = "quadratic"
    edge_slope: float = 1.0
    zero_outside: bool = False
    inverse: bool = False
    n_params: int = field(init=False, repr=False, compare=False)
    identity: tuple[float, ...] = field(init=False, repr=False, compare=False)

    _op: ClassVar[Any]  # set by the package, as the op's backends read this class
    half_turn = renamed_property("half_turn", "circle_shift")

    def _settle(self) -> None:
        self._set(_FIELDS, checked(*[getattr(self, name) for name in _FIELDS]))
        object.__setattr__(self, "n_params", self._count_params())

    def _count_params(self) -> int:
        return count_params(self.bins, self.tails, self.order == "linear", self.parametrization == "half_ends")

    def _derived(self) -> dict[str, Any]:
        n_params, n_sizes = self._count_params(), 2 * (self.bins - (self.parametrization == "half_ends"))
        n_shares = self.bins if self.is_linear else 0
        n_slopes = n_params - n_sizes - n_shares
        reachable = self.is_clipped or self.min_derivative < 1  # slope 1 is, for free ends, not always
        slope_one = self._logit_of(1.0) if reachable else 0.0
        # Equal bins with slope 1 at every knot are a straight line.
        identity = (0.0,) * n_sizes + (slope_one,) * n_slopes + (0.0,) * n_shares
        refusals = (self._refusal(False), self._refusal(True))
        return {"n_params": n_params, "identity": identity, "_refusals": refusals}

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
        """See `flowkernels.ops.univariate.Map`, whose call this is."""
        if inverse is not False and (inverse is True or flag("ops.rqs", "inverse", inverse)):
            self = self.inverted()
        if event_dims != 1 or mask is not None:
            return by_element(self, x, params, event_dims, mask, backend)
        wide = getattr(x, "dtype", None) is torch.float64 or getattr(params, "dtype", None) is torch.float64
        if torch.compiler.is_compiling():  # where only the fields are sure to be there
            refusal, P = self._refusal(wide), self._count_params()
        else:
            refusal, P = self._refusals[wide], self.n_params
        if refusal is not None:
            raise ValueError(refusal)
        if not (
            isinstance(x, Tensor)
            and isinstance(params, Tensor)
            and params.shape == (*x.shape, P)
            and x.dim() > 0
            and x.dtype in DTYPES
            and params.dtype in DTYPES
            and x.device == params.device
            and x.layout is params.layout is torch.strided
        ):
            refuse_tensors("ops.rqs", x, params, P)
        # By the class's name, as in ops/affine/spec.py.
        if not (self.circle_shift or self.zero_outside or self.parametrization == "half_ends"):
            return RQS._op(self, backend, x, params)
        return self._around(lambda spline, v, p: RQS._op(spline, backend, v, p), x, params)

    def _around(self, plain: Any, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """The map, of which `plain` runs what kernels know: a spline on its box, with a logit for each of its bins."""
        v = shifted(x, self) if self.circle_shift and not self.inverse else x
        if self.parametrization == "half_ends":
            y, ladj = plain(self._of_logits(), v, logits_of_bins(params, self))
            y = y.to(torch.promote_types(x.dtype, params.dtype))  # logits are float32 at the least
        else:
            y, ladj = plain(self, v, params)
        y = zeroed(y, v, self) if self.zero_outside else y
        return shifted(y, self) if self.circle_shift and self.inverse else y, ladj

    # ---- what fused ops ask ----

    def reference(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return self._around(reference.fwd, x, params)

    def _of_logits(self) -> RQS:
        """The spline on its box whose bins have what `logits_of_bins` returns."""
        settings = {name: getattr(self, name) for name in _FIELDS}
        whole = {"min_bin_width": 0.0, "min_bin_height": 0.0, "logit_scale": 1.0, "parametrization": "softmax"}
        return RQS.kept(**{**settings, **whole, "circle_shift": False, "zero_outside": False})

    def check(self, op: str, wide: bool) -> None:
        """Raises where the box, its bins or their slopes have no numbers in the type that is computed in."""
        refusal = self._refusal(wide) if torch.compiler.is_compiling() else self._refusals[wide]
        if refusal is not None:
            raise ValueError(refusal)

    def why_not(self, backend: str) -> str | None:
        if self.parametrization == "half_ends" and backend != "reference":
            return 'no kernel for the parametrization "half_ends"'
        if backend in ("cuda", "triton"):
            return NO_LINEAR if self.is_linear else "no kernel for zero_outside" if self.zero_outside else None
        return None

    def zeroed(self, of: Tensor, v: Tensor) -> Tensor:
        """`of`, and 0 where v is outside of the box."""
        return zeroed(of, v, self)

    def settings(self, module: Any) -> Any:
        """The spline on its box as this compiled module's `rqs_fwd` takes it; made once."""
        found = self._handles.get((module, "rqs"))
        if found is None:
            clip = 1 / -math.log(self.slope) if self.is_clipped else 0.0
            found = self._handles[module, "rqs"] = module.RqsSpec(
                self.bins, TAILS.index(self.tails or "none"), self.left, self.right, self.bottom, self.top,
                self.least_width, self.least_height, self.least_slope, self.logit_scale, 2 * clip, clip,
                self.edge_logit, self.inverse, self.min_lambda,
            )  # fmt: skip
        return found

    def _handle(self, module: Any) -> Any:
        return module.UnivariateMap(self.settings(module))

    def constants(self, wide: bool) -> dict[str, Any]:
        return {"SPLINE": True, **self.numbers(wide)}

    @functools.lru_cache(maxsize=1024)  # noqa: B019  (settings, not data: kept for good anyway)
    def numbers(self, wide: bool) -> dict[str, Any]:
        """The spline on its box, as constants of a Triton kernel: its arguments would be float32 beside float64."""
        self.check("ops.rqs", wide)
        least = 1e-24 if wide else 1e-12  # far below the spacing of x, and large enough that (h/w)^2 stays finite
        K, width, height = self.bins, self.right - self.left, self.top - self.bottom
        thinnest, flattest = width * max(self.least_width, least), height * max(self.least_height, least)
        return {
            "K": K, "TAILS": self.tails or "none", "LEFT": self.left, "RIGHT": self.right, "BOTTOM": self.bottom,
            "TOP": self.top, "FREE_X": width * (1 - self.least_width * K), "LEAST_X": thinnest,
            "FREE_Y": height * (1 - self.least_height * K), "LEAST_Y": flattest,
            "MIN_SLOPE": self.least_slope, "SCALE": self.logit_scale,
            "CLIP": 1 / -math.log(self.slope) if self.is_clipped else 0.0, "EDGE": self.edge_logit,
            "INVERSE": self.inverse,
        }  # fmt: skip

    # ---- numbers that follow from the settings ----

    @property
    def left(self) -> float:
        return -self.tail_bound if self.box is None else self.box[0]

    @property
    def right(self) -> float:
        return self.tail_bound if self.box is None else self.box[1]

    @property
    def bottom(self) -> float:
        return -self.tail_bound if self.box is None else self.box[2]

    @property
    def top(self) -> float:
        return self.tail_bound if self.box is None else self.box[3]

    @property
    def is_linear(self) -> bool:
        """Whether the spline is linear rational: two pieces a bin, and K logits of their shares among its params."""
        return self.order == "linear"

    @property
    def min_lambda(self) -> float:
        """The smallest share of a bin on either side of its split; 0: none is split."""
        return MIN_LAMBDA if self.order == "linear" else 0.0

    @property
    def is_clipped(self) -> bool:
        return self.parametrization == "soft_clip"

    @property
    def least_width(self) -> float:
        return self.min_bin_width if self.parametrization == "softmax" else 0.0

    @property
    def least_height(self) -> float:
        return self.min_bin_height if self.parametrization == "softmax" else 0.0

    @property
    def least_slope(self) -> float:
        return 0.0 if self.is_clipped else self.min_derivative

    @property
    def edge_logit(self) -> float:
        """The slope logit that gives `edge_slope`; only linear tails, whose min_derivative is below it, need one."""
        return self._logit_of(self.edge_slope)

    def _logit_of(self, slope: float) -> float:
        if self.is_clipped or self.min_derivative >= slope:
            return 0.0
        softplus = slope - self.min_derivative
        return softplus if softplus > 50 else math.log(math.expm1(softplus))

    def _refusal(self, wide: bool) -> str | None:
        """Why the box, its bins or their slopes have no numbers in the type that is computed in, float32 or (wide)
        float64: what lies far from 1 has no squares. Compiled kernels ask the same, in csrc/rqs/rqs_args.cpp."""
        power, least = (1010, 1e-24) if wide else (120, 1e-12)
        tiny, huge, steep = 2.0**-power, 2.0**power, 2.0 ** (power // 2)
        box = (self.left, self.right, self.bottom, self.top)
        far_x, far_y = max(-self.left, self.right), max(-self.bottom, self.top)  # from 0; the ends are in order
        width, height = self.right - self.left, self.top - self.bottom
        thin, flat = width * max(self.least_width, least), height * max(self.least_height, least)
        ordered = wide or (width > 2.0**-23 * far_x and height > 2.0**-23 * far_y)
        in_range = max(far_x, far_y, width, height) <= huge and min(thin, flat) >= tiny
        if ordered and in_range and height <= steep * thin and width <= steep * flat:
            return None
        contract = (
            f"one whose bins and their slopes are numbers of {'float64' if wide else 'float32'}, far from its ends"
        )
        return f"ops.rqs: tail_bound or box must be {contract}, got {box!r}"

    # ---- as the numbers of a library op's schema ----

    schema: ClassVar[dict[str, type]] = {
        "bins": int, "tails": str, "left": float, "right": float, "bottom": float, "top": float,
        "min_bin_width": float, "min_bin_height": float, "min_derivative": float, "logit_scale": float, "slope": float,
        "inverse": bool, "edge_slope": float, "min_lambda": float,
    }  # fmt: skip

    def packed(self) -> tuple[Any, ...]:
        return (
            self.bins, self.tails or "none", self.left, self.right, self.bottom, self.top, self.least_width,
            self.least_height, self.least_slope, self.logit_scale, self.slope if self.is_clipped else 0.0,
            self.inverse, self.edge_slope, self.min_lambda,
        )  # fmt: skip

    @staticmethod
    def from_packed(*numbers: Any) -> RQS:
        """The spline on its box. Unchecked: with dynamic shapes the numbers are symbols, on which a check would be a
        guard."""
        given = dict(zip(RQS.schema, numbers, strict=True))
        box, tails = tuple(given.pop(side) for side in ("left", "right", "bottom", "top")), given["tails"]
        order = "quadratic" if given.pop("min_lambda") == 0 else "linear"
        self = object.__new__(RQS)
        vars(self).update(
            given, tails=None if tails == "none" else tails, tail_bound=0.0, box=box, circle_shift=False, order=order,
            parametrization="softmax" if given["slope"] == 0 else "soft_clip", zero_outside=False,
            _refusals=(None, None), _handles={},
        )  # fmt: skip
        return self


_FIELDS = tuple(f.name for f in fields(RQS) if f.init)

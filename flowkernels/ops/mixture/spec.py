"""The mixture map as a value: its settings, checked when they are put together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NoReturn

from torch import Tensor

from flowkernels._arguments import flag, is_number, is_whole
from flowkernels.ops.univariate import Map, by_element, refuse_tensors

from . import reference

KERNELS = ("logistic", "normal")  # the order of csrc/mixture/mixture.h
OUTERS = ("logit", "probit", "unit")
PARAMETRIZATIONS = ("weights", "shifts")
MAX_COMPONENTS = 128
WIDEST = 20.0  # of log-scales: beyond, float32 has no products of two of them
BOUNDS = 1e-30, 1e30
LEAST_SHRINK = 1e-12  # below, the quantile of half of it is no longer that of an ordinary number
_SPREAD = 0.2  # of the means at the identity


def _fail(name: str, contract: str, given: object) -> NoReturn:
    raise ValueError(f"ops.mixture: {name} must be {contract}, got {given!r}")


def checked(*settings: Any) -> tuple[Any, ...]:
    """Checks every setting, in the order of the fields of `Mixture`, and returns them, each in its own type."""
    components, kernel, outer, low, high, parametrization, shrink, bound, inverse = settings
    if not is_whole(components) or not 1 <= components <= MAX_COMPONENTS:
        _fail("components", f"an integer from 1 to {MAX_COMPONENTS}", components)
    if not (isinstance(kernel, str) and kernel in KERNELS):
        _fail("kernel", f"one of {', '.join(KERNELS)}", kernel)
    if not (isinstance(outer, str) and outer in OUTERS):
        _fail("outer", f"one of {', '.join(OUTERS)}", outer)
    for name, value in (("min_log_scale", low), ("max_log_scale", high)):
        if not is_number(value) or not -WIDEST <= value <= WIDEST:
            _fail(name, f"a number from {-WIDEST:g} to {WIDEST:g}", value)
    if not low < high:
        _fail("min_log_scale", f"below max_log_scale = {high!r}", low)
    if not (isinstance(parametrization, str) and parametrization in PARAMETRIZATIONS):
        _fail("parametrization", f"one of {', '.join(PARAMETRIZATIONS)}", parametrization)
    if not is_number(shrink) or not (shrink == 0 or LEAST_SHRINK <= shrink <= 0.5):
        _fail("shrink", f"0 or a number from {LEAST_SHRINK:g} to 0.5", shrink)
    if shrink != 0 and outer != "probit":
        _fail("shrink", f"0 where outer is {outer!r}", shrink)
    if not is_number(bound) or not BOUNDS[0] <= bound <= BOUNDS[1]:
        _fail("bound", f"a number from {BOUNDS[0]:g} to {BOUNDS[1]:g}", bound)
    way = flag("ops.mixture", "inverse", inverse)
    return components, kernel, outer, float(low), float(high), parametrization, float(shrink), float(bound), way


def _params_of(components: int, parametrization: str) -> int:
    return (2 if parametrization == "shifts" else 3) * components


@dataclass(frozen=True)
class Mixture(Map):
    r"""The mixture map as a value: ``Mixture(**s)(x, params)`` is ``ops.mixture(x, params, **s)``, where the formula,
    shapes and dtypes are written.

    P = ``n_params`` = 3K or, of shifts, 2K, K = ``components``. Frozen, hashable, equal to one of the same settings;
    copies are the value itself. At its ``identity`` the means are spread a little, so that training tells the
    components apart: it is the identity up to 1e-2 on most of the line; of ``"unit"``, whose y lie in (0, 1), up to its
    logit.

    Args:
        components: K, from 1 to 128.
        kernel, outer, min_log_scale, max_log_scale, parametrization, shrink, bound: see `flowkernels.ops.mixture`.
        inverse: this is the map y → x.

    Raises:
        ValueError: a setting breaks the contract of `flowkernels.ops.mixture`.

    Reference:
        Huang, Krueger, Lacoste, Courville: Neural Autoregressive Flows, ICML 2018, arXiv:1804.00779.

    Example:
        >>> import torch
        >>> from flowkernels.ops import Mixture
        >>> mixture = Mixture(4)
        >>> x, params = torch.randn(5, 2), torch.randn(5, 2, mixture.n_params)
        >>> y, ladj = mixture(x, params)
        >>> back, _ = mixture.inverted()(y, params)
        >>> torch.allclose(back, x, atol=1e-4), mixture == Mixture(4, "logistic")
        (True, True)
    """

    components: int = 8
    kernel: str = "logistic"
    outer: str = "logit"
    min_log_scale: float = -7.0
    max_log_scale: float = 7.0
    parametrization: str = "weights"
    shrink: float = 0.0
    bound: float = 10.0
    inverse: bool = False
    n_params: int = field(init=False, repr=False, compare=False)
    identity: tuple[float, ...] = field(init=False, repr=False, compare=False)

    _op: ClassVar[Any]  # set by the package, as the op's backends read this class

    def _settle(self) -> None:
        self._set(_FIELDS, checked(*[getattr(self, name) for name in _FIELDS]))
        object.__setattr__(self, "n_params", _params_of(self.components, self.parametrization))

    def _derived(self) -> dict[str, Any]:
        return {"n_params": _params_of(self.components, self.parametrization), "identity": self._identity()}

    def _identity(self) -> tuple[float, ...]:
        """Equal weights and scales, spread means, the variance of the distribution that `outer` is the quantile of."""
        K, logistic = self.components, math.pi**2 / 3
        means = [_SPREAD * (2 * k - (K - 1)) / max(K - 1, 1) for k in range(K)]
        of_outer = {"logit": logistic, "probit": 1.0}.get(self.outer, logistic if self.kernel == "logistic" else 1.0)
        of_kernel = logistic if self.kernel == "logistic" else 1.0
        log_scale = 0.5 * math.log((of_outer - sum(m * m for m in means) / K) / of_kernel)
        log_scale = min(max(log_scale, self.min_log_scale), self.max_log_scale)
        if self.parametrization == "shifts":
            return tuple(-m * math.exp(-log_scale) for m in means) + (-log_scale,) * K
        return (0.0,) * K + tuple(means) + (log_scale,) * K

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
        if inverse is not False and (inverse is True or flag("ops.mixture", "inverse", inverse)):
            self = self.inverted()
        if event_dims != 1 or mask is not None:
            return by_element(self, x, params, event_dims, mask, backend)
        refuse_tensors("ops.mixture", x, params, _params_of(self.components, self.parametrization))
        # By the class's name, as in ops/affine/spec.py.
        return Mixture._op(self, backend, x, params)

    # ---- what fused ops ask ----

    def reference(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return reference.fwd(self, x, params)

    def why_not(self, backend: str) -> str | None:
        return "no kernel for mixtures in fused layers on triton" if backend == "triton" else None

    def settings(self, module: Any) -> Any:
        """The map as this compiled module's `mixture_fwd` takes it; made once."""
        found = self._handles.get((module, "mixture"))
        if found is None:
            found = self._handles[module, "mixture"] = module.MixtureSpec(
                self.components, KERNELS.index(self.kernel), OUTERS.index(self.outer), self.min_log_scale,
                self.max_log_scale, self.parametrization == "shifts", self.shrink, self.bound, self.inverse,
            )  # fmt: skip
        return found

    def _handle(self, module: Any) -> Any:
        return module.UnivariateMap(self.settings(module))

    # ---- settings as a library op's schema has them ----

    schema: ClassVar[dict[str, type]] = {
        "components": int, "kernel": str, "outer": str, "min_log_scale": float, "max_log_scale": float,
        "parametrization": str, "shrink": float, "bound": float, "inverse": bool,
    }  # fmt: skip

    def packed(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.schema)

    @staticmethod
    def from_packed(*settings: Any) -> Mixture:
        """Unchecked: with dynamic shapes the numbers are symbols, on which a check would be a guard."""
        made = object.__new__(Mixture)
        vars(made).update(zip(Mixture.schema, settings, strict=True))
        vars(made).update(n_params=_params_of(settings[0], settings[5]), _handles={})
        return made


_FIELDS = tuple(f.name for f in fields(Mixture) if f.init)

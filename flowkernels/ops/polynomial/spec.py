"""The polynomial map as a value: its settings, checked when they are put together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NoReturn

from torch import Tensor

from flowkernels._arguments import flag, is_number, is_whole
from flowkernels.ops.univariate import Map, by_element, refuse_tensors

from . import reference
from .quadrature import MOST_NODES, RULES

FAMILIES = ("sos", "bernstein")
TAILS = ("identity", "linear")
SQUARES = ("mean", "sum")
MOST_SOS_DEGREE, MOST_TERMS, MOST_BERNSTEIN_DEGREE = MOST_NODES - 1, 32, 64


def _fail(name: str, contract: str, given: object) -> NoReturn:
    raise ValueError(f"ops.polynomial: {name} must be {contract}, got {given!r}")


def _choice(name: str, options: tuple[str, str], given: Any) -> str:
    if not (isinstance(given, str) and given in options):
        _fail(name, " or ".join(f'"{o}"' for o in options), given)
    return given


def _number(name: str, given: Any, low: float, high: float) -> float:
    if not (is_number(given) and low <= given <= high):
        _fail(name, f"a number from {low:g} to {high:g}", given)
    return float(given)


def checked(*settings: Any) -> tuple[Any, ...]:
    """Checks every setting, in the order of the fields of `Polynomial`, and returns them, each in its own type."""
    family, degree, terms, bound, slope, squares, shift, bounded, tails, edge, inverse = settings
    family = _choice("family", FAMILIES, family)
    of_squares = family == "sos"
    least, most = (0, MOST_SOS_DEGREE) if of_squares else (1, MOST_BERNSTEIN_DEGREE)
    if degree is None:
        degree = 4 if of_squares else 16
    if not is_whole(degree) or not least <= degree <= most:
        _fail("degree", f'an integer from {least} to {most} where family is "{family}"', degree)
    if not is_whole(terms) or not 1 <= terms <= MOST_TERMS:
        _fail("terms", f"an integer from 1 to {MOST_TERMS}", terms)
    if bound is None:
        bound = 10.0 if of_squares else 5.0
    bound, slope = _number("bound", bound, 1e-15, 1e15), _number("slope", slope, 1e-15, 1e15)
    squares, tails = _choice("squares", SQUARES, squares), _choice("tails", TAILS, tails)
    edge = _number("edge", edge, 0, 0.1)
    shift, bounded = flag("ops.polynomial", "shift", shift), flag("ops.polynomial", "bounded", bounded)
    inverse = flag("ops.polynomial", "inverse", inverse)
    return family, int(degree), int(terms), bound, slope, squares, shift, bounded, tails, edge, inverse


@dataclass(frozen=True)
class Polynomial(Map):
    r"""The polynomial map as a value: ``Polynomial(**s)(x, params)`` is ``ops.polynomial(x, params, **s)``, where
    formulas, shapes and dtypes are written.

    P = ``n_params`` = K(L+1) + 1 of sums of squares, K = ``terms``, L = ``degree`` (without the 1 where ``shift`` is
    False); ``degree`` + 1 of Bernstein polynomials. Frozen, hashable, equal to one of the same settings; copies are the
    value itself.

    Args:
        family, degree, terms, bound, slope, squares, shift, bounded, tails, edge: see `flowkernels.ops.polynomial`.
        inverse: this is the map y → x.

    Raises:
        ValueError: a setting breaks the contract of `flowkernels.ops.polynomial`.

    Reference:
        Jaini, Selby, Yu: Sum-of-Squares Polynomial Flow, ICML 2019, arXiv:1905.02325.

    Example:
        >>> import torch
        >>> from flowkernels.ops import Polynomial
        >>> sos = Polynomial(degree=3, terms=2)
        >>> x, params = torch.randn(4, 2), torch.randn(4, 2, sos.n_params)
        >>> y, ladj = sos(x, params)
        >>> back, _ = sos.inverted()(y, params)
        >>> torch.allclose(back, x, atol=1e-4), sos.n_params, sos == Polynomial("sos", 3, 2)
        (True, 9, True)
    """

    family: str = "sos"
    degree: int = None  # type: ignore[assignment]  # once made, the default of its family
    terms: int = 3
    bound: float = None  # type: ignore[assignment]
    slope: float = 1e-3
    squares: str = "mean"
    shift: bool = True
    bounded: bool = False
    tails: str = "identity"
    edge: float = 0.0
    inverse: bool = False
    n_params: int = field(init=False, repr=False, compare=False)
    identity: tuple[float, ...] = field(init=False, repr=False, compare=False)

    _op: ClassVar[Any]  # set by the package, as the op's backends read this class

    def _settle(self) -> None:
        self._set(_FIELDS, checked(*[getattr(self, name) for name in _FIELDS]))
        object.__setattr__(self, "n_params", self._count_params())

    def _count_params(self) -> int:
        return self.terms * (self.degree + 1) + self.shift if self.of_squares else self.degree + 1

    def _derived(self) -> dict[str, Any]:
        return {"n_params": self._count_params(), "identity": self._identity()}

    def _identity(self) -> tuple[float, ...]:
        n = self._count_params()
        if not self.of_squares:
            if self.tails == "identity":
                return (0.0,) * n  # equal steps are a straight line
            step = 2 * self.bound / (n + 1)
            logit = step + math.log(-math.expm1(-step))  # the softplus of which is the step
            return (self.lowered - self.bound, *(logit,) * (n - 1))
        root = math.sqrt(max(0.0, 1 - self.slope) / (self.terms * self.weight))
        of_term = (root - self.centre, *(0.0,) * self.degree)
        return of_term * self.terms + (0.0,) * self.shift

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
        if inverse is not False and (inverse is True or flag("ops.polynomial", "inverse", inverse)):
            self = self.inverted()
        if event_dims != 1 or mask is not None:
            return by_element(self, x, params, event_dims, mask, backend)
        # Where a compiler traces, only the fields are sure to be there.
        refuse_tensors("ops.polynomial", x, params, self._count_params())
        # By the class's name, as in ops/affine/spec.py.
        return Polynomial._op(self, backend, x, params)

    # ---- what fused ops ask ----

    def reference(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return reference.fwd(self, x, params)

    def why_not(self, backend: str) -> str | None:
        return f"no kernel for polynomials in fused layers on {backend}" if backend == "triton" else None

    def settings(self, module: Any) -> Any:
        """The polynomial as this compiled module's `polynomial_fwd` takes it; made once."""
        found = self._handles.get((module, "polynomial"))
        if found is None:
            rule = RULES[self.degree] if self.of_squares else ((), ())
            found = self._handles[module, "polynomial"] = module.PolynomialSpec(
                self.of_squares, self.degree, self.terms, self.bound, self.slope, self.centre, self.weight, self.shift,
                self.bounded, self.tails == "linear", self.edge, self.inverse, *map(list, rule),
            )  # fmt: skip
        return found

    def _handle(self, module: Any) -> Any:
        return module.UnivariateMap(self.settings(module))

    # ---- numbers that follow from the settings ----

    @property
    def of_squares(self) -> bool:
        return self.family == "sos"

    @property
    def centre(self) -> float:
        """The squared polynomials where all coefficients are 0."""
        return 1.0 if self.squares == "mean" else 0.0

    @property
    def weight(self) -> float:
        """That of each square."""
        return 1 / self.terms if self.squares == "mean" else 1.0

    @property
    def end(self) -> float:
        """The two outer steps of a Bernstein polynomial at either end of its box: slope 1 and no curvature there."""
        return 2 * self.bound / (self._count_params() + 4)

    @property
    def free(self) -> float:
        """What the inner steps share."""
        return 2 * self.bound - 4 * self.end

    @property
    def lowered(self) -> float:
        """What zuko takes off the first coefficient: half of the way that steps of softplus(0) go."""
        return math.log(2.0) * self._count_params() / 2

    # ---- as the numbers of a library op's schema ----

    schema: ClassVar[dict[str, type]] = {
        "family": str, "degree": int, "terms": int, "bound": float, "slope": float, "squares": str, "shift": bool,
        "bounded": bool, "tails": str, "edge": float, "inverse": bool,
    }  # fmt: skip

    def packed(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in _FIELDS)

    @staticmethod
    def from_packed(*numbers: Any) -> Polynomial:
        """Unchecked: with dynamic shapes the numbers are symbols, on which a check would be a guard."""
        self = object.__new__(Polynomial)
        vars(self).update(zip(_FIELDS, numbers, strict=True), _handles={})
        return self


_FIELDS = tuple(f.name for f in fields(Polynomial) if f.init)

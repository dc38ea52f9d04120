"""The spline function that speech models of the VITS family carry as a copy, fused, by its signature.

Such a model has no package of its own to be known by. What is known is the function, by name, parameters and, once, by
the values it returns; a module whose methods call it gets these methods with the fused function in its place. What
differs by design is what differs for nflows' function, whose copy it is: outside the box without tails y = x where it
raises, and an inverse never asserts.
"""

from __future__ import annotations

import dis
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .library import Entry
from .spline_of_parts import spline_of_parts
from .swap import PureLayer, overridden


def piecewise_rational_quadratic_transform(
    inputs: Tensor,
    unnormalized_widths: Tensor,
    unnormalized_heights: Tensor,
    unnormalized_derivatives: Tensor,
    inverse: bool = False,
    tails: str | None = None,
    tail_bound: float = 1.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    r"""VITS' function of this name: the spline of `flowkernels.ops.rqs`, of every element with its own parameters.

    .. math:: y_i = f(x_i; \text{widths}_i, \text{heights}_i, \text{derivatives}_i), \quad
        \text{logabsdet}_i = \log |dy_i/dx_i|

    Args:
        inputs: ``[...]``; float32, float64, bfloat16 or float16.
        unnormalized_widths, unnormalized_heights: ``[..., K]``.
        unnormalized_derivatives: ``[..., K-1]`` with linear tails, ``[..., K+1]`` without.
        inverse: evaluate y → x.
        tails: ``"linear"``: the box is [-tail_bound, tail_bound]; None: it is [0, 1].
        tail_bound: half the side of the box.
        min_bin_width, min_bin_height: smallest bin sizes as a fraction of the box.
        min_derivative: smallest slope at a knot.

    Returns:
        outputs ``[...]`` and logabsdet ``[...]`` in nats, per element (float32 for 16-bit inputs).

    Raises:
        RuntimeError: other tails, as VITS.
        ValueError: a shape or setting breaks its contract.

    Reference:
        Durkan, Bekasov, Murray, Papamakarios: Neural Spline Flows, NeurIPS 2019, arXiv:1906.04032; Kim, Kong, Son:
        VITS, ICML 2021, arXiv:2106.06103.

    Example:
        >>> import torch
        >>> from flowkernels.compat.vits import piecewise_rational_quadratic_transform
        >>> x, w, h, d = torch.zeros(5), torch.zeros(5, 4), torch.zeros(5, 4), torch.zeros(5, 3)
        >>> piecewise_rational_quadratic_transform(x, w, h, d, tails="linear")[0]
        tensor([0., 0., 0., 0., 0.])
    """
    if tails not in (None, "linear"):
        raise RuntimeError(f"{tails} tails are not implemented.")
    parts = (unnormalized_widths, unnormalized_heights, unnormalized_derivatives)
    box = (0.0, 1.0, 0.0, 1.0) if tails is None else None
    return spline_of_parts(
        inputs, parts, tails=tails, tail_bound=tail_bound, box=box, min_bin_width=min_bin_width,
        min_bin_height=min_bin_height, min_derivative=min_derivative, inverse=inverse,
    )  # fmt: skip


def unconstrained_rational_quadratic_spline(
    inputs: Tensor,
    unnormalized_widths: Tensor,
    unnormalized_heights: Tensor,
    unnormalized_derivatives: Tensor,
    inverse: bool = False,
    tails: str = "linear",
    tail_bound: float = 1.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """The same with linear tails by default, which are the only ones; see `piecewise_rational_quadratic_transform`.

    Example:
        >>> import torch
        >>> from flowkernels.compat.vits import unconstrained_rational_quadratic_spline
        >>> sizes = [(2,), (2, 4), (2, 4), (2, 3)]
        >>> unconstrained_rational_quadratic_spline(*(torch.zeros(s) for s in sizes))[0]
        tensor([0., 0.])
    """
    if tails != "linear":
        raise RuntimeError(f"{tails} tails are not implemented.")
    return piecewise_rational_quadratic_transform(
        inputs, unnormalized_widths, unnormalized_heights, unnormalized_derivatives, inverse, tails, tail_bound,
        min_bin_width, min_bin_height, min_derivative,
    )  # fmt: skip


_PREFIX = "_flowkernels_"  # of the names that the fused functions have in the modules of a model
_FUSED = {f.__name__: f for f in (piecewise_rational_quadratic_transform, unconstrained_rational_quadratic_spline)}


@functools.lru_cache(maxsize=64)
def why_not(theirs: Callable[..., Any]) -> str | None:
    """Why a function of one of the two names is not VITS', or None."""
    name = theirs.__name__
    fused = _FUSED[name]
    found, known = ([*inspect.signature(f).parameters.values()] for f in (theirs, fused))
    if [(p.name, p.default) for p in found] != [(p.name, p.default) for p in known]:
        return f"the parameters of its {name} are not those of VITS"
    generator = torch.Generator().manual_seed(0)
    x, params = (torch.randn(s, generator=generator, dtype=torch.float64, device="cpu") for s in ((64,), (64, 14)))
    arguments = (x, params[:, :5], params[:, 5:10], params[:, 10:])
    for inverse in (False, True):
        try:
            results = [f(*arguments, inverse=inverse, tails="linear", tail_bound=1.5) for f in (theirs, fused)]
            torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)
        except Exception as error:
            return f"its {name} does not return what VITS' does: {str(error).splitlines()[0]}"
    return None


@functools.lru_cache(maxsize=256)
def _layer(cls: type) -> tuple[type[PureLayer] | None, str | None]:
    """The methods of a class that call such a function, with the fused one; or why they cannot have it."""
    body: dict[str, Any] = {}
    for name, method in vars(cls).items():
        if not isinstance(method, types.FunctionType):
            continue
        called = [n for n in _FUSED if n in method.__code__.co_names and n in method.__globals__]
        for function in called:
            reason = why_not(method.__globals__[function])
            if reason is not None:
                return None, reason
        if called:
            code = method.__code__
            if any(i.argval in called and i.opname != "LOAD_GLOBAL" for i in dis.get_instructions(code)):
                return None, "a method uses the name of its spline function for something else too"
            # In the method's own globals, not a copy: what else it reads there may change.
            method.__globals__.update({_PREFIX + n: _FUSED[n] for n in called})
            names = tuple(_PREFIX + n if n in called else n for n in code.co_names)
            body[name] = types.FunctionType(
                code.replace(co_names=names), method.__globals__, method.__name__, method.__defaults__,
                method.__closure__,
            )  # fmt: skip
            body[name].__kwdefaults__ = method.__kwdefaults__
    if not body:
        return None, None
    return types.new_class(cls.__name__, (PureLayer,), exec_body=lambda namespace: namespace.update(body)), None


class Copies:
    """What the other adapters' `Library` is, for modules of any package."""

    def match(self, module: nn.Module) -> Entry | str | None:
        for cls in type(module).__mro__:
            if cls is nn.Module or cls.__module__.startswith("torch."):
                return None
            layer, reason = _layer(cls)
            if layer is not None:
                methods = frozenset(n for n, f in vars(layer).items() if isinstance(f, types.FunctionType))
                return overridden(module, cls, methods) or Entry(layer, methods)
            if reason is not None:
                return reason
        return None

    def rows(self) -> list[tuple[str, str]]:
        return [("any class whose methods call a copy of " + name, "spline") for name in _FUSED]

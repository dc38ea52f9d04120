"""Polynomial maps: raw conditioner output → y and log |det J|; no exponential of x in either direction."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from flowkernels.ops import _row_params
from flowkernels.ops._routing import Op

from . import native, reference, triton
from .spec import Polynomial, checked

__all__ = ["Polynomial", "polynomial"]

_kept = functools.lru_cache(maxsize=256, typed=True)(Polynomial)  # typed: True must not pass because 1 has


# Saves x and params for backward, and nothing else.
Polynomial._op = Op(
    "polynomial",
    spec_type=Polynomial,
    reference=reference.fwd,
    table={"cpu": native.cpu, "cuda": native.cuda, "triton": triton, "reference": reference},
    inputs=("x", "params"),
    n_outputs=2,
    fake=_row_params.fake,
    sample=lambda: (Polynomial(), (torch.zeros(1, 1), torch.zeros(1, 1, 16))),
)


def polynomial(
    x: Tensor,
    params: Tensor,
    *,
    family: str = "sos",
    degree: int | None = None,
    terms: int = 3,
    bound: float | None = None,
    slope: float = 1e-3,
    squares: str = "mean",
    shift: bool = True,
    bounded: bool = False,
    tails: str = "identity",
    edge: float = 0.0,
    inverse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Increasing polynomial of every element of ``x``, with its own coefficients.

    ``"sos"``, the integral of a sum of K squared polynomials of degree L, on the whole line:

    .. math:: y = c + \int_0^x \frac{1}{K} \sum_k \left(1 + \sum_{j=0}^L a_{kj} (u/B)^j\right)^2 + \epsilon\; du

    of degree 2L+1; L = 0 is affine. ``"bernstein"``, on the box [-B, B] with t = (x + B)/2B:

    .. math:: y = \sum_{i=0}^N \theta_i \binom{N}{i} t^i (1-t)^{N-i}, \qquad \theta_0 < \theta_1 < \dots < \theta_N

    ``ladj`` is :math:`\sum_D \log |dy/dx|` in nats. ``polynomial(x, params, **s)`` is ``Polynomial(**s)(x, params)``,
    for whoever keeps the settings.

    Args:
        x: ``[..., D]``; float32, float64, bfloat16 or float16.
        params: ``[..., D, P]``; may be a 16-bit type beside a float32 ``x``. Of ``"sos"`` P = K(L+1) + 1, in the order
            a (k by k, each from j = 0 on) | c. Of ``"bernstein"`` P = ``degree`` + 1, see ``tails``.
        family: ``"sos"`` or ``"bernstein"``.
        degree: L, from 0 to 15, 4 by default; of ``"bernstein"`` from 1 to 64, 16 by default.
        terms: K, from 1 to 32.
        bound: B, the unit of the squared polynomials, 10 by default, or half of the box, 5 by default.
        slope: :math:`\epsilon`, the smallest slope of ``"sos"``, at least 1e-15.
        squares: ``"mean"``: as above (zuko); ``"sum"``: :math:`\sum_k (\sum_j a_{kj} (u/B)^j)^2` (the paper, Pyro).
        shift: False: c is 0, and P one less.
        bounded: the inverse stops at -B and B, as zuko's bisection does.
        tails: outside of the box. ``"identity"``: y = x; N = P + 4, the steps of :math:`\theta` are a softmax between
            two fixed ones at either end, by which slope and curvature have no jump (zuko's
            ``BoundedBernsteinTransform``). ``"linear"``: on with the slope of the end, where the curvature is 0;
            N = P + 1, the first parameter is :math:`\theta_0` (less :math:`P/2 \log 2`), the steps are the softplus of
            the others, the outer ones twice (``BernsteinTransform``).
        edge: tails begin at t = ``edge`` and 1 - ``edge`` already (zuko: 1e-6; ``"identity"`` is then x - 2B ``edge``
            below and x + 2B ``edge`` above).
        inverse: evaluate y → x, by Newton's method in a bracket, to the last ulp; ``ladj`` is then that of the inverse.
        backend: run on this one or raise; default: the fastest that can.

    Returns:
        ``y [..., D]`` in the promoted dtype of the inputs and ``ladj [...]`` in float32 (float64 for float64).

    Raises:
        TypeError: an input is not a floating-point tensor.
        ValueError: a shape or setting breaks its contract.

    Reference:
        Jaini, Selby, Yu: Sum-of-Squares Polynomial Flow, ICML 2019, arXiv:1905.02325. Arpogaus et al.: Short-Term
        Density Forecasting of Low-Voltage Load using Bernstein-Polynomial Normalizing Flows, 2022, arXiv:2204.13939.

    Example:
        >>> import torch
        >>> from flowkernels import ops
        >>> _ = torch.manual_seed(0)
        >>> x, params = torch.randn(5, 2), torch.randn(5, 2, 3 * 5 + 1)
        >>> y, ladj = ops.polynomial(x, params)
        >>> back, neg = ops.polynomial(y, params, inverse=True)
        >>> torch.allclose(back, x, atol=1e-4), torch.allclose(ladj, -neg, atol=1e-3)
        (True, True)
    """
    settings = (family, degree, terms, bound, slope, squares, shift, bounded, tails, edge, inverse)
    if torch.compiler.is_compiling():
        # Checked here as well: some compilers make a frozen dataclass without its __post_init__.
        return Polynomial(*checked(*settings))(x, params, backend=backend)
    try:
        spec = _kept(*settings)
    except TypeError:  # a setting without a hash, such as a list
        spec = Polynomial(*settings)  # type: ignore[arg-type]
    return spec(x, params, backend=backend)

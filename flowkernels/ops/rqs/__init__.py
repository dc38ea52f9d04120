"""Rational splines, quadratic or linear: raw conditioner output → y and log |det J|, one pass over memory."""

from __future__ import annotations

import operator

import torch
from torch import Tensor

from flowkernels.ops._checks import DTYPES, check_floating, without_flags
from flowkernels.ops._routing import _jit_tracing

from .autograd import op
from .spec import MAX_BINS, cached_spec_for, count_params, make_spec_for

__all__ = ["MAX_BINS", "rqs"]


def rqs(
    x: Tensor,
    params: Tensor,
    *,
    bins: int,
    tails: str | None = "linear",
    tail_bound: float = 3.0,
    box: tuple[float, float, float, float] | None = None,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
    logit_scale: float = 1.0,
    parametrization: str = "softmax",
    slope: float = 1e-3,
    edge_slope: float = 1.0,
    order: str = "quadratic",
    inverse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Monotonic rational-quadratic spline of every element of ``x``, with its own parameters.

    In the bin with corner :math:`(x_k, y_k)`, width :math:`w`, height :math:`h`, :math:`s = h/w`, knot slopes
    :math:`d_k, d_{k+1}` and :math:`\theta = (x - x_k)/w`,

    .. math:: y = y_k + h \frac{s\theta^2 + d_k\theta(1-\theta)}{s + (d_k + d_{k+1} - 2s)\theta(1-\theta)}

    and ``ladj`` is :math:`\sum_D \log |dy/dx|` in nats. Outside the box ``y = x`` and the contribution is 0.
    Of order ``"linear"`` a bin is split at :math:`\lambda w`, and with :math:`a = \sqrt{d_k}`,
    :math:`b = \sqrt{d_{k+1}}`, :math:`q = \lambda a + (1-\lambda) b`, :math:`m = s/q` its lower piece is

    .. math:: y = y_k + h \frac{\lambda a}{q} \cdot \frac{a\theta}{m(\lambda - \theta) + a\theta}

    and its upper one the same from the upper knot, with :math:`a, b` and :math:`\lambda, 1-\lambda` exchanged.

    Args:
        x: ``[..., D]``; float32, float64, bfloat16 or float16.
        params: ``[..., D, P]``, in the order widths | heights | slopes; P = 3K-1 (linear tails), 3K (circular),
            3K+1 (no tails), K = ``bins``. Of order ``"linear"`` K more, the logits of :math:`\lambda`, come last.
            May be a 16-bit type beside a float32 ``x``.
        bins: K, from 1 to 128.
        tails: ``"linear"``: slope 1 at both ends; ``"circular"``: equal slopes at both ends; ``None``: free slopes.
        tail_bound: the box is [-tail_bound, tail_bound] in x and y.
        box: ``(left, right, bottom, top)`` instead of ``tail_bound``. The smallest and the steepest bin must be numbers
            of float32, unless the tensors are float64: with the default minimum sizes bounds from 1e-33 to 1e35 are.
        min_bin_width, min_bin_height: smallest bin sizes as a fraction of the box.
        min_derivative: smallest slope at a knot.
        logit_scale: multiplies the width and height logits (nflows divides them by the root of the hidden width).
        parametrization: ``"softmax"``: softmax with minimum sizes and softplus slopes (nflows, normflows, glasflow);
            ``"soft_clip"``: softmax of u/(1 + |2u/log slope|), exp of u/(1 + |u/log slope|) (zuko).
        slope: the smallest slope of ``"soft_clip"``.
        edge_slope: the slope at both ends inside the box under linear tails (Pyro has 1 - ``min_derivative`` there).
        order: ``"quadratic"``, or ``"linear"``: linear rational splines (Pyro's default), which CPUs have kernels for;
            λ is from 0.025 to 0.975, and min_derivative above 0.
        inverse: evaluate y → x; ``ladj`` is then that of the inverse.
        backend: run on this one or raise; default: the fastest that can.

    Returns:
        ``y [..., D]`` in the promoted dtype of the inputs and ``ladj [...]`` in float32 (float64 for float64).

    Raises:
        TypeError: an input is not a floating-point tensor.
        ValueError: a shape or setting breaks its contract.

    Reference:
        Durkan, Bekasov, Murray, Papamakarios: Neural Spline Flows, NeurIPS 2019, arXiv:1906.04032.
        Dolatabadi, Erfani, Leckie: Invertible Generative Modeling using Linear Rational Splines, AISTATS 2020,
        arXiv:2001.05168.

    Example:
        >>> import torch
        >>> from flowkernels import ops
        >>> x, params = torch.randn(5, 2), torch.randn(5, 2, 3 * 8 - 1)
        >>> y, ladj = ops.rqs(x, params, bins=8)
        >>> back, neg = ops.rqs(y, params, bins=8, inverse=True)
        >>> torch.allclose(back, x, atol=1e-4), torch.allclose(ladj, -neg, atol=1e-3)
        (True, True)
    """
    if isinstance(bins, Tensor) and _jit_tracing():
        bins = operator.index(bins)  # a size, of which jit.trace makes a tensor
    settings = (
        bins, tails, tail_bound, None if box is None else without_flags(box), min_bin_width, min_bin_height,
        min_derivative, logit_scale, parametrization, slope, inverse, edge_slope, order,
    )  # fmt: skip
    wide = getattr(x, "dtype", None) is torch.float64 or getattr(params, "dtype", None) is torch.float64
    if torch.compiler.is_compiling():
        spec = make_spec_for(wide, *settings)
    else:
        try:
            spec = cached_spec_for(wide, *settings)
        except TypeError:  # a setting without a hash, such as a list
            spec = make_spec_for(wide, *settings)
    # Not spec.n_params: torch 2.6 does not trace a named tuple's property where one of its numbers is dynamic.
    _check(x, params, count_params(spec.bins, spec.tails, spec.min_lambda > 0))
    return op(spec, backend, x, params)  # type: ignore[return-value]


def _check(x: Tensor, params: Tensor, n_params: int) -> None:
    if (
        isinstance(x, Tensor)
        and isinstance(params, Tensor)
        and params.shape == (*x.shape, n_params)
        and x.dim() > 0
        and x.dtype in DTYPES
        and params.dtype in DTYPES
        and x.device == params.device
        and x.layout is params.layout is torch.strided
    ):
        return
    for name, t in (("x", x), ("params", params)):
        check_floating("ops.rqs", name, t)
    if x.dim() == 0:
        raise ValueError("ops.rqs: x must be [..., D], got a scalar")
    if x.device != params.device:
        raise ValueError(f"ops.rqs: params must be on the device of x = {x.device}, got {params.device}")
    expected, given = [*x.shape, n_params], list(params.shape)
    raise ValueError(f"ops.rqs: params must be [..., D, P] = {expected}, got {given}")

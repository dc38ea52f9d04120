"""Rational splines, quadratic or linear: raw conditioner output → y and log |det J|, one pass over memory."""

from __future__ import annotations

import functools
import operator

import torch
from torch import Tensor

from flowkernels.ops import _row_params
from flowkernels.ops._checks import without_flags
from flowkernels.ops._routing import Op, _jit_tracing

from . import native, reference, triton
from .spec import MAX_BINS, RQS, checked

__all__ = ["MAX_BINS", "RQS", "rqs"]

_kept = functools.lru_cache(maxsize=1024, typed=True)(RQS)  # typed: 8.0 must not pass because 8 has


# Saves x and params for backward, and nothing else.
RQS._op = Op(
    "rqs",
    spec_type=RQS,
    reference=reference.fwd,
    table={"cpu": native.cpu, "cuda": native.cuda, "triton": triton, "reference": reference},
    inputs=("x", "params"),
    n_outputs=2,
    fake=_row_params.fake,
    sample=lambda: (RQS(8), (torch.zeros(1, 1), torch.zeros(1, 1, 23))),
)


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
    circle_shift: bool = False,
    zero_outside: bool = False,
    inverse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Monotonic rational-quadratic spline of every element of ``x``, with its own parameters.

    In the bin with corner :math:`(x_k, y_k)`, width :math:`w`, height :math:`h`, :math:`s = h/w`, knot slopes
    :math:`d_k, d_{k+1}` and :math:`\theta = (x - x_k)/w`,

    .. math:: y = y_k + h \frac{s\theta^2 + d_k\theta(1-\theta)}{s + (d_k + d_{k+1} - 2s)\theta(1-\theta)}

    and ``ladj`` is :math:`\sum_D \log |dy/dx|` in nats. Outside the box ``y = x`` and the contribution is 0.
    ``rqs(x, params, **s)`` is ``RQS(**s)(x, params)``, for whoever keeps the settings.

    Of order ``"linear"`` a bin is split at :math:`\lambda w`, and with :math:`a = \sqrt{d_k}`,
    :math:`b = \sqrt{d_{k+1}}`, :math:`q = \lambda a + (1-\lambda) b`, :math:`m = s/q` its lower piece is

    .. math:: y = y_k + h \frac{\lambda a}{q} \cdot \frac{a\theta}{m(\lambda - \theta) + a\theta}

    and its upper one the same from the upper knot, with :math:`a, b` and :math:`\lambda, 1-\lambda` exchanged.

    Args:
        x: ``[..., D]``; float32, float64, bfloat16 or float16.
        params: ``[..., D, P]``, in the order widths | heights | slopes; P = 3K-1 (linear tails), 3K (circular),
            3K+1 (no tails), K = ``bins``. Of order ``"linear"`` K more, the logits of :math:`\lambda`, come last.
            ``"half_ends"`` has one width and one height fewer. May be a 16-bit type beside a float32 ``x``.
        bins: K, from 1 to 128.
        tails: ``"linear"``: slope 1 at both ends; ``"circular"``: equal slopes at both ends; ``None``: free slopes.
        tail_bound: the box is [-tail_bound, tail_bound] in x and y.
        box: ``(left, right, bottom, top)`` instead of ``tail_bound``. The smallest and the steepest bin must be numbers
            of float32, unless the tensors are float64: with the default minimum sizes bounds from 1e-33 to 1e35 are.
        min_bin_width, min_bin_height: smallest bin sizes as a fraction of the box.
        min_derivative: smallest slope at a knot.
        logit_scale: multiplies the width and height logits (nflows divides them by the root of the hidden width).
        parametrization: ``"softmax"``: softmax with minimum sizes and softplus slopes (nflows, normflows, glasflow,
            flowjax from 18 on); ``"soft_clip"``: softmax of u/(1 + |2u/log slope|), exp of u/(1 + |u/log slope|)
            (zuko); ``"half_ends"``: as softmax, of K-1 entries, the first of which the first and the last bin share by
            halves: theirs is half of the minimum size (flowjax up to 17; in fused layers kernels do not have it).
        slope: the smallest slope of ``"soft_clip"``.
        edge_slope: the slope at both ends inside the box under linear tails (Pyro has 1 - ``min_derivative`` there).
        order: ``"quadratic"``, or ``"linear"``: linear rational splines (Pyro's default), which CPUs have kernels for;
            λ is from 0.025 to 0.975, and min_derivative above 0.
        circle_shift: the box's side in x is a circle, and x is shifted by half a period before the spline; the inverse
            shifts what it returns (zuko's circular splines). Data lie in the box, and latents too: a tail's would come
            back into it.
        zero_outside: y is 0 where x is outside of the box, and the contribution 0 as ever (normflows' lists of tails);
            the inverse has x = 0 there. A NaN stays one.
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
        >>> _ = torch.manual_seed(0)
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
        min_derivative, logit_scale, parametrization, slope, circle_shift, order, edge_slope, zero_outside, inverse,
    )  # fmt: skip
    if torch.compiler.is_compiling():
        # Checked here as well: some compilers make a frozen dataclass without its __post_init__.
        return RQS(*checked(*settings))(x, params, backend=backend)
    try:
        spline = _kept(*settings)
    except TypeError:  # a setting without a hash, such as a list
        spline = RQS(*settings)
    return spline(x, params, backend=backend)

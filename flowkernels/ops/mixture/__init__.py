"""Mixtures of distribution functions: raw conditioner output → y and log |det J|, and the root of the inverse."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from flowkernels.ops import _row_params
from flowkernels.ops._routing import Op

from . import native, reference, triton
from .spec import MAX_COMPONENTS, Mixture, checked

__all__ = ["MAX_COMPONENTS", "Mixture", "mixture"]

_kept = functools.lru_cache(maxsize=1024, typed=True)(Mixture)  # typed: 8.0 must not pass because 8 has


# Saves x and params for backward, and nothing else.
Mixture._op = Op(
    "mixture",
    spec_type=Mixture,
    reference=reference.fwd,
    table={"cpu": native.cpu, "cuda": native.cuda, "triton": triton, "reference": reference},
    inputs=("x", "params"),
    n_outputs=2,
    fake=_row_params.fake,
    sample=lambda: (Mixture(8), (torch.zeros(1, 1), torch.zeros(1, 1, 24))),
)


def mixture(
    x: Tensor,
    params: Tensor,
    *,
    components: int,
    kernel: str = "logistic",
    outer: str = "logit",
    min_log_scale: float = -7.0,
    max_log_scale: float = 7.0,
    parametrization: str = "weights",
    shrink: float = 0.0,
    bound: float = 10.0,
    inverse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Maps every element of ``x`` through the distribution function of a mixture of its own, and a quantile function.

    .. math:: y = \mathrm{outer}\Big(\sum_k \pi_k F\big((x - m_k)\, e^{-s_k}\big)\Big), \quad \pi = \mathrm{softmax}(w)

    and ``ladj`` is :math:`\sum_D \log |dy/dx|` in nats. The sum and what it lacks to 1 are computed each by itself, in
    logarithms, so that neither tail saturates. The inverse has no formula: it is the root, to the last ulps, by steps
    of Newton inside of a bracket (the root lies between the least and the greatest :math:`m_k + e^{s_k} F^{-1}`), and
    its gradients are those of the implicit function.

    ============  =============  =========================================================================
    ``kernel``    ``outer``
    ============  =============  =========================================================================
    ``logistic``  ``"logit"``    NAF's deep sigmoid flow; Flow++ adds an affine map behind it
    ``normal``    ``"probit"``   Gaussianization flows; zuko's with ``"shifts"`` and ``shrink=1e-6``
    either        ``"unit"``     y in (0, 1), the conditional distribution function of an autoregressive model
    ============  =============  =========================================================================

    Args:
        x: ``[..., D]``; float32, float64, bfloat16 or float16 (computed in float32).
        params: ``[..., D, 3K]``, in the order weight logits w | means m | log-scales s, K = ``components``. Of
            ``parametrization="shifts"`` ``[..., D, 2K]``. May be a 16-bit type beside a float32 ``x``.
        components: K, from 1 to 128.
        kernel: F, ``"logistic"`` (a sigmoid) or ``"normal"``.
        outer: ``"logit"``, ``"probit"`` (the normal quantile), or ``"unit"``, which is none.
        min_log_scale, max_log_scale: where the log-scales stop, with no gradient beyond; from -20 to 20.
        parametrization: ``"weights"``, or ``"shifts"``: components of equal weight, whose argument is
            :math:`e^{a_k} x + b_k`, with params b | a; a log-scale is -a.
        shrink: of ``"probit"`` alone, a share :math:`\delta` by which the sum is drawn towards 1/2, so that y ends at
            the normal quantiles of :math:`\delta / 2` and above, ±4.9 for 1e-6; 0, or from 1e-12 to 0.5.
        bound: with a ``shrink``, x of an inverse is not beyond ±``bound``, where it stays for all y that lie further
            out, with no gradient; ``ladj`` is that of the forward map there.
        inverse: evaluate y → x; ``ladj`` is then that of the inverse. Of ``"unit"`` y outside of [0, 1] gives NaN.
        backend: run on this one or raise; default: the fastest that can.

    Returns:
        ``y [..., D]`` in the promoted dtype of the inputs and ``ladj [...]`` in float32 (float64 for float64).

    Raises:
        TypeError: an input is not a floating-point tensor.
        ValueError: a shape or setting breaks its contract.

    Reference:
        Huang, Krueger, Lacoste, Courville: Neural Autoregressive Flows, ICML 2018, arXiv:1804.00779. Ho, Chen,
        Srinivas, Duan, Abbeel: Flow++, ICML 2019, arXiv:1902.00275. Meng, Song, Song, Ermon: Gaussianization Flows,
        AISTATS 2020, arXiv:2003.01941.

    Example:
        >>> import torch
        >>> from flowkernels import ops
        >>> _ = torch.manual_seed(0)
        >>> x, params = torch.randn(5, 2), torch.randn(5, 2, 3 * 8)
        >>> y, ladj = ops.mixture(x, params, components=8)
        >>> back, neg = ops.mixture(y, params, components=8, inverse=True)
        >>> torch.allclose(back, x, atol=1e-4), torch.allclose(ladj, -neg, atol=1e-3)
        (True, True)
    """
    settings = (components, kernel, outer, min_log_scale, max_log_scale, parametrization, shrink, bound, inverse)
    if torch.compiler.is_compiling():
        # Checked here as well: some compilers make a frozen dataclass without its __post_init__.
        return Mixture(*checked(*settings))(x, params, backend=backend)
    try:
        map_ = _kept(*settings)
    except TypeError:  # a setting without a hash, such as a list
        map_ = Mixture(*settings)
    return map_(x, params, backend=backend)

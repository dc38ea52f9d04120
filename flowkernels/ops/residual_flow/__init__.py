"""Residual maps x + g(x) of a contraction g: their log-determinant, exact or estimated, and their inverse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels._arguments import choice, flag, is_number, is_whole
from flowkernels.ops._checks import check_shape, in_autocast
from flowkernels.ops._routing import Op
from flowkernels.ops.net.checks import check_dense, check_tensor

from . import native, reference, triton
from .reference import ACTIVATIONS
from .spec import ResidualSpec

__all__ = ["residual_flow"]

_NAME = "ops.residual_flow"
LOG_DETS = ("exact", "series", "roulette")


def _fake(spec: ResidualSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    x = tensors[0]
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=wide)


_op = Op(
    "residual_flow",
    spec_type=ResidualSpec,
    reference=reference.fwd,
    table={"cpu": native, "triton": triton, "reference": reference},
    inputs=("tensors[]",),
    n_outputs=2,
    fake=_fake,
    sample=lambda: (
        ResidualSpec("tanh", False, False, "exact", True, 0.9, 0.0, False),
        (torch.zeros(1, 1), *[torch.zeros(1, 1), torch.zeros(1)] * 2),
    ),
)


def residual_flow(
    x: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    *,
    activation: str = "lipswish",
    betas: Tensor | None = None,
    preactivated: bool = False,
    log_det: str = "exact",
    terms: int | None = None,
    weights: Tensor | None = None,
    noise: Tensor | None = None,
    neumann: bool = True,
    lipschitz: float | None = None,
    tolerance: float = 0.0,
    inverse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Adds to x a network g of it whose slopes are less than 1: an invertible residual block.

    .. math:: y = x + g(x), \qquad g(x) = W_n\, \sigma(\cdots \sigma(W_1 x + b_1) \cdots) + b_n, \qquad
        \mathrm{ladj} = \log \det(I + J), \qquad J = \partial g / \partial x

    Nothing here bounds g: :math:`\prod_k \lVert W_k \rVert < 1` is up to the caller, as
    `flowkernels.transforms.Residual` does it; the activations have slopes of at most 1. Then I + J has a positive
    determinant, and the iteration :math:`x \leftarrow y - g(x)` converges to the inverse, whose derivatives are those
    of the implicit function theorem.

    ladj in nats is *exact*, of J as a product of matrices, one for each layer; or a *series*, estimated by noise v of
    covariance I; or that series ended at random, a Russian *roulette* without bias:

    .. math:: \mathrm{ladj} \approx \sum_{k=1}^{n} \frac{(-1)^{k+1}}{k}\, w_k\, v^\top J^k v, \qquad
        \frac{\partial\,\mathrm{ladj}}{\partial \theta} \approx
        v^\top \Bigl(\sum_{k=0}^{n-1} (-1)^k w_{k+1} J^k\Bigr) \frac{\partial J}{\partial \theta}\, v

    The gradient on the right is that of the paper, by Neumann's series: in the mean it is the gradient of the value,
    term by term, and needs no graph through the powers. Second derivatives are right in the mean, too. The op itself
    draws nothing.

    Args:
        x: ``[..., D]``; float32, float64, bfloat16 or float16.
        layers: weight ``[out, in]`` and bias ``[out]`` of each, of the dtype of ``x`` (of any under autocast, which the
            map itself ignores), from D to D.
        activation: between layers: ``"lipswish"``, :math:`z\,\mathrm{sigmoid}(\beta z) / 1.1`, ``"elu"`` or ``"tanh"``.
        betas: of a lipswish, ``[activations]``, each above 0; None: 1.
        preactivated: an activation in front of the first layer, too, as normflows has it.
        log_det: ``"exact"``, whose matrices are ``[..., D, widest layer]``, ``"series"`` or ``"roulette"``.
        terms: n of a series, every weight 1: what is left out is at most :math:`D L^{n+1} / ((n + 1)(1 - L))`.
        weights: of a roulette, ``[n]`` for the n terms that were drawn: ``w_k = 1 / P(N >= k)``.
        noise: v of a series or a roulette, ``[S, ..., D]`` for S estimates, of which the mean is taken. It and the
            weights are constants: they get no gradient.
        neumann: the gradient of an estimate: that above, or with False that of the value as it is.
        lipschitz: L, a bound of the slope of g, above 0 and below 1; of the inverse only, which needs one.
        tolerance: a row of the inverse rests once L / (1 - L) of its last step is less than this in every feature, or
            the step is one of rounding, or :math:`L^k / (1 - L)` is.
        inverse: evaluate y → x; ``ladj`` is then that of the inverse.
        backend: run on this one or raise. There are kernels for a CPU, for D up to 128, of an estimate forward for any
            D; and for a GPU, on Triton, for D and layers up to 128 (64 of float64). An estimate's own gradient, and all
            else, is plain PyTorch's.

    Returns:
        ``y [..., D]`` in the dtype of ``x`` and ``ladj [...]`` in float32 (float64 for float64).

    Raises:
        TypeError: an input is not a floating-point tensor, or of another dtype than ``x``.
        ValueError: a shape or setting breaks its contract.

    Reference:
        Behrmann, Grathwohl, Chen, Duvenaud, Jacobsen: Invertible Residual Networks, ICML 2019, arXiv:1811.00995; Chen,
        Behrmann, Duvenaud, Jacobsen: Residual Flows for Invertible Generative Modeling, NeurIPS 2019, arXiv:1906.02735.

    Example:
        >>> import torch
        >>> from flowkernels import ops
        >>> _ = torch.manual_seed(0)
        >>> sizes = [(8, 3), (3, 8)]
        >>> layers = [(0.9 * torch.nn.init.orthogonal_(torch.empty(o, i)), torch.randn(o)) for o, i in sizes]
        >>> x = torch.randn(5, 3)
        >>> y, ladj = ops.residual_flow(x, layers)
        >>> back, neg = ops.residual_flow(y, layers, lipschitz=0.81, inverse=True)
        >>> torch.allclose(back, x, atol=1e-4), torch.allclose(ladj, -neg, atol=1e-4)
        (True, True)
    """
    choice(_NAME, "activation", activation, ACTIVATIONS)
    choice(_NAME, "log_det", log_det, LOG_DETS)
    for name, given in (("preactivated", preactivated), ("neumann", neumann), ("inverse", inverse)):
        flag(_NAME, name, given)
    check_tensor(_NAME, "x", x)
    tensors = _checked_net(x, layers, activation, betas, preactivated) + _checked_series(
        x, log_det, terms, weights, noise
    )
    bound = _checked_bound(lipschitz, tolerance, inverse)
    kind = "exact" if log_det == "exact" else "series"
    spec = ResidualSpec(activation, preactivated, betas is not None, kind, neumann, bound, float(tolerance), inverse)
    if not in_autocast(x):
        return _op(spec, backend, x, *tensors)  # type: ignore[return-value]
    # Rounded to 8 bits a map and its inverse would not meet. Tensors of several dtypes do in that of x.
    with torch.autocast(x.device.type, enabled=False):
        return _op(spec, backend, x, *(t.to(x.dtype) for t in tensors))  # type: ignore[return-value]


def _checked_net(x: Tensor, layers: Any, activation: str, betas: Any, preactivated: bool) -> list[Tensor]:
    """Weights and biases, layer after layer, and betas."""
    D = x.shape[-1]
    if D == 0:
        raise ValueError(f"{_NAME}: features of x must be at least one, got 0")
    check_dense(_NAME, x, D, layers, None, residual=False)
    last = layers[-1][0]
    if last.shape[0] != D:
        raise ValueError(f"{_NAME}: layers[{len(layers) - 1}] weight must be [{D}, in], got {list(last.shape)}")
    tensors = [t for layer in layers for t in layer]
    if betas is None:
        return tensors
    if activation != "lipswish":
        raise ValueError(f"{_NAME}: betas must be None but of a lipswish, got a tensor")
    check_tensor(_NAME, "betas", betas, x)
    check_shape(_NAME, "betas", betas, (len(layers) - 1 + preactivated,))
    return [*tensors, betas]


def _checked_series(x: Tensor, log_det: str, terms: Any, weights: Any, noise: Any) -> list[Tensor]:
    """Weights and noise, where there are any."""
    wanted = {"exact": (), "series": ("terms", "noise"), "roulette": ("weights", "noise")}[log_det]
    for name, given in (("terms", terms), ("weights", weights), ("noise", noise)):
        if given is not None and name not in wanted:
            raise ValueError(f'{_NAME}: {name} must be None where log_det is "{log_det}", got {type(given).__name__}')
        if given is None and name in wanted:
            raise ValueError(f'{_NAME}: {name} must be given where log_det is "{log_det}", got None')
    if log_det == "exact":
        return []
    if log_det == "series":
        if not is_whole(terms) or terms < 1:
            raise ValueError(f"{_NAME}: terms must be a whole number from 1 on, got {terms!r:.60}")
        weights = x.new_ones(int(terms))
    check_tensor(_NAME, "weights", weights, x)
    if weights.dim() != 1 or weights.shape[0] == 0:
        raise ValueError(f"{_NAME}: weights must be [terms], at least one, got {list(weights.shape)}")
    check_tensor(_NAME, "noise", noise, x)
    if noise.dim() == 0 or noise.shape[0] == 0 or noise.shape[1:] != x.shape:
        raise ValueError(f"{_NAME}: noise must be [S, {', '.join(map(str, x.shape))}], got {list(noise.shape)}")
    return [weights, noise]


def _checked_bound(lipschitz: Any, tolerance: Any, inverse: bool) -> float:
    """L; of a map that is not inverted it is not read."""
    if lipschitz is not None and (not is_number(lipschitz) or not 0 < lipschitz < 1):
        raise ValueError(f"{_NAME}: lipschitz must be above 0 and below 1, got {lipschitz!r:.60}")
    if inverse and lipschitz is None:
        raise ValueError(f"{_NAME}: lipschitz must be given for an inverse, got None")
    if not is_number(tolerance) or not tolerance >= 0:
        raise ValueError(f"{_NAME}: tolerance must be a number from 0 on, got {tolerance!r:.60}")
    return 0.5 if lipschitz is None else float(lipschitz)

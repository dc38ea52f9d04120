"""Increasing functions by small networks of a number and a signal: integrals of positive ones, and monotone ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels._arguments import flag, is_number, is_whole
from flowkernels.ops._routing import Op
from flowkernels.ops.net.activations import TABLE
from flowkernels.ops.net.checks import check_pair, check_sequence, check_tensor

from . import native, reference, triton
from .spec import FORMS, INCREASING, MAX_NODES, SLOPES, MonotoneSpec

__all__ = ["MonotoneSpec", "monotone_net", "run_monotone"]

_NAME = "ops.monotone_net"


def _fake(spec: Any, x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), x.new_empty(x.shape[:-1], dtype=wide)


def _sample() -> tuple[MonotoneSpec, tuple[Tensor, ...]]:
    layers = [torch.zeros(3, 2), torch.zeros(3), torch.zeros(1, 3), torch.zeros(1)]
    spec = MonotoneSpec("integral", "elu", 4, "integrand", 7.0, False, 10.0, False)
    return spec, (torch.zeros(1, 1), torch.zeros(1, 1, 1), *layers)


_op = Op(
    "monotone_net",
    spec_type=MonotoneSpec,
    reference=reference.fwd,
    table={"cpu": native.cpu, "cuda": native.cuda, "triton": triton, "reference": reference},
    inputs=("tensors[]",),
    n_outputs=2,
    fake=_fake,
    keeps_outputs=lambda spec: spec.inverse,
    sample=_sample,
)


def run_monotone(spec: MonotoneSpec, x: Tensor, signal: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The op of arguments that a layer has checked already; the tensors are weight and bias of each layer."""
    return _op(spec, None, x, signal, *tensors)  # type: ignore[return-value]


def monotone_net(
    x: Tensor,
    signal: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    *,
    form: str = "integral",
    activation: str = "elu",
    nodes: int = 32,
    slope: str = "integrand",
    log_bound: float = 7.0,
    shift: bool = False,
    bound: float = 10.0,
    inverse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Maps every element of ``x`` by an increasing function, a small network u of it and of a signal of its own.

    .. math:: \text{integral:}\quad y = \int_0^x g(t)\,dt, \quad g = e^{u / (1 + |u| / B)}, \qquad
        \text{positive:}\quad y = u(x)

    and ``ladj`` is :math:`\sum_D \log dy/dx` in nats. Weights are shared by the batch. The integral is a Gauss-Legendre
    sum, in x whose derivative is taken to be that of the integral, g(x), here, in gradients and in ``ladj``, as UMNN's
    authors and zuko take it; ``slope="quadrature"`` has the derivative of the sum. A positive network has the weights
    :math:`|W|`, and after every layer but the last :math:`\sigma(z)` in the first half of the units (the larger one)
    and :math:`-\sigma(-z)` in the others. For other rules give ``exp`` or ``softplus`` of what is learned.

    The inverse is the root within [-bound, bound], to the last ulps, by Newton's steps in a bracket, without a read by
    the host; early steps of an integral go from point to point by a rule of 3. Its gradients are those of the implicit
    function. Memory kept for backward is the inputs, and of an inverse what was found.

    Args:
        x: ``[..., D]``; float32, float64, bfloat16 or float16 (computed in float32).
        signal: ``[..., D, S]``, S from 0 on.
        layers: weight ``[out, in]`` and bias ``[out]`` of each, or ``[D, out, in]`` and ``[D, out]``: a network for
            each feature. The first takes 1 + S numbers, x first, and the last returns 1.
        form: ``"integral"`` or ``"positive"``.
        activation: between layers: relu, leaky_relu (slope 0.01), elu (alpha 1), gelu (by erf), silu, tanh or identity;
            of a positive network leaky_relu, elu, tanh or identity.
        nodes: of the quadrature, from 1 to 128.
        slope: ``"integrand"`` or ``"quadrature"``, which of few nodes need not be positive (its logarithm is NaN then).
        log_bound: B, the greatest \|log g\|; from 1e-3 to 80.
        shift: the last of the S numbers is added to y, and the network does not see it.
        bound: where the inverse stops looking, from 1e-3 to 1e6; a y beyond has the nearest end, with the derivatives
            there.
        inverse: evaluate y → x; ``ladj`` is then that of the inverse.
        backend: run on this one or raise; default: the fastest that can. CUDA's kernels hold 32 elements in a block's
            shared memory; where layers are too large for that, Triton's run, of up to 256 units, or plain PyTorch.

    Returns:
        ``y [..., D]`` in the dtype of ``x`` and ``ladj [...]`` in float32 (float64 for float64).

    Raises:
        TypeError: an input is not a floating-point tensor, or of another dtype than ``x``.
        ValueError: a shape or setting breaks its contract.

    Reference:
        Wehenkel, Louppe: Unconstrained Monotonic Neural Networks, NeurIPS 2019, arXiv:1908.05164. Huang, Krueger,
        Lacoste, Courville: Neural Autoregressive Flows, ICML 2018, arXiv:1804.00779.

    Example:
        >>> import torch
        >>> from flowkernels import ops
        >>> _ = torch.manual_seed(0)
        >>> D, S = 2, 3
        >>> layers = [(torch.randn(D, 8, 1 + S), torch.randn(D, 8)), (torch.randn(D, 1, 8) / 3, torch.zeros(D, 1))]
        >>> x, signal = torch.randn(5, D), torch.randn(5, D, S)
        >>> y, ladj = ops.monotone_net(x, signal, layers)
        >>> back, neg = ops.monotone_net(y, signal, layers, inverse=True)
        >>> torch.allclose(back, x, atol=1e-4), torch.allclose(ladj, -neg, atol=1e-3)
        (True, True)
    """
    spec = checked(_NAME, form, activation, nodes, slope, log_bound, shift, bound, inverse)
    check_tensor(_NAME, "x", x)
    check_tensor(_NAME, "signal", signal, x)
    S = signal.shape[-1] if signal.dim() == x.dim() + 1 else -1
    if signal.dim() == 0 or list(signal.shape[:-1]) != list(x.shape) or int(spec.shift) > S:
        some = "S from 1 on" if spec.shift else "S"
        raise ValueError(f"{_NAME}: signal must be [..., D, {some}] = {[*x.shape, 'S']}, got {list(signal.shape)}")
    tensors = check_layers(_NAME, x, S - int(spec.shift), layers)
    return _op(spec, backend, x, signal, *tensors)  # type: ignore[return-value]


def checked(
    name: str, form: Any, activation: Any, nodes: Any, slope: Any, log_bound: Any, shift: Any, bound: Any, inverse: Any
) -> MonotoneSpec:
    """The settings, checked."""

    def one_of(what: str, given: Any, options: Sequence[str]) -> str:
        if not isinstance(given, str) or given not in options:
            raise ValueError(f"{name}: {what} must be one of {', '.join(options)}, got {given!r:.60}")
        return given

    one_of("form", form, FORMS)
    one_of("activation", activation, INCREASING if form == "positive" else tuple(TABLE))
    one_of("slope", slope, SLOPES)
    if not is_whole(nodes) or not 1 <= nodes <= MAX_NODES:
        raise ValueError(f"{name}: nodes must be an integer from 1 to {MAX_NODES}, got {nodes!r:.60}")
    for what, given, most in (("log_bound", log_bound, 80.0), ("bound", bound, 1e6)):
        if not is_number(given) or not 1e-3 <= given <= most:
            raise ValueError(f"{name}: {what} must be a number from 1e-3 to {most:g}, got {given!r:.60}")
    shift, inverse = flag(name, "shift", shift), flag(name, "inverse", inverse)
    return MonotoneSpec(form, activation, int(nodes), slope, float(log_bound), shift, float(bound), inverse)


def check_layers(name: str, x: Tensor, seen: int, layers: Any) -> list[Tensor]:
    """Weights and biases, one behind another."""
    D = x.shape[-1]
    check_sequence(name, "layers", layers, "a list of (weight, bias)")
    if not layers:
        raise ValueError(f"{name}: layers must be at least one, got 0")
    tensors: list[Tensor] = []
    before, sets = 1 + seen, None
    for k, layer in enumerate(layers):
        what, last = f"layers[{k}]", k == len(layers) - 1
        check_pair(name, k, layer)
        weight, bias = layer
        for part, t in (("weight", weight), ("bias", bias)):
            check_tensor(name, f"{what} {part}", t, x)
        sets = list(weight.shape[:-2]) if sets is None else sets
        out = 1 if last else weight.shape[-2] if weight.dim() > 1 else 0
        if sets not in ([], [D]) or list(weight.shape) != [*sets, out, before] or out == 0:
            rows = "1" if last else "out"
            wanted = f"[{rows}, {before}] or [{D}, {rows}, {before}], all alike,"
            raise ValueError(f"{name}: {what} weight must be {wanted} got {list(weight.shape)}")
        if list(bias.shape) != [*sets, out]:
            raise ValueError(f"{name}: {what} bias must be {[*sets, out]}, got {list(bias.shape)}")
        tensors += [weight, bias]
        before = out
    return tensors

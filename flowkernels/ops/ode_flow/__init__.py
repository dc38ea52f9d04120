"""Continuous maps: the flow of an ordinary differential equation whose right side is a small network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkernels._arguments import choice, count, flag, is_number
from flowkernels.ops._checks import expands, in_autocast
from flowkernels.ops._routing import Op
from flowkernels.ops.net.checks import check_pair, check_sequence, check_tensor

from . import native, reference
from .activations import NAMES
from .tableau import SOLVERS

__all__ = ["ode_flow"]

_NAME = "ops.ode_flow"
TRACES = ("exact", "hutchinson")
TIMES = ("concat", "sinusoidal", "none")
STEPS = {"euler": 50, "rk4": 20, "dopri5": 1000}
MOST_STEPS = 1_000_000


class OdeSpec(NamedTuple):
    """What it is apart from its tensors, all of which are of the dtype that is computed in."""

    solver: str
    steps: int  # of an adaptive solver: the most that a row may try
    t0: float  # where the way begins, whichever it is
    t1: float
    rtol: float
    atol: float
    activation: str
    trace: str  # "product", "noise" or "probes": see `reference.trace_tensors`
    time: str
    frequencies: int


def _fake(spec: OdeSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    x = tensors[0]
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1])


_op = Op(
    "ode_flow",
    spec_type=OdeSpec,
    reference=reference.fwd,
    table={"cpu": native, "reference": reference},
    inputs=("tensors[]",),
    n_outputs=2,
    fake=_fake,
    sample=lambda: (
        OdeSpec("rk4", 1, 0.0, 1.0, 1e-5, 1e-6, "tanh", "product", "concat", 0),
        tuple(torch.zeros(*shape) for shape in ((1, 1), (1, 2), (1,), (1, 1), (1,), (1, 1))),
    ),
)


def ode_flow(
    x: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    *,
    t0: float = 0.0,
    t1: float = 1.0,
    solver: str = "rk4",
    steps: int | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    trace: str = "exact",
    noise: Tensor | None = None,
    time: str = "concat",
    frequencies: int = 3,
    activation: str = "tanh",
    context: Tensor | None = None,
    inverse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Moves x along a vector field from time t0 to t1, with the log-determinant of the way.

    .. math:: \frac{dx}{dt} = f(x, t, c), \qquad
        \frac{d\,\mathrm{ladj}}{dt} = \mathrm{tr}\,\frac{\partial f}{\partial x}, \qquad
        f = W_n\, \sigma(\cdots \sigma(W_1 [x, \tau(t), c] + b_1) \cdots) + b_n

    The trace is exact by default, at about the price of one more layer: with two hidden layers it is
    :math:`d_2^\top (W_2 \circ (W_1 W_3)^\top)\, d_1`, where :math:`d_k = \sigma'` of layer k, with one
    a scalar product; with more, one product a feature. Gradients are exactly those of the steps that were taken. Kept
    for them are the inputs alone, whatever the number of steps: the way is solved again.

    Args:
        x: ``[..., D]``; float32, float64, bfloat16 or float16.
        layers: weight ``[out, in]`` and bias ``[out]`` of each, of the dtype of ``x`` (of any under autocast, which the
            map itself ignores); the first takes D + T + C inputs, in the order x, time, context; the last gives D.
        t0, t1: where time begins and ends.
        solver: ``"rk4"`` or ``"euler"`` with equal steps, or ``"dopri5"``, Dormand and Prince's pair of orders 5 and 4
            with steps that every row chooses for itself: no result depends on what else is in the batch.
        steps: how many; of dopri5 the most that a row may try. None: 20 of rk4, 50 of euler, 1000 of dopri5.
        rtol, atol: of dopri5: a step may err by ``atol + rtol * |x|`` in a feature, and by a hundred atol in ladj, but
            not by less than rounding does.
        trace: ``"exact"``, or ``"hutchinson"``: :math:`\epsilon^\top \frac{\partial f}{\partial x} \epsilon`,
            an estimate.
        noise: of Hutchinson's: :math:`\epsilon`, broadcast to the shape of ``x``, with mean 0 and covariance 1: signs,
            or normal numbers. The same all along the way.
        time: what the first layer sees of it: ``"concat"``: t (T = 1); ``"sinusoidal"``: :math:`\cos \pi k t`, then
            :math:`\sin \pi k t`, for k from 1 to ``frequencies`` (T = 2 ``frequencies``); ``"none"``: nothing (T = 0).
        frequencies: of sinusoidal time.
        activation: :math:`\sigma`: ``"tanh"``, ``"softplus"``, ``"elu"``, ``"silu"``, ``"gelu"``, ``"relu"``,
            ``"leaky_relu"`` or ``"identity"``.
        context: ``[..., C]``, broadcast to the rows of ``x``; None: C = 0.
        inverse: from t1 to t0; ``ladj`` is then that of the inverse. It undoes the other way up to the solver's error.
        backend: run on this one or raise. The kernel is the CPU's, but for exact traces of more than two hidden layers;
            elsewhere plain PyTorch runs.

    Returns:
        ``y [..., D]`` in the dtype of ``x`` and ``ladj [...]`` in float32 (float64 for float64). A row is NaN where its
        values leave the finite numbers, or dopri5 does not arrive.

    Raises:
        TypeError: an input is not a floating-point tensor, or of another dtype than ``x``.
        ValueError: a shape or setting breaks its contract.

    Reference:
        Chen, Rubanova, Bettencourt, Duvenaud: Neural Ordinary Differential Equations, NeurIPS 2018, arXiv:1806.07366;
        Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud: FFJORD, ICLR 2019, arXiv:1810.01367.

    Example:
        >>> import torch
        >>> from flowkernels import ops
        >>> _ = torch.manual_seed(0)
        >>> layers = [(torch.randn(16, 4), torch.randn(16)), (0.1 * torch.randn(3, 16), torch.randn(3))]
        >>> x = torch.randn(5, 3)
        >>> y, ladj = ops.ode_flow(x, layers)
        >>> back, neg = ops.ode_flow(y, layers, inverse=True)
        >>> torch.allclose(back, x, atol=1e-4), torch.allclose(neg, -ladj, atol=1e-4)
        (True, True)
    """
    for name, given, options in (
        ("trace", trace, TRACES), ("time", time, TIMES), ("activation", activation, NAMES),
    ):  # fmt: skip
        choice(_NAME, name, given, options)
    n = check_solver(_NAME, solver, steps, t0, t1, rtol, atol)
    waves = count(_NAME, "frequencies", frequencies) if time == "sinusoidal" else 0
    start, end = (t1, t0) if flag(_NAME, "inverse", inverse) else (t0, t1)
    check_tensor(_NAME, "x", x)
    _check(x, layers, {"concat": 1, "none": 0}.get(time, 2 * waves), context, trace, noise)
    kind = reference.trace_kind(len(layers) - 1, trace)
    spec = OdeSpec(solver, n, float(start), float(end), float(rtol), float(atol), activation, kind, time, waves)
    if not in_autocast(x):
        return _run(spec, backend, x, layers, context, noise)
    with torch.autocast(x.device.type, enabled=False):  # rounded to 8 bits a map and its inverse would not meet
        return _run(spec, backend, x, layers, context, noise)


def check_solver(where: str, solver: Any, steps: Any, t0: Any, t1: Any, rtol: Any, atol: Any) -> int:
    """Raises unless these are settings of a solver; the number of steps."""
    choice(where, "solver", solver, tuple(SOLVERS))
    for name, number in (("t0", t0), ("t1", t1)):
        if not is_number(number) or not abs(number) <= 1e30:  # far from what float32 overflows at
            raise ValueError(f"{where}: {name} must be a number from -1e30 to 1e30, got {number!r:.60}")
    for name, number in (("rtol", rtol), ("atol", atol)):
        if not is_number(number) or not 0 <= number < math.inf:
            raise ValueError(f"{where}: {name} must be a finite number, at least 0, got {number!r:.60}")
    n = STEPS[solver] if steps is None else count(where, "steps", steps)
    if n > MOST_STEPS:
        raise ValueError(f"{where}: steps must be at most {MOST_STEPS}, got {steps!r:.60}")
    return n


def _run(
    spec: OdeSpec, backend: str | None, x: Tensor, layers: Any, context: Tensor | None, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """In the type that is computed in: what does not change on the way is made of the tensors once, in front."""
    D, lead, wide = x.shape[-1], x.shape[:-1], torch.promote_types(x.dtype, torch.float32)
    weights, biases = ([pair[i].to(wide) for pair in layers] for i in (0, 1))
    if context is not None:
        C = context.shape[-1]
        weights[0], of_context = weights[0][:, : weights[0].shape[1] - C], weights[0][:, weights[0].shape[1] - C :]
        biases[0] = torch.nn.functional.linear(context.to(wide), of_context, biases[0])
        if biases[0].dim() > 1:
            biases[0] = biases[0].expand(*lead, biases[0].shape[-1])
    tensors = [t for pair in zip(weights, biases, strict=True) for t in pair]
    given = None if noise is None else noise.to(wide).expand(x.shape)
    tensors += reference.trace_tensors(spec.trace, weights, D, given)
    y, ladj = _op(spec, backend, x.to(wide), *tensors)
    return y.to(x.dtype), ladj


def _check(x: Tensor, layers: Any, of_time: int, context: Any, trace: str, noise: Any) -> None:
    """Raises unless these are the tensors of a call."""
    D, C = x.shape[-1], 0
    if D == 0:
        raise ValueError(f"{_NAME}: features of x must be at least one, got 0")
    if context is not None:
        check_tensor(_NAME, "context", context, x)
        if context.dim() == 0 or not expands(context.shape[:-1], x.shape[:-1]):
            rows = ", ".join(map(str, (*x.shape[:-1], "C")))
            raise ValueError(f"{_NAME}: context must broadcast to [{rows}], got {list(context.shape)}")
        C = context.shape[-1]
    if (noise is None) != (trace == "exact"):
        what = "None where the trace is exact" if noise is not None else 'a tensor for trace="hutchinson"'
        raise ValueError(f"{_NAME}: noise must be {what}, got {None if noise is None else list(noise.shape)}")
    if noise is not None:
        check_tensor(_NAME, "noise", noise, x)
        if not expands(noise.shape, x.shape):
            raise ValueError(f"{_NAME}: noise must broadcast to {list(x.shape)}, got {list(noise.shape)}")
    check_sequence(_NAME, "layers", layers, "a list of (weight, bias)")
    if not layers:
        raise ValueError(f"{_NAME}: layers must be at least one, got 0")
    n_in = D + of_time + C
    for k, layer in enumerate(layers):
        check_pair(_NAME, k, layer)
        for part, t in zip(("weight", "bias"), layer, strict=True):
            check_tensor(_NAME, f"layers[{k}] {part}", t, x)
        weight, bias = layer
        last, shape = k == len(layers) - 1, list(weight.shape)
        if len(shape) != 2 or shape[1] != n_in or shape[0] == 0 or (last and shape[0] != D):
            of = f", for {D} of x, {of_time} of time and {C} of the context" if k == 0 else ""
            raise ValueError(f"{_NAME}: layers[{k}] weight must be [{D if last else 'out'}, {n_in}]{of}, got {shape}")
        if list(bias.shape) != shape[:1]:
            raise ValueError(f"{_NAME}: layers[{k}] bias must be {shape[:1]}, got {list(bias.shape)}")
        n_in = shape[0]

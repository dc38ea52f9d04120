"""Whole models of one architecture: 6 spline coupling layers, alternating masks, residual conditioners, K = 8.

An nflows neural spline flow as it is, compiled, accelerated; and ours of the same architecture.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench import calls
from bench.suite import LOG_PROB, SAMPLE, STEP, Ready, Row, Suite, named, points
from bench.suites.rqs import TAIL_BOUND
from flowkernels import use_backend
from flowkernels.compat import accelerate
from flowkernels.flows import NSF

LAYERS, HIDDEN, BLOCKS, BINS = 6, 128, 2, 8
OPS = (LOG_PROB, SAMPLE, STEP)
SIZES = ((63, 4096), (6, 512))  # D and batch: a tabular data set, and a small posterior
OURS = "flowkernels NSF"


class Model(NamedTuple):
    """A model's calls, the same for every library. `inverse` is latent → data, the part of `sample` one can check."""

    name: str
    module: nn.Module
    log_prob: Callable[[Tensor], Tensor]
    sample: Callable[[int], Tensor]
    inverse: Callable[[Tensor], tuple[Tensor, Tensor]]


class Inputs(NamedTuple):
    """Data, and latents that judge the way back."""

    x: Tensor
    z: Tensor

    @classmethod
    def make(cls, features: int, batch: int) -> Inputs:
        return cls(*torch.randn(2, batch, features, generator=torch.Generator().manual_seed(0)))


# ---- the rows ----


def _nflows(features: int) -> nn.Module:
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.nn.nets import ResidualNet
    from nflows.transforms import CompositeTransform, PiecewiseRationalQuadraticCouplingTransform

    def conditioner(n_in: int, n_out: int) -> nn.Module:
        return ResidualNet(n_in, n_out, hidden_features=HIDDEN, num_blocks=BLOCKS)

    layers = [
        PiecewiseRationalQuadraticCouplingTransform(
            mask=[(i + j) % 2 for j in range(features)],
            transform_net_create_fn=conditioner,
            num_bins=BINS,
            tails="linear",
            tail_bound=TAIL_BOUND,
        )
        for i in range(LAYERS)
    ]
    return Flow(CompositeTransform(layers), StandardNormal([features]))


def _ours(features: int) -> nn.Module:
    widths = (HIDDEN,) * BLOCKS
    return NSF(features, transforms=LAYERS, bins=BINS, hidden=widths, tail_bound=TAIL_BOUND, linear=None)


def _wrap(name: str, module: nn.Module) -> Model:
    transform = module.transform if isinstance(module, NSF) else module._transform
    return Model(name, module, module.log_prob, module.sample, transform.inverse)  # type: ignore[arg-type]


def build(name: str, features: int) -> Model:
    """The model of a row; the same weights for every row of nflows."""
    torch.manual_seed(0)
    if name == OURS:
        return _wrap(name, _ours(features))
    model = _wrap(name, _nflows(features))
    if name == "nflows accelerated":
        report = accelerate(model.module)
        assert len(report.accelerated) == 2 * LAYERS, f"{LAYERS} layers with networks must be accelerated, got {report}"
    if name == "nflows compiled":
        log_prob, sample, inverse = (calls.fresh_compile(f) for f in (model.log_prob, model.sample, model.inverse))
        return model._replace(log_prob=log_prob, sample=sample, inverse=inverse)
    return model


ROWS = named(
    *(Row(f"nflows {how}", None, "nflows", "nflows eager") for how in ("eager", "compiled", "accelerated")),
    Row(OURS, None, "nflows", OURS),
)


# ---- a row on its inputs ----


def gradients(model: Model, x: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the mean negative log_prob with respect to every parameter."""
    return torch.autograd.grad(-model.log_prob(x).mean(), learned(model.module))


def learned(module: nn.Module) -> tuple[nn.Parameter, ...]:
    """FrEIA's permutations are parameters too."""
    return tuple(p for p in module.parameters() if p.requires_grad)


def gradients_by_block(model: Model, x: Tensor) -> Tensor:
    """`gradients` of each of at most eight blocks of rows, all parameters of it as one row of float64.

    A gradient jumps where a value crosses the edge of a spline's box, and rounding may carry one row of thousands over
    it, in any implementation: that spoils one block, and not the median.
    """
    blocks = (gradients(model, rows) for rows in x.chunk(8))
    return torch.stack([torch.cat([g.double().flatten() for g in block]) for block in blocks])


def judged(model: Model, inputs: Inputs, op: str) -> Tensor:
    """What `op` rests on: log_prob of x, the way back of z, or gradients [blocks of rows, all parameters]."""
    if op == STEP:
        return gradients_by_block(model, inputs.x)
    with torch.no_grad():
        return model.inverse(inputs.z)[0] if op == SAMPLE else model.log_prob(inputs.x)


def truth_of(model: Model, inputs: Inputs, op: str) -> Tensor:
    """`judged` of a model in float64 on plain PyTorch."""
    with use_backend("reference"):
        return judged(model, Inputs(*(t.double() for t in inputs)), op)


def float64_truth(name: str, inputs: Inputs, op: str) -> Tensor:
    """The truth of a row: the plain model of the same library with the same weights, in float64."""
    plain = build(name, inputs.x.shape[1])
    return truth_of(_wrap(name, copy.deepcopy(plain.module).double()), inputs, op)


# As fractions: of the largest |log_prob|, of the largest |x|, and, the median over blocks of rows, of the gradient's
# 2-norm over all parameters.
BOUNDS = {LOG_PROB: ("log_prob", 1e-5), SAMPLE: ("inverse", 1e-4), STEP: ("gradient", 1e-3)}


def worst_error(model: Model, op: str, inputs: Inputs, truth: Tensor) -> float:
    """Asserts that what `op` rests on is finite and within `BOUNDS` of the truth; → the relative error.

    One row in a hundred may be ten times as far: near a steep knot a row is ill-conditioned in any implementation.

    Raises:
        AssertionError: the row is wrong, so its time means nothing.
    """
    difference = judged(model, inputs, op).double() - truth
    if not difference.isfinite().all():
        error = math.nan
    elif op == STEP:
        error = (difference.norm(dim=1) / truth.norm(dim=1)).median().item()
    else:
        errors = difference.abs().flatten() / truth.abs().max()
        error = max(errors.quantile(0.99), errors.max() / 10).item()
    quantity, bound = BOUNDS[op]
    if not error <= bound:  # a NaN is not
        raise AssertionError(
            f"{model.name}: {quantity} must be within {bound:.0e} of the float64 truth, got {error:.1e}"
        )
    return error


def bind(model: Model, op: str, x: Tensor) -> Callable[[], Tensor]:
    """The call to time."""
    if op == STEP:
        return calls.training_step(model.module, lambda: -model.log_prob(x).mean(), lr=1e-4)
    return calls.without_graph(lambda: model.log_prob(x) if op == LOG_PROB else model.sample(x.shape[0]))


def ready_to_time(model: Model, inputs: Inputs, op: str) -> Ready:
    x = inputs.x
    # The check of a compiled `sample` compiles the inverse, not the call that is timed.
    checked = Ready(bind(model, op, x), lambda truth: worst_error(model, op, inputs, truth), breaks=op != SAMPLE)
    if op != STEP:
        return checked
    return checked._replace(
        forward=lambda: model.log_prob(x),
        backward=lambda: gradients(model, x),
        weights=tuple(model.module.parameters()),
    )


SUITE = Suite(
    title="model",
    points=points(SIZES, OPS, ROWS),
    label=lambda features, batch: f"D={features}, batch {batch}",
    smaller=lambda features, batch: (features, batch // 32),
    inputs=Inputs.make,
    rows=ROWS,
    ready=lambda row, inputs, op: ready_to_time(build(row.name, inputs.x.shape[1]), inputs, op),
    truth=float64_truth,
)

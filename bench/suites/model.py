"""Whole models of one architecture: 6 spline coupling layers, alternating masks, residual conditioners, K = 8."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.suites import peers
from bench.suites.rqs import TAIL_BOUND
from flowkernels import use_backend
from flowkernels.compat import accelerate
from flowkernels.flows import NSF

LAYERS, HIDDEN, BLOCKS, BINS = 6, 128, 2, 8
OPS = ("log_prob", "sample", "training step")
NAMES = ("nflows eager", "nflows compiled", "nflows accelerated", "flowkernels NSF")


class Model(NamedTuple):
    """A model's calls, the same for every library. `inverse` is latent → data, the part of `sample` one can check."""

    name: str
    module: nn.Module
    log_prob: Callable[[Tensor], Tensor]
    sample: Callable[[int], Tensor]
    inverse: Callable[[Tensor], tuple[Tensor, Tensor]]

    @property
    def compiled(self) -> bool:
        return self.name == "nflows compiled"


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
    return NSF(features, transforms=LAYERS, bins=BINS, hidden=(HIDDEN,) * BLOCKS, tail_bound=TAIL_BOUND)


def _wrap(name: str, module: nn.Module) -> Model:
    transform = module.transform if isinstance(module, NSF) else module._transform
    return Model(name, module, module.log_prob, module.sample, transform.inverse)  # type: ignore[arg-type]


def build(name: str, features: int) -> Model:
    """The model of a row; the same weights for every row of nflows."""
    torch.manual_seed(0)
    if name == "flowkernels NSF":
        return _wrap(name, _ours(features))
    model = _wrap(name, _nflows(features))
    if name == "nflows accelerated":
        report = accelerate(model.module)
        assert len(report.accelerated) == 2 * LAYERS, f"{LAYERS} layers with networks must be accelerated, got {report}"
    if model.compiled:
        log_prob, sample, inverse = (peers.fresh_compile(f) for f in (model.log_prob, model.sample, model.inverse))
        return model._replace(log_prob=log_prob, sample=sample, inverse=inverse)
    return model


class Truth(NamedTuple):
    """What the model computes in float64 on plain PyTorch."""

    log_prob: Tensor
    latent_to_data: Tensor
    grads: Tensor  # [blocks of rows, all parameters]


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


def float64_truth(name: str, x: Tensor, z: Tensor) -> Truth:
    """The truth of a row: the plain model of the same library with the same weights, in float64."""
    plain = build(name if name == "flowkernels NSF" else "nflows eager", x.shape[1])
    model = _wrap(name, copy.deepcopy(plain.module).double())
    with use_backend("reference"):
        grads = gradients_by_block(model, x.double())
        with torch.no_grad():
            return Truth(model.log_prob(x.double()), model.inverse(z.double())[0], grads)


# As fractions: of the largest |log_prob|, of the largest |x|, and, the median over blocks of rows, of the gradient's
# 2-norm over all parameters.
BOUNDS = {"log_prob": 1e-5, "inverse": 1e-4, "gradient": 1e-3}


def worst_error(model: Model, op: str, x: Tensor, z: Tensor, truth: Truth) -> float:
    """Asserts that what `op` rests on is finite and within `BOUNDS` of the truth; → the relative error.

    One row in a hundred may be ten times as far: near a steep knot a row is ill-conditioned in any implementation.

    Raises:
        AssertionError: the row is wrong, so its time means nothing.
    """
    if op == OPS[2]:
        errors = (gradients_by_block(model, x) - truth.grads).norm(dim=1) / truth.grads.norm(dim=1)
        quantity, error = "gradient", (errors.median() if errors.isfinite().all() else errors.sum()).item()
    else:
        quantity = "inverse" if op == OPS[1] else "log_prob"
        with torch.no_grad():
            found = model.inverse(z)[0] if op == OPS[1] else model.log_prob(x)
        expected = truth.latent_to_data if op == OPS[1] else truth.log_prob
        errors = (found.double() - expected).abs().flatten() / expected.abs().max()
        error = max(errors.quantile(0.99), errors.max() / 10).item() if errors.isfinite().all() else math.nan
    if not error <= BOUNDS[quantity]:  # a NaN is not
        raise AssertionError(
            f"{model.name}: {quantity} must be within {BOUNDS[quantity]:.0e} of the float64 truth, got {error:.1e}"
        )
    return error


def bind(model: Model, op: str, x: Tensor) -> Callable[[], Tensor]:
    """The call to time. A training step is zero_grad, loss, backward and a step of Adam."""
    if op != OPS[2]:

        def evaluate() -> Tensor:
            with torch.no_grad():
                return model.log_prob(x) if op == OPS[0] else model.sample(x.shape[0])

        return evaluate

    optimizer = torch.optim.Adam(model.module.parameters(), lr=1e-4)

    def training_step() -> Tensor:
        optimizer.zero_grad()
        loss = -model.log_prob(x).mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return training_step

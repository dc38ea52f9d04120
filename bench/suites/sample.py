"""Flows of one autoregressive layer, whose samples are solved feature by feature; nflows and ours share weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.suites.rqs import TAIL_BOUND
from flowkernels import backends, nets, transforms

BINS = 8
KINDS = ("affine", "spline")
SAMPLERS = ("nflows eager", "zuko eager", "flowkernels")
DENSITY = "flowkernels log_prob"  # one pass of the network: what a sample would cost if it were not solved for
NAMES = (*SAMPLERS, DENSITY)

# Multiply-adds of one call, above which rows that run the network once per feature take minutes.
MOST_WORK = 3e11


class Sampler(NamedTuple):
    """`latent(x)` is data → latent with its ladj, `data(z)` the way back. `exact_latent` is `latent` in float64."""

    latent: Callable[[Tensor], tuple[Tensor, Tensor]]
    data: Callable[[Tensor], Tensor]
    exact_latent: Callable[[Tensor], tuple[Tensor, Tensor]]


def params_per_feature(kind: str) -> int:
    return 2 if kind == "affine" else 3 * BINS - 1


def work(kind: str, features: int, hidden: int, batch: int) -> float:
    """Multiply-adds of a sample that takes one pass per feature; masking the weights takes the time of forty rows."""
    weights = hidden * (features + hidden + features * params_per_feature(kind))
    return features * (batch + 40.0) * weights


def too_slow(name: str, kind: str, features: int, hidden: int, batch: int) -> str | None:
    """Why a row is not timed, or None."""
    passes = name in SAMPLERS and not (name == "flowkernels" and "cpu" in backends.table()["autoregressive_inverse"])
    if passes and work(kind, features, hidden, batch) > MOST_WORK:
        return f"{name}: {features} passes of this network take minutes"
    return None


def _nflows(kind: str, features: int, hidden: int) -> Any:
    from nflows.transforms import (
        MaskedAffineAutoregressiveTransform,
        MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
    )

    sizes: dict[str, Any] = {"features": features, "hidden_features": hidden, "num_blocks": 1}
    if kind == "affine":
        return MaskedAffineAutoregressiveTransform(**sizes, use_residual_blocks=False)
    return MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
        **sizes, use_residual_blocks=False, num_bins=BINS, tails="linear", tail_bound=TAIL_BOUND
    )


def _ours(kind: str, features: int, hidden: int) -> Any:
    univariate = transforms.Affine() if kind == "affine" else transforms.RQS(bins=BINS, tail_bound=TAIL_BOUND)
    layer = transforms.Autoregressive(nets.MADE(features, params_per_feature(kind), (hidden, hidden)), univariate)
    layer.conditioner.load_state_dict(_nflows_model(kind, features, hidden).autoregressive_net.state_dict())
    return layer


def _nflows_model(kind: str, features: int, hidden: int) -> nn.Module:
    """With weights that make the layer bend: as they are drawn every spline is nearly a straight line."""
    torch.manual_seed(0)
    model = _nflows(kind, features, hidden)
    with torch.no_grad():
        model.autoregressive_net.final_layer.weight.mul_(2)
    return model


def _zuko(kind: str, features: int, hidden: int) -> Any:
    import zuko

    torch.manual_seed(0)
    if kind == "affine":
        return zuko.flows.MAF(features, transforms=1, hidden_features=(hidden, hidden))
    return zuko.flows.NSF(features, bins=BINS, transforms=1, hidden_features=(hidden, hidden))


def build(name: str, kind: str, features: int, hidden: int) -> Sampler:
    """The calls of a row."""
    if name.startswith("zuko"):
        model = _zuko(kind, features, hidden)
        exact = copy.deepcopy(model).double()
        return Sampler(lambda x: model().transform.call_and_ladj(x), lambda z: model().transform.inv(z),
                       lambda x: exact().transform.call_and_ladj(x))  # fmt: skip
    theirs = _nflows_model(kind, features, hidden)
    layer = theirs if name == "nflows eager" else _ours(kind, features, hidden)
    return Sampler(layer, lambda z: layer.inverse(z)[0], copy.deepcopy(theirs).double())


# Largest error, as a fraction of the largest value: of ladj, and of z after z → data → latent. Truth for samples is the
# way back in float64, one pass: solving in float64 would take longer than the benchmark.
BOUND = 1e-4


@torch.no_grad()
def worst_error(name: str, sampler: Sampler, z: Tensor) -> float:
    """Asserts that what the row computes is within `BOUND` of the truth; → the relative error.

    Raises:
        AssertionError: the row is wrong, so its time means nothing.
    """
    if name == DENSITY:
        found, expected = sampler.latent(z)[1], sampler.exact_latent(z.double())[1]
    else:
        found, expected = sampler.exact_latent(sampler.data(z).double())[0], z
    error = ((found.double() - expected.double()).abs().max() / expected.abs().max()).item()
    if not error <= BOUND:  # a NaN is not
        raise AssertionError(f"{name}: must be within {BOUND:.0e} of the float64 truth, got {error:.1e}")
    return error


def bind(name: str, sampler: Sampler, z: Tensor) -> Callable[[], Tensor]:
    """The call to time, from latents that are drawn already."""

    def call() -> Tensor:
        with torch.no_grad():
            return sampler.latent(z)[1] if name == DENSITY else sampler.data(z)

    return call

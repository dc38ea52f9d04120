"""Samples of one autoregressive layer, which are solved feature by feature; nflows and ours share weights."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench import calls
from bench.closeness import Distance, assert_close
from bench.suite import SAMPLE, Ready, Row, Suite, named, points
from bench.suites.rqs import TAIL_BOUND
from flowkernels import backends, nets, transforms

BINS = 8
KINDS = ("affine", "spline")
HIDDEN = {8: 512, 64: 512, 784: 1024}  # of D features
DENSITY = "flowkernels log_prob"  # one pass of the network: what a sample would cost if it were not solved for
Layer = Callable[[Tensor], tuple[Tensor, Tensor]]  # x → z, ladj

# Multiply-adds of one call, above which rows that run the network once per feature take minutes.
MOST_WORK = 3e11


class Sampler(NamedTuple):
    """`latent(x)` is data → latent with its ladj, `data(z)` the way back."""

    latent: Layer
    data: Callable[[Tensor], Tensor]


class Inputs(NamedTuple):
    z: Tensor
    kind: str
    hidden: int

    @classmethod
    def make(cls, kind: str, features: int, hidden: int, batch: int) -> Inputs:
        return cls(torch.randn(batch, features, generator=torch.Generator().manual_seed(0)), kind, hidden)

    @property
    def net(self) -> tuple[str, int, int]:
        return self.kind, self.z.shape[1], self.hidden


def params_per_feature(kind: str) -> int:
    return 2 if kind == "affine" else 3 * BINS - 1


def work(kind: str, features: int, hidden: int, batch: int) -> float:
    """Multiply-adds of a sample that takes one pass per feature; masking the weights takes the time of forty rows."""
    weights = hidden * (features + hidden + features * params_per_feature(kind))
    return features * (batch + 40.0) * weights


def too_slow(row: Row, kind: str, features: int, hidden: int, batch: int) -> str | None:
    """Why a row is not timed, or None."""
    solves = row.name == "flowkernels" and "cpu" in backends.table()["autoregressive_inverse"]
    if row.name != DENSITY and not solves and work(kind, features, hidden, batch) > MOST_WORK:
        return f"{row.name}: {features} passes of this network take minutes"
    return None


# ---- the rows: kind, features, hidden → sampler ----


def _nflows_layer(kind: str, features: int, hidden: int) -> nn.Module:
    """With weights that make the layer bend: as they are drawn every spline is nearly a straight line."""
    from nflows.transforms import (
        MaskedAffineAutoregressiveTransform,
        MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
    )

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"features": features, "hidden_features": hidden, "num_blocks": 1}
    if kind == "affine":
        layer: Any = MaskedAffineAutoregressiveTransform(**sizes, use_residual_blocks=False)
    else:
        layer = MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
            **sizes, use_residual_blocks=False, num_bins=BINS, tails="linear", tail_bound=TAIL_BOUND
        )
    with torch.no_grad():
        layer.autoregressive_net.final_layer.weight.mul_(2)
    return layer


def _nflows(kind: str, features: int, hidden: int) -> Sampler:
    layer: Any = _nflows_layer(kind, features, hidden)
    return Sampler(layer, lambda z: layer.inverse(z)[0])


def _ours(kind: str, features: int, hidden: int) -> Sampler:
    univariate = transforms.Affine() if kind == "affine" else transforms.RQS(bins=BINS, tail_bound=TAIL_BOUND)
    layer = transforms.Autoregressive(nets.MADE(features, params_per_feature(kind), (hidden, hidden)), univariate)
    theirs: Any = _nflows_layer(kind, features, hidden)
    layer.conditioner.load_state_dict(theirs.autoregressive_net.state_dict())
    return Sampler(layer, lambda z: layer.inverse(z)[0])


def _zuko_flow(kind: str, features: int, hidden: int) -> Any:
    import zuko

    torch.manual_seed(0)
    if kind == "affine":
        return zuko.flows.MAF(features, transforms=1, hidden_features=(hidden, hidden))
    return zuko.flows.NSF(features, bins=BINS, transforms=1, hidden_features=(hidden, hidden))


def _zuko(kind: str, features: int, hidden: int) -> Sampler:
    flow = _zuko_flow(kind, features, hidden)
    return Sampler(lambda x: flow().transform.call_and_ladj(x), lambda z: flow().transform.inv(z))


ROWS = named(
    Row("nflows eager", _nflows, "nflows", "nflows"),
    Row("zuko eager", _zuko, "zuko", "zuko"),
    Row("flowkernels", _ours, "nflows", "nflows"),  # whose weights ours are
    Row(DENSITY, _ours, "nflows", "nflows"),
)


@functools.lru_cache(maxsize=len(ROWS))  # a row's model serves all batches
def build(name: str, kind: str, features: int, hidden: int) -> Sampler:
    return ROWS[name].of(kind, features, hidden)


@functools.lru_cache(maxsize=2)
def exact_latent(library: str, kind: str, features: int, hidden: int) -> Layer:
    """Data → latent of the library in float64.

    It is the truth of samples too, by the way back, one pass: to solve in float64 would take longer than the benchmark.
    """
    if library == "zuko":
        flow = copy.deepcopy(_zuko_flow(kind, features, hidden)).double()
        return lambda x: flow().transform.call_and_ladj(x)
    return copy.deepcopy(_nflows_layer(kind, features, hidden)).double()


# ---- a row on its inputs ----


def bind(name: str, sampler: Sampler, z: Tensor) -> Callable[[], Tensor]:
    """The call to time, from latents that are drawn already."""
    return calls.without_graph(lambda: sampler.latent(z)[1] if name == DENSITY else sampler.data(z))


def ready(row: Row, inputs: Inputs, op: str) -> Ready:
    sampler = build(row.name, *inputs.net)
    return Ready(bind(row.name, sampler, inputs.z), lambda exact: worst_error(row.name, sampler, inputs.z, exact))


BOUND = Distance(largest=1e-4)


@torch.no_grad()
def worst_error(name: str, sampler: Sampler, z: Tensor, exact: Layer) -> float:
    """Asserts that ladj, or z after z → data → latent, is close to the truth; → the relative error."""
    if name == DENSITY:
        return assert_close(name, "ladj", sampler.latent(z)[1], exact(z.double())[1], BOUND).largest
    return assert_close(name, "z", exact(sampler.data(z).double())[0], z.double(), BOUND).largest


SUITE = Suite(
    title="one layer",
    points=points([(k, d, h, b) for k in KINDS for d, h in HIDDEN.items() for b in (1, 64, 1024)], (SAMPLE,), ROWS),
    label=lambda kind, features, hidden, batch: f"{kind}, D={features}, batch {batch}",
    smaller=lambda kind, features, hidden, batch: (kind, min(features, 16), 32, min(batch, 8)),
    inputs=Inputs.make,
    rows=ROWS,
    ready=ready,
    truth=lambda library, inputs, op: exact_latent(library, *inputs.net),
    too_slow=too_slow,
)

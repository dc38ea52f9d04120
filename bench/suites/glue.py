"""Layers whose Python is timed: each as (our call, nflows' call) of the same numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flowkernels import compat, nets, ops, transforms

D, HIDDEN, BINS, TAIL_BOUND = 6, 64, 8, 3.0
CALLS_IN_A_ROW = 10
Pair = tuple[Callable[[], Any], Callable[[], Any]]


def _x(batch: int) -> Tensor:
    return torch.linspace(-2, 2, batch * D).reshape(batch, D)


def _accelerated(theirs: nn.Module, batch: int) -> Pair:
    ours, x = copy.deepcopy(theirs), _x(batch)
    assert compat.accelerate(ours).accelerated
    return lambda: ours(x), lambda: theirs(x)


def _theirs() -> Any:
    from nflows.nn.nets import ResidualNet
    from nflows.transforms import PiecewiseRationalQuadraticCouplingTransform

    torch.manual_seed(0)
    return PiecewiseRationalQuadraticCouplingTransform(
        [i % 2 for i in range(D)], lambda i, o: ResidualNet(i, o, hidden_features=HIDDEN), num_bins=BINS,
        tails="linear", tail_bound=TAIL_BOUND,
    )  # fmt: skip


def _coupling(batch: int) -> Pair:
    return _accelerated(_theirs(), batch)


def _nsf(batch: int) -> Pair:
    """A layer of our own, of nflows' shape and weights."""
    theirs, x = _theirs(), _x(batch)
    univariate = transforms.RQS(bins=BINS, tail_bound=TAIL_BOUND, logit_scale=HIDDEN**-0.5)
    ours = transforms.Coupling(
        [i % 2 for i in range(D)], lambda i, o: nets.ResidualNet(i, o, hidden=HIDDEN), univariate
    )
    weights = list(theirs.transform_net.parameters())
    with torch.no_grad():
        for p, q in zip(ours.conditioner.parameters(), weights, strict=True):
            p.copy_(q)
    return lambda: ours(x), lambda: theirs(x)


def _made(batch: int) -> Pair:
    from nflows.transforms import MaskedAffineAutoregressiveTransform

    torch.manual_seed(0)
    return _accelerated(MaskedAffineAutoregressiveTransform(D, HIDDEN), batch)


def _rqs(batch: int) -> Pair:
    from nflows.transforms.splines import unconstrained_rational_quadratic_spline as spline

    x, params = _x(batch), torch.linspace(-1, 1, batch * D * (3 * BINS - 1)).reshape(batch, D, -1)

    def theirs() -> tuple[Tensor, Tensor]:
        y, ladj = spline(x, *params.split((BINS, BINS, BINS - 1), -1), tails="linear", tail_bound=TAIL_BOUND)
        return y, ladj.sum(-1)

    return lambda: ops.rqs(x, params, bins=BINS, tail_bound=TAIL_BOUND), theirs


CALLS: dict[str, Callable[[int], Pair]] = {
    "nflows RQ coupling": _coupling,
    "transforms.Coupling": _nsf,
    "nflows affine MADE": _made,
    "ops.rqs": _rqs,
}


def in_a_row(call: Callable[[], Any]) -> Callable[[], None]:
    def calls() -> None:
        for _ in range(CALLS_IN_A_ROW):
            call()

    return calls


def assert_close(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    """Float32, two ways of rounding; before anything is timed."""
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

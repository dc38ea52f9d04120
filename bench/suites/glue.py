"""Time of the Python around a kernel: a warm layer whose compiled entry does nothing, beside nflows' own layer.

A round is 10 calls, for caches are as warm then as in a loop of small batches: 660 µs are 66 µs per layer.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from bench.closeness import distance
from bench.suite import Ready, Row, Suite, Tensors, named, points
from flowkernels import _native, compat, nets, ops, transforms

D, HIDDEN, BINS, TAIL_BOUND = 6, 64, 8, 3.0
CALLS_IN_A_ROW = 10
OP = f"{CALLS_IN_A_ROW} calls, forward, no grad, 1 thread"
Pair = tuple[Callable[[], Any], Callable[[], Any]]  # our call, nflows' call, of the same numbers


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
THEIRS, OURS, GLUE = "nflows eager", "flowkernels", "glue"  # the last with an entry that does nothing
ROWS = named(*(Row(name, name, "nflows") for name in (THEIRS, OURS, GLUE)))


def in_a_row(call: Callable[[], Any]) -> Callable[[], None]:
    def calls() -> None:
        for _ in range(CALLS_IN_A_ROW):
            call()

    return calls


@contextlib.contextmanager
def without_kernels(ours: Callable[[], Any]) -> Iterator[None]:
    """While compiled entries do nothing: the caller has allocated what an entry fills."""
    called = 0

    def nothing(*_: Any) -> None:
        nonlocal called
        called += 1

    entries = [name for name in dir(_native.C) if name.endswith("_fwd")]
    with mock.patch.multiple(_native.C, **dict.fromkeys(entries, nothing)):
        ours()
        assert called == 1, f"one entry must be called, not a kernel past it; got {called} calls of {entries}"
        yield


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One thread and no graph."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(threads)


def ready(row: Row, inputs: Pair, op: str) -> Ready:
    ours, theirs = inputs
    if row.name == THEIRS:
        return Ready(in_a_row(theirs))
    as_it_is = Ready(in_a_row(ours), lambda truth: worst_error(ours(), truth))
    return as_it_is if row.name == OURS else as_it_is._replace(during=functools.partial(without_kernels, ours))


def worst_error(ours: Tensors, theirs: Tensors) -> float:
    """Asserts that two ways of rounding in float32 agree; → the largest relative difference."""
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    return max(distance(a, b).largest for a, b in zip(ours, theirs, strict=True))


SUITE = Suite(
    title="glue",
    points=points([(name, batch) for name in CALLS for batch in (1, 64)], (OP,), (GLUE, OURS)),
    label=lambda name, batch: f"{name}, {batch} rows",
    smaller=lambda *size: size,
    inputs=lambda name, batch: CALLS[name](batch),
    rows=ROWS,
    ready=ready,
    truth=lambda _, inputs, op: inputs[1](),
    beside=THEIRS,
    around=alone,
)

"""Samples of a flow beside the log-densities that objectives compare."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor, nn

from flowkernels._arguments import check_tensor, count, flag
from flowkernels.flows import Flow

LogDensity = Callable[[Tensor], Tensor]


class Draws(NamedTuple):
    """``x [n, ..., D]``, and ``[n, ...]`` in nats."""

    x: Tensor
    log_q: Tensor
    log_p: Tensor


def draw(
    where: str, flow: Flow, log_target: LogDensity, n: int, context: Tensor | None, path_gradient: bool, name: str
) -> Draws:
    """``n`` samples, reparameterised. With ``path_gradient`` log q depends on the flow's parameters through x alone."""
    check(where, flow, log_target, name)
    n = count(where, "n", n)
    x, log_q = flow.sample_and_log_prob(n, context)
    if flag(where, "path_gradient", path_gradient):
        with _frozen(flow):
            log_q = flow.log_prob(x, None if context is None else context.detach())
    return Draws(x, log_q, density(where, log_target, x, log_q, name))


def check(where: str, flow: Flow, log_target: LogDensity, name: str) -> None:
    """Raises unless these are a flow and a function."""
    if not isinstance(flow, Flow):
        raise TypeError(f"{where}: flow must be a flowkernels.flows.Flow, got {type(flow).__name__}")
    if not callable(log_target):
        raise TypeError(f"{where}: {name} must be a function of x, got {type(log_target).__name__}")


def density(where: str, log_target: LogDensity, x: Tensor, like: Tensor, name: str) -> Tensor:
    """What a function says of x: a number for each of ``like``."""
    log_p = log_target(x)
    check_tensor(where, f"what {name} returns", log_p)
    if log_p.shape != like.shape:
        wanted = f"{list(like.shape)} for x {list(x.shape)}"
        raise ValueError(f"{where}: {name} must return {wanted}, got {list(log_p.shape)}")
    return log_p


@contextlib.contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Parameters as constants; a graph recorded before still leads to them."""
    trained = [p for p in module.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)

"""What a simulator is asked: parameters of a prior, and what it makes of them; and densities over both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from flowkernels._arguments import check_tensor, count
from flowkernels.distributions import Distribution, FromTorch, StandardNormal
from flowkernels.flows import Flow
from flowkernels.training import Fit, fit
from flowkernels.transforms import Composite, Logit, Standardize, Transform

Simulator = Callable[[Tensor], Tensor]
MakeFlow = Callable[..., Flow]


def prior_of(where: str, prior: Any) -> Distribution:
    """A distribution of torch as one of ours, which raises on no value."""
    if isinstance(prior, torch.distributions.Distribution):
        return FromTorch(prior)
    if not isinstance(prior, Distribution):
        raise TypeError(f"{where}: prior must be a distribution of torch or flowkernels, got {prior!r:.60}")
    return prior


def drawn(where: str, prior: Distribution, simulator: Any, n: int) -> tuple[Tensor, Tensor]:
    """Parameters ``[n, D]`` and data ``[n, C]``, drawn, or those that are given as a pair."""
    theta: Any
    x: Any
    if isinstance(simulator, (tuple, list)) and len(simulator) == 2:
        theta, x = simulator
    elif callable(simulator):
        with torch.no_grad():
            theta = prior.sample(count(where, "simulations", n))
            x = simulator(theta)
    else:
        raise TypeError(f"{where}: simulator must be a function or a pair (theta, x), got {simulator!r:.60}")
    for name, value, letter in (("theta", theta, "D"), ("x", x, "C")):
        check_tensor(where, name, value)
        if value.dim() != 2 or not value.is_floating_point():
            given = f"{list(value.shape)}, {value.dtype}"
            raise ValueError(f"{where}: {name} must be [n, {letter}] of a floating-point dtype, got {given}")
        if not bool(value.isfinite().all()):
            lost = int((~value.isfinite()).any(1).sum())
            raise ValueError(f"{where}: {name} must be finite, got {lost} of {len(value)} rows that are not")
    if len(theta) != len(x) or theta.shape[1] != prior.features:
        wanted = f"as many rows, of the {prior.features} parameters of the prior"
        raise ValueError(f"{where}: theta and x must be {wanted}, got {list(theta.shape)} and {list(x.shape)}")
    return theta.detach(), x.detach().to(theta)


def fitted(
    where: str, flow: MakeFlow, x: Tensor, context: Tensor, first: list[Transform], settings: dict[str, Any]
) -> tuple[Flow, Fit]:
    """A flow of ``x`` given the context, trained on both standardised, behind the layers that come ``first``."""
    made = flow(x.shape[1], context.shape[1])
    if not isinstance(made, Flow):
        raise TypeError(f"{where}: flow must make a flowkernels.flows.Flow, got {type(made).__name__}")
    for layer in first:
        x = layer(x)[0]
    found = fit(made.to(x), x, context, **{"standardise": True, "progress": False, **settings})
    whole = found.flow
    if first:
        whole = Flow(Composite([*first, whole.transform]), whole.base, whole.embedding)
        whole.context_to_base = found.flow.context_to_base
    return whole.eval(), found


# ---- the prior ----


def to_the_line(where: str, prior: Distribution, like: Tensor) -> list[Transform]:
    """Layers that bring the prior's support onto the whole line: none, or those of a box."""
    box = _box(where, prior, like)
    return [] if box is None else [Standardize(box[0], box[1] - box[0]), Logit(0.0)]


def inside(where: str, prior: Distribution, theta: Tensor) -> Tensor:
    """The parameters; those on a face of the box, which the line does not have, a few roundings further in."""
    if not bool(prior.support.check(theta).all()):
        lost = int((~prior.support.check(theta)).any(1).sum())
        raise ValueError(f"{where}: theta must lie in the prior's support, got {lost} of {len(theta)} rows outside")
    box = _box(where, prior, theta)
    if box is None:
        return theta
    low, high = box
    margin = 4 * torch.finfo(theta.dtype).eps * torch.maximum(torch.maximum(low.abs(), high.abs()), high - low)
    return torch.clamp(theta, low + margin, high - margin)


def flow_of_prior(where: str, prior: Distribution, like: Tensor) -> Flow:
    """Normal on the line, with the prior's means and deviations there: where samplers begin."""
    draws = inside(where, prior, prior.sample(1000).to(like))
    layers, u = to_the_line(where, prior, draws), draws
    for layer in layers:
        u = layer(u)[0]
    return Flow(Composite([*layers, Standardize.from_data(u)]), StandardNormal(u.shape[1]).to(u)).eval()


def _box(where: str, prior: Distribution, like: Tensor) -> tuple[Tensor, Tensor] | None:
    """The corners of a prior's support, None where it is all real numbers."""
    support: Any = prior.support
    if support is constraints.real:
        return None
    if not isinstance(support, constraints.interval):
        raise ValueError(
            f"{where}: prior must be on all real numbers or on a box, got the support {support}; give one of other "
            "parameters, e.g. of logarithms"
        )
    ends = (torch.as_tensor(end).to(like).expand(like.shape[1]) for end in (support.lower_bound, support.upper_bound))
    low, high = ends
    return low, high

"""Trajectories of Hamiltonian Monte Carlo on the latents of a flow: many chains in one batch, and their step size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from flowkernels.flows import Flow
from flowkernels.objectives.draws import LogDensity, density


class State:
    """A latent of every chain, its point, log-target and log-density, and the slope of that."""

    def __init__(self, z: Tensor, x: Tensor, log_p: Tensor, density: Tensor, slope: Tensor) -> None:
        self.z, self.x, self.log_p, self.density, self.slope = z, x, log_p, density, slope


S = TypeVar("S", bound=State)
Look = Callable[[Tensor], S]


def chosen(takes: Tensor, new: S, old: S) -> S:
    """The new state of the chains that take it, the old one of the others."""
    made = object.__new__(type(old))
    for name, mine in vars(old).items():
        mask = takes.reshape(-1, *[1] * (mine.dim() - 1))
        setattr(made, name, torch.where(mask, getattr(new, name), mine))
    return made


def look_by(where: str, flow: Flow, log_target: LogDensity, embedded: Tensor | None) -> Look[State]:
    """What says point, density and slope of a latent, where the density is the target's."""

    def look(z: Tensor) -> State:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            x, ladj = flow._decode(z, embedded)
            log_p = density(where, log_target, x, ladj, "log_target")
            whole = log_p + ladj
            (slope,) = torch.autograd.grad(whole.sum(), z)
        return State(z.detach(), x.detach(), log_p.detach(), whole.detach(), slope)

    return look


def move(look: Look[S], now: S, size: float, leapfrog: int) -> tuple[S, Tensor, Tensor]:
    """One trajectory of every chain: where they are then, how likely each was accepted, and which had no energy."""
    momentum = torch.randn_like(now.z)
    new, end = _trajectory(look, now, momentum, size, leapfrog)
    change = (new.density - _kinetic(end)) - (now.density - _kinetic(momentum))
    lost = ~change.isfinite()
    probability = torch.where(lost, 0.0, change.clamp(max=0).exp())
    takes = torch.rand_like(probability) < probability
    return chosen(takes, new, now), probability, lost


def _kinetic(momentum: Tensor) -> Tensor:
    return 0.5 * momentum.square().flatten(1).sum(1)


def _trajectory(look: Look[S], state: S, momentum: Tensor, size: float, steps: int) -> tuple[S, Tensor]:
    momentum = momentum + 0.5 * size * state.slope
    for i in range(steps):
        state = look(state.z + size * momentum)
        momentum = momentum + (size if i < steps - 1 else 0.5 * size) * state.slope
    return state, momentum


class StepSize:
    """Dual averaging of the logarithm of a step size, with the constants of Hoffman and Gelman."""

    def __init__(self, first: float, rate: float) -> None:
        self.now, self._rate = first, rate
        self._drawn_to, self._off, self._mean, self._n = math.log(10 * first), 0.0, 0.0, 0

    def learn(self, probability: float) -> None:
        """One step of the warmup, and how likely it was accepted."""
        self._n += 1
        share = 1 / (self._n + 10)
        self._off += share * (self._rate - probability - self._off)
        logarithm = self._drawn_to - self._n**0.5 / 0.05 * self._off
        weight = self._n**-0.75
        self._mean += weight * (logarithm - self._mean)
        self.now = math.exp(min(max(logarithm, -20.0), 5.0))

    def settle(self) -> None:
        """The mean of the warmup, from here on."""
        self.now = math.exp(min(max(self._mean, -20.0), 5.0))

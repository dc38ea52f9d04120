"""Hamiltonian Monte Carlo in the latent space of a flow, where a target that the flow knows is all but normal."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowkernels._arguments import check_tensor, count, positive, share
from flowkernels.flows import Flow
from flowkernels.objectives.draws import LogDensity, check, density

from .chains import Chains


def latent_hmc(
    flow: Flow,
    log_target: LogDensity,
    steps: int,
    *,
    chains: int = 16,
    warmup: int | None = None,
    leapfrog: int = 8,
    step_size: float = 0.1,
    target_rate: float = 0.8,
    context: Tensor | None = None,
) -> Chains:
    r"""Runs chains of Hamiltonian Monte Carlo on the latent z of a flow, whose points x = T(z) are samples of a target.

    .. math:: \log \pi(z) = \log p(T(z)) + \log\left|\det \frac{\partial T}{\partial z}\right|

    of p or a multiple of it. All chains move in one batch; a leapfrog step is one pass of the flow from z to x and its
    gradient. The step size is found in the warmup, by dual averaging. Chains begin at samples of the flow.

    Args:
        flow: T; any trained on the target, or close to it.
        log_target: differentiable function of ``x [chains, D]`` → ``[chains]``, in nats.
        steps: number of states of each chain that are returned.
        chains: number of chains.
        warmup: number of states before them; default: half of ``steps``, at least 50.
        leapfrog: steps of a trajectory.
        step_size: the first one; without a warmup, the only one.
        target_rate: of acceptance, above 0 and below 1.
        context: ``[C]``, one for all chains.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a number breaks its contract; what ``log_target`` returns has another shape.

    Reference:
        Hoffman et al.: NeuTra-lizing Bad Geometry in Hamiltonian Monte Carlo Using Neural Transport, 2019,
        arXiv:1903.03704; Hoffman, Gelman: The No-U-Turn Sampler, JMLR 2014, section 3.2.

    Example:
        >>> import torch
        >>> from flowkernels import flows, inference
        >>> flow = flows.RealNVP(2)
        >>> found = inference.latent_hmc(flow, lambda x: -0.5 * (x / 2).square().sum(-1), 100, chains=8)
        >>> found.x.shape
        torch.Size([100, 8, 2])
    """
    where = "inference.latent_hmc"
    check(where, flow, log_target, "log_target")
    steps, chains, leapfrog = (
        count(where, *of) for of in (("steps", steps), ("chains", chains), ("leapfrog", leapfrog))
    )
    warmup = max(50, steps // 2) if warmup is None else count(where, "warmup", warmup, 0)
    size = _StepSize(positive(where, "step_size", step_size), share(where, "target_rate", target_rate))
    if not 0 < target_rate < 1:
        raise ValueError(f"{where}: target_rate must be above 0 and below 1, got {target_rate!r}")
    if context is not None:
        check_tensor(where, "context", context)
        context = context.detach().expand(chains, -1) if context.dim() == 1 else context

    def look(z: Tensor) -> _State:
        """The point, the density and its slope at a latent."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            embedded = flow.embed(context)
            x, ladj = flow._decode(z, embedded)
            log_p = density(where, log_target, x, ladj, "log_target")
            whole = log_p + ladj
            (slope,) = torch.autograd.grad(whole.sum(), z)
        return _State(z.detach(), x.detach(), log_p.detach(), whole.detach(), slope)

    with torch.no_grad():
        now = look(flow.base.rsample(chains if context is None else (), flow.embed(context)))
        states, targets, rates, divergences = [], [], [], 0
        for i in range(warmup + steps):
            momentum = torch.randn_like(now.z)
            new, end = _trajectory(look, now, momentum, size.now, leapfrog)
            change = (new.density - _kinetic(end)) - (now.density - _kinetic(momentum))
            lost = ~change.isfinite()
            probability = torch.where(lost, 0.0, change.clamp(max=0).exp())
            takes = torch.rand_like(probability) < probability
            now = now.where(takes, new)
            if i < warmup:
                size.learn(float(probability.mean()))
                if i == warmup - 1:
                    size.settle()
                continue
            states.append(now.x)
            targets.append(now.log_p)
            rates.append(probability.mean())
            divergences += int(lost.sum())
    return Chains(torch.stack(states), torch.stack(targets), float(torch.stack(rates).mean()), size.now, divergences)


class _State:
    """A latent of every chain, and what belongs to it."""

    def __init__(self, z: Tensor, x: Tensor, log_p: Tensor, density: Tensor, slope: Tensor) -> None:
        self.z, self.x, self.log_p, self.density, self.slope = z, x, log_p, density, slope

    def where(self, takes: Tensor, other: _State) -> _State:
        """The other's, of the chains that take it."""
        return _State(
            *(
                torch.where(takes.reshape(-1, *[1] * (mine.dim() - 1)), theirs, mine)
                for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)
            )
        )


def _kinetic(momentum: Tensor) -> Tensor:
    return 0.5 * momentum.square().flatten(1).sum(1)


def _trajectory(look, state: _State, momentum: Tensor, size: float, steps: int) -> tuple[_State, Tensor]:
    momentum = momentum + 0.5 * size * state.slope
    for i in range(steps):
        state = look(state.z + size * momentum)
        momentum = momentum + (size if i < steps - 1 else 0.5 * size) * state.slope
    return state, momentum


class _StepSize:
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

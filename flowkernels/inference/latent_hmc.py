"""Hamiltonian Monte Carlo in the latent space of a flow, where a target that the flow knows is all but normal."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkernels._arguments import check_tensor, count, positive, share
from flowkernels.flows import Flow
from flowkernels.objectives.draws import LogDensity, check

from .chains import Chains
from .hamiltonian import StepSize, look_by, move


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
    size = StepSize(positive(where, "step_size", step_size), share(where, "target_rate", target_rate))
    if not 0 < target_rate < 1:
        raise ValueError(f"{where}: target_rate must be above 0 and below 1, got {target_rate!r}")
    if context is not None:
        check_tensor(where, "context", context)
        context = context.detach().expand(chains, -1) if context.dim() == 1 else context

    with torch.no_grad():
        embedded = flow.embed(context)
        look = look_by(where, flow, log_target, embedded)
        now = look(flow.base.rsample(chains if context is None else (), embedded))
        states, targets, rates, divergences = [], [], [], 0
        for i in range(warmup + steps):
            now, probability, lost = move(look, now, size.now, leapfrog)
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

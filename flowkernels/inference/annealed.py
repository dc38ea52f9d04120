"""Annealed importance sampling: from a flow to a target it covers badly, by transitions in between."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels._arguments import check_tensor, count, is_number, is_whole, positive, share
from flowkernels.flows import Flow
from flowkernels.objectives.draws import LogDensity, check

from .hamiltonian import State, StepSize, look_by, move
from .importance import Weighted

_TRIES = 10  # transitions of the pilot at a temperature, from which it has the step size


def annealed_importance_sampling(
    flow: Flow,
    log_target: LogDensity,
    n: int,
    *,
    temperatures: int | Sequence[float] = 16,
    steps: int = 1,
    leapfrog: int = 8,
    step_size: float = 0.1,
    target_rate: float = 0.8,
    pilot: int = 64,
    context: Tensor | None = None,
) -> Weighted:
    r"""Draws samples with weights for a target, and its evidence, on a path from a flow to it.

    .. math:: \log \pi_\beta(z) = (1 - \beta) \log b(z) + \beta \left(\log \tilde p(T(z))
        + \log\left|\det \tfrac{\partial T}{\partial z}\right|\right), \qquad
        \log w = \sum_{k=1}^{K} (\beta_k - \beta_{k-1})
        \left[\log \pi_1(z_{k-1}) - \log \pi_0(z_{k-1})\right]

    with the base b, :math:`0 = \beta_0 < \dots < \beta_K = 1`, :math:`z_0 \sim b`, and :math:`z_k` from
    :math:`z_{k-1}` by Hamiltonian Monte Carlo that leaves :math:`\pi_{\beta_k}` as it is. Each sample is a chain of its
    own, all of them one batch: weights are independent, their mean is an estimate of Z without bias, and its error is
    `Weighted.log_evidence`'s. With one temperature it is `importance_sampling`; more of them bring the weights together
    where the flow has too little mass. Step sizes come from a pilot run of other chains, by dual averaging, so that
    they do not depend on the samples. Without gradients of the flow's parameters.

    Args:
        flow: T and b.
        log_target: differentiable function of ``x [n, D]`` → ``[n]``, log of p or of a multiple of it, in nats.
        n: number of samples.
        temperatures: K, for :math:`\beta_k = k/K`, or the :math:`\beta_k` themselves, rising to 1.
        steps: transitions at each temperature.
        leapfrog: steps of a trajectory; 1 is the Metropolis-adjusted Langevin algorithm.
        step_size: the first one; without a pilot, the only one.
        target_rate: of acceptance, above 0 and below 1; 0.57 suits ``leapfrog=1``.
        pilot: number of its chains, 0 for none.
        context: ``[C]``, one for all samples.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a number breaks its contract; what ``log_target`` returns has another shape.

    Reference:
        Neal: Annealed Importance Sampling, Statistics and Computing 2001, arXiv:physics/9803008; with flows: Midgley,
        Stimper, Simm, Schölkopf, Hernández-Lobato: Flow Annealed Importance Sampling Bootstrap, ICLR 2023,
        arXiv:2208.01893.

    Example:
        >>> import torch
        >>> from flowkernels import flows, inference
        >>> flow = flows.RealNVP(2)  # near N(0, 1), and the target is not
        >>> found = inference.annealed_importance_sampling(flow, lambda x: -2 * (x - 2).square().sum(-1), 500)
        >>> print(abs(found.log_evidence.value - torch.tensor(torch.pi / 2).log()) < 0.5, found.ess > 50)
        tensor(True) tensor(True)
    """
    where = "inference.annealed_importance_sampling"
    check(where, flow, log_target, "log_target")
    n, steps, leapfrog = (count(where, *of) for of in (("n", n), ("steps", steps), ("leapfrog", leapfrog)))
    pilot, first = count(where, "pilot", pilot, 0), positive(where, "step_size", step_size)
    if not 0 < share(where, "target_rate", target_rate) < 1:
        raise ValueError(f"{where}: target_rate must be above 0 and below 1, got {target_rate!r}")
    betas = _betas(where, temperatures)
    if context is not None:
        check_tensor(where, "context", context)
        if context.dim() != 1:
            raise ValueError(f"{where}: context must be [C], got {list(context.shape)}")
    with torch.no_grad():
        sizes = [first] * len(betas)
        if pilot and len(betas) > 1:
            path = _Path(where, flow, log_target, pilot, context)
            for k, beta in enumerate(betas[:-1]):
                path.warm(beta)
                sizes[k] = path.fit_size(sizes[max(k - 1, 0)], target_rate, leapfrog)
        path = _Path(where, flow, log_target, n, context)
        for beta, size in zip(betas[:-1], sizes, strict=False):
            path.warm(beta)
            for _ in range(steps):
                path.now, _, _ = move(path.look, path.now, size, leapfrog)
        path.warm(1.0)
    return Weighted(path.now.x, path.log_weights)


class _Path:
    """All chains at one temperature, and the weights they have come by."""

    def __init__(self, where: str, flow: Flow, log_target: LogDensity, n: int, context: Tensor | None) -> None:
        context = None if context is None else context.detach().expand(n, -1)
        embedded = flow.embed(context)
        self._look = look_by(where, flow, log_target, embedded)
        self._base, self._embedded = flow.base, embedded
        self.beta = 0.0
        self.now = self.look(flow.base.rsample(n if embedded is None else (), embedded))
        self.log_weights = torch.zeros_like(self.now.density)

    def look(self, z: Tensor) -> _Tempered:
        target = self._look(z)
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            base = self._base.log_prob(z, self._embedded)
            (slope,) = torch.autograd.grad(base.sum(), z)
        return _Tempered(target, base.detach(), slope, self.beta)

    def warm(self, beta: float) -> None:
        """From this temperature to another; of a chain that is where the target is no number, the weight is 0."""
        step, gap = beta - self.beta, self.now.gap
        self.log_weights = self.log_weights + step * torch.where(gap.isnan(), -math.inf, gap)
        self.now, self.beta = self.now.at(step), beta

    def fit_size(self, size: float, rate: float, leapfrog: int) -> float:
        """Moves by trials of a step size, and says which one is accepted as often as wanted."""
        tried = StepSize(size, rate)
        for _ in range(_TRIES):
            self.now, probability, _ = move(self.look, self.now, tried.now, leapfrog)
            tried.learn(float(probability.mean()))
        tried.settle()
        return tried.now


class _Tempered(State):
    """A state whose density is between the base's and the target's, and how far these two are apart."""

    def __init__(self, target: State, base: Tensor, slope: Tensor, beta: float) -> None:
        self.gap, self.gap_slope = target.density - base, target.slope - slope
        super().__init__(
            target.z, target.x, target.log_p, _along(base, self.gap, beta), _along(slope, self.gap_slope, beta)
        )

    def at(self, step: float) -> _Tempered:
        """The same latents, where the target counts so much more."""
        made = object.__new__(_Tempered)
        vars(made).update(vars(self))
        made.density = _along(self.density, self.gap, step)
        made.slope = _along(self.slope, self.gap_slope, step)
        return made


def _along(start: Tensor, gap: Tensor, share: float) -> Tensor:
    """Nothing of a gap that may be infinite, where the share is 0."""
    return start + share * gap if share else start


def _betas(where: str, temperatures: Any) -> list[float]:
    """The temperatures after 0."""
    if is_whole(temperatures):
        K = count(where, "temperatures", temperatures)
        return [(k + 1) / K for k in range(K)]
    given = list(temperatures) if isinstance(temperatures, (Sequence, Tensor)) else [temperatures]
    betas = [float(b) if is_number(b) or isinstance(b, Tensor) else math.nan for b in given]
    if not betas or not all(a < b for a, b in zip([0.0, *betas[:-1]], betas, strict=True)) or betas[-1] != 1.0:
        wanted = "a number of them from 1 on, or numbers that rise from above 0 to 1"
        raise ValueError(f"{where}: temperatures must be {wanted}, got {temperatures!r:.60}")
    return betas

"""Continuous layers: the flow of an ordinary differential equation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkernels import ops
from flowkernels._arguments import choice, count, generator, widths
from flowkernels.nets.common import check_context, check_dtypes
from flowkernels.ops.ode_flow import STEPS, TIMES, TRACES, check_solver
from flowkernels.ops.ode_flow.activations import NAMES

from .base import Transform, check_features

_NAME = "transforms.Continuous"
NOISES = ("rademacher", "gaussian")


class Continuous(Transform):
    r"""Moves all features along a vector field that is a small network, from time t0 to t1.

    .. math:: \frac{dx}{dt} = f(x, t, c), \quad \frac{d\,\mathrm{ladj}}{dt} = \mathrm{tr}\,\frac{\partial f}{\partial x}

    as `flowkernels.ops.ode_flow` has it. ``forward`` goes from t0 to t1, ``inverse`` back, at the same price; they undo
    each other up to the solver's error. ``x [..., D]``, ``ladj [...]`` in nats.

    Args:
        features: D.
        hidden: widths of the hidden layers of f; with one or two of them the exact trace is a product away.
        context: C, of the ``context [..., C]`` that f sees.
        activation: of f; see `flowkernels.ops.ode_flow`.
        solver: ``"dopri5"``, which chooses its steps by the tolerances, ``"rk4"`` or ``"euler"``.
        steps: of rk4 and euler; of dopri5 the most that a row may try.
        rtol, atol: tolerances of dopri5.
        trace: ``"exact"`` or ``"hutchinson"``, an unbiased estimate of ladj with noise of its own in each call. An
            attribute that may be set: train on the estimate, evaluate exactly.
        noise: of the estimate: ``"rademacher"`` signs, or ``"gaussian"``.
        time: ``"concat"``, ``"sinusoidal"`` or ``"none"``: what f sees of t.
        frequencies: of sinusoidal time.
        t0, t1: where time begins and ends.
        seed: of the weights; a number, a generator on the CPU, or None for torch's global one.

    Raises:
        ValueError: an argument breaks its contract; ``x`` does not have D features, or ``context`` not C.

    Reference:
        Chen, Rubanova, Bettencourt, Duvenaud: Neural Ordinary Differential Equations, NeurIPS 2018, arXiv:1806.07366;
        Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud: FFJORD, ICLR 2019, arXiv:1810.01367.

    Example:
        >>> import torch
        >>> from flowkernels.transforms import Continuous
        >>> layer, x = Continuous(3, (16, 16), seed=0), torch.randn(7, 3)
        >>> y, ladj = layer(x)
        >>> back, neg = layer.inverse(y)
        >>> torch.allclose(back, x, atol=1e-3), torch.allclose(neg, -ladj, atol=1e-3)
        (True, True)
    """

    def __init__(
        self,
        features: int,
        hidden: int | Sequence[int] = (64, 64),
        *,
        context: int = 0,
        activation: str = "tanh",
        solver: str = "dopri5",
        steps: int | None = None,
        rtol: float = 1e-5,
        atol: float = 1e-6,
        trace: str = "exact",
        noise: str = "rademacher",
        time: str = "concat",
        frequencies: int = 3,
        t0: float = 0.0,
        t1: float = 1.0,
        seed: int | torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.features, self.context = count(_NAME, "features", features), count(_NAME, "context", context, 0)
        self.hidden = widths(_NAME, "hidden", hidden)
        self.activation = choice(_NAME, "activation", activation, NAMES)
        check_solver(_NAME, solver, steps, t0, t1, rtol, atol)
        self.solver, self.steps = solver, STEPS[solver] if steps is None else int(steps)
        self.rtol, self.atol, self.t0, self.t1 = float(rtol), float(atol), float(t0), float(t1)
        self.trace, self.noise = choice(_NAME, "trace", trace, TRACES), choice(_NAME, "noise", noise, NOISES)
        self.time, self.frequencies = choice(_NAME, "time", time, TIMES), count(_NAME, "frequencies", frequencies)
        of_time = {"concat": 1, "none": 0}.get(time, 2 * self.frequencies)
        draws, like = generator(_NAME, seed), torch.empty(())  # the default dtype and device
        units = [self.features + of_time + self.context, *self.hidden, self.features]
        for k, (a, b) in enumerate(itertools.pairwise(units)):
            for name, shape in (("weight", (b, a)), ("bias", (b,))):  # as nn.Linear draws them
                drawn = torch.rand(*shape, generator=draws, device="cpu", dtype=torch.float64)
                self.register_parameter(f"{name}_{k}", nn.Parameter(((2 * drawn - 1) / math.sqrt(a)).to(like)))

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each layer of f."""
        return [(getattr(self, f"weight_{k}"), getattr(self, f"bias_{k}")) for k in range(len(self.hidden) + 1)]

    def _drawn(self, x: Tensor) -> Tensor | None:
        if choice(_NAME, "trace", self.trace, TRACES) == "exact":
            return None
        if self.noise == "gaussian":
            return torch.randn_like(x)
        return 2 * torch.randint_like(x, 2) - 1

    def _run(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        check_features(_NAME, x, self.features)
        check_context(_NAME, context, self.context, x.shape[:-1])
        layers = self.layers()
        check_dtypes(_NAME, self, layers[0][0], x, context)
        return ops.ode_flow(
            x, layers, context=context, inverse=inverse, noise=self._drawn(x), trace=self.trace, **self._settings()
        )

    def _settings(self) -> dict[str, Any]:
        names = ("activation", "solver", "steps", "rtol", "atol", "time", "frequencies", "t0", "t1")
        return {name: getattr(self, name) for name in names}

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(x, context, False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(y, context, True)

    def extra_repr(self) -> str:
        text = f"{self.features}, hidden={self.hidden}" + f", context={self.context}" * (self.context > 0)
        text += f", activation={self.activation!r}, solver={self.solver!r}, steps={self.steps}"
        return f"{text}, trace={self.trace!r}, time={self.time!r}"

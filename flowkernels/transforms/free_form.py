"""Continuous layers of any vector field: a module of the user's own, solved by torchdiffeq."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flowkernels._arguments import choice, count, flag
from flowkernels.nets.common import check_context
from flowkernels.ops.ode_flow import TRACES, check_solver

from .base import Transform, check_features
from .continuous import NOISES

_NAME = "transforms.FreeForm"
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun")
FIXED = {"rk4": 20, "midpoint": 40, "euler": 80}  # and as many steps as are about as exact
WAYS = (*TRACES, "training")
State = tuple[Tensor, Tensor]  # x [..., D] and ladj [...]


def _solvers() -> Any:
    try:
        return importlib.import_module("torchdiffeq")
    except ImportError as error:
        raise ImportError(f"{_NAME}: needs torchdiffeq: pip install 'flowkernels[ode]'") from error


def _largest(state: State) -> Tensor:
    """A step errs by what it errs in the row that it suits least: none errs by more for being among others."""
    return torch.stack([t.abs().amax() if t.numel() else t.new_zeros(()) for t in state]).amax()


class FreeForm(Transform):
    r"""Moves all features along a vector field of your own, from time t0 to t1.

    .. math:: \frac{dx}{dt} = f(t, x, c), \quad \frac{d\,\mathrm{ladj}}{dt} = \mathrm{tr}\,\frac{\partial f}{\partial x}

    ``forward`` goes from t0 to t1, ``inverse`` back; they undo each other up to the solver's error. ``x [..., D]``,
    ``ladj [...]`` in nats. torchdiffeq solves, with the same steps for all rows of a batch, chosen such that the row
    which they suit least errs within the tolerances. The exact trace is D passes back through f: where f is a plain
    network, `Continuous` has it for the price of a product, and a kernel.

    Args:
        features: D.
        field: a module called as ``field(t, x)``, or ``field(t, x, context)`` where there is a context: t a number
            ``[]``, x ``[..., D]``, to ``[..., D]``. Rows must not look at each other. E.g. `nets.ConcatSquash`.
        context: C, of the ``context [..., C]`` that f sees; 0 for none.
        solver: ``"dopri5"``, ``"dopri8"``, ``"bosh3"`` or ``"adaptive_heun"``, which choose their steps by the
            tolerances; ``"rk4"``, ``"midpoint"`` or ``"euler"`` of equal steps.
        steps: how many equal ones (None: 20, 40 and 80); of the others the most that there may be (None: any).
        rtol, atol: of the solvers that choose: a step may err by ``atol + rtol * |x|``.
        trace: ``"exact"``; ``"hutchinson"``, an unbiased estimate of ladj with noise of its own in each call; or
            ``"training"``, the estimate in training mode and the exact one in evaluation. An attribute that may be set.
        noise: of the estimate: ``"rademacher"`` signs, or ``"gaussian"``.
        adjoint: gradients by solving the adjoint equation from the end: bytes do not grow with the steps, and gradients
            err as the solver does. False: of the steps that were taken, all of which are kept.
        t0, t1: where time begins and ends; not the same.

    Raises:
        ImportError: torchdiffeq is not installed.
        TypeError: ``field`` is not a module.
        ValueError: an argument breaks its contract; ``x`` does not have D features, or ``context`` not C; what the
            field returns has another shape.
        RuntimeError: a solver that chooses its steps does not arrive. Rows with NaN or infinities in x do not reach
            it: they are NaN.

    Reference:
        Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud: FFJORD, ICLR 2019, arXiv:1810.01367; Chen, Rubanova,
        Bettencourt, Duvenaud: Neural Ordinary Differential Equations, NeurIPS 2018, arXiv:1806.07366.

    Example:
        >>> import torch
        >>> from flowkernels.transforms import FreeForm
        >>> class Spiral(torch.nn.Module):
        ...     def forward(self, t, x):
        ...         return x @ x.new_tensor([[-0.5, 2.0], [-2.0, -0.5]])
        >>> layer, x = FreeForm(2, Spiral()), torch.randn(7, 2)
        >>> y, ladj = layer(x)
        >>> torch.allclose(ladj, torch.full((7,), -1.0), atol=1e-5)
        True
    """

    def __init__(
        self,
        features: int,
        field: nn.Module,
        *,
        context: int = 0,
        solver: str = "dopri5",
        steps: int | None = None,
        rtol: float = 1e-5,
        atol: float = 1e-6,
        trace: str = "exact",
        noise: str = "rademacher",
        adjoint: bool = False,
        t0: float = 0.0,
        t1: float = 1.0,
    ) -> None:
        super().__init__()
        _solvers()
        self.features = count(_NAME, "features", features)
        if not isinstance(field, nn.Module):
            raise TypeError(f"{_NAME}: field must be a torch.nn.Module, got {type(field).__name__}")
        self.field = field
        self.context = count(_NAME, "context", context, least=0)
        self.solver = choice(_NAME, "solver", solver, (*ADAPTIVE, *FIXED))
        check_solver(_NAME, "dopri5", steps, t0, t1, rtol, atol)
        if t0 == t1:
            raise ValueError(f"{_NAME}: t1 must be another time than t0, got {t1!r}")
        self.steps, self.rtol, self.atol, self.t0, self.t1 = steps, rtol, atol, t0, t1
        self.trace = choice(_NAME, "trace", trace, WAYS)
        self.noise = choice(_NAME, "noise", noise, NOISES)
        self.adjoint = flag(_NAME, "adjoint", adjoint)

    def forward(self, x: Tensor, context: Tensor | None = None) -> State:
        return self._run(x, context, self.t0, self.t1)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> State:
        return self._run(y, context, self.t1, self.t0)

    def _run(self, x: Tensor, context: Tensor | None, start: float, end: float) -> State:
        check_features(_NAME, x, self.features)
        check_context(_NAME, context, self.context, x.shape[:-1])
        if x.numel() == 0:
            return x.clone(), x.new_zeros(x.shape[:-1])
        whole = x.isfinite().all(-1)
        at = torch.where(whole.unsqueeze(-1), x, 0)
        y, ladj = self._solve(at, context, torch.tensor([start, end], dtype=x.dtype, device=x.device))
        return torch.where(whole.unsqueeze(-1), y, torch.nan), torch.where(whole, ladj, torch.nan)

    def _solve(self, x: Tensor, context: Tensor | None, times: Tensor) -> State:
        """The end of the way from ``times[0]`` to ``times[1]``."""
        solvers, way = _solvers(), choice(_NAME, "trace", self.trace, WAYS)
        exact = way == "exact" or (way == "training" and not self.training)
        system = _System(self.field, context, None if exact else self._drawn(x))
        state: State = (x, x.new_zeros(x.shape[:-1]))
        settings = {"method": self.solver, "rtol": self.rtol, "atol": self.atol, "options": self._options()}
        try:
            if self.adjoint:
                held = [p for p in self.field.parameters() if p.requires_grad]
                held += [context] if context is not None and context.requires_grad else []
                moved = solvers.odeint_adjoint(system, state, times, adjoint_params=tuple(held), **settings)
            else:
                moved = solvers.odeint(system, state, times, **settings)
        except AssertionError as error:  # which is how torchdiffeq says it
            raise RuntimeError(
                f"{_NAME}: {self.solver} must arrive at t = {times[1].item():g}, got: {error}"
            ) from error
        return moved[0][-1], moved[1][-1]

    def _options(self) -> dict[str, Any]:
        if self.solver in FIXED:
            n = FIXED[self.solver] if self.steps is None else self.steps
            return {"step_size": abs(self.t1 - self.t0) / n}
        return {"norm": _largest} if self.steps is None else {"norm": _largest, "max_num_steps": self.steps}

    def _drawn(self, x: Tensor) -> Tensor:
        return torch.randn_like(x) if self.noise == "gaussian" else 2 * torch.randint_like(x, 2) - 1

    def extra_repr(self) -> str:
        text = f"{self.features}" + f", context={self.context}" * (self.context > 0)
        return f"{text}, solver={self.solver!r}, steps={self.steps}, trace={self.trace!r}, adjoint={self.adjoint}"


class _System(nn.Module):
    """The field and its trace, of one call: what torchdiffeq asks for the slope of (x, ladj)."""

    def __init__(self, field: Callable[..., Tensor], context: Tensor | None, noise: Tensor | None) -> None:
        super().__init__()
        self.field, self.given, self.noise = field, () if context is None else (context,), noise

    def forward(self, t: Tensor, state: State) -> State:
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            x = state[0] if state[0].requires_grad else state[0].detach().requires_grad_()
            slope = self.field(t, x, *self.given)
            if not isinstance(slope, Tensor) or slope.shape != x.shape:
                got = list(slope.shape) if isinstance(slope, Tensor) else type(slope).__name__
                raise ValueError(f"{_NAME}: the field must return {list(x.shape)}, got {got}")
            trace = self._exact(x, slope, again) if self.noise is None else self._estimate(x, slope, self.noise, again)
        return (slope, trace) if again else (slope.detach(), trace.detach())

    def _exact(self, x: Tensor, slope: Tensor, keep: bool) -> Tensor:
        trace, unit = torch.zeros_like(x[..., 0]), torch.zeros_like(x)
        for i in range(x.shape[-1]):
            along = unit.index_fill(-1, torch.tensor([i], device=x.device), 1)
            trace = trace + _back(x, slope, along, keep)[..., i]
        return trace

    def _estimate(self, x: Tensor, slope: Tensor, noise: Tensor, keep: bool) -> Tensor:
        return (_back(x, slope, noise, keep) * noise).sum(-1)


def _back(x: Tensor, slope: Tensor, along: Tensor, keep: bool) -> Tensor:
    """The product of a vector with the Jacobian; 0 where the field does not look at x."""
    if not slope.requires_grad:
        return torch.zeros_like(x)
    (found,) = torch.autograd.grad(
        slope, x, along, retain_graph=True, create_graph=keep, allow_unused=True, materialize_grads=True
    )
    return found

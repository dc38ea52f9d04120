"""Networks for the tests of masked ops, and the numbers rule for a function of many tensors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkernels import backends
from flowkernels.nets.degrees import hidden_degrees, input_degrees, output_degrees
from flowkernels.ops import MadePlan
from tests.numbers import assert_within_rule
from tests.ops.spline import weights

ACTIVATIONS = ("identity", "relu", "leaky_relu", "elu", "gelu", "silu", "tanh")
Tensors = list[Tensor]


class Shape(NamedTuple):
    rows: tuple[int, ...]
    D: int
    hidden: tuple[int, ...]
    P: int = 2
    residual: bool = False  # then hidden has one width per block
    order: str = "natural"
    degrees: str = "sequential"
    adds: str = "none"  # none, first (as a context comes in), all, one row for all


SHAPES = {
    "one of everything": Shape((1,), 1, (1,)),
    "one feature": Shape((33,), 1, (7, 5), 2, adds="first"),
    "two features": Shape((5,), 2, (5, 9), 3, order="reversed"),
    "no rows": Shape((0,), 3, (8,), 2, adds="first"),
    "no rows, residual": Shape((0,), 3, (8,), 2, True, adds="all"),
    "one hidden unit": Shape((130,), 3, (1,), 2),
    "three features": Shape((130,), 3, (17, 13, 9), 5, order="random", degrees="random", adds="all"),
    "two leading dims": Shape((3, 5), 7, (19, 6), 2, adds="one row"),
    "one row": Shape((1,), 7, (11, 11), 3, True, "reversed", adds="first"),
    "residual": Shape((33,), 7, (23, 23), 2, True, "random", "random", "all"),
    "wide outputs": Shape((33,), 7, (31,), 23),
    "narrower than D": Shape((5,), 43, (20, 37), 2, order="reversed", degrees="even"),
    "blocks": Shape((130,), 43, (45, 45), 2, True, adds="first"),
    "many features": Shape((130,), 64, (70, 65), 2, order="random", degrees="random"),
    "many features, wide": Shape((33,), 64, (129,), 11, adds="one row"),
}


def plan_of(s: Shape, seed: int = 0) -> MadePlan:
    g = torch.Generator().manual_seed(seed)
    inputs = input_degrees(s.order, s.D, g)
    widths = (s.hidden[0],) * (1 + 2 * len(s.hidden)) if s.residual else s.hidden
    hidden = hidden_degrees(s.degrees, inputs, widths, s.residual, g)
    return MadePlan([inputs, *hidden, output_degrees(inputs, s.P)], residual=s.residual)


class Problem(NamedTuple):
    plan: MadePlan
    tensors: Tensors  # x, then (weight, bias) per layer, then what is added
    flags: tuple[bool, ...]

    def split(self, tensors: Sequence[Tensor]) -> tuple[Tensor, list[tuple[Tensor, Tensor]], list[Tensor | None]]:
        """x, layers and adds of `tensors`, which stand in the order of this problem's."""
        n = 2 * len(self.plan.layers)
        present = iter(tensors[1 + n :])
        layers = list(zip(tensors[1 : 1 + n : 2], tensors[2 : 1 + n : 2], strict=True))
        return tensors[0], layers, [next(present) if f else None for f in self.flags]


def draw(s: Shape, seed: int = 0, scale: float = 1.0) -> Problem:
    """In float64. Units keep the size of what they see, whatever the mask leaves of it."""
    plan = plan_of(s, seed)
    g = torch.Generator().manual_seed(seed + 1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    tensors = [randn(*s.rows, s.D)]
    for layer in plan.layers:
        seen = layer.mask(tensors[0]).sum(1, keepdim=True).clamp_min(1)
        tensors += [scale * randn(layer.n_out, layer.n_in) / seen.sqrt(), 0.5 * randn(layer.n_out)]
    last = len(plan.layers) - 1
    lead = () if s.adds == "one row" else s.rows
    flags = tuple(
        s.adds in ("all", "one row") or (s.adds == "first" and (i == 0 or (s.residual and i % 2 == 1 and i < last)))
        for i in range(last + 1)
    )
    tensors += [0.5 * randn(*lead, layer.n_out) for layer, f in zip(plan.layers, flags, strict=True) if f]
    return Problem(plan, tensors, flags)


def backends_of(op: str) -> list[str]:
    return [b for b in ("cpu", "reference") if b in backends.table()[op]]


def values_and_gradients(f: Callable[[Tensors], Any], tensors: Sequence[Tensor]) -> Tensors:
    """The outputs of f, and the gradients of all of `tensors` for fixed weights of the outputs."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    found = f(leaves)
    outputs = [found] if isinstance(found, Tensor) else list(found)
    used = [o for o in outputs if o.requires_grad]
    grads = torch.autograd.grad(used, leaves, [weights(o) for o in used], allow_unused=True)
    return [o.detach() for o in outputs] + [
        torch.zeros_like(t) if g is None else g for g, t in zip(grads, leaves, strict=True)
    ]


def assert_numbers(
    f: Callable[[str, Tensors], Any],
    tensors: Sequence[Tensor],
    op: str,
    dtype: torch.dtype,
    isas: Iterable[str],
    *,
    shared: bool = False,
) -> None:
    """Every backend's values and gradients of f(backend, tensors), by the numbers rule.

    As for the spline: what rounding the inputs once moves is the unit, and the errors of eager are taken in float32,
    where they can be seen, and scaled where the dtype is float64 (1.5, as the truth errs as well).

    ``shared``: one thin bin of one row moves the gradients of all weights together, so that an error is one draw for a
    whole tensor. Eager is then given what the kernel is: its worst of a few draws, element by element.
    """

    def run(backend: str, tensors: Sequence[Tensor]) -> Tensors:
        return values_and_gradients(lambda t: f(backend, t), tensors)

    given, n = [t.to(dtype) for t in tensors], 6 if shared else 3
    exact = run("reference", [t.double() for t in given])
    scale = 1.5 * 2**-29 if dtype == torch.float64 else 1.0
    g = torch.Generator().manual_seed(1)
    eps = torch.finfo(torch.float32).eps
    narrow = [t.float() for t in given]
    base = run("reference", [t.double() for t in narrow])
    moves, draws = ([torch.zeros_like(t) for t in exact] for _ in range(2))
    error = None
    for i in range(n + 1):  # the first one is not moved
        noise = [eps * torch.randn(t.shape, generator=g, dtype=torch.float64) for t in narrow]
        moved = [(t * (1 + (i > 0) * e)).float() for t, e in zip(narrow, noise, strict=True)]
        eager, truth = run("reference", moved), run("reference", [t.double() for t in moved])
        for m, d, a, b, b0 in zip(moves, draws, eager, truth, base, strict=True):
            m += (b - b0).square() / n
            torch.maximum(d, (a.double() - b).abs(), out=d)
        error = error or [a.double() - b for a, b in zip(eager, truth, strict=True)]
    assert error is not None
    for first, isa in zip(itertools.chain([True], itertools.repeat(False)), isas, strict=False):
        for backend in backends_of(op):
            if backend == "reference" and not first:
                continue  # it knows no instruction sets
            for i, (kernel, right) in enumerate(zip(run(backend, given), exact, strict=True)):
                assert kernel.dtype == dtype
                worst = scale * draws[i]
                # Of a few elements a quantile says nothing: they are all held against eager's worst.
                few = right.numel() < 64 and right.numel() > 0
                its = right + (worst.amax() if few else worst if shared else scale * error[i])
                unit = moves[i].sqrt() * (2**-29 if dtype == torch.float64 else 1)
                assert_within_rule(kernel, its, right, f"{backend}, {isa}: result {i}", condition=(unit, worst))

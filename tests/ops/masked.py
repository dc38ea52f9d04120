"""Networks for the tests of masked ops, and the numbers rule for a function of many tensors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkernels import backends
from flowkernels._machine import CUDA
from flowkernels.nets.degrees import hidden_degrees, input_degrees, output_degrees
from flowkernels.ops import MadePlan
from tests import device
from tests.device import here
from tests.numbers import assert_within_rule
from tests.ops.spline import weights

ACTIVATIONS = ("identity", "relu", "leaky_relu", "elu", "gelu", "silu", "tanh")
Tensors = list[Tensor]
DRAWS = 7


class Shape(NamedTuple):
    rows: tuple[int, ...]
    D: int
    hidden: tuple[int, ...]
    P: int = 2
    residual: bool = False  # then hidden has one width per block
    order: str = "natural"
    degrees: str = "sequential"
    adds: str = "none"  # none, first (as a context comes in), all, one row for all

    @property
    def few(self) -> bool:
        """So few rows that a thin bin of one of them decides over the gradients of whole tensors."""
        return math.prod(self.rows) <= 16


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
    "one row, wide": Shape((1,), 43, (70, 65), 2, order="random", degrees="random"),
    "three rows": Shape((3,), 21, (45, 45), 3, True, "random", adds="all"),
    "four rows": Shape((4,), 43, (129,), 11, adds="one row"),
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
        return here(torch.randn(*shape, generator=g, dtype=torch.float64, device="cpu"))

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
    """The backends under test: kernels that give values and gradients, and the definition; or the one that
    FLOWKERNELS_BACKEND names. With "cuda" goes the fixture `kernels`."""
    table = backends.table()[op]
    if backends.default() != "auto":
        return [backends.default()] if backends.default() in table else []
    kernels = [device.UNDER_TEST.type]
    if CUDA.device_type == "cpu":  # the emulator is here
        kernels.append("cuda")
    return [b for b in (*kernels, "reference") if b in table]


def values_and_gradients(f: Callable[[Tensors], Any], tensors: Sequence[Tensor]) -> Tensors:
    """The outputs of f, and the gradients of all of `tensors` for fixed weights of the outputs: 0 where f has none."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    found = f(leaves)
    outputs = [found] if isinstance(found, Tensor) else list(found)
    used = [o for o in outputs if o.requires_grad]
    wanted = [weights(o) for o in used]
    grads = torch.autograd.grad(used, leaves, wanted, allow_unused=True) if used else [None] * len(leaves)
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
    only: Sequence[str] | None = None,
    gradients: bool = True,
) -> None:
    """Every backend's (or the `only` ones') values and `gradients` of f(backend, tensors), by the numbers rule.

    In a chain of features one ill-conditioned element decides the errors of many, so that one run tells little: two
    equally good implementations then differ by more than 2 every third time. So there are a few draws of inputs that
    differ by a percent, each with its own truth, and the rule is asked of every element's median error over them, the
    kernel's against eager's, and of the largest element against eager's largest in any draw. As for the spline, what
    rounding the inputs moves is the unit, and the errors of eager are taken in float32, where they can be seen, and
    scaled where the dtype is float64 (1.5, as the truth errs as well).

    ``shared``: one thin bin of one row moves the gradients of all weights together, so that an error is one draw for a
    whole tensor. Eager is then given its worst of the draws, element by element.
    """

    def run(backend: str, tensors: Sequence[Tensor]) -> Tensors:
        if gradients:
            return values_and_gradients(lambda t: f(backend, t), tensors)
        return list(f(backend, list(tensors)))

    def perturbed(dtype: torch.dtype, by: float, n: int) -> list[Tensors]:
        g = torch.Generator().manual_seed(1)

        def noise(t: Tensor) -> Tensor:
            return by * here(torch.randn(t.shape, generator=g, dtype=torch.float64, device="cpu"))

        noises = ([noise(t) for t in tensors] for _ in range(n))
        moved = [[(t * (1 + e)).to(dtype) for t, e in zip(tensors, noise, strict=True)] for noise in noises]
        return [[t.to(dtype) for t in tensors], *moved]

    def truths(draws: list[Tensors]) -> list[Tensors]:
        return [run("reference", [t.double() for t in draw]) for draw in draws]

    def stacked(a: Iterable[Tensors], b: Iterable[Tensors]) -> Tensors:
        """|a - b| of every result, [draws, ...]."""
        pairs = zip(zip(*a, strict=True), zip(*b, strict=True), strict=True)
        return [torch.stack([(x.double() - y).abs() for x, y in zip(p, q, strict=True)]) for p, q in pairs]

    narrow = perturbed(torch.float32, 1e-2, DRAWS - 1)
    right32 = truths(narrow)
    scale = 1.5 * 2**-29 if dtype == torch.float64 else 1.0
    of_eager = [scale * e for e in stacked([run("reference", d) for d in narrow], right32)]
    rounded = truths(perturbed(torch.float32, torch.finfo(torch.float32).eps, 3)[1:])
    moves = [m.square().mean(0).sqrt() for m in stacked(rounded, [right32[0]] * 3)]
    units = [2**-29 * m if dtype == torch.float64 else m for m in moves]
    given = narrow if dtype == torch.float32 else perturbed(dtype, 1e-2, DRAWS - 1)
    right = right32 if dtype == torch.float32 else truths(given)
    for first, isa in zip(itertools.chain([True], itertools.repeat(False)), isas, strict=False):
        for backend in only or backends_of(op):
            if backend != "cpu" and not first:
                continue  # it knows no instruction sets
            found = [run(backend, draw) for draw in given]
            assert all(t.dtype == dtype for t in found[0])
            assert all(t.isfinite().all() for draw in found for t in draw)
            for i, (mine, its, unit, exact) in enumerate(
                zip(stacked(found, right), of_eager, units, right[0], strict=True)
            ):
                # Of a few elements a quantile says nothing: they are all held against eager's worst.
                worst, few = its.amax(0), 0 < exact.numel() < 64
                assert_within_rule(
                    exact + mine.median(0).values,
                    exact + (worst.amax() if few else worst if shared else its.median(0).values),
                    exact,
                    f"{backend}, {isa}: result {i}",
                    condition=(unit, worst),
                    dtype=dtype,
                )

"""Networks drawn at random from all that a plan allows: what no list of shapes thinks of.

Degrees repeat, are missing, are 0 or larger than every feature's; layers are narrower than a panel or not; batches end
within a strip, within a tile, or after several.
"""

import random

import pytest
import torch

from flowkernels import ops
from flowkernels.ops import MadePlan
from flowkernels.transforms import RQS, Affine
from tests.device import here
from tests.ops.masked import ACTIVATIONS, Tensors, backends_of, values_and_gradients

pytestmark = pytest.mark.usefixtures("kernels", "one_thread")

UNIVARIATES = [Affine("softplus"), Affine("additive"), Affine("sigmoid", 0.1), RQS(bins=2), RQS(bins=9)]


def degrees(rng: random.Random, n: int, low: int, top: int) -> list[int]:
    """n degrees from `low` to `top`: all of one kind, of a few kinds, in order, or any."""
    pool = rng.choice([[rng.randint(low, top)], [low, top], [rng.randint(low, top) for _ in range(3)]])
    any_of = [rng.randint(low, top) for _ in range(n)]
    return rng.choice([[rng.choice(pool) for _ in range(n)], sorted(any_of), any_of, any_of])


def draw_plan(rng: random.Random, P: int) -> MadePlan:
    D = rng.choice([1, 2, 3, rng.randint(1, 40)])
    natural = list(range(1, D + 1))
    inputs = rng.choice([natural, rng.sample(natural, D), degrees(rng, D, 1, D), [3 * d for d in natural]])
    outputs = [d for d in inputs for _ in range(P)]
    residual = rng.random() < 0.5
    n, top = 1 + 2 * rng.randint(0, 3) if residual else rng.randint(0, 4), max(inputs) + 2
    hidden = [degrees(rng, rng.randint(1, 40), 0, top) for _ in range(n)]
    if residual:
        hidden[2::2] = [hidden[0]] * (n // 2)  # a block adds to the stream; inside, it is as wide as it likes
    return MadePlan([inputs, *hidden, outputs], residual=residual)


def draw_tensors(rng: random.Random, plan: MadePlan) -> tuple[Tensors, list[bool]]:
    """z, layers and what is added, at a scale at which a rounding does not grow from feature to feature."""
    g = torch.Generator().manual_seed(rng.randrange(2**31))

    def randn(*shape: int) -> torch.Tensor:
        return here(torch.randn(*shape, generator=g, dtype=torch.float64, device="cpu"))

    lead = rng.choice([(rng.randint(1, 200),), (rng.randint(1, 20),), (3, rng.randint(1, 9)), ()])
    tensors, scale = [randn(*lead, plan.features)], 0.25 if plan.residual else 0.6
    for layer in plan.layers:
        seen = layer.mask(tensors[0]).sum(1, keepdim=True).clamp_min(1)
        tensors += [scale * randn(layer.n_out, layer.n_in) / seen.sqrt(), 0.3 * randn(layer.n_out)]
    flags = [rng.random() < 0.4 for _ in plan.layers]
    for layer, flag in zip(plan.layers, flags, strict=True):
        if flag:
            tensors.append(0.3 * randn(*rng.choice([lead, lead, lead[1:], (1,) * len(lead)]), layer.n_out))
    return tensors, flags


def assert_same(found: Tensors, wanted: Tensors, what: str) -> None:
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        scale = b.abs().max().item() if b.numel() else 0.0
        torch.testing.assert_close(a, b, rtol=0, atol=1e-8 * max(scale, 1.0), msg=lambda m, i=i: f"{what}, {i}: {m}")


@pytest.mark.parametrize("seed", range(60))
def test_any_plan(seed, all_isas) -> None:
    rng = random.Random(seed)
    univariate, activation = rng.choice(UNIVARIATES), rng.choice(ACTIVATIONS)
    plan = draw_plan(rng, univariate.n_params)
    tensors, flags = draw_tensors(rng, plan)

    def split(t: Tensors):
        n = 2 * len(plan.layers)
        terms = iter(t[1 + n :])
        layers = list(zip(t[1 : 1 + n : 2], t[2 : 1 + n : 2], strict=True))
        return t[0], layers, [next(terms) if f else None for f in flags]

    def inverse(t: Tensors, backend: str):
        z, layers, adds = split(t)
        return ops.autoregressive_inverse(
            z, layers, plan, univariate, activation=activation, adds=adds, backend=backend
        )

    def network(t: Tensors, backend: str):
        x, layers, adds = split(t)
        return ops.made(x, layers, plan, activation=activation, adds=adds, backend=backend)

    for f, op in ((inverse, "autoregressive_inverse"), (network, "made")):
        others = [b for b in backends_of(op) if b != "reference"]
        wanted = values_and_gradients(lambda t, f=f: f(t, "reference"), tensors) if others else []
        for first, isa in enumerate(all_isas):
            for backend in others if first == 0 else others[:1]:  # the others know no instruction sets
                found = values_and_gradients(lambda t, f=f, b=backend: f(t, b), tensors)
                assert_same(found, wanted, f"{op}, {backend}, {isa}, {plan}, {activation}, {univariate}")

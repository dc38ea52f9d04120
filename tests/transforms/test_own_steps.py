"""Layers without a network inside of a run: LU layers, actnorm, scales, standardised data."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowkernels import flows
from flowkernels.nets import MLP
from flowkernels.transforms import (
    RQS,
    ActNorm,
    Affine,
    Composite,
    Coupling,
    DiagonalScale,
    Inverse,
    LULinear,
    Permutation,
    Standardize,
    own_steps,
    runs,
)  # fmt: skip
from tests.runs import WHERE_THEY_RUN, drawn, ran
from tests.transforms.test_runs import assert_close, assert_same, filled, one_by_one, results

__all__ = ["ran"]  # a fixture
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    WHERE_THEY_RUN,
]
D, B = 5, 37


def _coupling(mask: list[int], context: int = 0) -> Coupling:
    return Coupling(mask, lambda a, b: MLP(a, b, hidden=(12,), context=context), Affine("tanh"))


def composite(context: int = 0, exact: bool = True) -> Composite:
    """All kinds there are; `exact`: without the one that torch rounds twice."""
    torch.manual_seed(0)
    actnorm = ActNorm(D)
    actnorm(3 + 2 * drawn(B, D, seed=5))
    first = [] if exact else [Standardize(drawn(D, seed=8), drawn(D, seed=9).exp())]
    return filled(Composite([
        *first, LULinear(D, seed=1), _coupling([0, 1, 0, 1, 1], context), actnorm, Permutation.random(D, seed=1),
        Inverse(LULinear(D, seed=2)), _coupling([1, 0, 1, 0, 0], context), LULinear(D, bias=False, seed=3),
        Inverse(actnorm), DiagonalScale(D),
    ]))  # fmt: skip


def compare(layer: Any, x: Tensor, context: Tensor | None = None, inverse: bool = False, exact: bool = True) -> None:
    """y, ladj and the gradient of x as layer by layer to the bit; those of parameters, sums over rows, to rounding."""
    mine = results(layer, x, context, inverse)
    theirs = one_by_one(lambda: results(layer, x, context, inverse))
    if exact:
        assert_same(mine[:3], theirs[:3])
    assert_close(mine, theirs)


@pytest.mark.parametrize("rows", [(B,), (1,), (0,), (), (3, 7), (400,)])
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_bits_of_the_layers_one_by_one(rows, inverse, context, precision, ran) -> None:
    layer = composite(context).to(precision)
    c = drawn(*rows, context, seed=2).to(precision) if context else None
    compare(layer, drawn(*rows, D).to(precision), c, inverse)
    assert ran == [2]


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_standardised_data(inverse, ran) -> None:
    compare(composite(exact=False), drawn(B, D), inverse=inverse, exact=False)
    assert ran == [2]


def test_the_inverse_undoes(ran) -> None:
    layer, x = composite(exact=False).double(), drawn(B, D).double()
    y, ladj = layer(x)
    back, ladj_back = layer.inverse(y)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-10)
    torch.testing.assert_close(ladj_back, -ladj, rtol=0, atol=1e-10)
    assert ran == [2, 2]


MODELS = {
    "NSF": lambda: flows.NSF(D, transforms=6, hidden=(16, 16), linear="lu", seed=0),
    "couplings": lambda: flows.CouplingFlow(D, transforms=6, hidden=(16, 16), linear="lu", seed=0),
    "MAF": lambda: flows.MAF(D, transforms=6, hidden=(16, 16), linear="lu", seed=0),
    "IAF": lambda: flows.IAF(D, transforms=6, hidden=(16, 16), linear="lu"),
    "Real NVP": lambda: flows.RealNVP(D, transforms=6, hidden=(16, 16), linear="lu"),
    "NICE": lambda: flows.NICE(D, transforms=6, hidden=(16, 16)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_one_node(name, ran) -> None:
    flow = filled(MODELS[name]())
    z, _ = flow.transform(drawn(B, D).requires_grad_())
    node = z.grad_fn
    assert type(node).__name__ == "flowkernels::flowBackward" and ran == [6]
    below = {type(f).__name__ for f, _ in node.next_functions if f is not None}
    assert below == {"AccumulateGrad"}


@pytest.mark.parametrize("name", MODELS)
def test_models(name, ran) -> None:
    flow = filled(MODELS[name]())

    def step() -> list[Tensor]:
        flow.zero_grad()
        z, ladj = flow.transform(drawn(B, D))
        log_p = flow.base.log_prob(z) + ladj
        log_p.mean().backward()
        return [log_p.detach(), *(p.grad.clone() for p in flow.parameters())]

    mine, theirs = step(), one_by_one(step)
    assert torch.equal(mine[0], theirs[0]) and ran == [6]
    assert_close(mine, theirs)


@pytest.mark.parametrize("name", ["NSF", "couplings", "NICE"])
def test_samples(name, ran) -> None:
    flow = filled(MODELS[name]())

    def draw() -> Tensor:
        torch.manual_seed(0)
        return flow.sample(B)

    assert torch.equal(draw(), one_by_one(draw)) and ran == [6]


def test_the_first_batch_in_training_sets_actnorm(ran) -> None:
    """Its layer is called as a module until then, and is a step of the run from then on."""
    torch.manual_seed(0)
    layer = filled(Composite([_coupling([0, 1, 0, 1, 1]), ActNorm(D), _coupling([1, 0, 1, 0, 0])]))
    norm: Any = layer.transforms[1]
    x = drawn(B, D)
    layer.eval()
    layer(x)
    assert ran == [2] and not norm.initialised
    layer.train()
    twin = copy.deepcopy(layer)
    y, _ = layer(x)
    assert ran == [2, 1, 1] and norm.initialised
    expected, _ = one_by_one(lambda: twin(x))
    assert torch.equal(y, expected) and torch.equal(norm.shift, twin.transforms[1].shift)
    compare(layer, x)
    assert ran == [2, 1, 1, 2]
    with torch.no_grad():
        norm.initialised.fill_(False)  # and again, as the module itself has it
    norm._seen = False
    layer(x + 1)
    assert ran == [2, 1, 1, 2, 1, 1] and norm.initialised


def _write(layer: Any) -> None:
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(0.5)


def _replace_parameter(layer: Any) -> None:
    layer.transforms[0].log_s = nn.Parameter(layer.transforms[0].log_s.detach() + 1)


def _without_bias(layer: Any) -> None:
    layer.transforms[0].bias = None


def _other_permutation(layer: Any) -> None:
    layer.transforms[0].permutation.copy_(torch.tensor([1, 2, 3, 4, 0]))


def _other_signs(layer: Any) -> None:
    layer.transforms[0].sign_s.neg_()
    layer.transforms[0].sign_s = 2 * layer.transforms[0].sign_s


def _load(layer: Any) -> None:
    other = filled(composite(), seed=7)
    other.transforms[0] = LULinear(D, seed=11)
    layer.load_state_dict(other.state_dict())


def _replace_layer(layer: Any) -> None:
    layer.transforms[2] = filled(DiagonalScale(D), seed=4)


def _hook(layer: Any) -> None:
    layer.transforms[0].register_forward_hook(lambda m, i, o: (2 * o[0], o[1]))


def _own_class(layer: Any) -> None:
    class Doubled(LULinear):
        def forward(self, x, context=None):
            y, ladj = super().forward(x, context)
            return 2 * y, ladj

        def inverse(self, y, context=None):
            x, ladj = super().inverse(y, context)
            return 2 * x, ladj

    layer.transforms[0].__class__ = Doubled


CHANGES = {
    f.__name__.strip("_"): f
    for f in (_write, _replace_parameter, _without_bias, _other_permutation, _other_signs, _load, _replace_layer,
              _hook, _own_class)
}  # fmt: skip


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change, inverse, ran) -> None:
    layer, x = composite(), drawn(B, D)
    before = results(layer, x, inverse=inverse)
    CHANGES[change](layer)
    after = results(layer, x, inverse=inverse)
    assert_close(after, one_by_one(lambda: results(layer, x, inverse=inverse)))
    assert_close(after, one_by_one(lambda: results(copy.deepcopy(layer), x, inverse=inverse)))
    if change != "hook" or not inverse:
        assert not torch.equal(after[0], before[0])
    assert len(ran) >= 2


def test_what_is_too_wide_or_of_images_is_called_and_not_read_again(ran, monkeypatch) -> None:
    monkeypatch.setattr(own_steps, "MOST_FEATURES", 4)
    layer, x = composite(), drawn(B, D)
    compare(layer, x, exact=False)
    assert ran == [1, 1]
    monkeypatch.setattr(runs, "read_listed", None)  # what was said holds
    layer(x)
    assert ran == [1, 1, 1, 1]


def test_of_another_dtype_it_is_no_part_of_the_run(ran) -> None:
    layer = Composite([Standardize(torch.zeros(D).half(), torch.ones(D).half()), *composite()])
    y, ladj = layer(drawn(B, D))
    expected = one_by_one(lambda: layer(drawn(B, D)))
    torch.testing.assert_close((y, ladj), expected, rtol=1e-5, atol=1e-5)
    assert ran == [2]


def test_lu_layers_alone_are_no_run(ran) -> None:
    layer = Composite([LULinear(D, seed=0), ActNorm(D).eval(), RQS_of(), LULinear(D, seed=1)])
    layer(drawn(B, D))
    assert ran == []


def RQS_of() -> Composite:
    """A part that is itself made of parts."""
    return Composite([Coupling([0, 1, 0, 1, 1], lambda a, b: _Mine(a, b), RQS(bins=4))])


class _Mine(nn.Module):
    """A conditioner that no reader knows."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.inner = nn.Linear(n_in, n_out)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.inner(x)

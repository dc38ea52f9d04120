"""Neighbouring transforms of Pyro's ComposeTransformModule as one op."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("pyro", reason="Pyro is not installed: see requirements/dev.txt")
import pyro.distributions as dist
from pyro.distributions import transforms as T
from pyro.nn import AutoRegressiveNN, ConditionalDenseNN, DenseNN

from flowkernels import compat
from tests.compat.parity import B, assert_parity, assert_same_training
from tests.runs import WHERE_THEY_RUN, drawn, ran

__all__ = ["ran"]  # a fixture
pytestmark = [pytest.mark.usefixtures("one_thread"), WHERE_THEY_RUN]
D, K, H = 5, 4, 12


def affine(split: int = 2, **settings: Any) -> Any:
    return T.AffineCoupling(split, DenseNN(split, [H, H], [D - split] * 2), **settings)


def spline(split: int = 2, order: str = "quadratic", **settings: Any) -> Any:
    params = [K, K, K - 1, *([K] if order == "linear" else [])]
    return T.SplineCoupling(
        D, split, DenseNN(split, [H], [(D - split) * n for n in params]), K, order=order, **settings
    )


def autoregressive() -> Any:
    return T.SplineAutoregressive(D, AutoRegressiveNN(D, [H], [K, K, K - 1]), K, order="quadratic")


def permute() -> Any:
    return T.Permute(torch.randperm(D))


# Transforms → layers of each run of the op forward, and backwards.
MODELS = {
    "affine": (lambda: [affine(), permute(), affine(3), permute(), affine(1, log_scale_max_clip=0.2)], [3]),
    "spline": (lambda: [spline(), permute(), spline(3, "linear"), permute(), spline(identity=True)], [3]),
    "of both": (lambda: [permute(), affine(), spline(), permute()], [2]),
    "split": (
        lambda: [affine(), permute(), spline(), autoregressive(), affine(), affine(3)],
        [2, 2],
    ),
    "an event of no dims": (lambda: [affine(), torch.distributions.AffineTransform(0.3, 1.7), spline()], [1, 1]),
}  # fmt: skip


def make(name: str) -> Any:
    torch.manual_seed(0)
    whole = T.ComposeTransformModule(MODELS[name][0]())
    with torch.no_grad():
        for p in whole.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return whole


def fast(whole: Any) -> Any:
    whole = copy.deepcopy(whole)
    assert compat.accelerate(whole).accelerated
    return whole


def forward(whole: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = whole(x)
    return y, whole.log_abs_det_jacobian(x, y)


def inverse(whole: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    x = whole.inv(y)
    return x, -whole.log_abs_det_jacobian(x, y) + whole.inv.log_abs_det_jacobian(y, x)


def base() -> Any:
    return dist.Normal(torch.zeros(D).double(), torch.ones(D).double()).to_event(1)


@pytest.mark.parametrize("run", [forward, inverse])
@pytest.mark.parametrize("name", MODELS)
def test_numbers(name, run, ran) -> None:
    assert_parity(run, make(name), drawn(B, D))
    expected = MODELS[name][1][:: -1 if run is inverse else 1]
    assert ran[: len(expected)] == expected


@pytest.mark.parametrize("shape", [(), (1,), (3, 4)])
def test_leading_dims(shape, ran) -> None:
    plain = make("of both").double()
    whole, x = fast(plain), drawn(*shape, D).double()
    for run in (forward, inverse):
        for a, b in zip(run(whole, x), run(plain, x), strict=True):
            assert a.shape == b.shape
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)  # splines' knots are moved in Pyro
    assert ran == [2, 2]


def test_a_distribution(ran) -> None:
    plain = make("affine").double()
    whole = fast(plain)
    theirs, ours = (dist.TransformedDistribution(base(), [t]) for t in (plain, whole))
    x = drawn(B, D).double()
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x))
    assert ran == [3]
    torch.manual_seed(3)
    y = ours.rsample((7,))
    torch.manual_seed(3)
    torch.testing.assert_close(y, theirs.rsample((7,)))
    found = ours.log_prob(y)  # without an inverse, as Pyro's layers have it
    assert ran == [3, 3]
    torch.testing.assert_close(found, theirs.log_prob(y.clone()))
    (ours.log_prob(y).sum() + y.sum()).backward()
    assert all(p.grad is not None for p in whole.parameters())
    ours.clear_cache()
    torch.testing.assert_close(ours.log_prob(y), found)
    assert ran == [3] * 3


def test_what_was_computed_last_is_kept_as_pyro_keeps_it(ran) -> None:
    whole, x = fast(make("affine")), drawn(B, D)
    y = whole(x)
    assert whole(x) is y and whole.inv(y) is x and ran == [3]
    z = whole.inv(y.clone())
    assert z is not x and ran == [3, 3]
    torch.testing.assert_close(z, x)
    torch.testing.assert_close(whole.log_abs_det_jacobian(x, y), whole.inv.log_abs_det_jacobian(y, x).neg())
    assert ran == [3, 3]  # of other tensors than the last, layer by layer


def test_the_inverse() -> None:
    whole = fast(make("affine"))
    back = whole.inv
    assert isinstance(back, torch.distributions.ComposeTransform) and back is whole.inv and back.inv is whole
    assert back.domain.event_dim == back.codomain.event_dim == 1 and len(back.parts) == len(whole.parts)
    compat.restore(whole)
    x = drawn(B, D)
    torch.testing.assert_close(back(x), whole.inv(x))
    assert type(whole.inv) is torch.distributions.ComposeTransform


def test_training(ran) -> None:
    torch.manual_seed(0)
    nets = [DenseNN(3, [H], [3, 3]) for _ in range(2)]
    parts = [T.AffineCoupling(3, nets[0]), T.Permute(torch.arange(6).flip(0)), T.AffineCoupling(3, nets[1])]

    def log_prob(whole: Any, x: Tensor) -> Tensor:
        x = x.clone()  # Pyro keeps the last one's inverse, and its graph
        z = whole.inv(x)
        return -whole.log_abs_det_jacobian(z, x) - 0.5 * z.square().sum(1)

    assert_same_training(log_prob, T.ComposeTransformModule(parts), steps=30)
    assert ran == [2] * 30


# ---- what is read follows the transforms ----


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


def _write(whole: Any) -> None:
    with torch.no_grad():
        for p in whole.parameters():
            p.mul_(1.1)


def _replace_parameter(whole: Any) -> None:
    last = whole.parts[0].nn.layers[-1]
    last.weight = nn.Parameter(2 * last.weight.detach())


def _replace_net(whole: Any) -> None:
    whole.parts[0].nn = DenseNN(2, [7], [3, 3]).double()


def _hook(whole: Any) -> None:
    whole.parts[0].nn.layers[0].register_forward_hook(lambda m, i, o: 2 * o)


def _activation(whole: Any) -> None:
    whole.parts[0].nn.f = nn.Tanh()


def _own_activation(whole: Any) -> None:
    whole.parts[0].nn.f = Sine()


def _clip(whole: Any) -> None:
    whole.parts[0].log_scale_max_clip = -1.0


def _bound(whole: Any) -> None:
    whole.parts[2].upper_spline.bound = whole.parts[2].lower_spline.bound = 1.5


def _knots(whole: Any) -> None:
    whole.parts[2].lower_spline.unnormalized_widths.data.mul_(3)


def _identity(whole: Any) -> None:
    whole.parts[2].identity = True


def _replace_permutation(whole: Any) -> None:
    whole.parts[1] = T.Permute(torch.tensor([4, 0, 3, 1, 2]))


def _other_permutation(whole: Any) -> None:
    whole.parts[1].permutation = torch.tensor([4, 0, 3, 1, 2])
    whole.parts[1].__dict__.pop("inv_permutation", None)


def _write_permutation(whole: Any) -> None:
    whole.parts[1].permutation.copy_(torch.tensor([4, 0, 3, 1, 2]))
    whole.parts[1].__dict__.pop("inv_permutation", None)


def _turn(whole: Any) -> None:
    whole.parts.reverse()


CHANGES = {
    f.__name__.strip("_"): f
    for f in (
        _write, _replace_parameter, _replace_net, _hook, _activation, _own_activation, _clip, _bound, _knots, _identity,
        _replace_permutation, _other_permutation, _write_permutation, _turn,
    )
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change, ran) -> None:
    x, found = drawn(B, D).double(), []
    for prepare in (lambda whole: whole, fast):
        torch.manual_seed(1)
        whole = prepare(T.ComposeTransformModule([affine(), permute(), spline()]).double())
        before = forward(whole, x)[0]
        if change not in ("replace_permutation", "turn"):  # torch keeps the inverses of the parts that there were
            whole.inv(x.clone())
        torch.manual_seed(4)
        CHANGES[change](whole)
        found.append([before, *forward(whole, x.clone()), *inverse(whole, x.clone())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[1][0], found[1][1], atol=1e-3) and ran[:2] == [2, 2]


# ---- before and after ----


def test_the_report_and_the_way_back(ran) -> None:
    plain, x = make("of both"), drawn(B, D)
    whole = copy.deepcopy(plain)
    assert compat.accelerate(whole).notes == ("2 layers in one call (at the model)",)
    assert compat.accelerate(dist.TransformedDistribution(base(), [whole])).accelerated
    expected = whole(x)
    assert torch.equal(copy.deepcopy(whole)(x.clone()), expected) and ran == [2, 2]
    compat.restore(whole)
    assert [type(m) for m in whole.modules()] == [type(m) for m in plain.modules()]
    assert torch.equal(whole(x.clone()), plain(x.clone())) and ran == [2, 2]
    with compat.accelerate_library("pyro"):
        make("of both")(x.clone())
    assert ran == [2] * 3


def test_what_is_wrong_is_pyros_to_say() -> None:
    plain = make("of both")
    whole = fast(plain)
    for x in (drawn(B, D + 1), drawn(B, D - 1), drawn(B, D).double(), torch.tensor(1.0), None):
        for call in (lambda t, x: t(x), lambda t, x: t.inv(x)):
            try:
                expected = call(plain, x)
            except Exception as error:
                with pytest.raises(type(error)):
                    call(whole, x)
            else:  # a permutation picks of more
                torch.testing.assert_close(call(whole, x), expected)


def test_a_context_is_bound_by_pyro(ran) -> None:
    torch.manual_seed(0)
    parts = [T.ConditionalAffineCoupling(2, ConditionalDenseNN(2, 3, [H], [3, 3])) for _ in range(2)]
    plain = nn.ModuleList(parts)
    ours = fast(plain)
    x, context = drawn(B, D), drawn(B, 3)
    found = []
    for listed in (plain, ours):
        whole = T.ComposeTransformModule([t.condition(context) for t in listed])
        compat.accelerate(whole) if listed is ours else None
        found.append([*forward(whole, x), *inverse(whole, x.clone())])
    torch.testing.assert_close(*found)
    assert ran == []


def test_nothing_is_kept_from_before_it_was_accelerated() -> None:
    whole, x = make("affine"), drawn(B, D)
    compat.accelerate(whole)
    whole(x)
    compat.restore(whole)
    whole.clear_cache()
    with torch.no_grad():
        for p in whole.parameters():
            p.add_(0.1)
    expected = whole(x)
    whole.clear_cache()
    compat.accelerate(whole)
    torch.testing.assert_close(whole(x), expected)

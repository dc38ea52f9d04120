"""Neighbouring layers of zuko's composed transforms as one op: zuko's numbers, the bits of the layers one by one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import zuko
from torch import Tensor, nn
from torch.distributions import AffineTransform

from flowkernels import compat
from flowkernels.compat.engine import patch
from tests.compat.nflows_models import B, shaken
from tests.compat.parity import assert_parity, values_and_gradients
from tests.runs import WHERE_THEY_RUN, drawn, ran

__all__ = ["ran"]  # a fixture
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    WHERE_THEY_RUN,
]
D, C = 5, 3
SMALL = {"hidden_features": (16, 12)}
SPLINE = {"univariate": zuko.transforms.MonotonicRQSTransform, "shapes": [(4,), (4,), (3,)]}
AR, COUPLING = zuko.flows.MaskedAutoregressiveTransform, zuko.flows.coupling.GeneralCouplingTransform


def z_score(inverse: bool = False) -> nn.Module:
    return zuko.lazy.UnconditionalTransform(AffineTransform, 0.3 * torch.ones(D), 1.2 * torch.ones(D), buffer=True)


def learned_scale() -> nn.Module:
    return zuko.lazy.UnconditionalTransform(
        zuko.transforms.MonotonicAffineTransform, 0.3 * torch.ones(D), 0.2 * torch.ones(D)
    )


def masked(context: int = 0) -> list[nn.Module]:
    orders = [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 4, 0, 2, 3]]
    return [AR(D, context, order=o, **SMALL, **m) for o, m in zip(orders, ({}, SPLINE, {}), strict=True)]


def couplings(context: int = 0) -> list[nn.Module]:
    mask = [True, False, True, False, True]
    return [COUPLING(D, context, **SMALL), zuko.lazy.LazyInverse(COUPLING(D, context, mask, **SMALL)),
            COUPLING(D, context, mask, **SMALL, **SPLINE)]  # fmt: skip


# Parts → layers of the runs forward, and backwards.
MODELS = {
    "masked": (masked, [3], [3]),
    "couplings": (couplings, [3], [3]),
    "both": (lambda c=0: [*couplings(c), masked(c)[1]], [4], [4]),
    "behind a z-score": (lambda c=0: [z_score(), *couplings(c)], [3], [3]),
    "z-scores among them": (lambda c=0: [*couplings(c), z_score(), *masked(c)[:2], z_score()], [5], [5]),
    "parted": (lambda c=0: [*couplings(c), learned_scale(), *masked(c)[:2], z_score()], [3, 2], [2, 3]),
    "an elementwise layer": (
        lambda c=0: [*couplings(c), zuko.flows.ElementWiseTransform(D, c, **SPLINE, **(SMALL if c else {}))], [3], [3],
    ),
}  # fmt: skip


def make(name: str, context: int = 0) -> Any:
    torch.manual_seed(0)
    parts = MODELS[name][0](context)
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(D), torch.ones(D), buffer=True
    )
    return shaken(zuko.flows.Flow(zuko.lazy.LazyComposedTransform(*parts), base), 0.02)


def fast(flow: Any) -> Any:
    assert compat.accelerate(flow).accelerated
    return flow


def one_by_one(flow: Any) -> Any:
    twin = copy.deepcopy(flow)
    patch.unswap(twin.transform)
    return twin


def run(inverse: bool, values_alone: bool = False) -> Any:
    def call(flow: Any, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        transform = flow(c).transform
        transform = transform.inv if inverse else transform
        return (transform(x), transform.log_abs_det_jacobian(x, x)) if values_alone else transform.call_and_ladj(x)

    return call


@pytest.mark.thinned(2)
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("context", [0, C])
@pytest.mark.parametrize("name", MODELS)
def test_numbers(name, context, inverse) -> None:
    assert_parity(run(inverse), make(name, context), drawn(B, D), *([drawn(B, context)] if context else []))


@pytest.mark.thinned(2)
@pytest.mark.parametrize("values_alone", [False, True])
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("context", [0, C])
@pytest.mark.parametrize("name", MODELS)
def test_bits_of_the_layers_one_by_one(name, context, inverse, values_alone, ran) -> None:
    flow = fast(make(name, context))
    for rows in ((1,), (B,), (4, 50)):
        tensors = drawn(*rows, D), *([drawn(*rows, context, seed=2)] if context else [])
        for dtype in (torch.float32, torch.float64):
            ran.clear()
            found = values_and_gradients(run(inverse, values_alone), flow, tensors, dtype)
            assert ran == MODELS[name][1 + inverse] * (1 + values_alone)
            expected = values_and_gradients(run(inverse, values_alone), one_by_one(flow), tensors, dtype)
            assert found.keys() == expected.keys()
            for key, t in expected.items():
                if (key == "ladj" and name not in ("masked", "couplings")) or "z-score" in name or name == "parted":
                    # A run adds up its own log-determinants, and multiplies and adds with one rounding.
                    torch.testing.assert_close(found[key], t, rtol=1e-3, atol=1e-3)
                else:
                    assert torch.equal(found[key], t), key


@pytest.mark.parametrize("name", ["masked", "couplings"])
def test_shapes_that_broadcast(name, ran) -> None:
    plain = make(name, C).double()
    flow = fast(copy.deepcopy(plain))
    for lead, of_context in (((), ()), ((7,), ()), ((7,), (7,)), ((4, 7), (7,))):
        x, c = drawn(*lead, D).double(), drawn(*of_context, C).double()
        for a, b in zip(run(False)(flow, x, c), run(False)(plain, x, c), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(flow(c).log_prob(x), plain(c).log_prob(x), rtol=1e-9, atol=1e-9)
    assert ran == [3] * 8


def test_one_node(ran) -> None:
    y, ladj = run(False)(fast(make("masked", C)), drawn(B, D), drawn(B, C))
    assert type(y.grad_fn).__name__ == "flowkernels::flowBackward" and len(ran) == 1
    seen, todo, nodes = set(), [y.grad_fn, ladj.grad_fn], []
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes.append(type(node).__name__)
            todo += [parent for parent, _ in node.next_functions]
    assert [n for n in nodes if n.startswith("flowkernels")] == ["flowkernels::flowBackward"]


def test_what_a_composed_transform_is() -> None:
    for name in MODELS:
        plain = make(name, C)
        ours, theirs = (f(drawn(C)).transform for f in (fast(copy.deepcopy(plain)), plain))
        for a, b in ((ours, theirs), (ours.inv, theirs.inv), (ours.inv.inv, theirs)):
            assert isinstance(a, zuko.transforms.ComposedTransform) and len(a.transforms) == len(b.transforms)
            assert (a.domain_dim, a.codomain_dim, a.bijective) == (b.domain_dim, b.codomain_dim, b.bijective)
            assert (repr(a.domain), repr(a.codomain)) == (repr(b.domain), repr(b.codomain))
            assert a.forward_shape((2, D)) == b.forward_shape((2, D))
            assert a.inverse_shape((2, D)) == b.inverse_shape((2, D))


def test_samples(ran) -> None:
    for name in ("couplings", "behind a z-score", "masked"):
        plain = make(name, C).double()
        results = []
        for flow in (plain, fast(copy.deepcopy(plain))):
            torch.manual_seed(2)
            x, log_prob = flow(drawn(7, C).double()).rsample_and_log_prob((4,))
            torch.manual_seed(2)
            results.append([x, log_prob, flow(drawn(7, C).double()).sample((4,))])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)
    assert ran == [3] * 6


def test_an_inverse_of_fewer_passes_than_levels_is_no_sweep(ran) -> None:
    """It is no inverse; before and after the layer was read."""
    flow, x = fast(make("masked")), drawn(B, D)
    whole = run(True)(flow, x)[0]
    for passes, n in ((2, [2]), (5, [3])):
        flow.transform.transforms[0].passes = passes
        ran.clear()
        found = run(True)(flow, x)
        assert ran == n and torch.equal(found[0], whole) is (passes == 5)
        assert all(torch.equal(a, b) for a, b in zip(found, run(True)(one_by_one(flow), x), strict=True))


# ---- what is read follows the modules ----


def _layer(flow: Any) -> Any:
    return flow.transform.transforms[0]


def _write(flow: Any) -> None:
    with torch.no_grad():
        for p in flow.parameters():
            p.mul_(1.1)


def _replace_data(flow: Any) -> None:
    for p in flow.parameters():
        p.data = p.data * 0.9


def _replace_parameter(flow: Any) -> None:
    linear = _layer(flow).hyper[0]
    linear.weight = nn.Parameter(linear.weight.detach() * 2)


def _write_mask(flow: Any) -> None:
    flow.transform.transforms[2].hyper[4].mask.logical_and_(torch.tensor(False))


def _soften_mask(flow: Any) -> None:
    linear = flow.transform.transforms[2].hyper[4]
    linear.mask = 0.5 * linear.mask


def _other_map(flow: Any) -> None:
    import functools

    flow.transform.transforms[1].univariate = functools.partial(zuko.transforms.MonotonicRQSTransform, bound=2.0)


def _other_activation(flow: Any) -> None:
    for layer in flow.transform.transforms:
        layer.hyper[1] = layer.hyper[3] = nn.Tanh()


def _unknown_activation(flow: Any) -> None:
    _layer(flow).hyper[1] = nn.Softsign()


def _hook(flow: Any) -> None:
    _layer(flow).hyper[0].register_forward_hook(lambda m, i, o: 2 * o)


def _hook_of_net(flow: Any) -> None:
    _layer(flow).hyper.register_forward_hook(lambda m, i, o: 2 * o)


def _hook_of_layer(flow: Any) -> None:
    _layer(flow).register_forward_hook(lambda m, i, o: zuko.transforms.IdentityTransform().inv and o.inv)


def _own_meta(flow: Any) -> None:
    layer = _layer(flow)
    layer.meta = lambda c, x: zuko.transforms.DependentTransform(AffineTransform(x * 0, x * 0 + 2), 1)


def _replace_layer(flow: Any) -> None:
    flow.transform.transforms[0] = AR(D, **SMALL)


def _append(flow: Any) -> None:
    flow.transform.transforms.append(AR(D, **SMALL))


def _restore_one(flow: Any) -> None:
    compat.restore(_layer(flow))


CHANGES = {
    f.__name__.strip("_"): f
    for f in (
        _write, _replace_data, _replace_parameter, _write_mask, _soften_mask, _other_map, _other_activation,
        _unknown_activation, _hook, _hook_of_net, _hook_of_layer, _own_meta, _replace_layer, _append, _restore_one,
    )
}  # fmt: skip


@pytest.mark.parametrize("when", ["between flows", "between flow and call"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change, when, ran) -> None:
    """After a call the run is kept. What a flow has returned follows its layers as in zuko."""
    x, found = drawn(B, D).double(), []
    for prepare in (lambda flow: flow, fast):
        torch.manual_seed(3)
        flow = prepare(make("masked").double())
        made = flow()
        before = made.log_prob(x)
        CHANGES[change](flow)
        flow.double()
        made = flow() if when == "between flows" else made
        found.append([before, made.log_prob(x), made.transform(x)])
        found[-1] += torch.autograd.grad(found[-1][1].sum(), [*_layer(flow).parameters()], allow_unused=True)
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    same = change == "restore_one" or (
        when == "between flow and call" and change in ("append", "replace_layer", "hook_of_layer", "own_meta")
    )
    assert torch.allclose(found[1][0], found[1][1]) == same
    assert ran


def test_a_hook_that_goes_is_seen(ran) -> None:
    flow, x = fast(make("masked")), drawn(B, D)
    flow().log_prob(x)
    handle = _layer(flow).hyper.register_forward_hook(lambda m, i, o: o)
    flow().log_prob(x)
    handle.remove()
    flow().log_prob(x)
    assert ran == [3, 2, 3]


def test_copies_reports_and_the_way_back(ran) -> None:
    plain, x = make("masked"), drawn(B, D)
    flow = copy.deepcopy(plain)
    assert compat.accelerate(flow).notes == ("3 layers in one call (at transform)",)
    expected = flow().log_prob(x)
    assert torch.equal(copy.deepcopy(flow)().log_prob(x), expected) and ran == [3, 3]
    compat.restore(flow)
    assert [type(m) for m in flow.modules()] == [type(m) for m in plain.modules()]
    assert torch.equal(flow().log_prob(x), plain().log_prob(x)) and ran == [3, 3]
    with compat.accelerate_library("zuko"):
        flow = make("masked")
    flow().log_prob(x)
    assert ran == [3, 3, 3]


def test_where_the_op_cannot_run(ran) -> None:
    flow, x = fast(make("couplings")), drawn(B, D)
    with torch.no_grad():
        expected = flow().log_prob(x)
        assert len(ran) == 1
        with torch.autocast("cpu", torch.bfloat16):
            assert flow().log_prob(x).isfinite().all()
        stacked = torch.func.vmap(lambda x: flow().log_prob(x))(x)
        torch.testing.assert_close(stacked, expected, rtol=1e-4, atol=1e-4)
        half = copy.deepcopy(flow).to(torch.bfloat16)
        assert half().transform(x.to(torch.bfloat16)).dtype == torch.bfloat16
    with pytest.raises((RuntimeError, ValueError)):
        flow().log_prob(drawn(B, D + 1))
    with pytest.raises((RuntimeError, ValueError)):
        flow(drawn(B, C)).log_prob(x)
    with pytest.raises((RuntimeError, ValueError)):
        fast(make("masked", C))().log_prob(x)
    assert len(ran) == 1

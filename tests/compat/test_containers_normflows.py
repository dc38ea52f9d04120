"""Neighbouring layers of a NormalizingFlow of normflows as one op: its numbers, in all that it computes."""

from __future__ import annotations

import copy
from typing import Any

import normflows as nf
import pytest
import torch
from torch import Tensor, nn

from flowkernels import compat
from flowkernels.compat.engine import patch
from tests.compat.nflows_models import B, shaken
from tests.compat.parity import assert_parity, fuse_small_ones, values_and_gradients
from tests.runs import WHERE_THEY_RUN, drawn, ran

__all__ = ["ran"]  # a fixture
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    WHERE_THEY_RUN,
]
D, H = 6, 12
F = nf.flows


def mlp(i: int, o: int) -> nn.Module:
    return nf.nets.MLP([i, H, H, o])


def masked_affine(odd: bool, **without: None) -> nn.Module:
    mask = torch.tensor([float((i + odd) % 2) for i in range(D)])
    return F.MaskedAffineFlow(mask, **{"t": mlp(D, D), "s": mlp(D, D), **without})


def spline(kind: str = "Coupled", **more: Any) -> nn.Module:
    return getattr(F, f"{kind}RationalQuadraticSpline")(D, 1, H, num_bins=4, **more)


def blocks() -> list[nn.Module]:
    modes = [{}, {"split_mode": "channel_inv", "scale_map": "sigmoid"}, {"scale_map": "sigmoid_inv"}]
    return [F.AffineCouplingBlock(mlp(D // 2, D), **m) for m in modes]


# Layers → of each run of the op forward, and backwards. A masked affine flow with both networks is two.
MODELS = {
    # Their couplings map what they see too, without a network.
    "splines": (lambda: [spline(), F.Permute(D), spline(reverse_mask=True), F.Permute(D, "swap")], [2], [2]),
    "blocks": (lambda: [*blocks(), F.Permute(D, "swap")], [3], [3]),
    "masked affine": (
        lambda: [masked_affine(False), masked_affine(True, s=None), masked_affine(False, t=None)], [4], [4],
    ),
    "autoregressive": (
        lambda: [spline("Autoregressive"), F.Permute(D), spline("Autoregressive", permute_mask=True)], [2], [2],
    ),
    "inverse autoregressive": (
        lambda: [F.MaskedAffineAutoregressive(D, H), F.Permute(D), F.MaskedAffineAutoregressive(D, H)], [2], [2],
    ),
    "reversed": (lambda: [F.Reverse(masked_affine(True)), *blocks()[:1]], [3], [3]),
    "LU layers between": (
        lambda: [*blocks(), F.LULinearPermute(D, identity_init=False), masked_affine(True), F.ActNorm(D)], [5], [5],
    ),
    "circular": (
        lambda: [masked_affine(True), spline("CircularAutoregressive", ind_circ=[1]), *blocks()], [2, 3], [3, 2],
    ),
}  # fmt: skip


# With steps without a network, whose log-determinants and gradients are sums over other rows than those of lone layers.
OWN = ("splines", "LU layers between")


def make(name: str) -> Any:
    torch.manual_seed(0)
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(D), MODELS[name][0](), nf.distributions.TwoModes(2, 0.1))
    flow.forward_and_log_det(drawn(99, D, seed=3))  # an ActNorm begins with its first batch
    return shaken(flow, 0.05)


def fast(flow: Any) -> Any:
    assert compat.accelerate(flow).accelerated
    return flow


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("name", MODELS)
def test_bits_of_the_layers_one_by_one(name, inverse, ran, monkeypatch) -> None:
    """Where thresholds leave no layer to the library."""
    fuse_small_ones(monkeypatch)
    flow = fast(make(name))
    alone = copy.deepcopy(flow)
    patch.unswap(alone)
    for rows in (1, B, 200):
        for dtype in (torch.float32, torch.float64):
            ran.clear()
            call = lambda f, x: f.inverse_and_log_det(x) if inverse else f.forward_and_log_det(x)  # noqa: E731
            found = values_and_gradients(call, flow, (drawn(rows, D),), dtype)
            assert ran == MODELS[name][1 + inverse]
            expected = values_and_gradients(call, alone, (drawn(rows, D),), dtype)
            assert found.keys() == expected.keys()
            for key, t in expected.items():
                if (key == "ladj" and len(ran) != 1) or (key != "y" and name in OWN):
                    torch.testing.assert_close(found[key], t)  # a run adds up its own log-determinants
                elif key == "ladj" and dtype is torch.float64:
                    torch.testing.assert_close(found[key], t, rtol=1e-6, atol=1e-6)  # into normflows' float32
                else:
                    assert torch.equal(found[key], t), key


def calls(flow: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([flow(x), flow.inverse(x)]), flow.log_prob(x)


@pytest.mark.parametrize("name", MODELS)
def test_numbers(name) -> None:
    plain, x = make(name), drawn(B, D)
    assert_parity(calls, plain, x)
    flow = fast(copy.deepcopy(plain))
    for ours, theirs in (  # which have sums of float32, whatever x is
        (flow.forward_and_log_det(x), plain.forward_and_log_det(x)),
        (flow.inverse_and_log_det(x), plain.inverse_and_log_det(x)),
        (flow.forward_kld(x), plain.forward_kld(x)),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_drawn(name, ran) -> None:
    plain = make(name)
    found = []
    for flow in (plain, fast(copy.deepcopy(plain))):
        for score_fn in (True, False):
            flow.zero_grad()
            torch.manual_seed(1)
            x, log_q = flow.sample(80)
            loss = flow.reverse_kld(80, beta=0.7, score_fn=score_fn)
            (loss + x.sum() + log_q.mean()).backward()
            found.append([x, log_q, loss, *(p.grad.clone() for p in flow.parameters() if p.grad is not None)])
    for ours, theirs in zip(found[2:], found[:2], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    assert (len(ran) > 0) == (MODELS[name][1] != [])


def test_one_node(ran) -> None:
    flow = fast(make("masked affine"))
    log_q, todo, seen = flow.log_prob(drawn(B, D)), [], set()
    todo.append(log_q.grad_fn)
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    assert [type(n).__name__ for n in seen if type(n).__name__.startswith("flowk")] == ["flowkernels::flowBackward"]
    assert ran == [4]


# ---- what is read follows the modules ----


def _write(flow: Any) -> None:
    with torch.no_grad():
        for p in flow.parameters():
            p.mul_(1.1)


def _replace_parameter(flow: Any) -> None:
    net = flow.flows[0].s.net
    net[0].weight = nn.Parameter(net[0].weight.detach() * 2)


def _replace_net(flow: Any) -> None:
    flow.flows[0].s = mlp(D, D).to(flow.flows[0].b)


def _no_net(flow: Any) -> None:
    flow.flows[0]._modules.pop("s")
    flow.flows[0].s = torch.zeros_like


def _write_mask(flow: Any) -> None:
    flow.flows[0].b.copy_(1 - flow.flows[0].b)


def _soft_mask(flow: Any) -> None:
    flow.flows[0].b = 0.5 * flow.flows[0].b


def _other_scale(flow: Any) -> None:
    flow.flows[1].flows[1].scale_map = "sigmoid"


def _other_split(flow: Any) -> None:
    flow.flows[1].flows[0].mode = flow.flows[1].flows[2].mode = "channel_inv"


def _other_permutation(flow: Any) -> None:
    flow.flows[2] = F.Permute(D)


def _write_permutation(flow: Any) -> None:
    flow.flows[2].perm.copy_(flow.flows[2].perm.flip(0))
    flow.flows[2].inv_perm.copy_(torch.argsort(flow.flows[2].perm))


def _other_mode(flow: Any) -> None:
    flow.flows[2].mode = "swap"


def _bound(flow: Any) -> None:
    flow.flows[3].prqct.tail_bound = 1.5


def _hook(flow: Any) -> None:
    flow.flows[0].s.net[0].register_forward_hook(lambda m, i, o: 2 * o)


def _hook_of_mlp(flow: Any) -> None:
    flow.flows[0].s.register_forward_hook(lambda m, i, o: 2 * o)


def _hook_inside_of_a_block(flow: Any) -> None:
    flow.flows[1].flows[1].param_map.register_forward_hook(lambda m, i, o: 2 * o)


def _own_inverse(flow: Any) -> None:
    flow.flows[3].inverse = lambda z: (2 * z, z.new_zeros(len(z)))


def _append(flow: Any) -> None:
    flow.flows.append(masked_affine(True).to(flow.flows[0].b))


CHANGES = {
    f.__name__.strip("_"): f
    for f in (
        _write, _replace_parameter, _replace_net, _no_net, _write_mask, _soft_mask, _other_scale, _other_split,
        _other_permutation, _write_permutation, _other_mode, _bound, _hook, _hook_of_mlp, _hook_inside_of_a_block,
        _own_inverse, _append,
    )
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change, ran) -> None:
    x, found = drawn(B, D).double(), []
    for prepare in (lambda flow: flow, fast):
        torch.manual_seed(2)
        layers = [masked_affine(True), *blocks()[:1], F.Permute(D), spline()]
        flow = prepare(shaken(nf.NormalizingFlow(nf.distributions.DiagGaussian(D), layers), 0.05).double())
        before = flow.log_prob(x)
        torch.manual_seed(4)
        CHANGES[change](flow)
        found.append([before, flow.log_prob(x), flow.inverse(x)])
        found[-1] += torch.autograd.grad(found[-1][1].sum(), [*flow.parameters()], allow_unused=True)
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    assert not torch.allclose(found[1][0], found[1][1]) and ran[0] == 4


def test_the_report_and_the_way_back(ran) -> None:
    plain, x = make("blocks"), drawn(B, D)
    flow = copy.deepcopy(plain)
    assert compat.accelerate(flow).notes == ("3 layers in one call (at the model)",)
    expected = flow.log_prob(x)
    assert torch.equal(copy.deepcopy(flow).log_prob(x), expected) and ran == [3, 3]
    compat.restore(flow)
    assert [type(m) for m in flow.modules()] == [type(m) for m in plain.modules()]
    assert torch.equal(flow.log_prob(x), plain.log_prob(x)) and ran == [3, 3]
    with compat.accelerate_library("normflows"):
        make("blocks").log_prob(x)
    assert ran == [3, 3, 3, 3]  # one of them in `make`

"""zuko's NAF and UNAF, accelerated and converted: the same numbers, and inverses without bisection."""

from __future__ import annotations

import pytest
import torch
import zuko
from torch import nn
from zuko.flows.neural import MNN, UMNN

import flowkernels
from flowkernels import compat
from flowkernels.compat.zuko import monotone, transforms
from flowkernels.transforms import Autoregressive, MonotoneNet, Softclip
from tests.compat.parity import B, accelerated_copy, assert_parity, assert_same_training, table, watch

pytestmark = pytest.mark.usefixtures("one_thread")

NET = {"hidden_features": (12, 10)}
SMALL = {"transforms": 2, "hidden_features": (16, 16)}


def _coupling(univariate, shapes):
    """Couplings of 5 features, whose mask maps 2 and then 3."""

    def of(D, C):
        couplings = []
        for kept in (3, 2):
            mask = torch.arange(D) < kept
            couplings.append(
                zuko.flows.coupling.GeneralCouplingTransform(
                    D, C, mask=mask, univariate=univariate(signal=4, stack=D - kept, **NET), shapes=shapes,
                    hidden_features=(16,),
                )
            )  # fmt: skip
        base = zuko.lazy.UnconditionalDistribution(
            zuko.distributions.DiagNormal, torch.zeros(D), torch.ones(D), buffer=True
        )
        return zuko.lazy.Flow(couplings, base)

    return of


FLOWS = {
    "NAF": lambda D, C: zuko.flows.NAF(D, C, signal=4, network=NET, **SMALL),
    "UNAF": lambda D, C: zuko.flows.UNAF(D, C, signal=4, network=NET, **SMALL),
    "UNAF, random orders, tanh": lambda D, C: zuko.flows.UNAF(
        D, C, signal=3, randperm=True, network={**NET, "activation": nn.Tanh}, **SMALL
    ),
    "NAF in three passes": lambda D, C: zuko.flows.NAF(D, C, passes=3, signal=4, network=NET, **SMALL),
    "couplings of MNN": _coupling(MNN, [(4,)]),
    "couplings of UMNN": _coupling(UMNN, [(4,), ()]),
}
EVERY = pytest.mark.parametrize("name", FLOWS)


def make(name, context=0):
    torch.manual_seed(0)
    return FLOWS[name](5, context)


def draw(*shape):
    return 1.5 * torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("context", [0, 3], ids=["", "context"])
@EVERY
def test_parity(name, context):
    tensors = [draw(B, 5), *([draw(B, context)] if context else [])]
    assert_parity(
        lambda flow, x, c=None: flow(c).transform.call_and_ladj(x), make(name, context), *tensors, accelerated=2
    )


@EVERY
def test_inverse(name):
    """zuko's is off by 1e-6; ours is the inverse. Gradients are those of differences, of weights too: zuko's are not,
    by some per cent (an entry of the first weight of the first MNN: 12.84, by differences 13.46)."""
    plain, x, c = make(name, 3).double(), draw(9, 5).double(), draw(9, 3).double()
    fast = accelerated_copy(plain)
    y, ladj = plain(c).transform.call_and_ladj(x)
    back, negated = fast(c).transform.inv.call_and_ladj(y)
    torch.testing.assert_close((back, negated), (x, -ladj), rtol=1e-9, atol=1e-9)
    theirs = plain(c).transform.inv.call_and_ladj(y)
    torch.testing.assert_close((back, negated), theirs, rtol=1e-4, atol=1e-4)
    leaves = [y.detach().requires_grad_(), *fast.parameters()]
    ways = [torch.randn(t.shape, generator=torch.Generator().manual_seed(i)).to(t) for i, t in enumerate(leaves)]
    found = torch.autograd.grad(fast(c).transform.inv(leaves[0]).square().sum(), leaves)
    along = sum(((g * way).sum() for g, way in zip(found, ways, strict=True)), torch.zeros(()))

    def moved(by):
        with torch.no_grad():
            for t, way in zip(leaves, ways, strict=True):
                t.add_(way, alpha=by)
            return fast(c).transform.inv(leaves[0]).square().sum()

    step = 1e-5
    differences = (moved(step) - moved(-2 * step)) / (2 * step)
    torch.testing.assert_close(along, differences, rtol=1e-5, atol=1e-5)


@EVERY
def test_samples_far_out_stop_where_theirs_do(name):
    plain, z = make(name).double(), 30 * draw(20, 5).double()
    found, wanted = accelerated_copy(plain)().transform.inv(z), plain().transform.inv(z)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_each_root_is_looked_for_once(monkeypatch):
    """One pass of the network for a feature, one root of it, and never one of them all."""
    seen, flow = [], accelerated_copy(make("UNAF"))
    plain = monotone.run_monotone

    def watched(spec, x, *rest):
        seen.append((spec.inverse, tuple(x.shape)))
        return plain(spec, x, *rest)

    monkeypatch.setattr(monotone, "run_monotone", watched)
    passes = []
    watch(monkeypatch, passes, transforms, "run_made")
    flow().transform.inv(draw(7, 5))
    assert seen == [(True, (7, 1))] * 10 and len(passes) == 10
    seen.clear()
    flow().log_prob(draw(7, 5))
    assert seen == [(False, (7, 5))] * 2


@pytest.mark.parametrize("name", ["NAF", "UNAF", "couplings of UMNN"])
def test_every_other_way_to_call(name):
    plain = make(name, 2).double()
    fast = accelerated_copy(plain)
    for lead, of_context in (((), ()), ((7,), ()), ((7,), (7,)), ((4, 7), (7,))):
        x, c = draw(*lead, 5).double(), draw(*of_context, 2).double()
        ours, theirs = fast(c).transform, plain(c).transform
        y = theirs(x)
        for a, b in zip(
            [ours(x), ours.log_abs_det_jacobian(x, y), *ours.call_and_ladj(x)],
            [theirs(x), theirs.log_abs_det_jacobian(x, y), *theirs.call_and_ladj(x)],
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours.inv(y), theirs.inv(y), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["NAF", "UNAF"])
def test_samples_training_and_the_transforms_of_torch(name):
    plain = make(name).double()
    fast, x = accelerated_copy(plain), draw(6, 5).double()
    torch.manual_seed(0)
    sample, log_prob = fast().rsample_and_log_prob((20,))
    inside = (sample.abs() < 9).all(-1)
    torch.testing.assert_close(fast().log_prob(sample)[inside], log_prob[inside], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        torch.func.vmap(lambda x: fast().log_prob(x))(x), plain().log_prob(x), rtol=1e-9, atol=1e-9
    )
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: fast().log_prob(x), backend="aot_eager")
    torch.testing.assert_close(compiled(x), plain().log_prob(x), rtol=1e-9, atol=1e-9)
    make_ = {"NAF": zuko.flows.NAF, "UNAF": zuko.flows.UNAF}[name]
    torch.manual_seed(0)
    assert_same_training(lambda flow, x: flow().log_prob(x), make_(table().shape[1], signal=4, network=NET, **SMALL))


def _layer(univariate, shapes=((4,),)):
    return zuko.flows.MaskedAutoregressiveTransform(3, univariate=univariate, shapes=shapes)


def _hooked():
    net = MNN(signal=4)
    net.network[1].register_forward_hook(lambda *_: None)
    return _layer(net)


class OwnNetwork(MNN):
    pass


LEFT_ALONE = {
    "its own class": (lambda: _layer(OwnNetwork(signal=4)), "no kernel for its univariate, OwnNetwork"),
    "normalised": (lambda: _layer(UMNN(signal=4, normalize=True), [(4,), ()]), "other layers than linear ones"),
    "another activation": (lambda: _layer(UMNN(signal=4, activation=nn.SELU), [(4,), ()]), "the activation of its"),
    "without biases": (lambda: _layer(UMNN(signal=4, bias=False), [(4,), ()]), "no weight or no bias"),
    "other shapes": (lambda: _layer(UMNN(signal=4), [(4,)]), "the parameters of its univariate have shapes"),
    "hooked": (_hooked, "its univariate has hooks"),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone_and_named(case):
    layer, reason = LEFT_ALONE[case][0](), LEFT_ALONE[case][1]
    (found,) = compat.accelerate(layer).left_alone.values()
    assert reason in found


def test_another_dtype_and_another_size_are_zukos_to_refuse():
    fast = accelerated_copy(make("UNAF"))
    with pytest.raises(RuntimeError):
        fast().log_prob(draw(3, 5).double())
    layer = zuko.flows.MaskedAutoregressiveTransform(3, univariate=MNN(signal=4, stack=2), shapes=[(4,)])
    compat.accelerate(layer)
    with pytest.raises(RuntimeError):
        layer()(draw(3, 3))


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("name", ["NAF", "UNAF", "UNAF, random orders, tanh", "couplings of UMNN"])
def test_there_and_back(name, context):
    theirs, x, c = make(name, context).double(), draw(7, 5).double(), draw(7, 2).double() if context else None
    ours = flowkernels.convert(theirs)
    wanted = theirs(c).log_prob(x)
    torch.testing.assert_close(ours.log_prob(x, c), wanted, rtol=1e-9, atol=1e-9)
    back = flowkernels.to_zuko(ours)
    torch.testing.assert_close(back(c).log_prob(x), wanted, rtol=1e-9, atol=1e-9)
    if name == "NAF":
        assert [type(t) for t in ours.transform] == [Autoregressive, Softclip, Autoregressive]
        assert isinstance(ours.transform[0].univariate, MonotoneNet)


def test_what_has_no_place_in_zuko():
    for settings in ({"nodes": 16}, {"bound": 5.0}, {"form": "positive", "activation": "tanh"}, {"log_bound": 3.0}):
        flow = flowkernels.flows.MAF(3, transforms=1, hidden=(8,), univariate=MonotoneNet(3, signal=2, **settings))
        with pytest.raises(ValueError, match=r"to_zuko: "):
            flowkernels.to_zuko(flow)

"""Flows of nflows and zuko as native ones with the same weights, and back."""

from __future__ import annotations

import functools

import nflows.flows
import pytest
import torch
import zuko
from nflows import transforms as nf
from nflows.distributions import ConditionalDiagonalNormal, StandardNormal
from nflows.nn.nets import ResidualNet
from torch import nn

import flowkernels
from flowkernels import compat, flows, nets, transforms
from flowkernels.distributions import DiagonalNormal
from tests.compat.nflows_models import stretch
from tests.compat.parity import accelerated_copy

pytestmark = pytest.mark.usefixtures("one_thread")
D, C = 4, 3


def residual(context, **settings):
    return functools.partial(ResidualNet, hidden_features=8, context_features=context or None, **settings)


def masked(cls, context, **settings):
    return cls(D, 9, context_features=context or None, **settings)


@torch.no_grad()
def exact(flow):
    """In float64, with weights that float32 does not have."""
    for p in flow.double().parameters():
        p.mul_(1 + 1e-5 * torch.rand_like(p))
    return flow


SPLINE = {"num_bins": 5, "tails": "linear", "tail_bound": 2.5}
AFFINE_AR = nf.MaskedAffineAutoregressiveTransform
SPLINE_AR = nf.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
NFLOWS = {
    "splines": lambda c: nf.PiecewiseRationalQuadraticCouplingTransform([0, 1, 1, 0], residual(c), **SPLINE),
    "tanh, dropout": lambda c: nf.PiecewiseRationalQuadraticCouplingTransform(
        [0, 1, 1, 0], residual(c, activation=torch.tanh, dropout_probability=0.3), **SPLINE
    ),
    "affine": lambda c: nf.AffineCouplingTransform([0, 1, 0, 1], residual(c)),
    "additive": lambda c: nf.AdditiveCouplingTransform([1, 1, 0, 1], residual(c)),
    "MAF": lambda c: masked(AFFINE_AR, c),
    "MAF, random masks": lambda c: masked(AFFINE_AR, c, use_residual_blocks=False, random_mask=True),
    "autoregressive splines": lambda c: masked(SPLINE_AR, c, activation=nn.functional.elu, **SPLINE),
    "others": lambda c: nf.CompositeTransform(
        [nf.RandomPermutation(D), nf.LULinear(D, identity_init=False), nf.InverseTransform(nf.ReversePermutation(D)),
         nf.PointwiseAffineTransform(torch.arange(4.0), torch.arange(1.0, 5.0)), nf.IdentityTransform()]
    ),
}  # fmt: skip


def nflows_flow(name, context=0):
    torch.manual_seed(0)
    embedding = nn.Linear(C, context) if context else None
    flow = nflows.flows.Flow(
        nf.CompositeTransform([NFLOWS[name](context), nf.RandomPermutation(D), NFLOWS[name](context)]),
        StandardNormal([D]), embedding,
    )  # fmt: skip
    return exact(stretch(flow).eval())


SMALL = {"transforms": 2, "hidden_features": (9, 7)}
RQS = functools.partial(zuko.transforms.MonotonicRQSTransform, slope=1e-2, bound=3.0)
CIRCULAR = zuko.flows.spline.CircularRQSTransform
RQS_LAYER = {"univariate": RQS, "shapes": [(5,), (5,), (4,)]}


def zuko_rest(context):
    hidden = {"hidden_features": (6,)} if context else {}
    elementwise = functools.partial(zuko.flows.gaussianization.ElementWiseTransform, D, context, **hidden)
    permutation = zuko.lazy.UnconditionalTransform(
        zuko.transforms.PermutationTransform, order=torch.tensor([2, 0, 3, 1]), buffer=True
    )
    scaling = zuko.lazy.UnconditionalTransform(
        torch.distributions.AffineTransform, loc=torch.arange(4.0), scale=torch.arange(1.0, 5.0), buffer=True
    )
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, loc=torch.arange(4.0), scale=torch.arange(1.0, 5.0), buffer=True
    )
    return zuko.lazy.Flow([scaling, elementwise(), permutation.inv, elementwise(**RQS_LAYER), permutation], base)


ZUKO = {
    "NSF": lambda c: zuko.flows.NSF(D, c, bins=5, randperm=True, activation=nn.ELU, **SMALL),
    "NSF, two passes": lambda c: zuko.flows.NSF(D, c, passes=2, **SMALL),
    "NCSF": lambda c: zuko.flows.NCSF(D, c, bins=5, slope=1e-2, **SMALL),
    "circular couplings": lambda c: zuko.flows.NICE(D, c, univariate=CIRCULAR, shapes=RQS_LAYER["shapes"], **SMALL),
    "MAF": lambda c: zuko.flows.MAF(D, c, **SMALL),
    "couplings": lambda c: zuko.flows.NICE(D, c, randmask=True, **SMALL),
    "spline couplings": lambda c: zuko.flows.NICE(D, c, activation=nn.Tanh, **RQS_LAYER, **SMALL),
    "others": zuko_rest,
}


def zuko_flow(name, context=0):
    torch.manual_seed(0)
    return exact(ZUKO[name](context))


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def assert_same(ours, log_prob, inverse, context):
    x, z = draw(11, D), draw(11, D)
    torch.testing.assert_close(ours.log_prob(x, context), log_prob(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.transform.inverse(z, ours.embed(context))[0], inverse(z), rtol=1e-9, atol=1e-9)
    assert ours.log_prob(x, context).dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "context"), [(name, c) for name in NFLOWS for c in (0, 2) if (name, c) != ("others", 2)]
)
def test_nflows_there_and_back(name, context):
    theirs, c = nflows_flow(name, context), draw(11, C) if context else None
    ours = flowkernels.convert(theirs)
    with torch.no_grad():
        embedded = theirs._embedding_net(c)
        assert_same(ours, lambda x: theirs.log_prob(x, c), lambda z: theirs._transform.inverse(z, embedded)[0], c)
        before = ours.log_prob(draw(5, D), None if c is None else c[:5])
        back = flowkernels.to_nflows(ours)
        torch.testing.assert_close(back.log_prob(draw(5, D), None if c is None else c[:5]), before)
        for p in theirs.parameters():  # the weights are copies
            p.add_(1)
        if not context:  # an embedding is shared: it is a module of the user's
            assert torch.equal(ours.log_prob(draw(5, D)), before)


@pytest.mark.parametrize("autoregressive", [False, True])
def test_native_splines_with_lu_layers_to_nflows(autoregressive):
    """Such layers have no permutation, as nflows' have none."""
    ours = stretch(flowkernels.flows.NSF(D, transforms=2, hidden=(9,), autoregressive=autoregressive, linear="lu"))
    theirs = flowkernels.to_nflows(ours.double().eval())
    with torch.no_grad():
        torch.testing.assert_close(theirs.log_prob(draw(11, D)), ours.log_prob(draw(11, D)))


@pytest.mark.parametrize("context", [0, 2], ids=["", "context"])
@pytest.mark.parametrize("name", ZUKO)
def test_zuko_there_and_back(name, context):
    theirs, c = zuko_flow(name, context), draw(11, 2) if context else None
    ours = flowkernels.convert(theirs)
    with torch.no_grad():
        assert_same(ours, lambda x: theirs(c).log_prob(x), lambda z: theirs(c).transform.inv(z), c)
        if name == "others":
            with pytest.raises(ValueError, match="base must be a StandardNormal"):
                flowkernels.to_zuko(ours)
            return
        back = flowkernels.to_zuko(ours)
        assert compat.accelerate(back).accelerated
        x = draw(11, D)
        torch.testing.assert_close(back(c).log_prob(x), ours.log_prob(x, c))
        torch.testing.assert_close(back(c).transform.inv(x), theirs(c).transform.inv(x))
        before = ours.log_prob(x, c)
        for p in theirs.parameters():
            p.add_(1)
        assert torch.equal(ours.log_prob(x, c), before)


def test_an_accelerated_model_is_converted_as_its_original():
    for theirs in (nflows_flow("splines"), zuko_flow("NSF")):
        ours, fast = flowkernels.convert(theirs), flowkernels.convert(accelerated_copy(theirs))
        assert torch.equal(ours.log_prob(draw(5, D)), fast.log_prob(draw(5, D)))


def test_gradients_reach_the_copies():
    theirs, x = zuko_flow("MAF"), draw(7, D)
    ours = flowkernels.convert(theirs)
    for loss in (theirs().log_prob(x).mean(), ours.log_prob(x).mean()):
        loss.backward()
    first = theirs.transform.transforms[0].hyper[0]
    torch.testing.assert_close(ours.transform[0].conditioner.initial_layer.weight.grad, first.weight.grad)


@pytest.mark.parametrize(
    "make",
    [lambda: flows.NSF(D, transforms=2), lambda: flows.NSF(D, context=C, transforms=2),
     lambda: flows.MAF(D, context=C, transforms=2, residual=True, hidden=(8, 8)),
     lambda: flows.NSF(D, autoregressive=True, transforms=3, order="random", seed=0)],
    ids=["NSF", "NSF, context", "MAF", "NSF, autoregressive"],
)  # fmt: skip
def test_native_models_to_nflows(make):
    torch.manual_seed(0)
    flow = make().double()
    sees = next(layer.conditioner.context_features for layer in flow.transform if hasattr(layer, "conditioner"))
    c = draw(7, C) if sees else None
    theirs = flowkernels.to_nflows(flow)
    torch.testing.assert_close(theirs.log_prob(draw(7, D), c), flow.log_prob(draw(7, D), c))
    with torch.no_grad():
        torch.testing.assert_close(flowkernels.convert(theirs).log_prob(draw(7, D), c), flow.log_prob(draw(7, D), c))


def nflows_with(layer, base=None):
    return nflows.flows.Flow(layer, base or StandardNormal([D]))


CIRCLE = transforms.RQS(parametrization="soft_clip", circle_shift=True)
OTHER_BASE = flows.Flow(transforms.Permutation([1, 0]), DiagonalNormal(2))
CONDITIONAL = ConditionalDiagonalNormal([D])
REFUSED = {
    "a module": (lambda: flowkernels.convert(nn.Linear(2, 2)), TypeError, "model must be a flow of nflows or of zuko"),
    "batch norm": (lambda: flowkernels.convert(nflows_with(nf.BatchNorm(D))), ValueError, "got BatchNorm"),
    "base": (
        lambda: flowkernels.convert(nflows_with(nf.IdentityTransform(), CONDITIONAL)),
        ValueError,
        "_distribution must be a StandardNormal",
    ),
    "half a turn of another circle": (
        lambda: flowkernels.to_zuko(flows.MAF(D, univariate=CIRCLE)),
        ValueError,
        "a circle that is not from -pi to pi",
    ),
    "half a turn to nflows": (
        lambda: flowkernels.to_nflows(flows.MAF(D, univariate=transforms.RQS(circle_shift=True))),
        ValueError,
        "circle_shift=True",
    ),
    "linear splines to nflows": (
        lambda: flowkernels.to_nflows(flows.MAF(D, univariate=transforms.RQS(order="linear"))),
        ValueError,
        "order='linear'",
    ),
    "half ends to nflows": (
        lambda: flowkernels.to_nflows(flows.MAF(D, univariate=transforms.RQS(parametrization="half_ends"))),
        ValueError,
        "parametrization='half_ends'",
    ),
    "linear splines to zuko": (
        lambda: flowkernels.to_zuko(
            flows.MAF(D, univariate=transforms.RQS(parametrization="soft_clip", order="linear"))
        ),
        ValueError,
        "order='linear'",
    ),
    "no blocks": (
        lambda: flowkernels.convert(nflows_with(AFFINE_AR(D, 9, num_blocks=0))),
        ValueError,
        "must have a block, got none",
    ),
    "no hidden layer": (
        lambda: flowkernels.convert(zuko.flows.MAF(D, hidden_features=())),
        ValueError,
        "must have a hidden layer",
    ),
    "univariate": (
        lambda: flowkernels.convert(zuko.flows.MAF(D, univariate=zuko.transforms.MonotonicTransform, shapes=[()])),
        ValueError,
        "no kernel for its univariate",
    ),
    "residual": (
        lambda: flowkernels.convert(zuko.flows.MAF(D, hidden_features=(8, 8), residual=True)),
        ValueError,
        "Residual",
    ),
    "no flow": (lambda: flowkernels.to_zuko(nn.Linear(2, 2)), TypeError, "flow must be a flowkernels.flows.Flow"),
    "softmax to zuko": (
        lambda: flowkernels.to_zuko(flows.MAF(D, univariate=transforms.RQS())),
        ValueError,
        "got Autoregressive with RQS",
    ),
    "soft clip to nflows": (
        lambda: flowkernels.to_nflows(flowkernels.convert(zuko.flows.MAF(D))),
        ValueError,
        "got Autoregressive with",
    ),
    "another base to zuko": (lambda: flowkernels.to_zuko(OTHER_BASE), ValueError, "base must be a StandardNormal"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_reason(case):
    call, error, words = REFUSED[case]
    with pytest.raises(error, match=words):
        call()


def test_a_context_without_activation_is_a_network_of_both():
    torch.manual_seed(0)
    net = nets.MADE(3, 2, (8,), context=2, context_activation=False, activation="tanh")
    x, c = torch.randn(5, 3), torch.randn(5, 2)
    weight = net.initial_layer.plan.apply(net.initial_layer.weight)
    h = torch.tanh(torch.cat((x, c), 1) @ torch.cat((weight, net.context_layer.weight), 1).T
                   + net.initial_layer.bias + net.context_layer.bias)  # fmt: skip
    last = net.final_layer
    torch.testing.assert_close(net(x, c), h @ last.plan.apply(last.weight).T + last.bias)
    hooked = net.blocks.register_forward_hook(lambda *_: None)
    net.final_layer.register_forward_hook(lambda *_: None)  # layer by layer
    torch.testing.assert_close(net(x, c), h @ last.plan.apply(last.weight).T + last.bias)
    hooked.remove()

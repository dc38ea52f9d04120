"""Accelerated zuko flows compute what zuko computes."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
import zuko
from torch import nn

from flowkernels import compat
from flowkernels.compat.engine import patch
from flowkernels.compat.zuko import transforms as zuko_transforms
from flowkernels.ops.flow import op as flow_op
from flowkernels.ops.flow_layer import op as layer_op
from tests.compat.parity import B, accelerated_copy, assert_parity, assert_same_training, table, watch

pytestmark = pytest.mark.usefixtures("one_thread")

RQS = functools.partial(zuko.transforms.MonotonicRQSTransform, slope=1e-2, bound=3.0)
SPLINE = {"univariate": RQS, "shapes": [(5,), (5,), (4,)]}
SMALL = {"transforms": 2, "hidden_features": (24, 16)}
FLOWS = {
    "NSF": lambda D, C: zuko.flows.NSF(D, C, bins=6, **SMALL),
    "NSF, random orders, narrow": lambda D, C: zuko.flows.NSF(
        D, C, randperm=True, transforms=2, hidden_features=(3, 9)
    ),
    "NSF, two passes": lambda D, C: zuko.flows.NSF(D, C, passes=2, **SMALL),
    "NSF, residual": lambda D, C: zuko.flows.NSF(D, C, residual=True, transforms=2, hidden_features=(16, 16)),
    "MAF": lambda D, C: zuko.flows.MAF(D, C, activation=nn.ELU, **SMALL),
    "NCSF": lambda D, C: zuko.flows.NCSF(D, C, **SMALL),
    "NICE": lambda D, C: zuko.flows.NICE(D, C, **SMALL),
    "coupling, spline": lambda D, C: zuko.flows.NICE(D, C, randmask=True, activation=nn.Tanh, **SPLINE, **SMALL),
    "coupling, layer norm": lambda D, C: zuko.flows.NICE(D, C, normalize=True, **SPLINE, **SMALL),
    "elementwise": lambda D, C: zuko.flows.GF(D, C, **({"hidden_features": (8,)} if C else {})),
}


def make(name, features=5, context=0):
    torch.manual_seed(0)
    flow = FLOWS[name](features, context)
    if name == "elementwise":
        hidden = {"hidden_features": (8,)} if context else {}
        layer = functools.partial(zuko.flows.gaussianization.ElementWiseTransform, features, context, **hidden)
        flow.transform = zuko.lazy.LazyComposedTransform(layer(**SPLINE), layer(**SPLINE))
    return flow


def both(transform, x, inverse):
    return (transform.inv if inverse else transform).call_and_ladj(x)


def draw(name, *shape):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(*shape, generator=g)
    return x.clamp(-2.9, 2.9) if name == "NCSF" else 1.5 * x  # some outside the box


@pytest.mark.parametrize("context", [0, 3], ids=["", "context"])
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("name", FLOWS)
def test_parity(name, inverse, context):
    tensors = [draw(name, B, 5), *([draw("", B, context)] if context else [])]

    def run(flow, x, c=None):
        return both(flow(c).transform, x, inverse)

    assert_parity(run, make(name, context=context), *tensors, accelerated=2)


@pytest.mark.parametrize("name", FLOWS)
def test_every_other_way_to_call(name):
    """Values alone, log-determinants alone, shapes that broadcast, one feature: zuko's results and shapes."""
    for features, context in ((5, 2), (1, 2)):
        if features == 1 and name == "NSF, residual":  # zuko makes an elementwise layer, which has no such setting
            continue
        plain = make(name, features, context).double()
        if features == 1 and name in ("MAF", "NICE"):  # an affine elementwise layer, which is left alone
            continue
        fast = accelerated_copy(plain)
        for lead, of_context in (((), ()), ((7,), ()), ((7,), (7,)), ((4, 7), (7,))):
            x, c = draw(name, *lead, features).double(), draw("", *of_context, context).double()
            ours, theirs = fast(c).transform, plain(c).transform
            y = theirs(x)
            found, right = (
                [t(x), t.log_abs_det_jacobian(x, y), t.inv(y), *both(t, x, False), *both(t, y, True)]
                for t in (ours, theirs)
            )
            for a, b in zip(found, right, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
            assert ours.inv.inv is ours or isinstance(ours, zuko.transforms.ComposedTransform)


@pytest.fixture
def ran(monkeypatch):
    """The names of the ops that did the work, in order."""
    names = []
    for name in ("run_inverse", "run_made"):
        watch(monkeypatch, names, zuko_transforms, name)
    watch(monkeypatch, names, layer_op, "run", "flow_layer")
    watch(monkeypatch, names, flow_op, "run", "flow")
    return names


FLOW, SWEEPS = ["flow"], ["run_inverse"] * 2
# What runs forward, and inverse.
OPS = {
    "NSF": (FLOW, FLOW),
    "NSF, random orders, narrow": (FLOW, FLOW),
    "NSF, two passes": (FLOW, FLOW),
    "MAF": (FLOW, FLOW),
    "NCSF": (["run_made"] * 2, SWEEPS),
    "NICE": (FLOW, FLOW),
    "coupling, spline": (FLOW, FLOW),
}


@pytest.mark.parametrize("name", OPS)
def test_the_ops_are_reached(name, ran):
    flow = accelerated_copy(make(name, context=2))
    t, forward, inverse = flow(torch.zeros(2)).transform, *OPS[name]
    x = t(draw(name, 8, 5))
    assert ran == forward
    ran.clear()
    t.inv(x)
    assert ran == inverse
    ran.clear()
    patch.unswap(flow.transform)
    flow(torch.zeros(2)).transform(x)
    assert ran == (["flow_layer"] * 2 if forward == FLOW else forward)


def test_samples_and_their_densities():
    for name in ("NSF", "MAF", "NCSF", "coupling, spline"):
        results = []
        for flow in (plain := make(name, context=2).double(), accelerated_copy(plain)):
            torch.manual_seed(0)
            distribution = flow(torch.ones(2).double())
            x, log_prob = distribution.rsample_and_log_prob((50,))
            torch.testing.assert_close(distribution.log_prob(x), log_prob)
            results.append((x, log_prob, distribution.sample((3,)).shape))
        torch.testing.assert_close(*results, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["NSF", "MAF", "NICE"])
def test_training(name):
    assert_same_training(lambda flow, x: flow().log_prob(x), make(name, table().shape[1]))


# ---- what must not change, what is left alone ----


def test_state_repr_restore_copies_and_pickles():
    plain = make("NSF", context=2)
    fast = accelerated_copy(plain)
    assert repr(fast) == repr(plain)
    assert [*fast.state_dict()] == [*plain.state_dict()]
    t = fast(torch.zeros(2)).transform.transforms[0]
    assert isinstance(t, zuko.transforms.AutoregressiveTransform) and type(t).__name__ == "AutoregressiveTransform"
    assert type(pickle.loads(pickle.dumps(fast)).transform.transforms[0]) is type(plain.transform.transforms[0])
    assert not compat.accelerate(copy.deepcopy(fast)).left_alone
    fast.load_state_dict(plain.state_dict())
    compat.restore(fast)
    assert [type(m) for m in fast.modules()] == [type(m) for m in plain.modules()]


def test_hooks_and_edited_networks_are_called():
    plain = make("NSF").double()
    fast, x, calls = accelerated_copy(plain), draw("NSF", 9, 5).double(), []
    for flow in (plain, fast):
        flow.transform.transforms[0].hyper[1].register_forward_hook(lambda *_: calls.append(1))
        flow.transform.transforms[1].hyper[2] = nn.Linear(24, 16).double()
        flow.transform.transforms[1].hyper[2].load_state_dict({"weight": torch.ones(16, 24), "bias": torch.zeros(16)})
    torch.testing.assert_close(fast().log_prob(x), plain().log_prob(x))
    assert calls == [1, 1]


def test_masks_that_change_are_read_again():
    plain = make("NSF").double()
    fast, x = accelerated_copy(plain), draw("NSF", 9, 5).double()
    fast().log_prob(x)
    other = zuko.flows.NSF(5, bins=6, randperm=True, **SMALL).double()
    for flow in (plain, fast):
        flow.load_state_dict(other.state_dict())  # writes to the buffers of the masks and the orders
    torch.testing.assert_close(fast().log_prob(x), plain().log_prob(x))
    torch.testing.assert_close(fast().transform.inv(x), plain().transform.inv(x))


@pytest.mark.parametrize("name", ["NSF", "NCSF"])
def test_fewer_passes_than_the_order_needs_are_as_many(name):
    plain = make(name).double()
    fast, y = accelerated_copy(plain), draw(name, 9, 5).double()
    for flow in (plain, fast):
        flow.transform.transforms[0].passes = 2
    torch.testing.assert_close(fast().transform.inv(y), plain().transform.inv(y))


def test_compile():
    flow = accelerated_copy(make("NSF", context=2))
    x, c = draw("NSF", 9, 5), torch.ones(2)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, c: flow(c).log_prob(x), backend="aot_eager")
    torch.testing.assert_close(compiled(x, c), flow(c).log_prob(x))


def test_function_transforms_and_second_derivatives():
    plain = make("NSF").double()
    x = draw("NSF", 3, 5).double()
    fast, slow = (lambda x, f=f: f().log_prob(x) for f in (accelerated_copy(plain), plain))
    for of in (torch.func.vmap, torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(of(fast)(x), of(slow)(x))
    hessian = torch.autograd.functional.hessian
    torch.testing.assert_close(hessian(lambda x: fast(x).sum(), x), hessian(lambda x: slow(x).sum(), x))


class OwnForward(zuko.flows.MaskedAutoregressiveTransform):
    def forward(self, c=None):
        return super().forward(c)


class OwnSpline(zuko.transforms.MonotonicRQSTransform):
    pass


LEFT_ALONE = {
    "its own forward": (lambda: OwnForward(3), "OwnForward defines its own forward"),
    "a subclass of the spline": (
        lambda: zuko.flows.MaskedAutoregressiveTransform(3, univariate=OwnSpline, shapes=[(4,), (4,), (3,)]),
        "no kernel for its univariate, OwnSpline",
    ),
    "elementwise, affine": (
        lambda: zuko.flows.gaussianization.ElementWiseTransform(3), "its affine map alone is as fast in zuko"
    ),
    "too many bins": (
        lambda: zuko.flows.MaskedAutoregressiveTransform(3, **{**SPLINE, "shapes": [(200,), (200,), (199,)]}),
        "bins must be an integer from 1 to 128, got 200",
    ),
    "other shapes": (
        lambda: zuko.flows.MaskedAutoregressiveTransform(3, **{**SPLINE, "shapes": [(4,), (4,), (4,)]}),
        "the parameters of its spline have shapes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone_and_named(case):
    layer, reason = LEFT_ALONE[case][0](), LEFT_ALONE[case][1]
    before = type(layer)
    (found,) = compat.accelerate(layer).left_alone.values()
    assert reason in found and type(layer) is before


# ---- what differs by design ----


def test_an_inverse_where_zuko_gives_nan():
    spline = zuko.transforms.MonotonicRQSTransform
    layer = zuko.flows.gaussianization.ElementWiseTransform(2000, univariate=spline, shapes=[(16,), (16,), (15,)])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in layer.phi:
            p.copy_(100 * torch.randn(p.shape, generator=generator))
    y = layer()(10 * torch.rand(20, 2000, generator=generator) - 5)
    assert layer().inv(y).isnan().any()
    assert accelerated_copy(layer)().inv(y).isfinite().all()


@pytest.mark.parametrize("name", FLOWS)
def test_no_rows(name):
    flow = accelerated_copy(make(name, context=2))
    t = flow(torch.ones(2)).transform
    for y, ladj in (both(t, torch.empty(0, 5), False), both(t, torch.empty(0, 5), True)):
        assert y.shape == (0, 5) and ladj.shape == (0,)


def test_ladj_is_float32_in_half_precision():
    flow = accelerated_copy(make("NSF")).bfloat16()
    y, ladj = flow().transform.call_and_ladj(draw("NSF", 4, 5).bfloat16())
    assert (y.dtype, ladj.dtype) == (torch.bfloat16, torch.float32) and ladj.isfinite().all()

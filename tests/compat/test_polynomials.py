"""Polynomial flows of zuko and of Pyro, accelerated and converted: the same numbers, and inverses without bisection."""

from __future__ import annotations

import functools

import pytest
import torch
import zuko

import flowkernels
from flowkernels import compat
from flowkernels.transforms import Autoregressive, Polynomial, Softclip
from tests.compat.parity import B, accelerated_copy, assert_parity, fuse_small_ones

pytestmark = pytest.mark.usefixtures("one_thread")

T = zuko.transforms
SMALL = {"transforms": 2, "hidden_features": (16, 16)}
SQUARES = functools.partial(T.SOSPolynomialTransform, slope=0.1, bound=8.0)
BERNSTEIN = functools.partial(T.BernsteinTransform, bound=3.0, eps=1e-5)
FLOWS = {
    "SOSPF": lambda D, C: zuko.flows.SOSPF(D, C, degree=3, polynomials=2, **SMALL),
    "BPF": lambda D, C: zuko.flows.BPF(D, C, degree=6, **SMALL),
    "couplings of squares": lambda D, C: zuko.flows.NICE(D, C, univariate=SQUARES, shapes=[(2, 3)], **SMALL),
    "Bernstein with linear tails": lambda D, C: zuko.flows.MAF(D, C, univariate=BERNSTEIN, shapes=[(7,)], **SMALL),
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
    """zuko's is off by 1e-6; ours is the inverse."""
    plain, x, c = make(name, 3).double(), draw(9, 5).double(), draw(9, 3).double()
    fast = accelerated_copy(plain)(c).transform
    y, ladj = plain(c).transform.call_and_ladj(x)
    back, negated = fast.inv.call_and_ladj(y)
    torch.testing.assert_close((back, negated), (x, -ladj), rtol=1e-9, atol=1e-9)
    theirs = plain(c).transform.inv.call_and_ladj(y)
    torch.testing.assert_close((back, negated), theirs, rtol=1e-5, atol=1e-5)
    for t in (fast, plain(c).transform):
        y.requires_grad_()
        x1 = t.inv(y)
        found = torch.autograd.grad(x1.square().sum(), y)[0]
        if t is fast:
            wanted = found
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@EVERY
def test_samples_far_out_stop_where_theirs_do(name):
    plain, z = make(name).double(), 30 * draw(20, 5).double()
    found, wanted = accelerated_copy(plain)().transform.inv(z), plain().transform.inv(z)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("context", [0, 2])
@EVERY
def test_there_and_back(name, context):
    theirs, x, c = make(name, context).double(), draw(7, 5).double(), draw(7, 2).double() if context else None
    ours = flowkernels.convert(theirs)
    wanted = theirs(c).log_prob(x)
    torch.testing.assert_close(ours.log_prob(x, c), wanted, rtol=1e-9, atol=1e-9)
    back = flowkernels.to_zuko(ours)
    torch.testing.assert_close(back(c).log_prob(x), wanted, rtol=1e-9, atol=1e-9)
    if name == "SOSPF":
        assert [type(t) for t in ours.transform] == [Autoregressive, Softclip, Autoregressive]
        assert ours.transform[0].univariate == Polynomial(degree=3, terms=2, bounded=True)


def test_elementwise():
    torch.manual_seed(0)
    layer = zuko.flows.gaussianization.ElementWiseTransform(
        5, univariate=T.BoundedBernsteinTransform, shapes=[(6,)]
    ).double()
    fast, x = accelerated_copy(layer), draw(9, 5).double()
    torch.testing.assert_close(fast().call_and_ladj(x), layer().call_and_ladj(x), rtol=1e-9, atol=1e-9)


LEFT_ALONE = {
    "a setting that it does not have": (functools.partial(T.BernsteinTransform, slope=1e-3), [(5,)], "is given slope"),
    "one coefficient": (T.BernsteinTransform, [(1,)], "degree must be an integer from 1 to 64"),
    "other shapes": (T.SOSPolynomialTransform, [(2, 3), ()], "the parameters of its polynomial have shapes"),
    "no slope": (functools.partial(T.SOSPolynomialTransform, slope=0.0), [(2, 3)], "slope must be a number"),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone_and_named(case):
    univariate, shapes, reason = LEFT_ALONE[case]
    layer = zuko.flows.MaskedAutoregressiveTransform(3, univariate=univariate, shapes=shapes)
    (found,) = compat.accelerate(layer).left_alone.values()
    assert reason in found


def test_what_has_no_place_in_zuko():
    for univariate in (Polynomial(bounded=False), Polynomial("bernstein", 3), Polynomial(bounded=True, bound=3.0)):
        flow = flowkernels.flows.MAF(3, transforms=1, hidden=(8,), univariate=univariate)
        with pytest.raises(ValueError, match=r"to_zuko: "):
            flowkernels.to_zuko(flow)


# ---- Pyro ----


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("lead", [(B,), (), (3, 2)], ids=str)
def test_pyro(skips, lead, monkeypatch):
    pyro = pytest.importorskip(
        "pyro.distributions.transforms", reason="Pyro is not installed: see requirements/dev.txt"
    )
    from pyro.nn import AutoRegressiveNN

    fuse_small_ones(monkeypatch)
    torch.manual_seed(0)
    plain = pyro.Polynomial(AutoRegressiveNN(4, [12], [2 * 3], skip_connections=skips), 4, 2, 2)
    fast = accelerated_copy(plain)
    for dtype, within in ((torch.float32, 1e-4), (torch.float64, 1e-7)):
        plain, fast, x = plain.to(dtype), fast.to(dtype), draw(*lead, 4).to(dtype)
        wanted, y = plain(x), fast(x)
        torch.testing.assert_close(y, wanted, rtol=within, atol=within)
        ladj = fast.log_abs_det_jacobian(x, y)
        torch.testing.assert_close(ladj, plain.log_abs_det_jacobian(x, wanted), rtol=within, atol=within)
        z = y.detach().clone()
        back = fast.inv(z)
        found = fast.log_abs_det_jacobian(back, z)
        torch.testing.assert_close(fast(back), z, rtol=within, atol=within)
        if dtype is torch.float64:  # in float32 a slope near 1e-8 says little of x
            torch.testing.assert_close(fast(back), z, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close((back, found), (x, ladj), rtol=1e-5, atol=1e-5)
    with pytest.raises(KeyError):
        plain.inv(z)
    with pytest.raises(ValueError, match=r"compat.pyro: y must be \[\.\.\., 4\], got"):
        fast.inv(z[..., :3])

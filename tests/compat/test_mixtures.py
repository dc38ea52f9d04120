"""zuko's Gaussianization flows: both directions, gradients, far tails, as native flows and back."""

from __future__ import annotations

import copy

import pytest
import torch

import flowkernels
from flowkernels.ops import Mixture
from flowkernels.transforms import Coupling, LULinear

zuko = pytest.importorskip("zuko")
CONTEXT = pytest.mark.parametrize("context", [0, 2], ids=["", "context"])


def gf(context: int):
    torch.manual_seed(0)
    settings = {"hidden_features": (8,)} if context else {}
    return zuko.flows.GF(3, context, transforms=2, components=4, **settings).double()


def zukos(components: int) -> Mixture:
    return Mixture(
        components, "normal", "probit", min_log_scale=-20, max_log_scale=20, parametrization="shifts", shrink=1e-6
    )


def given(context: int, rows: int = 40):
    torch.manual_seed(1)
    return torch.randn(rows, 3).double(), torch.randn(rows, context).double() if context else None


@CONTEXT
def test_parity(context) -> None:
    theirs = gf(context)
    ours = copy.deepcopy(theirs)
    report = flowkernels.accelerate(ours)
    assert sum("ElementWise" in type(m).__mro__[1].__name__ for m in ours.modules()) == 2, report
    x, c = given(context)
    wanted, found = theirs(c).log_prob(x), ours(c).log_prob(x)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    for a, b in zip(
        torch.autograd.grad(found.sum(), list(ours.parameters())),
        torch.autograd.grad(wanted.sum(), list(theirs.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    z = theirs(c).transform(x)
    back, ladj = ours(c).transform.inv.call_and_ladj(z)
    torch.testing.assert_close(back, theirs(c).transform.inv(z), rtol=1e-4, atol=1e-4)  # bisection stops at 1e-6
    again, negated = ours(c).transform.call_and_ladj(back)
    torch.testing.assert_close(again, z, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(ladj, -negated, rtol=1e-7, atol=1e-7)


def test_beyond_what_the_mean_reaches() -> None:
    """y outside of ±4.9 has no root: an end of zuko's bracket is what both give, with the ladj there."""
    layer = gf(0).transform.transforms[0]
    ours = copy.deepcopy(layer)
    flowkernels.accelerate(ours)
    y = torch.tensor([[-6.0, 5.5, 0.0]]).double()
    x, ladj = ours().inv.call_and_ladj(y)
    wanted = layer().inv(y)
    torch.testing.assert_close(x, wanted, rtol=1e-6, atol=1e-5)
    assert x[0, :2].tolist() == [-10.0, 10.0] and ladj.isfinite().all()


def test_digits_of_the_tails() -> None:
    """In float32 zuko's mean near 1 has one digit of what it lacks; ours has all, on either side."""
    f, params = zukos(2), torch.tensor([0.0, 0.3, 0.0, 0.2]).expand(1, 4, 4)
    x = torch.tensor([[-4.5, -3.0, 3.0, 4.5]])
    (y, ladj), (exact, of_exact) = f(x, params), f(x.double(), params.double(), backend="reference")
    torch.testing.assert_close(y.double(), exact, rtol=2e-6, atol=0.0)
    torch.testing.assert_close(ladj.double(), of_exact, rtol=1e-5, atol=1e-5)
    far, of_far = f(torch.tensor([[-500.0, -20.0, 20.0, 500.0]]), params)
    assert far.isfinite().all() and of_far.isfinite().all()


@CONTEXT
def test_as_a_native_flow(context) -> None:
    theirs = gf(context)
    native = flowkernels.convert(theirs)
    assert [type(layer) for layer in native.transform] == [Coupling, LULinear, Coupling]
    assert native.transform[0].univariate == zukos(4)
    x, c = given(context)
    torch.testing.assert_close(native.log_prob(x, c), theirs(c).log_prob(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(native.decode(native.encode(x, c), c), x, rtol=1e-6, atol=1e-6)


@CONTEXT
def test_a_flow_without_a_context_is_one_call(context) -> None:
    """Rotations and all; their matrices are made anew where they train or were written to, and else kept."""
    theirs = gf(context)
    ours = copy.deepcopy(theirs)
    flowkernels.accelerate(ours)
    pieces = type(ours.transform)._flowkernels_layer.pieces
    for inverse in (False, True):
        found = pieces(ours.transform, inverse, bool(context))
        assert [len(getattr(p, "leaves", [p])) for p in found] == ([1, 1, 1] if context else [3])
    x, c = given(context)
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(ours(c).log_prob(x), theirs(c).log_prob(x), rtol=1e-9, atol=1e-9)
            for flow in (ours, theirs):
                flow.transform.transforms[1].A.mul_(0.5)
    for flow in (ours, theirs):
        flow.transform.transforms[1].A.grad = None
        flow(c).log_prob(x).sum().backward()
    wanted, found = theirs.transform.transforms[1].A.grad, ours.transform.transforms[1].A.grad
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


def test_a_fused_optimizer_turns_the_rotations_that_are_kept() -> None:
    """It counts no version of what it writes, and neither does `.data`."""
    ours = gf(0)
    theirs = copy.deepcopy(ours)
    flowkernels.accelerate(ours)
    x, c = given(0)
    for flow in (ours, theirs):
        optimizer = torch.optim.Adam(flow.parameters(), lr=0.1, fused=True)
        for _ in range(3):
            with torch.no_grad():
                flow(c).log_prob(x)
            optimizer.zero_grad()
            (-flow(c).log_prob(x).mean()).backward()
            optimizer.step()
        with torch.no_grad():
            flow(c).log_prob(x)
        flow.transform.transforms[1].A.data.mul_(0.7)
    with torch.no_grad():
        torch.testing.assert_close(ours(c).log_prob(x), theirs(c).log_prob(x), rtol=1e-6, atol=1e-6)


def test_one_layer_alone() -> None:
    layer = gf(0).transform.transforms[0]
    ours = copy.deepcopy(layer)
    flowkernels.accelerate(ours)
    x = given(0)[0].requires_grad_()
    for inverse in (False, True):
        (y, ladj), (wanted, of_wanted) = (
            (m().inv if inverse else m()).call_and_ladj(x.clamp(-2, 2)) for m in (ours, layer)
        )
        torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-4 if inverse else 1e-9)
        torch.testing.assert_close(ladj, of_wanted, rtol=1e-4, atol=1e-4 if inverse else 1e-9)
    grads = [torch.autograd.grad(m().call_and_ladj(x)[1].sum(), list(m.parameters())) for m in (ours, layer)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)

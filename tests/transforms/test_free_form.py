"""Any vector field, solved by torchdiffeq: what `Continuous` gives for the same field, with its gradients."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import flowkernels
from flowkernels.flows import FFJORD
from flowkernels.nets import ConcatSquash
from flowkernels.transforms import Continuous, FreeForm

pytest.importorskip("torchdiffeq")
pytestmark = pytest.mark.usefixtures("one_thread")
D, C = 3, 2
EXACT = {"rtol": 1e-9, "atol": 1e-10}


class Plain(nn.Module):
    """The field of a `Continuous` of two hidden layers."""

    def __init__(self, of: Continuous) -> None:
        super().__init__()
        self.of = of

    def forward(self, t: Tensor, x: Tensor, context: Tensor) -> Tensor:
        (w1, b1), (w2, b2), (w3, b3) = self.of.layers()
        lead = x.shape[:-1]
        h = torch.cat((x, t.expand(*lead, 1), context.expand(*lead, C)), -1)
        return torch.tanh(torch.tanh(h @ w1.mT + b1) @ w2.mT + b2) @ w3.mT + b3


def pair(**settings) -> tuple[FreeForm, Continuous]:
    torch.manual_seed(0)
    known = Continuous(D, (8, 8), context=C, seed=0, **EXACT).double()
    for p in known.parameters():
        p.data.normal_(std=0.7)
    return FreeForm(D, Plain(known), context=C, **EXACT, **settings), known


def given(*lead: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    x, c = (torch.randn(*lead, n, dtype=torch.float64, generator=draws) for n in (D, C))
    return x, c.requires_grad_()


@pytest.mark.parametrize("adjoint", [False, True], ids=["steps", "adjoint"])
def test_is_continuous_of_the_same_field(adjoint) -> None:
    """Values, the way back, and gradients of x, context and weights: of the steps, and of the adjoint equation."""
    layer, known = pair(adjoint=adjoint)
    x, context = given(4)
    x.requires_grad_()
    results = []
    for f in (layer, known):
        y, ladj = f(x, context)
        back, neg = f.inverse(y, context)
        torch.testing.assert_close((back, neg), (x, -ladj), rtol=1e-6, atol=1e-6)
        wanted = [x, context, *known.parameters()]
        results.append((y, ladj, *torch.autograd.grad(y.sin().sum() + ladj.square().sum(), wanted)))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


def test_the_trace_is_that_of_the_jacobian() -> None:
    layer = FreeForm(D, ConcatSquash(D, (5, 4)).double(), solver="rk4", steps=30)
    x, _ = given(3)
    y, ladj = layer(x)
    for row, one in zip(x, ladj, strict=True):
        J = torch.autograd.functional.jacobian(lambda v: layer(v)[0], row)
        torch.testing.assert_close(torch.linalg.slogdet(J).logabsdet, one, rtol=1e-6, atol=1e-6)
    assert ladj.abs().max() > 1e-3 and (y - x).abs().max() > 1e-3


def test_estimates_have_the_trace_as_their_mean() -> None:
    torch.manual_seed(0)
    for noise in ("rademacher", "gaussian"):
        layer = FreeForm(D, ConcatSquash(D, 8).double(), solver="euler", steps=4, trace="training", noise=noise)
        x = given(1)[0].expand(4000, D)
        drawn = layer(x)[1]
        exact = layer.eval()(x[:1])[1]
        error = drawn.std() / len(drawn) ** 0.5
        assert (drawn.mean() - exact).abs() < 5 * error and error > 0


def test_a_bad_row_is_nan_alone() -> None:
    layer, _ = pair()
    x, context = given(4)
    good = layer(x, context)
    x[1, 0], x[2, 1] = torch.nan, torch.inf
    found = layer(x, context)
    for a, b in zip(found, good, strict=True):
        assert a[1:3].isnan().all()
        torch.testing.assert_close(a[[0, 3]], b[[0, 3]], rtol=1e-7, atol=1e-7)


def test_leading_dims_and_no_rows() -> None:
    layer, _ = pair()
    x, context = given(2, 3)
    y, ladj = layer(x, context[0, 0])
    assert y.shape == (2, 3, D) and ladj.shape == (2, 3)
    torch.testing.assert_close(layer(x[1, 2], context[0, 0])[0], y[1, 2], rtol=1e-6, atol=1e-7)
    assert layer(x[:0], context[:0])[0].shape == (0, 3, D)


def test_a_field_that_ignores_x_keeps_volume() -> None:
    class Wind(nn.Module):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return t.cos() * torch.ones_like(x)

    y, ladj = FreeForm(2, Wind(), **EXACT)(torch.zeros(3, 2, dtype=torch.float64))
    torch.testing.assert_close(y, torch.full_like(y, torch.tensor(1.0).sin().item()), rtol=1e-6, atol=1e-6)
    assert torch.equal(ladj, torch.zeros(3, dtype=torch.float64))


def test_time_of_each_row() -> None:
    net, x = ConcatSquash(D, 4, C), torch.randn(5, D)
    t, context = torch.rand(5, 1), torch.randn(5, C)
    rows = [net(t[i, 0], x[i], context[i]) for i in range(5)]
    torch.testing.assert_close(net(t, x, context), torch.stack(rows))


def test_ffjord_trains_on_an_estimate_and_is_exact_in_evaluation() -> None:
    torch.manual_seed(0)
    flow, x = FFJORD(2, hidden=(8, 8)), torch.randn(20, 2)
    assert not torch.equal(flow.log_prob(x), flow.log_prob(x))
    flow.log_prob(x).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())
    flow.eval()
    assert torch.equal(flow.log_prob(x), flow.log_prob(x))
    with torch.no_grad():
        drawn, log_prob = flow.sample_and_log_prob(50)
        torch.testing.assert_close(flow.log_prob(drawn), log_prob, rtol=1e-3, atol=1e-3)


def test_copies_and_files(tmp_path) -> None:
    flow, x = FFJORD(2, hidden=4, solver="rk4", steps=4).eval(), torch.randn(3, 2)
    wanted = flow.log_prob(x)
    flow.save(tmp_path / "flow.safetensors")
    loaded = flowkernels.load(tmp_path / "flow.safetensors")
    for other in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow)), loaded):
        assert torch.equal(other.log_prob(x), wanted)
    own = FFJORD(2, field=nn.Identity())
    with pytest.raises(ValueError, match="field must be one module for each of 2"):
        FFJORD(2, transforms=2, field=nn.Identity())
    assert sum(p.numel() for p in own.parameters()) == 0


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"field must be a torch\.nn\.Module, got function"):
        FreeForm(2, lambda t, x: x)
    with pytest.raises(ValueError, match="solver must be"):
        FreeForm(2, nn.Identity(), solver="newton")
    with pytest.raises(ValueError, match="t1 must be another time"):
        FreeForm(2, nn.Identity(), t1=0.0)
    with pytest.raises(ValueError, match="rtol must be a finite number"):
        FreeForm(2, nn.Identity(), rtol=-1)

    class Sum(nn.Module):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return x.sum(-1)

    class Explosion(nn.Module):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return 1e3 * x.square() + 1

    with pytest.raises(ValueError, match=r"the field must return \[4, 2\], got \[4\]"):
        FreeForm(2, Sum())(torch.zeros(4, 2))
    with pytest.raises(RuntimeError, match="dopri5 must arrive at t = 1"):
        FreeForm(2, Explosion(), steps=200)(torch.ones(4, 2))


def test_without_torchdiffeq_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchdiffeq", None)
    with pytest.raises(ImportError, match=r"pip install .flowkernels\[ode\]"):
        FreeForm(2, nn.Identity())

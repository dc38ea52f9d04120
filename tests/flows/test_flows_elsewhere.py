"""Flows on the meta device and made there, and draws that are written to before backward."""

from __future__ import annotations

import pytest
import torch

from flowkernels import flows
from flowkernels.transforms import RQS, Affine

pytestmark = pytest.mark.usefixtures("one_thread")
META = torch.device("meta")
SMALL = {"transforms": 2, "hidden": (16, 16)}
IMAGES = {"levels": 2, "hidden": (8, 8)}
FLOWS = {
    "NSF": lambda: flows.NSF(4, 3, bins=4, **SMALL),
    "NSF, plain net": lambda: flows.NSF(4, 3, bins=4, net="mlp", **SMALL),
    "NSF, autoregressive": lambda: flows.NSF(4, 3, bins=4, autoregressive=True, **SMALL),
    "NSF, LU layers": lambda: flows.NSF(4, 3, bins=4, linear="lu", **SMALL),
    "coupling flow": lambda: flows.CouplingFlow(4, 3, linear="permutation", **SMALL),
    "MAF": lambda: flows.MAF(4, 3, **SMALL),
    "MAF, residual": lambda: flows.MAF(4, 3, residual=True, **SMALL),
    "MAF, splines in random order": lambda: flows.MAF(4, 3, univariate=RQS(bins=4), order="random", seed=1, **SMALL),
    "IAF": lambda: flows.IAF(4, 3, **SMALL),
    "recurrent": lambda: flows.RecurrentFlow(4, 3, transforms=2, hidden=8, order="random"),
    "RealNVP": lambda: flows.RealNVP(4, 3, batch_norm=True, **SMALL),
    "RealNVP of images": lambda: flows.RealNVP((2, 4, 4), 3, transforms=2, **IMAGES),
    "NICE": lambda: flows.NICE(4, 3, **SMALL),
    "Glow": lambda: flows.Glow((2, 4, 4), 3, steps=1, **IMAGES),
    "WaveGlow": lambda: flows.WaveGlow((1, 8), 3, steps=2, hidden=4, layers=1, squeeze=4),
    "WaveNet": lambda: flows.WaveNet((1, 6), 3, hidden=4, layers=2, univariate=Affine()),
}


def make(name):
    torch.manual_seed(0)
    flow = FLOWS[name]()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.05 * torch.randn_like(p))
    flow.log_prob(*data(flow))  # what is set by the first batch of data
    return flow.eval()


def data(flow):
    g = torch.Generator().manual_seed(1)
    return torch.randn(5, *flow.event_shape, generator=g), torch.randn(5, 3, generator=g)


def results(flow, x, context, z):
    """Every direction of a flow; draws last, whose numbers are random."""
    found = [flow.log_prob(x, context), flow.encode(x, context), flow.decode(z, context)]
    return [*found, flow.rsample(2, context), *flow.sample_and_log_prob(2, context)]


def assert_same(found, wanted):
    for a, b in zip(found[:3], wanted[:3], strict=True):
        torch.testing.assert_close(a, b)
    assert [t.shape for t in found] == [t.shape for t in wanted]
    assert all(t.is_cpu and t.isfinite().all() for t in found)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("how", ["moved", "made there"])
@pytest.mark.parametrize("name", FLOWS)
def test_on_meta_and_back(name, how):
    flow = make(name)
    x, context = data(flow)
    z = flow.encode(x, context).detach()
    wanted = results(flow, x, context, z)
    if how == "moved":
        there = make(name).to(META)
    else:
        with META:
            there = FLOWS[name]().eval()
    for graph in (False, True):
        with torch.set_grad_enabled(graph):
            found = results(there, *(t.to(META) for t in (x, context, z)))
        assert [t.shape for t in found] == [t.shape for t in wanted]
        assert all(t.is_meta for t in found)
    there.to_empty(device="cpu")
    there.load_state_dict(flow.state_dict())
    assert_same(results(there, x, context, z), wanted)
    with META:
        assert_same(results(there, x, context, z), wanted)


@pytest.mark.parametrize("name", [name for name in FLOWS if name != "NSF, LU layers"])
def test_draws_may_be_rescaled_in_place(name):
    flow = make(name)
    x, context = data(flow)
    z = flow.encode(x, context).detach()

    def gradients(in_place):
        given = z.clone().requires_grad_()
        drawn = flow.decode(given, context)
        drawn = drawn.mul_(3).add_(1) if in_place else 3 * drawn + 1
        return torch.autograd.grad(drawn.square().sum(), [given, *flow.parameters()], allow_unused=True)

    for a, b in zip(gradients(True), gradients(False), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_write_to_draws_of_lu_layers():
    """A run of layers keeps what enters them, not the draws: a write to these changes no gradient. A lone LU layer's
    inverse keeps what it returns, and torch refuses after a write to it."""
    flow = make("NSF, LU layers")
    x, context = data(flow)
    found = []
    for write in (lambda drawn: drawn.mul_(3), lambda drawn: 3 * drawn):
        flow.zero_grad()
        write(flow.decode(flow.encode(x, context), context)).sum().backward()
        found.append([p.grad for p in flow.parameters()])
    for written, right in zip(*found, strict=True):
        assert (written is None) == (right is None)
        if right is not None:
            torch.testing.assert_close(written, right)

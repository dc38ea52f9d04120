"""zuko's CNF, accelerated and converted: solutions no further from the exact ones, gradients that are exact."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import flowkernels
from flowkernels import compat, flows
from flowkernels.distributions import StandardNormal
from flowkernels.transforms import Continuous

zuko = pytest.importorskip("zuko", reason="zuko is not installed: see requirements/dev.txt")
pytestmark = pytest.mark.usefixtures("one_thread")

D, C = 3, 2
SMALL = {"hidden_features": (16, 12)}
KINDS = {
    "plain": lambda C: zuko.flows.CNF(D, C, activation=nn.Tanh, **SMALL),
    "gelu, one layer": lambda C: zuko.flows.CNF(D, C, hidden_features=(8,), activation=nn.GELU),
    "softplus": lambda C: zuko.flows.CNF(D, C, hidden_features=(8, 6), activation=nn.Softplus),
    "no frequencies": lambda C: zuko.flows.CNF(D, C, freqs=0, activation=nn.SiLU, **SMALL),
    "linear": lambda C: zuko.flows.CNF(D, C, hidden_features=()),
}
EVERY = pytest.mark.parametrize(
    ("name", "context"),
    [("plain", 0), ("plain", C), ("gelu, one layer", C), ("softplus", 0), ("no frequencies", C), ("linear", 0)],
)


def make(name="plain", context=0):
    """Of float64, with tolerances at which both solvers are near to exact, and frequencies of float64."""
    torch.manual_seed(0)
    flow = KINDS[name](context).double()
    layer = flow.transform
    layer.freqs = torch.pi * torch.arange(1, len(layer.freqs) + 1, dtype=torch.float64)
    layer.rtol = layer.atol = 1e-6
    return flow


def fast_copy(flow):
    fast = copy.deepcopy(flow)
    assert compat.accelerate(fast).accelerated == ["transform"]
    return fast


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def close(found, expected, within=1e-4):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype is b.dtype and a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=within, atol=within)


@EVERY
def test_values_and_gradients_both_ways(name, context):
    plain = make(name, context)
    fast = fast_copy(plain)
    for inverse in (False, True):
        found = []
        for flow in (plain, fast):
            x, c = draw(3, D).requires_grad_(), draw(3, context).cos().requires_grad_() if context else None
            transform = flow(c).transform
            transform = transform.inv if inverse else transform
            y, ladj = transform.call_and_ladj(x)
            leaves = [x, *([c] if context else []), *flow.parameters()]
            found.append([y, ladj, *torch.autograd.grad(y.cos().sum() + ladj.square().sum(), leaves)])
            with torch.no_grad():
                found[-1].append(transform(x))
        close(found[1], found[0])


def test_estimates_with_the_same_noise():
    plain = make()
    plain.transform.exact = False
    fast, x = fast_copy(plain), draw(5, D)
    found = []
    for flow in (plain, fast):
        torch.manual_seed(3)
        found.append(flow().log_prob(x))
    close([found[1]], [found[0]])
    assert (found[0] - make()().log_prob(x)).abs().max() > 1e-3  # which the exact trace would not give


@pytest.mark.parametrize("activation", [nn.ELU, nn.Tanh])
def test_errors_are_not_above_theirs_at_equal_tolerances(activation):
    torch.manual_seed(0)
    plain = zuko.flows.CNF(D, activation=activation, hidden_features=(32, 32)).eval()
    fast, x = fast_copy(plain), torch.randn(64, D)
    with torch.no_grad():
        for flow in (plain, fast):
            for p in flow.transform.ode.parameters():
                p.mul_(2)  # a field on which errors are more than rounding
        exact = copy.deepcopy(fast).double()
        exact.transform.rtol = exact.transform.atol = 1e-7
        truth = exact().log_prob(x.double())
        theirs, ours = ((flow().log_prob(x) - truth).square().mean().sqrt() for flow in (plain, fast))
    rounding = torch.finfo(torch.float32).eps * truth.abs().max()
    assert rounding < ours <= theirs + 8 * rounding


def test_rows_and_contexts_of_any_shape():
    plain = make(context=C)
    fast = fast_copy(plain)
    for lead, of_context in (((), ()), ((2,), ()), ((2, 3), (3,))):
        x, c = draw(*lead, D), draw(*of_context, C)
        close([fast(c).log_prob(x)], [plain(c).log_prob(x)])
    assert [t.shape for t in fast(draw(C)).transform.call_and_ladj(draw(0, D))] == [(0, D), (0,)]
    with pytest.raises(RuntimeError):
        fast(draw(4, C + 1)).log_prob(draw(4, D))


def test_samples_are_those_of_the_same_noise():
    plain = make()
    fast, found = fast_copy(plain), []
    for flow in (plain, fast):
        torch.manual_seed(0)
        x, log_p = flow().rsample_and_log_prob((5,))
        found.append([x, log_p, flow().rsample((5,))])
    close(found[1], found[0])


def test_evaluation_leaves_the_weights_alone():
    """As zuko does, which gives its solver the parameters in training only."""
    flow = fast_copy(make()).eval()
    assert not flow().log_prob(draw(4, D)).requires_grad
    x = draw(4, D).requires_grad_()
    flow().log_prob(x).sum().backward()
    assert x.grad is not None and all(p.grad is None for p in flow.parameters())


def test_what_changes_later_is_seen():
    plain = make()
    fast, x = fast_copy(plain), draw(4, D)
    before = fast().log_prob(x)
    for flow in (plain, fast):
        flow.transform.times.copy_(torch.tensor([0.25, 0.75]))
        flow.transform.ode[1] = nn.Tanh()
        flow.transform.ode[3] = nn.Tanh()
    close([fast().log_prob(x)], [plain().log_prob(x)])
    calls = []
    for flow in (plain, fast):
        flow.transform.ode[0].register_forward_hook(lambda module, args, output: calls.append(module))
    found, wanted = fast().log_prob(x), plain().log_prob(x)
    assert torch.equal(found, wanted) and len({*calls}) == 2
    assert not torch.allclose(before, found)


def test_a_transform_that_was_given_another_field_runs_it():
    fast, x = fast_copy(make()), draw(4, D)
    transform = fast().transform
    transform.f = lambda t, x: -x
    torch.testing.assert_close(transform(x), x * torch.tensor(-1.0).exp(), rtol=1e-6, atol=1e-6)


def test_state_copies_and_pickles_are_theirs():
    plain = make()
    fast, x = fast_copy(plain), draw(4, D)
    assert plain.state_dict().keys() == fast.state_dict().keys()
    loaded = pickle.loads(pickle.dumps(fast))
    assert type(loaded.transform) is type(plain.transform)
    torch.testing.assert_close(copy.deepcopy(fast)().log_prob(x), fast().log_prob(x), rtol=0, atol=0)
    compat.restore(fast)
    torch.testing.assert_close(fast().log_prob(x), plain().log_prob(x), rtol=0, atol=0)


@pytest.mark.slow
def test_compiled_it_runs_between_graphs():
    fast, x = fast_copy(make()), draw(4, D)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: fast().log_prob(2 * x), backend="eager")
    torch.testing.assert_close(compiled(x), fast().log_prob(2 * x))


def _learned(flow):
    flow.transform.freqs = flow.transform.freqs.clone().requires_grad_()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda flow: setattr(flow.transform, "ode", nn.Linear(9, 3)), "its network is a Linear, not zuko's MLP"),
        (lambda flow: setattr(flow.transform.ode, "1", nn.Sigmoid()), "the activation of its network is Sigmoid()"),
        (lambda flow: flow.transform.freqs.mul_(1.5), "its frequencies are not the multiples of pi"),
        (_learned, "its times or its frequencies are learned"),
        (lambda flow: flow.transform.ode[0].register_forward_hook(print), "its network has hooks"),
    ],
)
def test_what_no_kernel_has_is_left_alone(change, reason):
    flow = make()
    change(flow)
    assert compat.accelerate(flow).left_alone["transform"] == reason


def test_exact_traces_of_three_hidden_layers_are_theirs_and_samples_are_not():
    plain = zuko.flows.CNF(D, hidden_features=(8, 8, 8)).double()
    assert "more than two hidden layers" in compat.accelerate(plain).left_alone["transform"]
    fast = copy.deepcopy(plain)
    fast.transform.exact = False
    compat.accelerate(fast)
    x = draw(4, D)
    fast().log_prob(x)  # the estimate has a kernel
    fast.transform.exact = True
    torch.testing.assert_close(fast().log_prob(x), plain().log_prob(x), rtol=0, atol=0)
    torch.testing.assert_close(fast().transform(x), plain().transform(x), rtol=1e-4, atol=1e-4)


def test_layer_norms_are_left_alone():
    flow = zuko.flows.CNF(D, normalize=True)
    assert "other layers than linear ones" in compat.accelerate(flow).left_alone["transform"]


@EVERY
def test_converted_there_and_back(name, context):
    theirs = make(name, context)
    ours = flowkernels.convert(theirs)
    x, c = draw(6, D), draw(6, context) if context else None
    close([ours.log_prob(x, c)], [theirs(c).log_prob(x)])
    close([flowkernels.to_zuko(ours)(c).log_prob(x)], [theirs(c).log_prob(x)])


def test_what_zuko_has_not_says_so():
    wrong: list[dict[str, Any]] = [{"solver": "rk4"}, {"time": "concat"}, {"trace": "hutchinson", "time": "none"}]
    for settings in wrong:
        field = Continuous(D, (8,), **{"time": "sinusoidal", **settings})
        flow = flows.Flow(field, StandardNormal(D))
        with pytest.raises(ValueError, match="to_zuko: every layer must be one that zuko has, got Continuous by"):
            flowkernels.to_zuko(flow)

"""nets.RecurrentNet: its formula, who sees whom, both ways of running it, derivatives, hooks, copies, errors."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from flowkernels.nets import RecurrentNet
from flowkernels.transforms import RQS, Affine, Autoregressive, Mixture, MonotoneNet, SinhArcsinh
from tests.nets.by_feature import C, inputs, make

NETS = {
    "natural": functools.partial(RecurrentNet, 5, 3, 7),
    "reversed": functools.partial(RecurrentNet, 5, 3, 7, order="reversed"),
    "context": functools.partial(RecurrentNet, 5, 3, 7, context=C, order="random", seed=3),
    "given order": functools.partial(RecurrentNet, 4, 2, 6, context=C, order=torch.tensor([2, 0, 3, 1])),
    "one feature": functools.partial(RecurrentNet, 1, 3, 4, context=C),
}
EVERY = pytest.mark.parametrize("build", NETS.values(), ids=NETS)


@pytest.fixture(autouse=True)
def _one_thread(one_thread) -> None:
    """Small tensors: a second thread costs more than it gives."""


def by_hand(net: RecurrentNet, x: Tensor, context: Tensor | None) -> Tensor:
    """By torch's cell of the same weights, one feature after another."""
    cell = nn.GRUCell(1 + net.context_features, net.hidden).double()
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in net.gru.state_dict().items()})
    state = net.initial_state.expand(len(x), -1)
    state = state if context is None else state + context @ net.context_layer.weight.t()
    params = {}
    for d in net.order.tolist():
        params[d] = net.final_layer(state)
        state = cell(x[:, d : d + 1] if context is None else torch.cat((x[:, d : d + 1], context), -1), state)
    return torch.cat([params[d] for d in range(net.features)], -1)


@EVERY
def test_is_its_formula(build) -> None:
    net = make(build)
    x, context = inputs(net, 6)
    torch.testing.assert_close(net(x, context), by_hand(net, x, context))
    if net.features > 1:
        state = net.start(x, context)
        torch.testing.assert_close(net._unrolled(x, state, context), net._in_one_call(x, state, context))


@EVERY
def test_sees_the_features_before(build) -> None:
    """And all of them; the parameters of the first are those of the context alone."""
    net = make(build)
    x, context = inputs(net, 20)
    J = torch.autograd.functional.jacobian(lambda v: net(v, context).sum(0), x)
    seen = J.unflatten(0, (net.features, -1)).abs().amax((1, 2)) > 0
    order = net.order.tolist()
    wanted = torch.ones(net.features, net.features).tril(-1).bool()
    assert torch.equal(seen[order][:, order], wanted)


def test_runs_the_gru_once() -> None:
    net, calls = make(NETS["context"]), []
    net.gru.register_forward_hook(lambda *_: calls.append(1))
    net(*inputs(net, 6))
    assert len(calls) == 1


@EVERY
def test_leading_dims(build) -> None:
    net = make(build)
    x, context = inputs(net, 2, 3, 4)
    out = net(x, context)
    flat = net(x.flatten(0, 2), None if context is None else context.flatten(0, 2))
    assert out.shape == (2, 3, 4, net.features * net.params_per_feature)
    torch.testing.assert_close(out.flatten(0, 2), flat)
    torch.testing.assert_close(net(x[0, 0, 0], None if context is None else context[0, 0, 0]), flat[0])
    assert net(x[:0], None if context is None else context[:0]).shape == (0, *out.shape[1:])


@pytest.mark.parametrize("shape", [(C,), (4, C), (3, 1, C)])
def test_context_broadcasts(shape) -> None:
    net = make(NETS["context"])
    x, context = inputs(net, 3, 4)[0], torch.randn(shape, dtype=torch.float64, requires_grad=True)
    found, wanted = net(x, context), net(x, context.expand(3, 4, C).contiguous())
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(t.sin().sum(), context)[0] for t in (found, wanted)))


@pytest.mark.parametrize("name", ["natural", "context"])
def test_first_and_second_derivatives(name) -> None:
    net = make(NETS[name])
    x, context = inputs(net, 2)
    leaves = [t.requires_grad_() for t in (x, context, *net.parameters()) if t is not None]
    assert torch.autograd.gradcheck(lambda *_: net(x, context), leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *_: net(x, context), leaves, fast_mode=True)
    assert all((g != 0).any() for g in torch.autograd.grad(net(x, context).sin().sum(), leaves))


@pytest.mark.parametrize("name", ["reversed", "context"])
def test_func_transforms(name) -> None:
    net = make(NETS[name])
    x, context = inputs(net, 4)
    given = (x,) if context is None else (x, context)
    wanted = net(*given)
    torch.testing.assert_close(torch.func.vmap(net)(*given), wanted)
    torch.testing.assert_close(torch.func.jvp(net, given, given)[0], wanted)


def test_a_bad_row_stays_in_its_row() -> None:
    layer = Autoregressive(make(functools.partial(RecurrentNet, 5, 2, 7)), Affine())
    x = torch.randn(4, 5, dtype=torch.float64)
    bad = x.clone()
    bad[1, 2] = float("nan")
    for f in (layer.forward, layer.inverse):
        found, wanted = f(bad), f(x)
        others = [0, 2, 3]
        assert all(torch.equal(a[others], b[others]) for a, b in zip(found, wanted, strict=True))
        assert found[0][1, 2:].isnan().all() and found[1][1].isnan() and torch.equal(found[0][1, :2], wanted[0][1, :2])


def test_weights_that_are_computed_and_grus_with_hooks() -> None:
    """The inverse then calls the whole net for every feature, to the same numbers."""
    layer = Autoregressive(make(functools.partial(RecurrentNet, 4, 2, 6)), Affine())
    y = torch.randn(5, 4, dtype=torch.float64)
    wanted = layer.inverse(y)
    calls: list[int] = []
    handle = layer.conditioner.gru.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(layer.inverse(y), wanted)
    assert len(calls) == 4
    handle.remove()
    layer.inverse(y)
    assert len(calls) == 4
    parametrizations.weight_norm(layer.conditioner.gru, "weight_hh_l0")
    assert not layer.conditioner.can_step
    torch.testing.assert_close(layer.inverse(y), wanted)
    torch.testing.assert_close(layer(layer.inverse(y)[0])[0], y)


def test_an_inverse_of_d_steps_is_that_of_d_passes() -> None:
    """Values and gradients."""
    univariate = RQS(bins=3)
    layer = Autoregressive(make(functools.partial(RecurrentNet, 4, 8, 6, context=C, order=[2, 0, 3, 1])), univariate)
    y, context = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, C, dtype=torch.float64)

    def run() -> list[Tensor]:
        x, ladj = layer.inverse(y, context)
        return [x, ladj, *torch.autograd.grad(x.sin().sum() + ladj.sum(), list(layer.parameters()))]

    wanted = run()
    layer.conditioner.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(run(), wanted)


@pytest.mark.parametrize(
    "univariate",
    [Mixture(2), SinhArcsinh(), Affine("exp", inverse=True), MonotoneNet(4, signal=2, hidden=3, seed=0)],
    ids=lambda univariate: type(univariate).__name__,
)
def test_any_map(univariate) -> None:
    """Of a kernel, of none, of the other direction, and with weights for each feature."""
    net = make(functools.partial(RecurrentNet, 4, univariate.n_params, 5, order=[2, 0, 3, 1]))
    layer = Autoregressive(net, univariate).double()
    y, _ = layer(torch.randn(6, 4, dtype=torch.float64))
    back, negated = layer.inverse(y)
    # What is found maps to y; where a mixture is flat that says less of x.
    found, ladj = layer(back)
    torch.testing.assert_close(found, y, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(negated, -ladj, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_dtypes(kind) -> None:
    dtype: torch.dtype = kind
    net = make(NETS["context"])
    x, context = inputs(net, 6)
    wanted = net(x, context)
    found = net.to(dtype)(x.to(dtype), context.to(dtype))
    assert found.dtype is dtype
    tolerance = {"rtol": 0, "atol": 30 * torch.finfo(dtype).eps} if dtype.itemsize == 2 else {}
    torch.testing.assert_close(found.double(), wanted, **tolerance or {"rtol": 1e-5, "atol": 1e-5})


def test_autocast() -> None:
    layer = Autoregressive(make(functools.partial(RecurrentNet, 4, 2, 6, context=C)).float(), Affine())
    y, context = torch.randn(5, 4), torch.randn(5, C)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = (*layer(y, context), *layer.inverse(y, context))
    for a, b in zip(found, (*layer(y, context), *layer.inverse(y, context)), strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0.1, atol=0.1)


def test_copies_and_an_order_that_is_loaded() -> None:
    net = make(NETS["context"])
    x, context = inputs(net, 6)
    wanted = net(x, context)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x, context), wanted)
    fresh = RecurrentNet(5, 3, 7, context=C).double()
    fresh.load_state_dict(net.state_dict())
    assert fresh.steps == net.steps != list(range(5)) and torch.equal(fresh(x, context), wanted)
    gru = nn.GRU(1 + C, 7).double()
    gru.load_state_dict(net.gru.state_dict())  # torch's names


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RecurrentNet(0, 1), "nets.RecurrentNet: features must be at least 1, got 0"),
        (lambda: RecurrentNet(2, 1, hidden=0), "nets.RecurrentNet: hidden must be at least 1, got 0"),
        (lambda: RecurrentNet(2, 1, context=-1), "nets.RecurrentNet: context must be at least 0, got -1"),
        (lambda: RecurrentNet(2, 1, order="up"), "nets.RecurrentNet: order must be .*, got 'up'"),
        (lambda: RecurrentNet(2, 1, order=[0, 0]), "nets.RecurrentNet: order must hold each of 0 to 1 once"),
        (lambda: RecurrentNet(2, 1)(torch.zeros(3, 4)), r"nets.RecurrentNet: x must be \[\.\.\., 2\], got \[3, 4\]"),
        (lambda: RecurrentNet(2, 1)(torch.zeros(())), r"nets.RecurrentNet: x must be \[\.\.\., 2\], got \[\]"),
        (lambda: RecurrentNet(2, 1, context=3)(torch.zeros(2)), r"context must be \[\.\.\., 3\], got None"),
        (lambda: RecurrentNet(2, 1)(torch.zeros(2), torch.zeros(3)), "context must be None where context=0, got"),
        (lambda: Autoregressive(RecurrentNet(2, 3), Affine()), r"conditioner must return \[\.\.\., 4\], got"),
    ],
)  # fmt: skip
def test_errors(build, message) -> None:
    with pytest.raises(ValueError, match=message):
        build()
    with pytest.raises(TypeError, match=r"nets\.RecurrentNet: x must be of the dtype of the weights, torch\.float32"):
        RecurrentNet(2, 1)(torch.zeros(2).double())

"""nets.MADE: nflows' network, orders and masks that can be redrawn, dropout, hooks, copies."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkernels.nets import MADE
from tests.nets.by_feature import C, inputs, make

NETS = {
    "plain": functools.partial(MADE, 5, 3, hidden=(16, 11)),
    "one layer": functools.partial(MADE, 5, 3, hidden=(16,), order="reversed"),
    "context": functools.partial(MADE, 5, 3, hidden=(16, 11), context=C, order="random", seed=3),
    "residual": functools.partial(MADE, 5, 3, hidden=(16, 16), residual=True, activation="silu"),
    "residual context": functools.partial(MADE, 5, 3, hidden=(16, 16), residual=True, context=C, order=[4, 0, 2, 1, 3]),
    "random degrees": functools.partial(MADE, 5, 3, hidden=(16, 16), residual=True, degrees="random", seed=1),
    "narrow": functools.partial(MADE, 7, 2, hidden=(3, 2), degrees="even"),
    "groups": functools.partial(MADE, 5, 3, hidden=(16, 11), order=[[3, 0], [4], [1, 2]]),
    "residual groups": functools.partial(MADE, 5, 3, hidden=(16, 16), residual=True, order=[[3, 0], [4], [1, 2]]),
    "one feature": functools.partial(MADE, 1, 3, hidden=(8, 8), context=C),
}
EVERY = pytest.mark.parametrize("build", NETS.values(), ids=NETS)


@pytest.fixture(autouse=True)
def _one_thread(one_thread) -> None:
    """Small tensors: a second thread costs more than it gives."""


def sees(net: MADE) -> Tensor:
    """Which feature's parameters move with which feature, [D, D], by the Jacobian at a few points."""
    x, context = inputs(net, 20)
    J = torch.autograd.functional.jacobian(lambda v: net(v, context).sum(0), x)
    return J.unflatten(0, (net.features, -1)).abs().amax((1, 2)) > 0


def assert_autoregressive(net: MADE) -> None:
    """No feature sees a later one; whatever hidden units allow for, it does see."""
    order = net.order.tolist()
    seen = sees(net)[order][:, order]
    assert torch.equal(seen, seen.tril(-1))
    if net.features > 1:
        assert seen[-1].any()


# ---- against nflows ----


@pytest.mark.parametrize("D", [1, 2, 5])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("context", [0, C])
@pytest.mark.parametrize("activation", [F.relu, torch.tanh])
def test_is_nflows(D, residual, context, activation) -> None:
    """One seed, the same weights; same masks, same values; its state dict loads, under another order too."""
    made = pytest.importorskip("nflows.transforms.made", reason="nflows is not installed")
    torch.manual_seed(0)
    theirs = made.MADE(
        D, 13, context or None, num_blocks=2, output_multiplier=3, use_residual_blocks=residual, activation=activation
    ).double()
    settings = {"hidden": (13,) * (2 if residual else 3), "residual": residual, "context": context}
    torch.manual_seed(0)
    ours = MADE(D, 3, activation=activation, **settings).double()
    for (a, p), (b, q) in zip(theirs.named_parameters(), ours.named_parameters(), strict=True):
        assert a == b and torch.equal(p, q)
    loaded = MADE(D, 3, activation=activation, order="random", degrees="random", **settings).double()
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(0, 0.5)
    for net in (ours, loaded):
        net.load_state_dict(theirs.state_dict())
        assert net.order.tolist() == list(range(D))
        x, c = torch.randn(9, D).double(), torch.randn(9, C).double() if context else None
        torch.testing.assert_close(net(x, c), theirs(x, c), rtol=1e-12, atol=1e-13)
        for name, layer in theirs.named_modules():
            if isinstance(layer, made.MaskedLinear):
                mine = net.get_submodule(name)
                assert torch.equal(mine.plan.mask(torch.empty(0)), layer.mask)


def test_dropout_drops_as_nflows() -> None:
    made = pytest.importorskip("nflows.transforms.made", reason="nflows is not installed")
    for residual in (False, True):
        theirs = made.MADE(5, 13, C, 2, 3, use_residual_blocks=residual, dropout_probability=0.4).double()
        ours = MADE(5, 3, (13,) * (2 if residual else 3), residual=residual, context=C, dropout=0.4).double()
        ours.load_state_dict(theirs.state_dict())
        x, c = torch.randn(9, 5).double(), torch.randn(9, C).double()
        outs = []
        for net in (theirs, ours):
            torch.manual_seed(4)
            outs.append(net(x, c))
        torch.testing.assert_close(outs[1], outs[0], rtol=1e-12, atol=1e-13)
        assert not torch.allclose(ours(x, c), outs[1])
        torch.testing.assert_close(ours.eval()(x, c), theirs.eval()(x, c), rtol=1e-12, atol=1e-13)


# ---- masks and orders ----


@EVERY
def test_autoregressive(build) -> None:
    assert_autoregressive(make(build))


@pytest.mark.parametrize(
    ("order", "wanted"), [("natural", [0, 1, 2, 3]), ("reversed", [3, 2, 1, 0]), ([2, 0, 3, 1],) * 2]
)
def test_order(order, wanted) -> None:
    """Wide enough, every feature sees all before it."""
    for given in (order, torch.tensor(order) if isinstance(order, list) else order):
        net = make(functools.partial(MADE, 4, 2, hidden=(40, 40), activation="tanh", order=given))
        assert net.order.tolist() == wanted
        assert torch.equal(sees(net)[wanted][:, wanted], torch.ones(4, 4).tril(-1).bool())


def test_groups_see_all_before_theirs_and_none_of_their_own() -> None:
    net = make(functools.partial(MADE, 5, 2, hidden=(40, 40), activation="tanh", order=[[3, 0], [4], [1, 2]]))
    before = {0: [], 3: [], 4: [0, 3], 1: [0, 3, 4], 2: [0, 3, 4]}
    for d, seen in enumerate(sees(net)):
        assert seen.nonzero().flatten().tolist() == before[d]
    net.shuffle_order(1)
    assert sorted(net.plan.groups) == [(0, 3), (1, 2), (4,)]
    again = MADE(5, 2, hidden=(40, 40), activation="tanh").double()
    again.load_state_dict(net.state_dict())
    assert again.plan.groups == net.plan.groups


def test_random_order_has_a_seed() -> None:
    one, two = (MADE(30, 1, order="random", seed=s).order.tolist() for s in (7, torch.Generator().manual_seed(7)))
    assert one == two != list(range(30)) and sorted(one) == list(range(30))


@pytest.mark.parametrize("degrees", ["sequential", "even", "random"])
def test_degrees(degrees) -> None:
    D = 10
    net = MADE(D, 2, (37, 41), degrees=degrees)
    for layer in (net.initial_layer, net.blocks[0].linear):
        counts = torch.bincount(layer.degrees, minlength=D)
        assert counts[0] == 0 and len(counts) == D
        if degrees != "random":
            assert counts[1:].max() - counts[1:].min() <= 1
    narrow = MADE(D, 2, (4,), degrees="even").initial_layer.degrees.tolist()
    assert narrow == [1, 3, 5, 7]


@EVERY
def test_redrawn_masks_and_orders(build) -> None:
    net = make(build)
    x, context = inputs(net, 6)
    weights = [p.clone() for p in net.parameters()]
    before, order = net(x, context), net.order.tolist()
    net.resample_masks(seed=5)
    assert net.order.tolist() == order
    assert_autoregressive(net)
    net.shuffle_order(seed=6)
    assert_autoregressive(net)
    if net.features > 1:
        assert net.order.tolist() != order and not torch.equal(net(x, context), before)
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), weights, strict=True))
    again = make(build)
    again.resample_masks(torch.Generator().manual_seed(5))
    again.shuffle_order(torch.Generator().manual_seed(6))
    assert torch.equal(again(x, context), net(x, context))


@EVERY
def test_masks_come_with_the_weights(build) -> None:
    net, other = make(build), make(build, seed=1)
    net.shuffle_order(1)
    net.resample_masks(1)
    x, context = inputs(net, 6)
    out = net(x, context)
    other.load_state_dict(net.state_dict())
    with torch.device("meta"):
        empty = build()
    empty.load_state_dict(net.state_dict(), assign=True)
    for copied in (other, empty, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(copied(x, context), out) and copied.order.tolist() == net.order.tolist()
    cloned = copy.deepcopy(net)
    cloned.shuffle_order(2)
    assert torch.equal(net(x, context), out)


# ---- what every net does ----


@EVERY
def test_layer_by_layer_is_the_same(build) -> None:
    """Hooks, dropout in training and a compiler take the layers one by one."""
    net = make(build)
    x, context = inputs(net, 6)
    wanted, seen = net(x, context), []
    handle = net.initial_layer.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(net(x, context), wanted, rtol=1e-13, atol=1e-13)
    assert seen == [1]
    handle.remove()
    torch._dynamo.reset()
    found = torch.compile(net, backend="aot_eager", fullgraph=True)(x, context)
    torch.testing.assert_close(found, wanted)


def test_parametrised_layers_follow() -> None:
    net = make(NETS["plain"])
    x, _ = inputs(net, 6)
    wanted = net(x)
    nn.utils.parametrizations.weight_norm(net.initial_layer)
    torch.testing.assert_close(net(x), wanted)
    with torch.no_grad():
        net.initial_layer.parametrizations.weight.original0.mul_(2)
    assert not torch.allclose(net(x), wanted)


@EVERY
def test_leading_dims_and_context(build) -> None:
    net = make(build)
    x, context = inputs(net, 2, 3)
    out = net(x, context)
    flat = net(x.flatten(0, 1), None if context is None else context.flatten(0, 1))
    torch.testing.assert_close(out.flatten(0, 1), flat)
    torch.testing.assert_close(net(x[0, 0], None if context is None else context[0, 0]), flat[0])
    assert net(x[:0], None if context is None else context[:0]).shape == (0, 3, out.shape[-1])
    if context is not None:
        for shape in ((C,), (1, C), (3, C), (2, 1, C)):
            given = torch.randn(shape, dtype=torch.float64)
            torch.testing.assert_close(net(x, given), net(x, given.expand(2, 3, C).contiguous()))


@EVERY
def test_gradients(build) -> None:
    net = make(build)
    x, context = inputs(net, 3)
    leaves = [t.requires_grad_() for t in (x, context, *net.parameters()) if t is not None]
    assert torch.autograd.gradcheck(lambda *_: net(x, context), leaves, fast_mode=True)
    net(x, context).sin().sum().backward()
    for layer in net.modules():
        if hasattr(layer, "plan") and hasattr(layer, "weight"):
            mask = layer.plan.mask(layer.weight).bool()
            assert (layer.weight.grad[~mask] == 0).all()


@EVERY
def test_start_at(build) -> None:
    net = build()
    values = torch.randn(net.features * net.params_per_feature)
    net.start_at(values)
    x, context = inputs(net, 20)
    out = net(x.float(), None if context is None else context.float())
    assert (out - values).abs().max() < 0.05


def test_one_feature_depends_on_the_context_only() -> None:
    net = make(NETS["one feature"])
    x, context = inputs(net, 6)
    assert torch.equal(net(x, context), net(x + 1, context))
    assert not torch.allclose(net(x, context + 1), net(x, context))
    plain = MADE(1, 2)
    assert torch.equal(plain(torch.randn(4, 1)), plain(torch.zeros(4, 1)))


def test_activations() -> None:
    for name, function, cls in (("relu", F.relu, nn.ReLU), ("silu", F.silu, nn.SiLU), ("tanh", torch.tanh, nn.Tanh)):
        assert MADE(2, 1, activation=function).activation == MADE(2, 1, activation=cls).activation == name


def test_repr() -> None:
    assert "MADE(\n  features=3, params_per_feature=2, order=[2, 1, 0]" in repr(MADE(3, 2, order="reversed"))


X = torch.zeros(4, 5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MADE(0, 3), "features must be at least 1, got 0"),
        (lambda: MADE(3, 0), "params_per_feature must be at least 1, got 0"),
        (lambda: MADE(3, 2, ()), r"hidden must be at least one width from 1 on, got \(\)"),
        (lambda: MADE(3, 2, (4, 0)), r"hidden must be at least one width from 1 on, got \(4, 0\)"),
        (lambda: MADE(3, 2, (4, 5), residual=True), r"hidden must be equal widths .*, got \(4, 5\)"),
        (lambda: MADE(3, 2, activation="selu"), "activation must be one of .*, got 'selu'"),
        (lambda: MADE(3, 2, activation=torch.sin), "activation must be one of .*, got <built-in"),
        (lambda: MADE(3, 2, order="sorted"), "order must be \"natural\", .*, got 'sorted'"),
        (lambda: MADE(3, 2, order=[[0], []]), r"order must be groups of features, none empty, got \[\[0\], \[\]\]"),
        (lambda: MADE(3, 2, order=[[0], [0, 1]]), "order must hold each of 0 to 2 once"),
        (lambda: MADE(3, 2, order=[0, 2, 2]), r"order must hold each of 0 to 2 once, got \[0, 2, 2\]"),
        (lambda: MADE(3, 2, degrees="odd"), "degrees must be \"sequential\", .*, got 'odd'"),
        (lambda: MADE(5, 2)(X, X), r"context must be None where context=0, got \[4, 5\]"),
        (lambda: MADE(5, 2, context=2)(X), r"context must be \[\.\.\., 2\], got None"),
        (lambda: MADE(5, 2, context=5)(X, X[:3]), r"context must broadcast to \[4, 5\], got \[3, 5\]"),
    ],
)
def test_errors(build, message) -> None:
    with pytest.raises(ValueError, match="nets.MADE: " + message):
        build()

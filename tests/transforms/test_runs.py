"""Layers of a `Composite` as one op: the bits of the layers one by one, whatever became of their modules meanwhile."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from flowkernels import _native, flows, use_backend
from flowkernels.nets import MADE, MLP, ResidualNet, reading
from flowkernels.transforms import (
    RQS,
    Affine,
    Autoregressive,
    BatchNorm,
    Composite,
    Coupling,
    DiagonalScale,
    Permutation,
    runs,
)
from flowkernels.transforms import composite as module
from tests.runs import WHERE_THEY_RUN, drawn, ran

__all__ = ["ran"]  # a fixture
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    WHERE_THEY_RUN,
]
D, B = 5, 37


def one_by_one(call: Callable[[], Any]) -> Any:
    """What a call gives where no layers run as one op."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "pieces", lambda *_: None)
        return call()


def filled(layer: nn.Module, seed: int = 0) -> Any:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    return layer


def composite(context: int = 0, dropout: float = 0.0) -> Composite:
    """Two couplings, orders and two autoregressive layers."""
    torch.manual_seed(0)
    more: dict[str, Any] = {"context": context, "dropout": dropout}
    return filled(Composite([
        Permutation.random(D, seed=1),
        Coupling([0, 1, 0, 1, 1], lambda a, b: ResidualNet(a, b, hidden=12, **more), RQS(bins=4)),
        Permutation.reverse(D),
        Coupling([1, 0, 1, 0, 0], lambda a, b: MLP(a, b, hidden=(12, 9), **more), Affine("tanh")),
        Autoregressive(MADE(D, 2, (11, 10), **more), Affine("softplus")),
        Permutation.random(D, seed=2),
        Autoregressive(MADE(D, 11, (12, 12), residual=True, **more), RQS(bins=4)),
    ]))  # fmt: skip


def results(layer: Any, x: Tensor, context: Tensor | None = None, inverse: bool = False) -> list[Tensor]:
    """Values, and gradients of x, of the context and of every parameter that wants one."""
    x = x.detach().requires_grad_()
    inputs = [x, *(p for p in layer.parameters() if p.requires_grad)]
    if context is not None:
        context = context.detach().requires_grad_()
        inputs.append(context)
    y, ladj = (layer.inverse if inverse else layer)(x, context)
    grads = torch.autograd.grad((y * y.detach().cos()).sum() - ladj.sum(), inputs, allow_unused=True)
    return [y.detach(), ladj.detach(), *(torch.zeros(()) if g is None else g for g in grads)]


def assert_same(a: list[Tensor], b: list[Tensor]) -> None:
    for i, (s, t) in enumerate(zip(a, b, strict=True)):
        assert torch.equal(s, t), f"result {i}"


def assert_close(a: list[Tensor], b: list[Tensor]) -> None:
    """Of sums of ladj in another order: a run adds up its own first."""
    for s, t in zip(a, b, strict=True):
        torch.testing.assert_close(s, t, rtol=2e-5, atol=2e-5 * max(1.0, t.abs().max().item()) if t.numel() else 0)


def assert_as_one_by_one(layer: Any, *args: Any, is_one: bool = True, **more: Any) -> None:
    """The same bits where all layers are one run."""

    def seeded() -> list[Tensor]:
        torch.manual_seed(3)
        return results(layer, *args, **more)

    (assert_same if is_one else assert_close)(seeded(), one_by_one(seeded))


# ---- which layers run as one ----


@pytest.mark.parametrize("rows", [(B,), (1,), (0,), (), (3, 7)])
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_bits_of_the_layers_one_by_one(rows, context, precision, ran) -> None:
    layer = composite(context).to(precision)
    c = drawn(*rows, context, seed=2).to(precision) if context else None
    assert_as_one_by_one(layer, drawn(*rows, D).to(precision), c)
    assert ran == [4]


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("rows", [(B,), (1,), (0,), (3, 7)])
def test_backwards_autoregressive_layers_are_sweeps(rows, context, ran) -> None:
    layer = composite(context)
    c = drawn(*rows, context, seed=2) if context else None
    assert_as_one_by_one(layer, drawn(*rows, D), c, inverse=True)
    assert ran == [4]
    c = drawn(B, context, seed=2) if context else None
    y, _ = layer(drawn(B, D), c)
    torch.testing.assert_close(layer.inverse(y, c)[0], drawn(B, D), rtol=1e-3, atol=1e-3)


def test_a_broadcast_context(ran) -> None:
    assert_as_one_by_one(composite(2), drawn(3, B, D), drawn(B, 2))
    assert_as_one_by_one(composite(2), drawn(3, B, D), drawn(1, 2))
    assert ran == [4, 4]


MODELS = {
    "Real NVP": lambda: flows.RealNVP(D, transforms=3, hidden=(16, 16)),
    "NSF": lambda: flows.NSF(D, transforms=3, hidden=(16, 16)),
    "NSF, random orders": lambda: flows.NSF(D, transforms=3, hidden=(16, 16), linear="permutation"),
    "autoregressive NSF": lambda: flows.NSF(D, transforms=3, hidden=(16, 16), autoregressive=True),
    "MAF": lambda: flows.MAF(D, transforms=3, hidden=(16, 16), linear="reverse"),
    "NICE": lambda: flows.NICE(D, transforms=3, hidden=(16, 16)),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name, ran) -> None:
    flow = filled(MODELS[name]())

    def step() -> list[Tensor]:
        flow.zero_grad()
        z, ladj = flow.transform(drawn(B, D))
        log_p = flow.base.log_prob(z) + ladj
        log_p.mean().backward()
        return [log_p.detach(), *(p.grad.clone() for p in flow.parameters())]

    # What stands outside of a run is torch's, whose sums over rows go by how memory is aligned.
    outside = [p for m in flow.modules() if isinstance(m, DiagonalScale) for p in m.parameters()]
    is_inside = [True, *(all(p is not o for o in outside) for p in flow.parameters())]
    found, wanted = step(), one_by_one(step)
    for check, inside in ((assert_same, True), (assert_close, False)):
        check(*([t for t, i in zip(of, is_inside, strict=True) if i == inside] for of in (found, wanted)))
    assert ran == [3]


@pytest.mark.parametrize("name", MODELS)
def test_samples(name, ran) -> None:
    flow = filled(MODELS[name]())

    def draw() -> Tensor:
        torch.manual_seed(0)
        return flow.sample(B)

    assert torch.equal(draw(), one_by_one(draw)) and ran == [3]


def test_an_inverse_autoregressive_flow(ran) -> None:
    """Its layers are turned round: sampling is the one-pass direction, densities are sweeps."""
    flow = filled(flows.IAF(D, transforms=3, hidden=(16, 16)))
    assert_as_one_by_one(flow.transform, drawn(B, D), inverse=True)
    assert_as_one_by_one(flow.transform, drawn(B, D))
    assert ran == [3, 3]
    given = drawn(B, D)
    torch.testing.assert_close(flow.log_prob(given), one_by_one(lambda: flow.log_prob(given)))
    assert ran == [3, 3, 3]


def test_what_is_no_layer_of_the_op_splits_the_run(ran) -> None:
    layer = composite()
    parts: list[Any] = [*layer.transforms]
    layer = Composite([*parts[:3], BatchNorm(D).eval(), *parts[3:]])
    assert_as_one_by_one(layer, drawn(B, D), is_one=False)
    assert ran == [1, 3]


def test_nets_that_are_too_large_split_the_run(ran, monkeypatch) -> None:
    monkeypatch.setattr(runs, "_MOST_WEIGHTS", 2000)
    layer = composite()
    assert_as_one_by_one(layer, drawn(B, D), is_one=False)
    assert len(ran) > 1 and sum(ran) == 4


def test_where_the_op_cannot_run(ran) -> None:
    layer, x = composite(), drawn(B, D)
    with torch.no_grad():
        expected = layer(x)
        assert len(ran) == 1
        with use_backend("reference"):
            torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            y, ladj = layer(x)
        assert y.isfinite().all() and ladj.isfinite().all()
        torch.testing.assert_close(torch.func.vmap(layer)(x), expected, rtol=1e-4, atol=1e-4)
        assert copy.deepcopy(layer).to(torch.bfloat16)(x.to(torch.bfloat16))[0].dtype == torch.bfloat16
        assert layer.to("meta")(x.to("meta"))[0].is_meta
    assert len(ran) == 1


def test_one_op_is_one_node(ran) -> None:
    y, ladj = composite()(drawn(B, D))
    assert type(y.grad_fn).__name__ == "flowkernels::flowBackward" and y.grad_fn is ladj.grad_fn


def test_under_a_compiler() -> None:
    layer, x = composite().double(), drawn(B, D).double()
    expected = layer(x)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-9, atol=1e-9)


def test_errors_are_the_layers(ran) -> None:
    layer, x = composite(), drawn(B, D)
    layer(x)
    with pytest.raises(ValueError, match=r"x must be \[..., 5\], got \[37, 4\]"):
        layer(x[:, :4])
    with pytest.raises(TypeError, match="must be of the dtype of the weights"):
        layer(x.double())
    with pytest.raises(ValueError, match="context must be None where context=0"):
        layer(x, drawn(B, 2))
    with pytest.raises(ValueError, match=r"context must be \[..., 2\], got None"):
        composite(2)(x)
    with pytest.raises(ValueError, match="context must broadcast to"):
        composite(2)(x, drawn(B, 3))
    assert len(ran) == 1


# ---- what is kept follows the modules ----


def _step(layer: Any) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    one_by_one(lambda: (layer(drawn(B, D))[1].sum()).backward())
    optimizer.step()
    layer.zero_grad()


def _load(layer: Any) -> None:
    other = filled(composite(), seed=7)
    other.transforms[0] = Permutation.random(D, seed=9)
    other.transforms[1].split = Coupling([1, 0, 0, 1, 1], MLP, RQS(bins=4)).split
    order = [4, 2, 0, 1, 3]
    other.transforms[4].conditioner = filled(MADE(D, 2, (11, 10), order=order, seed=3))
    layer.load_state_dict(other.state_dict())
    assert layer.transforms[4].conditioner.order.tolist() == order


def _of(layer: Any) -> Any:
    return layer.transforms[3].conditioner


def _write(layer: Any) -> None:
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(1.5)


def _write_unseen(layer: Any) -> None:
    for p in layer.parameters():
        p.data.mul_(1.5)


def _replace_data(layer: Any) -> None:
    for p in layer.parameters():
        p.data = p.data * 0.5


def _replace_data_with_a_view(layer: Any) -> None:
    for p in layer.parameters():
        wide = torch.stack([p.data, p.data + 1], -1)
        p.data = wide[..., 0] if p.dim() == 1 else wide[..., 0].t().contiguous().t()
        assert p.dim() == 1 or not p.is_contiguous()


def _negate_in_place(layer: Any) -> None:
    """The same address, sizes and strides, with another meaning."""
    for p in layer.parameters():
        p.data = torch.ops.aten._neg_view(p.data)


def _replace_parameter(layer: Any) -> None:
    net = _of(layer)
    net.hidden_layers[0].weight = nn.Parameter(net.hidden_layers[0].weight.detach() * 2)


def _replace_module(layer: Any) -> None:
    net = _of(layer)
    net.hidden_layers[1] = nn.Linear(12, 9)


def _replace_by_another(layer: Any) -> None:
    net = _of(layer)
    net.hidden_layers[1] = nn.Sequential(net.hidden_layers[1])


def _replace_layer(layer: Any) -> None:
    layer.transforms[2] = Permutation.random(D, seed=5)


def _append(layer: Any) -> None:
    layer.transforms.append(filled(Coupling([0, 1, 1, 0, 1], MLP, Affine("exp")), seed=4))


def _other_map(layer: Any) -> None:
    layer.transforms[1].univariate = RQS(bins=4, tail_bound=2.0)


def _other_activation(layer: Any) -> None:
    _of(layer).activation = torch.tanh


def _unknown_activation(layer: Any) -> None:
    _of(layer).activation = torch.sin


def _shuffle_order(layer: Any) -> None:
    layer.transforms[4].conditioner.shuffle_order(seed=5)


def _resample_masks(layer: Any) -> None:
    layer.transforms[6].conditioner.resample_masks(seed=5)


def _write_order(layer: Any) -> None:
    order = torch.tensor([1, 0, 2, 4, 3])
    layer.transforms[0].order.copy_(order)
    layer.transforms[0].inverse_order.copy_(order)


def _freeze(layer: Any) -> None:
    for p in layer.transforms[1].parameters():
        p.requires_grad_(False)


def _freeze_all(layer: Any) -> None:
    layer.requires_grad_(False)


def _hook(layer: Any) -> None:
    _of(layer).hidden_layers[0].register_forward_hook(lambda m, i, o: 2 * o)


def _hook_of_layer(layer: Any) -> None:
    layer.transforms[4].register_forward_hook(lambda m, i, o: (2 * o[0], o[1]))


def _pre_hook(layer: Any) -> None:
    layer.transforms[6].conditioner.register_forward_pre_hook(lambda m, i: (i[0] * 0.5, *i[1:]))


def _weight_norm(layer: Any) -> None:
    torch.nn.utils.parametrizations.weight_norm(_of(layer).hidden_layers[0])


def _prune(layer: Any) -> None:
    prune.l1_unstructured(_of(layer).hidden_layers[0], "weight", amount=0.5)


def _own_forward(layer: Any) -> None:
    net = _of(layer)
    forward = net.forward
    net.forward = lambda *a: 2 * forward(*a)


def _own_class(layer: Any) -> None:
    class Doubled(MLP):
        def forward(self, x, context=None):
            return 2 * super().forward(x, context)

    _of(layer).__class__ = Doubled


CHANGES = {
    f.__name__.strip("_"): f
    for f in (
        _step, _load, _write, _write_unseen, _replace_data, _replace_data_with_a_view, _negate_in_place,
        _replace_parameter, _replace_module, _replace_by_another, _replace_layer, _append, _other_map,
        _other_activation, _unknown_activation, _shuffle_order, _resample_masks, _write_order, _freeze, _freeze_all,
        _hook, _hook_of_layer, _pre_hook, _weight_norm, _prune, _own_forward, _own_class,
    )
}  # fmt: skip


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change, inverse, ran) -> None:
    """After a call the run is kept; what the modules became since is what runs."""
    layer, x = composite(), drawn(B, D)
    before = results(layer, x, inverse=inverse)
    CHANGES[change](layer)
    after = results(layer, x, inverse=inverse)
    assert_close(after, one_by_one(lambda: results(layer, x, inverse=inverse)))
    if change not in ("own_forward", "prune"):  # a copy of the one is bound to the original, of the other there is none
        fresh = copy.deepcopy(layer)
        assert_close(after, one_by_one(lambda: results(fresh, x, inverse=inverse)))
    same = ("freeze", "freeze_all", "replace_data_with_a_view", *(["hook_of_layer"] if inverse else []))
    if change not in same:
        assert not torch.equal(after[0], before[0]) or not torch.equal(after[1], before[1])
    assert len(ran) >= 2


def test_a_change_of_dtype_is_seen(ran) -> None:
    layer, x = composite(), drawn(B, D)
    results(layer, x)
    assert_as_one_by_one(layer.double(), x.double())
    assert_as_one_by_one(layer.float(), x)
    layer.transforms[3].double()
    with pytest.raises(TypeError, match="must be of the dtype of the weights"):
        layer(x)
    assert ran == [4, 4, 4]


def test_a_hook_that_goes_is_seen(ran) -> None:
    layer, x = composite(), drawn(B, D)
    results(layer, x)
    handle = _of(layer).register_forward_hook(lambda m, i, o: 2 * o)
    assert_as_one_by_one(layer, x, is_one=False)
    handle.remove()
    assert_as_one_by_one(layer, x)
    assert ran == [4, 1, 2, 4]


def test_hooks_of_all_modules_are_called(ran) -> None:
    layer, x = composite(), drawn(B, D)
    layer(x)
    seen: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, i, o: seen.append(type(m).__name__))
    layer(x)
    handle.remove()
    assert {"Coupling", "Autoregressive", "MLP", "MADE", "Permutation"} <= {*seen} and len(ran) == 1
    layer(x)
    assert len(ran) == 2


@pytest.mark.parametrize("context", [0, 2])
def test_dropout(context, ran) -> None:
    layer, x = composite(context, dropout=0.5), drawn(B, D)
    c = drawn(B, context, seed=2) if context else None
    for train in (True, False, True, False):
        layer.train(train)
        assert_as_one_by_one(layer, x, c)
    assert ran == [4, 4]
    for block in layer.modules():
        if isinstance(block, nn.Dropout):
            block.train()
    assert_as_one_by_one(layer, x, c)
    assert ran == [4, 4]


def test_inference_first_then_training(ran) -> None:
    with torch.inference_mode():
        layer = composite()
        expected = layer(drawn(B, D))
    layer = composite()
    with torch.inference_mode():
        assert_close([*layer(drawn(B, D))], [*expected])
    assert_as_one_by_one(layer, drawn(B, D))
    assert ran[-2:] == [4, 4]


def test_copies_and_pickles(ran) -> None:
    layer, x = composite(), drawn(B, D)
    expected = results(layer, x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_same(results(twin, x), expected)
        _write(twin)
        assert not torch.equal(results(twin, x)[0], expected[0])
    assert_same(results(layer, x), expected)


def test_what_is_kept_keeps_nothing_alive() -> None:
    layer = composite()
    results(layer, drawn(B, D))
    gone = [weakref.ref(layer), weakref.ref(_of(layer)), weakref.ref(next(layer.parameters()))]
    del layer
    gc.collect()
    assert [r() for r in gone] == [None] * 3


def test_under_fused_adam_it_learns() -> None:
    """A loop of training, as people write it."""
    torch.manual_seed(0)
    flow, x = flows.NSF(2, transforms=4, hidden=(16, 16)), drawn(400, 2)
    x[:, 1] += x[:, 0].square()
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3, fused=True)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = -flow.log_prob(x).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.15, losses[::20]


# ---- the walk, in C++ and in Python ----


def _entered() -> tuple[reading.Walk, Any]:
    layer = composite(dropout=0.5).eval()
    walk = reading.Walk()
    for name, child in layer.named_modules():
        parameters = tuple(child._parameters)
        buffers = tuple(n for n, b in child._buffers.items() if b is not None)
        attributes = tuple(n for n in ("activation", "training", "p", "univariate", "plan", "absent") if n != name)
        assert walk.enter(child, parameters=parameters, attributes=attributes, buffers=buffers)
    return walk, layer


_SEEN = [c for c in CHANGES if c not in ("step", "write", "write_unseen", "replace_data", "replace_data_with_a_view",
                                         "negate_in_place", "freeze", "freeze_all")]  # fmt: skip


@pytest.mark.parametrize("change", [*_SEEN, "train", "delete", "buffer", "nothing"])
def test_both_walks_say_the_same(change) -> None:
    C: Any = _native.C
    walk, layer = _entered()
    assert C.walk_holds(walk.modules) and reading._still_holds(walk.modules)
    if change == "train":
        layer.transforms[1].conditioner.train()
    elif change == "delete":
        del layer.transforms[5]
    elif change == "buffer":
        layer.transforms[0].order = layer.transforms[0].order.clone()
    elif change != "nothing":
        CHANGES[change](layer)
    expected = change == "nothing"
    assert C.walk_holds(walk.modules) is reading._still_holds(walk.modules) is expected


@pytest.mark.parametrize("change", ["write", "replace", "data", "requires_grad", "delete", "nothing"])
def test_parameters_that_do_not_train_are_watched_as_buffers_are(change) -> None:
    C: Any = _native.C
    module, walk = nn.Module(), reading.Walk()
    module.fixed, module.trained = nn.Parameter(torch.ones(3), requires_grad=False), nn.Parameter(torch.ones(3))
    assert not walk.enter(module, frozen=("trained",)) and not walk.enter(module, frozen=("absent",))
    assert walk.enter(module, frozen=("fixed",))
    assert C.walk_holds(walk.modules) and reading._still_holds(walk.modules)
    if change == "write":
        module.fixed.mul_(2)
    elif change == "replace":
        module.fixed = nn.Parameter(torch.ones(3), requires_grad=False)
    elif change == "data":
        module.fixed.data = torch.zeros(3)
    elif change == "requires_grad":
        module.fixed.requires_grad_()
    elif change == "delete":
        del module.fixed
    assert C.walk_holds(walk.modules) is reading._still_holds(walk.modules) is (change == "nothing")


def test_a_walk_whose_modules_are_gone() -> None:
    C: Any = _native.C
    walk, layer = _entered()
    del layer
    gc.collect()
    assert not C.walk_holds(walk.modules) and not reading._still_holds(walk.modules)


@pytest.mark.parametrize("given", [[3], [()], [(None,) * 7], [(None, None, [3], [], [], [], False)]])
def test_no_walk(given) -> None:
    C: Any = _native.C
    with pytest.raises(TypeError, match="modules must be those of a Walk, got others"):
        C.walk_holds(given)


def test_relu_is_the_activation_that_is_named() -> None:
    """`F.relu`, `torch.relu` and the module are one."""
    x = drawn(B, D)
    found = []
    for activation in (F.relu, torch.relu, nn.ReLU()):
        layer = composite()
        _of(layer).activation = activation
        found.append(layer(x)[0])
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])

"""Layers by themselves as one op, by what is kept of them: they follow whatever their modules become."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowkernels import compat
from flowkernels.nets import MADE, MLP, ResidualNet
from flowkernels.ops.flow_layer import op
from flowkernels.transforms import RQS, Affine, Autoregressive, Coupling, parts
from tests.runs import WHERE_THEY_RUN, drawn
from tests.transforms import test_runs
from tests.transforms.test_runs import CHANGES, assert_close, assert_same, filled, one_by_one, results

pytestmark = [pytest.mark.usefixtures("one_thread"), WHERE_THEY_RUN]
B, D = 9, 5


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The dtypes of x of the calls that ran as one op."""
    found: list[Any] = []
    run = op.run

    def seen(backend: Any, spec: Any, tensors: Any) -> Any:
        found.append(tensors[0].dtype)
        return run(backend, spec, tensors)

    monkeypatch.setattr(op, "run", seen)
    return found


def _coupling(net: Any = MLP, **more: Any) -> Coupling:
    torch.manual_seed(0)
    return filled(Coupling([0, 1, 0, 1, 1], lambda a, b: net(a, b, hidden=12, **more), RQS(bins=4)))


def _autoregressive(**more: Any) -> Autoregressive:
    torch.manual_seed(0)
    return filled(Autoregressive(MADE(D, 2, (11, 10), **more), Affine("softplus")))


def _nflows(kind: str) -> Any:
    nf = pytest.importorskip("nflows.transforms")
    from nflows.nn.nets import ResidualNet as Theirs

    torch.manual_seed(0)
    mask, spline = [0, 1, 0, 1, 1], {"num_bins": 4, "tails": "linear", "tail_bound": 3.0}

    def net(n_in: int, n_out: int) -> Any:
        return Theirs(n_in, n_out, 12)

    layer = {
        "coupling": lambda: nf.PiecewiseRationalQuadraticCouplingTransform(
            mask, lambda i, o: Theirs(i, o, 12), **spline
        ),
        "unconditional": lambda: nf.PiecewiseRationalQuadraticCouplingTransform(
            mask, net, apply_unconditional_transform=True, **spline
        ),
        "affine coupling": lambda: nf.AffineCouplingTransform(mask, net),
        "made": lambda: nf.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(D, 12, **spline),
    }[kind]()
    assert compat.accelerate(layer).accelerated
    return filled(layer)


LAYERS: dict[str, Callable[[], Any]] = {
    "MLP": _coupling,
    "ResidualNet": lambda: _coupling(ResidualNet),
    "MADE": _autoregressive,
    "nflows, coupling": lambda: _nflows("coupling"),
    "nflows, unconditional": lambda: _nflows("unconditional"),
    "nflows, affine coupling": lambda: _nflows("affine coupling"),
    "nflows, made": lambda: _nflows("made"),
}
EVERY = pytest.mark.parametrize("name", LAYERS)


def read_anew(layer: Any, *args: Any, **more: Any) -> list[Tensor]:
    """What a call gives of which nothing is kept."""
    parts.forget()
    return results(layer, *args, **more)


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change, inverse) -> None:
    """Of the layers of a composite, each of which is called."""
    layer, x = test_runs.composite(), drawn(B, D)
    one_by_one(lambda: results(layer, x, inverse=inverse))
    CHANGES[change](layer)
    after = one_by_one(lambda: results(layer, x, inverse=inverse))
    assert_same(after, one_by_one(lambda: read_anew(layer, x, inverse=inverse)))


@EVERY
def test_it_is_one_op_and_read_once(name, ran, monkeypatch) -> None:
    layer, x = LAYERS[name](), drawn(B, D)
    first = results(layer, x)
    assert len(ran) == 1
    with monkeypatch.context() as patch:
        patch.setattr(parts, "_read_alone", None)
        assert_same(results(layer, x), first)
    assert_same(read_anew(layer, x), first)
    assert_same(results(copy.deepcopy(layer), x), first)
    assert len(ran) == 4


@EVERY
def test_dtypes(name, ran) -> None:
    layer, x = LAYERS[name](), drawn(B, D)
    layer(x)
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        layer.to(dtype)
        y, ladj = layer(x.to(dtype))
        assert y.dtype is dtype and ladj.dtype is torch.promote_types(dtype, torch.float32)
    assert ran == [torch.float32, torch.float64, torch.bfloat16, torch.float32]


@EVERY
def test_its_own_hooks_have_had_their_way(name, ran) -> None:
    layer, x = LAYERS[name](), drawn(B, D)
    y, ladj = layer(x)
    layer.register_forward_hook(lambda m, i, o: (2 * o[0], o[1]))
    parts.forget()
    assert_same([*layer(x)], [2 * y, ladj])
    assert len(ran) == 2


@EVERY
def test_hooks_inside_of_it_are_called(name, ran) -> None:
    layer, x = LAYERS[name](), drawn(B, D)
    layer(x)
    called: list[Any] = []
    inner = [m for m in layer.modules() if isinstance(m, nn.Linear) and not list(m.children())]
    handle = inner[0].register_forward_hook(lambda *_: called.append(1))
    layer(x)
    layer(x)
    assert len(called) == 2 and len(ran) == 1
    handle.remove()
    layer(x)
    assert len(called) == 2 and len(ran) == 2


@EVERY
def test_where_no_kernel_runs(name, ran) -> None:
    layer, x = LAYERS[name](), drawn(B, D)
    expected = [t.detach() for t in layer(x)]
    mapped = torch.func.vmap(layer)(x.view(3, 3, D))
    assert_close([t.flatten(0, 1) for t in mapped], expected)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
    assert copy.deepcopy(layer).to("meta")(x.to("meta"))[0].is_meta
    assert len(ran) == 1
    assert_same([*layer(x)], expected)


@pytest.mark.parametrize("name", [name for name in LAYERS if name.startswith("nflows")])
def test_a_setting_that_is_edited_is_seen(name) -> None:
    layer, x = LAYERS[name](), 2 * drawn(B, D)
    before = layer(x)
    if name == "nflows, affine coupling":
        layer.identity_features.copy_(torch.tensor([0, 3]))
        layer.transform_features.copy_(torch.tensor([1, 2, 4]))
    else:
        layer.tail_bound = 1.5
    after = results(layer, x)
    assert not torch.equal(before[0], after[0])
    assert_same(after, read_anew(layer, x))


def test_a_setting_that_is_a_property_is_asked_in_every_call(ran) -> None:
    nf = pytest.importorskip("nflows.transforms")
    bound = [3.0]

    class Moving(nf.MaskedPiecewiseRationalQuadraticAutoregressiveTransform):
        tail_bound = property(lambda self: bound[0], lambda self, value: None)

    torch.manual_seed(0)
    layer, x = Moving(D, 12, num_bins=4, tails="linear"), 2 * drawn(B, D)
    assert compat.accelerate(filled(layer)).accelerated
    before = layer(x)[0]
    bound[0] = 1.5
    assert not torch.equal(layer(x)[0], before)
    assert not ran


def test_inference_first_then_training() -> None:
    for make in LAYERS.values():
        layer, x = make(), drawn(B, D)
        with torch.inference_mode():
            layer(x)
        assert_same(results(layer, x), read_anew(layer, x))


def test_dropout_comes_and_goes(ran) -> None:
    layer, x = _coupling(dropout=0.5), drawn(B, D)
    layer(x)
    assert not ran
    layer.eval()(x)
    assert len(ran) == 1
    layer.train()(x)
    assert len(ran) == 1


@EVERY
def test_what_is_kept_keeps_nothing_alive(name) -> None:
    layer = LAYERS[name]()
    layer(drawn(B, D))
    gone = weakref.ref(layer)
    del layer
    gc.collect()
    assert gone() is None

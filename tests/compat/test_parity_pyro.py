"""Accelerated transforms of Pyro compute what Pyro computes."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch

from flowkernels import compat
from flowkernels.compat import layer as compat_layer
from flowkernels.compat.engine import thresholds
from flowkernels.compat.pyro import layers as pyro_layers
from tests.compat.nflows_models import assert_numbers
from tests.compat.parity import (
    B,
    accelerated_copy,
    assert_parity,
    assert_same_training,
    fuse_small_ones,
    table,
    watch,
)

pytest.importorskip("pyro", reason="Pyro is not installed: see requirements/dev.txt")
from pyro.distributions import transforms as pyro
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN, DenseNN

pytestmark = pytest.mark.usefixtures("one_thread")

K, D = 5, 4


QUADRATIC, LINEAR = [K, K, K - 1], [K, K, K - 1, K]  # parameters a feature


def dense(n_in, n_out, params=QUADRATIC):
    return DenseNN(n_in, [16], param_dims=[n_out * n for n in params])


def autoregressive(params=QUADRATIC, **settings):
    return AutoRegressiveNN(D, [12, 17], param_dims=params, **settings)


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch):
    fuse_small_ones(monkeypatch)


# name → (layer, how many modules are accelerated)
LAYERS = {
    "spline": lambda: (pyro.Spline(D, K, order="quadratic"), 1),
    "conditional spline": lambda: (pyro.conditional_spline(D, 3, [16], K, 2.0, order="quadratic"), 1),
    "coupling": lambda: (pyro.SplineCoupling(D, 1, dense(1, 3), K, order="quadratic"), 3),
    "coupling, identity": lambda: (pyro.SplineCoupling(D, 2, dense(2, 2), K, order="quadratic", identity=True), 3),
    "coupling, tanh": lambda: (
        pyro.SplineCoupling(D, 3, DenseNN(3, [16, 9], QUADRATIC, torch.nn.Tanh()), K, 2.0, "quadratic"), 3
    ),
    "coupling, wide network": lambda: (
        pyro.SplineCoupling(D, 1, DenseNN(1, [600], [3 * n for n in LINEAR]), K), 3
    ),
    "autoregressive": lambda: (pyro.SplineAutoregressive(D, autoregressive(), K, order="quadratic"), 2),
    "autoregressive, tanh, in order": lambda: (
        pyro.SplineAutoregressive(
            D, autoregressive(nonlinearity=torch.tanh, permutation=torch.arange(D)), K, 2.0, order="quadratic"
        ),
        2,
    ),
    "autoregressive, skips": lambda: (
        pyro.SplineAutoregressive(D, autoregressive(skip_connections=True), K, order="quadratic"), 2
    ),
    "affine": lambda: (pyro.AffineAutoregressive(AutoRegressiveNN(D, [12, 17]), -0.2, 0.3), 1),
    "affine coupling": lambda: (pyro.AffineCoupling(1, DenseNN(1, [16, 9], [3, 3])), 1),
    "affine coupling, tanh, clipped": lambda: (
        pyro.AffineCoupling(
            3, DenseNN(3, [16], [1, 1], torch.nn.Tanh()), log_scale_min_clip=-0.1, log_scale_max_clip=0.2
        ),
        1,
    ),
    "conditional affine coupling": lambda: (
        pyro.conditional_affine_coupling(D, 3, [16, 9], split_dim=1, log_scale_min_clip=-0.1, log_scale_max_clip=0.2), 1
    ),
    "conditional affine": lambda: (pyro.conditional_affine_autoregressive(D, 3, [12, 17]), 1),
    "conditional autoregressive": lambda: (
        pyro.ConditionalSplineAutoregressive(
            D, ConditionalAutoRegressiveNN(D, 3, [12, 17], QUADRATIC), count_bins=K, order="quadratic"
        ),
        1,
    ),
    "linear spline": lambda: (pyro.Spline(D, K), 1),
    "linear conditional spline": lambda: (pyro.conditional_spline(D, 3, [16], K, 2.0), 1),
    "linear coupling": lambda: (pyro.SplineCoupling(D, 1, dense(1, 3, LINEAR), K), 3),
    "linear autoregressive": lambda: (pyro.SplineAutoregressive(D, autoregressive(LINEAR), K), 2),
    "linear autoregressive, skips": lambda: (
        pyro.SplineAutoregressive(D, autoregressive(LINEAR, skip_connections=True), K, 2.0), 2
    ),
    "linear conditional autoregressive": lambda: (
        pyro.conditional_spline_autoregressive(D, 3, [12, 17], K), 1
    ),
}  # fmt: skip


def make(name):
    torch.manual_seed(0)
    return LAYERS[name]()


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


def run(layer, x, inverse, context=None):
    """y and the log-determinant of the direction that was run."""
    if context is not None:
        layer = layer.condition(context)
    if inverse:
        with default_dtype(x.dtype):  # in which Pyro's affine inverse makes zeros
            y = layer._inv_call(x)
        ladj = -layer.log_abs_det_jacobian(y, x)
    else:
        y = layer(x)
        ladj = layer.log_abs_det_jacobian(x, y)
    layer._cached_x_y = None, None
    return y, ladj


def draw(*shape):
    return 1.5 * torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("name", LAYERS)
def test_parity(name, inverse):
    layer, n = make(name)
    tensors = [draw(B, D), *([draw(B, 3)] if "conditional" in name else [])]
    assert_parity(lambda m, x, c=None: run(m, x, inverse, c), layer, *tensors, accelerated=n)


@pytest.mark.parametrize("name", LAYERS)
def test_shapes_and_caches(name):
    plain, fast = make(name)[0].double(), accelerated_copy(make(name)[0]).double()
    for lead in ((), (3, 2)):
        x = draw(*lead, D).double()
        c = draw(*lead, 3).double() if "conditional" in name else None
        for inverse in (False, True):
            torch.testing.assert_close(run(fast, x, inverse, c), run(plain, x, inverse, c), rtol=1e-9, atol=1e-9)
        transform = fast if c is None else fast.condition(c)
        y = transform(x)
        assert transform._inv_call(y) is x  # Pyro's cache of the last pair


def test_the_ops_are_reached(monkeypatch):
    names = []

    for name in ("run_autoregressive_layer", "run_inverse"):
        watch(monkeypatch, names, compat_layer, name)
    watch(monkeypatch, names, pyro_layers, "_elementwise")
    cases = (
        ("autoregressive", None),
        ("conditional autoregressive", draw(3)),
        ("linear autoregressive", None),
        ("linear conditional autoregressive", draw(3)),
        ("affine", None),
        ("conditional affine", draw(3)),
    )
    for case, context in cases:
        fast = accelerated_copy(make(case)[0])
        run(fast, draw(7, D), False, context)
        run(fast, draw(7, D), True, context)
        assert names == ["run_autoregressive_layer"] * ("affine" not in case) + ["run_inverse"]
        names.clear()


def test_a_spline_coupling_is_one_op_beside_its_lower_spline(monkeypatch):
    names = []
    watch(monkeypatch, names, compat_layer, "run_layer")
    watch(monkeypatch, names, pyro_layers, "_elementwise", "rqs")
    for case, wanted in (
        ("coupling", ["rqs", "run_layer"]),
        ("linear coupling", ["rqs", "run_layer"]),
        ("coupling, identity", ["run_layer"]),
        ("coupling, wide network", ["rqs", "rqs"]),
    ):
        for inverse in (False, True):
            run(accelerated_copy(make(case)[0]), draw(7, D), inverse)
            assert sorted(set(names)) == sorted(set(wanted)), case
            names.clear()


def _hook(coupling):
    coupling.upper_spline.nn.layers[0].register_forward_hook(lambda module, args, out: 2 * out)


def _own_condition(coupling):
    plain = coupling.upper_spline.condition
    coupling.upper_spline.condition = lambda context: plain(context + 1)


def _other_activation(coupling):
    coupling.upper_spline.nn.f = torch.nn.Softplus()


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("edit", [_hook, _own_condition, _other_activation])
def test_an_edited_spline_coupling_computes_what_pyro_would(edit, inverse):
    plain = make("coupling")[0].double()
    fast = accelerated_copy(plain)
    before = run(fast, draw(7, D).double(), inverse)
    edit(plain)
    edit(fast)
    found, wanted = (run(m, draw(7, D).double(), inverse) for m in (fast, plain))
    torch.testing.assert_close(found, wanted)
    assert not torch.equal(found[0], before[0])


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("name", ["affine coupling", "affine coupling, tanh, clipped", "conditional affine coupling"])
def test_affine_couplings_without_a_graph(name, inverse):
    """Where they are one op."""

    @torch.no_grad()
    def theirs(layer, x, dtype):
        c = draw(B, 3).flip(0).to(dtype) if "conditional" in name else None
        y, ladj = run(copy.deepcopy(layer).to(dtype), x.to(dtype), inverse, c)
        return {"y": y, "ladj": ladj}

    assert_numbers(theirs, lambda m, x, d: theirs(accelerated_copy(m), x, d), make(name)[0], draw(B, D))


@pytest.mark.parametrize("context", [None, draw(3), draw(7, 3)], ids=["", "one context", "a context a row"])
def test_an_affine_coupling_is_one_op_where_it_pays(context, monkeypatch):
    names = []
    watch(monkeypatch, names, compat_layer, "run_layer")
    plain = make("affine coupling" if context is None else "conditional affine coupling")[0]
    coupling, x = accelerated_copy(plain), draw(7, D)
    run(coupling, x, False, context)
    assert not names
    with torch.no_grad():
        for inverse in (False, True):
            torch.testing.assert_close(run(coupling, x, inverse, context), run(plain, x, inverse, context))
        assert len(names) == 2
        handle = coupling.nn.layers[0].register_forward_hook(lambda *_: None)  # asks to be called
        run(coupling, x, False, context)
        handle.remove()
        monkeypatch.setattr(thresholds, "COUPLING_ROWS" if context is None else "CONDITIONAL_COUPLING_ROWS", 8)
        run(coupling, x, False, context)
    assert len(names) == 2


@pytest.mark.parametrize("name", ["coupling", "autoregressive", "linear autoregressive", "affine"])
def test_training(name):
    features = table().shape[1]
    torch.manual_seed(0)
    if name == "coupling":
        layer = pyro.SplineCoupling(features, 3, dense(3, 3), K, order="quadratic")
    elif name == "affine":
        layer = pyro.affine_autoregressive(features, [24])
    else:
        linear = name.startswith("linear")
        net = AutoRegressiveNN(features, [24], param_dims=LINEAR if linear else QUADRATIC)
        layer = pyro.SplineAutoregressive(features, net, K, order="linear" if linear else "quadratic")

    def log_prob(layer, x):
        z, ladj = run(layer, x, True)
        return ladj - 0.5 * z.square().sum(-1)

    assert_same_training(log_prob, layer, steps=20)


def test_state_restore_and_copies():
    layer, _ = make("autoregressive")
    fast = accelerated_copy(layer)
    assert [*fast.state_dict()] == [*layer.state_dict()] and repr(fast) == repr(layer)
    assert isinstance(fast, pyro.SplineAutoregressive) and not compat.accelerate(copy.deepcopy(fast)).left_alone
    compat.restore(fast)
    assert [type(m) for m in fast.modules()] == [type(m) for m in layer.modules()]


class OwnParameters(pyro.Spline):
    def _params(self):
        return super()._params()


class Own(pyro.SplineAutoregressive):
    def _call(self, x):
        return super()._call(x)


LEFT_ALONE = {
    "another order": (
        lambda: pyro.ConditionalSpline(dense(3, D), D, K, order="cubic"),
        'order must be "quadratic" or "linear", got \'cubic\'',
    ),
    "conditional, too many bins": (
        lambda: pyro.conditional_spline_autoregressive(2, 3, [4], 200),
        "bins must be an integer from 1 to 128, got 200",
    ),
    "too many bins": (lambda: pyro.Spline(D, 200, order="quadratic"), "bins must be an integer from 1 to 128, got 200"),
    "a subclass": (lambda: Own(D, autoregressive(), K, order="quadratic"), "Own defines its own _call"),
    "linear, its own parameters": (lambda: OwnParameters(D, K), "its parameters are its own"),
    "its own parameters": (lambda: OwnParameters(D, K, order="quadratic"), "its parameters are its own"),
    "affine coupling, its own network": (
        lambda: pyro.AffineCoupling(2, lambda x: (x, x)),
        "not Pyro's DenseNN, and its map alone is as fast",
    ),
    "affine coupling of images": (lambda: pyro.affine_coupling(torch.Size([2, 4]), dim=-2), "its event has 2 dims"),
    "conditional affine coupling, its own network": (
        lambda: pyro.ConditionalAffineCoupling(2, lambda x, context: (x, x)),
        "not Pyro's ConditionalDenseNN, and its map alone is as fast",
    ),
    "stable": (lambda: pyro.affine_autoregressive(D, stable=True), "the instance has its own _inverse"),
    "stable, conditional": (lambda: pyro.conditional_affine_autoregressive(D, 3, stable=True), "its stable map"),
    "skips": (
        lambda: pyro.AffineAutoregressive(AutoRegressiveNN(D, [12], skip_connections=True)),
        "it has skip connections",
    ),
    "householder": (lambda: pyro.Householder(D), "no fused path for this class"),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone_and_named(case):
    make_layer, reason = LEFT_ALONE[case]
    assert reason in compat.accelerate(make_layer()).left_alone[""]


def test_within_1e_6_of_a_knot_the_neighbouring_bin_is_taken():
    """Pyro looks for bins 1e-6 further to the right: there its values come from the bin to the left."""
    layer = pyro.Spline(1, 2, bound=1.0, order="quadratic").double()
    with torch.no_grad():
        for p, value in zip(layer.parameters(), ([0.0, 0.0], [1.0, 0.0], [2.0]), strict=True):
            p.copy_(torch.tensor([value]))
    x = torch.tensor([[5e-7], [1e-3]]).double()
    theirs, ours = (run(t, x, False) for t in (layer, accelerated_copy(layer)))
    difference = (theirs[0] - ours[0]).abs()
    assert 0 < difference[0].item() < 1e-10 and difference[1].item() < 1e-14

"""Accelerated masked autoregressive layers of nflows, and their networks, compute what nflows computes."""

from __future__ import annotations

import copy
import functools
import io
import pickle

import nflows.transforms.made as theirs_made
import pytest
import torch
from nflows.transforms.made import MADE
from torch import nn
from torch.nn.utils import prune

from flowkernels import compat
from flowkernels.compat import layer as compat_layer
from flowkernels.compat import nflows
from flowkernels.compat.engine import patch
from flowkernels.compat.nflows import made as nflows_made
from flowkernels.ops.flow import op as flow_op
from flowkernels.ops.flow_layer import op as layer_op
from tests.compat import nflows_models as models
from tests.compat.nflows_models import assert_numbers, results
from tests.compat.parity import accelerated_copy, watch

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = models.autoregressive_cases()
EVERY_MAP = pytest.mark.parametrize("make", models.AUTOREGRESSIVE.values(), ids=models.AUTOREGRESSIVE)
DIRECTIONS = pytest.mark.parametrize("direction", ["forward", "inverse"])


@pytest.fixture
def ran(monkeypatch):
    """The names of the ops that accelerated layers reached, in order."""
    names = []
    watch(monkeypatch, names, nflows_made, "run_made", "made")
    watch(monkeypatch, names, compat_layer, "run_inverse", "autoregressive_inverse")
    watch(monkeypatch, names, layer_op, "run", "flow_layer")
    watch(monkeypatch, names, flow_op, "run", "flow")
    return names


def assert_same(ours, theirs, x, context=None):
    """Both directions in float64, where rounding is far below any mistake."""
    for a, b in ((ours, theirs), (ours.inverse, theirs.inverse)):
        for found, expected in zip(a(x, context), b(x, context), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


# ---- values and gradients ----


@DIRECTIONS
@pytest.mark.parametrize("case", CASES)
def test_layer(case, direction):
    layer, inputs, context = CASES[case]
    if "batch norm" in case:  # in training its inverse has the statistics of D passes, the first on zeros
        layer = layer.eval()

    def theirs(layer, x, dtype):
        return results(layer, x, context, direction, dtype)

    def ours(layer, x, dtype):
        if compat.accelerate(copy.deepcopy(layer)).accelerated:
            layer = accelerated_copy(layer)
        return theirs(layer, x, dtype)

    assert_numbers(theirs, ours, layer, inputs.float())


@DIRECTIONS
@EVERY_MAP
@pytest.mark.parametrize("net", [n for n in models.NETS if n != "batch norm"])
def test_the_ops_are_reached(make, net, direction, ran):
    settings = models.NETS[net]
    layer = make(**settings)
    report = compat.accelerate(layer)
    assert report.accelerated == ["", "autoregressive_net"]
    x = models.normal(settings.get("features", 5)).float()
    context = models.normal(3).float() if "context_features" in settings else None
    getattr(layer, direction)(x, context)
    assert ran == (["flow_layer"] if direction == "forward" else ["autoregressive_inverse"])


@pytest.mark.parametrize("settings", models.NETS.values(), ids=models.NETS)
def test_made_alone(settings, ran):
    settings = {"hidden": 16, "features": 5, **settings}
    torch.manual_seed(0)
    features, hidden = settings.pop("features"), settings.pop("hidden")
    net = MADE(features, hidden, output_multiplier=3, **settings).double()
    fast = copy.deepcopy(net)
    normed = settings.get("use_batch_norm")
    left_alone = compat.accelerate(fast).left_alone
    assert left_alone.pop("", None) == ("it has batch norm" if normed else None)
    assert bool(left_alone) == bool(normed)  # its layers, which are small ones
    x, context = models.normal(features), models.normal(3) if "context_features" in settings else None
    torch.testing.assert_close(fast(x, context), net(x, context))
    assert ran == ([] if normed else ["made"])


def test_made_with_more_leading_dims_and_a_shared_context(ran):
    net = models.affine(context_features=3).autoregressive_net.double()
    fast = accelerated_copy(net)
    x = models.normal(5).view(4, 16, 5)
    for context in (models.normal(3).view(4, 16, 3), models.normal(3)[:16], models.normal(3)[0], None):
        torch.testing.assert_close(fast(x, context), net(x, context))
    assert ran == ["made"] * 4


@EVERY_MAP
def test_ladj_of_the_inverse_is_that_of_the_inverse(make):
    layer = accelerated_copy(make()).double()
    z = models.normal(5)[:6]
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda v: layer.inverse(v[None])[0][0], r) for r in z])
    torch.testing.assert_close(layer.inverse(z)[1], torch.linalg.slogdet(jacobian)[1])


@EVERY_MAP
@DIRECTIONS
def test_nan_stays_in_its_row(make, direction):
    layer = make()
    fast = accelerated_copy(layer)
    x = models.normal(5).float()
    clean = getattr(fast, direction)(x)
    x[3, 2] = torch.nan
    y, ladj = getattr(fast, direction)(x)
    others = [i for i in range(len(x)) if i != 3]
    assert torch.equal(y[others], clean[0][others])
    assert torch.equal(ladj[others], clean[1][others])
    assert y[3, 2].isnan()
    assert ladj[3].isnan()


@EVERY_MAP
def test_no_rows(make):
    layer = accelerated_copy(make())
    for run in (layer, layer.inverse):
        y, ladj = run(torch.zeros(0, 5))
        assert y.shape == (0, 5)
        assert ladj.shape == (0,)


def test_a_width_that_nflows_scales_by():
    """nflows divides by the root of `hidden_features`, an attribute that its own MADE does not have."""
    layer = models.spline().double()
    layer.autoregressive_net.hidden_features = 16
    unscaled = models.spline().double()
    x = models.normal(5)
    assert not torch.allclose(layer(x)[0], unscaled(x)[0])
    assert_same(accelerated_copy(layer), layer, x)


# ---- flows ----


@pytest.fixture
def double_noise():
    """nflows draws in torch's default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@EVERY_MAP
@pytest.mark.parametrize("context", [None, 3])
def test_flow(make, context, ran, double_noise):
    flow = models.autoregressive_flow(make, context_features=context).double()
    fast = accelerated_copy(flow)
    x, c = models.normal(5), None if context is None else models.normal(context)
    gradients = []
    for model in (fast, flow):
        log_prob = model.log_prob(x, c)
        gradients.append((log_prob, *torch.autograd.grad(log_prob.sum(), model.parameters())))
    torch.testing.assert_close(*gradients)
    assert ran == ["flow"]
    samples = []
    for model in (fast, flow):
        torch.manual_seed(4)
        samples.append(model.sample(7, None if c is None else c[:2]))
    assert samples[0].shape == ((7, 5) if c is None else (2, 7, 5))
    torch.testing.assert_close(*samples)
    torch.manual_seed(4)
    drawn, log_prob = fast.sample_and_log_prob(7, None if c is None else c[:2])
    torch.testing.assert_close(drawn, samples[1])
    if c is None:
        torch.testing.assert_close(log_prob, flow.log_prob(drawn))


@EVERY_MAP
def test_training_gives_the_same_loss_curve(make):
    def theirs(model, data, dtype):
        model = copy.deepcopy(model).to(dtype)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        losses = []
        for _ in range(30):
            loss = -model.log_prob(data.to(dtype)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        assert losses[-1] < losses[0] - 0.5  # it does learn
        return {"loss": torch.stack(losses)}

    def ours(model, data, dtype):
        return theirs(accelerated_copy(model), data, dtype)

    assert_numbers(theirs, ours, models.autoregressive_flow(make), models.normal(5).cumsum(1).float(), draws=3)


# ---- what must not change ----


@EVERY_MAP
def test_state_repr_restore_and_copies(make):
    flow = models.autoregressive_flow(make, context_features=3)
    before, types = copy.deepcopy(flow), [type(m) for m in flow.modules()]
    x, c = models.normal(5).float(), models.normal(3).float()
    theirs = flow.log_prob(x, c)
    compat.accelerate(flow)
    ours = flow.log_prob(x, c)
    flow.sample(3, c[:1])
    assert repr(flow) == repr(before)
    assert list(flow.state_dict()) == list(before.state_dict())
    for mine, its in zip(flow.modules(), before.modules(), strict=True):
        assert isinstance(mine, type(its))
        assert vars(mine).keys() == vars(its).keys()
    twin = copy.deepcopy(flow)
    assert [type(m) for m in twin.modules()] == [type(m) for m in flow.modules()]
    assert torch.equal(twin.log_prob(x, c), ours)
    data = pickle.dumps(flow)
    assert b"flowkernels" not in data
    assert [type(m) for m in pickle.loads(data).modules()] == types
    buffer = io.BytesIO()
    torch.save(flow.state_dict(), buffer)
    before.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    compat.restore(flow)
    assert [type(m) for m in flow.modules()] == types
    assert torch.equal(flow.log_prob(x, c), theirs)


def test_report():
    flow = models.autoregressive_flow(models.affine, layers=1)
    assert repr(compat.accelerate(flow)) == (
        "flowkernels: 2 of 2 modules accelerated, 1 left alone by design\n"
        "accelerated\n"
        "  1 × MaskedAffineAutoregressiveTransform  affine map and network as one op; inverse in one sweep\n"
        "  1 × MADE                                 network as one op\n"
        "left alone by design\n"
        "  1 × ReversePermutation                   a permutation is one copy, and nothing is gained on it"
    )
    assert repr(compat.accelerate(flow)) == repr(compat.accelerate(flow))


# ---- the masks ----


@EVERY_MAP
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_edited_mask_is_nflows_business(make, when, ran):
    layer = make(hidden=8).double()
    fast = copy.deepcopy(layer)
    x = models.normal(5)
    if when == "after":
        compat.accelerate(fast)
        fast(x)
        fast.inverse(x)
    for module in (layer, fast):
        module.autoregressive_net.final_layer.mask[-1, 0] = 0
    report = compat.accelerate(fast)
    if when == "before":
        reason = "the mask of layer 5 is not the one of its degrees"
        assert report.left_alone["autoregressive_net"] == reason
        assert report.left_alone.get("", f"its network is left alone: {reason}").endswith(reason)
    ran.clear()
    assert_same(fast, layer, x)
    assert not ran


@pytest.mark.parametrize("how", ["load_state_dict", "copy_", "replace"])
@EVERY_MAP
def test_other_random_masks_in_the_same_network(make, how, ran):
    settings = {"use_residual_blocks": False, "random_mask": True}
    target = make(**settings).double()
    torch.manual_seed(1)
    source = type(target)(5, 16, **settings, **({} if make is models.affine else
        {"num_bins": 5, "tails": "linear", "tail_bound": 2.0})).double()  # fmt: skip
    masks = [m.mask for layer in (source, target) for m in layer.modules() if isinstance(m, theirs_made.MaskedLinear)]
    assert not torch.equal(masks[0], masks[4])
    fast = accelerated_copy(target)
    x = models.normal(5)
    fast.inverse(x)
    if how == "load_state_dict":
        fast.load_state_dict(source.state_dict())
    else:
        fast.autoregressive_net.load_state_dict(source.autoregressive_net.state_dict())
        for name, value in source.named_buffers():
            owner, _, leaf = name.rpartition(".")
            if how == "copy_":
                getattr(fast.get_submodule(owner), leaf).copy_(value)
            else:
                setattr(fast.get_submodule(owner), leaf, value.clone())
    ran.clear()
    assert_same(fast, source, x)
    assert ran == ["flow_layer", "autoregressive_inverse"]


def test_degrees_without_an_order_are_left_alone():
    layer = models.affine()
    layer.autoregressive_net.final_layer.degrees.fill_(3)
    reason = compat.accelerate(layer).left_alone[""]
    assert "the mask of layer 0 is not the one of its degrees" in reason


# ---- networks that one op does not compute ----


def replace_block(net):
    net.blocks[0] = theirs_made.MaskedFeedforwardBlock(net.initial_layer.degrees, 5).double()


def replace_layer(net):
    old = net.blocks[0].linear_layers[0]
    net.blocks[0].linear_layers[0] = nn.Linear(old.in_features, old.out_features).double()


def drop_bias(net):
    net.final_layer.bias = None


def own_forward(net):
    net.forward = lambda inputs, context=None: MADE.forward(net, inputs, context)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (replace_block, "a block is a MaskedFeedforwardBlock, not a MaskedResidualBlock"),
        (replace_layer, "a layer is a Linear, not a MaskedLinear"),
        (drop_bias, "a layer has no weight or no bias as a parameter"),
        (lambda net: setattr(net, "activation", torch.sigmoid), "its activation is sigmoid"),
        (lambda net: setattr(net.blocks[1], "activation", torch.tanh), "the activation of a block is tanh, the first"),
        (lambda net: setattr(net.blocks[1], "dropout", nn.Identity()), "a dropout is a Identity"),
        (lambda net: delattr(net, "blocks"), "its layout is not the one that flowkernels knows"),
        (own_forward, "the instance has its own forward"),
    ],
    ids=["block", "layer", "bias", "activation", "mixed activations", "dropout", "layout", "forward"],
)  # fmt: skip
def test_a_changed_network(change, reason, ran):
    layer = models.spline().double()
    change(layer.autoregressive_net)
    fast = copy.deepcopy(layer)
    report = compat.accelerate(fast)
    assert report.accelerated == [""]
    assert report.left_alone["autoregressive_net"].startswith(reason)
    affine = models.affine().double()
    change(affine.autoregressive_net)
    affine_reason = compat.accelerate(affine).left_alone[""]
    assert affine_reason.startswith(f"its network is left alone: {reason}")
    if hasattr(layer.autoregressive_net, "blocks"):
        late = models.spline().double()
        compat.accelerate(late)
        late(models.normal(5))
        change(late.autoregressive_net)
        late.load_state_dict(layer.state_dict())
        for other in (fast, late):
            assert_same(other, layer, models.normal(5))
        assert not [name for name in ran if name == "autoregressive_inverse"]


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(inplace=True), nn.LeakyReLU(0.2), nn.ELU(2.0), nn.GELU("tanh"), nn.Softplus(), torch.sigmoid,
     functools.partial(nn.functional.leaky_relu, negative_slope=0.3)],
    ids=["in place", "slope", "alpha", "tanh gelu", "softplus", "sigmoid", "partial"],
)  # fmt: skip
def test_other_activations(activation, ran):
    layer = models.spline(activation=activation, context_features=3).double()
    fast = copy.deepcopy(layer)
    assert compat.accelerate(fast).left_alone["autoregressive_net"].startswith("its activation is ")
    assert_same(fast, layer, models.normal(5), models.normal(3))
    assert not ran


@pytest.mark.parametrize(
    "activation",
    [torch.relu, torch.tanh, nn.functional.relu, nn.functional.leaky_relu, nn.functional.elu, nn.functional.gelu,
     nn.functional.silu, nn.functional.tanh, nn.ReLU(), nn.LeakyReLU(), nn.ELU(), nn.GELU(), nn.SiLU(), nn.Tanh(),
     nn.Identity()],
    ids=lambda f: getattr(f, "__name__", str(f)),
)  # fmt: skip
@pytest.mark.parametrize("residual", [True, False])
def test_known_activations(activation, residual, ran):
    layer = models.affine(activation=activation, context_features=3, use_residual_blocks=residual).double()
    assert_same(accelerated_copy(layer), layer, models.normal(5), models.normal(3))
    assert ran == ["flow_layer", "autoregressive_inverse"]


@EVERY_MAP
@pytest.mark.parametrize("residual", [True, False])
def test_dropout(make, residual, ran):
    layer = make(dropout_probability=0.3, use_residual_blocks=residual).double()
    fast = accelerated_copy(layer)
    x = models.normal(5)
    for training in (True, False):
        found = []
        for module in (layer.train(training), fast.train(training)):
            torch.manual_seed(5)
            found.append((*module(x), *module.inverse(x)))
        torch.testing.assert_close(*found)
        assert ran == ([] if training else ["flow_layer", "autoregressive_inverse"])


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(training):
    layer = models.spline(use_batch_norm=True).double().train(training)
    fast = accelerated_copy(layer)
    assert_same(fast, layer, models.normal(5))
    theirs, ours = layer.state_dict(), fast.state_dict()
    for name in (n for n in theirs if "running" in n or "num_batches" in n):
        torch.testing.assert_close(ours[name], theirs[name])
    affine = models.affine(use_batch_norm=True)
    left_alone = compat.accelerate(affine).left_alone
    assert left_alone[""] == "its network is left alone: it has batch norm"
    assert left_alone["autoregressive_net"] == "it has batch norm"


# ---- hooks ----

WHERE = ["", "initial_layer", "context_layer", "blocks.0", "blocks.1.linear_layers.0", "blocks.0.dropout",
         "blocks.0.context_layer", "final_layer", "activation"]  # fmt: skip


@EVERY_MAP
@pytest.mark.parametrize("path", WHERE)
def test_hooks_fire(make, path):
    layer = make(context_features=3, activation=nn.Tanh()).double()
    fast, counts = accelerated_copy(layer), []
    for module in (layer, fast):
        seen = []
        target = module.autoregressive_net.get_submodule(path)
        target.register_forward_hook(lambda m, a, o, s=seen: s.append("forward"))
        target.register_forward_pre_hook(lambda m, a, s=seen: s.append("pre"))
        module(models.normal(5), models.normal(3))
        counts.append(len(seen))
        seen.clear()
        module.inverse(models.normal(5), models.normal(3))
        assert seen
    assert counts[0] == counts[1]


@EVERY_MAP
def test_a_hook_that_changes_what_a_layer_returns(make):
    layer = make().double()
    fast = accelerated_copy(layer)
    fast.inverse(models.normal(5))
    for module in (layer, fast):
        module.autoregressive_net.register_forward_hook(lambda m, a, o: o * 0.5)
    assert_same(fast, layer, models.normal(5))


def test_weights_that_are_computed():
    """Weight norm replaces the class of a layer, pruning hangs on hooks."""
    changes = [nn.utils.parametrizations.weight_norm]
    changes += [functools.partial(prune.l1_unstructured, name=n, amount=0.5) for n in ("weight", "bias")]
    for change in changes:
        layer = models.affine().double()
        fast = accelerated_copy(layer)
        for module in (layer, fast):
            change(module.autoregressive_net.blocks[0].linear_layers[1])
        assert_same(fast, layer, models.normal(5))


# ---- other networks, subclasses ----


def test_a_subclass_of_made_with_its_own_forward():
    class Mine(MADE):
        def forward(self, inputs, context=None):
            return 2 * super().forward(inputs, context)

    layer = models.spline().double()
    layer.autoregressive_net.__class__ = Mine
    fast = copy.deepcopy(layer)
    report = compat.accelerate(fast)
    name = Mine.__qualname__
    assert report.left_alone["autoregressive_net"] == f"{name} defines its own forward"
    assert_same(fast, layer, models.normal(5))


class Constant(nn.Module):
    def forward(self, x, context=None):
        return torch.linspace(-1, 1, 70, dtype=x.dtype).expand(len(x), 70)


def test_a_network_of_another_kind():
    layer = models.spline().double()
    layer.autoregressive_net = Constant()
    assert_same(accelerated_copy(layer), layer, models.normal(5))
    affine = models.affine()
    affine.autoregressive_net = Constant()
    assert compat.accelerate(affine).left_alone == {"": "its network is a Constant, not nflows' MADE"}


def test_either_part_alone(ran):
    layer = models.affine().double()
    x = models.normal(5)
    for part in (layer.autoregressive_net, layer):
        fast = copy.deepcopy(layer)
        compat.accelerate(fast.autoregressive_net)
        if part is layer:
            assert compat.accelerate(fast).accelerated == ["", "autoregressive_net"]
            compat.restore(fast.autoregressive_net)
            assert patch.is_fast(fast)
        assert_same(fast, layer, x)
    assert "autoregressive_inverse" not in ran


@EVERY_MAP
@pytest.mark.parametrize(
    "name", ["forward", "inverse", "_elementwise_forward", "_elementwise_inverse", "_output_dim_multiplier"]
)
def test_a_subclass_of_a_layer_that_overrides_what_would_be_bypassed(make, name):
    layer = make()
    original = getattr(type(layer), name)
    layer.__class__ = type("Mine", (type(layer),), {name: lambda self, *args: original(self, *args)})
    assert compat.accelerate(layer).left_alone == {"": f"Mine defines its own {name}"}


# ---- arguments that nflows refuses ----


@EVERY_MAP
@pytest.mark.parametrize("shape", [(4,), (4, 6), (4, 5, 2)])
@DIRECTIONS
def test_refuses_shapes_as_nflows_does(make, shape, direction):
    layer = make()
    for module in (layer, accelerated_copy(layer)):
        with pytest.raises((RuntimeError, TypeError)):
            getattr(module, direction)(torch.zeros(shape))


@EVERY_MAP
def test_refuses_dtypes_and_contexts_as_nflows_does(make):
    for settings, x, context, error in (
        ({}, torch.zeros(4, 5, dtype=torch.float64), None, RuntimeError),
        ({}, torch.zeros(4, 5), torch.zeros(4, 3), AttributeError),
        ({"context_features": 3}, torch.zeros(4, 5), torch.zeros(3, 3), RuntimeError),
        ({"context_features": 3}, torch.zeros(4, 5), torch.zeros(4, 2), RuntimeError),
    ):
        layer = make(**settings)
        for module in (layer, accelerated_copy(layer)):
            for run in (module, module.inverse):
                with pytest.raises(error):
                    run(x, context)


# ---- torch's machinery ----


@EVERY_MAP
@DIRECTIONS
def test_compile_without_a_graph_break(make, direction):
    layer = make(context_features=3).double()
    compat.accelerate(layer)
    x, c = models.normal(5), models.normal(3)
    run = getattr(layer, direction)
    expected = run(x, c)
    found = torch.compile(run, fullgraph=True, backend="aot_eager")(x, c)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    ours = torch.autograd.grad(found[1].sum(), layer.parameters(), allow_unused=True)
    for a, b in zip(ours, torch.autograd.grad(expected[1].sum(), layer.parameters(), allow_unused=True), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)
    torch.compiler.reset()


@EVERY_MAP
@DIRECTIONS
def test_function_transforms(make, direction):
    layer = make(hidden=8).double()
    fast = accelerated_copy(layer)
    x = models.normal(5)[:4]
    theirs = torch.func.jacrev(lambda v: getattr(layer, direction)(v)[0])(x)
    run = getattr(fast, direction)
    torch.testing.assert_close(torch.func.jacrev(lambda v: run(v)[0])(x), theirs)
    y, tangent = torch.func.jvp(lambda v: run(v)[0], (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, theirs.sum((2, 3)))
    stacked = {n: torch.stack([p, 2 * p]).detach() for n, p in fast.named_parameters()}
    if direction == "forward":
        both = torch.func.vmap(lambda p: torch.func.functional_call(fast, p, (x,))[0])(stacked)
        torch.testing.assert_close(both[0], y)
    torch.testing.assert_close(run(x)[0], y)
    other = {n: 2 * p.detach() for n, p in layer.named_parameters()}
    found, expected = (torch.func.functional_call(m, other, (x,)) for m in (fast, layer))
    torch.testing.assert_close(found, expected)


@EVERY_MAP
def test_second_derivatives(make):
    layer = make(hidden=8, activation=torch.tanh).double()
    compat.accelerate(layer)
    x = models.normal(5)[:3].requires_grad_()
    for run in (layer, layer.inverse):
        assert torch.autograd.gradcheck(run, (x,))
        assert torch.autograd.gradgradcheck(run, (x,))


@EVERY_MAP
def test_made_under_inference_mode(make):
    with torch.inference_mode():
        layer, x = make().double(), models.normal(5)
        assert_same(accelerated_copy(layer), layer, x)
    layer = make().double()
    fast = accelerated_copy(layer)
    with torch.inference_mode():
        assert_same(fast, layer, models.normal(5))
    fast(models.normal(5).requires_grad_())[1].sum().backward()  # what was made there does not stay


def test_fake_tensors_do_not_stay():
    layer = models.affine().double()
    fast = accelerated_copy(layer)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        assert fast(torch.zeros(4, 5, dtype=torch.float64))[0].shape == (4, 5)
    assert_same(fast, layer, models.normal(5))


@EVERY_MAP
def test_autocast(make):
    layer = make()
    fast = accelerated_copy(layer)
    x = models.normal(5).float()
    few = 16 * torch.finfo(torch.bfloat16).eps
    for run, its in ((fast, layer), (fast.inverse, layer.inverse)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, ladj = run(x)
            with nflows.patch_functions():  # nflows' own spline asserts on what bfloat16 makes of its discriminant
                expected = its(x)
        assert ladj.dtype == torch.float32
        torch.testing.assert_close(y.float(), expected[0].float(), rtol=few, atol=few)
        torch.testing.assert_close(ladj, expected[1].float(), rtol=few, atol=few)

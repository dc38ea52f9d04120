"""Accelerated nflows layers and flows compute what nflows computes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from nflows.transforms import AffineCouplingTransform, PiecewiseRationalQuadraticCouplingTransform
from nflows.transforms.base import InputOutsideDomain
from torch import nn

from flowkernels import compat
from flowkernels.compat.nflows.composite import Composite as composite
from flowkernels.nets.batch_norms import BatchNorms
from flowkernels.transforms.parts import Run
from tests.compat import nflows_models as models
from tests.compat.nflows_models import assert_numbers, results
from tests.compat.parity import accelerated_copy

CASES = models.layer_cases()


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("case", CASES)
def test_layer(case, direction):
    layer, inputs, context = CASES[case]

    def theirs(layer, x, dtype):
        return results(layer, x, context, direction, dtype)

    def ours(layer, x, dtype):
        return theirs(accelerated_copy(layer), x, dtype)

    assert_numbers(theirs, ours, layer, inputs.float())


@pytest.mark.parametrize("context", [None, 3])
@pytest.mark.parametrize("features", [6, 7])
def test_flow_log_prob(features, context):
    c = None if context is None else models.normal(context)

    def theirs(model, x, dtype):
        model, x = copy.deepcopy(model).to(dtype), x.to(dtype, copy=True).requires_grad_()
        log_prob = model.log_prob(x, None if c is None else c.to(dtype))
        log_prob.sum().backward()
        return {"log_prob": log_prob.detach(), "inputs": x.grad, **{n: p.grad for n, p in model.named_parameters()}}

    def ours(model, x, dtype):
        return theirs(accelerated_copy(model), x, dtype)

    assert_numbers(theirs, ours, models.flow(features, context), models.normal(features).float())


@pytest.mark.parametrize("context", [None, 3])
def test_flow_sample(context):
    c = None if context is None else models.normal(context)[:2]
    shape = (models.B, 6) if c is None else (2, models.B // 2, 6)

    def theirs(model, noise, dtype):
        model = copy.deepcopy(model).to(dtype)
        # torch's generator gives other numbers in float64, so the noise is handed in.
        model._distribution._sample = lambda n, context: noise.to(dtype).view(shape)
        return {"samples": model.sample(shape[-2], c if c is None else c.to(dtype)).detach()}

    def ours(model, noise, dtype):
        return theirs(accelerated_copy(model), noise, dtype)

    assert_numbers(theirs, ours, models.flow(context=context), models.normal(6).float())


def test_sample_draws_the_same_noise():
    flow, states = models.flow(), []
    for model in (flow, accelerated_copy(flow)):
        torch.manual_seed(3)
        assert model.sample(40).shape == (40, 6)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_training_gives_the_same_loss_curve():
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

    assert_numbers(theirs, ours, models.flow(), models.normal(6).cumsum(1).float(), draws=3)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_and_batch_norm(training):
    flow = models.flow(use_batch_norm=True, dropout_probability=0.3).double().train(training)
    fast = accelerated_copy(flow)
    x = models.normal(6)
    outputs = []
    for model in (flow, fast):
        torch.manual_seed(5)
        outputs.append(model.log_prob(x))
    torch.testing.assert_close(outputs[1], outputs[0])
    theirs, ours = flow.state_dict(), fast.state_dict()
    for name in (n for n in theirs if "running" in n or "num_batches" in n):
        torch.testing.assert_close(ours[name], theirs[name])


@pytest.mark.parametrize("context", [None, 3])
def test_batch_norm_is_fused_in_either_mode(context, monkeypatch):
    found, run = [], BatchNorms.run
    monkeypatch.setattr(BatchNorms, "run", lambda *given: found.append(run(*given)) or found[-1])
    fast = accelerated_copy(models.flow(context=context, activation=F.elu, use_batch_norm=True))
    x, c = models.normal(6).float(), None if context is None else models.normal(context).float()
    for turn in range(2):
        fast.train().log_prob(x, c)
        assert len(found) == 3 * (turn + 1) and all(y is not None for y in found)
        fast.eval().log_prob(x, c)
        assert len(found) == 3 * (turn + 1)
        pieces = composite.pieces(fast._transform, False, c is not None)
        assert [type(piece) for piece in pieces] == [Run]  # the whole flow is one op


@pytest.mark.parametrize("context", [None, 3])
def test_batch_norm_follows_its_modes_and_statistics(context):
    flow = models.flow(context=context, activation=F.elu, use_batch_norm=True).double()
    fast = accelerated_copy(flow)
    x, c = models.normal(6), None if context is None else models.normal(context)
    for turn in range(3):
        outputs = []
        for model in (flow, fast):
            model.train()
            for scale in (1.0, 0.5):
                model.zero_grad()
                model.log_prob(x * scale + turn, c).mean().backward()
            grads = [p.grad for p in model.parameters()]
            with torch.no_grad():
                for p in model.parameters():
                    p.sub_(0.01 * p.grad)
            model.eval().requires_grad_()
            y = model.log_prob(x, c)
            back = model._transform.inverse(x, c)
            frozen = torch.autograd.grad(y.mean(), list(model.parameters()))
            outputs.append([y, *back, *grads, *frozen, *model.buffers()])
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-8, atol=1e-8)
    compat.restore(fast)
    torch.testing.assert_close(fast.log_prob(x, c), flow.log_prob(x, c))


def test_a_norm_that_asks_to_be_called_is_called():
    flow, seen = models.flow(use_batch_norm=True), []
    fast, x = accelerated_copy(flow), models.normal(6).float()
    norm = next(m for m in fast.modules() if isinstance(m, nn.BatchNorm1d))
    for training in (True, False):
        fast.train(training).log_prob(x)
        hook = norm.register_forward_hook(lambda *_: seen.append(1))
        fast.log_prob(x)
        hook.remove()
        assert seen == [1]
        seen.clear()


# ---- what nflows' own tests ask of these classes ----


@pytest.mark.parametrize("tails", [None, "linear"])
@pytest.mark.parametrize("shape", [(20,), (2, 4, 4)])
def test_shapes_and_inverse_as_nflows_tests_them(shape, tails):
    inputs = torch.rand(10, *shape, generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(shape[0]) % 2).flip(0)
    net = models.conv if len(shape) == 3 else models.dense()
    img_shape = list(shape[1:]) or None
    layer = accelerated_copy(
        models.coupling(
            mask, net, stretched=False, tails=tails, img_shape=img_shape, apply_unconditional_transform=True
        )
    )
    y, ladj = layer(inputs)
    x, ladj_back = layer.inverse(y)
    assert y.shape == x.shape == inputs.shape
    assert ladj.shape == ladj_back.shape == (10,)
    torch.testing.assert_close(x, inputs, rtol=0, atol=1e-5)
    torch.testing.assert_close(ladj_back, -ladj, rtol=0, atol=1e-3)


def test_ladj_is_that_of_the_jacobian():
    layer = accelerated_copy(models.coupling()).double()
    x = models.normal(6)[:8]
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda v: layer(v[None])[0][0], row) for row in x])
    torch.testing.assert_close(layer(x)[1], torch.linalg.slogdet(jacobian)[1])


@pytest.mark.parametrize("shape", [(4,), (4, 6, 1), (4, 5), (4, 5, 2, 2)])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_refuses_what_nflows_refuses_with_its_words(shape, direction):
    layer = models.coupling()
    messages = []
    for module in (layer, accelerated_copy(layer)):
        with pytest.raises(ValueError) as caught:
            getattr(module, direction)(torch.zeros(shape))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_cdf_names_a_wrong_shape():
    with pytest.raises(ValueError, match=r"inputs must be \[B, \*shape\] = \['B', 4\], got \[2, 3\]"):
        accelerated_copy(models.cdf([4]))(torch.zeros(2, 3))


# ---- where nflows stops and these layers go on ----


class Constant(nn.Module):
    """A conditioner with a fixed output, another for every row; scaled like one of `hidden_features`."""

    hidden_features = 4

    def __init__(self, i, o, rows=models.B, scale=1.0):
        super().__init__()
        self.output = scale * torch.randn(rows, o, generator=torch.Generator().manual_seed(0))

    def forward(self, inputs, context=None):
        return self.output.clone()


def test_inverse_at_logit_scale_10_where_nflows_asserts():
    rows, mask = 4000, models.MASKS["alternating"].repeat(10)
    layer = models.coupling(mask, lambda i, o: Constant(i, o, rows, scale=10.0), num_bins=8, tail_bound=3.0)
    layer.transform_net.hidden_features = 1
    x = 6 * torch.rand(rows, 60, generator=torch.Generator().manual_seed(1)) - 3
    y, _ = layer(x)
    with pytest.raises(AssertionError):
        layer.inverse(y)
    back, ladj = accelerated_copy(layer).inverse(y)
    assert back.isfinite().all()
    assert ladj.isfinite().all()
    assert (back.abs() <= 3).all()
    assert torch.equal(back[:, 1::2], x[:, 1::2])


@pytest.mark.parametrize("layer", [models.coupling(tails=None), models.cdf([6])], ids=["coupling", "cdf"])
def test_outside_the_domain_where_nflows_raises(layer):
    x = models.uniform(6).float()
    x[3] = torch.tensor([1.5, -0.5, 2.0, -1.0, 7.0, -7.0])
    for direction in ("forward", "inverse"):
        with pytest.raises(InputOutsideDomain):
            getattr(layer, direction)(x)
        y, ladj = getattr(accelerated_copy(layer), direction)(x)
        assert torch.equal(y[3], x[3])
        assert ladj[3] == 0
        assert y.isfinite().all()


def test_no_rows():
    for layer in (models.coupling(), models.cdf([6])):
        y, ladj = accelerated_copy(layer)(torch.zeros(0, 6))
        assert y.shape == (0, 6)
        assert ladj.shape == (0,)


# ---- what surrounds the spline ----


def test_the_conditioners_output_is_not_written_to():
    class Kept(Constant):
        def forward(self, inputs, context=None):
            return self.output

    layer = models.coupling(net=Kept)
    before = layer.transform_net.output.clone()
    fast = accelerated_copy(layer)
    fast(models.normal(6).float())
    assert torch.equal(fast.transform_net.output, before)
    layer(models.normal(6).float())
    assert not torch.equal(layer.transform_net.output, before)  # nflows divides it in place


class Plain(nn.Module):
    """A conditioner without `hidden_features`, so nflows does not scale its output."""

    def __init__(self, i, o):
        super().__init__()
        self.net = nn.Linear(i, o)

    def forward(self, inputs, context=None):
        return self.net(inputs)


def test_a_conditioner_without_a_width_is_not_scaled_and_nflows_warning_stays():
    def theirs(layer, x, dtype):
        with pytest.warns(UserWarning, match="not scaled down"):
            return results(layer, x, None, "forward", dtype)

    def ours(layer, x, dtype):
        return theirs(accelerated_copy(layer), x, dtype)

    assert_numbers(theirs, ours, models.coupling(net=Plain), models.normal(6).float())


@pytest.mark.parametrize("mask", ["alternating", "alternating, odd", "first half", "irregular"])
def test_a_conditioner_that_writes_into_its_input(mask):
    class InPlace(Plain):
        hidden_features = 4

        def forward(self, inputs, context=None):
            return self.net(inputs.mul_(0.5))

    layer = models.coupling(mask, net=InPlace).double()
    x = models.normal(len(models.MASKS[mask]))
    kept = x.clone()
    theirs, ours = layer(x.clone())[0], accelerated_copy(layer)(x)[0]
    assert torch.equal(x, kept)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("how", ["load_state_dict", "copy_", "replace", "data"])
def test_another_mask_in_the_same_layer(how):
    """Random masks differ per model: loading weights also loads which columns are transformed."""
    source, target = models.coupling("irregular").double(), models.coupling("first half").double()
    fast = accelerated_copy(target)
    x = models.normal(6)
    fast(x)
    if how == "load_state_dict":
        fast.load_state_dict(source.state_dict())
    else:
        for name, value in source.state_dict().items():
            owner, _, leaf = name.rpartition(".")
            owner = fast.get_submodule(owner)
            if how == "copy_" or leaf not in owner._buffers:
                with torch.no_grad():
                    getattr(owner, leaf).copy_(value)
            elif how == "data":
                getattr(owner, leaf).data = value.clone()
            else:
                setattr(owner, leaf, value.clone())
    torch.testing.assert_close(fast(x), source(x))
    torch.testing.assert_close(fast.inverse(x), source.inverse(x))


def test_strided_and_expanded_inputs():
    fast = accelerated_copy(models.coupling())
    x = models.normal(6).float()
    wide = torch.stack([x, x], dim=-1)
    for inputs in (wide[..., 0], x.t().contiguous().t(), x[:1].expand(9, 6)):
        torch.testing.assert_close(fast(inputs), fast(inputs.contiguous()), rtol=0, atol=1e-6)


def test_bfloat16_conditioner_under_autocast():
    fast = accelerated_copy(models.coupling())
    x = models.normal(6).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, ladj = fast(x)
    assert y.dtype == ladj.dtype == torch.float32
    torch.testing.assert_close(y, fast(x)[0], rtol=0.05, atol=0.05)


# ---- networks that were edited ----


class Doubles(nn.Module):
    """In a dropout's place; `training` means nothing to it."""

    def forward(self, x):
        return 2 * x


def edited(net, how):
    """Changes a ResidualNet in a way that its layers' weights do not show."""
    block, linear = net.blocks[0], net.blocks[0].linear_layers[0]
    if how.startswith("own forward"):
        module = {"net": net, "block": block, "linear": linear}[how.rpartition(" ")[2]]
        theirs = module.forward
        module.forward = lambda *args, **kwargs: theirs(*args, **kwargs) + 1
    elif how == "block of a subclass":
        block.__class__ = type("Block", (type(block),), {"forward": lambda self, x, context=None: 2 * x})
    elif how == "hook on the dropout":
        block.dropout.register_forward_hook(lambda module, inputs, outputs: 2 * outputs)
    else:
        block.dropout = {"identity": nn.Identity, "doubles": Doubles}[how]()


@pytest.mark.parametrize("kind", ["spline", "affine"])
@pytest.mark.parametrize(
    "how",
    ["own forward of net", "own forward of block", "own forward of linear", "block of a subclass",
     "hook on the dropout", "identity", "doubles"],
)  # fmt: skip
def test_an_edited_network_is_called(kind, how):
    torch.manual_seed(0)
    cls = {"spline": PiecewiseRationalQuadraticCouplingTransform, "affine": AffineCouplingTransform}[kind]
    layer = models.stretch(cls([0, 1, 0, 1, 1], models.dense())).double()
    for p in layer.transform_net.blocks[0].parameters():
        nn.init.normal_(p, std=0.5)
    fast, x = accelerated_copy(layer), models.normal(5).sigmoid()
    unedited = layer(x)[0]
    for model in (layer, fast):
        edited(model.transform_net, how)
        model.train(how == "identity")
    torch.testing.assert_close(fast(x), layer(x))
    assert torch.equal(layer(x)[0], unedited) == (how == "identity")


@pytest.mark.parametrize("activation", [F.relu_, nn.ReLU(inplace=True)])
def test_a_relu_in_place_changes_what_the_block_adds_to(activation):
    layer = models.coupling(net=models.dense(activation=activation)).double()
    fast = copy.deepcopy(layer)
    assert "which no kernel has" in compat.accelerate(fast).left_alone["transform_net"]
    x = models.normal(6)
    torch.testing.assert_close(fast(x), layer(x))
    torch.testing.assert_close(fast.transform_net(x[:, :3]), layer.transform_net(x[:, :3]))

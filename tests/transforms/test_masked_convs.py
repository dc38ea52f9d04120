"""Layers of masked convolutions: inverses that compute each pixel or row once, levels, and MintNet's iteration."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowkernels import ops
from flowkernels.distributions import StandardLogistic
from flowkernels.nets import PixelCNN, RowConvNet
from flowkernels.transforms import Affine, Mint, Mixture, PixelAutoregressive, RowAutoregressive, Transform
from flowkernels.transforms.mint import _Network
from tests.transforms.test_transforms import jacobian, randomise

SMALL: dict[str, Any] = {"hidden": 6, "blocks": 1, "first_kernel_size": 5}
pixels = functools.partial(PixelCNN, **SMALL)
rows = functools.partial(RowConvNet, hidden=6, kernel_size=(2, 3))


@pytest.fixture(autouse=True)
def one_thread(threads) -> None:
    """Small tensors: a second thread costs more than it gives. And the same numbers every time."""
    threads(1)
    torch.manual_seed(0)


def loose(transform: Transform, seed: int = 0) -> Transform:
    randomise(transform, seed)
    return transform.double().eval()


# ---- pixels ----


def in_passes(layer: PixelAutoregressive, y: Tensor) -> Tensor:
    """The inverse by a pass of the whole network for every number."""
    x = torch.zeros_like(y)
    for i, j, c in itertools.product(*(range(n) for n in (*y.shape[-2:], y.shape[-3]))):
        params = layer._params(layer._scaled(x) if layer.levels else x, None)[:, c, i, j, None]
        x = x.clone()
        x[:, c, i, j] = layer._number(y[:, c, i, j, None], params)[0][:, 0]
    return x


@pytest.mark.parametrize("levels", [0, 9])
@pytest.mark.parametrize("block", ["residual", "gated"])
def test_samples_are_those_of_a_pass_for_each_number(levels, block, monkeypatch) -> None:
    net = functools.partial(pixels, block=block)
    layer = loose(PixelAutoregressive(net, Mixture(3), 2, levels=levels))
    y = torch.randn(4, 2, 4, 3, dtype=torch.float64)
    x, ladj = layer.inverse(y)
    torch.testing.assert_close(x, in_passes(layer, y), rtol=1e-9, atol=1e-9)
    assert x.std() > 0.1 and ladj.isfinite().all()
    calls: list[int] = []
    monkeypatch.setattr(PixelCNN, "forward", lambda *_: calls.append(1))
    assert torch.equal(layer.inverse(y)[0], x) and not calls


def test_gradients_of_samples_are_those_of_passes() -> None:
    layer = loose(PixelAutoregressive(pixels, Mixture(2), 1))
    y = torch.randn(2, 1, 3, 2, dtype=torch.float64, requires_grad=True)
    wanted = [y, *layer.parameters()]
    found = torch.autograd.grad(layer.inverse(y)[0].sin().sum(), wanted)
    torch.testing.assert_close(found, torch.autograd.grad(in_passes(layer, y).sin().sum(), wanted))


def test_probabilities_of_all_images_sum_to_one() -> None:
    """Of three levels of two channels of two pixels, without an estimate: no noise is in what comes out."""
    layer = loose(PixelAutoregressive(pixels, Mixture(3), 2, levels=3))
    every = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 2, 1, 2)
    base = StandardLogistic(4)
    with torch.no_grad():
        draws = [layer(every) for _ in range(2)]
    log_probs = [base.log_prob(y.flatten(1)) + ladj for y, ladj in draws]
    torch.testing.assert_close(log_probs[0], log_probs[1], rtol=1e-9, atol=1e-9)
    assert not torch.equal(draws[0][0], draws[1][0])
    torch.testing.assert_close(log_probs[0].exp().sum(), torch.ones(()).double(), rtol=1e-9, atol=0)
    assert log_probs[0].exp().max() < 0.5 and all(torch.equal(layer.inverse(y)[0], every.double()) for y, _ in draws)
    for mixture in range(3):  # the first number's, by the distribution function of its components
        logits, means, log_scales = layer._params(torch.zeros(1, 2, 1, 2).double(), None)[0, 0, 0, 0].view(3, 3)
        cdf = lambda v: (logits.softmax(-1) * torch.sigmoid((v - means) / log_scales.exp())).sum()  # noqa: B023, E731
        edges = [torch.zeros(()).double(), cdf(-0.5), cdf(0.5), torch.ones(()).double()]
        share = log_probs[0].exp()[every[:, 0, 0, 0] == mixture].sum()
        torch.testing.assert_close(share, edges[mixture + 1] - edges[mixture], rtol=1e-9, atol=0)


def test_samples_of_levels_follow_the_probabilities() -> None:
    layer = loose(PixelAutoregressive(pixels, Mixture(2), 1, levels=3))
    torch.manual_seed(0)
    n = 20_000
    with torch.no_grad():
        x = layer.inverse(StandardLogistic(2).double().sample(n).view(n, 1, 1, 2))[0]
        every = torch.tensor(list(itertools.product(range(3), repeat=2))).view(-1, 1, 1, 2)
        y, ladj = layer(every)
        p = (StandardLogistic(2).log_prob(y.flatten(1)) + ladj).exp()
    share = (x[:, None] == every).flatten(2).all(-1).double().mean(0)
    assert ((share - p).abs() < 5 * (p * (1 - p) / n).sqrt() + 1e-9).all()


def test_what_is_no_level_has_no_probability_and_nan_stays_in_its_row() -> None:
    layer = PixelAutoregressive(pixels, Mixture(2), 1, levels=4)
    x = torch.tensor([[0.0, 3.0], [0.5, 1.0], [-1.0, 1.0], [4.0, 0.0], [torch.inf, 0.0], [torch.nan, 1.0], [2.0, 2.0]])
    y, ladj = layer(x.view(7, 1, 1, 2))
    assert ladj[[1, 2, 3, 4]].tolist() == [-torch.inf] * 4 and ladj[5].isnan() and ladj[[0, 6]].isfinite().all()
    assert y[[0, 1, 2, 3, 4, 6]].isfinite().all()
    numbers = x[~x.isnan().any(1)].view(6, 1, 1, 2)
    found = layer(numbers)[1]
    torch.where(found.isfinite(), found, 0.0).sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    pixel = layer(torch.tensor([[0, 3]], dtype=torch.uint8).view(1, 1, 1, 2))
    torch.testing.assert_close(pixel[1].detach() + StandardLogistic(2).log_prob(pixel[0].flatten(1)).detach(),
                               ladj[:1].detach() + StandardLogistic(2).log_prob(y[:1].flatten(1)).detach())  # fmt: skip


def test_levels_far_out_keep_their_digits() -> None:
    """Of a narrow component far from the data, whose distribution function is 1 in float32 at every level."""
    layer = PixelAutoregressive(pixels, Mixture(1), 1, levels=256)
    for p in layer.parameters():
        p.data.zero_()
    layer.conditioner.final_layer.bias.data.copy_(torch.tensor([0.0, -3.0, -3.0]))
    x = torch.tensor([0.0, 100.0, 254.0, 255.0]).view(4, 1, 1, 1)
    y, ladj = layer(x)
    wide, wide_ladj = layer.double()(x.double())
    log_prob, exact = (StandardLogistic(1).log_prob(a.flatten(1)) + b for a, b in ((y, ladj), (wide, wide_ladj)))
    torch.testing.assert_close(log_prob.double(), exact, rtol=1e-5, atol=1e-5)
    assert exact.min() < -30


# ---- rows ----


@pytest.mark.parametrize("direction", ["down", "up", "right", "left"])
def test_each_row_is_computed_once_from_the_rows_above(direction, monkeypatch) -> None:
    layer = loose(RowAutoregressive(2, rows, Affine("tanh"), direction))
    x = torch.randn(3, 2, 5, 4, dtype=torch.float64)
    y, ladj = layer(x)
    seen: list[tuple[int, int]] = []
    row = RowConvNet.row

    def counted(self: RowConvNet, above: Tensor, more: Tensor | None = None) -> Tensor:
        out = row(self, above, more)
        seen.append((above.shape[2], out.shape[2]))
        return out

    monkeypatch.setattr(RowConvNet, "row", counted)
    calls: list[int] = []
    monkeypatch.setattr(RowConvNet, "forward", lambda *_: calls.append(1))
    back, negated = layer.inverse(y)
    torch.testing.assert_close((back, negated), (x, -ladj))
    lines = 5 if direction in ("down", "up") else 4
    assert seen == [(min(i, 2), 1) for i in range(lines)] and not calls


def test_directions_are_turns_of_one_another() -> None:
    x = torch.randn(3, 2, 5, 4, dtype=torch.float64)
    down = loose(RowAutoregressive(2, rows, Affine("exp")))
    turns = {"up": lambda t: t.flip(-2), "right": lambda t: t.mT, "left": lambda t: t.flip(-1).mT}
    for direction, turn in turns.items():
        layer = RowAutoregressive(2, down.conditioner, Affine("exp"), direction)
        y, ladj = layer(x)
        torch.testing.assert_close((turn(y), ladj), down(turn(x)))
        assert (y - down(x)[0]).abs().max() > 0.01


def test_images_of_context_are_turned_too() -> None:
    x, context = torch.randn(3, 1, 4, 3).double(), torch.randn(3, 2, 4, 3).double()
    net = functools.partial(rows, context=2, context_dims=3)
    for direction in ("down", "left"):
        layer = loose(RowAutoregressive(1, net, Affine("tanh"), direction))
        y, ladj = layer(x, context)
        torch.testing.assert_close(layer.inverse(y, context), (x, -ladj))
        nearby = context.clone()
        nearby[:, :, 0, 2] += 1.0
        changed = (layer(x, nearby)[0] - y).abs().amax((0, 1)) > 1e-9
        assert changed[0, 2] and not changed[3, 0]


@pytest.mark.parametrize("make", [lambda: PixelAutoregressive(pixels, Mixture(2), 1), lambda: Mint((1, 4, 3), 3),
                                  lambda: RowAutoregressive(1, rows, Affine("tanh"), "left")])  # fmt: skip
def test_a_latent_that_is_no_number_stays_in_its_row(make) -> None:
    layer = make()
    randomise(layer)
    y = torch.randn(4, 1, 4, 3)
    with torch.no_grad():
        x, ladj = layer.inverse(y)
        y[2, 0, 1, 1] = torch.nan
        again, broken = layer.inverse(y)
    others = [0, 1, 3]
    assert torch.equal(again[others], x[others]) and torch.equal(broken[others], ladj[others])
    assert again[2].isnan().any() and broken[2].isnan()


# ---- MintNet ----


@pytest.mark.parametrize("reverse", [False, True])
def test_jacobian_is_triangular_with_a_positive_diagonal(reverse) -> None:
    layer = loose(Mint((2, 3, 3), 4, reverse=reverse))
    x = torch.randn(5, 2, 3, 3, dtype=torch.float64)
    order = torch.arange(18).view(2, 3, 3).movedim(0, -1).flatten()
    J = jacobian(lambda v: layer(v)[0], x)[:, order][:, :, order]
    J = J.mT if reverse else J
    assert (J.triu(1) == 0).all() and (J.tril(-1) != 0).any()
    scale = layer.scale.abs().flatten()[order]
    own = J.diagonal(dim1=1, dim2=2)
    assert (own >= scale * (1 - 1e-12)).all() and (own > scale * 1.01).any()
    tensors = [t.detach() for t in layer.tensors()]
    net = _Network(tensors, 4)
    v, at = torch.randn_like(x), layer._turned(x)
    point = net.at(at)[1]
    assert (point.own <= net.steepest() * (1 + 1e-12)).all()
    dense = jacobian(lambda t: net.at(t)[0], at)
    for found, matrix in ((net.pushed(point, v), dense), (net.pulled(point, v), dense.mT)):
        torch.testing.assert_close(found.flatten(1), (matrix @ v.flatten(1)[..., None])[..., 0])


@pytest.mark.parametrize("size", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_the_iteration_ends_at_the_rounding_floor(size, precision, monkeypatch) -> None:
    """However strong the weights: what comes back is mapped to y up to rounding of the terms it is a sum of."""
    layer = Mint((2, 6, 6), 6)
    randomise(layer)
    with torch.no_grad():
        for part in layer.layers:
            part.weight.mul_(size)
        layer.scale.copy_(0.05 + layer.scale.abs())
    layer = layer.to(precision)
    x = 2 * torch.randn(6, 2, 6, 6).to(precision)
    calls: list[int] = []
    at = _Network.at
    monkeypatch.setattr(_Network, "at", lambda self, x: (calls.append(1), at(self, x))[1])
    with torch.no_grad():
        y = layer(x)[0]
        calls.clear()
        found = layer.inverse(y)[0]
        n = len(calls)
        terms = y.abs() + _Network(layer.tensors(), 6).with_terms(found)[2]
        assert ((layer(found)[0] - y).abs() <= 32 * torch.finfo(precision).eps * terms).all()
    assert n < {0.1: 18, 1.0: 36, 5.0: 144}[size]  # the numbers are 72


def test_a_row_of_the_iteration_does_not_look_at_its_neighbours() -> None:
    layer = Mint((1, 5, 5), 4)
    randomise(layer)
    y = torch.randn(3, 1, 5, 5)
    with torch.no_grad():
        x = layer.inverse(y)[0]
        y[1:] *= 40
        assert torch.equal(layer.inverse(y)[0][0], x[0])


def test_first_and_second_derivatives_of_the_inverse() -> None:
    """Of y and of every weight, against finite differences."""
    layer = loose(Mint((1, 2, 3), 2))
    names, values = zip(*layer.named_parameters(), strict=True)
    with torch.no_grad():
        layer.scale.abs_().add_(0.3)
    y = torch.randn(2, 1, 2, 3, dtype=torch.float64)

    def f(y: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        given = (y, None)
        return torch.func.functional_call(Turned(layer), dict(zip(keys, weights, strict=True)), given)

    class Turned(torch.nn.Module):
        def __init__(self, layer: Mint) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, y: Tensor, context: None) -> tuple[Tensor, Tensor]:
            return self.layer.inverse(y, context)

    keys = [f"layer.{name}" for name in names]
    wanted = [t.detach().requires_grad_() for t in (y, *values)]
    assert torch.autograd.gradcheck(f, wanted, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, wanted, fast_mode=True)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Mint((1, 4)), ValueError, r"transforms.Mint: shape must be \(C, H, W\), got \(1, 4\)"),
        (lambda: Mint((1, 4, 4), latents=0), ValueError, "transforms.Mint: latents must be at least 1, got 0"),
        (lambda: Mint((1, 4, 4))(torch.zeros(1, 4, 5)), ValueError, r"x must be \[\.\.\., 1, 4, 4\], got \[1, 4, 5\]"),
        (lambda: Mint((1, 4, 4))(torch.zeros(1, 4, 4).double()), TypeError, "x must be of the dtype of the weights"),
        (lambda: RowAutoregressive(2, rows, Affine(), "north"), ValueError, 'direction must be "down", "up"'),
        (lambda: RowAutoregressive(2, pixels, Affine()), TypeError, "must be a flowkernels.nets.RowC.*, got PixelCNN"),
        (lambda: RowAutoregressive(2, rows(2, 3), Affine()), ValueError, "must be of 2 to 4 channels, got 2 to 3"),
        (
            lambda: PixelAutoregressive(rows, Affine(), 1),
            TypeError,
            "must be a .*PixelCNN, got RowConvNet",
        ),
        (lambda: PixelAutoregressive(pixels, Affine()), ValueError, "channels must be given beside a function"),
        (lambda: PixelAutoregressive(pixels(1, 3), Affine()), ValueError, "must be of 1 to 2 channels, got 1 to 3"),
        (lambda: PixelAutoregressive(pixels, Mixture(2), 1, levels=1), ValueError, "levels must be 0 or at least 2"),
        (lambda: PixelAutoregressive(pixels, ops.Affine(), 1, levels=4), ValueError, "must be a Mixture of logistics"),
        (
            lambda: PixelAutoregressive(pixels, Mixture(2), 2)(torch.zeros(1, 4, 4)),
            ValueError,
            r"x must be \[\.\.\., 2, H, W\], got \[1, 4, 4\]",
        ),
    ],
)
def test_errors(build, error, message) -> None:
    with pytest.raises(error, match=message):
        build()


# ---- what asks to be called, activations in place, torch.func ----


def randomised(module: nn.Module, by: float = 0.3) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(by * torch.randn_like(p))
    return module


class Doubled(nn.Module):
    """A layer in place of another one."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.layer(x)


LAYERS_TO_HOOK = {
    "rows": lambda: RowAutoregressive(2, functools.partial(RowConvNet, hidden=6), Affine("tanh"), "left"),
    "pixels": lambda: PixelAutoregressive(functools.partial(PixelCNN, hidden=6, blocks=1), Affine("tanh"), 2),
    "levels": lambda: PixelAutoregressive(functools.partial(PixelCNN, hidden=6, blocks=1), Mixture(2), 1, levels=3),
}


@pytest.mark.parametrize(
    ("name", "how"),
    # How many rows a network of rows sees is read off its first layer.
    [
        (n, h)
        for n in LAYERS_TO_HOOK
        for h in ("layer", "net", "replaced", "subclass")
        if (n, h) != ("rows", "replaced")
    ],
)
def test_an_inverse_calls_what_asks_to_be_called(name, how) -> None:
    layer = randomised(LAYERS_TO_HOOK[name]())
    net = layer.conditioner
    x = torch.randn(2, layer.channels, 3, 2) if name != "levels" else torch.randint(3, (2, 1, 3, 2)).float()
    assert net.can_step
    if how == "replaced":
        net.initial_layer = Doubled(net.initial_layer)
    elif how == "subclass":
        kind = type(net)
        net.__class__ = type("Own", (kind,), {"forward": lambda self, x, context=None: 0.5 * kind.forward(self, x)})
    else:
        (net.initial_layer if how == "layer" else net).register_forward_hook(lambda m, i, o: 0.5 * o)
    assert not net.can_step
    y, ladj = layer(x)
    again, back = layer.inverse(y)
    torch.testing.assert_close(again, x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(back, -ladj, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [PixelCNN, RowConvNet])
def test_activations_in_place_write_to_no_parameter(kind) -> None:
    net = functools.partial(kind, hidden=6, activation=nn.ReLU(inplace=True))
    layer = RowAutoregressive(1, net, Affine()) if kind is RowConvNet else PixelAutoregressive(net, Affine(), 1)
    randomised(layer)
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    y = torch.randn(3, 1, 3, 3)
    x, _ = layer.inverse(y)
    assert all(torch.equal(t, before[name]) for name, t in layer.state_dict().items())
    torch.testing.assert_close(layer(x)[0], y, rtol=1e-4, atol=1e-4)
    assert all(g.isfinite().all() for g in torch.autograd.grad(x.sum(), list(layer.parameters())))


def test_a_context_of_images_is_checked_as_it_was_given() -> None:
    net = functools.partial(RowConvNet, hidden=6, context=3, context_dims=3)
    layer, x = RowAutoregressive(2, net, Affine(), "left"), torch.randn(3, 2, 4, 5)
    for context in (torch.randn(3, 3, 5, 4), torch.randn(3)):
        with pytest.raises(ValueError, match=r"context must be \[3, 3, 4, 5\], got"):
            layer(x, context)
    with pytest.raises(TypeError, match=r"context must be a torch\.Tensor"):
        layer.inverse(x, [1.0])
    assert layer(x, torch.randn(3, 3, 4, 5))[0].shape == x.shape


def test_the_inverse_of_mint_under_torch_func() -> None:
    layer = randomised(Mint((1, 2, 2), 2), 0.5).double()
    y, v = torch.randn(2, 1, 2, 2).double(), torch.randn(2, 1, 2, 2).double()
    for i in (0, 1):

        def found(y: Tensor, i: int = i) -> Tensor:
            return layer.inverse(y)[i].flatten()

        wanted = torch.autograd.functional.jacobian(found, y)
        torch.testing.assert_close(torch.func.jacfwd(found)(y), wanted)
        torch.testing.assert_close(torch.func.jacrev(found)(y), wanted)
        torch.testing.assert_close(torch.func.jvp(found, (y,), (v,))[1], wanted.flatten(1) @ v.flatten())
    torch.testing.assert_close(torch.vmap(lambda y: layer.inverse(y)[0])(y), layer.inverse(y)[0])
    with pytest.raises(TypeError, match=r"transforms\.Mint: y must be a torch\.Tensor"):
        layer.inverse([1])

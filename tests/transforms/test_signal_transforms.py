"""Transforms of signals [..., C, L]: squeeze, levels, layers of channels, couplings, sample after sample."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowkernels.nets import WaveNet
from flowkernels.transforms import (
    ActNorm,
    Affine,
    Composite,
    DiagonalScale,
    ImageCoupling,
    LUConv1x1,
    Mixture,
    MonotoneNet,
    MultiScale,
    Permutation,
    SignalAutoregressive,
    Squeeze,
    Unsqueeze,
)
from tests.flops import flops

from .test_transforms import randomise

pytestmark = pytest.mark.usefixtures("one_thread")
wave = functools.partial(WaveNet, hidden=5, layers=2)
causal = functools.partial(WaveNet, hidden=5, layers=3, kernel_size=2, causal=True)


def loose(layer: Any) -> Any:
    randomise(layer)
    return layer.double().eval()


def test_squeeze_of_signals_is_its_formula() -> None:
    x = torch.randn(4, 5, 2, 12)
    y, ladj = Squeeze(3, 2)(x)
    assert y.shape == (4, 5, 6, 4) and ladj.shape == (4, 5) and (ladj == 0).all()
    for c in range(2):
        for i in range(3):
            assert torch.equal(y[..., 3 * c + i, :], x[..., c, i::3])
    assert torch.equal(Unsqueeze(3, 2)(y)[0], x) and torch.equal(Squeeze(3, 2).inverse(y)[0], x)


def test_squeeze_of_images_by_three() -> None:
    x = torch.randn(2, 2, 6, 3)
    y = Squeeze(3)(x)[0]
    assert y.shape == (2, 18, 2, 1)
    assert torch.equal(y[:, 9 + 3 * 1 + 2], x[:, 1, 1::3, 2::3]) and torch.equal(Unsqueeze(3)(y)[0], x)


def test_two_channels_leave_after_each_level() -> None:
    layers = [loose(DiagonalScale((c, 2))) for c in (6, 4, 2)]
    levels = MultiScale([Composite([Squeeze(6, 2), layers[0]]), *layers[1:]], (1, 12), leave=2)
    x = torch.randn(3, 1, 12).double()
    a, ladj_a = layers[0](Squeeze(6, 2)(x)[0])
    b, ladj_b = layers[1](a[:, :4])
    c, ladj_c = layers[2](b[:, :2])
    z, ladj = levels(x)
    assert torch.equal(z, torch.cat([a[:, 4:].flatten(1), b[:, 2:].flatten(1), c.flatten(1)], 1))
    torch.testing.assert_close(ladj, ladj_a + ladj_b + ladj_c)
    torch.testing.assert_close(levels.inverse(z)[0], x)


def test_layers_of_channels_are_those_of_images_of_one_row() -> None:
    x = torch.randn(7, 4, 6)
    normed = ActNorm(4, channel_dim=1)
    assert torch.allclose(normed(3 + 2 * x)[0].std((0, 2), unbiased=False), torch.ones(4), atol=1e-5)
    for layer in (normed, LUConv1x1(4, seed=0), Permutation([2, 0, 3, 1], channel_dim=1)):
        (y, ladj), (image, of_image) = layer(x), layer(x[:, :, None])
        torch.testing.assert_close(y, image[:, :, 0])
        torch.testing.assert_close(ladj, of_image)


@pytest.mark.parametrize("mask", [[0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 1, 0]], ids=str)
def test_signal_coupling_is_its_definition(mask) -> None:
    layer = loose(ImageCoupling(mask, functools.partial(wave, context=3, context_dims=2), Affine("exp"), 2))
    x, context = torch.randn(5, 4, 7).double(), torch.randn(5, 3, 7).double()
    y, ladj = layer(x, context)
    moved = torch.tensor(mask).bool()
    log_s, t = layer.conditioner(x[:, ~moved], context).chunk(2, 1)
    assert torch.equal(y[:, ~moved], x[:, ~moved])
    torch.testing.assert_close(y[:, moved], x[:, moved] * log_s.exp() + t)
    torch.testing.assert_close(ladj, log_s.sum((1, 2)))


# ---- sample after sample ----


def autoregressive(univariate: Any, **settings: Any) -> Any:
    return loose(SignalAutoregressive(2, functools.partial(causal, **settings), univariate))


def test_signal_autoregressive_is_its_definition() -> None:
    layer = autoregressive(Affine("exp"))
    x = torch.randn(5, 2, 7).double()
    y, ladj = layer(x)
    late = torch.cat([torch.zeros(5, 2, 1).double(), x[..., :-1]], -1)
    log_s, t = layer.conditioner(late).chunk(2, 1)
    torch.testing.assert_close(y, x * log_s.exp() + t)
    torch.testing.assert_close(ladj, log_s.sum((1, 2)))
    J = torch.autograd.functional.jacobian(lambda v: layer(v)[0], x[0])
    for t_y in range(7):
        for t_x in range(7):
            block = J[:, t_y, :, t_x]
            if t_x == t_y:  # channels do not see each other
                assert (block.diagonal() != 0).all() and block[0, 1] == block[1, 0] == 0
            elif t_x > t_y:
                assert (block == 0).all()
    assert (J[:, 3, :, 2] != 0).all()


@pytest.mark.parametrize("univariate", [Affine(), Mixture(3), Mixture(2, outer="unit")], ids=str)
def test_the_inverse_by_steps_is_that_of_passes(univariate) -> None:
    layer = autoregressive(univariate, context=3)
    x, context = torch.randn(3, 4, 2, 9).double(), torch.randn(4, 3).double()
    y, ladj = layer(x, context)
    found, wanted = layer.inverse(y, context), layer._sample_by_sample(y, context)
    for a, b, exact in zip(found, wanted, (x, -ladj), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(a, exact, rtol=1e-6, atol=1e-6)


def test_gradients_of_the_inverse_are_those_of_passes() -> None:
    layer = autoregressive(Mixture(3), context=3)
    y, context = torch.randn(3, 2, 5).double().requires_grad_(), torch.randn(3, 3).double().requires_grad_()
    leaves = [y, context, *layer.parameters()]
    grads = []
    for run in (layer.inverse, layer._sample_by_sample):
        x, ladj = run(y, context)
        grads.append(torch.autograd.grad(x.sin().sum() + ladj.cos().sum(), leaves))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)


def test_the_inverse_multiplies_as_often_as_one_pass() -> None:
    """Each layer is applied to one sample a step; L passes would multiply L times as often."""
    layer, x = SignalAutoregressive(1, causal, Affine()), torch.randn(2, 1, 24)
    by_passes = functools.partial(layer._sample_by_sample, context=None)
    counts = [flops(functools.partial(run, x)) for run in (layer, layer.inverse, by_passes)]
    assert counts[0] == counts[1] > 0 and counts[2] == 24 * counts[0]


class Past(nn.Module):
    """A conditioner without steps: a running sum."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.repeat = out_channels // in_channels

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        return 0.1 * x.cumsum(-1).repeat_interleave(self.repeat, -2)


def test_any_causal_conditioner() -> None:
    layer, x = SignalAutoregressive(1, Past, Affine("exp")), torch.randn(3, 1, 6)
    y, ladj = layer(x)
    back, negated = layer.inverse(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(negated, -ladj)


def test_hooks_are_called() -> None:
    layer, x, calls = autoregressive(Affine()), torch.randn(2, 2, 4).double(), []
    y, _ = layer(x)
    layer.conditioner.gate_layers[0].register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(layer.inverse(y)[0], x)
    assert len(calls) == 4  # L passes


X = torch.zeros(2, 4, 6)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Squeeze(4, 2)(X), ValueError, r"signals must be \[C, L\] with L divisible by 4, got \[4, 6\]"),
        (lambda: Squeeze(2, 2)(X[..., 1:]), ValueError, r"with even L, got \[4, 5\]"),
        (lambda: Squeeze(2, 2)(X[0, 0]), ValueError, r"signals must be \[C, L\] .*, got \[6\]"),
        (lambda: Unsqueeze(3, 2)(X), ValueError, r"squeezed signals must be \[3C, L\], got \[4, 6\]"),
        (lambda: Squeeze(2, 1), ValueError, r"event_dims must be 2 \(signals\) or 3 \(images\), got 1"),
        (lambda: Squeeze(0), ValueError, "transforms.Squeeze: factor must be at least 1, got 0"),
        (lambda: MultiScale([Squeeze(2, 2)] * 2, (1, 8), 0), ValueError, "MultiScale: leave must be at least 1, got 0"),
        (
            lambda: MultiScale([Squeeze(2, 2)] * 2, (1, 8), 2),
            ValueError,
            r"signals must have more than 2 channels, got \[2, 4\] after level 1",
        ),
        (
            lambda: MultiScale([Composite([])] * 2, (3, 8)),
            ValueError,
            r"signals to be halved must have even C, got \[3, 8\] after level 1",
        ),
        (lambda: MultiScale([Squeeze(2, 2)], (1, 8))(X), ValueError, r"x must be \[\.\.\., 1, 8\], got \[2, 4, 6\]"),
        (
            lambda: ImageCoupling([0, 1], wave, Affine(), 2)(X),
            ValueError,
            r"ImageCoupling: x must be \[\.\.\., 2, L\], got \[2, 4, 6\]",
        ),
        (lambda: ImageCoupling(torch.ones(1, 2, 2), wave, Affine(), 2), ValueError, r"mask must be \[C\] or \[C, L\]"),
        (
            lambda: ImageCoupling([0, 0, 1, 1], WaveNet(2, 3), Affine(), 2)(X),
            ValueError,
            r"conditioner must return \[\.\.\., 4, L\], got \[2, 3, 6\]",
        ),
        (lambda: ImageCoupling([0, 1], wave, Affine(), 1), ValueError, "event_dims must be 2 .*, got 1"),
        (lambda: SignalAutoregressive(1, WaveNet, Affine()), ValueError, "conditioner must be causal, got one that is"),
        (lambda: SignalAutoregressive(1, 3, Affine()), TypeError, "conditioner must be a module .*, got int"),
        (lambda: SignalAutoregressive(1, causal, "affine"), TypeError, "univariate must be a map"),
        (lambda: SignalAutoregressive(1, causal, Affine())(X), ValueError, r"x must be \[\.\.\., 1, L\], got \[2, 4"),
        (
            lambda: SignalAutoregressive(4, causal, Affine()).inverse(X[..., :0]),
            ValueError,
            r"x must have at least one sample, got \[2, 4, 0\]",
        ),
        (
            lambda: SignalAutoregressive(4, causal(4, 5), Affine())(X),
            ValueError,
            r"SignalAutoregressive: conditioner must return \[\.\.\., 8, L\], got \[2, 5, 6\]",
        ),
        (lambda: SignalAutoregressive(1, causal, MonotoneNet(1))(X[:, :1]), ValueError, "event_dims must be 1"),
    ],
)
def test_errors(build, error, message) -> None:
    with pytest.raises(error, match=message):
        build()

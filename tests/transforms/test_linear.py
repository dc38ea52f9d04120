"""LULinear and LUConv1x1: they start as rotations, stay invertible, and come back from a checkpoint as they were."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor

from flowkernels.transforms import LUConv1x1, LULinear

CASES = {
    "features": (lambda seed=0: LULinear(5, seed=seed), (9, 5)),
    "no bias": (lambda seed=0: LULinear(4, bias=False, seed=seed), (2, 3, 4)),
    "one feature": (lambda seed=0: LULinear(1, seed=seed), (9, 1)),
    "channels": (lambda seed=0: LULinear(3, channel_dim=1, seed=seed), (4, 3, 5)),
    "permutation": (lambda seed=0: LULinear(5, init="permutation", seed=seed), (9, 5)),
    "identity": (lambda seed=0: LULinear(5, init="identity", seed=seed), (9, 5)),
    "images": (lambda seed=0: LUConv1x1(6, seed=seed), (3, 6, 4, 4)),
    "images, bias": (lambda seed=0: LUConv1x1(6, bias=True, seed=seed), (3, 6, 2, 2)),
}
EVERY = pytest.mark.parametrize(("build", "shape"), CASES.values(), ids=CASES.keys())


@pytest.fixture(autouse=True)
def small(threads) -> None:
    threads(1)


def trained(
    build, shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[LULinear, Tensor]:
    """A layer away from its start, and an x."""
    layer = build(seed).to(dtype)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in layer.parameters():
            p += 0.3 * torch.randn(p.shape, generator=g, dtype=torch.float64).to(dtype)
    return layer, torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)


@EVERY
def test_starts_as_a_rotation(build, shape) -> None:
    layer, x = build(), torch.randn(shape)
    y, ladj = layer(x)
    torch.testing.assert_close(y.norm(dim=layer.channel_dim), x.norm(dim=layer.channel_dim))
    torch.testing.assert_close(ladj, torch.zeros_like(ladj), rtol=0, atol=1e-4)
    assert layer.features == 1 or (y - x).abs().max() > 0.1 or build is CASES["identity"][0]
    assert set(layer.sign_s.tolist()) <= {-1.0, 1.0}


@pytest.mark.parametrize("kind", [LULinear, LUConv1x1])
def test_starts_that_keep_numbers(kind) -> None:
    """The identity to the bit and without a draw, and permutations, of which each seed has its own."""
    x = torch.randn(3, 6, 2, 2) if kind is LUConv1x1 else torch.randn(3, 6)
    state = torch.get_rng_state()
    layer = kind(6, init="identity")
    assert torch.equal(torch.get_rng_state(), state)
    for y, ladj in (layer(x), layer.inverse(x)):
        assert torch.equal(y, x) and not ladj.any()
    orders = set()
    for seed in range(5):
        layer = kind(6, init="permutation", seed=seed)
        order, y = layer.permutation, layer(x)[0]
        assert torch.equal(y, x[:, order]) and not layer(x)[1].any()
        assert torch.equal(layer.inverse(y)[0], x)
        orders.add(tuple(order.tolist()))
    assert len(orders) == 5


def test_seeds() -> None:
    same, other = LULinear(6, seed=3), LULinear(6, seed=4)
    assert torch.equal(LULinear(6, seed=3).lower, same.lower) and not torch.equal(other.lower, same.lower)
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(LULinear(6, seed=generator).upper, same.upper)
    assert not torch.equal(LULinear(6, seed=generator).upper, same.upper)
    torch.manual_seed(5)
    first = LULinear(6)
    torch.manual_seed(5)
    assert torch.equal(LULinear(6).upper, first.upper)
    assert sorted(same.permutation.tolist()) == list(range(6)) and same.permutation.dtype == torch.int64


@EVERY
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_round_trip(build, shape, precision) -> None:
    layer, x = trained(build, shape, precision)
    y, ladj = layer(x)
    back, neg = layer.inverse(y)
    torch.testing.assert_close(back, x, rtol=0, atol=200 * torch.finfo(precision).eps)
    assert torch.equal(neg, -ladj)
    other, ladj2 = layer.inverse(x)
    torch.testing.assert_close(layer(other)[0], x, rtol=0, atol=200 * torch.finfo(precision).eps)
    assert torch.equal(ladj2, -ladj)


@EVERY
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_ladj_is_the_slogdet(build, shape, direction) -> None:
    layer, x = trained(build, shape)
    f = getattr(layer, direction)
    image = layer.channel_dim == 1
    one = x[0] if image else x.reshape(-1, shape[-1])[0]

    def flat(v: Tensor) -> Tensor:
        return f(v.reshape(1, *one.shape))[0].flatten()

    J = torch.autograd.functional.jacobian(flat, one.flatten())
    ladj = f(x)[1]
    assert ladj.shape == (shape[:1] if image else shape[:-1])
    torch.testing.assert_close(ladj, torch.linalg.slogdet(J).logabsdet.expand(ladj.shape))


@EVERY
def test_every_parameter_learns(build, shape) -> None:
    layer, x = trained(build, shape)
    y, ladj = layer(x)
    (0.5 * y.square().sum() - ladj.sum()).backward()
    for name, p in layer.named_parameters():
        used = torch.ones_like(p).tril(-1) if name == "lower" else torch.ones_like(p).triu(1) if name == "upper" else 1
        assert p.grad is not None and torch.equal(p.grad != 0, used * torch.ones_like(p) != 0), name


@EVERY
def test_state_dict_and_copies(build, shape) -> None:
    layer, x = trained(build, shape)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = trained(build, shape, seed=1)[0]
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for other in (loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        for a, b in zip((*layer(x), *layer.inverse(x)), (*other(x), *other.inverse(x)), strict=True):
            assert torch.equal(a, b)


@EVERY
def test_compile(build, shape) -> None:
    layer, x = trained(build, shape)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: (*layer(x), *layer.inverse(x)), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), (*layer(x), *layer.inverse(x)))


def test_repr() -> None:
    assert repr(LULinear(3)) == "LULinear(3, channel_dim=-1, bias=True)"
    assert repr(LUConv1x1(3)) == "LUConv1x1(3, bias=False)"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LULinear(0), "LULinear: features must be a positive integer, got 0"),
        (lambda: LULinear(2.0), "LULinear: features must be a positive integer, got 2.0"),  # type: ignore[arg-type]
        (lambda: LULinear(2, channel_dim=2), r"LULinear: channel_dim must be -1 .* or 1 .*, got 2"),
        (lambda: LULinear(2, init="one"), "LULinear: init must be .*, got 'one'"),
        (lambda: LULinear(2)(torch.zeros(3, 4)), r"LULinear: x must be \[..., 2\], got \[3, 4\]"),
        (lambda: LUConv1x1(2)(torch.zeros(3, 4, 5, 5)), r"LUConv1x1: x must be \[N, 2, ...\], got \[3, 4, 5, 5\]"),
        (lambda: LUConv1x1(2).inverse(torch.zeros(2)), r"LUConv1x1: x must be \[N, 2, ...\], got \[2\]"),
    ],
)
def test_errors(call, message) -> None:
    with pytest.raises(ValueError, match="transforms." + message):
        call()

"""What the table of test_transforms.py does not ask of the layers on images, of whole numbers and of batches."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
from torch import Tensor, nn
from torch import distributions as td

from flowkernels import ops
from flowkernels.distributions import DiagonalNormal, UniformBox
from flowkernels.flows import Flow, bits_per_dim
from flowkernels.nets import MLP, ConvNet, ConvResNet
from flowkernels.transforms import (
    RQS,
    Affine,
    BatchNorm,
    Composite,
    Coupling,
    Dequantize,
    DiagonalScale,
    ImageCoupling,
    Logit,
    MultiScale,
    Permutation,
    Squeeze,
    Transform,
    Unsqueeze,
    VariationalDequantize,
    checkerboard,
)
from tests.transforms.test_transforms import jacobian, randomise

net = functools.partial(ConvNet, hidden=(8,))


@pytest.fixture(autouse=True)
def one_thread(threads) -> None:
    """Small tensors: a second thread costs more than it gives."""
    threads(1)


def loose(transform: Transform) -> Transform:
    randomise(transform)
    return transform.double().eval()


# ---- coupling ----


@pytest.mark.parametrize("scale", ["exp", "tanh", "sigmoid", "softplus", "additive"])
@pytest.mark.parametrize("mask", [[0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 1]])
def test_channel_coupling_is_its_definition(mask, scale) -> None:
    """With the split written out by hand, and the parameters in blocks of channels."""
    layer = loose(ImageCoupling(mask, net, Affine(scale)))
    x = torch.randn(3, 4, 5, 2, dtype=torch.float64)
    kept, moved = [i for i, m in enumerate(mask) if not m], [i for i, m in enumerate(mask) if m]
    h = layer.conditioner(x[:, kept])
    params = h.unsqueeze(-1) if scale == "additive" else torch.stack((h[:, :2], h[:, 2:]), -1)
    for f in (layer, layer.inverse):
        spec = layer.univariate.spec
        value, ladj = ops.affine(
            x[:, moved], params, scale=scale, min_scale=spec.min_scale, event_dims=3, inverse=f != layer
        )
        y, total = f(x)
        assert torch.equal(y[:, kept], x[:, kept])
        torch.testing.assert_close(y[:, moved], value)
        torch.testing.assert_close(total, ladj)


@pytest.mark.parametrize("univariate", [Affine("tanh"), Affine("additive"), RQS(bins=4)], ids=["tanh", "add", "rqs"])
def test_pixel_coupling_is_its_definition(univariate) -> None:
    """y = b x + (1 - b) f(x; s(b x), t(b x)) with masked copies of everything."""
    mask = checkerboard(2, 3, 4)
    layer = loose(ImageCoupling(mask, net, univariate))
    x = torch.randn(3, 2, 3, 4, dtype=torch.float64)
    b = (~mask).double()
    params = layer.conditioner(b * x).unflatten(1, (univariate.n_params, 2)).movedim(1, -1)
    value, ladj = univariate(x.unsqueeze(-1), params.unsqueeze(-2), False)
    y, total = layer(x)
    torch.testing.assert_close(y, b * x + (1 - b) * value.squeeze(-1))
    torch.testing.assert_close(total, ((1 - b) * ladj).sum((1, 2, 3)))


def test_what_is_kept_is_kept_bit_for_bit_and_alone_is_seen() -> None:
    """A NaN among the pixels that are mapped stays where it is."""
    mask = checkerboard(1, 4, 4)
    for univariate in (Affine("tanh"), RQS(bins=4)):
        layer = loose(ImageCoupling(mask, net, univariate))
        x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
        y = layer(x)[0]
        assert torch.equal(y[:, ~mask], x[:, ~mask]) and (y[:, mask] != x[:, mask]).float().mean() > 0.9
        broken = x.clone()
        broken[:, 0, 0, 1] = math.nan
        again = layer(broken)[0]
        assert again[:, 0, 0, 1].isnan().all() and again.isnan().sum() == 3
        assert torch.equal(again.nan_to_num(0.0)[:, 0, 1:], y[:, 0, 1:])


def test_two_boards_map_every_pixel() -> None:
    first, second = checkerboard(2, 3, 5), checkerboard(2, 3, 5, phase=1)
    assert torch.equal(first, ~second) and first.shape == (2, 3, 5)
    assert not first[0, 0, 0] and first[1, 0, 1] and first[0, 1, 0] and not first[1, 1, 1]


def test_halves_are_views() -> None:
    x = torch.randn(2, 4, 3, 3)
    for part in ImageCoupling([0, 0, 1, 1], net, Affine("tanh")).split.split(x):
        assert part.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def test_another_mask_of_pixels_comes_with_the_weights() -> None:
    source, target = (ImageCoupling(checkerboard(1, 2, 4, p), net, Affine("tanh")) for p in (0, 1))
    randomise(source)
    target.load_state_dict(source.state_dict())
    x = torch.randn(3, 1, 2, 4)
    assert torch.equal(source(x)[0], target(x)[0])


def test_parameters_are_not_copied() -> None:
    """What the map gets is a view of what the network gave."""
    seen = []

    class Spy(Affine):
        def __call__(self, x: Tensor, params: Tensor, *rest, **named) -> tuple[Tensor, Tensor]:
            seen.append(params)
            return super().__call__(x, params, *rest, **named)

    class Own(nn.Module):
        def __init__(self, a: int, b: int) -> None:
            super().__init__()
            self.out = torch.zeros(3, b, 4, 4)

        def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
            return self.out

    for mask in ([0, 1], checkerboard(2, 4, 4)):
        layer = ImageCoupling(mask, Own, Spy("tanh"))
        layer(torch.randn(3, 2, 4, 4))
        assert seen.pop().data_ptr() == layer.conditioner.out.data_ptr()


# ---- squeeze and scales ----


def test_squeeze_is_its_formula() -> None:
    x = torch.randn(3, 2, 4, 6)
    y = Squeeze()(x)[0]
    assert y.shape == (3, 8, 2, 3)
    for c in range(2):
        for i in range(2):
            for j in range(2):
                assert torch.equal(y[:, 4 * c + 2 * i + j], x[:, c, i::2, j::2])
    assert torch.equal(Unsqueeze()(y)[0], x) and torch.equal(Squeeze().inverse(y)[0], x)
    assert Squeeze().latent_shape((1, 4, 4)) == (4, 2, 2) and Unsqueeze().latent_shape((4, 2, 2)) == (1, 4, 4)


def test_squeeze_is_that_of_nflows() -> None:
    """Weights behind it can be carried over."""
    nflows = pytest.importorskip("nflows.transforms", reason="nflows is not installed")
    x = torch.randn(3, 2, 4, 6)
    assert torch.equal(Squeeze()(x)[0], nflows.SqueezeTransform()(x)[0])


def test_multi_scale_by_hand() -> None:
    first, second = loose(ImageCoupling(checkerboard(1, 4, 4), net, Affine("tanh"))), loose(DiagonalScale((8, 1, 1)))
    levels = MultiScale([Composite([first, Squeeze()]), Composite([Squeeze(), second])], (1, 4, 4))
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    h, ladj = first(x)
    h = Squeeze()(h)[0]
    last, ladj2 = second(Squeeze()(h[:, :2])[0])
    z, total = levels(x)
    torch.testing.assert_close(z, torch.cat((h[:, 2:].flatten(1), last.flatten(1)), 1))
    torch.testing.assert_close(total, ladj + ladj2)
    assert levels.latent_shape((1, 4, 4)) == (16,) and levels.data_shape((16,)) == (1, 4, 4)
    nested = MultiScale([Squeeze(), MultiScale([Squeeze()], (2, 2, 2))], (1, 4, 4))
    torch.testing.assert_close(nested.inverse(nested(x)[0])[0], x)


def test_permutation_of_channels() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(Permutation([2, 0, 1], channel_dim=1)(x)[0], x[:, [2, 0, 1]])
    assert torch.equal(Permutation.reverse(3, channel_dim=1)(x)[0], x.flip(1))
    drawn = Permutation.random(3, 0, channel_dim=1)
    assert torch.equal(drawn.order, Permutation.random(3, 0).order) and drawn(x)[1].shape == (2,)


# ---- pixels ----


def test_logit_is_its_formula() -> None:
    x = torch.rand(7, 5, dtype=torch.float64)
    for alpha, upper in ((0.05, 0.95), (0.1, 1.0), (0.0, 1.0)):
        y, ladj = Logit(alpha, upper)(x)
        s = alpha + (upper - alpha) * x
        torch.testing.assert_close(y, s.log() - (1 - s).log())
        torch.testing.assert_close(ladj, (math.log(upper - alpha) - s.log() - (1 - s).log()).sum(-1))
    assert Logit(0.05).upper == 0.95


def test_logit_far_out() -> None:
    """Where the sigmoid is 0 or 1, its logarithms are not infinite."""
    y = torch.tensor([[-800.0, 800.0]], dtype=torch.float64)
    x, ladj = Logit(0.0, 1.0).inverse(y)
    assert ((x >= 0) & (x <= 1)).all() and ladj.item() == -1600


def test_bits_per_dim_with_the_logit_term() -> None:
    """The formula of the paper, written for the model's own logits, and what the flow itself says."""
    torch.manual_seed(0)
    alpha, D = 0.05, 6
    logit, model = Logit(alpha, 1.0), Flow(DiagonalScale(D), UniformBox([-9.0] * D, [9.0] * D)).double()
    whole = Flow(Composite([logit, model.transform]), model.base).double()
    x = torch.rand(20, D, dtype=torch.float64)
    y = logit(x)[0]
    sigmas = (torch.log2(torch.sigmoid(y)) + torch.log2(1 - torch.sigmoid(y))).mean(-1)
    paper = -model.log_prob(y) / (D * math.log(2)) + sigmas + 8 - math.log2(1 - alpha)
    torch.testing.assert_close(bits_per_dim(whole.log_prob(x), D), paper)
    torch.testing.assert_close(bits_per_dim(model.log_prob(y) + logit(x)[1], D, bins=256), paper)


def test_bits_per_dim_of_a_known_code() -> None:
    """A uniform density costs log2 of the bins; a flow with dequantisation in it says so by itself."""
    assert bits_per_dim(torch.tensor(0.0), 5, bins=16) == 4
    flow = Flow(Dequantize(16), UniformBox([0.0] * 5, [1.0] * 5))
    bits = bits_per_dim(flow.log_prob(torch.randint(0, 16, (7, 5))), 5, bins=1)
    torch.testing.assert_close(bits, torch.full((7,), 4.0))
    half = bits_per_dim(UniformBox([0.0] * 5, [0.5] * 5).log_prob(torch.rand(7, 5) / 2), 5, bins=16)
    torch.testing.assert_close(half, torch.full((7,), 3.0))


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("levels", [2, 17, 49, 256, 1000])
def test_dequantize_comes_back_whatever_is_drawn(kind, levels, monkeypatch) -> None:
    """Also at both ends of the noise, where rounding would make a number its neighbour."""
    levels = min(levels, 256) if kind in (torch.uint8, torch.bfloat16) else levels
    x = torch.arange(levels).to(kind)
    layer = Dequantize(levels)
    monkeypatch.setattr(layer, "_log_density", lambda x, u: x.new_zeros(()))
    for value in (0.0, 0.3, 1.0):
        monkeypatch.setattr(torch, "rand", lambda shape, value=value, **kw: torch.full(shape, value, **kw))
        y, _ = layer(x)
        assert y.dtype == (torch.float64 if kind is torch.float64 else torch.float32)
        assert (y > 0).all() and (y < 1).all()
        assert torch.equal(layer.inverse(y)[0].to(kind), x)
    assert layer.inverse(torch.tensor([-0.5, 2.0]))[0].tolist() == [0, levels - 1]


def test_dequantize_is_uniform() -> None:
    """Kolmogorov-Smirnov, 20,000 draws: a distance of 0.0195 has odds of 1e-6."""
    torch.manual_seed(0)
    n = 20_000
    u = (Dequantize(8)(torch.full((n, 1), 3))[0] * 8 - 3)[:, 0].sort().values
    assert (u - torch.arange(n) / n).abs().max() < 0.0195
    assert Dequantize(8)(torch.zeros(4, 3))[1].tolist() == pytest.approx([-3 * math.log(8)] * 4)


def noisy(D: int = 2, levels: int = 5) -> VariationalDequantize:
    layers = [Coupling(m, lambda a, b: MLP(a, b, (8,), context=D), Affine("tanh")) for m in ([0, 1], [1, 0], [0, 1])]
    return loose(VariationalDequantize(Composite(layers), levels))


def test_variational_noise_has_the_density_that_is_said() -> None:
    """log q(u | x) against the Jacobian of u by the draw of a normal, and its integral over the unit square."""
    layer = noisy()
    x = torch.tensor([1.0, 4.0], dtype=torch.float64)
    epsilon = torch.randn(9, 2, dtype=torch.float64)
    given = (x / 4 - 0.5).expand(9, 2)

    def noise(e: Tensor) -> Tensor:
        return torch.sigmoid(layer.noise.inverse(e, given)[0])

    normal = td.Normal(0, 1).log_prob(epsilon).sum(-1)
    wanted = normal - torch.linalg.slogdet(jacobian(noise, epsilon)).logabsdet
    u = noise(epsilon)
    torch.testing.assert_close(layer._log_density(x.expand(9, 2), u), wanted)
    torch.manual_seed(0)
    y, ladj = layer(x.expand(9, 2))
    torch.testing.assert_close(ladj, -layer._log_density(x.expand(9, 2), y * 5 - x) - 2 * math.log(5))
    edge = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    square = torch.cartesian_prod(edge, edge)
    assert abs(layer._log_density(x.expand(len(square), 2), square).exp().mean() - 1) < 1e-2
    assert (layer._log_density(x.flip(0).expand(9, 2), u) - wanted).abs().max() > 1e-3  # it looks at x


def test_variational_bound_is_a_bound_and_training_tightens_it() -> None:
    """On a density with a known log P: the mean of the estimate stays below it, and learned noise comes nearer."""
    torch.manual_seed(0)
    levels, D = 4, 2
    narrow = Flow(Logit(0.0, 1.0), DiagonalNormal(D, 0.0, -0.5, learnable=False))  # nearly zero near 0 and 1
    x = torch.tensor([[0, 3]]).expand(4000, D)
    edge = (torch.arange(200) + 0.5) / 200
    cell = (torch.cartesian_prod(edge, edge) + torch.tensor([0, 3])) / levels
    exact = (narrow.log_prob(cell) - D * math.log(levels)).exp().mean().log()  # of the whole numbers, by midpoints
    noise = Composite([Coupling(m, lambda a, b: MLP(a, b, (16,), context=D), Affine("tanh")) for m in ([0, 1], [1, 0])])
    uniform = Composite([Dequantize(levels), narrow.transform])
    learned = Composite([VariationalDequantize(noise, levels), narrow.transform])

    def bound(transform: Transform) -> Tensor:
        return Flow(transform, narrow.base).log_prob(x).mean()

    before = bound(uniform)
    optimizer = torch.optim.Adam(noise.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        (-bound(learned)).backward()
        optimizer.step()
    with torch.no_grad():
        after = bound(learned)
    gap_before, gap_after = exact - before, exact - after
    assert gap_before > 0.1 and -0.02 < gap_after < 0.3 * gap_before


# ---- batches ----


@pytest.mark.parametrize("channel_dim", [-1, 1])
def test_batch_norm_by_hand(channel_dim) -> None:
    torch.manual_seed(0)
    layer = BatchNorm(3, channel_dim=channel_dim, eps=1e-3, momentum=0.25).double()
    randomise(layer)
    x = 2 + 3 * torch.randn(*((50, 3, 2, 2) if channel_dim == 1 else (5, 40, 3)), dtype=torch.float64)
    rows = x.movedim(channel_dim, -1).reshape(-1, 3)
    mean, var = rows.mean(0), rows.var(0, correction=0)
    scale = layer.log_scale.exp() / (var + 1e-3).sqrt()
    pixels = 4 if channel_dim == 1 else 1
    y, ladj = layer(x)
    torch.testing.assert_close(y.movedim(channel_dim, -1).reshape(-1, 3), (rows - mean) * scale + layer.shift)
    torch.testing.assert_close(ladj, (pixels * scale.log().sum()).expand(x.shape[:1] if pixels > 1 else x.shape[:2]))
    torch.testing.assert_close(layer.running_mean, 0.25 * mean)
    torch.testing.assert_close(layer.running_var, 0.75 + 0.25 * var)
    layer.eval()
    before = copy.deepcopy(layer.state_dict())
    y, ladj = layer(x)
    scale = layer.log_scale.exp() / (layer.running_var + 1e-3).sqrt()
    moved = (rows - layer.running_mean) * scale + layer.shift
    torch.testing.assert_close(y.movedim(channel_dim, -1).reshape(-1, 3), moved)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_batch_norm_gradients_flow_through_the_statistics() -> None:
    layer = BatchNorm(2).double()
    randomise(layer)
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)

    def f(x: Tensor, log_scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        fresh = copy.deepcopy(layer)
        return torch.func.functional_call(fresh, {"log_scale": log_scale, "shift": shift}, x)

    assert torch.autograd.gradcheck(f, (x, layer.log_scale, layer.shift))
    shifted = torch.autograd.grad(f(x, layer.log_scale, layer.shift)[0].sin().sum(), x)[0]
    assert shifted.sum(0).abs().max() < 1e-12  # moving the whole batch changes nothing


def test_batch_norm_samples_by_the_running_numbers_in_both_modes() -> None:
    layer = BatchNorm(3)
    layer(1 + 2 * torch.randn(100, 3))
    y = torch.randn(4, 3)
    training = layer.inverse(y)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    layer.eval()
    for a, b in zip(training, layer.inverse(y), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_batch_norm_of_an_empty_batch() -> None:
    layer = BatchNorm(3)
    y, ladj = layer(torch.zeros(0, 3))
    assert y.shape == (0, 3) and ladj.shape == (0,) and layer.running_mean.isfinite().all()


X = torch.zeros(2, 4, 4, 4)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: ImageCoupling([[0, 1]], net, Affine()),
            ValueError,
            r"mask must be \[C\] or \[C, H, W\] .*got \[1, 2\]",
        ),
        (lambda: ImageCoupling([0, 2], net, Affine()), ValueError, r"ImageCoupling: mask must .* \[2\] with \[0, 2\]"),
        (lambda: ImageCoupling([0, 0], net, Affine()), ValueError, r"at least one 1, got \[2\] with \[0\]"),
        (lambda: ImageCoupling([0, 1], 3, Affine()), TypeError, "conditioner must be a module .*, got int"),
        (
            lambda: ImageCoupling([0, 1], net, Affine())(X),
            ValueError,
            r"x must be \[\.\.\., 2, H, W\], got \[2, 4, 4, 4\]",
        ),
        (
            lambda: ImageCoupling(checkerboard(4, 4, 2), net, Affine())(X),
            ValueError,
            r"x must be \[\.\.\., 4, 4, 2\], got \[2, 4, 4, 4\]",
        ),
        (
            lambda: ImageCoupling([0, 0, 1, 1], ConvResNet(2, 5), Affine())(X),
            ValueError,
            r"must return \[\.\.\., 4, H, W\], got \[2, 5, 4, 4\]",
        ),
        (lambda: Squeeze()(torch.zeros(1, 3, 4)), ValueError, r"Squeeze: images must .* even H and W, got \[1, 3, 4\]"),
        (lambda: Squeeze()(torch.zeros(4, 4)), ValueError, r"images must be \[C, H, W\] .*, got \[4, 4\]"),
        (lambda: Unsqueeze()(torch.zeros(6, 2, 2)), ValueError, r"must be \[4C, H, W\], got \[6, 2, 2\]"),
        (lambda: MultiScale([], (1, 4, 4)), ValueError, "there must be a level and a shape .*, got 0 and"),
        (lambda: MultiScale([Squeeze()], (4,)), ValueError, r"a shape \(C, H, W\) or \(C, L\), got 1 and \(4,\)"),
        (lambda: MultiScale([Composite([])] * 2, (1, 4, 4)), ValueError, r"even C, got \[1, 4, 4\] after level 1"),
        (lambda: MultiScale([Squeeze()], (1, 4, 4))(X), ValueError, r"x must be \[\.\.\., 1, 4, 4\], got"),
        (
            lambda: MultiScale([Squeeze()], (1, 4, 4)).inverse(X),
            ValueError,
            r"y must be \[\.\.\., 16\], got \[2, 4, 4, 4\]",
        ),
        (
            lambda: MultiScale([Squeeze()], (1, 4, 4))(X[:, :1], torch.zeros(3, 5)),
            ValueError,
            r"MultiScale: context must broadcast to \[2, 5\], got \[3, 5\]",
        ),
        (lambda: Permutation([0, 1], channel_dim=2), ValueError, "Permutation: channel_dim must be .*, got 2"),
        (lambda: Permutation([0, 1], channel_dim=1)(X), ValueError, r"x must be \[N, 2, \.\.\.\], got \[2, 4, 4, 4\]"),
        (lambda: BatchNorm(0), ValueError, "BatchNorm: features must be a positive integer, got 0"),
        (lambda: BatchNorm(3)(X), ValueError, r"BatchNorm: x must be \[\.\.\., 3\], got \[2, 4, 4, 4\]"),
        (lambda: BatchNorm(3).eval()(X), ValueError, r"BatchNorm: x must be \[\.\.\., 3\], got \[2, 4, 4, 4\]"),
        (lambda: Logit(0.5, 0.5), ValueError, r"0 <= alpha < upper <= 1, got 0.5 and 0.5"),
        (lambda: Logit(-0.1), ValueError, "Logit: alpha and upper must be .*, got -0.1 and 1.1"),
        (lambda: Logit(event_dims=4), ValueError, r"1 \(features\), 2 \(signals\) or 3 \(images\), got 4"),
        (lambda: Dequantize(1), ValueError, "transforms.Dequantize: levels must be at least 2, got 1"),
        (lambda: Dequantize(4, event_dims=0), ValueError, "Dequantize: event_dims must be 1 .*, got 0"),
        (lambda: VariationalDequantize(nn.Identity()), TypeError, "VariationalDequantize: .* Transform, got Identity"),
        (
            lambda: DiagonalScale((2, 3))(X),
            ValueError,
            r"DiagonalScale: x must be \[\.\.\., 2, 3\], got \[2, 4, 4, 4\]",
        ),
        (lambda: bits_per_dim(X, 0), ValueError, "flows.bits_per_dim: dims must be at least 1, got 0"),
        (lambda: bits_per_dim(X, 4, bins=0), ValueError, "flows.bits_per_dim: bins must be at least 1, got 0"),
    ],
)
def test_errors(build, error, message) -> None:
    with pytest.raises(error, match=message):
        build()

"""The affine map: its definition, its inverse, its log-determinant, gradients, contract."""

import math

import pytest
import torch

from flowkernels import ops
from flowkernels.ops.affine import spec
from flowkernels.transforms import Affine
from tests.cases import SHAPES
from tests.numbers import assert_within_rule
from tests.ops.masked import backends_of
from tests.ops.spline import weights

pytestmark = pytest.mark.usefixtures("one_thread", "machine")

KERNEL = backends_of("affine")[0]
SCALES = [
    ("exp", 0.0), ("softplus", 0.0), ("softplus", 1e-3), ("sigmoid", 0.0), ("sigmoid", 1e-3), ("tanh", 0.0),
    ("soft_clip", 0.0), ("clip", 0.0), ("reciprocal_sigmoid", 0.0), ("atan", 0.0), ("additive", 0.0),
]  # fmt: skip
EVERY = pytest.mark.parametrize(("scale", "floor"), SCALES)


def randn(shape: tuple[int, ...], g: torch.Generator) -> torch.Tensor:
    """The same numbers on every device; the tests of a GPU make it the default device."""
    return torch.randn(shape, generator=g, dtype=torch.float64, device="cpu").to(torch.get_default_device())


def draw(lead: tuple[int, ...], scale: str, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    n = 1 if scale == "additive" else 2
    return (randn(lead, g).to(dtype), randn((*lead, n), g).to(dtype))


@pytest.mark.interpreted
@EVERY
def test_is_its_definition(scale, floor) -> None:
    x, params = draw((3, 4), scale)
    y, ladj = ops.affine(x, params, scale=scale, min_scale=floor)
    for i in range(3):
        total = 0.0
        for d in range(4):
            u, t = (0.0, params[i, d, 0].item()) if scale == "additive" else params[i, d].tolist()
            s = {
                "exp": math.exp(u),
                "softplus": math.log1p(math.exp(u)) + floor,
                "sigmoid": 1 / (1 + math.exp(-u - 2)) + floor,
                "tanh": math.exp(2 * math.tanh(u / 2)),
                "clip": math.exp(u),
                "soft_clip": math.exp(u / (1 + abs(u) / 2)),
                "reciprocal_sigmoid": 1 + math.exp(-u - 2),
                "atan": math.exp(4 / math.pi * math.atan(u * math.pi / 4)),
                "additive": 1.0,
            }[scale]
            assert y[i, d].item() == pytest.approx(s * x[i, d].item() + t, rel=1e-14, abs=1e-14)
            total += math.log(s)
        assert ladj[i].item() == pytest.approx(total, rel=1e-13, abs=1e-13)


def test_is_nflows() -> None:
    nflows = pytest.importorskip("nflows.transforms", reason="nflows is not installed")
    torch.manual_seed(0)
    layer = nflows.MaskedAffineAutoregressiveTransform(5, 16).double()
    x = torch.randn(9, 5).double()
    params = layer.autoregressive_net(x).view(9, 5, 2)
    torch.testing.assert_close(ops.affine(x, params, scale="softplus", min_scale=1e-3), layer(x))


@pytest.mark.thinned(2)
@EVERY
@pytest.mark.parametrize("lead", [(5, 3), (1, 1), (0, 3), (7,), (2, 0, 3), (4, 0)])
def test_round_trip(scale, floor, lead, dtype) -> None:
    x, params = draw(lead, scale, dtype)
    y, ladj = ops.affine(x, params, scale=scale, min_scale=floor)
    assert y.dtype == dtype and ladj.dtype == torch.promote_types(dtype, torch.float32)
    assert y.shape == lead and ladj.shape == lead[:-1]
    back, ladj_back = ops.affine(y, params, scale=scale, min_scale=floor, inverse=True)
    if dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(back, x, rtol=0, atol=64 * torch.finfo(dtype).eps)
    torch.testing.assert_close(ladj_back, -ladj)


@EVERY
@pytest.mark.parametrize("inverse", [False, True])
def test_ladj_and_gradients(scale, floor, inverse) -> None:
    x, params = (t.requires_grad_() for t in draw((3, 2), scale))

    def f(x, params):
        return ops.affine(x, params, scale=scale, min_scale=floor, inverse=inverse)

    J = torch.autograd.functional.jacobian(lambda v: f(v, params)[0].sum(0), x).movedim(1, 0)
    torch.testing.assert_close(f(x, params)[1], torch.linalg.slogdet(J).logabsdet)
    assert torch.autograd.gradcheck(f, (x, params))
    assert torch.autograd.gradgradcheck(f, (x, params))


@pytest.mark.interpreted("exp-0.0")
@EVERY
def test_transforms_and_compile(scale, floor) -> None:
    x, params = draw((5, 3), scale)

    def f(x, params):
        return ops.affine(x, params, scale=scale, min_scale=floor)

    torch.testing.assert_close(torch.func.vmap(f)(x, params), f(x, params))
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(f, backend="aot_eager", fullgraph=True)(x, params), f(x, params))


@pytest.mark.interpreted("sigmoid-0.001")
@EVERY
def test_library_op(scale, floor) -> None:
    x, params = (t.requires_grad_() for t in draw((3, 2), scale))
    numbers = (0, 0, 1, -5.0, 3.0)
    call = (x, params, None, torch.tensor([True, False]), scale, floor, False, 2.0, 1, False, *numbers, KERNEL)
    torch.library.opcheck(torch.ops.flowkernels.affine.default, call)


def test_extreme_logits() -> None:
    """The log-determinant follows the logit where the scale is close to nothing, and where it is nothing."""
    for low in (-60.0, -300.0):
        x, u = torch.ones(1, 2), torch.tensor([[[low, 0.0], [50.0, 0.0]]])
        for scale, wanted in (("exp", low + 50), ("softplus", low + math.log(50)), ("sigmoid", low + 2)):
            y, ladj = ops.affine(x, u, scale=scale)
            assert y.isfinite().all() and ladj.item() == pytest.approx(wanted, abs=1e-4)


FINITE = [0.0, 1e-30, -1.0, 60.0, -60.0, 88.0, -88.0, 100.0, -100.0, 1e4, -1e4, 1e30, -1e30]


@pytest.mark.interpreted
@EVERY
@pytest.mark.parametrize("inverse", [False, True])
def test_finite_inputs_give_no_nan(scale, floor, inverse) -> None:
    """Neither do their gradients: 0 * inf is what overflows make of a product that has a value."""
    x, u = (
        t.reshape(-1, 1) for t in torch.meshgrid(torch.tensor([0.0, 1.0, -1e-30]), torch.tensor(FINITE), indexing="ij")
    )
    t = x if inverse else torch.zeros_like(x)  # then y - t = 0
    params = t[..., None] if scale == "additive" else torch.stack([u, t], -1)
    x.requires_grad_()
    params = params.detach().requires_grad_()
    y, ladj = ops.affine(x, params, scale=scale, min_scale=floor, inverse=inverse)
    assert not y.isnan().any() and ladj.isfinite().all()
    assert not any(g.isnan().any() for g in gradients(y, ladj, [x, params]) if g is not None)
    if scale != "additive":  # the scale stops, its logarithm does not
        (of_ladj,) = torch.autograd.grad(ops.affine(x, params, scale=scale, min_scale=floor)[1].sum(), params)
        slope = of_ladj[u[:, 0] == -100, 0, 0]
        expected = {"exp": 1.0, "softplus": 0.0 if floor else 1.0, "sigmoid": 0.0 if floor else 1.0, "tanh": 0.0,
                    "soft_clip": 1 / 51**2, "clip": 1.0, "reciprocal_sigmoid": -1.0,
                    "atan": 1 / (1 + (25 * math.pi) ** 2)}  # fmt: skip
        torch.testing.assert_close(slope, torch.full_like(slope, expected[scale]), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("scale", ["softplus", "sigmoid", "reciprocal_sigmoid"])
def test_slopes_of_ladj_keep_their_digits_in_the_tails(all_isas, scale) -> None:
    """1 - sigmoid(20) as a difference would be 0 in float32, and half its digits wrong from 8 on."""
    u = torch.linspace(-30, 30, 61)[:, None]
    params = torch.stack([u, torch.zeros_like(u)], -1)

    def slope(params: torch.Tensor, backend: str | None) -> torch.Tensor:
        leaf = params.clone().requires_grad_()
        ladj = ops.affine(torch.zeros_like(params[..., 0]), leaf, scale=scale, backend=backend)[1]
        return torch.autograd.grad(ladj.sum(), leaf)[0][..., 0]

    exact = slope(params.double(), "reference")
    for isa in all_isas:
        off = (slope(params, None) / exact - 1).abs().max().item()
        assert off <= 16 * torch.finfo(torch.float32).eps, f"{isa}: {off:.3g} of a slope"


# What stops at a bound of its own (87, in float64 708): settings under which the bound is reached, on these sides.
STOPPING = {
    "exp": ({}, (-1, 1)), "tanh": ({"clamp": 2000.0}, (-1, 1)), "atan": ({"clamp": 2000.0}, (-1, 1)),
    "soft_clip": ({"clamp": 2000.0}, (-1, 1)), "clip": ({"log_bounds": (-1500.0, 1500.0)}, (-1, 1)),
    "softplus": ({}, (-1,)), "sigmoid": ({}, (-1,)), "reciprocal_sigmoid": ({}, (-1,)),
}  # fmt: skip


@pytest.mark.parametrize("scale", STOPPING)
@pytest.mark.parametrize("inverse", [False, True])
def test_where_a_scale_has_stopped_y_has_no_slope(all_isas, scale, inverse) -> None:
    """Its logit moves ladj alone: a slope that went on would be e^87 times a gradient of y."""
    settings, sides = STOPPING[scale]
    for isa in all_isas:
        for dtype, beyond in ((torch.float32, (120.0, 200.0)), (torch.float64, (1200.0,))):
            u = torch.tensor([side * u for side in sides for u in beyond], dtype=dtype)[:, None]
            x, params = torch.full_like(u, 1e-3), torch.stack([u, torch.zeros_like(u)], -1).requires_grad_()
            y, ladj = ops.affine(x, params, scale=scale, inverse=inverse, **settings)
            of_y, of_ladj = (torch.autograd.grad(o.sum(), params, retain_graph=True)[0][..., 0] for o in (y, ladj))
            assert (of_y == 0).all(), f"{isa}: {of_y.tolist()}"
            assert (of_ladj != 0).all(), isa


# ---- the kernel against the reference ----


def values_and_gradients(x, params, **settings) -> list[torch.Tensor]:
    """y, ladj, and the gradients of x and of the params, for weights that no element shares."""
    leaves = [t.detach().requires_grad_() for t in ([x, params] if isinstance(params, torch.Tensor) else [x, *params])]
    y, ladj = ops.affine(leaves[0], leaves[1] if len(leaves) == 2 else leaves[1:], **settings)
    outputs = [(o, weights(o)) for o in (y, ladj) if o.requires_grad]
    return [y.detach(), ladj.detach(), *torch.autograd.grad([o for o, _ in outputs], leaves, [g for _, g in outputs])]


NAMES = ("y", "ladj", "grad x", "grad params")
MIXED = [(torch.float32, torch.bfloat16), (torch.float32, torch.float16), (torch.bfloat16, torch.float32),
         (torch.float64, torch.float32), (torch.float32, torch.float64), (torch.bfloat16, torch.float16)]  # fmt: skip


def assert_numbers(all_isas, dtypes, **settings) -> None:
    x, params = draw((203, 33), settings["scale"])
    x, params = x.to(dtypes[0]), (1.5 * params).to(dtypes[1])
    given = [weights(t) for t in values_and_gradients(x, params, backend="reference", **settings)[:2]]
    leaves = [t.double().requires_grad_() for t in (x, params)]
    exact = ops.affine(*leaves, backend="reference", **settings)
    outputs = [(o, g.double()) for o, g in zip(exact, given, strict=True) if o.requires_grad]
    truth = [*exact, *torch.autograd.grad([o for o, _ in outputs], leaves, [g for _, g in outputs])]
    eager = values_and_gradients(x, params, backend="reference", **settings)
    for isa in all_isas:
        found = values_and_gradients(x, params, **settings)
        for name, mine, its, right in zip(NAMES, found, eager, truth, strict=True):
            assert mine.dtype == its.dtype
            assert_within_rule(mine, its, right.detach(), f"{isa}: {name}")


@pytest.mark.interpreted(
    "float32-False-exp-0.0",
    "float32-False-softplus-0.0",
    "float32-False-softplus-0.001",
    "float32-False-sigmoid-0.0",
    "float32-False-sigmoid-0.001",
    "float32-False-tanh-0.0",
    "float32-False-soft_clip-0.0",
    "float32-False-clip-0.0",
    "float32-False-reciprocal_sigmoid-0.0",
    "float32-False-atan-0.0",
    "float32-False-additive-0.0",
    "float32-True-exp-0.0",
    "float32-True-softplus-0.0",
    "float32-True-softplus-0.001",
    "float32-True-sigmoid-0.0",
    "float32-True-sigmoid-0.001",
    "float32-True-tanh-0.0",
    "float32-True-soft_clip-0.0",
    "float32-True-clip-0.0",
    "float32-True-reciprocal_sigmoid-0.0",
    "float32-True-atan-0.0",
    "float32-True-additive-0.0",
    "float64-True-sigmoid-0.0",
    "float64-False-tanh-0.0",
    "float16-False-softplus-0.001",
)
@EVERY
@pytest.mark.parametrize("inverse", [False, True])
def test_numbers(all_isas, scale, floor, inverse, dtype) -> None:
    assert_numbers(all_isas, (dtype, dtype), scale=scale, min_scale=floor, inverse=inverse)


@pytest.mark.parametrize("dtypes", MIXED, ids=str)
@pytest.mark.parametrize("scale", ["sigmoid", "additive"])
def test_numbers_of_mixed_dtypes(all_isas, scale, dtypes) -> None:
    assert_numbers(all_isas, dtypes, scale=scale)


@pytest.mark.interpreted
@pytest.mark.parametrize("clamp", [0.3, 5.0, 100.0])
@pytest.mark.parametrize("scale", ["tanh", "soft_clip", "atan"])
def test_numbers_of_clamps(all_isas, scale, clamp) -> None:
    assert_numbers(all_isas, (torch.float32, torch.float32), scale=scale, clamp=clamp)


@pytest.mark.parametrize("inverse", [False, True])
def test_numbers_of_clipped_scales(all_isas, inverse, dtype) -> None:
    """Half of the logits lie beyond the bounds."""
    bounds = (-0.7, 0.5)
    assert_numbers(all_isas, (dtype, dtype), scale="clip", log_bounds=bounds, inverse=inverse)


def test_a_clipped_scale(all_isas) -> None:
    bounds = (-0.7, 0.5)
    x, u, t = torch.ones(3, 1), torch.tensor([[-2.0], [0.1], [9.0]], requires_grad=True), torch.zeros(3, 1)
    for _ in all_isas:
        y, ladj = ops.affine(x, (u, t), scale="clip", log_bounds=bounds)
        torch.testing.assert_close(ladj, torch.tensor([-0.7, 0.1, 0.5]))
        torch.testing.assert_close(y[:, 0], ladj.exp())
        (grad,) = torch.autograd.grad(y.sum() + ladj.sum(), u)
        torch.testing.assert_close(grad[:, 0], 1 + ladj.exp())


@pytest.mark.parametrize("width", [torch.float32, torch.float64], ids=str)
def test_the_arc_tangent(all_isas, width) -> None:
    """Of every size of argument; with this clamp log s is atan u. torch's own in float64 is right to a bit."""
    info = torch.finfo(width)
    sizes = torch.logspace(math.log10(info.tiny), math.log10(info.max) - 1, 20000, dtype=torch.float64)
    near = torch.linspace(0, 5, 20001, dtype=torch.float64)[1:]
    u = torch.cat([sizes, -sizes, near, near.new_tensor([math.inf, -math.inf, math.nan, 0.0])]).to(width)
    truth = torch.atan(u.double())
    ulp = (torch.nextafter(truth.to(width).abs(), u.new_tensor(9.0)) - truth.to(width).abs()).double()
    zeros = u.new_zeros(len(u), 1)
    for _ in all_isas:
        found = ops.affine(zeros, (u[:, None], zeros), scale="atan", clamp=math.pi / 2)[1]
        assert found[-2].isnan() and found[-1] == 0
        error = ((found.double() - truth) / ulp)[truth == truth].abs()
        assert error.max() <= (2 if width is torch.float32 else 3)


LAYOUTS = {
    "packed": lambda u, t: torch.stack([u, t], -1),
    "blocks": lambda u, t: torch.cat([u, t], -1).unflatten(-1, (2, -1)).mT,
    "pair": lambda u, t: (u, t),
    "expanded": lambda u, t: (u.new_tensor(0.3).expand(u.shape), t),
}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_shape_gives_the_bits_of_a_column(all_isas, shape, layout) -> None:
    """Wherever an element lies, and whatever lies beside it."""
    (x, params), n = draw(shape.x, "sigmoid", torch.float32), math.prod(shape.x)
    laid_out = LAYOUTS[layout](*params.unbind(-1))
    u, t = laid_out.unbind(-1) if isinstance(laid_out, torch.Tensor) else laid_out
    more = torch.zeros(64)
    for _ in all_isas:
        found = values_and_gradients(x, laid_out, scale="sigmoid")
        leaves = [torch.cat([v.reshape(-1), more])[:, None].requires_grad_() for v in (x, u, t)]
        y, ladj = ops.affine(leaves[0], leaves[1:], scale="sigmoid")
        g_y = torch.cat([weights(x).reshape(-1), more])[:, None]
        g_ladj = torch.cat([weights(found[1])[..., None].expand(x.shape).reshape(-1), more])
        grads = torch.autograd.grad([y, ladj], leaves, [g_y, g_ladj])
        g_params = torch.stack([grads[1], grads[2]], -1) if len(found) == 4 else None
        for mine, column in zip(
            found, [y, None, grads[0], *(grads[1:] if g_params is None else [g_params])], strict=True
        ):
            assert column is None or torch.equal(mine, column[:n, 0].reshape(mine.shape))
        expected = ladj[:n].reshape(x.shape).double().sum(-1).float()
        torch.testing.assert_close(found[1], expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dims", [1, 3])
def test_threads_do_not_change_a_bit(threads, dims) -> None:
    (x, u, t), found = image(torch.float32, (64, 6, 16, 15)), []
    for n in (1, 2, 3):
        threads(n)
        found.append(values_and_gradients(x, IMAGE_LAYOUTS["blocks"](u, t), event_dims=dims))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.interpreted
@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)])
@pytest.mark.parametrize("pair", [False, True])
def test_only_the_gradients_that_are_wanted(needs, pair) -> None:
    (x, u, t) = leaves = image()
    for leaf, n in zip(leaves, needs, strict=True):
        leaf.requires_grad_(n)
    y, _ = ops.affine(x, (u, t) if pair else torch.stack([u, t], -1), event_dims=3)
    found = torch.autograd.grad(y.sum(), [v for v in leaves if v.requires_grad])
    torch.testing.assert_close(found[0], [u.exp(), x * u.exp(), torch.ones_like(t)][needs.index(True)].detach())


def test_backward_saves_the_inputs_and_nothing_else() -> None:
    x, u, t = (v.requires_grad_() for v in image())
    mask, saved = torch.tensor([True, False] * 3), []
    with torch.autograd.graph.saved_tensors_hooks(lambda v: saved.append(v) or v, lambda v: v):
        ops.affine(x, (u, t), mask=mask, event_dims=3)
    assert sorted(v.data_ptr() for v in saved) == sorted(v.data_ptr() for v in (x, u, t, mask))


@pytest.mark.interpreted
def test_one_output_has_a_gradient_and_a_strange_one() -> None:
    x, u, t = (v.requires_grad_() for v in image())
    y, ladj = ops.affine(x, (u, t), scale="sigmoid", event_dims=3)
    one = torch.ones((), dtype=y.dtype)
    for output, strange in (
        (y, one.expand(y.shape)),
        (ladj, one.expand(3)),
        (y, torch.ones_like(y).mT.contiguous().mT),
    ):
        found = torch.autograd.grad(output, (x, u, t), strange, retain_graph=True, materialize_grads=True)
        dense = torch.autograd.grad(output, (x, u, t), strange.contiguous(), retain_graph=True, materialize_grads=True)
        assert all(torch.equal(a, b) for a, b in zip(found, dense, strict=True))


@pytest.mark.interpreted
def test_negative_views() -> None:
    x, u, t = (torch.ops.aten._neg_view(v) for v in image())
    plain = [-v.resolve_neg() for v in (x, u, t)]
    found = ops.affine(x, (u, t))
    torch.testing.assert_close(found, ops.affine(-plain[0], (-plain[1], -plain[2])))


def test_compiled_with_views_and_masks() -> None:
    """Strides that the compiler assumes are those that the kernel gives."""
    x, u, t = (v.requires_grad_() for v in image())
    h = torch.cat([u, t], 1)

    def step(x, h, mask):
        x = x.to(memory_format=torch.channels_last)
        y, ladj = ops.affine(x, h.unflatten(1, (2, -1)).movedim(1, -1), scale="sigmoid", mask=mask, event_dims=3)
        return y.sin().sum() + ladj.square().sum()

    for mask in (None, mask_of("checkerboard")):
        torch._dynamo.reset()
        expected = torch.autograd.grad(step(x, h, mask), (x, u, t), retain_graph=True)
        compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
        found = torch.autograd.grad(compiled(x, h, mask), (x, u, t), retain_graph=True)
        torch.testing.assert_close(found, expected)


# ---- layouts: a view of a conditioner's output is read where it lies ----


def _blocks(u, t):
    return torch.cat([u, t], 1).unflatten(1, (2, -1)).movedim(1, -1)


def _alternating(u, t):
    return torch.stack([u, t], 2).flatten(1, 2).unflatten(1, (-1, 2)).movedim(2, -1)


def _channels_last(u, t):
    h = torch.cat([u, t], 1).to(memory_format=torch.channels_last)
    return h.unflatten(1, (2, -1)).movedim(1, -1)


IMAGE_LAYOUTS = {
    "blocks": _blocks,
    "alternating": _alternating,
    "channels last": _channels_last,
    "chunk": lambda u, t: torch.cat([u, t], 1).chunk(2, 1),
    "two of their own strides": lambda u, t: (torch.cat([u, t], 1)[:, : u.shape[1]], t.mT.contiguous().mT),
    "every second channel": lambda u, t: (lambda h: (h[:, 0::2], h[:, 1::2]))(torch.stack([u, t], 2).flatten(1, 2)),
    "wider rows": lambda u, t: (torch.cat([t, u], -1)[..., u.shape[-1] :], torch.cat([t, u], -1)[..., : u.shape[-1]]),
    "reversed": lambda u, t: torch.stack([u.flip(0), t.flip(0)], -1).flip(0),
}
X_LAYOUTS = {
    "dense": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "second half of the channels": lambda x: torch.cat([x + 1, x], 1)[:, x.shape[1] :],
    "transposed": lambda x: x.mT.contiguous().mT,
}


def image(dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = (3, 4, 5, 6)) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    return tuple(randn(shape, g).to(dtype) for _ in range(3))


@pytest.mark.interpreted(
    "False-blocks-dense",
    "False-channels last-channels last",
    "False-reversed-transposed",
    "False-every second channel-second half of the channels",
    "False-two of their own strides-channels last",
)
@pytest.mark.parametrize("x_layout", X_LAYOUTS)
@pytest.mark.parametrize("layout", IMAGE_LAYOUTS)
@pytest.mark.parametrize("shift_first", [False, True])
def test_layouts_of_images(layout, x_layout, shift_first) -> None:
    x, u, t = image()
    leaves = [v.requires_grad_() for v in (x, u, t)]

    def run(x, params, **settings):
        y, ladj = ops.affine(x, params, scale="tanh", event_dims=3, **settings)
        assert ladj.shape == (3,) and y.shape == x.shape
        return [y, ladj, *torch.autograd.grad([y.sin().sum() + ladj.square().sum()], leaves)]

    order = (t, u) if shift_first else (u, t)
    found = run(X_LAYOUTS[x_layout](x), IMAGE_LAYOUTS[layout](*order), shift_first=shift_first)
    torch.testing.assert_close(found, run(x, torch.stack([u, t], -1)), rtol=1e-12, atol=1e-12)


@pytest.mark.interpreted
def test_layouts_of_features() -> None:
    (x, u, t), D = image(shape=(7, 5)), 5
    expected = ops.affine(x, torch.stack([u, t], -1))
    h = torch.cat([t, u], -1)
    for found in (
        ops.affine(x, h.unflatten(-1, (2, D)).mT, shift_first=True),
        ops.affine(x, h.chunk(2, -1), shift_first=True),
        ops.affine(x, (u, t)),
        ops.affine(x, [u, t.t().contiguous().t()]),
    ):
        torch.testing.assert_close(found, expected)
    same = ops.affine(x, (u[:1].expand(7, 5), t[:, :1].expand(7, 5)))
    torch.testing.assert_close(same, ops.affine(x, (u[:1].repeat(7, 1), t[:, :1].repeat(1, 5))))


@pytest.mark.parametrize("event_dims", [1, 2, 3, 4])
@EVERY
def test_events_of_many_dims(scale, floor, event_dims) -> None:
    x, params = draw((3, 2, 4, 5), scale)
    y, ladj = ops.affine(x, params, scale=scale, min_scale=floor, event_dims=event_dims)
    n = 1 if scale == "additive" else 2
    flat = ops.affine(x.reshape(-1, 1), params.reshape(-1, 1, n), scale=scale, min_scale=floor)
    torch.testing.assert_close(y, flat[0].view(x.shape))
    torch.testing.assert_close(ladj, flat[1].view(x.shape).sum(tuple(range(-event_dims, 0))))


def test_y_keeps_the_memory_order_of_x() -> None:
    x, u, t = (v.to(memory_format=torch.channels_last) for v in image())
    y, _ = ops.affine(x, (u, t), event_dims=3)
    assert y.is_contiguous(memory_format=torch.channels_last)


PARTS = [slice(2, 4), slice(0, 2), slice(1, 3), slice(0, None, 2), slice(1, None, 2), slice(0, 4, 3), slice(-1, None),
         slice(None)]  # fmt: skip


@pytest.mark.interpreted(
    "dense-triton-False-slice(2, 4, None)",
    "channels last-triton-True-slice(0, None, 2)",
    "second half of the channels-triton-False-slice(0, 4, 3)",
)
@pytest.mark.parametrize("part", PARTS, ids=str)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("backend", [KERNEL, "reference"])
@pytest.mark.parametrize("layout", ["dense", "channels last", "second half of the channels"])
def test_part(part, inverse, layout, backend) -> None:
    """Split, map and merge, in one."""
    x, u, t = image()
    leaves = [x.requires_grad_(), *(v[:, part].detach().requires_grad_() for v in (u, t))]
    settings = {"scale": "sigmoid", "event_dims": 3, "inverse": inverse, "backend": backend}
    laid_out = X_LAYOUTS[layout](x)
    y, ladj = ops.affine(laid_out, leaves[1:], part=part, **settings)
    y_part, ladj_part = ops.affine(x[:, part], leaves[1:], **settings)
    y_expected = x.slice_scatter(y_part, 1, part.start, part.stop, part.step or 1)
    assert torch.equal(y, y_expected)
    torch.testing.assert_close(ladj, ladj_part)
    for outputs, others in (((y, ladj), (y_expected, ladj_part)), ((ladj,), (ladj_part,)), ((y,), (y_expected,))):
        g = [weights(o) for o in outputs]
        found = torch.autograd.grad(outputs, leaves, g, retain_graph=True, materialize_grads=True)
        torch.testing.assert_close(
            found, torch.autograd.grad(others, leaves, g, retain_graph=True, materialize_grads=True)
        )


@pytest.mark.parametrize("inverse", [False, True])
def test_a_part_may_begin_and_end_anywhere(inverse) -> None:
    """What passes is copied in words, as large as the part's bounds allow."""
    for dtype in (torch.float32, torch.bfloat16):
        x, params = draw((3, 16), "exp", dtype)
        x.requires_grad_()
        for start in range(9):
            for stop in range(start + 1, 17, 1 + start % 3):
                part = slice(start, stop)
                y, _ = ops.affine(x, params[:, part], part=part, inverse=inverse)
                mapped, _ = ops.affine(x[:, part], params[:, part], inverse=inverse)
                wanted = torch.cat([x[:, :start], mapped, x[:, stop:]], -1)
                assert torch.equal(y, wanted), part
                g = weights(y)
                assert torch.equal(*(torch.autograd.grad(o, x, g)[0] for o in (y, wanted))), part


def test_part_and_mask_and_packed_params() -> None:
    x, u, t = (v[:, :4].requires_grad_() for v in image())
    mask = mask_of("checkerboard")

    def f(x, u, t):
        params = torch.stack([u, t], -1)[:, 1::2]
        return ops.affine(x, params, part=slice(1, None, 2), mask=mask, event_dims=3)

    y, ladj = f(x, u, t)
    y_2, ladj_2 = ops.affine(x[:, 1::2], (u[:, 1::2], t[:, 1::2]), mask=mask, event_dims=3)
    assert torch.equal(y[:, ::2], x[:, ::2]) and torch.equal(y[:, 1::2], y_2) and torch.equal(ladj, ladj_2)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(f, backend="aot_eager", fullgraph=True)(x, u, t), (y, ladj))
    small = [v[:1, :2, :2, :2].detach().requires_grad_() for v in (x, u, t)]
    g = lambda x, u, t: ops.affine(x, (u[:, 1:], t[:, 1:]), part=slice(1, 2), mask=mask[:, :2, :2], event_dims=3)  # noqa: E731
    assert torch.autograd.gradcheck(g, small, check_forward_ad=True) and torch.autograd.gradgradcheck(g, small)


# ---- masks ----

MASKS = {
    "checkerboard": torch.tensor([[True, False] * 3, [False, True] * 3] * 3)[:5].view(1, 5, 6),
    "channels": torch.tensor([True, False, False, True]).view(4, 1, 1),
    "columns": torch.tensor([1, 0, 1, 1, 0, 0], dtype=torch.uint8),
    "one for all": torch.tensor([True]),
    "none at all": torch.zeros(4, 5, 6, dtype=torch.int64),
    "like the event, strided": (torch.arange(240) % 3 == 0).view(2, 4, 6, 5)[1].mT,
}


def mask_of(name: str) -> torch.Tensor:
    return MASKS[name].to(torch.get_default_device())


@pytest.mark.thinned(2)
@pytest.mark.interpreted("sigmoid-0.001-blocks-checkerboard", "softplus-0.0-chunk-like the event, strided")
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("layout", ["blocks", "channels last", "chunk"])
@EVERY
def test_masks(scale, floor, name, layout) -> None:
    for inverse in (False, True):
        assert_masked(mask_of(name), layout, torch.float64, scale=scale, min_scale=floor, inverse=inverse)


def test_masks_of_rows_that_end_within_a_vector(all_isas) -> None:
    """What is left of a row has the mask of its own elements."""
    for n in (1, 5, 13, 29, 75):
        x, params = (t.to(torch.float32) for t in draw((3, n), "exp"))
        mask = torch.arange(n) * 7 % 11 < 5
        exact = [ops.affine(x, params, mask=mask, backend="reference")[i] for i in (0, 1)]
        for isa in all_isas:
            y, ladj = ops.affine(x, params, mask=mask)
            assert torch.equal(y[:, ~mask], x[:, ~mask]), f"{isa}: of {n} features others pass"
            torch.testing.assert_close((y, ladj), tuple(exact), msg=lambda m, isa=isa: f"{isa}: {m}")


def test_masks_of_dtype(dtype) -> None:
    assert_masked(mask_of("checkerboard"), "blocks", dtype, scale="sigmoid", inverse=False)


def gradients(y, ladj, leaves) -> list[torch.Tensor | None]:
    outputs = [(o, g) for o, g in ((y, 0.5), (ladj, 3.0)) if o.requires_grad]
    grads = [torch.full_like(o, g) for o, g in outputs]
    return list(torch.autograd.grad([o for o, _ in outputs], leaves, grads, allow_unused=True))


def assert_masked(mask, layout, dtype, **settings) -> None:
    """Masked elements pass, and the others are what they are as features of their own."""
    x, u, t = image(dtype)
    b = mask.bool().expand(4, 5, 6)
    u[:, ~b], t[:, ~b] = math.nan, math.inf
    leaves = [v.requires_grad_() for v in (x, u, t)]

    def run(x, u, t, layout, **more):
        params = t[..., None] if settings["scale"] == "additive" else layout(u, t)
        return ops.affine(x, params, **settings, **more)

    y, ladj = run(*leaves, IMAGE_LAYOUTS[layout], mask=mask, event_dims=3)
    found = gradients(y, ladj, leaves)
    assert torch.equal(y[:, ~b], x[:, ~b]) and (found[0][:, ~b] == 0.5).all()
    assert not any(g[:, ~b].any() for g in found[1:] if g is not None)
    leaves = [v.detach()[:, b].requires_grad_() for v in leaves]
    y_b, ladj_b = run(*leaves, lambda u, t: (u, t))
    torch.testing.assert_close(y[:, b], y_b)
    torch.testing.assert_close(ladj, ladj_b)
    for mine, its in zip(found, gradients(y_b, ladj_b, leaves), strict=True):
        assert (mine is None) == (its is None)
        if mine is not None:
            torch.testing.assert_close(mine[:, b], its)


def test_derivatives_with_a_mask() -> None:
    x, u, t = (v[:1, :1, :2, :3].requires_grad_() for v in image())

    def f(x, u, t):
        return ops.affine(x, (u, t), scale="sigmoid", mask=mask_of("checkerboard")[:, :2, :3], event_dims=3)

    check = {"check_forward_ad": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(f, (x, u, t), **check) and torch.autograd.gradgradcheck(f, (x, u, t))


def test_bad_row_stays_in_its_row() -> None:
    x, params = draw((5, 3), "exp")
    clean = ops.affine(x, params)
    params[2, 1, 0] = math.nan
    y, ladj = ops.affine(x, params)
    others = [0, 1, 3, 4]
    assert torch.equal(y[others], clean[0][others]) and torch.equal(ladj[others], clean[1][others])
    assert y[2, 1].isnan() and ladj[2].isnan()


def test_mixed_dtypes() -> None:
    x, params = draw((5, 3), "exp", torch.float32)
    y, ladj = ops.affine(x, params.bfloat16())
    assert y.dtype == ladj.dtype == torch.float32


@pytest.mark.parametrize("floor", [None, 0.0, 1e-3, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("scale", spec.SCALES)
def test_identity(scale, floor) -> None:
    if floor and scale not in ("softplus", "sigmoid"):
        with pytest.raises(ValueError, match="min_scale must be 0 where scale is"):
            Affine(scale, floor)
        return
    affine = Affine(scale, floor)
    x = torch.randn(4, 3, dtype=torch.float64)
    y, ladj = affine(x, torch.tensor(affine.identity, dtype=torch.float64).expand(4, 3, -1), False)
    assert len(affine.identity) == affine.n_params
    if affine.floor < 1:
        exact = not (scale in ("sigmoid", "reciprocal_sigmoid") and affine.floor == 0)
        torch.testing.assert_close(y, x, rtol=1e-12 if exact else 3e-3, atol=1e-12)
        torch.testing.assert_close(ladj, torch.zeros_like(ladj), rtol=0, atol=1e-12 if exact else 1e-2)


X, P = torch.zeros(4, 3), torch.zeros(4, 3, 2)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: ops.affine([0.0], P), TypeError, "x must be a tensor, got list"),
        (lambda: ops.affine(X, P.int()), TypeError, "params must be float32, .*, got torch.int32"),
        (lambda: ops.affine(X.to_sparse(), P), TypeError, "x must be a dense tensor"),
        (lambda: ops.affine(X[0, 0], P[0, 0]), ValueError, r"x must be \[..., D\], got a scalar"),
        (lambda: ops.affine(X, P.to("meta")), ValueError, "params must be on the device of x = cpu, got meta"),
        (lambda: ops.affine(X, P[:, :2]), ValueError, r"params must be \[..., D, P\] = \[4, 3, 2\], got \[4, 2, 2\]"),
        (lambda: ops.affine(X, P, scale="additive"), ValueError, r"= \[4, 3, 1\], got \[4, 3, 2\]"),
        (lambda: ops.affine(X, P, scale="tan"), ValueError, "scale must be one of .*, got 'tan'"),
        (lambda: ops.affine(X, P, log_bounds=(0, 1)), ValueError, "log_bounds must be None where scale is 'exp', got"),
        (lambda: ops.affine(X, P, scale="clip", log_bounds=(1, 1)), ValueError, "log_bounds must be two finite"),
        (lambda: ops.affine(X, P, clamp=1.0), ValueError, "clamp must be None where scale is 'exp', got 1.0"),
        (lambda: ops.affine(X, P, scale="tanh", clamp=0.0), ValueError, "clamp must be positive, from .*, got 0.0"),
        (lambda: ops.affine(X, P, event_dims=0), ValueError, "event_dims must be at least 1, got 0"),
        (lambda: ops.affine(X, P, event_dims=1.0), ValueError, "event_dims must be an integer, at least 1, got 1.0"),
        (lambda: ops.affine(X, P, event_dims=3), ValueError, r"x must be 3-dimensional, got \[4, 3\]"),
        (lambda: ops.affine(X, "ab"), TypeError, "params must be a tensor or two, got str 'ab'"),
        (lambda: ops.affine(X, (X, X, X)), ValueError, "params must be a tensor or two, got 3"),
        (lambda: ops.affine(X, (X, X), scale="additive"), ValueError, "params must be one tensor where .*, got 2"),
        (lambda: ops.affine(X, (X, 1.0)), TypeError, r"params\[1\] must be a tensor, got float 1.0"),
        (
            lambda: ops.affine(X, (X, X[:, :2])),
            ValueError,
            r"two params must be .* = \[4, 3\], got \[\[4, 3\], \[4, 2\]\]",
        ),
        (lambda: ops.affine(X, (X, X.double())), ValueError, "of one dtype on one device, got torch.float32 .*float64"),
        (lambda: ops.affine(X, P, part=1), TypeError, "part must be a slice, got int 1"),
        (
            lambda: ops.affine(X, P, part=slice(3, 3)),
            ValueError,
            r"part must select some of 3 features, .*\(3, 3, None",
        ),
        (lambda: ops.affine(X, P, part=slice(None, None, -1)), ValueError, "part must select some of 3 features"),
        (lambda: ops.affine(X, P, part=slice(1, 3)), ValueError, r"= \[4, 2, 2\], got \[4, 3, 2\]"),
        (lambda: ops.affine(X, (X, X), part=slice(2)), ValueError, r"= \[4, 2\], got \[\[4, 3\], \[4, 3\]\]"),
        (lambda: ops.affine(X, P, mask=[True] * 3), TypeError, "mask must be a tensor, got list"),
        (lambda: ops.affine(X, P, mask=X[0].to("meta")), ValueError, "mask must be on the device of x = cpu, got meta"),
        (lambda: ops.affine(X, P, mask=X[0, :2] > 0), ValueError, r"mask must broadcast to the event \[3\], got \[2\]"),
        (lambda: ops.affine(X, P, mask=X > 0), ValueError, r"mask must broadcast to the event \[3\], got \[4, 3\]"),
        (lambda: ops.affine(X, P, scale="softplus", min_scale=-1.0), ValueError, "min_scale must be .*, got -1.0"),
        (lambda: ops.affine(X, P, scale="softplus", min_scale="1"), ValueError, "min_scale must be .*, got '1'"),
        (lambda: ops.affine(X, P, min_scale=0.1), ValueError, "min_scale must be 0 where scale is 'exp', got 0.1"),
    ],
)
def test_errors(build, error, message) -> None:
    with pytest.raises(error, match="ops.affine: .*" + message):
        build()


@pytest.mark.parametrize(
    ("valid", "wrong"), [({"min_scale": 0}, {"min_scale": False}), ({"clamp": 1}, {"clamp": True})]
)
def test_a_setting_is_refused_though_it_equals_one_that_has_passed(valid, wrong) -> None:
    """Settings are kept by their values, and False == 0 there, unless their types are looked at."""
    scale = "softplus" if "min_scale" in valid else "tanh"
    ops.affine(X, P, scale=scale, **valid)
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        ops.affine(X, P, scale=scale, **wrong)

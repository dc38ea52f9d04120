"""Block autoregressive maps: their Jacobian, their inverse, and Pyro's own with the same weights."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from flowkernels import ops
from flowkernels.ops.block_made.reference import ACTIVATIONS
from flowkernels.transforms import BlockAutoregressive

Layers = list[tuple[Tensor, Tensor]]
RESIDUALS = {"none": False, "sum": True, "gated": torch.tensor(0.3)}


def layers_of(D: int, *units: int, dtype: torch.dtype = torch.float64, scale: float = 0.7) -> Layers:
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return (scale * torch.randn(*shape, generator=g, dtype=torch.float64)).to(dtype)

    sizes = [1, *units, 1]
    return [(randn(D * b, D * a), randn(D * b)) for a, b in itertools.pairwise(sizes)]


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def given(residual: bool | Tensor, dtype: torch.dtype) -> bool | Tensor:
    return residual.to(dtype) if isinstance(residual, Tensor) else residual


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", RESIDUALS.values(), ids=RESIDUALS)
@pytest.mark.parametrize("units", [(), (3,), (4, 2)], ids=str)
def test_the_jacobian_is_triangular_and_ladj_is_its_logarithm(activation, residual, units) -> None:
    layers, x = layers_of(4, *units), drawn(5, 4)
    residual = given(residual, x.dtype)
    y, ladj = ops.block_made(x, layers, activation=activation, residual=residual)
    J = torch.autograd.functional.jacobian(
        lambda v: ops.block_made(v, layers, activation=activation, residual=residual)[0].sum(0), x
    ).movedim(1, 0)
    assert J.triu(1).abs().max() == 0 and (J.diagonal(dim1=1, dim2=2) > 0).all()
    torch.testing.assert_close(torch.linalg.slogdet(J)[1], ladj, rtol=1e-10, atol=1e-10)
    back, negative = ops.block_made(y, layers, activation=activation, residual=residual, inverse=True)
    # The y of what was found is y to its last digits; where a slope is small that says less of x.
    torch.testing.assert_close(
        ops.block_made(back, layers, activation=activation, residual=residual)[0], y, rtol=1e-13, atol=1e-13
    )
    torch.testing.assert_close(back, x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(negative, -ladj, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("residual", RESIDUALS.values(), ids=RESIDUALS)
def test_gradients(inverse, residual) -> None:
    layers = layers_of(3, 2)
    x = drawn(2, 3)
    if inverse:  # where an x is
        x = ops.block_made(x, layers, residual=given(residual, x.dtype))[0]
    leaves = [x, *(t for layer in layers for t in layer)]
    gated = isinstance(residual, Tensor)
    leaves = [t.detach().requires_grad_() for t in [*leaves, *([residual.double()] if gated else [])]]

    def call(
        x: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, gate: bool | Tensor = residual
    ) -> tuple[Tensor, ...]:
        return ops.block_made(x, [(a, b), (c, d)], residual=gate, inverse=inverse)

    assert torch.autograd.gradcheck(call, leaves)
    if gated:  # and so of what the gate stands before
        assert torch.autograd.gradgradcheck(call, leaves, atol=1e-4)


def test_what_lies_above_the_blocks_is_not_read() -> None:
    layers, x = layers_of(3, 2), drawn(4, 3)
    expected = ops.block_made(x, layers)
    (weight, bias), last = layers
    weight = weight.clone()
    weight[:2, 1:], weight[2:4, 2:] = float("nan"), 1e300
    weight.requires_grad_()
    y, ladj = ops.block_made(x, [(weight, bias), last])
    assert torch.equal(y, expected[0]) and torch.equal(ladj, expected[1])
    (grad,) = torch.autograd.grad(y.sum() + ladj.sum(), weight)
    assert grad.isfinite().all() and (grad[:2, 1:] == 0).all()


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(kind) -> None:
    dtype: torch.dtype = kind
    layers, x = layers_of(4, 3, dtype=dtype), drawn(6, 4, dtype=dtype)
    y, ladj = ops.block_made(x, layers, residual=True)
    wide = [(w.double(), b.double()) for w, b in layers]
    exact, exact_ladj = ops.block_made(x.double(), wide, residual=True)
    assert y.dtype is dtype and ladj.dtype is torch.float32
    torch.testing.assert_close(y.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    torch.testing.assert_close(ladj.double(), exact_ladj, rtol=1e-5, atol=1e-5)


def test_a_value_outside_of_a_bounded_map_has_no_inverse() -> None:
    layers = layers_of(2, 3)
    y = ops.block_made(drawn(5, 2), layers)[0]
    far = y.clone()
    far[1, 0], far[3, 1] = 1e3, -1e3
    x, ladj = ops.block_made(far, layers, inverse=True)
    assert x[1].isnan().all() and x[3, 1].isnan() and ladj[[1, 3]].isnan().all()
    rest = [0, 2, 4]
    assert torch.equal(x[rest], ops.block_made(y, layers, inverse=True)[0][rest])


@pytest.mark.parametrize("inverse", [False, True])
def test_a_bad_value_stays_in_its_row(inverse) -> None:
    layers, x = layers_of(3, 4), drawn(6, 3)
    clean = ops.block_made(x, layers, residual=True, inverse=inverse)
    x[2, 0], x[4, 1] = float("nan"), float("inf")
    seen = ops.block_made(x, layers, residual=True, inverse=inverse)
    for a, b in zip(seen, clean, strict=True):
        assert torch.equal(a[[0, 1, 3, 5]], b[[0, 1, 3, 5]])
    assert seen[1][2].isnan()


@pytest.mark.parametrize("spread", [1e-30, 1e-3, 1e3, 1e12])
def test_roots_near_and_far(spread) -> None:
    layers = layers_of(3, 4)
    x = spread * drawn(50, 3)
    y, _ = ops.block_made(x, layers, residual=True)
    back = ops.block_made(y, layers, residual=True, inverse=True)[0]
    # What one ulp of y is in x: the slope of a sum is at least 1.
    assert ((back - x).abs() <= 8 * torch.finfo(x.dtype).eps * (y.abs() + x.abs())).all()


def test_slopes_that_underflow() -> None:
    """Deep in the tails of tanh a slope is below the smallest number, and its logarithm is not."""
    layers, x = layers_of(2, 3), torch.tensor([[300.0, -300.0]]).double()
    _, ladj = ops.block_made(x, layers)
    assert -4000 < ladj.item() < -400


def test_transforms_and_compilers() -> None:
    layers, x = layers_of(3, 2), drawn(4, 3)
    for inverse in (False, True):

        def call(v: Tensor, inverse: bool = inverse) -> tuple[Tensor, Tensor]:
            return ops.block_made(v, layers, residual=True, inverse=inverse)

        expected = call(x)
        torch.testing.assert_close(torch.func.vmap(call)(x), expected)
        J = torch.func.jacfwd(lambda v: call(v)[0])(x[0])
        torch.testing.assert_close(torch.linalg.slogdet(J)[1], expected[1][0])
        torch._dynamo.reset()
        compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected)


ONE = torch.zeros(3, 3), torch.zeros(3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": 3}, TypeError, "x must be a tensor"),
        ({"layers": []}, ValueError, "layers must be at least one, got 0"),
        ({"layers": 3}, TypeError, r"layers must be a list of \(weight, bias\), got int"),
        ({"layers": [3]}, TypeError, r"layers\[0\] must be \(weight, bias\), got int"),
        ({"layers": [(torch.zeros(4, 3), torch.zeros(4))]}, ValueError, r"weight must be \[3, 3\], got \[4, 3\]"),
        ({"layers": [(torch.zeros(4, 3), torch.zeros(4)), ONE]}, ValueError, r"weight must be \[a multiple of 3, 3\]"),
        ({"layers": [(torch.zeros(6, 3), torch.zeros(6)), ONE]}, ValueError, r"layers\[1\] weight must be \[3, 6\]"),
        ({"layers": [(torch.zeros(3, 3), torch.zeros(2))]}, ValueError, r"layers\[0\] bias must be \[3\], got \[2\]"),
        ({"layers": [(torch.zeros(3, 3).double(), torch.zeros(3))]}, TypeError, "weight must be of the dtype of x"),
        ({"activation": "relu"}, ValueError, 'activation must be one of "tanh", "sigmoid", .*, got \'relu\''),
        ({"residual": 1}, ValueError, "residual must be"),
        ({"residual": torch.zeros(2)}, ValueError, r"residual must be True, False or one number, got \[2\]"),
        ({"inverse": 1}, ValueError, "inverse must be"),
        ({"eps": -1e-9}, ValueError, "eps must be a number from 0 to 1, got -1e-09"),
        ({"eps": "a"}, ValueError, "eps must be a number from 0 to 1, got 'a'"),
        ({"log_norms": 3}, TypeError, "log_norms must be None or a list of tensors, got int 3"),
        ({"log_norms": []}, ValueError, "log_norms must be 1, one per layer, got 0"),
        ({"log_norms": [torch.zeros(2)]}, ValueError, r"log_norms\[0\] must be \[3\], got \[2\]"),
        ({"log_norms": [torch.zeros(3).double()]}, TypeError, r"log_norms\[0\] must be of the dtype of x"),
    ],
)  # fmt: skip
def test_errors(change, error, message) -> None:
    with pytest.raises(error, match=rf"^ops\.block_made: .*{message}"):
        ops.block_made(**{"x": torch.zeros(2, 3), "layers": [ONE], **change})


# ---- the layer ----


def test_rows_have_lengths_of_their_own() -> None:
    """The op with norms is the op of weights that have them, of whose blocks it takes the logarithms."""
    layer = BlockAutoregressive(3, (4,), seed=0).double()
    scaled = []
    for part in layer.layers:
        a, b, D = part.after, part.before, 3
        on = torch.eye(D).repeat_interleave(a, 0).repeat_interleave(b, 1).bool()
        below = torch.ones(D, D).tril(-1).repeat_interleave(a, 0).repeat_interleave(b, 1).bool()
        effective = torch.where(on, part.weight.exp(), torch.where(below, part.weight, 0.0))
        effective = effective * (part.log_norm.exp() / effective.norm(dim=1)).unsqueeze(1)
        scaled.append((torch.where(on, effective.log(), effective), part.bias))
    x = drawn(20, 3)
    expected = ops.block_made(x, scaled, residual=layer.gate)
    for found, right in zip(layer(x), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("residual", [None, "sum", "gated"])
@pytest.mark.parametrize(("ours", "theirs"), [("tanh", "tanh"), ("elu", "ELU"), ("leaky_relu", "LeakyReLU")])
@pytest.mark.filterwarnings("ignore")
def test_pyros_layer_of_the_same_weights(ours, theirs, residual) -> None:
    """And its inverse, which Pyro has not."""
    T = pytest.importorskip("pyro.distributions.transforms")
    torch.manual_seed(0)
    pyro = T.BlockAutoregressive(
        5, hidden_factors=[4, 3], activation=theirs, residual={"sum": "normal"}.get(residual, residual)
    ).double()
    layer = BlockAutoregressive(5, (4, 3), activation=ours, residual=residual).double()
    with torch.no_grad():
        for a, b in zip(layer.layers, pyro.layers, strict=True):
            a.weight.copy_(b._weight)
            a.log_norm.copy_(b._diag_weight.squeeze(1))
            a.bias.copy_(b.bias)
        if residual == "gated":
            layer.gate.copy_(pyro.gate.squeeze())
    x = drawn(20, 5)
    y, ladj = layer(x)
    expected = pyro(x)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)  # Pyro adds 1e-8 to norms, and to gates
    torch.testing.assert_close(ladj, pyro.log_abs_det_jacobian(x, expected), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer.inverse(y)[0], x, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": 0}, "features must be at least 1, got 0"),
        ({"hidden": (3, 0)}, "hidden must be at least 1, got 0"),
        ({"activation": "relu"}, "activation must be one of"),
        ({"residual": "normal"}, 'residual must be "gated", "sum" or None, got \'normal\''),
    ],
)
def test_errors_of_the_layer(arguments, message) -> None:
    with pytest.raises(ValueError, match=rf"^transforms\.BlockAutoregressive: {message}"):
        BlockAutoregressive(**{"features": 3, **arguments})


def test_the_same_seed_the_same_weights() -> None:
    a, b = (BlockAutoregressive(3, seed=4).state_dict() for _ in range(2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert isinstance(BlockAutoregressive(2).gate, nn.Parameter)

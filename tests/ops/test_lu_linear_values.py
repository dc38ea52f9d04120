"""What lu_linear says of a permutation that is none, and of signs that are not 1 or -1: on every path."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flowkernels import ops
from flowkernels.ops._channels import ChannelSpec
from flowkernels.ops.lu_linear import reference
from tests.device import here
from tests.ops.channels import values_and_gradients
from tests.ops.masked import backends_of
from tests.ops.test_lu_linear import draw

pytestmark = pytest.mark.usefixtures("poison", "one_thread", "kernels")

NO_PERMUTATIONS = [[0, 0, 1], [0, 1, 3], [0, 1, -1], [2**40, 0, 1], [2, 2, 2]]
BOTH = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


def example(rows: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [t.to(dtype) if t.is_floating_point() else t for t in draw((rows, 3), -1)]


@BOTH
@pytest.mark.parametrize("bad", NO_PERMUTATIONS, ids=str)
@pytest.mark.parametrize("rows", [5, 0])
def test_no_permutation_raises(bad, rows, inverse, dtype) -> None:
    if here(torch.zeros(())).is_cuda:
        pytest.skip("a GPU's values cannot be looked at without waiting: NaN, see below")
    tensors = example(rows, dtype)
    tensors[5] = torch.tensor(bad)
    for backend in backends_of("lu_linear"):
        with pytest.raises(ValueError, match=r"ops.lu_linear: permutation must hold each of 0 to C-1 once, got"):
            ops.lu_linear(*tensors, inverse=inverse, backend=backend)
    tensors[5] = torch.tensor([7, *bad, 7])[1:4]
    with pytest.raises(ValueError, match=r"once, got"):
        ops.lu_linear(*tensors, inverse=inverse)


@BOTH
@pytest.mark.parametrize("bad", NO_PERMUTATIONS, ids=str)
def test_no_permutation_is_nan_where_nobody_looks(bad, inverse) -> None:
    """As on a GPU, and in what compilers and torch.func see: memory is safe, and nothing that comes out is a number."""
    tensors = example(5)
    tensors[5] = here(torch.tensor(bad))
    spec = ChannelSpec(-1, inverse)
    y, _ = reference.fwd(spec, *tensors)
    assert y.isnan().all()
    f = lambda x: ops.lu_linear(x, *tensors[1:], inverse=inverse)[0]  # noqa: E731
    assert torch.func.vmap(f)(tensors[0]).isnan().all()
    for backend in set(backends_of("lu_linear")) & {"cuda"}:
        from flowkernels.ops.lu_linear import op

        leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in tensors]
        y, ladj = op(spec, backend, *leaves)
        assert y.isnan().all()
        wanted = [t for t in leaves if t.requires_grad]
        for g in torch.autograd.grad([y, ladj], wanted, [torch.ones_like(y), torch.ones_like(ladj)]):
            assert g.isnan().any()


@BOTH
@pytest.mark.parametrize(
    ("shape", "dim"), [((5, 3), -1), ((2, 3, 4, 4), 1), ((40, 3), -1), ((2, 24, 8, 8), 1)], ids=str
)
def test_ladj_holds_every_factor_of_the_diagonal(shape, dim, inverse) -> None:
    tensors = draw(shape, dim)
    C = shape[dim]
    tensors[4] = tensors[4] * here(torch.linspace(0.5, 2, C, dtype=torch.float64))
    settings = {"channel_dim": dim, "inverse": inverse}
    _, lower, upper, log_s, sign_s, permutation, _ = tensors
    W = (lower.tril(-1) + torch.eye(C).to(lower)) @ (upper.triu(1) + torch.diag(sign_s * log_s.exp()))
    pixels = 1 if dim == -1 else math.prod(shape[2:])
    expected = torch.linalg.slogdet(W.index_select(0, permutation)).logabsdet * pixels
    wanted = values_and_gradients(ops.lu_linear, tensors, backend="reference", **settings)
    torch.testing.assert_close(wanted[1], (-expected if inverse else expected).expand_as(wanted[1]))
    for backend in backends_of("lu_linear"):
        found = values_and_gradients(ops.lu_linear, tensors, backend=backend, **settings)
        for f, w in zip(found, wanted, strict=True):
            torch.testing.assert_close(f, w, rtol=1e-9, atol=1e-9)


def test_a_sign_of_zero() -> None:
    """A matrix without an inverse: its determinant is 0, and says so."""
    tensors = example(5)
    tensors[4] = tensors[4].clone()
    tensors[4][1] = 0
    wanted = values_and_gradients(ops.lu_linear, tensors, backend="reference")
    for backend in backends_of("lu_linear"):
        y, ladj = ops.lu_linear(*tensors, backend=backend)
        assert y.isfinite().all() and (ladj == -torch.inf).all()
        assert (ops.lu_linear(*tensors, backend=backend, inverse=True)[1] == torch.inf).all()
        found = values_and_gradients(ops.lu_linear, tensors, backend=backend)
        for i in {*range(len(found))} - {6}:  # but that of the sign, which is infinite
            torch.testing.assert_close(found[i], wanted[i])


@pytest.mark.parametrize("what", ["no gradient of y", "no rows"])
def test_signs_without_pixels_or_a_gradient_of_y(what) -> None:
    tensors = example(0 if what == "no rows" else 5)
    tensors[4] = tensors[4] * 2
    found = []
    for backend in ["reference", *backends_of("lu_linear")]:
        leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in tensors]
        _, ladj = ops.lu_linear(*leaves, backend=backend)
        found.append(torch.autograd.grad(ladj.sum(), leaves[3:5]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])

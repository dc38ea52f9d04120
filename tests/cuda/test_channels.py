"""What the tests of actnorm and lu_linear do not ask of a GPU's kernels: launches, bits, orders, and misuse."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from flowkernels import ops
from flowkernels.ops import _channels
from flowkernels.ops._channels import ChannelSpec
from flowkernels.ops.lu_linear import op
from tests.emulator import ORDERS, Emulated
from tests.ops import test_actnorm, test_lu_linear
from tests.ops.channels import cast, values_and_gradients

pytestmark = pytest.mark.usefixtures("one_thread")
OPS = {"actnorm": (ops.actnorm, test_actnorm.draw), "lu_linear": (ops.lu_linear, test_lu_linear.draw)}
EVERY = pytest.mark.parametrize(("op", "draw"), OPS.values(), ids=OPS.keys())
BOTH = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
# Several tiles to a warp and slices to a sum; rows; several warps to a tile of sums; pieces of planes that end early.
SHAPES = [((2, 12, 40, 28), 1), ((1100, 10), -1), ((3, 26, 5, 3), 1)]


@pytest.fixture
def cuda(cuda_on_cpu: Emulated) -> Iterator[Emulated]:
    yield cuda_on_cpu


@EVERY
@BOTH
@pytest.mark.parametrize(("shape", "dim"), SHAPES, ids=str)
def test_same_bits_in_any_order_of_threads(
    op: Callable[..., tuple[Tensor, Tensor]], draw, shape, dim, inverse, cuda: Emulated
) -> None:
    """What a missing barrier leaves to chance, and what sums in an order of their own, differs."""
    tensors, found = cast(draw(shape, dim), torch.float32), []
    for order in ORDERS:
        with cuda.order(order):
            found.append(values_and_gradients(op, tensors, channel_dim=dim, inverse=inverse, backend="cuda"))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize(
    ("name", "inverse", "counts"),
    [
        ("actnorm", False, (1, 2, 1, 2)), ("actnorm", True, (1, 2, 1, 2)), ("lu_linear", False, (1, 2, 1, 2)),
        ("lu_linear", True, (1, 2, 1, 2)),
    ],
)  # fmt: skip
def test_launches(name, inverse, counts, cuda: Emulated) -> None:
    assert launches(name, inverse, torch.float32, 5, cuda) == counts


@pytest.mark.parametrize(("dtype_", "channels"), [(torch.float64, 5), (torch.float32, 97)], ids=str)
def test_launches_where_two_do_not_do(dtype_, channels, cuda: Emulated) -> None:
    """Sums in double would not stay in registers; those of more than 96 channels not in one block."""
    assert launches("lu_linear", False, dtype_, channels, cuda) == (1, 3, 1, 2)
    assert launches("lu_linear", True, dtype_, channels, cuda) == (1, 4, 1, 4)


def test_backward_in_16_bits_makes_no_copy_in_32(cuda: Emulated, monkeypatch) -> None:
    tensors = cast(test_lu_linear.draw((2, 5, 4, 4), 1), torch.bfloat16)
    sizes, made = [t.shape for t in tensors[:1]], []
    cast_to, before = _channels.cast, _channels.like
    monkeypatch.setattr(_channels, "cast", lambda t, dtype: (made.append((t.shape, dtype)), cast_to(t, dtype))[1])
    monkeypatch.setattr(_channels, "like", lambda t, dtype: (made.append((t.shape, dtype)), before(t, dtype))[1])
    values_and_gradients(ops.lu_linear, tensors, channel_dim=1, backend="cuda")
    of_pixels = [dtype for shape, dtype in made if shape in sizes]
    assert of_pixels and set(of_pixels) == {torch.bfloat16}


def launches(name, inverse, dtype, channels, cuda: Emulated) -> tuple[int, ...]:
    """Of forward, backward, backward of x alone, of parameters alone."""
    op, draw = OPS[name]
    tensors = cast(draw((2, channels, 3, 3), 1), dtype)
    found = []
    for wanted in (range(7), [0], [1, 2]):
        leaves = [
            t.requires_grad_(i in wanted and t.is_floating_point()) for i, t in enumerate(map(Tensor.detach, tensors))
        ]
        before = cuda.launches
        y, _ = op(*leaves, channel_dim=1, inverse=inverse, backend="cuda")
        between = cuda.launches
        y.sum().backward()
        found += [*([between - before] if not found else []), cuda.launches - between]
    return tuple(found)


@pytest.mark.parametrize("bad", [[0, 1, 1], [0, 1, 3], [-1, 0, 2]])
@BOTH
def test_what_is_no_permutation_gives_nan(bad, inverse, cuda: Emulated) -> None:
    """A GPU's kernel cannot raise without waiting: it writes where it may, and NaN."""
    x, *rest = test_lu_linear.draw((9, 3), -1)
    rest[4] = torch.tensor(bad)

    def router(*tensors, backend):  # ops.lu_linear looks at a permutation that is on the CPU, as the emulator's are
        return op(ChannelSpec(-1, inverse), backend, *tensors)

    y, _, *grads = values_and_gradients(router, [x, *rest], backend="cuda")
    assert y.isnan().all() and grads[0].isnan().all()
    assert all(g.isnan().any() for g in grads[1:])


@EVERY
@BOTH
def test_off_by_one_element(op, draw, inverse, dtype, cuda: Emulated) -> None:
    """Memory that 16 bytes at a time would miss gives the same bits as aligned memory."""
    for shape, dim in (((2, 4, 4, 4), 1), ((8, 12), -1)):
        x, *rest = cast(draw(shape, dim), dtype)
        moved = torch.empty(x.numel() + 1, dtype=dtype)[1:].view(shape).copy_(x)
        settings = {"channel_dim": dim, "inverse": inverse, "backend": "cuda"}
        wanted = values_and_gradients(op, [x, *rest], **settings)
        found = values_and_gradients(op, [moved, *rest], **settings)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(("channels", "dtype_"), [(142, torch.float32), (61, torch.float64)], ids=str)
def test_tiles_leave_room_for_the_permutation(channels, dtype_, cuda: Emulated) -> None:
    """Of so many channels tiles alone fill the shared memory of a block, to a few bytes."""
    x, *rest = cast(test_lu_linear.draw((3, channels), -1), dtype_)
    found, right = (
        values_and_gradients(ops.lu_linear, [x, *rest], backend=backend) for backend in ("cuda", "reference")
    )
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


def test_a_matrix_that_fits_nowhere_says_so(cuda: Emulated) -> None:
    tensors = test_lu_linear.draw((2, 300), -1)
    with pytest.raises(RuntimeError, match="300 channels does not fit in the GPU's shared memory"):
        ops.lu_linear(*tensors, backend="cuda")

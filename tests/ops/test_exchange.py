"""What kernels are told of a tensor: the same in one call of C (`csrc/common/exchange.h`) as attribute by attribute."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flowkernels import _native

C = _native.C
pytestmark = pytest.mark.skipif(C is None, reason="no compiled module")
TYPES = [
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32, torch.int64, torch.bool, torch.uint8,
    torch.int8, torch.int16, torch.complex64, torch.float8_e4m3fn,
]  # fmt: skip
TENSORS = {
    "dense": lambda: torch.randn(3, 4),
    "a scalar": lambda: torch.randn(()),
    "transposed": lambda: torch.randn(3, 4).t(),
    "empty": lambda: torch.randn(0, 4),
    "empty, of odd strides": lambda: torch.empty_strided((0, 4), (7, 3)),
    "stepped": lambda: torch.randn(2, 5, 6)[:, ::2, 1::3],
    "expanded": lambda: torch.randn(4).expand(3, 4),
    "one element, of an odd stride": lambda: torch.randn(9).as_strided((2, 1), (1, 7)),
    "behind others": lambda: torch.randn(9)[3:],
    "channels last": lambda: torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "other signs in memory": lambda: torch.randn(3, dtype=torch.cfloat).conj().imag,
    "a parameter": lambda: nn.Parameter(torch.randn(2, 3)),
    "of a graph": lambda: torch.randn(2, 3, requires_grad=True) * 2,
    "of another subclass": lambda: torch.randn(3, 2).as_subclass(type("Mine", (torch.Tensor,), {})),
    "of a buffer": lambda: nn.BatchNorm1d(3).running_mean,
    "meta": lambda: torch.empty(3, device="meta"),
}


@pytest.mark.parametrize("make", TENSORS.values(), ids=TENSORS)
def test_the_same_as_asked(make) -> None:
    t = make()
    address, dtype, size, stride = C.seen(t, True)
    assert (address, dtype, size, stride) == C.seen(t, False)
    assert (address, size, stride) == (t.data_ptr(), list(t.shape), list(t.stride()))


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_dtypes(kind: torch.dtype) -> None:
    t = torch.zeros(3, 2).to(kind)
    assert C.seen(t, True) == C.seen(t, False)


def test_inference_tensors() -> None:
    with torch.inference_mode():
        t = torch.randn(3, 2)
    assert C.seen(t, True) == C.seen(t, False)


def test_no_tensor() -> None:
    assert C.seen(None, True) == C.seen(None, False) == (0, "another dtype", [], [])
    for exchanged in (True, False):
        with pytest.raises(AttributeError, match="data_ptr"):
            C.seen(3, exchanged)


def test_an_error_is_torchs_own_and_does_not_stay() -> None:
    """A sparse tensor has no memory to be read: torch says so, either way, and the next call is as ever."""
    t = torch.eye(3).to_sparse()
    said = []
    for exchanged in (True, False):
        with pytest.raises(RuntimeError) as error:
            C.seen(t, exchanged)
        said.append(str(error.value))
    assert said[0] == said[1]
    assert C.seen(torch.zeros(2), True)[2:] == ([2], [1])


def test_a_tensor_whose_data_is_another() -> None:
    """Nothing of a tensor is kept from call to call."""
    t = nn.Parameter(torch.randn(2, 3))
    before = C.seen(t, True)
    t.data = torch.randn(5, 7, dtype=torch.float64).t()
    assert C.seen(t, True) == C.seen(t, False) != before
    assert C.seen(t, True)[1:] == ("float64", [7, 5], [1, 7])


def test_memory_that_is_shared_until_written() -> None:
    """The address is one that may be written to, as `data_ptr()` gives it."""
    t = torch._lazy_clone(torch.randn(4))
    assert C.seen(t, True) == C.seen(t, False)


def test_are_like() -> None:
    one, other = torch.randn(2), nn.Parameter(torch.randn(3, 3))
    assert C.are_like((one, other), torch.float32) and C.are_like((), torch.float32)
    assert not C.are_like((one, other.double()), torch.float32)
    assert not C.are_like((one, torch.zeros(2, device="meta")), torch.float32)
    assert not C.are_like((torch.zeros(2, dtype=torch.bool),), torch.uint8)
    assert C.are_like((torch.zeros(2, dtype=torch.uint8),), torch.uint8)


def test_torch_has_the_table() -> None:
    """Where torch has DLPack's table it is used: without it every tensor of a call takes half a microsecond longer."""
    table = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    assert C.exchanges == (table is not None)


def test_are_dense() -> None:
    dense = [torch.randn(3, 4), torch.randn(()), torch.randn(0, 4).t(), torch.randn(9).as_strided((2, 1), (1, 7))]
    for t in dense:
        assert C.are_dense((dense[0], t)) and t.is_contiguous()
    for t in (torch.randn(3, 4).t(), torch.randn(4).expand(3, 4), torch.randn(3, dtype=torch.cfloat).conj().imag[::1]):
        assert not C.are_dense((dense[0], t))
    signs = torch.randn(3, dtype=torch.cfloat).conj().imag
    flagged = torch._neg_view(torch.randn(3))
    assert signs.is_neg() and flagged.is_neg() and flagged.is_contiguous() and not C.are_dense((flagged,))

"""What `Standardize` learns of data, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

from flowkernels.transforms import Standardize


@pytest.mark.parametrize(("shape", "dims"), [((4, 10, 3), 1), ((20, 2, 3, 5), 3)])
def test_data_become_of_unit_size(shape, dims) -> None:
    x = 1e6 + 3 * torch.randn(shape, dtype=torch.float64)
    y, ladj = Standardize.from_data(x, dims)(x)
    rows = y.reshape(-1, *shape[-dims:])
    torch.testing.assert_close(rows.mean(0), torch.zeros_like(rows[0]), rtol=0, atol=1e-9)
    torch.testing.assert_close(rows.std(0, correction=0), torch.ones_like(rows[0]))
    assert ladj.shape == shape[:-dims]
    y = Standardize.from_data(x, dims, shared=True)(x)[0]
    torch.testing.assert_close(y.std(correction=0), torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_a_constant_is_not_scaled_and_a_bad_row_is_left_out(precision) -> None:
    x = torch.tensor([[0.1, 1.0], [0.1, 3.0], [math.nan, 1e9], [0.1, math.inf]], dtype=precision)
    layer = Standardize.from_data(x)
    assert layer.std.tolist() == [1.0, 1.0] and layer.mean[1] == 2.0
    assert Standardize.from_data(x[:1]).std.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Standardize([0.0], torch.ones(1)), TypeError, r"mean must be a torch\.Tensor, got list"),
        (lambda: Standardize(torch.zeros(1), 1.0), TypeError, r"std must be a torch\.Tensor, got float"),
        (lambda: Standardize(torch.zeros(2), torch.ones(3)), ValueError, r"of one shape, .*, got \[2\] and \[3\]$"),
        (lambda: Standardize(torch.zeros(()), torch.ones(())), ValueError, r"of one shape, .*, got \[\] and \[\]$"),
        (lambda: Standardize(torch.zeros(1), torch.zeros(1)), ValueError, r"std positive and finite, got tensor"),
        (lambda: Standardize(torch.zeros(1), torch.full((1,), math.inf)), ValueError, r"std positive and finite, got"),
        (lambda: Standardize(torch.full((1,), math.nan), torch.ones(1)), ValueError, r"mean must be finite .*, got"),
        (lambda: Standardize.from_data(torch.zeros(3)), ValueError, r"x must be \[\.\.\., D\] .*, got \[3\], torch"),
        (
            lambda: Standardize.from_data(torch.zeros(3, 2).long()),
            ValueError,
            r"x must be .*, got \[3, 2\], torch.int64",
        ),
        (lambda: Standardize.from_data(torch.zeros(0, 2)), ValueError, r"x must hold a finite row, got 0 rows"),
        (lambda: Standardize.from_data(torch.zeros(3, 2), 2), ValueError, r"dims must be 1 .*, got 2$"),
        (lambda: Standardize(torch.zeros(2), torch.ones(2))(torch.zeros(3)), ValueError, r"x must be .*, got \[3\]$"),
    ],
)
def test_errors(call, error, message) -> None:
    with pytest.raises(error, match=r"^transforms\.Standardize(\.from_data)?: .*" + message):
        call()

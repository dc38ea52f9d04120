"""Small calls of every CUDA kernel on the emulator: in every order of threads the same bits, in one launch, and, where
tests/cuda/test_emulator.py runs this file under AddressSanitizer, within bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flowkernels import ops
from tests import emulator
from tests.cases import n_params

ORDERS = ("forward",) if emulator.ASAN else tuple(emulator.ORDERS)


def affine(shape: tuple[int, ...], dtype: torch.dtype, **settings: Any) -> tuple[Callable[..., Any], list[Tensor]]:
    part = settings.get("part")
    mapped = (*shape[:-1], len(range(shape[-1])[part])) if part else shape
    params = torch.randn(*mapped, 1 if settings.get("scale") == "additive" else 2)
    return ops.affine, [torch.randn(shape).to(dtype), params.to(dtype)]


def rqs(shape: tuple[int, ...], dtype: torch.dtype, **settings: Any) -> tuple[Callable[..., Any], list[Tensor]]:
    params = torch.randn(*shape, n_params(settings["bins"], settings.get("tails", "linear")))
    return ops.rqs, [torch.randn(shape).to(dtype), params.to(dtype)]


def mixture(shape: tuple[int, ...], dtype: torch.dtype, **settings: Any) -> tuple[Callable[..., Any], list[Tensor]]:
    params = torch.randn(*shape, ops.Mixture(**settings).n_params)
    return ops.mixture, [torch.randn(shape).to(dtype), params.to(dtype)]


def polynomial(shape: tuple[int, ...], dtype: torch.dtype, **settings: Any) -> tuple[Callable[..., Any], list[Tensor]]:
    params = torch.randn(*shape, ops.Polynomial(**settings).n_params)
    return ops.polynomial, [torch.randn(shape).to(dtype), params.to(dtype)]


CASES = {
    "affine": affine,
    "mixture": mixture,
    "polynomial": polynomial,
    "rqs": rqs,
}  # name: shape, dtype, settings -> op and its tensors
SHAPES = ((1, 1), (5, 7), (3, 32), (2, 1028), (5, 1031), (201, 3), (65, 4))
SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "affine": (
        {"scale": "sigmoid"}, {"scale": "additive", "inverse": True}, {"scale": "exp", "mask": True},
        {"scale": "tanh", "part": slice(None, None, 2)}, {"scale": "softplus", "part": slice(0, 1)},
    ),
    "mixture": (
        {"components": 8}, {"components": 3, "kernel": "normal", "outer": "probit", "inverse": True},
        {"components": 33, "kernel": "normal", "outer": "unit"},
        {"components": 4, "kernel": "normal", "outer": "probit", "parametrization": "shifts", "shrink": 1e-3},
    ),
    "polynomial": (
        {"inverse": True}, {"degree": 15, "terms": 2}, {"family": "bernstein", "tails": "linear"},
        {"family": "bernstein", "degree": 40, "inverse": True},
    ),
    "rqs": (
        {"bins": 8}, {"bins": 3, "tails": "circular", "inverse": True}, {"bins": 32, "parametrization": "soft_clip"},
    ),
}  # fmt: skip


@pytest.mark.thinned(2)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("op", "settings"), [(op, s) for op, all_of in SETTINGS.items() for s in all_of], ids=str)
def test_every_order_of_threads_gives_the_same_bits(op, settings, shape, dtype) -> None:
    torch.manual_seed(0)
    settings = dict(settings)
    if settings.pop("mask", False):
        settings["mask"] = torch.arange(shape[-1]) % 3 > 0
    f, tensors = CASES[op](shape, dtype, **settings)
    first: list[Tensor] | None = None
    with emulator.running() as emulated:
        for order in ORDERS:
            with emulated.order(order):
                leaves = [t.requires_grad_() for t in tensors]
                before = emulated.launches
                y, ladj = f(*leaves, **settings)
                assert emulated.launches == before + 1
                outputs = [t for t in (y, ladj) if t.requires_grad]
                grads = torch.autograd.grad(outputs, leaves, [torch.ones_like(t) for t in outputs])
                assert emulated.launches == before + 2
            found = [t.detach() for t in (y, ladj, *grads)]
            assert not any(t.isnan().any() for t in found)
            first = first or found
            assert all(torch.equal(a, b) for a, b in zip(found, first, strict=True)), order


@pytest.mark.parametrize("op", CASES)
def test_tensors_may_begin_anywhere(op) -> None:
    """Dense, but not at a multiple of 16 bytes: nothing may be read or written 16 bytes at a time."""
    torch.manual_seed(0)
    f, tensors = CASES[op]((6, 8), torch.float32, **SETTINGS[op][0])
    moved = [torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape) for t in tensors]
    assert all(t.is_contiguous() and t.data_ptr() % 16 for t in moved)
    with emulator.running():
        for mine, its in zip(f(*moved, **SETTINGS[op][0]), f(*tensors, **SETTINGS[op][0]), strict=True):
            assert torch.equal(mine, its)


@pytest.mark.parametrize("op", CASES)
def test_rows_may_lie_at_odd_distances(op) -> None:
    """The first begins at a multiple of 16 bytes and the next does not."""
    torch.manual_seed(0)
    f, tensors = CASES[op]((6, 8), torch.float32, **SETTINGS[op][0])
    apart = [torch.cat([t, t[:, :1]], 1)[:, :8] for t in tensors]
    assert all(t.data_ptr() % 16 == 0 and t.stride(0) == 9 * t.stride(1) for t in apart)
    with emulator.running():
        for mine, its in zip(f(*apart, **SETTINGS[op][0]), f(*tensors, **SETTINGS[op][0]), strict=True):
            assert torch.equal(mine, its)

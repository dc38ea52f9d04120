"""A part of the features is mapped: the others pass, every one of them, in values and in gradients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from flowkernels import ops
from tests.device import here
from tests.ops.masked import backends_of

pytestmark = pytest.mark.usefixtures("poison", "one_thread", "kernels")


def parts(n: int) -> Iterator[slice]:
    """Every slice with a step up to 4: those of the same features too, which end at different places."""
    for step in range(1, 5):
        for start in range(n):
            for stop in range(start + 1, n + 1):
                yield slice(start, stop, step)


def assert_rest_passes(x: Tensor, params: Tensor, part: slice, backend: str) -> None:
    """`x` [N, n, ...], of which dim 1 has the part."""
    x, params = x.detach().requires_grad_(), params.detach().requires_grad_()
    y, ladj = ops.affine(x, params, part=part, event_dims=x.dim() - 1, backend=backend)
    scale = params.detach()[..., 0].exp()
    expected = x.detach().clone()
    expected[:, part] = x.detach()[:, part] * scale + params.detach()[..., 1]
    torch.testing.assert_close(y, expected, msg=lambda m: f"{part} of {x.shape[1]}: {m}")

    g = torch.linspace(1, 2, x.numel(), dtype=x.dtype, device=x.device).reshape(x.shape)
    (grad_x,) = torch.autograd.grad(y, x, g, retain_graph=True)
    expected = g.clone()
    expected[:, part] *= scale
    torch.testing.assert_close(grad_x, expected, msg=lambda m: f"{part} of {x.shape[1]}: {m}")
    (of_ladj,) = torch.autograd.grad(ladj.sum(), x, allow_unused=True)
    assert of_ladj is None or not of_ladj.any(), f"{part} of {x.shape[1]}"


@pytest.mark.parametrize("n", range(1, 10))
def test_every_part_of_features(n) -> None:
    x, params = here(torch.randn(2, n)), here(torch.randn(2, n, 2))
    for backend in backends_of("affine"):
        for part in parts(n):
            assert_rest_passes(x, params[:, part], part, backend)


@pytest.mark.parametrize("layout", ["dense", "channels last", "every second"])
def test_every_part_of_channels(layout) -> None:
    x, params = here(torch.randn(2, 5, 2, 3)), here(torch.randn(2, 5, 2, 3, 2))
    if layout == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    if layout == "every second":
        x = torch.stack([x, x.new_full(x.shape, torch.nan)], -1)[..., 0]
    for backend in backends_of("affine"):
        for part in parts(5):
            assert_rest_passes(x, params[:, part], part, backend)

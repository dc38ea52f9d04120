"""Inputs for the tests of ops on channels: shapes, layouts, and values and gradients in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.device import here
from tests.numbers import assert_within_rule
from tests.ops.masked import backends_of

# (shape of x, channel_dim), and why
SHAPES = {
    "one": ((1, 1), -1),
    "vector": ((5,), -1),  # ladj is a scalar
    "no rows": ((0, 3), -1),
    "no features": ((4, 0), -1),
    "column": ((37, 1), -1),  # one channel: every lane a row of its own
    "rows": ((33, 7), -1),
    "two leading": ((3, 5, 12), -1),
    "a panel and one": ((130, 13), -1),
    "two panels": ((65, 24), -1),
    "few rows, wide": ((3, 150), -1),  # where two triangular products are less than their product
    "many rows": ((2500, 6), -1),  # enough for two threads
    "a chain and more": ((70, 131), -1),
    "one pixel": ((9, 5, 1, 1), 1),
    "no images": ((0, 3, 4, 4), 1),
    "no pixels": ((2, 3, 0, 4), 1),
    "no trailing dims": ((6, 5), 1),
    "sequence": ((4, 6, 11), 1),
    "volume": ((2, 4, 2, 3, 5), 1),
    "small images": ((5, 12, 4, 4), 1),  # two images to a block of pixels
    "odd images": ((3, 13, 5, 7), 1),
    "images": ((4, 12, 16, 16), 1),
    "wide images": ((2, 50, 6, 6), 1),
    "threads": ((3, 24, 32, 32), 1),
}


def layouts(x: Tensor, channel_dim: int) -> dict[str, Tensor]:
    """The same values under other strides."""
    found = {"contiguous": x}
    if x.dim() > 1:
        found["turned"] = x.mT.contiguous().mT
        found["every second"] = torch.stack([x, -x], -1).flatten(-2)[..., ::2]
        wide = torch.cat([x, -x], channel_dim)
        found["first channels"] = wide.narrow(channel_dim, 0, x.shape[channel_dim])
        found["flipped batch"] = x.flip(0).contiguous().flip(0)
        found["one row for all"] = x[:1].expand_as(x)
    if x.dim() == 4 and channel_dim == 1:
        found["channels_last"] = x.contiguous(memory_format=torch.channels_last)
        found["last channels, channels_last"] = (
            wide.flip(1).contiguous(memory_format=torch.channels_last)[:, x.shape[1] :].flip(1)
        )
    return found


def weights(like: Tensor, seed: int) -> Tensor:
    """Fixed gradients for an output: the same values whatever its dtype or strides."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=g, dtype=torch.float64, device="cpu").to(like)


def values_and_gradients(
    f: Callable[..., tuple[Tensor, Tensor]], tensors: list[Tensor], **settings: Any
) -> list[Tensor]:
    """y, ladj and the gradients of all floating tensors."""
    leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in tensors]
    y, ladj = f(*leaves, **settings)
    wanted = [t for t in leaves if t.requires_grad]
    grads = torch.autograd.grad([y, ladj], wanted, [weights(y, 1), weights(ladj, 2)], allow_unused=True)
    filled = [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, grads, strict=True)]
    return [y.detach(), ladj.detach(), *filled]


def assert_sums_in_double(op: str, f: Callable[..., tuple[Tensor, Tensor]], tensors: Sequence[Tensor], at: int) -> None:
    """In float32, by every compiled kernel: ladj, of logarithms `tensors[at]` that cancel but for what a sum in float
    would lose, and the gradient of those, of gradients of ladj that do. x [rows, C] is 0."""
    rows, C = tensors[0].shape
    tensors = cast(tensors, torch.float32)
    logarithms = torch.full_like(tensors[at], 2.0**-20)
    logarithms[0], logarithms[-1] = 32, -32
    given = torch.full_like(tensors[0][:, 0], 1.0)
    given[0], given[-1] = 2.0**25, -(2.0**25)
    for inverse in (False, True):
        sign = -1 if inverse else 1
        for backend in backends_of(op):
            if backend not in ("cpu", "cuda"):
                continue  # torch's sums are its own, and so are Triton's
            leaves = [logarithms.clone().requires_grad_() if i == at else t for i, t in enumerate(tensors)]
            y, ladj = f(*leaves, inverse=inverse, backend=backend)
            assert torch.equal(ladj, torch.full_like(ladj, sign * (C - 2) * 2.0**-20)), backend
            (found,) = torch.autograd.grad([y, ladj], leaves[at], [torch.zeros_like(y), given])
            assert torch.equal(found, torch.full_like(found, sign * (rows - 2.0))), backend


def cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Integers stay integers."""
    return [t.to(dtype) if t.is_floating_point() else t for t in tensors]


def rows_of(t: Tensor, channel_dim: int) -> np.ndarray:
    """[pixels, C] in the widest floats there are, 64 bits of mantissa on x86: the truth of float64."""
    moved = t.movedim(channel_dim, -1).cpu()
    return moved.reshape(moved.shape[:-1].numel(), moved.shape[-1]).numpy().astype(np.longdouble)


def assert_numbers(
    op: str,
    f: Callable[..., tuple[Tensor, Tensor]],
    exact: Callable[..., list[np.ndarray]],
    draws: Sequence[list[Tensor]],
    names: Sequence[str],
    dtype: torch.dtype,
    isas: Iterable[str],
    **settings: Any,
) -> None:
    """Values and gradients of every backend, by the numbers rule on the largest error in all draws and on the 2-norm.

    ``exact(tensors, grad_y, grad_ladj, **settings)``: values (y by rows) and gradients, in longdouble. The gradients of
    outputs are random: where they alternate from pixel to pixel a sum in lanes rounds what a sum in order never sees.
    """

    def run(backend: str, tensors: list[Tensor]) -> list[Tensor]:
        return values_and_gradients(f, tensors, backend=backend, **settings)

    dim = settings["channel_dim"]
    given = [cast(t, dtype) for t in draws]
    eager = [run("reference", t) for t in given]
    truth = []
    for tensors, (y, ladj, *_) in zip(given, eager, strict=True):
        right = exact(cast(tensors, torch.float64), weights(y, 1).double(), weights(ladj, 2).double(), **settings)
        lead = tensors[0].movedim(dim, -1).shape
        flat = [here(torch.from_numpy(r.astype(np.float64))) for r in right]
        for i in (0, 2):  # y and the gradient of x
            flat[i] = flat[i].reshape(lead).movedim(-1, dim)
        truth.append(flat)
    for first, isa in enumerate(isas):
        for backend in backends_of(op):
            if backend != "cpu" and first > 0:
                continue  # it knows no instruction sets
            found = [run(backend, t) for t in given]
            for i, name in enumerate(names):
                mine, its, right = (torch.stack([draw[i] for draw in of]) for of in (found, eager, truth))
                assert mine.dtype == its.dtype
                assert_within_rule(mine, its, right, f"{backend}, {isa}: {name}")
                error, of_eager = ((t.double() - right).norm() for t in (mine, its))
                few = 4 * torch.finfo(mine.dtype).eps * right.norm()
                assert error <= 2 * of_eager + few, f"{backend}, {isa}: {name}: {error:.3g}, eager {of_eager:.3g}"


def assert_compiles(op: str, f: Callable[..., Any], tensors: Sequence[Tensor], channel_dim: int, inverse: bool) -> None:
    """Compiled and exported the op of this name gives what it gives eager, and torch.library finds nothing wrong."""
    leaves = [t.requires_grad_(t.is_floating_point()) for t in tensors]
    wanted = [t for t in leaves if t.requires_grad]

    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
            return f(*tensors, channel_dim=channel_dim, inverse=inverse)

    def loss(*tensors: Tensor) -> Tensor:
        y, ladj = f(*tensors, channel_dim=channel_dim, inverse=inverse)
        return y.sin().sum() + ladj.square().sum()

    torch._dynamo.reset()
    for dynamic in (None, True):
        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=dynamic)
        torch.testing.assert_close(compiled(*leaves), loss(*leaves))
        torch.testing.assert_close(
            torch.autograd.grad(compiled(*leaves), wanted), torch.autograd.grad(loss(*leaves), wanted)
        )
    detached = tuple(t.detach() for t in leaves)
    exported = torch.export.export(Module(), detached).module()
    torch.testing.assert_close(exported(*detached), Module()(*detached))
    backend = backends_of(op)[0]
    if backend == "reference":
        return  # only a kernel promises the strides of the fake
    forward, backward = (getattr(torch.ops.flowkernels, name).default for name in (op, f"{op}_bwd"))
    settings = (channel_dim, inverse, backend)
    torch.library.opcheck(forward, (*leaves, *settings))
    needs = [t.requires_grad for t in leaves]
    torch.library.opcheck(
        backward,
        (list(Module()(*detached)), list(detached), needs, *settings),
        test_utils=("test_schema", "test_faketensor"),
    )

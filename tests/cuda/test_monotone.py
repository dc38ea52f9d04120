"""Monotone networks on a GPU: bits in every order of threads, launches, what a gate refuses and what does not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flowkernels import ops
from flowkernels.backends import BackendUnavailableError
from flowkernels.ops.monotone_net import native
from tests import emulator
from tests.ops.gate import assert_refused
from tests.ops.test_monotone_net import FORMS, WAYS, cast, drawn, layers_of

pytestmark = pytest.mark.usefixtures("one_thread")
ORDERS = ("forward",) if emulator.ASAN else tuple(emulator.ORDERS)
SHAPES = {
    "one layer between": ((5, 3), {"units": (9, 5), "D": 3, "S": 2}),
    "a set for all, a long signal": ((3,), {"units": (7,), "D": None, "S": 35}),
    "no signal, two row blocks": ((41,), {"units": (4, 3, 2), "D": 2, "S": 0}),
}  # rows, layers
R = torch.zeros


@pytest.fixture(autouse=True)
def cuda(cuda_on_cpu: emulator.Emulated) -> emulator.Emulated:
    return cuda_on_cpu


def call(shape: str, dtype: torch.dtype, **settings: Any) -> tuple[Tensor, ...]:
    """Values and all gradients."""
    lead, net = SHAPES[shape]
    layers = cast(layers_of(*net["units"], D=net["D"], S=net["S"]), dtype)
    D = net["D"] or 3
    x, signal = drawn(*lead, D).to(dtype), drawn(*lead, D, net["S"]).to(dtype)
    leaves = [t.requires_grad_() for t in (x, signal, *(t for layer in layers for t in layer))]
    y, ladj = ops.monotone_net(x, signal, layers, nodes=5, backend="cuda", **settings)
    return (y, ladj, *torch.autograd.grad(y.sum() + ladj.sum(), leaves))


@FORMS
@WAYS
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_every_order_of_threads_gives_the_same_bits(cuda, form, inverse, shape, precision) -> None:
    first: tuple[Tensor, ...] | None = None
    for order in ORDERS:
        with cuda.order(order):
            before = cuda.launches
            found = call(shape, precision, form=form, inverse=inverse)
            assert cuda.launches == before + 6  # weights, values, ladj; weights, gradients, their sums
        assert not any(t.isnan().any() for t in found)
        first = first or found
        assert all(torch.equal(a, b) for a, b in zip(found, first, strict=True)), order


@FORMS
def test_a_net_that_does_not_fit_says_so(form) -> None:
    for units, fits in (((128, 128, 128), True), ((512, 512), False), ((4,) * 8, False)):
        layers = cast(layers_of(*units, D=None), torch.float32)
        arguments = drawn(2, 3).float(), drawn(2, 3, 2).float(), layers
        spec = ops.monotone_net.__globals__["checked"]("", form, "elu", 8, "integrand", 7.0, False, 10.0, False)
        tensors = (*arguments[:2], *(t for layer in layers for t in layer))
        reason = native.why_not(native.CUDA, spec, *tensors)
        if fits:
            assert reason is None
            continue
        assert reason is not None and "do not fit in the GPU's shared memory" in reason
        with pytest.raises(BackendUnavailableError, match="do not fit in the GPU's shared memory"):
            ops.monotone_net(*arguments, form=form, nodes=8, backend="cuda")


def test_more_elements_than_slices(cuda) -> None:
    """Whose gradients of weights are summed over row blocks in each of them, and over the slices."""
    layers, x, signal = layers_of(3, D=None), drawn(1400, 12), drawn(1400, 12, 2)
    assert native.slices_of(44 * 12, 1, 100) == 512
    grads = []
    for backend in ("cuda", "reference"):
        leaves = [t.detach().requires_grad_() for layer in layers for t in layer]
        weights = list(zip(leaves[::2], leaves[1::2], strict=True))
        y, ladj = ops.monotone_net(x, signal, weights, nodes=2, backend=backend)
        grads.append(torch.autograd.grad(y.sum() + ladj.sum(), leaves))
    torch.testing.assert_close(*grads)


# ---- the gate ----


def calls(C: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    spec = C.MonotoneSpec(False, 3, [0.5], [1.0], 7.0, 10.0, True, False)
    layers = [R(3, 4, 3), R(3, 4), R(3, 1, 4), R(3, 1)]
    _, packed, sums = C.monotone_room(spec, (2, 4, 1), 0, 0)
    x, signal = R(5, 3), R(5, 3, 3)
    fwd = {"spec": spec, "x": x, "signal": signal, "layers": layers}
    bwd = {
        **fwd, "root": None, "grad_y": x.clone(), "grad_ladj": R(5), "grad_x": x.clone(), "grad_signal": signal.clone(),
        "grads": [t.clone() for t in layers], "packed": R(3, packed), "sums": R(3, 2, sums).double(), "slices": 2,
        "device": 0, "stream": 0,
    }  # fmt: skip
    fwd |= {"y": x.clone(), "ladj": R(5), "packed": R(3, packed), "terms": R(3, 5), "device": 0, "stream": 0}
    return fwd, bwd


def test_the_gate(cuda) -> None:
    C = cuda.module
    fwd, bwd = calls(C)
    for broken, message in (
        ({"packed": R(1, fwd["packed"].shape[1])}, "monotone: packed must be [3, "),
        ({"terms": R(5, 3)}, "monotone: terms must be [3, 5], got [5, 3]"),
        ({"y": R(5, 4)}, "monotone: y must be [5, 3], got [5, 4]"),
        ({"signal": R(5, 3)}, "monotone: signal must be [rows, D, S], got [5, 3]"),
    ):
        assert_refused(C.monotone_fwd, fwd, broken, message)
    for broken, message in (
        ({"sums": bwd["sums"].float()}, "monotone: sums must be float64, got float32"),
        ({"sums": None}, "monotone: sums must be a tensor, got None"),
        ({"slices": 3}, "monotone: sums must be [3, 3, "),
        ({"slices": 0}, "monotone: slices must be from 1 to"),
        ({"packed": None}, "monotone: packed must be a tensor, got None"),
    ):
        assert_refused(C.monotone_bwd, bwd, broken, message)
    wide = [R(3, 2000, 3), R(3, 2000), R(3, 1, 2000), R(3, 1)]
    message = "monotone: layers must be small enough for the shared memory of a block, got more"
    assert_refused(C.monotone_fwd, fwd, {"layers": wide}, message)
    room = {"spec": fwd["spec"], "widths": (2, 4, 1), "type": 0, "device": 0}
    for broken, message in (
        ({"widths": (2, 1)}, "monotone: the number of layers must be from 2 to 16, got 1"),
        ({"widths": (2, 0, 1)}, "monotone: widths must be from 1 to"),
        ({"widths": (2, 4, 2)}, "monotone: the last of the widths must be from 1 to 1, got 2"),
    ):
        assert_refused(C.monotone_room, room, broken, message)

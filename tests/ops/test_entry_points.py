"""The last gate before a pointer is used: every entry point of the maps' kernels, called with one thing that is wrong.

Python's own checks come before, so that no user sees these messages; what they name would be memory that is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from flowkernels import _native
from tests import emulator

pytestmark = pytest.mark.usefixtures("poison", "one_thread")
if _native.C is None:
    pytest.skip(f"no compiled kernels: {_native.why_missing}", allow_module_level=True)

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


class Said:
    """What a tensor would say of itself, but for what is said here."""

    def __init__(self, t: Tensor, shape: Any = None, stride: Any = None, at: int | None = None) -> None:
        self.t, self.dtype = t, t.dtype
        self.shape = tuple(t.shape if shape is None else shape)
        self._stride, self.at = tuple(t.stride() if stride is None else stride), at

    def stride(self) -> tuple[int, ...]:
        return self._stride

    def data_ptr(self) -> int:
        return self.t.data_ptr() if self.at is None else self.at


def new(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    return torch.ones(shape, dtype=dtype)


def nowhere(*shape: int) -> Said:
    return Said(new(*shape), at=0)


class Machine:
    """A compiled module, and what comes last in the arguments of its entry points."""

    def __init__(self, name: str) -> None:
        self.name, self.cuda = name, name == "cuda"
        self.module: Any = emulator.emulated().module if self.cuda else _native.C
        self.where = (0, 0) if self.cuda else (1,)


@pytest.fixture(params=["cpu", "cuda"])
def on(request) -> Iterator[Machine]:
    yield Machine(request.param)


# Of every entry point: its arguments by name, in order, all right. Lists at the end are for a GPU alone.
Good = Callable[[Machine], dict[str, Any]]


def rqs_spec(on: Machine, *, bins: int = 4, tails: int = 1, box=(-3.0, 3.0, -3.0, 3.0), min_lambda: float = 0.0) -> Any:
    return on.module.RqsSpec(bins, tails, *box, 1e-3, 1e-3, 1e-3, 1.0, 0.0, 0.0, 0.54, False, min_lambda)


def affine_spec(on: Machine, scale: int = 0, layout=(1, 0, 0, 1)) -> Any:
    return on.module.AffineSpec(scale, 0.0, 2.0, False, -5.0, 3.0, False, layout)


def rqs_fwd(on: Machine) -> dict[str, Any]:
    return {"spec": rqs_spec(on), "x": new(5, 3), "params": new(5, 3, 11), "y": new(5, 3), "ladj": new(5)}


def rqs_bwd(on: Machine) -> dict[str, Any]:
    return {
        "spec": rqs_spec(on), "x": new(5, 3), "params": new(5, 3, 11), "grad_y": new(5, 3), "grad_ladj": new(5),
        "grad_x": new(5, 3), "grad_params": new(5, 3, 11),
    }  # fmt: skip


def affine_fwd(on: Machine) -> dict[str, Any]:
    return {
        "spec": affine_spec(on), "passes": False, "x": new(5, 3), "params": new(5, 3, 2), "shift": None, "mask": None,
        "y": new(5, 3), "ladj": new(5),
    }  # fmt: skip


def affine_bwd(on: Machine) -> dict[str, Any]:
    return {
        "spec": affine_spec(on), "passes": False, "x": new(5, 3), "params": new(5, 3, 2), "shift": None, "mask": None,
        "grad_y": new(5, 3), "grad_ladj": new(5), "grad_x": new(5, 3), "grad_params": new(5, 3, 2), "grad_shift": None,
    }  # fmt: skip


def actnorm_fwd(on: Machine) -> dict[str, Any]:
    return {
        "channel_dim": -1, "inverse": False, "x": new(5, 3), "log_scale": new(3), "shift": new(3), "y": new(5, 3),
        "ladj": new(5),
    }  # fmt: skip


def actnorm_bwd(on: Machine) -> dict[str, Any]:
    room = {"sums": new(2, 7, dtype=F64), "slices": 2} if on.cuda else {}
    return {
        "channel_dim": -1, "inverse": False, "x": new(5, 3), "log_scale": new(3), "shift": new(3), "grad_y": new(5, 3),
        "grad_ladj": new(5), "grad_x": new(5, 3), "grad_log_scale": new(3), "grad_shift": new(3), **room,
    }  # fmt: skip


def factors() -> dict[str, Any]:
    order = torch.tensor([2, 0, 1])
    return {
        "lower": new(3, 3), "upper": new(3, 3), "log_s": new(3), "sign_s": new(3), "permutation": order, "bias": new(3)
    }  # fmt: skip


def lu_fwd(on: Machine) -> dict[str, Any]:
    return {"channel_dim": -1, "inverse": False, "x": new(5, 3), **factors(), "y": new(5, 3), "ladj": new(5)}


def lu_bwd(on: Machine, dtype: torch.dtype = F32) -> dict[str, Any]:
    room = {"sums": new(2, 22, dtype=F64), "h": new(3, 5), "g_h": new(3, 5), "slices": 2} if on.cuda else {}
    return {
        "channel_dim": -1, "inverse": True, "x": new(5, 3), **factors(), "y": new(5, 3), "grad_y": new(5, 3),
        "grad_ladj": new(5), "grad_x": new(5, 3), "grad_lower": new(3, 3), "grad_upper": new(3, 3),
        "grad_log_s": new(3), "grad_sign_s": new(3), "grad_bias": new(3), **room,
    }  # fmt: skip


def wide_lu_bwd(on: Machine) -> dict[str, Any]:
    """In float64, of which a GPU's kernels take the two sums of an inverse one by one."""
    return {k: v.double() if isinstance(v, Tensor) and v.dtype is F32 else v for k, v in lu_bwd(on).items()}


GOOD: dict[str, Good] = {
    f.__name__: f for f in (rqs_fwd, rqs_bwd, affine_fwd, affine_bwd, actnorm_fwd, actnorm_bwd, lu_fwd, lu_bwd)
}


def call(on: Machine, entry: str, arguments: dict[str, Any]) -> None:
    getattr(on.module, entry)(*arguments.values(), *on.where)


@pytest.mark.parametrize("entry", [*GOOD, "wide_lu_bwd"])
def test_all_is_right(on, entry) -> None:
    """What the tests below change one thing of."""
    good = (wide_lu_bwd if entry == "wide_lu_bwd" else GOOD[entry])(on)
    call(on, entry.removeprefix("wide_"), good)


def required() -> list[tuple[str, str]]:
    """Tensors that no call goes without."""
    absent = {
        "shift", "mask", "bias", "permutation", "grad_y", "grad_ladj", "grad_x", "grad_params", "grad_shift", "y",
        "grad_log_scale", "grad_log_s", "grad_sign_s", "grad_lower", "grad_upper", "grad_bias", "sums", "h", "g_h",
    }  # fmt: skip
    also = [("rqs_fwd", "y"), ("affine_fwd", "y"), ("actnorm_fwd", "y"), ("lu_fwd", "y"), ("rqs_bwd", "grad_x")]
    also += [("rqs_bwd", "grad_params"), ("actnorm_bwd", "grad_y"), ("lu_bwd", "grad_y"), ("actnorm_fwd", "shift")]
    tensors = ("x", "params", "ladj", "log_scale", "lower", "upper", "log_s", "sign_s")
    of = [(e, n) for e, f in GOOD.items() for n in f(Machine("cpu")) if n in tensors and n not in absent]
    return of + also


@pytest.mark.parametrize(("entry", "name"), required(), ids=str)
def test_a_tensor_is_missing(on, entry, name) -> None:
    with pytest.raises(ValueError, match=rf"{entry.split('_')[0]}.*: {name} must be a tensor, got None"):
        call(on, entry, {**GOOD[entry](on), name: None})


def all_tensors() -> list[tuple[str, str]]:
    return [(e, n) for e, f in GOOD.items() for n, v in f(Machine("cpu")).items() if isinstance(v, Tensor)]


@pytest.mark.parametrize(("entry", "name"), all_tensors(), ids=str)
def test_every_number_of_every_tensor(on, entry, name) -> None:
    """Its address, type, dims, sizes and strides are asked for: of inputs, outputs and gradients alike."""
    good = GOOD[entry](on)
    t = good[name]
    wrong: dict[str, Any] = {
        "null": (Said(t, at=0), "in memory, got a null data pointer"),
        "type": (t.to(torch.int16), "must be .*, got another dtype"),
        "more dims": (t[None], r"must be .*, got \[1, "),
        "no dims": (t.flatten()[0], r"must be .*, got (\[\]|a scalar)"),
        "size": (torch.cat([t, t]), r"must be .*, got \[(10|6)"),
        "negative": (Said(t, shape=(-1, *t.shape[1:])), r"must be .*, got \[?-1"),
        "overflow": (Said(t, (2**62, 8), (8, 1)), "must be .*, got .*4611686018427387904"),
        "backwards": (Said(t, stride=(-1,) * t.dim()), r"must be .*strides from 0 on, got \[-1"),
    }
    for what, (given, message) in wrong.items():
        # What has another shape than x is refused, not x.
        with pytest.raises(ValueError, match="must be .*, got " if name == "x" else message):
            call(on, entry, {**good, name: given})
            pytest.fail(f"{what} of {name} passes")
    with pytest.raises((TypeError, AttributeError)):
        call(on, entry, {**good, name: 3})


# What is written by its index alone, or summed as one piece: without gaps.
CONTIGUOUS = [
    ("rqs_fwd", "y"), ("rqs_fwd", "ladj"), ("rqs_bwd", "grad_y"), ("rqs_bwd", "grad_ladj"), ("rqs_bwd", "grad_x"),
    ("rqs_bwd", "grad_params"), ("affine_fwd", "ladj"), ("affine_bwd", "grad_ladj"), ("actnorm_fwd", "ladj"),
    ("actnorm_fwd", "log_scale"), ("actnorm_fwd", "shift"), ("actnorm_bwd", "grad_ladj"),
    ("actnorm_bwd", "grad_log_scale"), ("actnorm_bwd", "grad_shift"), ("lu_fwd", "lower"), ("lu_fwd", "upper"),
    ("lu_fwd", "log_s"), ("lu_fwd", "sign_s"), ("lu_fwd", "permutation"), ("lu_fwd", "bias"), ("lu_fwd", "ladj"),
    ("lu_bwd", "grad_ladj"), ("lu_bwd", "grad_lower"), ("lu_bwd", "grad_upper"), ("lu_bwd", "grad_log_s"),
    ("lu_bwd", "grad_sign_s"), ("lu_bwd", "grad_bias"),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "name"), CONTIGUOUS, ids=str)
def test_gaps(on, entry, name) -> None:
    good = GOOD[entry](on)
    apart = torch.stack([good[name]] * 2, -1)[..., 0]
    with pytest.raises(ValueError, match=rf"{name} must be contiguous, got strides \["):
        call(on, entry, {**good, name: apart})


# (entry, what is changed, message). Functions of the machine, where a module's own types are needed.
WRONG: list[tuple[str, Callable[[Machine], dict[str, Any]], str]] = [
    ("rqs_fwd", lambda on: {"x": new(5, 3, dtype=BF16)}, "rqs: params must be of the type of x, bfloat16, got float32"),
    ("rqs_fwd", lambda on: {"params": new(5, 3, 11, dtype=F64)}, "rqs: params must be of the type of x, float32"),
    ("rqs_fwd", lambda on: {"params": new(5, 3, 11, dtype=BF16), "y": new(5, 3, dtype=BF16)}, "y must be float32"),
    ("rqs_fwd", lambda on: {"ladj": new(5, dtype=F64)}, "rqs: ladj must be float32, got float64"),
    ("rqs_fwd", lambda on: {"spec": rqs_spec(on, bins=5)}, r"rqs: params must be \[5, 3, 14\], got \[5, 3, 11\]"),
    ("rqs_fwd", lambda on: {"spec": rqs_spec(on, tails=0)}, r"rqs: params must be \[5, 3, 13\], got \[5, 3, 11\]"),
    ("rqs_fwd", lambda on: {"spec": rqs_spec(on, min_lambda=0.1)}, r"params must be \[5, 3, 15\], got \[5, 3, 11\]"),
    ("rqs_fwd", lambda on: {"params": new(5, 3, 22)[..., ::2]}, r"params must be dense in their last dim, got strides"),
    ("rqs_bwd", lambda on: {"grad_params": new(5, 3, 11, dtype=BF16)}, "grad_params must be float32, got bfloat16"),
    (
        "rqs_fwd",
        lambda on: {
            "x": new(*[2] * 10)[..., :1].permute(*reversed(range(9)), 9), "params": new(*[2] * 9, 1, 11),
            "y": new(*[2] * 9, 1), "ladj": new(*[2] * 9),
        },
        "rqs: x must be of at most 8 leading dims that cannot be merged, got strides",
    ),
    ("affine_fwd", lambda on: {"passes": True}, "affine: pass must be of a part of step 1 of dense tensors, got"),
    (
        "affine_fwd",
        lambda on: {"spec": affine_spec(on, layout=(1, 0, 3, 2)), "params": new(5, 2, 2), "passes": True},
        "affine: pass must be of a part of step 1",
    ),
    (
        "affine_fwd",
        lambda on: {
            "spec": affine_spec(on, layout=(1, 0, 2, 1)), "params": new(5, 2, 2), "passes": True, "y": new(3, 5).T
        },
        r"affine: pass must be of .* dense tensors, got strides \[1, 5\]",
    ),
    (
        "affine_bwd",
        lambda on: {
            "spec": affine_spec(on, layout=(1, 0, 2, 1)), "params": new(5, 2, 2), "grad_params": new(5, 2, 2),
            "passes": True, "grad_x": None,
        },
        "affine: grad_x must be a tensor, got None",
    ),
    ("affine_fwd", lambda on: {"spec": affine_spec(on, layout=(1, 0, 4, 1))}, "affine: part must be within 3 features"),
    ("affine_fwd", lambda on: {"spec": affine_spec(on, layout=(1, 1, 3, 1))}, r"params must be \[5, 2, 2\], got \[5"),
    ("affine_fwd", lambda on: {"spec": affine_spec(on, layout=(3, 0, 0, 1))}, r"affine: x must be of 3 dims or more"),
    ("affine_fwd", lambda on: {"spec": affine_spec(on, layout=(2, 0, 0, 1))}, r"affine: ladj must be \[\], got \[5\]"),
    ("affine_fwd", lambda on: {"spec": affine_spec(on, 4)}, r"affine: params must be \[5, 3, 1\], got \[5, 3, 2\]"),
    ("affine_fwd", lambda on: {"shift": new(5, 3)}, r"affine: params must be \[5, 3\], got \[5, 3, 2\]"),
    ("affine_fwd", lambda on: {"params": new(5, 3), "shift": new(5, 2)}, r"affine: shift must be \[5, 3\], got \[5"),
    ("affine_fwd", lambda on: {"params": new(5, 3), "shift": new(5, 3, dtype=F64)}, "shift must be float32, got"),
    (
        "affine_fwd",
        lambda on: {"spec": affine_spec(on, 4), "params": new(5, 3), "shift": new(5, 3)},
        "affine: shift must be None where the scale is 1, got a tensor",
    ),
    ("affine_fwd", lambda on: {"params": new(5, 3, 2, dtype=F64)}, "params must be of the type of x, float32, got"),
    ("affine_fwd", lambda on: {"mask": new(3)}, "affine: mask must be bool or uint8, got float32"),
    ("affine_fwd", lambda on: {"mask": new(2, dtype=torch.bool)}, r"mask must be one that broadcasts to .* \[3\]"),
    ("affine_fwd", lambda on: {"mask": new(1, 3, dtype=torch.bool)}, r"mask must be one that broadcasts .*, got \[1"),
    ("affine_fwd", lambda on: {"mask": Said(new(3, dtype=torch.bool), at=0)}, "mask must be in memory, got a null"),
    ("affine_fwd", lambda on: {"y": new(1, 3).expand(5, 3)}, "affine: y must be one place an element, got strides"),
    ("affine_fwd", lambda on: {"y": new(5, 3, dtype=F16)}, "affine: y must be float32, got float16"),
    ("affine_bwd", lambda on: {"grad_x": new(1, 3).expand(5, 3)}, "grad_x must be one place an element, got strides"),
    ("affine_bwd", lambda on: {"grad_params": new(1, 3, 2).expand(5, 3, 2)}, "grad_params must be one place an"),
    ("affine_bwd", lambda on: {"grad_params": None, "grad_shift": new(5, 3)}, "grad_params must be given where"),
    ("affine_bwd", lambda on: {"grad_shift": new(5, 3)}, "affine: grad_shift must be given where shift is, got a"),
    ("affine_bwd", lambda on: {"grad_params": new(5, 3, 2, dtype=BF16)}, "grad_params must be float32, got bfloat16"),
    ("actnorm_fwd", lambda on: {"channel_dim": 0}, "channel_dim must be -1 or 1, got 0"),
    ("actnorm_fwd", lambda on: {"x": new(0, 3)}, r"actnorm: x must be not empty, got \[0, 3\]"),
    ("actnorm_fwd", lambda on: {"x": new(3), "channel_dim": 1}, r"actnorm: x must be \[N, C, ...\], got \[3\]"),
    ("actnorm_fwd", lambda on: {"x": new(5, 6)[:, ::2]}, "actnorm: x must be of pixels at even distances, with"),
    ("actnorm_fwd", lambda on: {"y": new(3, 5).T}, "actnorm: y must be walked as x is, by rows or by planes, got"),
    ("actnorm_fwd", lambda on: {"y": new(1, 3).expand(5, 3)}, "actnorm: y must be one place an element, got strides"),
    ("actnorm_fwd", lambda on: {"log_scale": new(3, dtype=F64)}, "actnorm: log_scale must be float32, got float64"),
    (
        "actnorm_fwd",
        lambda on: {
            "channel_dim": 1, "x": new(2, 9, 3)[:, :4].mT, "y": new(2, 9, 3)[:, :4].mT, "ladj": new(2)
        },
        "actnorm: x must be of pixels at even distances over all images, got strides",
    ),
    ("lu_fwd", lambda on: {"lower": new(2, 2)}, r"lu_linear: lower must be \[3, 3\], got \[2, 2\]"),
    ("lu_fwd", lambda on: {"permutation": torch.tensor([0, 1])}, r"lu_linear: permutation must be \[3\], got \[2\]"),
    ("lu_fwd", lambda on: {"permutation": torch.tensor([0, 1, 2]).int()}, "permutation must be int64, got int32"),
    ("lu_fwd", lambda on: {"y": new(5, 6)[:, ::2]}, "lu_linear: y must be of pixels at even distances, with pixels or"),
    ("lu_fwd", lambda on: {"y": new(1, 3).expand(5, 3)}, "lu_linear: y must be one place an element, got strides"),
    ("lu_bwd", lambda on: {"y": new(5, 3, dtype=F64)}, "lu_linear: y must be float32, got float64"),
    ("lu_bwd", lambda on: {"grad_x": new(1, 3).expand(5, 3)}, "lu_linear: grad_x must be one place an element"),
]  # fmt: skip

ON_A_GPU: list[tuple[str, dict[str, Any], str]] = [
    ("actnorm_bwd", {"slices": 0}, "actnorm: slices must be from 1 to 512, got 0"),
    ("actnorm_bwd", {"slices": 3}, r"actnorm: sums must be \[3, 7\], got \[2, 7\]"),
    ("actnorm_bwd", {"sums": None}, "actnorm: sums must be a tensor, got None"),
    ("actnorm_bwd", {"sums": new(2, 7)}, "actnorm: sums must be float64, got float32"),
    ("lu_bwd", {"slices": 0}, "lu_linear: slices must be from 1 to 264, got 0"),
    ("lu_bwd", {"sums": None}, "lu_linear: sums must be a tensor, got None"),
    ("lu_bwd", {"sums": new(2, 21, dtype=F64)}, r"lu_linear: sums must be \[2, 22\], got \[2, 21\]"),
    (
        "lu_bwd",
        {"y": None},
        "lu_linear: y must be given where gradients of an inverse's parameters are wanted, got None",
    ),
    ("wide_lu_bwd", {"grad_x": None}, "lu_linear: grad_x must be given where sums are taken of it, got None"),
    ("wide_lu_bwd", {"h": None}, "lu_linear: h must be a tensor, got None"),
    ("wide_lu_bwd", {"g_h": new(3, 4, dtype=F64)}, r"lu_linear: g_h must be \[3, 5\], got \[3, 4\]"),
]


@pytest.mark.parametrize(("entry", "change", "message"), WRONG, ids=[f"{e}: {m[:40]}" for e, _, m in WRONG])
def test_one_thing_is_wrong(on, entry, change, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(on, entry, {**GOOD[entry](on), **change(on)})


@pytest.mark.parametrize(("entry", "change", "message"), ON_A_GPU, ids=[f"{e}: {m[:40]}" for e, _, m in ON_A_GPU])
def test_one_thing_is_wrong_on_a_gpu(entry, change, message) -> None:
    on = Machine("cuda")
    good = wide_lu_bwd(on) if entry == "wide_lu_bwd" else GOOD[entry](on)
    with pytest.raises(ValueError, match=message):
        call(on, entry.removeprefix("wide_"), {**good, **change})


def test_a_linear_spline_has_no_kernel_on_a_gpu() -> None:
    on = Machine("cuda")
    for entry in ("rqs_fwd", "rqs_bwd"):
        good = GOOD[entry](on)
        wide = {k: new(5, 3, 15) for k in good if k.endswith("params")}
        with pytest.raises(ValueError, match="rqs: order must be quadratic on a GPU, got linear"):
            call(on, entry, {**good, **wide, "spec": rqs_spec(on, min_lambda=0.1)})


def test_permutations_of_the_cpu() -> None:
    """Their values are looked at as well."""
    on = Machine("cpu")
    for entry in ("lu_fwd", "lu_bwd"):
        with pytest.raises(ValueError, match=r"permutation must hold each of 0 to C-1 once, got 0 at 1"):
            call(on, entry, {**GOOD[entry](on), "permutation": torch.tensor([0, 0, 1])})
    for wrong, message in (
        (None, "a tensor"), (torch.zeros(3), "int64"), (torch.zeros(2, 2).long(), r"\[C\], got \[2, 2\]"),
        (torch.tensor([0, 3, 1]), "each of 0 to C-1 once, got 3 at 1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="permutation must .*" + message):
            on.module.check_permutation(wrong)


def test_types_that_only_a_gpu_converts() -> None:
    on = Machine("cpu")
    change = {"x": new(5, 3, dtype=BF16), "y": new(5, 3, dtype=BF16)}
    with pytest.raises(ValueError, match="lu_linear: x must be float32, got bfloat16"):
        call(on, "lu_fwd", {**GOOD["lu_fwd"](on), **change})


def test_settings(on) -> None:
    for bad, message in (
        (lambda: rqs_spec(on, bins=0), "RqsSpec: bins must be from 1 to 128, got 0"),
        (lambda: rqs_spec(on, bins=129), "got 129"),
        (lambda: rqs_spec(on, tails=3), "RqsSpec: tails must be from 0 to 2, got 3"),
        (lambda: affine_spec(on, 9), "AffineSpec: scale must be from 0 to 8, got 9"),
        (lambda: affine_spec(on, layout=(0, 0, 0, 1)), "AffineSpec: event_dims must be from 1 to 64, got 0"),
        (lambda: affine_spec(on, layout=(1, 2, 2, 1)), r"AffineSpec: part must be .*, got \[2, 2, 1\]"),
        (lambda: affine_spec(on, layout=(1, -1, 2, 1)), "AffineSpec: part must be"),
        (lambda: affine_spec(on, layout=(1, 0, 2, 0)), "AffineSpec: part must be"),
    ):
        with pytest.raises(ValueError, match=message):
            bad()


def test_a_box_that_float32_has_no_numbers_for(on) -> None:
    for entry in ("rqs_fwd", "rqs_bwd"):
        far = rqs_spec(on, box=(-1e308, 1e308, 0.0, 1.0))
        with pytest.raises(ValueError, match=r"rqs: box must be one whose bins .* numbers of float32, got"):
            call(on, entry, {**GOOD[entry](on), "spec": far})


def test_parameters_of_16_bits_stand_beside_float32_alone(on) -> None:
    arguments = rqs_fwd(on) | {"params": new(5, 3, 11, dtype=BF16)}
    on.module.rqs_fwd(*arguments.values(), *on.where)
    arguments |= {"x": new(5, 3, dtype=F64), "y": new(5, 3, dtype=F64), "ladj": new(5, dtype=F64)}
    with pytest.raises(ValueError, match="params must be of the type of x, float64, got bfloat16"):
        on.module.rqs_fwd(*arguments.values(), *on.where)


@pytest.mark.parametrize("n", [2, 4])
def test_a_mask_is_as_large_as_the_event(on, n) -> None:
    arguments = affine_fwd(on) | {"mask": new(3, dtype=torch.bool)}
    on.module.affine_fwd(*arguments.values(), *on.where)
    with pytest.raises(ValueError, match=r"mask must be one that broadcasts to the event \[3\], got"):
        on.module.affine_fwd(*(arguments | {"mask": new(n, dtype=torch.bool)}).values(), *on.where)

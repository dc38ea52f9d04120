"""The C++ gate of ops.polynomial: every size, stride and type that a kernel relies on is asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flowkernels import _native, ops

if _native.C is None:
    pytest.skip(f"no compiled kernels: {_native.why_missing}", allow_module_level=True)
from tests.ops.test_entry_points import BF16, F64, Said, new

N = [0.5], [1.0]


def spec(of_squares: bool = True, degree: int = 0, terms: int = 2, nodes: Any = N, linear_tails: bool = False) -> Any:
    return _native.C.PolynomialSpec(
        of_squares, degree, terms, 10.0, 1e-3, 1.0, 0.5, True, False, linear_tails, 0.0, False, *nodes
    )  # fmt: skip


def fwd() -> dict[str, Any]:
    return {"spec": spec(), "x": new(5, 3), "params": new(5, 3, 3), "y": new(5, 3), "ladj": new(5)}


def bwd() -> dict[str, Any]:
    return {
        "spec": spec(), "x": new(5, 3), "params": new(5, 3, 3), "grad_y": new(5, 3), "grad_ladj": new(5),
        "grad_x": new(5, 3), "grad_params": new(5, 3, 3),
    }  # fmt: skip


GOOD = {"fwd": fwd, "bwd": bwd}
TENSORS = [(e, n) for e, f in GOOD.items() for n, v in f().items() if isinstance(v, Tensor)]


def call(entry: str, arguments: dict[str, Any]) -> None:
    getattr(_native.C, f"polynomial_{entry}")(*arguments.values(), 1)


@pytest.mark.parametrize("entry", GOOD)
def test_all_is_right(entry) -> None:
    call(entry, GOOD[entry]())


@pytest.mark.parametrize(("entry", "name"), TENSORS, ids=str)
def test_every_number_of_every_tensor(entry, name) -> None:
    good = GOOD[entry]()
    t = good[name]
    wrong: dict[str, tuple[Any, str]] = {
        "missing": (None, "a tensor, got None"),
        "null": (Said(t, at=0), "in memory, got a null data pointer"),
        "type": (t.to(torch.int16), "got another dtype"),
        "more dims": (t[None], r"got \[1, "),
        "size": (torch.cat([t, t]), r"got \[10"),
        "negative": (Said(t, shape=(-1, *t.shape[1:])), r"got \[?-1"),
        "overflow": (Said(t, (2**62, 8), (8, 1)), "got .*4611686018427387904"),
        "backwards": (Said(t, stride=(-1,) * t.dim()), r"strides from 0 on, got \[-1"),
        "gaps": (Said(t, stride=tuple(2 * s for s in t.stride())), "got strides"),
    }
    for what, (given, message) in wrong.items():
        if (what == "missing" and name in ("grad_y", "grad_ladj")) or (what == "gaps" and name == "x"):
            continue
        message = "" if name == "x" else message
        who = "a tensor's size" if what == "negative" else "polynomial: .*"
        with pytest.raises(ValueError, match=f"{who} must .*{message}"):
            call(entry, {**good, name: given})
            pytest.fail(f"{what} of {name} passes")


def test_one_thing_is_wrong() -> None:
    changes: list[tuple[dict[str, Any], str]] = [
        ({"x": new(5, 3, dtype=BF16)}, "params must be of the type of x, bfloat16, got float32"),
        ({"params": new(5, 3, 3, dtype=F64)}, "params must be of the type of x, float32, got float64"),
        ({"ladj": new(5, dtype=F64)}, "ladj must be float32, got float64"),
        ({"spec": spec(terms=3)}, r"params must be \[5, 3, 4\], got \[5, 3, 3\]"),
        ({"spec": spec(False, 4, nodes=([], []))}, r"params must be \[5, 3, 5\], got \[5, 3, 3\]"),
        ({"params": new(5, 3, 6)[..., ::2]}, "params must be dense in their last dim, got strides"),
        ({"x": new(1)[0]}, r"x must be \[\.\.\., D\], got a scalar"),
    ]
    for change, message in changes:
        with pytest.raises(ValueError, match="polynomial: " + message):
            call("fwd", {**fwd(), **change})


def test_settings() -> None:
    for bad, message in (
        (lambda: spec(degree=16), "PolynomialSpec: degree must be from 0 to 15, got 16"),
        (lambda: spec(False, 65, nodes=([], [])), "PolynomialSpec: degree must be from 1 to 64, got 65"),
        (lambda: spec(terms=33), "PolynomialSpec: terms must be from 1 to 32, got 33"),
        (lambda: spec(degree=1), r"nodes and weights must be degree \+ 1 = 2, got 1 and 1"),
        (lambda: spec(False, 4), r"nodes and weights must be degree \+ 1 = 0, got 1 and 1"),
    ):
        with pytest.raises(ValueError, match=message):
            bad()


def test_any_number_of_leading_dims() -> None:
    g = torch.Generator().manual_seed(0)
    x, params = torch.randn(*[2] * 10, generator=g), torch.randn(*[2] * 10, 16, generator=g)
    turned = [9 - i for i in range(9)] + [0]
    found = ops.polynomial(x.permute(turned), params.permute(*turned, 10))
    wanted = ops.polynomial(x.permute(turned).contiguous(), params.permute(*turned, 10).contiguous())
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])

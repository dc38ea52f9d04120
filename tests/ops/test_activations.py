"""One table of activations: Python's, of functions, modules and names, beside those of C++ and Triton."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flowkernels import _native, ops
from flowkernels.ops.net.activations import CODES, TABLE, check_activation, name_of, name_of_class

X = torch.linspace(-3, 3, 31, dtype=torch.float64)


def test_cpp_has_the_same_names_in_the_same_order() -> None:
    for module in (_native.C, _native.CUDA):
        if module is not None:
            assert list(module.activations) == list(CODES)


@pytest.mark.parametrize(("function", "last"), [("activated", None), ("activation_slope", "silu")])
def test_triton_has_the_same_names(function: str, last: str | None) -> None:
    """Every name but identity stands in each of its two functions; the last of a slope is what is left."""
    source = (Path(ops.__file__).parent / "net" / "triton_kernels.py").read_text()
    body = source[source.index(f"def {function}(") :].split("@triton.jit")[0]
    assert {*re.findall(r'ACTIVATION == "(\w+)"', body), last} - {None} == set(TABLE) - {"identity"}


@pytest.mark.parametrize("name", TABLE)
def test_functions_and_modules_compute_the_same(name: str) -> None:
    entry = TABLE[name]
    wanted = entry.function(X)
    for given in (*entry.also, entry.module()):
        assert torch.equal(given(X), wanted)
        assert name_of(given) == name
    assert name_of_class(entry.module) == name
    found = ops.residual_net(
        X[:, None], [(torch.ones(1, 1).double(), torch.zeros(1).double())] * 4, blocks=1, activation=name
    )
    h = X + entry.function(entry.function(X))
    torch.testing.assert_close(found[:, 0], h)


@pytest.mark.parametrize(
    "given",
    [nn.ReLU(inplace=True), nn.ELU(alpha=0.5), nn.LeakyReLU(0.2), nn.GELU(approximate="tanh"), nn.Softsign(),
     F.softsign, torch.relu_, None, "relu", [], lambda x: F.elu(x, 0.5)],
)  # fmt: skip
def test_what_computes_something_else_has_no_name(given) -> None:
    assert name_of(given) is None


def test_a_leak_of_nothing_is_relu() -> None:
    assert name_of(nn.LeakyReLU(0.0)) == "relu"


def test_errors() -> None:
    for given in ("selu", None, F.relu):
        with pytest.raises(ValueError, match=r"ops.f: activation must be one of identity, relu, .*, got "):
            check_activation("ops.f", given)

"""Bad arguments raise, never crash, and the message has three parts: name, contract, what was given."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from flowkernels import BackendUnavailableError, ops

X, P = torch.zeros(4, 3), torch.zeros(4, 3, 23)

BAD_SETTINGS = {
    "bins=0": ({"bins": 0}, "bins", "0"),
    "bins=129": ({"bins": 129}, "bins", "129"),
    "bins=-1": ({"bins": -1}, "bins", "-1"),
    "bins=True": ({"bins": True}, "bins", "True"),
    "bins=8.0": ({"bins": 8.0}, "bins", "8.0"),
    "bins=None": ({"bins": None}, "bins", "None"),
    "bins='8'": ({"bins": "8"}, "bins", "'8'"),
    "tails=cubic": ({"tails": "cubic"}, "tails", "cubic"),
    "tails=none": ({"tails": "none"}, "tails", "none"),
    "tails=list": ({"tails": ["linear"]}, "tails", "linear"),
    "tail_bound=0": ({"tail_bound": 0.0}, "tail_bound", "0"),
    "tail_bound<0": ({"tail_bound": -1.0}, "tail_bound", "-1"),
    "tail_bound=nan": ({"tail_bound": math.nan}, "tail_bound", "nan"),
    "tail_bound=inf": ({"tail_bound": math.inf}, "tail_bound", "inf"),
    "tail_bound=None": ({"tail_bound": None}, "tail_bound", "None"),
    "tail_bound=str": ({"tail_bound": "3"}, "tail_bound", "'3'"),
    "tail_bound-box=list": ({"box": (0.0, 1.0, 0.0, 1.0), "tail_bound": [1]}, "tail_bound", "[1]"),
    "box-empty": ({"box": (1.0, 1.0, 0.0, 1.0)}, "box", "1.0"),
    "box-backwards": ({"box": (0.0, 1.0, 2.0, 1.0)}, "box", "2.0"),
    "box-nan": ({"box": (0.0, 1.0, math.nan, 1.0)}, "box", "nan"),
    "box-short": ({"box": (0.0, 1.0)}, "box", "(0.0, 1.0)"),
    "box-string": ({"box": "abcd"}, "box", "abcd"),
    "min_bin_width": ({"min_bin_width": 0.2}, "min_bin_width", "0.2"),
    "min_bin_width<0": ({"min_bin_width": -0.1}, "min_bin_width", "-0.1"),
    "min_bin_width=nan": ({"min_bin_width": math.nan}, "min_bin_width", "nan"),
    "min_bin_width=str": ({"min_bin_width": "a"}, "min_bin_width", "'a'"),
    "min_bin_height": ({"min_bin_height": 0.2}, "min_bin_height", "0.2"),
    "min_derivative": ({"min_derivative": 1.0}, "min_derivative", "1.0"),
    "min_derivative<0": ({"min_derivative": -1.0}, "min_derivative", "-1.0"),
    "logit_scale=0": ({"logit_scale": 0.0}, "logit_scale", "0"),
    "logit_scale=inf": ({"logit_scale": math.inf}, "logit_scale", "inf"),
    "parametrization": ({"parametrization": "sigmoid"}, "parametrization", "sigmoid"),
    "parametrization=list": ({"parametrization": ["softmax"]}, "parametrization", "softmax"),
    "half_ends-bins=1": ({"parametrization": "half_ends", "bins": 1}, "bins", "1"),
    "half_ends-min_bin_width": ({"parametrization": "half_ends", "min_bin_width": 0.15}, "min_bin_width", "0.15"),
    "half_ends-min_bin_height": ({"parametrization": "half_ends", "min_bin_height": -0.1}, "min_bin_height", "-0.1"),
    "slope=1": ({"parametrization": "soft_clip", "slope": 1.0}, "slope", "1"),
    "edge_slope=0": ({"edge_slope": 0.0}, "edge_slope", "0.0"),
    "edge_slope=inf": ({"edge_slope": math.inf}, "edge_slope", "inf"),
    "edge_slope=nan": ({"edge_slope": math.nan}, "edge_slope", "nan"),
    "edge_slope-circular": ({"edge_slope": 0.9, "tails": "circular"}, "edge_slope", "0.9"),
    "edge_slope-soft_clip": ({"edge_slope": 0.9, "parametrization": "soft_clip"}, "edge_slope", "0.9"),
    "edge_slope-low": ({"edge_slope": 0.5, "min_derivative": 0.5}, "min_derivative", "0.5"),
    "order=cubic": ({"order": "cubic"}, "order", "cubic"),
    "order=None": ({"order": None}, "order", "None"),
    "order-linear-min_derivative=0": ({"order": "linear", "min_derivative": 0.0}, "min_derivative", "0.0"),
    "slope=0": ({"parametrization": "soft_clip", "slope": 0.0}, "slope", "0"),
    "slope-softmax=nan": ({"slope": math.nan}, "slope", "nan"),
    "min_bin_width-soft_clip=nan": (
        {"parametrization": "soft_clip", "min_bin_width": math.nan},
        "min_bin_width",
        "nan",
    ),
    "min_derivative-soft_clip=inf": (
        {"parametrization": "soft_clip", "min_derivative": math.inf},
        "min_derivative",
        "inf",
    ),
}


@pytest.mark.parametrize(("settings", "name", "given"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_bad_settings(settings, name, given) -> None:
    ops.rqs(X, P, bins=8)  # a cache keyed by value would let 8.0 pass after 8
    with pytest.raises((ValueError, TypeError)) as error:
        ops.rqs(X, P, **{"bins": 8, **settings})
    message = str(error.value)
    assert message.startswith(f"ops.rqs: {name} must be ") and given in message, message


@pytest.mark.parametrize(("settings", "most"), [({}, 1 / 8), ({"parametrization": "half_ends"}, 1 / 7)], ids=str)
def test_bins_may_all_be_of_the_minimum_size(settings, most) -> None:
    spline = ops.RQS(8, min_bin_width=most, min_bin_height=most, **settings)
    assert (spline.min_bin_width, spline.min_bin_height) == (most, most)


SPARSE = X.to_sparse()
BAD_TENSORS = {
    "x-integer": (X.long(), P, "x must be", "torch.int64"),
    "x-complex": (torch.complex(X, X), P, "x must be", "torch.complex64"),
    "x-float8": (X.to(torch.float8_e4m3fn), P, "x must be", "float8_e4m3fn"),
    "params-bool": (X, P > 0, "params must be", "torch.bool"),
    "params-long": (X, torch.zeros(4, 3, 24), "params must be [..., D, P] = [4, 3, 23]", "[4, 3, 24]"),
    "params-short": (X, P[..., :-1], "params must be [..., D, P] = [4, 3, 23]", "[4, 3, 22]"),
    "params-broadcast": (X, P[:1], "params must be [..., D, P] = [4, 3, 23]", "[1, 3, 23]"),
    "params-flat": (X, P.flatten(1), "params must be [..., D, P] = [4, 3, 23]", "[4, 69]"),
    "scalar": (X[0, 0], P[0, 0], "x must be", "scalar"),
    "devices": (X, P.to("meta"), "params must be on", "meta"),
    "x-list": ([[0.0]], P, "x must be", "list"),
    "x-numpy": (np.zeros((4, 3), np.float32), P, "x must be", "ndarray"),
    "params-none": (X, None, "params must be", "None"),
    "x-sparse": (SPARSE, P, "x must be", "sparse"),
    "params-sparse": (X, P.to_sparse(), "params must be", "sparse"),
    "x-mkldnn": (X.to_mkldnn(), P, "x must be", "mkldnn"),
}


@pytest.mark.parametrize(("x", "params", "contract", "given"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_bad_tensors(x, params, contract, given) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        ops.rqs(x, params, bins=8)
    message = str(error.value)
    assert message.startswith(f"ops.rqs: {contract}") and given in message, message


def test_numbers_that_are_not_python_floats() -> None:
    """Settings often come from numpy or a config: what equals an accepted number is accepted."""
    x, params = torch.rand(4, 3), torch.rand(4, 3, 23)
    expected = ops.rqs(x, params, bins=8, tail_bound=2.0, box=None)
    accepted: tuple[dict[str, Any], ...] = (
        {"bins": np.int64(8), "tail_bound": np.float32(2)},
        {"bins": 8, "tail_bound": 2},
        {"bins": 8, "box": [-2.0, 2.0, -2.0, 2.0]},
    )
    for settings in accepted:
        for a, b in zip(ops.rqs(x, params, **settings), expected, strict=True):
            assert torch.equal(a, b)


def test_numpy_bins_before_the_cache_knows_them() -> None:
    bins: Any = np.int64(37)
    y, _ = ops.rqs(X, torch.zeros(4, 3, 3 * 37 - 1), bins=bins)
    assert y.shape == X.shape


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_backend_that_cannot_run_says_why(backend) -> None:
    with pytest.raises(BackendUnavailableError, match=rf"rqs .*{backend}"):
        ops.rqs(X, P, bins=8, backend=backend)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_kernels_of_linear_splines_are_not_there_yet(backend) -> None:
    with pytest.raises(BackendUnavailableError, match=f'{backend}.*no kernel for splines of order "linear"'):
        ops.rqs(X, torch.zeros(4, 3, 31), bins=8, order="linear", backend=backend)


def test_linear_splines_have_more_params() -> None:
    with pytest.raises(ValueError, match=r"params must be \[..., D, P\] = \[4, 3, 31\], got \[4, 3, 23\]"):
        ops.rqs(X, P, bins=8, order="linear")


def test_an_unknown_backend() -> None:
    with pytest.raises(ValueError, match=r"backend must be auto or one of .*, got 'tpu'"):
        ops.rqs(X, P, bins=8, backend="tpu")

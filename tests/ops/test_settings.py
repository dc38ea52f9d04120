"""Settings that are not what they should be: an error of three parts, eager and compiled, and never a guess."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from flowkernels import ops

X, P2, P23 = torch.zeros(4, 3), torch.zeros(4, 3, 2), torch.zeros(4, 3, 23)
V, M = torch.zeros(3), torch.zeros(3, 3)
CALLS: dict[str, Callable[..., Any]] = {
    "rqs": lambda **s: ops.rqs(X, P23, **{"bins": 8, **s}),
    "affine": lambda **s: ops.affine(X, P2, **s),
    "actnorm": lambda **s: ops.actnorm(X, V, V, **s),
    "lu_linear": lambda **s: ops.lu_linear(X, M, M, V, V + 1, **s),
}
FLAGS = {
    "yes": "yes", "two": 2, "one": 1, "nan": float("nan"), "None": None, "list": [], "full list": [1], "complex": 1j,
    "tensor": torch.tensor(True), "tensors": torch.ones(2), "array": np.ones(2),
}  # fmt: skip


@pytest.mark.parametrize("given", FLAGS.values(), ids=FLAGS)
@pytest.mark.parametrize("op", CALLS)
def test_inverse_is_true_or_false(op, given) -> None:
    with pytest.raises(ValueError, match=f"ops.{op}: inverse must be True or False, got "):
        CALLS[op](inverse=given)


@pytest.mark.parametrize("op", CALLS)
def test_true_and_false_of_numpy(op) -> None:
    for flag in (True, False):
        for a, b in zip(CALLS[op](inverse=np.bool_(flag)), CALLS[op](inverse=flag), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("given", ["", 0, False, "gpu", [], ("cpu",)], ids=repr)
@pytest.mark.parametrize("op", CALLS)
def test_a_backend_is_a_name(op, given) -> None:
    with pytest.raises(ValueError, match=r"flowkernels: backend must be auto or one of .*, got "):
        CALLS[op](backend=given)


@pytest.mark.parametrize("given", [1.0, -1.0, torch.tensor(1), "1", None, [1], True, 2], ids=repr)
@pytest.mark.parametrize("op", ["actnorm", "lu_linear"])
def test_a_channel_dim(op, given) -> None:
    with pytest.raises(ValueError, match=f"ops.{op}: channel_dim must be -1 .* or 1 .*, got "):
        CALLS[op](channel_dim=given)


@pytest.mark.parametrize("op", ["actnorm", "lu_linear"])
def test_a_channel_dim_of_numpy(op) -> None:
    assert CALLS[op](channel_dim=np.int64(-1))[0].shape == X.shape


@pytest.mark.parametrize(
    "given", [(0,), (), 3, (0.0, 1e308), (0, 1, 2), "ab", (1, 0), (0, float("nan")), (0, None), ([], 1)], ids=repr
)
def test_log_bounds(given) -> None:
    with pytest.raises(ValueError, match=r"ops.affine: log_bounds must be two finite numbers .*, got "):
        CALLS["affine"](scale="clip", log_bounds=given)


def test_a_flag_is_no_number_though_it_equals_one() -> None:
    """The cache of settings has seen the numbers before."""
    CALLS["rqs"](box=(0.0, 1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match=r"ops.rqs: box must be a finite number, got 'True'"):
        CALLS["rqs"](box=(0.0, True, 0.0, 1.0))
    CALLS["affine"](scale="clip", log_bounds=(0, 1))
    with pytest.raises(ValueError, match=r"ops.affine: log_bounds must be two finite numbers"):
        CALLS["affine"](scale="clip", log_bounds=(False, 1))


def test_log_bounds_as_a_list() -> None:
    for a, b in zip(*(CALLS["affine"](scale="clip", log_bounds=t([-1, 2])) for t in (list, tuple)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"scale": ["exp"]}, "scale"), ({"scale": torch.ones(2)}, "scale"), ({"scale": None}, "scale"),
        ({"scale": "softplus", "min_scale": [1]}, "min_scale"),
        ({"scale": "softplus", "min_scale": torch.ones(2)}, "min_scale"),
        ({"scale": "softplus", "min_scale": 1e308}, "min_scale"), ({"scale": "tanh", "clamp": [2]}, "clamp"),
        ({"scale": "tanh", "clamp": 1e308}, "clamp"), ({"scale": "tanh", "clamp": 1e-308}, "clamp"),
        ({"shift_first": "yes"}, "shift_first"), ({"shift_first": [1]}, "shift_first"),
        ({"event_dims": [1]}, "event_dims"), ({"event_dims": torch.tensor(1)}, "event_dims"),
        ({"part": slice(0, 2, 0)}, "part"), ({"part": slice(0.5, 2)}, "part"), ({"part": slice("a", None)}, "part"),
        ({"part": slice(0, 2), "event_dims": True}, "event_dims"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_of_affine(settings, name) -> None:
    with pytest.raises(ValueError, match=f"ops.affine: {name} must be .*, got "):
        CALLS["affine"](**settings)


def test_a_part_with_a_number_of_dims_of_numpy() -> None:
    params = torch.randn(4, 2, 2)
    settings = {"part": slice(np.int64(0), np.int64(2))}
    found = ops.affine(X, params, event_dims=np.int64(1), **settings)
    torch.testing.assert_close(found, ops.affine(X, params, part=slice(0, 2)))


@pytest.mark.parametrize("dtype_", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=str)
def test_a_mask_has_no_shares(dtype_) -> None:
    for values in ([0, 1, 1], [0.5, 1, 1], [float("nan"), 1, 0]):
        with pytest.raises(TypeError, match=r"ops.affine: mask must be of bool or integers, .*, got "):
            ops.affine(X, P2, mask=torch.tensor(values).to(dtype_))


def test_a_sparse_mask() -> None:
    for x, params in ((X, P2), (X[:0], P2[:0])):
        with pytest.raises(TypeError, match=r"ops.affine: mask must be a dense tensor, got layout"):
            ops.affine(x, params, mask=torch.ones(3, dtype=torch.bool).to_sparse())


@pytest.mark.parametrize("dtype_", [torch.uint8, torch.int8, torch.int32, torch.int64], ids=str)
def test_a_mask_of_integers(dtype_) -> None:
    params = torch.randn(4, 3, 2)
    found = ops.affine(X, params, mask=torch.tensor([0, 1, 2]).to(dtype_))
    torch.testing.assert_close(found, ops.affine(X, params, mask=torch.tensor([False, True, True])))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"bins": torch.tensor(8)}, "bins"), ({"bins": np.ones(2)}, "bins"), ({"bins": [8]}, "bins"),
        ({"tail_bound": torch.tensor(3.0)}, "tail_bound"), ({"tail_bound": [3.0]}, "tail_bound"),
        ({"box": np.zeros(4)}, "box"), ({"box": (torch.zeros(()), 1, 0, 1)}, "box"),
        ({"parametrization": ["softmax"]}, "parametrization"), ({"order": ["linear"]}, "order"),
        ({"logit_scale": 1e308}, "logit_scale"), ({"logit_scale": 1e-308}, "logit_scale"),
        ({"min_derivative": 1e300, "tails": None}, "min_derivative"), ({"edge_slope": 1e308}, "edge_slope"),
        ({"min_derivative": 1e-300, "order": "linear"}, "min_derivative"),
        ({"slope": 1e-300, "parametrization": "soft_clip"}, "slope"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_of_rqs(settings, name) -> None:
    with pytest.raises(ValueError, match=f"ops.rqs: {name} must be .*, got "):
        CALLS["rqs"](**settings)


def test_numbers_of_numpy() -> None:
    settings = {"bins": np.int64(8), "tail_bound": np.float32(3.0), "min_bin_width": np.float64(1e-3)}
    assert torch.equal(CALLS["rqs"](**settings)[0], CALLS["rqs"]()[0])


def test_a_steep_edge() -> None:
    """The logit of a slope that has no exponential."""
    assert CALLS["rqs"](edge_slope=1e4)[0].isfinite().all()


@pytest.mark.parametrize("op", ["actnorm", "lu_linear"])
def test_sparse_parameters(op) -> None:
    sparse = V.to_sparse()
    call = {
        "actnorm": lambda: ops.actnorm(X, sparse, V),
        "lu_linear": lambda: ops.lu_linear(X, M, M, V, V, torch.arange(3).to_sparse()),
    }[op]
    with pytest.raises(TypeError, match=f"ops.{op}: .* must be a dense tensor, got layout"):
        call()


@pytest.mark.parametrize(
    ("op", "settings", "message"),
    [
        ("rqs", {"inverse": "yes"}, "inverse must be True or False"), ("rqs", {"bins": 8.0}, "bins must be an integer"),
        ("affine", {"inverse": 2}, "inverse must be True or False"),
        ("affine", {"scale": "clip", "log_bounds": (0,)}, "log_bounds must be two"),
        ("affine", {"part": slice(0, 2, 0)}, "part must be a slice of integers"),
        ("actnorm", {"inverse": 2}, "inverse must be True or False"),
        ("lu_linear", {"inverse": 2}, "inverse must be True or False"),
        *((op, {"backend": ""}, "backend must be auto or one of") for op in CALLS),
    ],
    ids=str,
)  # fmt: skip
def test_compiled(op, settings, message) -> None:
    torch._dynamo.reset()
    with pytest.raises(Exception, match=message):
        torch.compile(lambda: CALLS[op](**settings), backend="eager")()

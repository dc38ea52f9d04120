"""The gate in front of kernels that run networks, in C++: each number that a kernel relies on is checked there, however
wrong the caller is. Python's own checks come first: most of this is seen by calling the entry points alone."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from flowkernels import _native
from flowkernels.ops.net.activations import CODES
from tests import emulator
from tests.ops.gate import assert_refused, layer, layers, net_of, told

R = torch.zeros
SIZES = ((8, 3), (8, 8), (8, 8), (4, 8))  # of a residual net
ROWS = 5


@pytest.fixture(params=["cpu", "cuda, emulated"])
def module(request: pytest.FixtureRequest) -> Any:
    return _native.C if request.param == "cpu" else emulator.emulated().module


# ---- a net ----


def net_arguments(**more: Any) -> dict[str, Any]:
    return {"layers": layers(*SIZES), "rows": ROWS, "residual": True, "activation": 1, "last": 0, **more}


def with_layer(i: int, *, weight: Any = None, **more: Any) -> dict[str, Any]:
    """The net with layer i replaced."""
    found = layers(*SIZES)
    found[i] = layer(R(SIZES[i]) if weight is None else weight, **more)
    return {"layers": found}


def huge(n_out: int, n_in: int) -> Any:
    return told(R(1, 1), shape=(n_out, n_in), stride=(0, 1))


NETS = {
    "no layers": ({"layers": []}, "the number of layers must be from 1 to 64, got 0"),
    "65 layers": ({"layers": layers((1, 1)) * 65}, "the number of layers must be from 1 to 64, got 65"),
    "half a block": ({"layers": layers(*SIZES[:3])}, "the number of layers must be even where there are blocks, got 3"),
    "no rows": ({"rows": 0}, "rows must be from 1"),
    "too many rows": ({"rows": 2**62}, "must be a product of sizes below 2**63"),
    "an activation after the last one": ({"activation": 7}, "activation must be from 0 to 6, got 7"),
    "an activation before the first": ({"last": -1}, "last must be from 0 to 6, got -1"),
    "no weight": ({"layers": [layer(None), *layers(*SIZES[1:])]}, "layer 0: weight must be a tensor, got None"),
    "a vector": (with_layer(0, weight=R(8)), "layer 0: weight must be [n_out, n_in], got [8]"),
    "three dims": (with_layer(1, weight=R(8, 8, 1)), "layer 1: weight must be [n_out, n_in], got [8, 8, 1]"),
    "16 bits": (with_layer(0, weight=R(8, 3).half()), "layer 0: weight must be float32, got float16"),
    "two dtypes": (with_layer(2, weight=R(8, 8).double()), "layer 2: weight must be float32, got float64"),
    "integers": (with_layer(1, weight=R(8, 8).int()), "layer 1: weight must be float32, got int32"),
    "no outputs": (with_layer(3, weight=R(0, 8)), "layer 3: n_out must be from 1 to"),
    "no inputs": (with_layer(0, weight=R(8, 0)), "layer 0: n_in must be from 1 to"),
    "too many outputs": (with_layer(0, weight=huge(2**31, 3)), "layer 0: n_out must be from 1 to 2147483647, got"),
    "too many weights": (with_layer(0, weight=huge(2**30, 2**30)), "layer 0: the number of weights must be from 1"),
    "a turned weight": (with_layer(1, weight=R(8, 8).t()), "layer 1: weight must be of rows without gaps, got strides"),
    "a null weight": (
        with_layer(1, weight=told(R(8, 8), data_ptr=0)), "layer 1: weight must be in memory, got a null data pointer"
    ),
    "rows backwards": (
        with_layer(1, weight=told(R(8, 8), stride=(-8, 1))), "layer 1: weight must be of strides from 0 on, got [-8, 1]"
    ),
    "layers that do not meet": (
        with_layer(1, weight=R(8, 7)), "layer 1: n_in must be what the layer before returns, 8, got 7"
    ),
    "a block that returns less": (
        with_layer(2, weight=R(7, 8)), "layer 2: n_out must be the width of the stream, 8, got 7"
    ),
    "a block that returns more": (
        with_layer(2, weight=R(32, 8)), "layer 2: n_out must be the width of the stream, 8, got 32"
    ),
    "a short bias": (with_layer(1, bias=R(7)), "layer 1: bias must be [8], got [7]"),
    "a bias of rows": (with_layer(1, bias=R(7, 8)), "layer 1: bias must be [8], got [7, 8]"),
    "a bias of no rows": (with_layer(1, bias=R(0, 8)), "layer 1: bias must be [8], got [0, 8]"),
    "a bias with gaps": (with_layer(1, bias=R(16)[::2]), "layer 1: bias must be contiguous, got strides [2]"),
    "a bias of doubles": (with_layer(1, bias=R(8).double()), "layer 1: bias must be float32, got float64"),
    "a null bias": (
        with_layer(1, bias=told(R(8), data_ptr=0)), "layer 1: bias must be in memory, got a null data pointer"
    ),
    "a term of fewer rows": (with_layer(0, add=R(4, 8)), "layer 0: add must be [5, 8], got [4, 8]"),
    "a term of fewer units": (with_layer(0, add=R(5, 7)), "layer 0: add must be [5, 8], got [5, 7]"),
    "a turned term": (with_layer(0, add=R(8, 5).t()), "layer 0: add must be of rows without gaps"),
    "a gate where no block closes": (
        with_layer(1, gate=R(5, 8)), "layer 1: gate must be None where the layer closes no residual block, got a tensor"
    ),
    "a short gate": (with_layer(2, gate=R(4, 8)), "layer 2: gate must be [5, 8], got [4, 8]"),
    "a scale where no block opens": (
        with_layer(2, scale=R(8), shift=R(8)),
        "layer 2: scale must be None where the layer opens no residual block, got a tensor",
    ),
    "a scale after the last block": (with_layer(3, scale=R(8), shift=R(8)), "layer 3: scale must be None where"),
    "a scale without a shift": (with_layer(1, scale=R(8)), "layer 1: shift must be a tensor, got None"),
    "a short scale": (with_layer(1, scale=R(7), shift=R(8)), "layer 1: scale must be [8], got [7]"),
    "a long shift": (with_layer(1, scale=R(8), shift=R(9)), "layer 1: shift must be [8], got [9]"),
    "a scale of doubles": (
        with_layer(1, scale=R(8).double(), shift=R(8)), "layer 1: scale must be float32, got float64"
    ),
    "a scale with gaps": (with_layer(1, scale=R(16)[::2], shift=R(8)), "layer 1: scale must be contiguous"),
    "a short gradient of a scale": (
        with_layer(1, scale=R(8), shift=R(8), grad_scale=R(7)), "layer 1: grad_scale must be [8], got [7]"
    ),
    "a short gradient of a shift": (
        with_layer(1, scale=R(8), shift=R(8), grad_shift=R(7)), "layer 1: grad_shift must be [8], got [7]"
    ),
    "a short room": (with_layer(2, kept=R(4, 8)), "layer 2: kept must be [5, 8], got [4, 8]"),
    "a short gradient": (with_layer(0, grad_weight=R(8, 2)), "layer 0: grad_weight must be [8, 3], got [8, 2]"),
    "a gradient with gaps": (with_layer(0, grad_weight=R(8, 4)[:, :3]), "layer 0: grad_weight must be contiguous"),
    "a short gradient of a bias": (with_layer(0, grad_bias=R(3)), "layer 0: grad_bias must be [8], got [3]"),
    "a gradient of a term": (with_layer(0, grad_add=R(1, 8)), "layer 0: grad_add must be [5, 8], got [1, 8]"),
    "a gradient of a gate": (with_layer(2, grad_gate=R(5, 9)), "layer 2: grad_gate must be [5, 8], got [5, 9]"),
}  # fmt: skip


@pytest.mark.parametrize("case", NETS)
def test_a_net(module, case) -> None:
    net_of(module, *net_arguments().values())
    broken, message = NETS[case]
    assert_refused(functools.partial(net_of, module), net_arguments(), broken, message)


def test_a_net_of_the_mask_of_another(module) -> None:
    mask = module.LayerMask(3, [], [], [1, 2])
    message = "layer 0: mask must be that of the weight, [8, 3], got [2, 3]"
    assert_refused(functools.partial(net_of, module), net_arguments(), with_layer(0, mask=mask), message)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"tensors": [R(2, 3)]}, "net: tensors must be 2 entries, got 1"),
        ({"tensors": [R(2, 3), R(2), R(2)]}, "net: tensors must be 2 entries, got 3"),
        ({"kept": [None, None]}, "net: kept must be 1 entries, got 2"),
        ({"grads": [None]}, "net: grads must be 2 entries, got 1"),
    ],
)
def test_lists_of_other_lengths(module, broken, message) -> None:
    flags = {"residual": False, "activation": 1, "last": 0, "has_bias": True}
    spec = module.NetSpec(masks=[None], **flags, adds=[False], gates=[False], scales=[False])
    arguments = {"spec": spec, "rows": 1, "tensors": [R(2, 3), R(2)], "kept": (), "grads": ()}
    module.Net(*arguments.values())
    assert_refused(module.Net, arguments, broken, message)
    with pytest.raises(ValueError, match="adds, gates and scales must be one flag per layer, 1, got 2, 1 and 1"):
        module.NetSpec(masks=[None], **flags, adds=[False, True], gates=[False], scales=[False])


def test_names_of_activations(module) -> None:
    assert list(module.activations) == list(CODES)


def test_what_is_no_tensor(module) -> None:
    with pytest.raises(AttributeError):  # Python has seen to that before
        net_of(module, [layer(object())], 1, False, 1, 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="tuples of sizes and of strides"):
        net_of(module, [layer(told(R(1, 1), stride=(1,)))], 1, False, 1, 0)


# ---- masks ----

MASKS = {
    "no inputs": ({"n_in": 0}, "n_in must be from 1 to"),
    "no outputs": ({"limit": []}, "the length of limit must be from 1 to"),
    "a long order": ({"in_order": [0, 1, 2, 3]}, "in_order must be a permutation of 0 to 2, got one that is not"),
    "an input twice": ({"in_order": [0, 1, 1]}, "in_order must be a permutation of 0 to 2"),
    "an input past the end": ({"in_order": [0, 1, 3]}, "in_order must be a permutation of 0 to 2"),
    "an output before the first": ({"out_order": [-1, 0]}, "out_order must be a permutation of 0 to 1"),
    "more inputs than there are": ({"limit": [1, 4]}, "limit must be numbers from 0 to 3 that never fall, got 4"),
    "a limit that falls": ({"limit": [2, 1]}, "limit must be numbers from 0 to 3 that never fall, got 1"),
    "a negative limit": ({"limit": [-1, 1]}, "limit must be numbers from 0 to 3 that never fall, got -1"),
}


@pytest.mark.parametrize("case", MASKS)
def test_a_mask(module, case) -> None:
    arguments = {"n_in": 3, "in_order": [2, 0, 1], "out_order": [1, 0], "limit": [1, 3]}
    module.LayerMask(*arguments.values())
    assert_refused(module.LayerMask, arguments, *MASKS[case])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"limit_there": R(3).int()}, "on the device must be [2], got [3]"),
        ({"in_there": R(3).long()}, "on the device must be int32, got"),
        ({"out_there": None}, "on the device must be a tensor, got None"),
    ],
)
def test_a_mask_on_a_device(module, broken, message) -> None:
    arguments = {
        "n_in": 3, "in_order": [2, 0, 1], "out_order": [1, 0], "limit": [1, 3], "in_there": R(3).int(),
        "out_there": R(2).int(), "limit_there": R(2).int(),
    }  # fmt: skip
    module.LayerMask(*arguments.values())
    assert_refused(module.LayerMask, arguments, broken, message)


def test_a_scale_of_a_masked_layer(module) -> None:
    mask = module.LayerMask(8, [], [], [8] * 8)
    given = layers(*SIZES)
    given[1] = layer(R(8, 8), mask=mask)
    net_of(module, given, ROWS, True, 1, 0)
    given[1] = layer(R(8, 8), mask=mask, scale=R(8), shift=R(8))
    with pytest.raises(ValueError, match="layer 1: scale must be None where the layer is masked, got a tensor"):
        net_of(module, given, ROWS, True, 1, 0)


# ---- calls of the CPU's module ----


def net(*sizes: tuple[int, int], residual: bool = False, **more: Any) -> Any:
    return net_of(_native.C, layers(*sizes, **more), ROWS, residual, 1, 0)


CALLS = {
    "x backwards": ({"x": told(R(5, 3), stride=(-1, 1))}, "x must be of strides from 0 on, got [-1, 1]"),
    "x of fewer features": ({"x": R(5, 2)}, "x must be [5, 3], got [5, 2]"),
    "x of more features": ({"x": R(5, 4)}, "x must be [5, 3], got [5, 4]"),
    "x of fewer rows": ({"x": R(4, 3)}, "x must be [5, 3], got [4, 3]"),
    "x of leading dims": ({"x": R(1, 5, 3)}, "x must be [5, 3], got [1, 5, 3]"),
    "a turned x": ({"x": R(3, 5).t()}, "x must be of rows without gaps, got strides [1, 5]"),
    "x of doubles": ({"x": R(5, 3).double()}, "x must be float32, got float64"),
    "no x": ({"x": None}, "x must be a tensor, got None"),
    "no thread": ({"threads": 0}, "threads must be from 1 to"),
    "a negative number of threads": ({"threads": -2}, "threads must be from 1 to"),
}
FORWARD = CALLS | {
    "a short y": ({"y": R(5, 3)}, "y must be of 20 elements, got [5, 3]"),
    "y with gaps": ({"y": R(5, 8)[:, ::2]}, "y must be contiguous, got strides [8, 2]"),
    "y of halves": ({"y": R(5, 4).half()}, "y must be float32, got float16"),
    "no y": ({"y": None}, "y must be a tensor, got None"),
    "a null y": ({"y": told(R(5, 4), data_ptr=0)}, "y must be in memory, got a null data pointer"),
    "y of more than a number": ({"y": told(R(5, 4), shape=(2**40, 2**40))}, "y must be of 20 elements"),
}
BACKWARD = CALLS | {
    "a short y": ({"y": R(4, 4)}, "y must be of 20 elements, got [4, 4]"),
    "a short gradient of y": ({"grad_y": R(5, 3)}, "grad_y must be of 20 elements, got [5, 3]"),
    "no gradient of y": ({"grad_y": None}, "grad_y must be a tensor, got None"),
    "a short gradient of x": ({"grad_x": R(5, 2)}, "grad_x must be of 15 elements, got [5, 2]"),
}


@pytest.mark.parametrize("case", FORWARD)
def test_net_fwd(case) -> None:
    arguments = {"net": net(*SIZES, residual=True), "x": R(5, 3), "y": R(5, 4), "threads": 1}
    _native.C.net_fwd(*arguments.values())
    assert_refused(_native.C.net_fwd, arguments, *FORWARD[case])


@pytest.mark.parametrize("case", BACKWARD)
def test_net_bwd(case) -> None:
    arguments = {
        "net": net(*SIZES, residual=True), "x": R(5, 3), "y": None, "grad_y": R(5, 4), "grad_x": R(5, 3), "threads": 1
    }  # fmt: skip
    _native.C.net_bwd(*arguments.values())
    assert_refused(_native.C.net_bwd, arguments, *BACKWARD[case])


def affine(inverse: bool = False, module: Any = _native.C) -> Any:
    return module.UnivariateMap(module.AffineSpec(0, 0.0, 2.0, inverse, -5.0, 3.0, False, (1, 0, 0, 1)))


COLUMNS = {
    "no features": ((0, [0], [1]), "features must be from 1 to"),
    "no inputs": ((4, [], [1]), "inputs must be distinct features below 4"),
    "an input twice": ((4, [1, 1], [0]), "inputs must be distinct features below 4"),
    "an output past the end": ((4, [0], [4]), "outputs must be distinct features below 4"),
    "an output before the first": ((4, [0], [-1]), "outputs must be distinct features below 4"),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_columns(case) -> None:
    given, message = COLUMNS[case]
    assert_refused(_native.C.Columns, dict(enumerate((4, [0], [1]))), dict(enumerate(given)), message)


LAYERS = {
    "a net of other inputs": ({"columns": _native.C.Columns(4, [0, 1], [3])}, "inputs of the net must be 2, got 1"),
    "a net of other outputs": ({"columns": _native.C.Columns(4, [0], [2, 3])}, "outputs of the net must be 4, got 2"),
    "x of fewer features": ({"x": R(5, 3)}, "x must be [5, 4], got [5, 3]"),
    "x of fewer rows": ({"x": R(4, 4)}, "x must be [5, 4], got [4, 4]"),
    "no thread": ({"threads": 0}, "threads must be from 1 to"),
    "too many elements": (
        {
            "columns": _native.C.Columns(2**31 - 1, [0], [1]),
            "net": net_of(_native.C, layers((2, 1)), 2**40, False, 1, 0),
        },
        "elements of x must be a product of sizes below 2**63",
    ),
}  # fmt: skip


def layer_arguments(**more: Any) -> dict[str, Any]:
    return {
        "net": net((2, 1)), "map": affine(), "columns": _native.C.Columns(4, [0], [3]), "x": R(5, 4), **more,
        "threads": 1,
    }  # fmt: skip


@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize("backward", [False, True])
def test_flow_layers(case, backward) -> None:
    test_one_flow_layer(backward, *LAYERS[case])


@pytest.mark.parametrize(
    ("backward", "broken", "message"),
    [
        (False, {"y": R(5, 3)}, "y must be of 20 elements, got [5, 3]"),
        (False, {"ladj": R(4)}, "ladj must be of 5 elements, got [4]"),
        (False, {"ladj": R(5).double()}, "ladj must be float32, got float64"),
        (False, {"y": None}, "y must be a tensor, got None"),
        (True, {"grad_y": R(4, 4)}, "grad_y must be of 20 elements, got [4, 4]"),
        (True, {"grad_ladj": R(6)}, "grad_ladj must be of 5 elements, got [6]"),
        (True, {"grad_x": R(5, 1)}, "grad_x must be of 20 elements, got [5, 1]"),
    ],
)
def test_one_flow_layer(backward, broken, message) -> None:
    more = {"grad_y": R(5, 4), "grad_ladj": R(5), "grad_x": R(5, 4)} if backward else {"y": R(5, 4), "ladj": R(5)}
    entry, arguments = _native.C.flow_layer_bwd if backward else _native.C.flow_layer_fwd, layer_arguments(**more)
    entry(*arguments.values())
    assert_refused(entry, arguments, broken, message)


# ---- sweeps ----


def made(module: Any = _native.C, dtype: torch.dtype = torch.float32) -> Any:
    """2 features by way of 3 units to 2 parameters each."""
    masks = module.LayerMask(2, [], [], [1, 1, 1]), module.LayerMask(3, [], [], [0, 0, 3, 3])
    sizes = ((3, 2), (4, 3))
    return net_of(
        module, [layer(R(s, dtype=dtype), mask=m) for s, m in zip(sizes, masks, strict=True)], ROWS, False, 1, 0
    )


def scaled() -> Any:
    found = layers((3, 2), (3, 3), (3, 3), (4, 3))
    found[1] = layer(R(3, 3), bias=R(3), scale=R(3), shift=R(3))
    return net_of(_native.C, found, ROWS, True, 1, 0)


SWEEPS = {
    "z of more features": ({"z": R(5, 3)}, "z must be [5, 2], got [5, 3]"),
    "a short x": ({"x": R(4, 2)}, "x must be of 10 elements, got [4, 2]"),
    "no x": ({"x": None}, "x must be a tensor, got None"),
    "a net of other outputs": ({"net": net((3, 2))}, "outputs of the net must be 4, got 3"),
    "a net of scales": ({"net": scaled()}, "sweep: scales must be None, got a tensor"),
    "no thread": ({"threads": 0}, "threads must be from 1 to"),
}
SWEEPS_FORWARD = SWEEPS | {
    "a short ladj": ({"ladj": R(4)}, "ladj must be of 5 elements, got [4]"),
    "half a turn of an affine map": ({"half_turn": True}, "the map must be a spline, as only that has a box"),
    "outside of an affine map": ({"zero_outside": True}, "a spline, as only that has a box, where zero_outside"),
    "waves of more features": ({"waves": R(3, 5)}, "waves must be [2, 5], got [3, 5]"),
    "waves of doubles": ({"waves": R(2, 5).double()}, "waves must be float32, got float64"),
}  # fmt: skip
SWEEPS_BACKWARD = SWEEPS | {
    name: ({name: R(5, 1)}, f"{name} must be of {5 if name == 'grad_ladj' else 10} elements, got")
    for name in ("grad_x", "grad_z", "seen", "slope", "grad_seen")
}
SWEEPS_BACKWARD["grad_ladj"] = ({"grad_ladj": R(4)}, "grad_ladj must be of 5 elements, got [4]")


@pytest.mark.parametrize("case", SWEEPS_FORWARD)
def test_sweep_fwd(case) -> None:
    arguments = {
        "net": made(), "map": affine(True), "z": R(5, 2), "x": R(5, 2), "ladj": R(5), "half_turn": False,
        "zero_outside": False, "waves": None, "threads": 1,
    }  # fmt: skip
    _native.C.sweep_fwd(*arguments.values())
    assert_refused(_native.C.sweep_fwd, arguments, *SWEEPS_FORWARD[case])


def backward_arguments(**more: Any) -> dict[str, Any]:
    return {
        "net": made(), "map": affine(True), "z": R(5, 2), "x": R(5, 2), "grad_x": R(5, 2), "grad_ladj": R(5),
        "grad_z": R(5, 2), "seen": None, "slope": None, "grad_seen": None, "threads": 1, **more,
    }  # fmt: skip


@pytest.mark.parametrize("case", SWEEPS_BACKWARD)
def test_sweep_bwd(case) -> None:
    _native.C.sweep_bwd(*backward_arguments().values())
    assert_refused(_native.C.sweep_bwd, backward_arguments(), *SWEEPS_BACKWARD[case])


@pytest.mark.parametrize("rows", [1, 3, 40, 4000])
def test_masks_of_no_sweep(rows) -> None:
    """A unit that sees its own feature, in a thread or several: outputs would be left as they are."""
    masks = _native.C.LayerMask(2, [], [], [2, 2, 2]), _native.C.LayerMask(3, [], [], [3, 3, 3, 3])
    of_layers = [layer(R(3, 2), mask=masks[0]), layer(R(4, 3), mask=masks[1])]
    z, stuck = R(rows, 2), net_of(_native.C, of_layers, rows, False, 1, 0)
    message = r"sweep: masks must be of units that see none but features before them, got others"
    with pytest.raises(ValueError, match=message):
        _native.C.sweep_fwd(stuck, affine(True), z, R(rows, 2), R(rows), False, False, None, 2)
    with pytest.raises(ValueError, match=message):
        given = (z, R(rows, 2), R(rows, 2), R(rows), R(rows, 2), None, None, None, 2)
        _native.C.sweep_bwd(stuck, affine(True), *given)


@pytest.mark.parametrize("layout", [(2, 0, 0, 1), (1, 0, 2, 1), (1, 1, 3, 2)], ids=str)
def test_a_layer_has_no_affine_map_of_a_part(layout) -> None:
    spec = _native.C.AffineSpec(0, 0.0, 2.0, False, -5.0, 3.0, False, layout)
    with pytest.raises(ValueError, match="the affine map must be of each feature by itself, got one of a part"):
        _native.C.UnivariateMap(spec)

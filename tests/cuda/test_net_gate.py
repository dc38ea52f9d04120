"""The gate in front of a GPU's kernels for networks, by the emulated module: what tests/ops/test_net_gate.py is for the
CPU's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests import emulator
from tests.ops.gate import assert_refused, layer, net_of, told

R = torch.zeros
ROWS, N, ON = 5, 8, {"device": 0, "stream": 0}


@pytest.fixture
def C() -> Any:
    return emulator.emulated().module


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


# ---- orders and layouts, made once ----


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"values": [0, 0, 1]}, "order must be a permutation of 0 to 2"),
        ({"values": [1, 2, 3]}, "order must be a permutation of 0 to 2"),
        ({"values": []}, "its length must be from 1 to"),
        ({"there": ints(0, 1)}, "on the device must be [3], got [2]"),
        ({"there": ints(0, 1, 2).long()}, "on the device must be int32"),
        ({"there": None}, "on the device must be a tensor, got None"),
    ],
)
def test_an_order(C, broken, message) -> None:
    arguments = {"values": [2, 0, 1], "there": ints(2, 0, 1)}
    C.DeviceOrder(*arguments.values())
    assert_refused(C.DeviceOrder, arguments, broken, message)


LAYOUT = [[1, 0], [2, 0, 1], [0, 1, 2], [1, 3], [2, 3]]  # row, column, rank, limit, width


@pytest.mark.parametrize(
    ("i", "values", "message"),
    [
        (0, [1, 1], "row must be a permutation of 0 to 1"),
        (1, [0, 1, 3], "column must be a permutation of 0 to 2"),
        (2, [0, 1], "rank must be a permutation of 0 to 2"),
        (3, [1], "the length of limit must be from 2 to 2, got 1"),
        (3, [1, 4], "limit must be from 0 to 3, got 4"),
        (4, [2], "the length of width must be from 2 to 2, got 1"),
        (4, [-1, 2], "width must be from 0 to 3, got -1"),
    ],
)
def test_a_layout(C, i, values, message) -> None:
    there = tuple(ints(*v) for v in LAYOUT)
    arguments = {"n_out": 2, "n_in": 3, "values": LAYOUT, "there": there}
    C.PackLayout(*arguments.values())
    assert_refused(C.PackLayout, arguments, {"values": [*LAYOUT[:i], values, *LAYOUT[i + 1 :]]}, message)
    short = (*there[:i], there[i][:1], *there[i + 1 :])
    assert_refused(C.PackLayout, arguments, {"there": short}, f"on the device must be [{len(LAYOUT[i])}], got [1]")
    assert_refused(C.PackLayout, arguments, {"n_out": 0}, "n_out must be from 1")
    assert_refused(C.PackLayout, arguments, {"n_in": 0}, "n_in must be from 1")


@pytest.mark.parametrize(
    ("weight", "packed", "message"),
    [
        (R(2, 2), R(2, 3), "weight must be [2, 3], got [2, 2]"),
        (R(3, 2).t(), R(2, 3), "weight must be of rows without gaps"),
        (R(2, 3), R(1, 3), "packed must be [2, 3], got [1, 3]"),
        (R(2, 3), R(2, 3).double(), "packed must be float32, got float64"),
        (R(2, 3).int(), R(2, 3), "weight must be floating, got int32"),
        (None, R(2, 3), "weight must be floating"),
    ],
)
def test_packing(C, weight, packed, message) -> None:
    layout = C.PackLayout(2, 3, LAYOUT, tuple(ints(*v) for v in LAYOUT))
    good = {"unpack": False, "layers": [(R(2, 3), R(2, 3), layout)], **ON}
    C.masked_pack(*good.values())
    assert_refused(C.masked_pack, good, {"layers": [(weight, packed, layout)]}, message)
    mixed = [good["layers"][0], (R(2, 3).half(), R(2, 3).half(), layout)]
    assert_refused(C.masked_pack, good, {"layers": mixed}, "weight must be float32, got float16")


# ---- around products ----

NONE = (None, None)


def matrices(**more: Any) -> list[tuple[Any, Any]]:
    """Product, bias, what is added, stream; what comes out twice."""
    names = ("product", "bias", "add", "stream", "z", "y")
    given = {"product": (R(ROWS, N), None), "z": (R(ROWS, N), None), **more}
    assert set(given) <= set(names)
    return [given.get(name, NONE) for name in names]


EPILOGUES = {
    "no product": ({"product": NONE}, "the first operand must be a tensor, got None"),
    "a vector": ({"product": (R(N), None)}, "the first operand must be [rows, columns], got [8]"),
    "integers": ({"product": (R(ROWS, N).int(), None)}, "the first operand must be floating, got int32"),
    "no rows": ({"product": (R(0, N), None)}, "rows must be from 1 to"),
    "no columns": ({"product": (R(ROWS, 0), None)}, "columns must be from 1 to"),
    "a short bias": ({"bias": (R(N - 1), None)}, "an operand must be [8], got [7]"),
    "a bias with gaps": ({"bias": (R(2 * N)[::2], None)}, "an operand must be contiguous"),
    "a term of fewer rows": ({"add": (R(1, N), None)}, "an operand must be [5, 8], got [1, 8]"),
    "a turned stream": ({"stream": (R(N, ROWS).t(), None)}, "an operand must be of rows without gaps"),
    "a stream of doubles": ({"stream": (R(ROWS, N).double(), None)}, "an operand must be float32, got float64"),
    "a short output": ({"z": (R(ROWS, N - 1), None)}, "an output must be [5, 8], got [5, 7]"),
    "an output of one row": ({"y": (R(N), None)}, "an output must be [5, 8], got [8]"),
    "a null output": ({"y": (told(R(ROWS, N), data_ptr=0), None)}, "an output must be in memory, got a null data"),
}


@pytest.mark.parametrize("case", EPILOGUES)
def test_epilogues(C, case) -> None:
    broken, message = EPILOGUES[case]
    good = {"activation": 1, "matrices": matrices(), **ON}
    C.epilogue_fwd(*good.values())
    assert_refused(C.epilogue_fwd, good, {"matrices": matrices(**broken)}, message)
    backward = {"activation": 1, "matrices": matrices(), "sums": None, "first": 0, "at": None, "slices": 1, **ON}
    C.epilogue_bwd(*backward.values())
    assert_refused(C.epilogue_bwd, backward, {"matrices": matrices(**broken)}, message)


def test_epilogues_of_other_settings(C) -> None:
    good = {"activation": 1, "matrices": matrices(), **ON}
    assert_refused(C.epilogue_fwd, good, {"activation": 7}, "activation must be from 0 to 6, got 7")
    order = C.DeviceOrder([1, 0], ints(1, 0))
    wrong = matrices(product=(R(ROWS, N), order))
    assert_refused(C.epilogue_fwd, good, {"matrices": wrong}, "the order of epilogue: an operand must be of 8 columns")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"slices": 0}, "slices must be from 1 to"),
        ({"slices": 3}, "sums must be [3, 10], got [2, 10]"),
        ({"first": 3}, "the first column of sums must be from 0 to 2, got 3"),
        ({"first": -1}, "the first column of sums must be from 0 to 2, got -1"),
        ({"sums": R(2, 10)}, "sums must be float64, got float32"),
        ({"sums": R(2, 4).double()}, "the first column of sums must be from 0 to -4"),
        ({"sums": R(20).double()}, "sums must be [2, 0], got [20]"),
    ],
)
def test_sums_of_epilogues(C, broken, message) -> None:
    good = {
        "activation": 1, "matrices": matrices(), "sums": R(2, 10).double(), "first": 2, "at": None, "slices": 2, **ON
    }  # fmt: skip
    C.epilogue_bwd(*good.values())
    assert_refused(C.epilogue_bwd, good, broken, message)
    short = C.DeviceOrder([1, 0], ints(1, 0))
    assert_refused(C.epilogue_bwd, good, {"at": short}, "the order of sums must be of 8 columns, got 2")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"sums": R(2, 10)}, "sums must be float64, got float32"),
        ({"sums": R(10).double()}, "sums must be [0, 0], got [10]"),
        ({"sums": R(2, 0).double()}, "columns of sums must be from 1 to"),
        ({"out": R(9)}, "the sums' output must be [10], got [9]"),
        ({"out": R(10).int()}, "the sums' output must be floating, got int32"),
    ],
)
def test_adding_up(C, broken, message) -> None:
    good = {"sums": R(2, 10).double(), "out": R(10), **ON}
    C.epilogue_sums(*good.values())
    assert_refused(C.epilogue_sums, good, broken, message)


# ---- sweeps ----


def made(C: Any) -> tuple[Any, Any]:
    """2 features by way of 3 units to 2 parameters each, and its masks."""
    masks = (
        C.LayerMask(2, [], [], [1, 1, 1], None, None, ints(1, 1, 1)),
        C.LayerMask(3, [], [], [0, 0, 3, 3], None, None, ints(0, 0, 3, 3)),
    )
    of_layers = [layer(R(s), mask=m) for s, m in zip(((3, 2), (4, 3)), masks, strict=True)]
    return net_of(C, of_layers, ROWS, False, 1, 0), masks


STEPS = [(1, 0, 2, 0), (2, 0, 0, 0), (0, 0, 3, 1), (1, 2, 2, 3), (2, 1, 1, 0)]


@pytest.mark.parametrize(
    ("i", "step", "message"),
    [
        (0, (3, 0, 2, 0), "the layer of a step must be from 0 to 2, got 3"),
        (0, (-1, 0, 2, 0), "the layer of a step must be from 0 to 2, got -1"),
        (0, (1, 4, 1, 0), "the first unit of a step must be from 0 to 3, got 4"),
        (3, (1, 2, 3, 3), "the units of a step must be from 1 to 2, got 3"),
        (0, (1, 0, 0, 0), "the units of a step must be from 1 to 4, got 0"),
        (2, (0, 0, 3, 3), "the inputs of a step must be from 0 to 2, got 3"),
        (1, (2, 2, 0, 0), "the feature of a step must be from 0 to 1, got 2"),
        (1, (2, 0, 2, 0), "the column of a step must be from 0 to 1, got 2"),
        (4, (2, 1, 0, 0), "steps must be one at least per feature"),
    ],
)
def test_steps(C, i, step, message) -> None:
    _, masks = made(C)
    arguments = {"masks": list(masks), "steps": STEPS, "there": torch.tensor(STEPS, dtype=torch.int32)}
    C.SweepSteps(*arguments.values())
    assert_refused(C.SweepSteps, arguments, {"steps": [*STEPS[:i], step, *STEPS[i + 1 :]]}, message)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"masks": []}, "the number of layers must be from 1 to 16, got 0"),
        ({"masks": [None]}, "masks must be one per layer, got None"),
        ({"there": ints(1, 2, 3)}, "steps on the device must be [5, 4], got [3]"),
        ({"there": torch.tensor(STEPS)}, "steps on the device must be int32"),
    ],
)
def test_steps_of_others(C, broken, message) -> None:
    arguments = {"masks": list(made(C)[1]), "steps": STEPS, "there": torch.tensor(STEPS, dtype=torch.int32)}
    assert_refused(C.SweepSteps, arguments, broken, message)


def sweep(C: Any, **more: Any) -> dict[str, Any]:
    net, masks = made(C)
    univariate = C.UnivariateMap(C.AffineSpec(0, 0.0, 2.0, True, -5.0, 3.0, False, (1, 0, 0, 1)))
    steps = C.SweepSteps(list(masks), STEPS, torch.tensor(STEPS, dtype=torch.int32))
    return {
        "net": net, "map": univariate, "z": R(ROWS, 2), "x": R(ROWS, 2), **more, "steps": steps,
        "packed": R(C.sweep_packed(net)),
    }  # fmt: skip


SWEEPS = {
    "z of more features": ({"z": R(ROWS, 3)}, "z must be [5, 2], got [5, 3]"),
    "a short x": ({"x": R(ROWS, 1)}, "x must be of 10 elements, got [5, 1]"),
    "a short room": ({"packed": R(3)}, "packed must be ["),
    "a room of doubles": ({"packed": R(3).double()}, "packed must be float32, got float64"),
    "no room": ({"packed": None}, "packed must be a tensor, got None"),
}


@pytest.mark.parametrize("case", SWEEPS)
def test_sweep_fwd(C, case) -> None:
    good = {**sweep(C, ladj=R(ROWS), half_turn=False), **ON}
    C.sweep_fwd(*good.values())
    assert_refused(C.sweep_fwd, good, *SWEEPS[case])
    assert_refused(C.sweep_fwd, good, {"ladj": R(4)}, "ladj must be of 5 elements, got [4]")
    assert_refused(C.sweep_fwd, good, {"half_turn": True}, "must be a spline, as only that has a box")
    assert_refused(
        C.sweep_fwd, good, {"net": made(C)[0]}, "steps must be those of the net's masks, got those of others"
    )


def units(**more: Any) -> list[tuple[Any, Any]]:
    hidden, last = (R(3, ROWS), R(3, ROWS)), (R(4, ROWS), R(4, ROWS))
    return [more.get("hidden", hidden), more.get("last", last)]


@pytest.mark.parametrize("case", SWEEPS)
def test_sweep_bwd(C, case) -> None:
    more = {"grad_x": R(ROWS, 2), "grad_ladj": R(ROWS), "grad_z": R(ROWS, 2)}
    good = {**sweep(C, **more), "units": units(), **ON}
    C.sweep_bwd(*good.values())
    assert_refused(C.sweep_bwd, good, *SWEEPS[case])
    for name in ("grad_x", "grad_z"):
        assert_refused(C.sweep_bwd, good, {name: R(ROWS, 1)}, f"{name} must be of 10 elements, got [5, 1]")
    assert_refused(C.sweep_bwd, good, {"grad_ladj": R(6)}, "grad_ladj must be of 5 elements, got [6]")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (units()[:1], "units must be one pair per layer, 2, got 1"),
        (units(last=(None, None)), "the parameters must be a tensor, got None"),
        (units(last=(R(3, ROWS), None)), "values of units must be [4, 5], got [3, 5]"),
        (units(hidden=(R(ROWS, 3).t(), None)), "values of units must be contiguous"),
        (units(hidden=(None, R(3, 4))), "gradients of units must be [3, 5], got [3, 4]"),
    ],
)
def test_units(C, given, message) -> None:
    good = {**sweep(C, grad_x=None, grad_ladj=None, grad_z=None), "units": units(), **ON}
    C.sweep_bwd(*good.values())
    assert_refused(C.sweep_bwd, good, {"units": given}, message)


def test_what_a_gpu_does_not_sweep(C) -> None:
    spline = C.UnivariateMap(C.RqsSpec(2, 1, -3, 3, -3, 3, 1e-3, 1e-3, 1e-3, 1.0, 0.0, 0.0, 0.5, True, 0.025))
    good = sweep(C, ladj=R(ROWS), half_turn=False)
    masks = (
        C.LayerMask(2, [], [], [1, 1, 1], None, None, ints(1, 1, 1)),
        C.LayerMask(3, [], [], [0] * 7 + [3] * 7, None, None, ints(*[0] * 7, *[3] * 7)),
    )
    net = net_of(C, [layer(R(3, 2), mask=masks[0]), layer(R(14, 3), mask=masks[1])], ROWS, False, 1, 0)
    steps = C.SweepSteps(list(masks), STEPS, good["steps"] and torch.tensor(STEPS, dtype=torch.int32))
    linear = {"net": net, "map": spline, "steps": steps, "packed": R(C.sweep_packed(net))}
    assert_refused(C.sweep_fwd, {**good, **ON}, linear, "the map must be without splits on a GPU, got a linear spline")

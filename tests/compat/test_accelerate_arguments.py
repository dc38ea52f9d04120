"""What `accelerate`, `accelerated` and `restore` take beside a module: what users of Pyro and zuko hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
import zuko
from nflows.transforms import PiecewiseRationalQuadraticCDF
from torch import nn

import flowkernels
from flowkernels.compat.engine import patch
from flowkernels.flows import NSF


def spline() -> nn.Module:
    torch.manual_seed(0)
    return T.spline_coupling(4, hidden_dims=[8])


def flow(transforms: Any) -> Any:
    return dist.TransformedDistribution(dist.Normal(torch.zeros(4), torch.ones(4)).to_event(1), transforms)


HOLDERS: dict[str, Callable[[nn.Module], Any]] = {
    "list": lambda module: [module],
    "tuple": lambda module: (T.Permute(torch.tensor([1, 0, 3, 2])), module),
    "nested": lambda module: [nn.Linear(2, 2), (nn.Sequential(module),)],
    "distribution": lambda module: flow([T.Permute(torch.tensor([1, 0, 3, 2])), module]),
    "composed": lambda module: flow([torch.distributions.ComposeTransform([module])]),
    "turned-round": lambda module: flow([module.inv]),  # type: ignore[list-item]
    "base": lambda module: dist.TransformedDistribution(flow([module]), [T.Permute(torch.tensor([1, 0, 3, 2]))]),
    "conditional": lambda module: dist.ConditionalTransformedDistribution(
        dist.Normal(torch.zeros(4), torch.ones(4)).to_event(1), [module]
    ),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_modules_inside_are_accelerated_and_restored(name) -> None:
    module = spline()
    held = HOLDERS[name](module)
    report = flowkernels.accelerate(held)
    assert patch.is_fast(module) and report.accelerated
    assert len({row.path for row in report.rows}) == len(report.rows)
    flowkernels.restore(held)
    assert not patch.is_fast(module)
    with flowkernels.accelerated(held) as inside:
        assert patch.is_fast(module) and inside.accelerated == report.accelerated
    assert not patch.is_fast(module)


def test_a_distribution_computes_the_same() -> None:
    d, x = flow([spline(), T.Permute(torch.tensor([1, 0, 3, 2])), spline()]), torch.randn(7, 4)
    expected = d.log_prob(x)
    assert len(flowkernels.accelerate(d).accelerated) > 1
    torch.testing.assert_close(d.log_prob(x), expected)


def test_the_report_names_each_part_once_and_what_is_no_module() -> None:
    module = spline()
    report = flowkernels.accelerate([module, T.Permute(torch.tensor([1, 0])), module])
    assert report.left_alone["1"] == "it is no torch.nn.Module"
    assert [row.path for row in report.rows].count("0") == 1 and "2" not in [row.path for row in report.rows]


def test_accelerated_leaves_what_was_fast_before() -> None:
    first, second = (PiecewiseRationalQuadraticCDF(shape=[3], tails="linear") for _ in range(2))
    flowkernels.accelerate(first)
    with flowkernels.accelerated([first, second]):
        assert patch.is_fast(second)
    assert patch.is_fast(first) and not patch.is_fast(second)


def test_an_empty_list_is_unchanged() -> None:
    assert "unchanged" in str(flowkernels.accelerate([]))


def accelerated(model: Any) -> None:
    with flowkernels.accelerated(model):
        raise AssertionError("the block must not run")


@pytest.mark.parametrize("function", [flowkernels.accelerate, accelerated, flowkernels.restore])
@pytest.mark.parametrize(
    ("make", "given"),
    [
        (lambda: 3, "int"),
        (lambda: "flow", "str"),
        (lambda: None, "NoneType"),
        (lambda: [spline(), 3], "int"),
        (lambda: {"a": spline()}, "dict"),
        (lambda: zuko.flows.NSF(3)(), r"NormalizingFlow \(give the module .* flow in place of flow\(\)\)"),
        (lambda: dist.Normal(0.0, 1.0), r"Normal \(give the module that makes it.*"),
        (lambda: NSF(2, hidden=8).as_distribution(), r"FlowDistribution \(give the module that makes it.*"),
    ],
)  # fmt: skip
def test_errors(function, make, given) -> None:
    name = "restore" if function is flowkernels.restore else "accelerate"
    message = f"{name}: model must be a torch.nn.Module, a list of them or a TransformedDistribution, got {given}$"
    with pytest.raises(TypeError, match=message):
        function(make())


def test_nothing_is_accelerated_where_a_part_cannot_be() -> None:
    module = spline()
    with pytest.raises(TypeError):
        flowkernels.accelerate([module, 3])
    assert not patch.is_fast(module)

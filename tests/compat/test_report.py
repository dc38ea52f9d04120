"""What the report prints: one line a kind, what was gained, what is left alone by design; one screen for any model."""

from __future__ import annotations

from typing import Any

import nflows.transforms as nf
import pytest
import torch
from torch import nn

from flowkernels import compat
from flowkernels.compat.engine import design
from flowkernels.compat.engine.report import Report, Row
from tests.compat import nflows_models as models

SCREEN = 24


def test_it_is_a_table():
    assert repr(compat.accelerate(models.flow(layers=1))) == (
        "flowkernels: 3 of 3 modules accelerated, 1 left alone by design\n"
        "accelerated\n"
        "  1 × LULinear                                     product or triangular solves, without a dense matrix\n"
        "  1 × PiecewiseRationalQuadraticCouplingTransform  residual network, spline and feature split run as one op\n"
        "  1 × ResidualNet                                  one op; in training with batch norm, layer by layer\n"
        "left alone by design\n"
        "  1 × RandomPermutation                            a permutation is one copy, and nothing is gained on it"
    )


def test_a_deep_model_takes_as_many_lines_as_a_shallow_one():
    few, many = (str(compat.accelerate(models.flow(layers=n))).splitlines() for n in (2, 12))
    assert len(many) == len(few) == 8
    assert many[0] == "flowkernels: 36 of 36 modules accelerated, 12 left alone by design"
    assert many[2].startswith("  12 × LULinear ")


BY_DESIGN = design.ByDesign("one copy")


@pytest.mark.parametrize(
    ("reasons", "others"), [([""], "BC"), (["no"], "AC"), ([BY_DESIGN], "AB"), (["", "no", BY_DESIGN], "")]
)
def test_it_fits_one_screen_whatever_the_kinds_are(reasons, others):
    rows = [Row(f"{i}.{'part.' * 30}", f"Class{i}", reason) for reason in reasons for i in range(100)]
    rows += [Row("a", "A", ""), Row("b", "B", "no"), Row("c", "C", BY_DESIGN)]
    lines = str(Report(rows)).splitlines()
    assert len(lines) <= SCREEN
    assert sum("more kinds, which the report's `rows` have" in line for line in lines) == len(reasons)
    assert max(map(len, lines)) <= 120
    assert set(others) <= {line.split()[2] for line in lines if "×" in line}


def test_kinds_with_different_reasons_are_apart_and_say_where():
    flow = nn.Sequential(*[nf.PiecewiseQuadraticCDF([3]) for _ in range(3)], nf.HouseholderSequence(3, 2))
    assert str(compat.accelerate(flow)) == (
        "flowkernels: 0 of 4 modules accelerated\n"
        "not accelerated\n"
        "  3 × PiecewiseQuadraticCDF  no fused path for this class (at 0 and 2 more)\n"
        "  1 × HouseholderSequence    no fused path for this class (at 3)"
    )
    assert str(compat.accelerate(nf.PiecewiseQuadraticCDF([3]))).endswith("(at the model)")


def nflows_parts() -> list[nn.Module]:
    return [
        nf.RandomPermutation(4), nf.ReversePermutation(4), nf.BatchNorm(4), nf.IdentityTransform(),
        nf.SqueezeTransform(), nf.PointwiseAffineTransform(torch.zeros(4), torch.ones(4)),
    ]  # fmt: skip


def zuko_parts() -> list[nn.Module]:
    from zuko import lazy, transforms

    zeros, ones, order = torch.zeros(4), torch.ones(4), torch.arange(4)
    return [
        lazy.UnconditionalTransform(torch.distributions.AffineTransform, zeros, ones, buffer=True),
        lazy.UnconditionalTransform(transforms.MonotonicAffineTransform, zeros, ones),
        lazy.UnconditionalTransform(transforms.PermutationTransform, order, buffer=True),
    ]


def normflows_parts() -> list[nn.Module]:
    import normflows

    return [normflows.flows.Permute(4), normflows.flows.Squeeze(), normflows.flows.Split(), normflows.flows.Merge()]


def freia_parts() -> list[Any]:
    from FrEIA import modules

    return [modules.Flatten([(4,)]), modules.Split([(4,)])]


@pytest.mark.parametrize("make", [nflows_parts, zuko_parts, normflows_parts, freia_parts])
def test_left_alone_by_design(make):
    parts = make()
    report = compat.accelerate(parts)
    assert len(report.left_alone) == len(parts)
    first, second, *kinds = str(report).splitlines()
    assert first == f"flowkernels: 0 of 0 modules accelerated, {len(parts)} left alone by design"
    assert second == "left alone by design"
    assert all(" × " in kind for kind in kinds)


def test_losses_are_none_of_them():
    from FrEIA.modules import GINCouplingBlock
    from zuko import lazy, transforms

    curved = lazy.UnconditionalTransform(transforms.SoftclipTransform)
    gin = GINCouplingBlock([(4,)], subnet_constructor=nn.Linear)
    for part in (curved, gin, nf.Sigmoid(), nf.HouseholderSequence(4, 2)):
        report = compat.accelerate(part)
        assert str(report).splitlines()[:2] == ["flowkernels: 0 of 1 modules accelerated", "not accelerated"]


def test_the_losses_are_in_a_table():
    """A name that no table has would keep nothing apart."""
    from flowkernels.compat import freia

    assert {name.rpartition(".")[2] for name in freia.LIBRARY.left_alone} == design._LOSSES


def test_what_is_no_module():
    from pyro.distributions.transforms import Permute
    from torch.distributions import SigmoidTransform

    report = compat.accelerate([Permute(torch.arange(3)), SigmoidTransform()])
    assert [*report.left_alone] == ["0", "1"]
    assert str(report).splitlines()[0] == "flowkernels: 0 of 1 modules accelerated, 1 left alone by design"
    assert report.left_alone["1"] == "it is no torch.nn.Module"


def test_the_report_of_a_model_that_is_accelerated_already_is_the_same():
    model = models.flow(layers=2)
    first = compat.accelerate(model)
    assert str(compat.accelerate(model)) == str(first)

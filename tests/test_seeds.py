"""The page of the five texts has a line for every row, and every name on it is one of ours."""

from __future__ import annotations

import functools
import importlib
import re
from pathlib import Path

import pytest
import torch

from flowkernels.distributions import UniformBox
from flowkernels.flows import Flow
from flowkernels.transforms import Standardize

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "seeds.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([^`\n]+)`", PAGE)))


@functools.cache
def defined() -> set[str]:
    return {n for p in (ROOT / "tests").rglob("*.py") for n in re.findall(r"def (test_\w+)", p.read_text("utf-8"))}


def test_every_row_has_a_line() -> None:
    found = {int(n) for n in re.findall(r"\bR(\d{3})\b", PAGE)}
    for first, last in re.findall(r"\bR(\d{3})–R(\d{3})\b", PAGE):
        found |= set(range(int(first), int(last) + 1))
    assert found == set(range(1, 139))


@pytest.mark.parametrize("name", NAMED)
def test_what_is_named_is_there(name) -> None:
    if name.startswith("test_"):
        assert name in defined()
    elif "/" in name:
        assert (ROOT / name).exists()
    elif re.fullmatch(r"[a-z]+\.[A-Za-z_.]+", name):
        module, *attributes = name.split(".")
        functools.reduce(getattr, attributes, importlib.import_module(f"flowkernels.{module}"))


def test_the_density_of_a_stretched_interval_integrates_to_one() -> None:
    """Data 2z + 1 of z uniform in [0, 1]: one half on [1, 3], 0 elsewhere."""
    flow = Flow(Standardize(torch.ones(1), torch.full((1,), 2.0)), UniformBox(torch.zeros(1), torch.ones(1))).double()
    x = torch.linspace(-1, 5, 60_001, dtype=torch.float64)[:, None]
    density = flow.log_prob(x).exp()
    assert torch.trapezoid(density, x[:, 0]).item() == pytest.approx(1, abs=1e-4)
    assert set(density.round(decimals=6).tolist()) == {0.0, 0.5}

"""Whatever a model could do before `accelerate` it can do after it, with the same numbers."""

from __future__ import annotations

import pytest

from tests.compat import ability_cases
from tests.compat.abilities import EAGER, ROUNDED
from tests.compat.ability_cases import CASES, NATIVE
from tests.compat.ability_table import Cell, cells

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

# One way of each class. glasflow's classes are nflows', run by the same methods.
ONE_OF_EACH = [name for name in CASES if ":" not in name]
EVERY_WAY = [
    name if name in ONE_OF_EACH and "glasflow" not in name else pytest.param(name, marks=pytest.mark.slow)
    for name in CASES
    if name in ONE_OF_EACH or "glasflow" not in name
]
# The small class of each library that is compiled, which takes longest.
COMPILED = [
    "nflows, transforms.autoregressive.MaskedAffineAutoregressiveTransform",
    "normflows, flows.affine.coupling.AffineCouplingBlock",
    "zuko, flows.coupling.GeneralCouplingTransform",
    "freia, modules.coupling_layers.GLOWCouplingBlock",
    "pyro, distributions.transforms.affine_coupling.AffineCoupling",
]
EXPORTED = [
    name if name in COMPILED else pytest.param(name, marks=pytest.mark.slow)
    for name in ONE_OF_EACH
    if not name.startswith("glasflow")
]
# Of these, numbers differ by design, so the table cannot compare them; test_continuous.py and test_residual.py do.
OTHER_NUMBERS = {
    "flows.continuous.FFJTransform": "steps of its own: both are solutions to the solver's error",
    "flows.residual.Residual": "the library's log-determinant is a random estimate",
    "modules.invertible_resnet.IResNetLayer": "the library's log-determinant has no gradient",
}


def assert_able(found: list[Cell]) -> None:
    """No faults; what the original cannot is printed, and nothing is asked there."""
    for cell in found:
        if cell.beyond:
            print(f"{cell.name}: beyond the original too, {cell.beyond}")
    faults = [f"{cell.name}: {cell.fault}" for cell in found if cell.fault]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("name", ability_cases._MAKERS)
def test_every_class_has_a_case(name):
    found = {case.partition(":")[0] for case in ability_cases.of_library(name)}
    library = ability_cases.library(name)
    wanted = set(library.made()) - OTHER_NUMBERS.keys() if hasattr(library, "made") else found
    assert found == wanted


@pytest.mark.thinned(2)
@pytest.mark.parametrize("case", [*EVERY_WAY, *NATIVE])
def test_eager(case):
    assert_able(cells(case, [*EAGER, *ROUNDED]))


@pytest.mark.parametrize("case", [*EXPORTED, *NATIVE])
def test_graphs_of_any_batch(case):
    assert_able(cells(case, ["jit trace", "export of any batch"]))


@pytest.mark.parametrize("case", COMPILED)
def test_compile(case):
    assert_able(cells(case, ["compile without a break", "compile once for all batches"]))

"""Triton's kernels, compiled for GPUs that are not here: none spills, and none needs more than the table says."""

import json

import pytest

from flowkernels.ops import _triton

if _triton.INTERPRETING:
    pytest.skip("what the interpreter has defined cannot be compiled", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from tests.gpu_resources import triton as resources

# ptxas of another version may place a few registers differently; a rise beyond that wants a reason and a new table.
FEW = 8


def table() -> dict[tuple[str, str], dict]:
    return {(row["kernel"], row["arch"]): row for row in json.loads(resources.TABLE.read_text())}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("target", resources.TARGETS)
@pytest.mark.parametrize("case", resources.CASES)
def test_nothing_spills_and_nothing_grows(case, target) -> None:
    known = table()
    for row in resources.rows(case, target):
        assert row["spills"] == 0, row
        of_table = known[row["kernel"], target]
        assert row["registers"] <= of_table["registers"] + FEW, f"{row}, {of_table}: if meant, write the table anew"
        assert row["shared"] <= of_table["shared"], f"{row}, {of_table}: if meant, write the table anew"


def test_older_versions_get_smaller_sums(monkeypatch) -> None:
    """Of outer products over pixels: with 32 of them Triton 3.2 spills."""

    def pixels(version: tuple[int, int]) -> list[int]:
        monkeypatch.setattr(_triton, "version", lambda: version)
        with resources._caught(launches := []):
            resources.CASES["lu_linear bwd, C=48"]()
        return [constants["BP"] for kernel, _, constants in launches if kernel.__name__ == "lu_outer"]

    assert pixels((3, 2)) == pixels((3, 6)) == [16] and pixels((3, 9)) == [32]


def test_the_table_is_of_these_cases() -> None:
    assert {arch for _, arch in table()} == set(resources.TARGETS)
    assert all(any(kernel.startswith(case) for case in resources.CASES) for kernel, _ in table())
    assert all(any(kernel.startswith(case) for kernel, _ in table()) for case in resources.CASES)

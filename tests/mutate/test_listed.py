"""Every listed mutation still fits the source, and its outcome is in the table."""

from __future__ import annotations

import pytest

from tests.mutate import table
from tests.mutate.listed import MUTATIONS
from tests.mutate.mutation import ROOT, Mutation, switched

FILES = sorted({m.file for m in MUTATIONS})


@pytest.mark.parametrize("file", FILES)
def test_every_text_is_in_its_file_once(file) -> None:
    source = (ROOT / file).read_text()
    here = [(i, m) for i, m in enumerate(MUTATIONS) if m.file == file]
    for _, m in here:
        assert m.apply(source) != source, m.name
    if here[0][1].compiled:
        switched(source, here)  # none overlaps another


def test_names_are_unique_and_tests_exist() -> None:
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS)
    for m in MUTATIONS:
        assert m.files and all((ROOT / f.split("::")[0]).exists() for f in m.files), m.name


def test_the_table_is_of_the_mutations_listed() -> None:
    assert list(table.read()) == table.rows(MUTATIONS), "run python -m tests.mutate on what has changed"


def of(text: str, new: str) -> Mutation:
    return Mutation("m", "a.h", text, new, "", ())


def test_a_switch_chooses_between_expressions_or_statements() -> None:
    source = "if (a < b) f(c); else g();"
    both = [(1, of("if («a < b»)", "a <= b")), (2, of("«f(c);»", "")), (3, of("if («a < b»)", "true"))]
    assert switched(source, both) == (
        "if ((fk_mutant(1) ? (a <= b) : fk_mutant(3) ? (true) : (a < b))) {if (fk_mutant(2)) {} else {f(c);}} else g();"
    )


def test_a_text_that_is_not_there_once_is_refused() -> None:
    for text, times in (("«d»", 0), ("«a»", 2)):
        with pytest.raises(ValueError, match=f"once, got {times} times"):
            of(text, "b").apply("a a")
    with pytest.raises(ValueError, match="overlap"):
        switched("abc", [(1, of("«ab»c", "x")), (2, of("a«bc»", "y"))])

"""What every op, flow and accelerated layer returns, bit for bit, against stored digests: see `tests/digests`."""

from __future__ import annotations

import pytest
import torch

from tests.digests import case, store

PROCESSES = (("ops", "native"), tuple(group for group in store.GROUPS if group not in ("ops", "native")))


@pytest.mark.parametrize("groups", PROCESSES, ids=("our own", "libraries"))
def test_no_bit_differs(groups: tuple[str, ...]) -> None:
    if reason := store.why_not():
        pytest.skip(reason)
    present = [group for group in groups if store.why_not(group) is None]
    if not present:
        pytest.skip("; ".join(str(store.why_not(group)) for group in groups))
    wrong: list[str] = []
    for group, outcome in store.compare(present).items():
        cases = outcome.compared + outcome.left_out + len(outcome.wrong)
        assert cases > 0, group
        wrong += [f"{group}: {len(outcome.wrong)} of {cases} cases are wrong", *outcome.wrong] if outcome.wrong else []
    assert not wrong, "\n".join(wrong[:60])


def test_one_bit_changes_a_digest() -> None:
    t = case.draw("t", 5, 3, dtype=torch.float32)
    changed = t.clone()
    changed.view(torch.int32)[4, 2] ^= 1
    assert case.digest(t) == case.digest(t.t().contiguous().t()) != case.digest(changed)


def test_other_numbers_are_named() -> None:
    found = {
        "probe": "p", "versions": {}, "cases": {
            "a": {"names": ["y", "ladj"], "digests": "1 2"},
            "b": {"error": "ValueError: no"},
            "c": {"names": ["y"], "digests": "3"},
            "new": {"names": ["y"], "digests": "4"},
        },
    }  # fmt: skip
    stored = {"probe": "p", "versions": {}, "cases": {"a": "ours 1 5", "b": "ours 1", "c": "torch 3", "gone": "ours 1"}}
    right = store.beside(found, stored)
    assert right.compared == 2 and right.left_out == 0
    assert right.wrong[0] == "a: 1 of 2 tensors differ: ladj"
    assert [line.partition(":")[0] for line in right.wrong] == ["a", "b", "gone", "new"]
    elsewhere = store.beside(found | {"probe": "another processor's"}, stored)
    assert elsewhere.compared == 1 and elsewhere.left_out == 1 and len(elsewhere.wrong) == 4


def test_drawn_numbers_are_the_same_everywhere() -> None:
    assert case.draw("a key", 3).tolist() == [0.8050193786621094, 0.6577587127685547, -2.8815345764160156]

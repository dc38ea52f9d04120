"""Faults put into compiled code are seen; `python -m tests.ptx.mutations` counts how many of many are."""

from __future__ import annotations

import pytest

from tests.ptx.mutations import KINDS, applied, caught, every, of_call

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = """
@%p1 ld.global.b32 %r1, [%rd1+16];
cp.async.wait_group 1;
bar.sync 0;
bar.warp.sync -1;
shfl.sync.bfly.b32 %r9|%p3, %r8, 16, 31, -1;
add.s32 %r1, %r2, 3;
"""


def test_what_is_put_in() -> None:
    found = {m.kind: applied(m, TEXT).split("\n")[m.line] for m in every(TEXT)}
    assert found == {
        "no wait": "", "a wait for one group less": "cp.async.wait_group 2;", "no barrier": "",
        "no barrier of the warp": "", "another lane": "shfl.sync.bfly.b32 %r9|%p3, %r8, 19, 31, -1;",
        "another address": "@%p1 ld.global.b32 %r1, [%rd1+20];",
        "the other predicate": "@!%p1 ld.global.b32 %r1, [%rd1+16];",
    }  # fmt: skip
    assert set(found) == set(KINDS)


@pytest.mark.parametrize("kind", ["no wait", "another lane", "another address"])
def test_a_fault_in_nvccs_spline_is_caught(kind) -> None:
    """The first of its kind that runs."""
    text, mutation = next(found for found in of_call("nvcc", "rqs K=8") if found[1].kind == kind)
    assert caught("nvcc", "rqs K=8", text, mutation) is not None

"""Counts of snippets that can be counted by hand."""

import json

import numpy as np
import pytest

from tests.ptx import __main__ as counted
from tests.ptx.counts import Tracer, pipes
from tests.ptx.launch import run
from tests.ptx.memory import Global
from tests.ptx.parser import parse
from tests.ptx.snippets import kernel_text


def traced(code: str, inputs: int = 1, blocks: int = 1) -> tuple[dict, dict]:
    arrays, memory = [np.zeros(4096, np.uint32) for _ in range(inputs)], Global()
    for x in arrays:
        memory.add(x.ctypes.data, x.nbytes)
    kernel = parse(kernel_text(code, arrays, [], 64))
    parameters = b"".join(int(x.ctypes.data).to_bytes(8, "little") for x in arrays)
    tracer = Tracer()
    done = run(kernel, blocks, 64, parameters, memory, dynamic_shared=8192, tracer=tracer)
    return dict(tracer.moved), dict(pipes(done))


def test_instructions_of_warps() -> None:
    """A branch that half of each warp takes is issued once, what is behind it once for that half."""
    code = """
    and.b32 %r1, %tid_, 1;
    setp.eq.u32 %p0, %r1, 0;
    @%p0 bra over;
    ex2.approx.f32 %r2, %r0;
    fma.rn.f32 %r2, %r0, %r0, %r0;
    over:
    rcp.approx.ftz.f32 %r2, %r0;
    """
    _, found = traced(code, blocks=3)
    _, without = traced("", blocks=3)
    warps = 6
    more = {pipe: n - without.get(pipe, 0) for pipe, n in found.items() if n != without.get(pipe, 0)}
    assert more == {"alu": 2 * warps, "branch": warps, "mufu": 2 * warps, "fma": warps}


@pytest.mark.parametrize(
    ("stride", "width", "sectors"), [(4, 4, 4), (8, 4, 8), (32, 4, 32), (0, 4, 1), (16, 16, 16), (8, 8, 8), (64, 4, 32)]
)
def test_sectors(stride, width, sectors) -> None:
    """Addresses stride bytes apart, from where a sector begins."""
    of = {4: "b32 %r1", 8: "b64 %q1", 16: "v4.b32 {%r1, %r2, %r3, %r4}"}[width]
    code = f"""
    ld.param.u64 %q0, [p0];
    add.u64 %q0, %q0, 31;
    and.b64 %q0, %q0, -32;
    and.b32 %r9, %tid_, 31;
    mad.wide.s32 %q0, %r9, {stride}, %q0;
    ld.global.{of}, [%q0];
    """
    found, _ = traced(code)
    without, _ = traced("")
    assert found["load sectors"] - without["load sectors"] == 2 * sectors
    assert found["load bytes"] - without["load bytes"] == 64 * width


@pytest.mark.parametrize(
    ("stride", "width", "phases", "passes"),
    [
        (4, 4, 1, 1),
        (8, 4, 1, 2),
        (128, 4, 1, 32),
        (0, 4, 1, 1),
        (132, 4, 1, 1),
        (16, 16, 4, 4),
        (8, 8, 2, 2),
        (32, 16, 4, 8),
    ],
)
def test_banks(stride, width, phases, passes) -> None:
    of = {4: "b32 %r1", 8: "b64 %q1", 16: "v4.b32 {%r1, %r2, %r3, %r4}"}[width]
    code = f"mov.u32 %r8, room; and.b32 %r9, %tid_, 31; mad.lo.u32 %r8, %r9, {stride}, %r8; ld.shared.{of}, [%r8];"
    found, _ = traced(code)
    assert (found["shared phases"], found["shared passes"]) == (2 * phases, 2 * passes)


@pytest.mark.parametrize("case", ["rqs, K=8", "affine, sigmoid"])
def test_kernels_execute_no_more_than_the_table_says(case) -> None:
    """Another version of nvcc may count a few more."""
    table = {(r["kernel"], r["pass"], r["compiler"]): r for r in json.loads(counted.TABLE.read_text())}
    for row in counted.rows("nvcc", [case]):
        known = table[row["kernel"], row["pass"], "nvcc"]
        assert row["instructions"] <= 1.03 * known["instructions"], f"if meant, run python -m tests.ptx: {row}, {known}"
        for what in ("load bytes", "store bytes", "bank conflicts"):
            assert row[what] <= 1.01 * known[what], f"{what}: {row}, {known}"

"""What the compiled kernels take of a GPU is what the table says: no spill, no rise that nobody explained."""

from __future__ import annotations

import functools
import json
import re

import pytest

from flowkernels import _native
from tests.emulator import ROOT
from tests.gpu_resources import cuda

# Registers are dealt out to warps in steps of 8 a thread; another version of nvcc may move a kernel by one.
SLACK = 8


@functools.cache
def built() -> cuda.Resources:
    tool = cuda.cuobjdump()
    if _native.CUDA is None:
        pytest.skip(f"no CUDA module: {_native.why_cuda_missing}")
    if tool is None:
        pytest.skip("no cuobjdump: it comes with CUDA and with Triton")
    return cuda.read(_native.CUDA.__file__, tool)


def test_no_kernel_spills() -> None:
    spilled = [(name, arch) for name, archs in built().items() for arch, row in archs.items() if row["stack"]]
    assert not spilled


def test_no_kernel_takes_more_than_its_row_says() -> None:
    table, found = json.loads(cuda.TABLE.read_text()), built()
    assert sorted(table) == sorted(found), "run python -m tests.gpu_resources.cuda"
    for name, archs in found.items():
        for arch, row in archs.items():
            kept = table[name].get(arch)
            if kept is None:  # the GPU that this module was built for
                continue
            assert row["registers"] <= kept["registers"] + SLACK, (name, arch, row, kept)
            assert row["shared"] <= kept["shared"], (name, arch, row, kept)
            assert row["stack"] <= kept["stack"], (name, arch, row, kept)


def test_declared_shared_memory_leaves_room_for_what_a_launch_gives() -> None:
    """launch() asks for more than 42 of the 48 KiB that a kernel gets unasked. Kernels whose host code counts on all
    that a block may have declare none; from sm_90 on the table's numbers hold a KiB that is the system's besides."""
    text = "\n".join(f.read_text() for pattern in ("cu", "cuh") for f in ROOT.glob(f"csrc/*/*.{pattern}"))
    dynamic = set(re.findall(r"(\w+_kernel)\([^{};]*\{\n  FK_DYNAMIC_SHARED", text))
    counted = {name for name in dynamic if name.startswith(("lu_", "monotone_", "sweep_"))}
    assert {name.split("_")[0] for name in dynamic} == {"walk", "lu", "monotone", "sweep"}
    table = json.loads(cuda.TABLE.read_text())
    rows = {n: archs for n, archs in table.items() if n.split("<")[0] in dynamic}
    assert {n.split("<")[0] for n in rows} == dynamic
    for name, archs in rows.items():
        assert max(row["shared"] for row in archs.values()) <= 6 << 10, name
        assert name.split("<")[0] not in counted or archs["sm_80"]["shared"] == 0, name

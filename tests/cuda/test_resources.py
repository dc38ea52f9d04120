"""What the compiled kernels take of a GPU is what the table says: no spill, no rise that nobody explained."""

from __future__ import annotations

import functools
import json

import pytest

from flowkernels import _native
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

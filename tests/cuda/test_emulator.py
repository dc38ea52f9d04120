"""The emulator finds what it is there to find: kernels with one fault each, and the orders of threads."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import subprocess
import sys

import pytest
import torch

from tests import emulator

FAULTS = (
    "none", "no_barrier", "no_warp_barrier", "no_wait", "misaligned_copy", "half_waits", "other_function", "ended_lane",
    "misaligned", "beyond", "beyond_shared", "unwritten", "unasked_shared", "too_much_shared",
)  # fmt: skip


@functools.cache
def broken() -> ctypes.CDLL:
    source = emulator.HERE / "broken.cu"
    library = ctypes.CDLL(str(emulator.compile_module("broken", [source])))
    library.run.restype = ctypes.c_char_p
    return library


def turn(fault: str, order: str = "forward", n: int = 128) -> tuple[torch.Tensor, str]:
    """out[i] = in[63 - i] + its neighbour in every block of 64, unless a fault prevents it; the launch's error."""
    library = broken()
    library.fk_emulator_order(*emulator.ORDERS[order])
    given, out = torch.arange(n).float(), torch.full((n,), torch.nan)
    where = (ctypes.c_void_p(t.data_ptr()) for t in (given, out))
    message = library.run(*where, n, 64, FAULTS.index(fault)).decode()
    return out, message


def expected(n: int = 128) -> torch.Tensor:
    turned = torch.arange(n).float().view(-1, 64).flip(1)
    return (turned + turned.view(-1, 32, 2).flip(2).view(-1, 64)).flatten()


@pytest.mark.parametrize("order", emulator.ORDERS)
def test_a_right_kernel_is_right_in_every_order(order) -> None:
    out, message = turn("none", order)
    assert message == "" and torch.equal(out, expected())


@pytest.mark.parametrize("fault", ["no_barrier", "no_warp_barrier"])
@pytest.mark.parametrize("order", emulator.ORDERS)
def test_a_missing_barrier_changes_the_result(fault, order) -> None:
    assert not torch.equal(turn(fault, order)[0], expected())


@pytest.mark.parametrize("order", ["forward", "shuffled"])  # in the other order copies arrive at once
def test_copies_arrive_when_they_are_waited_for(order) -> None:
    assert turn("no_wait", order)[0].isnan().all()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("half_waits", "deadlock: of 64 threads 32 wait at __syncthreads, 32 have ended, 0 wait in a warp"),
        ("other_function", "lanes of one warp meet in different functions"),
        ("ended_lane", "names lane 3, which has ended"),
        ("misaligned", "broken.cu:.*: misaligned access"),
        ("no_wait", "ends with copies on their way"),
        ("misaligned_copy", "misaligned asynchronous copy"),
        ("unasked_shared", "not launched: a launch of 64 threads a block, 49153 bytes shared"),
        ("too_much_shared", "shared memory: 232449 bytes of dynamic shared memory"),
    ],
)
def test_a_launch_fails_and_says_why(fault, message) -> None:

    assert re.search(message, turn(fault)[1])
    assert turn("none")[1] == "" and torch.equal(turn("none")[0], expected())  # the next one is not disturbed


def test_an_output_nobody_wrote_is_seen() -> None:
    out, message = turn("unwritten")
    assert message == "" and out.isnan().nonzero().flatten().tolist() == [127]


def with_asan(*arguments: str) -> subprocess.CompletedProcess[str]:
    """This Python with AddressSanitizer before everything else, which then watches torch's memory as well."""

    def library(name: str) -> str:
        return subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()

    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(map(library, ("libasan.so", "libstdc++.so"))),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "FLOWKERNELS_EMULATOR_ASAN": "1",
    }
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=emulator.ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("fault", ["beyond", "beyond_shared"])
def test_a_store_out_of_bounds_is_found(fault) -> None:
    done = with_asan("-c", f"from tests.cuda.test_emulator import turn; print(turn({fault!r}))")
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr, done.stdout + done.stderr
    assert "turn" in done.stderr


@pytest.mark.parametrize(
    "tests",
    [
        "tests/cuda/test_channels.py",
        pytest.param("tests/cuda/test_bounds.py", marks=pytest.mark.slow),
        pytest.param("tests/cuda/test_net_blocks.py", marks=pytest.mark.slow),
        pytest.param("tests/cuda/test_monotone.py", marks=pytest.mark.slow),
        pytest.param(
            "tests/cuda/test_sweep.py::test_same_bits_in_any_order_of_threads_and_two_launches", marks=pytest.mark.slow
        ),
    ],
)
def test_no_kernel_leaves_its_tensors(tests) -> None:
    """Every shape and layout once more, where a load or store out of bounds ends the process."""
    done = with_asan("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", tests)
    assert done.returncode == 0, done.stdout + done.stderr

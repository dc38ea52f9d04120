"""What is said of a machine whose device, driver or kernels do not serve, on the emulator's machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

from flowkernels import info, ops
from flowkernels._machine import CUDA
from tests import emulator

NO_DEVICE, OLD_DRIVER, NO_KERNEL = 100, 35, 209  # cudaError_t
DRIVER = 12020


@contextlib.contextmanager
def machine(error: int = 0, of_kernels: int = 0, driver: int = DRIVER) -> Iterator[None]:
    with emulator.available() as found:
        found.library.fk_emulator_machine(error, of_kernels, driver)
        CUDA.become(found.module, "cpu")
        try:
            yield
        finally:
            found.library.fk_emulator_machine(0, 0, 13000)


def why_not() -> str:
    with pytest.raises(RuntimeError) as raised:
        ops.affine(torch.zeros(2, 3), torch.zeros(2, 3, 2), backend="cuda")
    return str(raised.value)


@pytest.mark.parametrize(("error", "driver"), [(NO_DEVICE, DRIVER), (OLD_DRIVER, 0)], ids=["no device", "no driver"])
def test_without_a_device_it_says_so_and_no_more(error, driver) -> None:
    with machine(error, driver=driver):
        assert CUDA.devices == (0, "no CUDA device")
        assert why_not().endswith("no CUDA device")


def test_a_driver_that_is_too_old_is_named_with_both_versions() -> None:
    """Torch sees the device, and the library must not say that there is none and no more."""
    with machine(OLD_DRIVER):
        said = why_not()
    assert "CUDA driver version is insufficient" in said
    assert "the driver is of CUDA 12.2, flowkernels._cuda of CUDA 13.0" in said


def test_a_device_that_the_kernels_are_not_built_for_is_named() -> None:
    with machine(of_kernels=NO_KERNEL):
        said = why_not()
        assert any("no kernel image is available" in line for line in info.lines() if line.startswith("affine on cuda"))
    assert "no kernel image is available" in said
    assert "the device is sm_110, flowkernels._cuda is built for emulated" in said


def test_a_device_that_serves_is_asked_once() -> None:
    with machine():
        ops.affine(torch.zeros(2, 3), torch.zeros(2, 3, 2), backend="cuda")
        assert CUDA.devices == (1, "") and CUDA.why_no_kernel(0) == ""
        assert CUDA._why_no_kernel == {0: ""}

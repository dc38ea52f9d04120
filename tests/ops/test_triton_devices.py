"""Which GPUs Triton's kernels refuse, and with what words; the devices are played."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from flowkernels.ops import _triton


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch):
    monkeypatch.setattr(_triton, "_INSTALLED", True)
    _triton._why_not_there.cache_clear()
    yield
    _triton._why_not_there.cache_clear()


def on(device: str, dtype: torch.dtype) -> object:
    """What is asked of a tensor."""
    return SimpleNamespace(device=torch.device(device), dtype=dtype, is_cpu=False, is_floating_point=lambda: True)


@pytest.mark.parametrize(
    ("capability", "refused"), [((7, 5), True), ((8, 0), False), ((9, 0), False)], ids=["sm_75", "sm_80", "sm_90"]
)
def test_bfloat16_needs_sm_80(monkeypatch, capability, refused) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    said = _triton.why_not([on("cuda:1", torch.float32), None, on("cuda:1", torch.bfloat16)])
    assert (said == "bfloat16 needs a GPU of sm_80 or newer, and cuda:1 is sm_75") if refused else said is None
    assert _triton.why_not([on("cuda:1", torch.float16)]) is None


def test_amd_has_numbers_of_its_own(monkeypatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert _triton.why_not([on("cuda:0", torch.bfloat16)]) is None


@pytest.mark.parametrize("has_double", [True, False])
def test_a_gpu_without_float64_is_refused(monkeypatch, has_double) -> None:
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device: SimpleNamespace(has_fp64=has_double))
    said = _triton.why_not([on("xpu:0", torch.float32)])
    assert said == (None if has_double else "xpu:0 has no float64, in which log-determinants are summed")

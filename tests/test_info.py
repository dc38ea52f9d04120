"""`python -m flowkernels.info` is true and complete."""

import subprocess
import sys

import pytest

import flowkernels
from flowkernels import _native, backends, info


def test_every_op_and_backend_has_a_cell_or_a_reason():
    text = "\n".join(info.lines())
    for op in backends.table():
        for name in backends.NAMES:
            reason = info._reason(op, name)
            assert reason is None or f"{op} on {name}: {reason}" in text


def test_it_names_the_instruction_set_that_runs():
    if _native.C is None:
        pytest.skip(f"no compiled module: {_native.why_missing}")
    before = _native.C.isa()
    try:
        for isa in _native.C.isas():
            _native.C.use_isa(isa)
            assert f"runs {isa} of" in "\n".join(info.lines())
        with pytest.raises(ValueError, match=r"use_isa: name must be one of .*, got mmx"):
            _native.C.use_isa("mmx")
    finally:
        _native.C.use_isa(before)


def test_as_a_command():
    done = subprocess.run([sys.executable, "-m", "flowkernels.info"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"flowkernels {flowkernels.__version__}\n")


def test_it_says_why_the_compiled_module_is_absent():
    code = "import sys; sys.modules['flowkernels._C'] = None; from flowkernels import info; info.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "compiled module: absent, flowkernels._C did not load" in done.stdout, done.stderr
    assert "rqs on cpu: flowkernels._C did not load" in done.stdout


def test_an_instruction_set_that_is_not_there_is_said(monkeypatch):
    if _native.C is None:
        pytest.skip(f"no compiled module: {_native.why_missing}")
    monkeypatch.setenv("FLOWKERNELS_ISA", "mmx")
    code = "import flowkernels"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "FLOWKERNELS_ISA must be one of" in done.stderr and "got 'mmx'" in done.stderr


def test_it_says_what_the_cuda_module_is_built_for_or_why_it_is_absent():
    code = "import sys; sys.modules['flowkernels._cuda'] = None; from flowkernels import info; info.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "CUDA module: absent, flowkernels._cuda did not load" in done.stdout, done.stderr
    assert "affine on cuda: flowkernels._cuda did not load" in done.stdout
    if _native.CUDA is None:
        pytest.skip(f"no CUDA module: {_native.why_cuda_missing}")
    text = "\n".join(info.lines())
    assert f"CUDA module: built for {_native.CUDA.archs}; " in text
    count, why = _native.CUDA.devices()
    if not count:
        assert f"; {why}\n" in text and f"affine on cuda: {why}" in text and why.startswith("no CUDA device")

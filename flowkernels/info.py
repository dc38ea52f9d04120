"""`python -m flowkernels.info`: versions, build, instruction set, and which backend can run which op, with reasons."""

from __future__ import annotations

import os
import platform
import sys

import torch

import flowkernels
from flowkernels import _machine, _native, backends


def _reason(op: str, backend: str) -> str | None:
    """Why `backend` cannot run `op` on float32 tensors of this machine, or None where it can."""
    modules, declared = backends.table()[op], backends.ops()[op]
    if backend not in modules:
        reasons = {"fused_torch": "plain PyTorch is the reference", **declared.missing}
        return reasons.get(backend, "not written yet; see CHANGELOG.md")
    assert declared.sample is not None
    spec, tensors = declared.sample()
    if backend in ("cuda", "triton") and torch.cuda.is_available():
        tensors = tuple(t if t is None else t.cuda() for t in tensors)
    return modules[backend].why_not(spec, *tensors)


def _cuda_module() -> str:
    if _native.CUDA is None:
        return f"absent, {_native.why_cuda_missing}"
    count, why = _machine.CUDA.devices
    there = why or f"{count} CUDA device{'s' if count > 1 else ''}"
    return f"built for {_native.CUDA.archs}; {there}"


def lines() -> list[str]:
    """The report, line by line."""
    C = _native.C
    out = [
        f"flowkernels {flowkernels.__version__}",
        f"python {platform.python_version()}, torch {torch.__version__}, {platform.system()} {platform.machine()}",
        f"threads {torch.get_num_threads()} (torch.set_num_threads), cores {os.cpu_count()}",
        f"CUDA devices {torch.cuda.device_count()}",
        f"default backend {backends.default()} (FLOWKERNELS_BACKEND, flowkernels.use_backend)",
    ]
    if C is None:
        out.append(f"compiled module: absent, {_native.why_missing}")
    else:
        threads = "" if C.openmp else "; one thread, as it was built without OpenMP"
        out.append(f"compiled module: {C.compiler}; runs {C.isa()} of {', '.join(C.isas())} (FLOWKERNELS_ISA){threads}")
        how = (
            "in one call of C"
            if C.exchanges
            else "attribute by attribute: newer versions of torch tell them in one call"
        )
        out.append(f"a tensor's address, sizes and strides are read {how}")
    out.append(f"CUDA module: {_cuda_module()}")
    names = backends.NAMES
    width = max(map(len, backends.table()))
    out += ["", " ".join([" " * width, *names])]
    reasons = []
    for op in backends.table():
        cells = []
        for name in names:
            reason = _reason(op, name)
            cells.append(("yes" if reason is None else "-").ljust(len(name)))
            if reason is not None:
                reasons.append(f"{op} on {name}: {reason}")
        out.append(" ".join([op.ljust(width), *cells]))
    return [*out, "", *reasons]


def main() -> int:
    print("\n".join(lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

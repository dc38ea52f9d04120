"""`python -m flowkernels.info`: versions, build, instruction set, and which backend can run which op, with reasons."""

from __future__ import annotations

import os
import platform
import sys

import torch

import flowkernels
from flowkernels import _machine, _native, backends


def _probe(op: str) -> tuple[object, tuple[torch.Tensor | None, ...]]:
    """A small float32 call of the op, to ask each backend whether it would run it."""
    from flowkernels.ops.actnorm.reference import ActNormSpec
    from flowkernels.ops.affine.spec import AffineSpec
    from flowkernels.ops.autoregressive_inverse.reference import SweepSpec
    from flowkernels.ops.flow_layer import FlowLayerSpec, columns
    from flowkernels.ops.lu_linear.reference import LuSpec
    from flowkernels.ops.made import MadePlan
    from flowkernels.ops.made.reference import MadeSpec
    from flowkernels.ops.masked_linear.reference import MaskedLinearSpec
    from flowkernels.ops.residual_net.reference import ResidualNetSpec
    from flowkernels.ops.rqs.spec import cached_spec

    if op == "rqs":
        spec = cached_spec(8, "linear", 3.0, None, 1e-3, 1e-3, 1e-3, 1.0, "softmax", 1e-3, False)
        return spec, (torch.zeros(1, 1), torch.zeros(1, 1, spec.n_params))
    if op == "residual_net":
        layers = [t for _ in range(4) for t in (torch.zeros(2, 2), torch.zeros(2))]
        return ResidualNetSpec(1, False), (torch.zeros(1, 2), *layers)
    if op == "affine":
        return AffineSpec("exp", 0.0, False), (torch.zeros(1, 1), torch.zeros(1, 1, 2), None, None)
    if op == "actnorm":
        return ActNormSpec(-1, False), (torch.zeros(1, 1), torch.zeros(1), torch.zeros(1))
    if op == "lu_linear":
        square, vector = torch.zeros(1, 1), torch.zeros(1)
        return LuSpec(-1, False), (square, square, square, vector, vector, torch.zeros(1).long(), vector)
    if op == "flow_layer":
        spec = cached_spec(1, None, 3.0, None, 1e-3, 1e-3, 1e-3, 1.0, "softmax", 1e-3, False)
        layers = [t for shape in ((2, 1), (2, 2), (2, 2), (4, 2)) for t in (torch.zeros(shape), torch.zeros(shape[0]))]
        flow = FlowLayerSpec(columns(2, (0,), (1,)), spec, None, True, "relu", (), ())
        return flow, (torch.zeros(1, 2), *layers)
    plan = MadePlan([[1, 2], [1, 1], [1, 1, 2, 2]])
    layers = [t for p in plan.layers for t in (torch.zeros(p.n_out, p.n_in), torch.zeros(p.n_out))]
    if op == "masked_linear":
        return MaskedLinearSpec(plan.layers[0], "relu", True, False), (torch.zeros(1, 2), *layers[:2])
    if op == "made":
        return MadeSpec(plan, "relu", (False, False)), (torch.zeros(1, 2), *layers)
    sweep = SweepSpec(plan, "relu", (False, False), AffineSpec("exp", 0.0, False))
    return sweep, (torch.zeros(1, 2), *layers)


def _reason(op: str, backend: str) -> str | None:
    """Why `backend` cannot run `op` on float32 tensors of this machine, or None where it can."""
    modules = backends.table()[op]
    if backend not in modules:
        return backends.MISSING.get((op, backend), "not written yet; see CHANGELOG.md")
    spec, tensors = _probe(op)
    if backend in ("cuda", "triton") and torch.cuda.is_available():
        tensors = tuple(t if t is None else t.cuda() for t in tensors)
    return modules[backend].why_not(spec, *tensors)


def _cuda_module() -> str:
    if _native.CUDA is None:
        return f"absent, {_native.why_cuda_missing}"
    devices = _machine.CUDA.devices
    return f"built for {_native.CUDA.archs}; {devices or 'no'} CUDA device{'' if devices < 2 else 's'}"


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

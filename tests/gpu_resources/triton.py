"""What Triton's kernels use of a GPU, compiled ahead for targets that are not here. Writes triton.json:

    python -m tests.gpu_resources.triton

A case is a call of a backend's own launcher, on tensors of the CPU: the launch is caught and its arguments become a
signature, so that what is compiled is what would run.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

from flowkernels.ops import _triton
from flowkernels.ops._channels import ChannelSpec
from flowkernels.ops.actnorm import triton as actnorm
from flowkernels.ops.affine import triton as affine
from flowkernels.ops.affine.layout import Layout
from flowkernels.ops.affine.spec import Affine, AffineCall
from flowkernels.ops.autoregressive_inverse import triton as autoregressive_inverse
from flowkernels.ops.autoregressive_inverse.reference import SweepSpec
from flowkernels.ops.block_made import BlockSpec
from flowkernels.ops.block_made import triton as block_made
from flowkernels.ops.flow_layer import triton as flow_layer
from flowkernels.ops.flow_layer.reference import FlowLayerSpec
from flowkernels.ops.low_rank import LowRankSpec
from flowkernels.ops.low_rank import triton as low_rank
from flowkernels.ops.lu_linear import triton as lu_linear
from flowkernels.ops.mixture import Mixture
from flowkernels.ops.mixture import triton as mixture
from flowkernels.ops.monotone_net import triton as monotone_net
from flowkernels.ops.monotone_net.spec import MonotoneSpec
from flowkernels.ops.net import triton as masked_linear
from flowkernels.ops.net.plan import MadePlan, layer_plan
from flowkernels.ops.net.spec import NetSpec
from flowkernels.ops.polynomial import Polynomial
from flowkernels.ops.polynomial import triton as polynomial
from flowkernels.ops.residual_flow import triton as residual_flow
from flowkernels.ops.residual_flow.spec import ResidualSpec
from flowkernels.ops.rqs import triton as rqs
from flowkernels.ops.rqs.spec import RQS
from flowkernels.ops.split import split_of

TABLE = Path(__file__).with_name("triton.json")
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
Launch = tuple[JITFunction, tuple[Any, ...], dict[str, Any]]
_TYPES = {
    torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.float16: "*fp16",
    torch.int32: "*i32", torch.int64: "*i64", torch.uint8: "*u8",
}  # fmt: skip
_OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")


# ---- the calls ----


def _map(op: Any, fwd: bool, spec: Any, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    x, params = torch.zeros(4096, 64, dtype=dtype), torch.zeros(4096, 64, spec.n_params, dtype=dtype)
    if fwd:
        return lambda: op.fwd(spec, x, params)
    return lambda: op.bwd(spec, (x, x[:, 0]), (x, params), (True, True))


def _spline(fwd: bool, bins: int, inverse: bool = False) -> Callable[[], object]:
    return _map(rqs, fwd, RQS(bins, inverse=inverse))


def _affine(fwd: bool, scale: str) -> Callable[[], object]:
    spec = AffineCall(Affine(scale, 0.0), Layout(event_dims=3))
    x, params = torch.zeros(64, 12, 16, 16), torch.zeros(64, 24, 16, 16).unflatten(1, (2, -1)).movedim(1, -1)
    if fwd:
        return lambda: affine.fwd(spec, x, params, None, None)
    return lambda: affine.bwd(spec, (x, x[:, 0, 0, 0]), (x, params, None, None), (True, True, False, False))


def _actnorm(fwd: bool) -> Callable[[], object]:
    x, c, spec = torch.zeros(64, 12, 16, 16), torch.zeros(12), ChannelSpec(1, False)
    if fwd:
        return lambda: actnorm.fwd(spec, x, c, c)
    return lambda: actnorm.bwd(spec, (x, x[:, 0, 0, 0]), (x, c, c), (True, True, True))


def _lu(fwd: bool, inverse: bool, channels: int) -> Callable[[], object]:
    x, square, vector = torch.zeros(64, channels, 16, 16), torch.zeros(channels, channels), torch.zeros(channels)
    tensors, spec = (x, square, square, vector, vector, torch.arange(channels), vector), ChannelSpec(1, inverse)
    if fwd:
        return lambda: lu_linear.fwd(spec, *tensors)
    return lambda: lu_linear.bwd(spec, (x, x[:, 0, 0, 0]), tensors, [True] * 5 + [False, True])


def _masked(fwd: bool, dtype: torch.dtype, precision: str = "highest") -> Callable[[], object]:
    degrees = range(1, 1025)
    spec = NetSpec(1, layer_plan(degrees, degrees), False, "identity", "relu")
    x, weight, bias = torch.zeros(4096, 1024, dtype=dtype), torch.zeros(1024, 1024, dtype=dtype), torch.zeros(1024)

    def call() -> object:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            if fwd:
                return masked_linear.fwd(spec, x, weight, bias.to(dtype))
            return masked_linear.bwd(spec, (x,), (x, weight, bias.to(dtype)), (True, True, True), (x,))
        finally:
            torch.set_float32_matmul_precision(before)

    return call


def _sweep(fwd: bool, univariate: Any, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    """64 features, a residual net of 256, something added in its first layer."""
    D, hidden = 64, [1 + i % 63 for i in range(256)]
    features = range(1, D + 1)
    outputs = [d for d in features for _ in range(univariate.n_params)]
    plan = MadePlan([features, hidden, hidden, hidden, outputs], residual=True)
    layers = [t for p in plan.layers for t in (torch.zeros(p.n_out, p.n_in), torch.zeros(p.n_out))]
    tensors = [t.to(dtype) for t in (torch.zeros(4096, D), *layers, torch.zeros(4096, 256))]
    net = NetSpec(4, plan, True, "relu", adds=(True, False, False, False))
    spec, z = SweepSpec(net, univariate), tensors[0]
    if fwd:
        return lambda: autoregressive_inverse.fwd(spec, *tensors)
    return lambda: autoregressive_inverse.bwd(spec, (z, z[:, 0]), tensors, [True] * len(tensors), (z,))


def _monotone(fwd: bool, form: str, inverse: bool, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    """A network of two layers of 64 units for each of 8 features, a signal of 16 numbers."""
    spec = MonotoneSpec(form, "elu", 32, "integrand", 7.0, form == "integral", 10.0, inverse)
    sizes = [16 if spec.shift else 17, 64, 64, 1]
    layers = [t for a, b in itertools.pairwise(sizes) for t in (torch.zeros(8, b, a), torch.zeros(8, b))]
    tensors = [t.to(dtype) for t in (torch.zeros(4096, 8), torch.zeros(4096, 8, 16), *layers)]
    x = tensors[0]
    if fwd:
        return lambda: monotone_net.fwd(spec, *tensors)
    return lambda: monotone_net.bwd(spec, (x, x[:, 0]), tensors, [True] * len(tensors), (x,))


def _block(
    fwd: bool, inverse: bool, dtype: torch.dtype = torch.float32, hidden: tuple[int, ...] = (8, 8), D: int = 20
) -> Callable[[], object]:
    """Rows of norms, a gate."""
    spec, tensors = BlockSpec("tanh", "gated", inverse, True), [torch.zeros(4096, D)]
    for a, b in itertools.pairwise((1, *hidden, 1)):
        tensors += [torch.zeros(D * b, D * a), torch.zeros(D * b), torch.zeros(D * b)]
    tensors = [t.to(dtype) for t in (*tensors, torch.zeros(()))]
    x = tensors[0]
    if fwd:
        return lambda: block_made.fwd(spec, *tensors)
    return lambda: block_made.bwd(spec, (x, x[:, 0]), tensors, [True] * len(tensors), (x,) * inverse)


def _low_rank(
    fwd: bool, kind: str, by_row: bool, inverse: bool, dtype: torch.dtype = torch.float32
) -> Callable[[], object]:
    """Ten layers of 21 features, of Sylvester layers 8 columns."""
    spec, lead = LowRankSpec(kind, "tanh", 0.2, "softplus", inverse), (4096,) * by_row
    of_layer = {"planar": ((21,), (21,), ()), "radial": ((21,), (), ()), "sylvester": ((21, 8), (8, 8), (8, 8), (8,))}
    shapes = ((4096, 21), *((*lead, 10, *sizes) for sizes in of_layer[kind]))
    tensors = [torch.zeros(s, dtype=dtype) for s in shapes]
    if fwd:
        return lambda: low_rank.fwd(spec, *tensors)
    return lambda: low_rank.bwd(spec, (tensors[0], tensors[0][:, 0]), tensors, [True] * len(tensors))


def _layer(
    fwd: bool, univariate: Any, dtype: torch.dtype = torch.float32, hidden: int = 128, D: int = 64, rows: int = 4096,
    residual: bool = True, activation: str = "relu", context: bool = False,
) -> Callable[[], object]:  # fmt: skip
    """A coupling layer of half of D features, a residual net of two blocks; with a context that adds and gates."""
    inner = [hidden] * (5 if residual else 2)
    sizes = [D // 2, *inner, D // 2 * univariate.n_params]
    layers = [t for a, b in itertools.pairwise(sizes) for t in (torch.zeros(b, a), torch.zeros(b))]
    terms = [torch.zeros(rows, hidden)] * (3 if context else 0)
    n = len(sizes) - 1
    adds, gates = ((True, *[False] * (n - 1)), (False, False, True, False, True, False)) if context else ((), ())
    net = NetSpec(n, None, residual, activation, adds=adds, gates=gates)
    spec = FlowLayerSpec(split_of(D, tuple(range(0, D, 2)), tuple(range(1, D, 2))), univariate, net)
    tensors = [t.to(dtype) for t in (torch.zeros(rows, D), *layers, *terms)]
    x = tensors[0]
    if fwd:
        return lambda: flow_layer.fwd(spec, *tensors)
    return lambda: flow_layer.bwd(spec, (x, x[:, 0]), tensors, [True] * len(tensors))


def _residual(
    fwd: bool, log_det: str, inverse: bool, dtype: torch.dtype = torch.float32, D: int = 21, hidden: int = 128
) -> Callable[[], object]:
    """A block of two hidden layers; of estimates one draw and ten terms."""
    spec = ResidualSpec("lipswish", True, True, log_det, True, 0.9, 0.0, inverse)
    layers = [s for a, b in itertools.pairwise((D, hidden, hidden, D)) for s in ((b, a), (b,))]
    series = [] if log_det == "exact" else [(10,), (1, 4096, D)]
    tensors = [torch.zeros(s, dtype=dtype) for s in ((4096, D), *layers, (3,), *series)]
    x = tensors[0]
    if fwd:
        return lambda: residual_flow.fwd_saving(spec, *tensors)
    saved = [x] * inverse + tensors[-1:] * (log_det != "exact")
    return lambda: residual_flow.bwd(spec, (x, x[:, 0]), tensors, [True] * len(tensors), saved)


_SPLINE = RQS(8)
_INVERSE, _NORMAL = Mixture(8, inverse=True), Mixture(33, "normal", "probit", inverse=True)
_BERNSTEIN = Polynomial("bernstein", inverse=True)
_STEEP = Polynomial("bernstein", 64, tails="linear", inverse=True)
CASES = {
    "rqs fwd, K=8": _spline(True, 8),
    "rqs fwd, K=8, inverse": _spline(True, 8, True),
    "rqs bwd, K=8": _spline(False, 8),
    "rqs bwd, K=32": _spline(False, 32),
    "mixture fwd, K=8": _map(mixture, True, Mixture(8)),
    "mixture fwd, K=8, inverse": _map(mixture, True, _INVERSE),
    "mixture bwd, K=8, inverse": _map(mixture, False, _INVERSE),
    "mixture bwd, normal, K=33, inverse": _map(mixture, False, _NORMAL),
    "mixture bwd, normal, K=33, inverse, float64": _map(mixture, False, _NORMAL, torch.float64),
    "polynomial fwd, squares": _map(polynomial, True, Polynomial()),
    "polynomial fwd, squares, inverse": _map(polynomial, True, Polynomial(inverse=True)),
    "polynomial bwd, squares, inverse": _map(polynomial, False, Polynomial(inverse=True)),
    "polynomial bwd, squares, L=15, float64": _map(polynomial, False, Polynomial(degree=15), torch.float64),
    "polynomial fwd, Bernstein, inverse": _map(polynomial, True, _BERNSTEIN),
    "polynomial bwd, Bernstein, inverse": _map(polynomial, False, _BERNSTEIN),
    "polynomial bwd, Bernstein, N=65, inverse, float64": _map(polynomial, False, _STEEP, torch.float64),
    "affine fwd, sigmoid": _affine(True, "sigmoid"),
    "affine bwd, sigmoid": _affine(False, "sigmoid"),
    "actnorm fwd": _actnorm(True),
    "actnorm bwd": _actnorm(False),
    "lu_linear fwd, C=48": _lu(True, False, 48),
    "lu_linear fwd, C=48, inverse": _lu(True, True, 48),
    "lu_linear fwd, C=128, inverse": _lu(True, True, 128),
    "lu_linear bwd, C=48": _lu(False, False, 48),
    "lu_linear bwd, C=48, inverse": _lu(False, True, 48),
    "autoregressive_inverse fwd, sigmoid": _sweep(True, Affine("sigmoid", 1e-3)),
    "autoregressive_inverse fwd, K=8": _sweep(True, _SPLINE),
    "autoregressive_inverse fwd, K=8, float64": _sweep(True, _SPLINE, torch.float64),
    "autoregressive_inverse bwd, sigmoid": _sweep(False, Affine("sigmoid", 1e-3)),
    "autoregressive_inverse bwd, K=8": _sweep(False, _SPLINE),
    "autoregressive_inverse bwd, K=8, float64": _sweep(False, _SPLINE, torch.float64),
    "monotone_net fwd, integral": _monotone(True, "integral", False),
    "monotone_net fwd, integral, inverse": _monotone(True, "integral", True),
    "monotone_net fwd, positive, inverse": _monotone(True, "positive", True),
    "monotone_net bwd, integral": _monotone(False, "integral", False),
    "monotone_net bwd, positive, inverse": _monotone(False, "positive", True),
    "monotone_net bwd, positive, inverse, float64": _monotone(False, "positive", True, torch.float64),
    "low_rank fwd, planar, inverse": _low_rank(True, "planar", False, True),
    "low_rank bwd, planar, inverse": _low_rank(False, "planar", True, True),
    "low_rank bwd, planar, shared, float64": _low_rank(False, "planar", False, False, torch.float64),
    "low_rank bwd, radial, shared": _low_rank(False, "radial", False, False),
    "low_rank bwd, radial, inverse": _low_rank(False, "radial", True, True),
    "low_rank fwd, sylvester, inverse": _low_rank(True, "sylvester", False, True),
    "low_rank bwd, sylvester, shared": _low_rank(False, "sylvester", False, False),
    "low_rank bwd, sylvester, inverse": _low_rank(False, "sylvester", True, True),
    "low_rank bwd, sylvester, shared, float64": _low_rank(False, "sylvester", False, False, torch.float64),
    "block_made fwd": _block(True, False),
    "block_made fwd, inverse": _block(True, True),
    "block_made fwd, inverse, 64 units": _block(True, True, hidden=(64, 64), D=6),
    "block_made fwd, float64": _block(True, False, torch.float64, (16, 16), 6),
    "block_made fwd, inverse, float64": _block(True, True, torch.float64, (16, 16), 6),
    "block_made bwd": _block(False, False),
    "block_made bwd, inverse": _block(False, True),
    "block_made bwd, inverse, 64 units": _block(False, True, hidden=(64, 64), D=6),
    "block_made bwd, inverse, float64": _block(False, True, torch.float64, (16, 16), 6),
    "residual_flow fwd": _residual(True, "exact", False),
    "residual_flow fwd, inverse": _residual(True, "exact", True),
    "residual_flow fwd, D=128": _residual(True, "exact", False, D=128),
    "residual_flow fwd, series": _residual(True, "series", False),
    "residual_flow fwd, float64": _residual(True, "exact", False, torch.float64, hidden=64),
    "residual_flow bwd": _residual(False, "exact", False),
    "residual_flow bwd, inverse": _residual(False, "exact", True),
    "residual_flow bwd, D=128": _residual(False, "exact", False, D=128),
    "residual_flow bwd, series": _residual(False, "series", False),
    "residual_flow bwd, series, inverse": _residual(False, "series", True),
    "residual_flow bwd, float64": _residual(False, "exact", False, torch.float64, hidden=64),
    "masked_linear fwd, bfloat16": _masked(True, torch.bfloat16),
    "masked_linear bwd, bfloat16": _masked(False, torch.bfloat16),
    "masked_linear fwd, tf32": _masked(True, torch.float32, "high"),
    "masked_linear fwd, float32": _masked(True, torch.float32),
    "masked_linear bwd, float32": _masked(False, torch.float32),
    "flow_layer fwd, K=8": _layer(True, _SPLINE),
    "flow_layer fwd, K=8, 256 units, context": _layer(True, _SPLINE, hidden=256, context=True),
    "flow_layer bwd, K=8": _layer(False, _SPLINE),
    "flow_layer bwd, K=8, inverse, context": _layer(False, RQS(8, inverse=True), context=True),
    "flow_layer bwd, K=8, gelu, 256 units": _layer(False, _SPLINE, hidden=256, activation="gelu"),
    "flow_layer bwd, sigmoid, plain": _layer(False, Affine("sigmoid", 1e-3), residual=False, activation="tanh"),
    "flow_layer bwd, K=8, float64": _layer(False, _SPLINE, torch.float64, hidden=64),
}


# ---- from a call to its resources ----


@contextmanager
def _caught(launches: list[Launch], target: str = "sm_80") -> Iterator[None]:
    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> None:
        launches.append((self, args, kwargs))

    def tune(self: Autotuner, *args: Any, **kwargs: Any) -> None:
        for config in self.configs:
            self.fn.run(*args, **kwargs, **config.all_kwargs())

    before = JITFunction.run, Autotuner.run, _triton.warp_size
    JITFunction.run, Autotuner.run = run, tune  # type: ignore[method-assign]
    _triton.warp_size = lambda: TARGETS[target].warp_size
    try:
        yield
    finally:
        JITFunction.run, Autotuner.run, _triton.warp_size = before  # type: ignore[method-assign]


def _type_of(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _TYPES[value.dtype]
    if isinstance(value, tuple):  # of tensors
        return tuple(map(_type_of, value))
    return "fp32" if isinstance(value, float) else "i32" if -(2**31) <= value < 2**31 else "i64"


def _source(launch: Launch) -> tuple[ASTSource, dict[str, Any]]:
    """As the launcher would specialise it: a 1 is a constant, what 16 divides says so, where the kernel lets it."""
    fn, args, kwargs = launch
    given = dict(zip(fn.arg_names, args, strict=False)) | kwargs
    options = {k: given.pop(k) for k in _OPTIONS if k in given}
    signature, constants, attrs = {}, {}, {}
    for i, name in enumerate(fn.arg_names):
        value = given[name] if name in given else fn.params[i].default
        specialised = not fn.params[i].do_not_specialize
        if fn.params[i].is_constexpr or (isinstance(value, int) and value == 1 and specialised):
            signature[name], constants[(i,)] = "constexpr", value
            continue
        signature[name] = _type_of(value)
        if isinstance(value, tuple):
            attrs |= {(i, j): [["tt.divisibility", 16]] for j in range(len(value))}
        elif isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0 and specialised):
            attrs[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(fn, signature, constants, attrs), options


def _of_nvidia(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of spills (stack and local memory)."""
    tool = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = {k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return found["REG"], found["STACK"] + found["LOCAL"]


def _of_amd(assembly: str) -> tuple[int, int]:
    def number(key: str) -> int:
        found = re.search(rf"\.{key}:\s+(\d+)", assembly)
        assert found is not None, key
        return int(found[1])

    return number("vgpr_count"), number("private_segment_fixed_size")


def rows(case: str, target: str) -> list[dict[str, Any]]:
    """One row per kernel (and configuration) that the case launches."""
    launches: list[Launch] = []
    with _caught(launches, target):
        CASES[case]()
    found = []
    for i, launch in enumerate(launches):
        source, options = _source(launch)
        kernel = triton.compile(source, target=TARGETS[target], options=options)
        asm = kernel.asm
        registers, spills = _of_nvidia(asm["cubin"]) if target.startswith("sm_") else _of_amd(asm["amdgcn"])
        name = case if len(launches) == 1 else f"{case}, {i}"
        found.append({
            "kernel": name, "arch": target, "registers": registers, "spills": spills, "shared": kernel.metadata.shared
        })  # fmt: skip
    return found


def main() -> None:
    table = [row for case in CASES for target in TARGETS for row in rows(case, target)]
    TABLE.write_text("[\n" + ",\n".join(json.dumps(row) for row in table) + "\n]\n")
    for row in table:
        print(*row.values(), sep="\t")


if __name__ == "__main__":
    main()

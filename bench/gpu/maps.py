"""Times the kernels of rqs and affine beside nflows, zuko and plain PyTorch, compiled and not: CUDA events, L2 flushed,
median; the share of the copy bandwidth measured in the same run. Rows come in order of interest until the time is up.

    python -m bench.gpu.maps --json maps.json --seconds 110
    python -m bench.gpu.maps --device cpu --quick     # does it still run?
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.gpu import timing
from bench.gpu.timing import Bound, Call, Rows
from bench.suites import rqs
from flowkernels import ops

FEATURES, BINS = 64, 8
P = 3 * BINS - 1
BATCHES = (65536, 512, 4096, 1048576)
QUICK = (64,)
CHECKED = 1024  # rows of the comparison with plain PyTorch
DIRECTIONS = ("forward", "inverse", "backward")
MODES = {"compiled": None, "max-autotune": "max-autotune-no-cudagraphs"}
Map = Callable[..., tuple[Tensor, Tensor]]  # x, params, inverse=


class Op(NamedTuple):
    """An op's call on a batch, the bytes that any implementation has to move, and who else has it."""

    function: Callable[..., tuple[Tensor, Tensor]]  # x, params, backend, inverse=
    n_params: int
    peers: dict[str, Map]

    def tensors(self, rows: int, device: str) -> tuple[Tensor, Tensor]:
        g = torch.Generator(device).manual_seed(0)
        x = torch.randn(rows, FEATURES, generator=g, device=device)
        return x, torch.randn(rows, FEATURES, self.n_params, generator=g, device=device)

    def bytes_of(self, rows: int, direction: str) -> int:
        forward = rows * (4 * FEATURES * (self.n_params + 2) + 4)
        backward = rows * (4 * FEATURES * (2 * self.n_params + 3) + 4)
        return backward if direction == "backward" else forward


def _rqs(x: Tensor, params: Tensor, backend: str, inverse: bool = False) -> tuple[Tensor, Tensor]:
    return ops.rqs(x, params, bins=BINS, inverse=inverse, backend=backend)


def _affine(x: Tensor, params: Tensor, backend: str, inverse: bool = False) -> tuple[Tensor, Tensor]:
    return ops.affine(x, params, scale="sigmoid", min_scale=1e-3, inverse=inverse, backend=backend)


def _splines() -> dict[str, Map]:
    """zuko's is of another parametrisation, with the same shapes."""

    def bound(spline: Callable[..., tuple[Tensor, Tensor]]) -> Map:
        return lambda x, params, inverse=False: spline(x, params, BINS, inverse)

    rows = {name: rqs.ROWS[f"{name} eager"] for name in ("nflows", "zuko")}
    return {name: bound(row.of) for name, row in rows.items() if row.missing() is None}


def _affine_maps() -> dict[str, Map]:
    try:
        from nflows.transforms import AffineCouplingTransform
    except ImportError:
        return {}
    layer: Any = AffineCouplingTransform([1] * FEATURES + [0], lambda n_in, n_out: torch.nn.Identity())

    def nflows(x: Tensor, params: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Its layer's map without the split around it; the same numbers of params, in its own order."""
        f = layer._coupling_transform_inverse if inverse else layer._coupling_transform_forward
        return f(x, params.flatten(1))

    return {"nflows": nflows}


def operations() -> dict[str, Op]:
    return {"rqs": Op(_rqs, P, _splines()), "affine": Op(_affine, 2, _affine_maps())}


def direction_of(f: Map, x: Tensor, params: Tensor, direction: str) -> Call:
    return timing.bind(functools.partial(f, inverse=direction == "inverse"), (x, params), direction == "backward")


def kernels_and_eager(rows: Rows, batch: int, name: str, op: Op) -> None:
    """Ours on each backend, one call after the other and as a graph; the peers as they are."""
    x, params = op.tensors(batch, rows.device)
    few = (x[:CHECKED], params[:CHECKED])
    for direction in DIRECTIONS:
        add = functools.partial(
            rows.add, n_bytes=op.bytes_of(batch, direction), op=name, batch=batch, direction=direction
        )

        def bound(backend: str, direction: str = direction) -> Bound:
            return lambda tensors: direction_of(functools.partial(op.function, backend=backend), *tensors, direction)

        for backend in timing.ours(rows.device):
            prepare = timing.checked(bound(backend), bound("reference"), few, (x, params))
            add(prepare, graph=direction != "backward", row=f"ours, {backend}")
        for peer, f in op.peers.items():
            add(functools.partial(direction_of, f, x, params, direction), row=f"{peer} eager")


def compiled(rows: Rows, batch: int, name: str, op: Op) -> None:
    x, params = op.tensors(batch, rows.device)
    functions = {"torch": functools.partial(op.function, backend="reference")}
    if "zuko" in op.peers:
        functions["zuko"] = op.peers["zuko"]
    for how, mode in MODES.items():
        for who, f in functions.items():
            for direction in DIRECTIONS:

                def fresh(f: Map = f, mode: str | None = mode, direction: str = direction) -> Call:
                    torch.compiler.reset()  # from the ninth shape of a function on torch.compile runs it eagerly
                    return direction_of(torch.compile(f, mode=mode, dynamic=False), x, params, direction)

                rows.add(fresh, op.bytes_of(batch, direction), op=name, batch=batch, direction=direction,
                         row=f"{who} {how}")  # fmt: skip


def measure(rows: Rows) -> None:
    for batch in QUICK if rows.quick else BATCHES:
        for name, op in operations().items():
            kernels_and_eager(rows, batch, name, op)
    if not rows.quick:  # last, and for one batch: compiling takes seconds a row
        for name, op in operations().items():
            compiled(rows, BATCHES[0], name, op)


def table(report: dict[str, Any]) -> str:
    columns = ("op", "batch", "direction", "row")
    return timing.table(report, columns, lambda r: f"{100 * r['share']:.0f} %", "share of copy")


def main(arguments: list[str] | None = None) -> int:
    return timing.main("gpu maps", __doc__, measure, table, arguments)


if __name__ == "__main__":
    sys.exit(main())

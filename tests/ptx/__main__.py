"""What kernels execute and move for 32 elements: `python -m tests.ptx` prints the table and writes counts.json.

Beside what nvcc's kernels execute stands what bench/results/predictions.md was made from.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowkernels import ops
from tests.ptx import counts
from tests.ptx.launch import Launched
from tests.ptx.machine import Settings
from tests.ptx.running import How

TABLE = Path(__file__).with_name("counts.json")
ROWS, D = 48, 64
COUNTED = How(Settings(errs=False), tracer=counts.Tracer)
CASES: dict[str, tuple[Any, int, dict[str, Any]]] = {
    "rqs, K=8": (ops.rqs, 23, {"bins": 8}),
    "rqs, K=8, inverse": (ops.rqs, 23, {"bins": 8, "inverse": True}),
    "rqs, K=8, params of 16 bits": (ops.rqs, 23, {"bins": 8}),
    "rqs, K=16": (ops.rqs, 47, {"bins": 16}),
    "rqs, K=5": (ops.rqs, 14, {"bins": 5}),
    "affine, sigmoid": (ops.affine, 2, {"scale": "sigmoid"}),
    "mixture, K=8": (ops.mixture, 24, {"components": 8}),
    "polynomial, squares": (ops.polynomial, ops.Polynomial().n_params, {}),
}
# "instructions of that warp" in bench/results/predictions.md, read off the machine code for sm_90 or estimated there.
PREDICTED = {
    ("rqs, K=8", "forward"): 503, ("rqs, K=8, inverse", "forward"): 527, ("rqs, K=8", "backward"): 643,
    ("affine, sigmoid", "forward"): 87, ("affine, sigmoid", "backward"): 101, ("mixture, K=8", "forward"): 990,
    ("polynomial, squares", "forward"): 430,
}  # fmt: skip


def _passes(case: str, backend: str, running: Any) -> dict[str, list[Launched]]:
    """Launches of the forward and of the backward pass, at a shape of whole warps."""
    op, params, settings = CASES[case]
    g = torch.Generator().manual_seed(0)
    shapes = ((ROWS, D), (ROWS, D, params))
    x, logits = (torch.randn(s, generator=g) for s in shapes)
    stored = torch.bfloat16 if case.endswith("16 bits") else torch.float32
    leaves: list[Tensor] = [x.requires_grad_(), logits.to(stored).requires_grad_()]
    with running() as launches:
        outputs = op(*leaves, backend=backend, **settings)
        first = len(launches)
        torch.autograd.grad(outputs, leaves, [torch.ones_like(o) for o in outputs])
    return {"forward": launches[:first], "backward": launches[first:]}


def rows(compiler: str, cases: list[str]) -> list[dict[str, Any]]:
    if compiler == "nvcc":
        from tests.ptx import of_nvcc

        backend, running = "cuda", lambda: of_nvcc.running(COUNTED)
    else:
        from tests.ptx import of_triton

        backend, running = "triton", lambda: of_triton.running("sm_90", COUNTED)
    found = []
    for case in cases:
        for which, launches in _passes(case, backend, running).items():
            row = counts.row(launches, ROWS * D)
            found.append({"kernel": case, "pass": which, "compiler": compiler, "launches": len(launches), **row})
    return found


def table(found: list[dict[str, Any]]) -> str:
    """As predictions.md has it: of a warp's 32 elements."""
    lines = [
        "| kernel | pass | PTX of | instructions | by hand | ex2, rcp, … | bytes read an element, sectors a request "
        "| bytes written, sectors | bank conflicts |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in found:
        predicted = PREDICTED.get((r["kernel"], r["pass"]), "") if r["compiler"] == "nvcc" else ""
        lines.append(
            f"| `{r['kernel']}` | {r['pass']} | {r['compiler']} | {r['instructions']:.0f} | {predicted} "
            f"| {r['pipes'].get('mufu', 0):.0f} | {r['load bytes']:.0f}, {r['sectors a load']:.1f} "
            f"| {r['store bytes']:.0f}, {r['sectors a store']:.1f} | {r['bank conflicts']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.ptx", description=__doc__)
    parser.add_argument("--compiler", nargs="+", default=["nvcc", "triton"])
    parser.add_argument("--case", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--json", type=Path, default=TABLE)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = [row for compiler in given.compiler for row in rows(compiler, given.case)]
    given.json.write_text("[\n" + ",\n".join(json.dumps(row) for row in found) + "\n]\n")
    print(table(found))


if __name__ == "__main__":
    main()

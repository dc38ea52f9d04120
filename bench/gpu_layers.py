"""Times what gpu_bench.py does not: ops on channels, and samples of an autoregressive flow beside its own log_prob.

python bench/gpu_layers.py --json layers.json
python bench/gpu_layers.py --device cpu --quick     # does it still run?
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_bench import FLUSH_BYTES, copy_gbps, median_seconds
from torch import Tensor

from flowkernels import flows, ops

CHANNELS, FEATURES, HIDDEN = (12, 24, 48, 96), 64, (256, 256)


def channel_calls(C: int, images: int, side: int, device: str) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """Name, bytes that any implementation has to move, and call, of ops on images of C channels."""
    g = torch.Generator(device).manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device=device)

    x = randn(images, C, side, side)
    factors = [randn(C, C) / C**0.5, randn(C, C) / C**0.5, 0.3 * randn(C), randn(C).sign()]
    permutation = torch.randperm(C, generator=g, device=device)
    for name, f in (
        ("actnorm", lambda x, *p, inverse: ops.actnorm(x, p[2], p[3], channel_dim=1, inverse=inverse)),
        ("lu_linear", lambda x, *p, inverse: ops.lu_linear(x, *p, permutation, p[3], channel_dim=1, inverse=inverse)),
    ):
        for inverse in (False, True):
            which = "inverse" if inverse else "forward"
            leaves = [t.detach().requires_grad_() for t in (x, *factors)]
            outputs = f(*leaves, inverse=inverse)
            grads = [torch.ones_like(t) for t in outputs]
            yield f"{name} {which}", 2 * x.nbytes, lambda f=f, i=inverse: f(x, *factors, inverse=i)
            yield (
                f"{name} {which}, backward", 3 * x.nbytes,
                lambda o=outputs, v=leaves, w=grads: torch.autograd.grad(o, v, w, retain_graph=True, allow_unused=True),
            )  # fmt: skip


def measure(device: str, quick: bool) -> dict[str, Any]:
    repeats, flush = 3 if quick else 30, torch.empty((1 << 20 if quick else FLUSH_BYTES) // 4, device=device)
    bandwidth = copy_gbps(device, 1 << 20 if quick else 1 << 30, repeats, flush)
    rows: list[dict[str, Any]] = []
    for C in CHANNELS[:1] if quick else CHANNELS:
        for name, n_bytes, call in channel_calls(C, 2 if quick else 64, 4 if quick else 32, device):
            with torch.set_grad_enabled("backward" in name):
                took = median_seconds(call, device, repeats, flush)
            rows.append({"op": f"{name}, C = {C}", "us": took * 1e6, "share": n_bytes / took / 1e9 / bandwidth})
    flow = flows.MAF(FEATURES, transforms=1, hidden=HIDDEN).to(device)
    n = 64 if quick else 65536
    x = torch.randn(n, FEATURES, device=device)
    with torch.no_grad():
        density = median_seconds(lambda: flow.log_prob(x), device, repeats, flush)
        samples = median_seconds(lambda: flow.sample(n), device, repeats, flush)
    rows.append({"op": f"MAF, D = {FEATURES}, log_prob", "us": density * 1e6})
    rows.append({"op": f"MAF, D = {FEATURES}, sample", "us": samples * 1e6, "times_log_prob": samples / density})
    return {"torch": torch.__version__, "device": device, "copy_gbps": bandwidth, "rows": rows}


def table(report: dict[str, Any]) -> str:
    lines = ["| op | µs | share of copy |", "|---|---|---|"]
    for r in report["rows"]:
        last = f"{100 * r['share']:.0f} %" if "share" in r else f"{r['times_log_prob']:.1f} × log_prob" \
            if "times_log_prob" in r else ""  # fmt: skip
        lines.append(f"| {r['op']} | {r['us']:.1f} | {last} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"gpu-layers: torch {torch.__version__} sees no CUDA device")
        return 1
    report = measure(options.device, options.quick)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())

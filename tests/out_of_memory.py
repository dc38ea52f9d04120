"""Every op with too little memory, in a process of its own: prints what came of each call.

`python -m tests.out_of_memory THREADS`. A kernel's scratch memory stays with its thread and only grows, so that every
call here wants more than all before it, beside which its outputs are small.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from flowkernels import ops
from flowkernels.ops.flow import Layer
from flowkernels.ops.flow_layer import flow_layer, split_of
from flowkernels.ops.net.net import dense_net
from flowkernels.transforms import RQS, Affine

ROWS, SPARE = 64, 1 << 20  # enough rows for a tile each to several threads; bytes for outputs
AFFINE = Affine("exp")
_unlimited = resource.getrlimit(resource.RLIMIT_AS)


def attempt(call: Callable[[], object]) -> str:
    """What comes of a call that may take little more memory than is taken now."""
    found = re.search(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    resource.setrlimit(resource.RLIMIT_AS, ((int(found[1]) << 10) + SPARE, _unlimited[1]))
    try:
        call()
    except MemoryError:
        return "MemoryError"
    except RuntimeError as error:
        return "torch has no memory" if "memory" in str(error) else repr(error)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, _unlimited)
    return "done"


def layers(*sizes: tuple[int, int]) -> list[tuple[Tensor, Tensor]]:
    return [(torch.full(s, 1e-3), torch.zeros(s[0])) for s in sizes]


# name → how wide the widest layer is → (what is called, the tensor whose gradient is wanted)
Case = tuple[Callable[[], Tensor], Tensor]


def residual_net(width: int) -> Case:
    x, of = torch.ones(ROWS, 2), layers((width, 2), (2, width))
    return lambda: ops.residual_net(x, of, blocks=0), x


def masked_linear(width: int) -> Case:
    x, weight, bias = torch.ones(ROWS, width), torch.full((2, width), 1e-3), torch.zeros(2)
    plan = ops.LayerPlan([0] * width, [0, 0], strict=False)
    return lambda: ops.masked_linear(x, weight, bias, plan), bias


def of_plan(width: int) -> tuple[Tensor, list[tuple[Tensor, Tensor]], ops.MadePlan]:
    plan = ops.MadePlan([[1, 2], [1] * width, [1, 1, 2, 2]])
    return torch.ones(ROWS, 2), layers((width, 2), (4, width)), plan


def made(width: int) -> Case:
    x, of, plan = of_plan(width)
    return lambda: ops.made(x, of, plan), x


def autoregressive_inverse(width: int) -> Case:
    x, of, plan = of_plan(width)
    return lambda: ops.autoregressive_inverse(x, of, plan, AFFINE)[0], x


def layer(width: int) -> Case:
    x, of, at = torch.ones(ROWS, 2), layers((width, 1), (2, width)), split_of(2, (0,), (1,))
    return lambda: flow_layer(x, of, AFFINE, at, residual=False)[0], x


def flow(width: int) -> Case:
    x, of, at = torch.ones(ROWS, 2), layers((width, 1), (2, width)), split_of(2, (0,), (1,))
    net = dense_net(of, False, "relu", 1, (ROWS,), None)
    return lambda: ops.flow(x, [Layer(AFFINE, net, at)] * 2)[0], x


def lu_linear(width: int) -> Case:
    n = 8 * int(width**0.5)
    x, eye, log_s = torch.ones(ROWS, n), torch.eye(n), torch.zeros(n)
    return lambda: ops.lu_linear(x, eye, eye, log_s, log_s + 1, torch.arange(n), log_s)[0], x


def rqs(width: int) -> Case:
    x, params = torch.ones(4 * ROWS, 64), torch.zeros(4 * ROWS, 64, RQS(bins=8).n_params)
    return lambda: ops.rqs(x, params, bins=8)[0], x


def affine(width: int) -> Case:
    x, params = torch.ones(4 * ROWS, 64), torch.zeros(4 * ROWS, 64, 2)
    return lambda: ops.affine(x, params)[0], x


NETS = (autoregressive_inverse, masked_linear, made, layer, flow, residual_net)  # by what they want of one width
CASES = (lu_linear, *NETS, rqs, affine)
WANTS_LITTLE = (rqs, affine)  # whatever the width: they have no scratch memory to speak of


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    torch.ones(1 << 20).exp().sum()  # the threads of the pool are there before memory is short
    ops.residual_net(torch.ones(1 << 12, 2), layers((64, 2), (64, 64), (64, 64), (2, 64)), blocks=1)
    found: dict[str, list[str]] = {}
    width = 30_000
    for backward in (False, True):
        for make in CASES:
            width = width if make in WANTS_LITTLE else int(width * 1.3)
            call, leaf = make(width)
            name = f"{make.__name__}{' backward' * backward}"
            if backward:
                leaf.requires_grad_()

                def again(call: Callable[[], Tensor] = call, leaf: Tensor = leaf) -> Tensor:
                    return torch.autograd.grad(call().sum(), leaf)[0]

                y = call().sum()
                found[name] = [attempt(lambda y=y, leaf=leaf: torch.autograd.grad(y, leaf))]
            else:
                again = call
                found[name] = [attempt(call)]
            found[name].append("works afterwards" if again().isfinite().all() else "broken")
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""One of two processes of `test_whole_models`: `python -m tests.compat.distributed STORE RANK`."""

from __future__ import annotations

import copy
import sys
import warnings

import torch
from torch import nn

from flowkernels import compat
from flowkernels.compat.engine import thresholds
from tests.compat import whole_models

SIZE = 2


def check(name: str, rank: int) -> None:
    """The gradients of accelerated models, wrapped before and after, in two steps on other rows."""
    plain = whole_models.build(name)
    models = [copy.deepcopy(plain) for _ in range(2)]
    compat.accelerate(models[0])
    wrapped = [nn.parallel.DistributedDataParallel(m, find_unused_parameters=True) for m in models]
    compat.accelerate(wrapped[1])
    for step in range(2):
        rows = whole_models.data(48)[24 * step :][:24]
        plain.zero_grad()
        (-plain(rows).mean()).backward()
        for model in wrapped:
            model.zero_grad()
            (-model(rows[rank::SIZE]).mean()).backward()
            for (at, p), q in zip(plain.named_parameters(), model.parameters(), strict=True):
                assert (p.grad is None) == (q.grad is None), (name, at)
                if p.grad is not None:
                    torch.testing.assert_close(q.grad, p.grad, msg=lambda m, at=at: f"{name}, {at}: {m}")


def main(store: str, rank: str) -> None:
    warnings.simplefilter("ignore")
    for size in filter(str.isupper, vars(thresholds)):  # small inputs too
        setattr(thresholds, size, 0)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=SIZE)
    for name in whole_models.MODELS:
        check(name, int(rank))
    torch.distributed.destroy_process_group()
    print("done: " + ", ".join(whole_models.MODELS))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Two processes that train together, as torchrun starts them."""

from __future__ import annotations

import os
import socket

import pytest

from tests.process import python

pytest.importorskip("safetensors")

TRAINING = """
    import json, os, sys
    import torch
    from flowkernels.flows import NSF
    from flowkernels.training import fit
    from flowkernels.transforms import ActNorm, Composite

    def run(folder, world, epochs=3):
        torch.set_num_threads(1)
        torch.manual_seed(int(os.environ.get("RANK", 0)))  # other weights on the second one, which must not matter
        flow = NSF(2, 1, transforms=2, bins=4, hidden=(8,)).double()
        flow.transform = Composite([ActNorm(2), *flow.transform]).double()
        x = 3 + torch.randn(101, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        said = []
        found = fit(
            flow, x[:, :2], x[:, 2:], epochs=epochs, batch_size=25, lr=0.02, standardise=True, progress=said.append,
            checkpoint=f"{folder}/{world}.safetensors",
        )
        return found, said

    def work(rank, folder, port):
        os.environ |= {
            "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        run(folder, "two", 1)
        found, said = run(folder, "two")  # goes on, on both
        assert not torch.distributed.is_initialized() and len(said) == (2 if rank == 0 else 0), said
        torch.save([found.train, found.validation, found.flow.state_dict(), others(rank)], f"{folder}/{rank}.pt")

    def others(rank):
        # Each rank has running numbers of its own until those of one are taken; and a parameter that no step uses.
        torch.manual_seed(rank)
        flow = NSF(2, transforms=2, bins=4, hidden=(8,), batch_norm=True)
        flow.unused = torch.nn.Parameter(torch.ones(3))
        x = torch.randn(40, 2, generator=torch.Generator().manual_seed(1))
        fit(flow, x, epochs=2, batch_size=9, progress=False)
        return flow.state_dict()

    if __name__ == "__main__":
        folder, port = FOLDER, PORT
        # Forked: importing torch takes longer than the rest.
        torch.multiprocessing.start_processes(work, (folder, port), nprocs=2, start_method="fork")
        a, b = (torch.load(f"{folder}/{rank}.pt") for rank in (0, 1))
        assert a[:2] == b[:2] and all(torch.equal(a[2][k], b[2][k]) for k in a[2]), (a, b)
        assert all(torch.equal(a[3][k], b[3][k]) for k in a[3]), (a[3], b[3])
        run(folder, "one", 1)
        found, _ = run(folder, "one")
        alone = found.flow.state_dict()
        torch.testing.assert_close(torch.tensor(a[0] + a[1]), torch.tensor(found.train + found.validation))
        torch.testing.assert_close(a[2], alone, rtol=1e-6, atol=1e-8)
        print("equal")
"""


FOLLOWING = """
    import os, time
    import torch
    from flowkernels.training.ranks import ranks

    def work(rank, port):
        os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        for i in range(3):
            with ranks(torch.device("cpu")) as group:
                assert group.sum(torch.tensor(float(rank + i))) == 1 + 2 * i and group.from_first(rank) == 0
                time.sleep(0.5 * (rank == 0))  # the other is out, and back, before this one is out
        torch.distributed.init_process_group("gloo")  # and one of the caller's
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()

    if __name__ == "__main__":
        torch.multiprocessing.start_processes(work, (PORT,), nprocs=2, start_method="fork")
        print("equal")
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")
def test_groups_follow_each_other(tmp_path) -> None:
    """A rank that is quicker than the first does not join the group that is about to end."""
    done = python(FOLLOWING.replace("PORT,", f"{free_port()},"), tmp_path / "following.py", timeout=60)
    assert done.stdout.strip().endswith("equal"), done.stdout + done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")
def test_two_processes_are_one(tmp_path) -> None:
    """In float64, so that only what is wrong shows; batches of 23, of which the ranks have 12 and 11."""
    port = free_port()
    code = TRAINING.replace("FOLDER", repr(str(tmp_path))).replace("PORT)", f"{port})").replace(", PORT", f", {port}")
    done = python(code, tmp_path / "two.py", timeout=300)
    assert done.stdout.strip().endswith("equal"), done.stdout + done.stderr

"""Flows over two processes: the steps of one, sharded samples, and weights that one process loads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowkernels.distributed import shard
from flowkernels.flows import NSF

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
fsdp = pytest.importorskip("torch.distributed.fsdp")
pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not hasattr(fsdp, "fully_shard"), reason="this torch has no FSDP2"
)


def test_two_processes(tmp_path) -> None:
    import torch.distributed.checkpoint as dcp

    from tests.flows import distributed

    command = [sys.executable, "-m", "tests.flows.distributed", str(tmp_path)]
    processes = [
        subprocess.Popen(
            [*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=ENV
        )
        for rank in range(distributed.SIZE)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [p.returncode for p in processes] == [0, 0], "\n".join(outputs)
    for name in distributed.FLOWS:
        flow = distributed.build(name)
        state = flow.state_dict()
        dcp.load(state, checkpoint_id=str(tmp_path / name))  # of two processes, by one
        flow.load_state_dict(state)
        expected = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        torch.testing.assert_close(flow.state_dict(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_example_under_torchrun(tmp_path) -> None:
    """By DDP, and from its checkpoint on with sharded weights."""
    example = ROOT / "examples" / "many_machines.py"
    found = []
    for more in ([], ["--shard"]):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(example)]
        command += ["--steps", "100", "--checkpoint", str(tmp_path / "moons"), *more]
        run = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=240, check=False)
        assert run.returncode == 0, run.stderr[-5000:]
        found.append(float(re.findall(r"2 processes: (\S+) nats", run.stdout)[0]))
    assert -2.5 < found[0] < found[1]  # a normal of the same moments has -2.1 nats


def test_without_processes() -> None:
    with pytest.raises(RuntimeError, match=r"^distributed\.shard: .* must have been started, got no process group"):
        shard(NSF(2))

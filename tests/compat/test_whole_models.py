"""What is done to whole models, of every library, accelerated or not: copied, compiled, shared, distributed."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from flowkernels import compat
from flowkernels.compat.engine import patch
from tests.compat import whole_models
from tests.compat.parity import fuse_small_ones

pytest.importorskip("FrEIA", reason="FrEIA is not installed: see requirements/dev.txt")
pytest.importorskip("pyro", reason="Pyro is not installed: see requirements/dev.txt")

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
EVERY = pytest.mark.parametrize("name", whole_models.MODELS)


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch):
    fuse_small_ones(monkeypatch)


def pair(name):
    plain = whole_models.build(name)
    fast = copy.deepcopy(plain)
    assert compat.accelerate(fast).accelerated
    return plain, fast


def values_and_gradients(model, x):
    log_prob = model(x)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [log_prob.detach(), *torch.autograd.grad(log_prob.sum(), parameters, allow_unused=True)]


def assert_same(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@EVERY
def test_copies_states_and_dtypes(name):
    plain, fast = pair(name)
    x = whole_models.data()
    assert list(fast.state_dict()) == list(plain.state_dict())
    n = sum(map(patch.is_fast, fast.modules()))
    twin = copy.deepcopy(fast)
    assert sum(map(patch.is_fast, twin.modules())) == n
    assert_same(values_and_gradients(twin, x), values_and_gradients(plain, x))
    with torch.no_grad():
        for p in filter(torch.is_floating_point, plain.parameters()):  # FrEIA's permutations are parameters
            p.add_(0.01)
    fast.load_state_dict(plain.state_dict())
    assert_same(values_and_gradients(fast, x), values_and_gradients(plain, x))
    for model in (plain, fast):
        model.float()
    torch.testing.assert_close(fast(x.float()), plain(x.float()), rtol=1e-4, atol=1e-4)
    for model in (plain, fast):
        model.double()
    assert_same(values_and_gradients(fast, x), values_and_gradients(plain, x))
    assert twin(x).dtype == torch.float64


def compiled(model, x):
    """How many graphs a compiled model falls into, its values and gradients."""
    torch.compiler.reset()
    counter = CompileCounter()
    found = values_and_gradients(torch.compile(model, backend=counter), x)
    torch.compiler.reset()
    return counter.frame_count, found


_NEEDS_2_7 = pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 does not trace the keywords of a partial")


# Of nflows and of circular splines other files compile layers without a break.
@pytest.mark.parametrize(
    "name", ["glasflow", "normflows", pytest.param("zuko NSF", marks=_NEEDS_2_7), "zuko NCSF", "FrEIA"]
)
def test_compile(name):
    plain, fast = pair(name)
    x = whole_models.data()
    graphs, found = compiled(fast, x)
    assert 1 <= graphs <= compiled(plain, x)[0]
    assert_same(found, values_and_gradients(plain, x))


@pytest.mark.parametrize("name", [n for n in whole_models.MODELS if n != "Pyro"])  # its layers keep their last call
def test_threads(name):
    plain, fast = pair(name)
    wanted = values_and_gradients(plain, whole_models.data())
    failures = []

    def work():
        try:
            for _ in range(5):
                assert_same(values_and_gradients(fast, whole_models.data()), wanted)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_distributed_data_parallel(tmp_path):
    """Two processes, half of the rows each: the gradients are those of one process with all rows."""
    command = [sys.executable, "-m", "tests.compat.distributed", str(tmp_path / "store")]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    runs = [
        subprocess.Popen([*command, str(rank)], cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for rank in range(2)
    ]
    for run in runs:
        printed = run.communicate(timeout=240)[0].decode()
        assert run.returncode == 0, printed[-5000:]
        assert printed.split("done: ")[-1].strip() == ", ".join(whole_models.MODELS)


def test_the_first_call_of_all_may_be_a_trace():
    """In which sizes are tensors: normflows' couplings count the bins of the unconditional half by one."""
    nf = pytest.importorskip("normflows")
    model = nf.flows.CoupledRationalQuadraticSpline(4, 1, 16, num_bins=5)
    plain = copy.deepcopy(model)
    compat.accelerate(model)
    x = torch.randn(7, 4)
    traced = torch.jit.trace(model, x[:5], check_trace=False)
    for a, b in zip(traced(x), plain(x), strict=True):
        torch.testing.assert_close(a, b)

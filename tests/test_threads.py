"""Threads: torch's pool and its size, the GIL, several Python threads, fork and spawn."""

from __future__ import annotations

import os
import sys
import textwrap
import threading
import time

import pytest
import torch

from flowkernels import _native, ops
from tests import process
from tests.ops.spline import draw, run

pytestmark = pytest.mark.skipif(
    _native.C is None or not sys.platform.startswith("linux"),
    reason=f"counts threads through /proc on Linux, with the compiled module: {_native.why_missing or sys.platform}",
)

# Every script starts here. Filling tensors of this size would start torch's threads, so that
# happens under one.
PRELUDE = """
    import os, re, sys, time, threading
    import torch
    torch.set_num_threads(1)
    import flowkernels
    from flowkernels import ops
    x, p = torch.zeros(40_000, 3), torch.ones(40_000, 3, 23)
    q = p.clone().requires_grad_()
    ones = torch.ones(40_000, 3), torch.ones(40_000)

    def tasks():
        return len(os.listdir("/proc/self/task"))

    def call(n, grad=False):
        # Nothing but the op runs under n threads.
        torch.set_num_threads(n)
        try:
            out = ops.rqs(x, q if grad else p, bins=8)
            return torch.autograd.grad(out, q, ones) if grad else out
        finally:
            torch.set_num_threads(1)
"""


def python(code: str, timeout: float = 120, **env: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "MKL_"))}
    script = textwrap.dedent(PRELUDE) + textwrap.dedent(code)
    done = process.python(script, timeout=timeout, environment=environment, **env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_honours_set_num_threads() -> None:
    """One thread starts no other; n start n - 1."""
    out = python("""
        before = tasks()
        call(1)
        one = tasks() - before
        call(2)
        two = tasks() - before
        call(3)
        three = tasks() - before
        print(one, two, three)
    """)
    assert out.split() == ["0", "1", "2"]


def test_two_threads_share_the_work() -> None:
    """Both threads burn processor time of their own, not only one of them."""
    out = python("""
        def ticks():
            # user time of each thread, in clock ticks
            found = {}
            for t in os.listdir("/proc/self/task"):
                with open(f"/proc/self/task/{t}/stat") as f:
                    found[t] = int(f.read().rsplit(")", 1)[1].split()[11])
            return found

        # a passive pool: a worker that waits burns nothing, so that what it burns is work
        w, v = p.repeat(4, 1, 1), x.repeat(4, 1)
        torch.set_num_threads(2)
        ops.rqs(v, w, bins=8)
        start = ticks()
        end = time.monotonic() + 30
        while time.monotonic() < end:
            ops.rqs(v, w, bins=8)
            spent = sorted((n - start.get(t, 0) for t, n in ticks().items()), reverse=True)
            if spent[0] >= 60:
                break
        print(*spent[:2])
    """, OMP_WAIT_POLICY="passive")  # fmt: skip
    most, second = map(int, out.split())
    assert most >= 60 and second >= most / 2, f"clock ticks of the two busiest threads: {most}, {second}"


def test_shares_the_pool_of_torch() -> None:
    """Two OpenMP runtimes would spin against each other: 250 times slower."""
    out = python("""
        call(2)
        after_ours = tasks()
        torch.set_num_threads(2)
        torch.ones(2_000_000).exp_().sum()
        libraries = set(re.findall(r"\\S*lib(?:gomp|iomp5|omp)[-.\\w]*", open("/proc/self/maps").read()))
        print(tasks() - after_ours, len(libraries), *libraries)
    """)
    new, runtimes, *names = out.split()
    assert runtimes == "1", names
    assert new == "0", "torch started a pool of its own after ours"


def test_finds_an_openmp_of_another_name(tmp_path) -> None:
    """As wheels of torch for ARM have one, in a folder beside the package."""
    renamed = tmp_path / "torch.libs" / "libgomp-0123abcd.so.1.0.0"
    renamed.parent.mkdir()
    out = python(f"""
        import pathlib, shutil
        from flowkernels import _native
        path, = set(re.findall(r"\\S*/libgomp[-.\\w]*", open("/proc/self/maps").read()))
        shutil.copy(path, {str(renamed)!r})
        print(*_native.share_threads(pathlib.Path({str(tmp_path / "torch")!r})))
        assert {str(renamed)!r} in open("/proc/self/maps").read()
    """)
    assert out.split() == [str(renamed)]


def test_releases_the_gil() -> None:
    """Another Python thread keeps running while a kernel does."""
    x, params = torch.zeros(400_000, 3), torch.ones(1, 3, 23).expand(400_000, 3, 23)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    ticks, stop, started = [], threading.Event(), threading.Event()

    def tick() -> None:
        started.set()
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(1e-3)

    thread = threading.Thread(target=tick)
    thread.start()
    started.wait()
    try:
        inside, start, end = 0, 0.0, 0.0
        for _ in range(5):
            start = time.perf_counter()
            ops.rqs(x, params, bins=8)
            end = time.perf_counter()
            # away from both ends, where Python holds the lock for a moment anyway
            margin = (end - start) / 10
            inside += sum(start + margin < t < end - margin for t in list(ticks))
    finally:
        stop.set()
        thread.join()
        torch.set_num_threads(before)
    assert inside >= 5, f"{inside} steps of another thread during five calls of {end - start:.3f} s"


@pytest.mark.parametrize("n_threads", [1, 2])
def test_called_from_several_python_threads(n_threads, threads) -> None:
    threads(n_threads)
    cases = [draw((3001, 2), bins=8, seed=i) for i in range(6)]
    expected = [run(x, p, bins=8) for x, p in cases]
    wrong: list[int] = []

    def work(i: int) -> None:
        torch.set_num_threads(n_threads)
        for j in range(20):
            k = (i + j) % len(cases)
            if not run(*cases[k], bins=8).same_bits(expected[k]):
                wrong.append(k)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(timeout=120)
    assert not any(w.is_alive() for w in workers), "a thread hangs"
    assert not wrong


def test_a_new_python_thread_honours_the_count() -> None:
    """A new thread has an OpenMP default of its own: the count goes along with every call."""
    out = python("""
        counts = []
        def work():
            before = tasks()
            ops.rqs(x, p, bins=8)
            counts.append(tasks() - before)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        print(*counts)
    """)
    assert out.split() == ["0"]


def test_after_fork() -> None:
    """A forked child has the pool's memory without its threads: a parallel region would wait for
    ever. torch itself hangs there with more than one thread; the op must not."""
    out = python("""
        expected = *call(2), *call(2, grad=True)
        child = os.fork()
        if child == 0:
            found = *call(2), *call(2, grad=True)
            ok = all(torch.equal(a, b) for a, b in zip(found, expected))
            grandchild = os.fork()
            if grandchild == 0:
                call(2)
                os._exit(0)
            os._exit(0 if ok and os.waitpid(grandchild, 0)[1] == 0 else 1)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                break
            time.sleep(0.02)
        else:
            os.kill(child, 9)
            os.waitpid(child, 0)
            raise SystemExit("the child hangs")
        assert status == 0, status
        before = tasks()
        call(2)  # the parent goes on in parallel
        print("done", tasks() - before)
    """)
    assert out.split()[0] == "done"


class Transformed(torch.utils.data.Dataset):
    """A dataset that runs the op in its workers."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, p = draw((2000, 2), bins=8, seed=i)
        return ops.rqs(x, p, bins=8)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_in_the_workers_of_a_data_loader(method, threads) -> None:
    threads(2)
    data = Transformed()
    expected = [data[i] for i in range(len(data))]  # a parallel region before the fork
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=2, multiprocessing_context=method, timeout=90
    )
    for found, truth in zip(loader, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, truth, strict=True))

"""Options and fixtures of every test: device, dtype, machine, instruction set, poisoned memory."""

from __future__ import annotations

import contextlib
import importlib
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from flowkernels import backends
from flowkernels.ops import _triton
from flowkernels.ops.net import blocks
from tests import device as place
from tests import emulator
from tests.isa import running

_C: Any = importlib.import_module("flowkernels._native").C
deterministic: Any = torch.utils.deterministic
collect_ignore = ["install/smoke.py"]  # which runs where the package is installed
DTYPES = ("float32", "float64", "bfloat16", "float16")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the tensors under test, e.g. cuda")
    parser.addoption("--dtype", choices=DTYPES, help="test this dtype only")
    parser.addoption("--one-in", type=int, default=1, help="run one test in so many, chosen by name")
    parser.addoption("--ran", type=Path, help="a file of tests that ran, to leave out and to add to")


def pytest_configure(config: pytest.Config) -> None:
    place.UNDER_TEST = torch.device(str(config.getoption("--device")))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _keep_interpreted_cases(config, items)
    for item in items:
        _thin_out(item)
    ran = config.getoption("--ran")
    if ran is not None and ran.exists():
        names = set(ran.read_text().splitlines())
        config.hook.pytest_deselected(items=[i for i in items if i.nodeid in names])
        items[:] = [i for i in items if i.nodeid not in names]
    config.hook.pytest_deselected(items=[i for i in items if not _is_one_in(config.getoption("--one-in"), i)])
    items[:] = [i for i in items if _is_one_in(config.getoption("--one-in"), i)]


def _keep_interpreted_cases(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a test that is marked as interpreted in some cases, takes the mark off the others."""
    unknown: dict[str, set[str]] = {}
    for item in items:
        mark = item.get_closest_marker("interpreted")
        if mark is None or not mark.args:
            continue
        case = item.callspec.id  # type: ignore[attr-defined]
        unknown.setdefault(item.nodeid.partition("[")[0], set(mark.args)).discard(case)
        if case not in mark.args:
            item.own_markers = [m for m in item.own_markers if m.name != "interpreted"]
    stale = {test: cases for test, cases in unknown.items() if cases}
    if stale and config.option.markexpr == "interpreted" and not any("::" in a for a in config.args):
        raise pytest.UsageError(f"marked as interpreted, but no cases of these tests: {stale}")


def _is_one_in(n: int, item: pytest.Item) -> bool:
    """By its name, so that no parameter goes with the choice, and a new case changes no other's."""
    return zlib.crc32(item.name.encode()) % n == 0


def _thin_out(item: pytest.Item) -> None:
    """Of a test that is marked as thinned(n), one case in n keeps out of `slow`."""
    mark = item.get_closest_marker("thinned")
    if mark is not None and not _is_one_in(mark.args[0], item):
        item.add_marker(pytest.mark.slow)


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """A kernel that broke the GPU's context fails the test that launched it, and ends the run, as all that came after
    would fail too; with `--ran` another process goes on."""
    ran = item.config.getoption("--ran")
    if ran is not None:
        with ran.open("a") as to:
            to.write(item.nodeid + "\n")
    if place.UNDER_TEST.type == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            item.session.shouldstop = f"the GPU's context is lost: {error!s:.200}"
            raise


def _skipped(dtype: str) -> pytest.MarkDecorator | None:
    """Triton's interpreter truncates where a GPU rounds, and multiplies bfloat16 wrongly."""
    if dtype == "bfloat16" and _triton.INTERPRETING:
        return pytest.mark.skip(reason="bfloat16 is wrong in Triton's interpreter")
    return None


def _isas(config: pytest.Config, module: object) -> list[str]:
    """Every instruction set this processor has; one dummy where the CPU kernels do not run. And "emulated", CUDA's
    kernels on CPU tensors, in modules of tests that say EMULATED."""
    if _C is None or config.getoption("--device") != "cpu" or backends.default() not in ("auto", "cpu"):
        return ["default"]
    return list(_C.isas()) + ["emulated"] * getattr(module, "EMULATED", False)


def _machines(config: pytest.Config) -> list[str]:
    """The CPU and, with its threads as fibers, the GPU; or the GPU itself; none where FLOWKERNELS_BACKEND chooses."""
    if backends.default() not in ("auto", "cpu"):
        return []
    return ["cpu", "emulated"] if config.getoption("--device") == "cpu" else ["cuda"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    isas = [(isa,) for isa in _isas(metafunc.config, metafunc.module)] if "isa" in metafunc.fixturenames else [()]
    machines = _machines(metafunc.config) if "machine" in metafunc.fixturenames else []
    if machines:
        names = ["machine", "isa"][: 1 + len(isas[0])]
        cells = [(m, *isa) for m in machines for isa in (isas if m == "cpu" else [("default",) * len(isas[0])])]
        metafunc.parametrize(names, cells, indirect=True, ids=["-".join(c) for c in cells])
    elif isas[0]:
        metafunc.parametrize("isa", [isa for (isa,) in isas], indirect=True)
    if "dtype" in metafunc.fixturenames:
        only = metafunc.config.getoption("--dtype")
        names = [only] if only else DTYPES
        marks = [[m] if (m := _skipped(n)) else [] for n in names]
        dtypes = [pytest.param(getattr(torch, n), marks=m, id=n) for n, m in zip(names, marks, strict=True)]
        metafunc.parametrize("dtype", dtypes)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(str(request.config.getoption("--device")))


@pytest.fixture
def on_device() -> Iterator[None]:
    """Tensors are made on the device under test."""
    if place.UNDER_TEST.type == "cpu":
        yield
    else:
        torch.set_default_device(place.UNDER_TEST)
        yield
        torch.set_default_device(None)


@pytest.fixture
def kernels(on_device) -> Iterator[None]:
    """All that `backends_of` names can run: CUDA's kernels on the CPU in the emulator."""
    emulated = place.UNDER_TEST.type == "cpu" and backends.default() in ("auto", "cpu")
    with emulator.available() if emulated else contextlib.nullcontext():
        yield


@pytest.fixture
def machine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per machine that has kernels: "cpu", "emulated" (CUDA's, on CPU tensors), "cuda"."""
    name = getattr(request, "param", backends.default())
    if name == "emulated":
        with emulator.running():
            yield name
    else:
        request.getfixturevalue("on_device")  # CUDA's kernels, or Triton's
        yield name


@pytest.fixture
def cuda_on_cpu() -> Iterator[emulator.Emulated]:
    """Backend "cuda", where a call names it, runs on CPU tensors: in the emulator."""
    with emulator.available() as found:
        yield found


@pytest.fixture
def narrow_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masked products on a GPU are cut into blocks however small they are."""
    for name, size in (("WAVE", 1), ("WIDTH", 8), ("MULTIPLE", 4)):
        monkeypatch.setattr(blocks, name, size)


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per instruction set."""
    with running(request.param):
        yield request.param


@pytest.fixture
def all_isas(request: pytest.FixtureRequest) -> Iterator[object]:
    """An iterable of instruction sets, each in use while the loop is on it: for tests whose
    float64 truth is dear and the same for all."""
    machine = request.getfixturevalue("machine") if "machine" in request.fixturenames else "cpu"
    names = _isas(request.config, request.module) if machine == "cpu" else ["default"]

    def each() -> Generator[str, None, None]:
        for name in names:
            with running(name):
                yield name

    found = each()
    yield found
    found.close()  # a test that failed half way


@pytest.fixture
def poison() -> Iterator[None]:
    """torch.empty gives NaN (integers: the largest), so that an output nobody wrote is seen."""
    on, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(on, warn_only=warn)
    deterministic.fill_uninitialized_memory = fill


@pytest.fixture
def threads() -> Iterator[object]:
    """torch.set_num_threads, put back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads) -> None:
    """For small tensors: torch's own threads cost more than they give, most of all on a busy machine."""
    threads(1)

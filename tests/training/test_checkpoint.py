"""Exact resume: whatever stops a training, the same call ends with the same bits."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from flowkernels.flows import NSF
from flowkernels.training import Epoch, Fit, fit
from flowkernels.transforms import ActNorm, Composite
from tests.process import python

safetensors = pytest.importorskip("safetensors")

pytestmark = pytest.mark.usefixtures("one_thread")
EPOCHS = 6


def model(seed: int = 0) -> NSF:
    """With dropout, running numbers and a layer that the first batch sets."""
    torch.manual_seed(seed)
    flow = NSF(2, 1, transforms=2, bins=4, hidden=(8,), dropout=0.1, batch_norm=True)
    flow.transform = Composite([ActNorm(2), *flow.transform])
    return flow


def data() -> tuple[torch.Tensor, torch.Tensor]:
    x = 3 + torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    return x[:, :2], x[:, 2:]


def run(checkpoint: Path | str | None, seed: int = 0, epochs: int = EPOCHS, **settings: Any) -> Fit:
    settings = {"batch_size": 50, "lr": 0.02, "standardise": True, "progress": False, **settings}
    return fit(model(seed), *data(), epochs=epochs, checkpoint=checkpoint, **settings)


def assert_same(found: Fit, expected: Fit) -> None:
    assert (found.train, found.validation, found.best_epoch) == (
        expected.train,
        expected.validation,
        expected.best_epoch,
    )
    a, b = found.flow.state_dict(), expected.flow.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def uninterrupted() -> Fit:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = run(None)
    torch.set_num_threads(before)
    return found


# Children of one process, as importing torch takes longest. Each ends by SIGKILL: in the middle of a step, and around
# each act of writing a file, which is when half a file would be left behind.
KILLED = """
    import os, signal, sys, threading
    import torch
    torch.set_num_threads(1)
    from torch import nn
    from tests.training.test_checkpoint import run

    folder, delays = sys.argv[1], [float(d) for d in sys.argv[2:]]
    die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

    def at_call(n, real, after):
        calls = []
        def call(*args):
            calls.append(args)
            if len(calls) == n and not after:
                die()
            result = real(*args)
            if len(calls) == n:
                die()
            return result
        return call

    def child(how):
        if how < len(delays):  # of the clock: anywhere
            threading.Timer(delays[how], die).start()
        elif how == len(delays):  # before a whole temporary file gets its name
            os.replace = at_call(3, os.replace, False)
        elif how == len(delays) + 1:  # right after
            os.replace = at_call(4, os.replace, True)
        elif how == len(delays) + 2:  # the content is not on the disk yet
            os.fsync = at_call(5, os.fsync, False)
        else:  # in the middle of a step
            nn.utils.clip_grad_norm_ = at_call(10, nn.utils.clip_grad_norm_, False)
        run(f"{folder}/{how}.safetensors", epochs=6 if how >= len(delays) else 1000, patience=None)

    for how in range(len(delays) + 4):
        pid = os.fork()
        if pid == 0:
            child(how)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
def test_killed_at_any_moment(tmp_path, uninterrupted) -> None:
    delays = [random.uniform(0.05, 0.6) for _ in range(2)]
    code = KILLED.replace("sys.argv[1]", repr(str(tmp_path))).replace("sys.argv[2:]", repr(delays))
    done = python(code, timeout=300, OMP_NUM_THREADS="1")
    assert done.stdout.split() == ["-9"] * 6, (delays, done.stdout, done.stderr)
    losing = {2: 1, 3: 3, 4: 1, 5: 2}  # how many epochs each had on disk, of the children whose end is exact
    for how, epochs in losing.items():
        path = tmp_path / f"{how}.safetensors"
        assert epochs_in(path) == epochs
        assert_same(run(path, seed=how, patience=None), uninterrupted)  # whatever weights it would begin with
    for how, delay in enumerate(delays):
        path = tmp_path / f"{how}.safetensors"
        stop = epochs_in(path) + 2
        print(f"killed after {delay:.3f} s, {stop - 2} epochs on disk")
        assert_same(first_epochs(path, stop), first_epochs(None, stop))


def first_epochs(path: Path | None, stop: int) -> Fit:
    """Of a training of a thousand, which the clock kills."""

    def until(epoch: Epoch) -> None:
        if epoch.epoch == stop:
            raise KeyboardInterrupt

    return run(path, epochs=1000, patience=None, progress=until)


def epochs_in(path: Path) -> int:
    return len(about(path)["train"]) if path.exists() else 0


def about(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, "pt") as file:
        return json.loads(file.metadata()["flowkernels.training"])


def test_a_file_changes_nothing_and_a_finished_training_only_says_what_it_found(tmp_path, uninterrupted) -> None:
    path = tmp_path / "run.safetensors"
    assert_same(run(path), uninterrupted)
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]
    written = path.stat().st_mtime_ns
    again = run(path, seed=1)
    assert_same(again, uninterrupted)
    assert again.stopped == "epochs" and again.seconds == about(path)["seconds"] and path.stat().st_mtime_ns == written


def test_it_stops_for_the_same_reason_after_a_resume(tmp_path) -> None:
    path, settings = tmp_path / "run.safetensors", {"epochs": 200, "schedule": None, "lr": 0.2}
    whole = run(None, patience=4, **settings)
    assert whole.stopped == "patience"
    run(path, patience=2, **settings)
    rest = run(path, patience=4, **settings)  # the best weights are older than the last ones
    assert_same(rest, whole)
    assert rest.stopped == "patience"


def test_more_epochs_at_a_constant_rate_are_a_longer_training(tmp_path) -> None:
    path = tmp_path / "run.safetensors"
    for epochs in (2, 5):
        found = run(path, epochs=epochs, schedule=None)
    assert_same(found, run(None, epochs=5, schedule=None))


def test_anew(tmp_path) -> None:
    path = tmp_path / "run.safetensors"
    run(path, epochs=2, lr=0.5)
    assert_same(run(path, epochs=2, resume=False), run(None, epochs=2))
    assert about(path)["settings"]["lr"] == 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.01}, "lr must be 0.02 to go on from .*, got 0.01"),
        ({"batch_size": 10}, "batch_size must be 50 "),
        ({"clip": None}, "clip must be 5.0 to go on from .*, got None"),
        ({"schedule": None}, "schedule must be 'cosine' "),
        ({"weight_decay": 1}, "weight_decay must be 0.0 "),
        ({"validation": 0.2}, "rows must be "),
        ({"standardise": False}, "standardise must be True to go on from .*, got False"),
    ],
)
def test_another_training_is_refused(tmp_path, settings, message) -> None:
    path = tmp_path / "run.safetensors"
    run(path, epochs=1)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"training.fit: " + message):
        run(path, epochs=2, **settings)
    assert path.read_bytes() == before


def test_other_files_and_other_flows_are_refused(tmp_path) -> None:
    path = tmp_path / "run.safetensors"
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"training.fit: path must be a whole safetensors file"):
        run(path)
    model().save(path)
    with pytest.raises(ValueError, match=r"training.fit: checkpoint must be a file of training.fit in format 1, got"):
        run(path)
    run(path, epochs=1, resume=False)
    other = NSF(2, 1, transforms=2, bins=4, hidden=(9,))
    settings = {"batch_size": 50, "lr": 0.02, "standardise": True, "progress": False}
    with pytest.raises(
        ValueError, match=r"training.fit: the tensors of .*run.safetensors' must be the \d+ of the flow"
    ):
        fit(other, *data(), epochs=2, checkpoint=path, **settings)
    x, context = data()
    with pytest.raises(ValueError, match=r"training.fit: rows must be"):
        fit(model(), x + 1, context, epochs=2, checkpoint=path, **settings)


def test_without_safetensors(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"training.fit: safetensors must be installed, got .*flowkernels\[io\]"):
        run(tmp_path / "run.safetensors", epochs=1)


def test_a_checkpoint_that_cannot_be_written_leaves_the_best_weights(tmp_path, monkeypatch) -> None:
    """The disk is full after the second epoch; the error is the system's."""
    calls = []

    def full(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        replace(*args)

    replace = os.replace
    monkeypatch.setattr(os, "replace", full)
    path = tmp_path / "run.safetensors"
    with pytest.raises(OSError, match=r"No space left"):
        run(path)
    assert epochs_in(path) == 1 and [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]
    assert_same(run(path), run(None))

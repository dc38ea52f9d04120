"""The NICE example: its number is what it says, and stopping it loses nothing."""

from __future__ import annotations

import argparse
import gzip
import json
import math
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from flowkernels.flows import NICE

from .examples import idx, load, write_mnist

for name in ("matplotlib", "rich", "safetensors"):
    pytest.importorskip(name)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def nice() -> ModuleType:
    return load("nice_mnist")


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    write_mnist(tmp_path / "digits")
    return tmp_path / "digits"


def arguments(digits: Path, out: Path, epochs: int, *more: str) -> list[str]:
    small = ["--batch", "20", "--hidden", "16", "16", "--threads", "1", "--inpaint-steps", "3"]
    return ["--data", str(digits), "--out", str(out), "--epochs", str(epochs), *small, *more]


def content(out: Path) -> tuple[dict[str, torch.Tensor], list[list[float]]]:
    """Tensors, and the curve without its times."""
    from safetensors import safe_open

    with safe_open(out / "nice_mnist.safetensors", "pt") as file:
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  (not a dict)
        return tensors, [point[:4] for point in json.loads(file.metadata()["curve"])]


def assert_same(a: Path, b: Path) -> None:
    (tensors, curve), (other, other_curve) = content(a), content(b)
    assert curve == other_curve
    assert tensors.keys() == other.keys()
    assert all(torch.equal(t, other[k]) for k, t in tensors.items())


def test_the_number_is_what_the_text_says(nice, digits, tmp_path, capsys):
    out = tmp_path / "made" / "here"
    nice.main(arguments(digits, out, 6))
    said = capsys.readouterr().out
    assert "x = (k + u)/256 in [0, 1]^48" in said
    assert sorted(p.name for p in out.iterdir()) == [  # and no part of a checkpoint
        "nice_mnist.safetensors", "nice_mnist_curve.png", "nice_mnist_in-painting.png",
        "nice_mnist_interpolation.png", "nice_mnist_samples.png",
    ]  # fmt: skip
    tensors, curve = content(out)
    assert [point[0] for point in curve] == list(range(7))
    assert curve[-1][2] > curve[0][2]  # it learns
    flow = NICE(48, hidden=(16, 16))
    flow.load_state_dict({k.removeprefix("flow."): t for k, t in tensors.items() if k.startswith("flow.")})
    pixels, _ = nice.read_mnist(digits, "t10k")
    u = torch.rand(20, 48, generator=torch.Generator().manual_seed(nice.TEST_SEED))
    z = flow.double().encode(((pixels.flatten(1) + u) / 256).double())
    log_p = (-z - 2 * torch.log1p(torch.exp(-z))).sum(1) + tensors["flow.transform.transforms.4.log_scale"].sum()
    assert curve[-1][2] == pytest.approx(log_p.mean().item(), rel=1e-5)  # float32 there, float64 here
    assert curve[-1][3] == pytest.approx(log_p.std().item() / math.sqrt(20), rel=1e-3)
    assert f"epoch    6: test {curve[-1][2]:8.2f} ± {curve[-1][3]:.2f} nats" in said


def test_a_resumed_run_is_the_unbroken_one(nice, digits, tmp_path, capsys):
    nice.main(arguments(digits, tmp_path / "whole", 4))
    nice.main(arguments(digits, tmp_path / "parts", 2))
    nice.main(arguments(digits, tmp_path / "parts", 4))
    assert "going on from" in capsys.readouterr().out
    assert_same(tmp_path / "whole", tmp_path / "parts")
    nice.main(arguments(digits, tmp_path / "other", 4, "--seed", "1"))
    assert content(tmp_path / "whole")[1] != content(tmp_path / "other")[1]


def test_an_interrupted_run_is_the_unbroken_one(nice, digits, tmp_path, capsys, monkeypatch):
    nice.main(arguments(digits, tmp_path / "whole", 4))
    dequantise, draw, calls, drawn = nice.dequantise, nice.draw, [], []

    def pressed(pixels, noise):
        calls.append(0)
        if len(calls) == 11:  # test digits; twice three steps and test digits; one step and a bit of epoch 3
            raise KeyboardInterrupt
        return dequantise(pixels, noise)

    with monkeypatch.context() as patched:
        patched.setattr(nice, "dequantise", pressed)
        patched.setattr(nice, "draw", lambda run, *rest: (drawn.append(run), draw(run, *rest)))
        nice.main(arguments(digits, tmp_path / "parts", 4))
    assert "interrupted: epoch 2 is kept" in capsys.readouterr().out
    tensors, curve = content(tmp_path / "parts")
    assert len(curve) == len(drawn[0].curve) == 3
    assert all(torch.equal(t, tensors[f"flow.{k}"]) for k, t in drawn[0].flow.state_dict().items())
    assert (tmp_path / "parts" / "nice_mnist_samples.png").stat().st_size > 0
    nice.main(arguments(digits, tmp_path / "parts", 4))
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_noise_is_new_every_epoch_and_the_same_for_the_test_digits(nice, digits, tmp_path, monkeypatch):
    dequantise, seen = nice.dequantise, {True: [], False: []}

    def seeing(pixels, noise):
        x = dequantise(pixels, noise)
        testing = noise.initial_seed() == nice.TEST_SEED
        seen[testing].append((x * 256 - pixels).sum().item())
        return x

    monkeypatch.setattr(nice, "dequantise", seeing)
    monkeypatch.setattr(nice, "draw", lambda *rest: None)
    nice.main(arguments(digits, tmp_path, 3))
    assert len(seen[False]) == len(set(seen[False])) == 9  # three steps in each of three epochs
    assert len(seen[True]) == 4
    assert len(set(seen[True])) == 1


@pytest.mark.parametrize("at", ["tensors", "name"])
def test_a_failed_write_leaves_the_old_checkpoint(nice, digits, tmp_path, capsys, monkeypatch, at):
    out = tmp_path / "out"
    nice.main(arguments(digits, out, 1))
    before = (out / "nice_mnist.safetensors").read_bytes()

    def half(tensors, path, metadata):
        Path(path).write_bytes(before[: len(before) // 2])
        raise OSError("no space left")

    def no_rename(*paths):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        if at == "tensors":
            patched.setitem(nice.save.__globals__, "save_file", half)
        else:
            patched.setattr(nice.save.__globals__["os"], "replace", no_rename)
        with pytest.raises(SystemExit) as stopped:
            nice.main(arguments(digits, out, 3))
    assert stopped.value.code == 1
    assert "no space left" in capsys.readouterr().err
    assert (out / "nice_mnist.safetensors").read_bytes() == before
    assert [p.name for p in out.iterdir() if p.suffix != ".png"] == ["nice_mnist.safetensors"]
    nice.main(arguments(digits, out, 3))
    nice.main(arguments(digits, tmp_path / "whole", 3))
    assert_same(tmp_path / "whole", out)


def test_minutes_end_a_run_between_epochs(nice, digits, tmp_path):
    for epochs in (1, 2):  # every run gets one epoch further, the first one after the untrained model
        nice.main(arguments(digits, tmp_path / "out", 9, "--minutes", "1e-9"))
        assert len(content(tmp_path / "out")[1]) == epochs


def test_what_is_no_number_ends_the_run(nice, digits, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        nice.main(arguments(digits, tmp_path / "out", 9, "--learning-rate", "1e30"))
    assert stopped.value.code == 1
    assert "epoch 1: the log-likelihood must be a number, got nan; epoch 0 is kept" in capsys.readouterr().err
    assert len(content(tmp_path / "out")[1]) == 1


def test_other_settings_do_not_go_on(nice, digits, tmp_path, capsys):
    nice.main(arguments(digits, tmp_path, 1))
    for more, message in (
        (("--batch", "10"), "batch must be 20, as when it was written, got 10"),
        (("--seed", "3"), "seed must be 0, as when it was written, got 3"),
        (("--hidden", "8"), "hidden must be [16, 16], as when it was written, got [8]"),
    ):
        with pytest.raises(SystemExit):
            nice.main(arguments(digits, tmp_path, 2, *more))
        assert message in capsys.readouterr().err
    (tmp_path / "nice_mnist.safetensors").write_bytes(b"something else")
    with pytest.raises(SystemExit) as stopped:
        nice.main(arguments(digits, tmp_path, 2))
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        ("train-images-idx3-ubyte", None, "must hold train-images-idx3-ubyte or train-images-idx3-ubyte.gz, got neit"),
        ("train-images-idx3-ubyte", b"", "must be an IDX file of bytes, got '' as its first bytes"),
        ("train-images-idx3-ubyte", bytes([0, 0, 13, 1]), "must be an IDX file of bytes, got '00000d01'"),
        ("train-images-idx3-ubyte", idx(torch.zeros(60, 8, 6).numpy())[:-1], "must be 16 + 2880 bytes"),
        ("train-images-idx3-ubyte", idx(torch.zeros(60, 8).numpy()), "train must be images [N, H, W] and labels [N]"),
        ("t10k-images-idx3-ubyte", idx(torch.zeros(20, 8, 7).numpy()), "test must be images [8, 6], got [8, 7]"),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(bytes(90), mtime=0)[:-9], "must be a whole gzip file"),
        ("t10k-labels-idx1-ubyte.gz", b"not packed", "Not a gzipped file"),
    ],
)
def test_bad_files(nice, digits, tmp_path, capsys, file, data, message):
    (digits / file).unlink()
    if data is not None:
        (digits / file).write_bytes(data)
    with pytest.raises(SystemExit) as stopped:
        nice.main(arguments(digits, tmp_path, 1))
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_mnist_files(nice, digits):
    images, labels = nice.read_mnist(digits, "t10k")
    assert (images.shape, images.dtype) == ((20, 8, 6), torch.uint8)
    assert labels.tolist() == [i % 10 for i in range(20)]
    bright = images > 100
    assert bright[4, 1:5, 1:4].all()  # class 4
    assert bright[4].sum() == 12


def test_masks(nice):
    known = nice.masks(28, 28, torch.Generator().manual_seed(0))
    hidden = {name: ~k for name, k in zip(nice.MASKS, known, strict=True)}
    assert known.shape == (10, 28, 28)
    for a, b in (("top rows", "bottom rows"), ("odd pixels", "even pixels"), ("left side", "right side")):
        assert torch.equal(hidden[a], ~hidden[b])
    assert hidden["top rows"][:14].all()
    assert hidden["left side"][:, :14].all()
    assert hidden["odd pixels"][0].tolist() == [False, True] * 14
    assert torch.equal(hidden["middle, vertical"], hidden["middle, horizontal"].T)
    assert hidden["middle, vertical"][:, 7:21].all()
    assert hidden["middle, vertical"].sum() == 28 * 14
    for share, name in ((0.75, "75% random"), (0.9, "90% random")):
        assert hidden[name].float().mean().item() == pytest.approx(share, abs=4 * math.sqrt(0.25 * 0.75 / 784))


def test_in_painting_climbs_steep_slopes(nice, digits, tmp_path, capsys):
    """A step of the paper's length throws pixels from one bound to the other, where the density is lowest."""
    parsed = {"data": digits, "seed": 0, "transforms": 4, "hidden": [8], "learning_rate": 1e-3, "inpaint_steps": 200}
    args = argparse.Namespace(**parsed)
    data = nice.read(digits, torch.device("cpu"))
    run = nice.new_run(data, args)
    *_, a, b, scale = run.flow.transform.transforms
    with torch.no_grad():
        for coupling in (a, b):
            coupling.conditioner.start_at(torch.full((24,), -0.5))
        scale.log_scale.fill_(5.5)  # the likeliest pixel is 1/2, give or take a hundredth
    nice.draw_in_painting(tmp_path / "in-painting.png", run, data, args, nice.Console(width=200))
    said = capsys.readouterr().out
    start, filled = (int(n) for n in re.findall(r"(-?\d+) (?:at the start|filled in)", said))
    assert filled > start
    assert (tmp_path / "in-painting.png").stat().st_size > 0


def test_sheet(nice):
    images = torch.stack([torch.full((2, 3), v) for v in (0.0, 0.25, 2.0)])
    expected = [
        [1, 1, 1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 0.75, 0.75, 0.75, 1],
        [1, 1, 1, 1, 1, 0.75, 0.75, 0.75, 1],
        [1, 1, 1, 1, 1, 1, 1, 1, 1],
        [1, 0, 0, 0, 1, 1, 1, 1, 1],
        [1, 0, 0, 0, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 1, 1, 1],
    ]
    assert nice.sheet(images, 2).tolist() == expected

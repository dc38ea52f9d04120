"""The Glow example runs, and its numbers and pictures are what they say."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

from .examples import load, write_mnist

for name in ("matplotlib", "rich", "safetensors", "sklearn"):
    pytest.importorskip(name)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def glow() -> ModuleType:
    return load("glow_digits")


class Small:
    steps, hidden, additive = 2, 8, False


def test_small_digits(glow, tmp_path, capsys):
    glow.main(["--quick", "--threads", "1", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert "128 training digits, 25 test digits of 1 x 8 x 8" in said
    for model in glow.MODELS:
        assert f"{model}, seed 1: " in said
    names = ["glow_digits_ablation.png", "glow_digits_temperatures.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_mnist_is_padded(glow, tmp_path, capsys):
    write_mnist(tmp_path / "digits")
    out = tmp_path / "out"
    glow.main(["--quick", "--data", str(tmp_path / "digits"), "--models", "Glow, 1x1", "--out", str(out)])
    assert "MNIST: 60 training digits, 20 test digits of 1 x 32 x 32, 256" in capsys.readouterr().out
    assert len(list(out.iterdir())) == 2
    images = torch.full((2, 28, 28), 9, dtype=torch.uint8)
    padded = glow.padded(images)
    assert (padded.shape, padded.dtype) == ((2, 1, 32, 32), torch.uint8)
    assert (padded[:, 0, 2:30, 2:30] == 9).all()
    assert padded.sum() == images.sum()


def test_the_split(glow):
    """Every digit once."""
    digits = glow.small_digits()
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    together = sorted(torch.cat((digits.train, digits.test)).flatten(1).tolist())
    assert together == sorted(glow.load_digits().data.tolist())
    assert digits.train.max() == digits.levels - 1


@pytest.mark.parametrize("model", ["Glow, 1x1", "RealNVP"])
def test_the_number_is_what_the_text_says(glow, model):
    digits = glow.small_digits()
    flow = glow.new_flow(model, digits, 0, Small)
    flow.log_prob(digits.train[:64])  # sets the actnorms
    images = digits.test[:600]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    bits = glow.test_bits(flow, images)
    assert torch.equal(torch.get_rng_state(), before)  # training goes on as if nobody had looked
    assert bits == glow.test_bits(flow, images)
    assert flow.training
    torch.manual_seed(glow.TEST_SEED)
    x = (images + torch.rand(images.shape)) / 17
    layers = list(flow.eval().transform.transforms)[1:]  # those behind the dequantisation
    z, log_p = x, torch.zeros(len(x), dtype=torch.float64)
    for layer in layers:
        z, ladj = layer(z)
        log_p += ladj
    log_p += flow.base.log_prob(z) - 64 * math.log(17)
    assert bits == pytest.approx((-log_p / (64 * math.log(2))).mean().item(), rel=1e-5)


def test_seeds_give_the_same_models_again(glow):
    digits = glow.small_digits()
    for model in glow.MODELS:
        a, b, c = (glow.new_flow(model, digits, seed, Small).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(a[k], b[k]) for k in a)
        if model != "Glow, reverse":  # whose layers start at zero but for the hidden ones of the networks
            assert any(not torch.equal(a[k], c[k]) for k in a)


def test_additive_couplings_keep_volumes(glow):
    digits = glow.small_digits()
    x = torch.rand(64, 1, 8, 8)
    for additive in (True, False):
        args = type("Args", (Small,), {"additive": additive})
        flow = glow.new_flow("Glow, 1x1", digits, 0, args)
        with torch.no_grad():
            for p in flow.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
            steps = list(flow.transform.transforms)[2].levels[-1]  # the last level has no prior behind it
            ladj = steps(torch.randn(64, 2, 4, 4))[1]
        assert (ladj.std() < 1e-4 * ladj.abs().mean()) == additive
        assert torch.isfinite(flow.log_prob((x * 17).floor())).all()


def test_temperatures(glow):
    flow = glow.new_flow("RealNVP", glow.small_digits(), 0, Small).eval()
    images = glow.at_temperatures(flow, 3, seed=7)
    assert images.shape == (3, len(glow.TEMPERATURES), 8, 8)
    assert (images[:, 0] == images[:1, 0]).all()  # the image of the centre
    torch.manual_seed(7)
    assert torch.equal(images[:, -1], flow.sample(3)[:, 0])
    assert glow.TEMPERATURES[0] == 0
    assert glow.TEMPERATURES[-1] == 1
    assert not (images[0, -1] == images[1, -1]).all()


def test_one_seed_has_no_spread(glow):
    assert glow.spread(torch.tensor([[1.0, 2.0]])).tolist() == [0, 0]
    assert glow.spread(torch.tensor([1.0, 3.0])).item() == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("at", [0, 2])
def test_interrupted(glow, tmp_path, capsys, monkeypatch, at):
    train, calls = glow.train, []

    def pressed(*args):
        calls.append(0)
        if len(calls) > at:
            raise KeyboardInterrupt
        return train(*args)

    monkeypatch.setattr(glow, "train", pressed)
    glow.main(["--quick", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert ("interrupted before the first model was done" in said) == (at == 0)
    assert len(list(tmp_path.iterdir())) == (2 if at else 0)
    assert ("Glow, shuffle" in said) == (at == 2)
    assert "RealNVP" not in said


def test_bad_data(glow, tmp_path, capsys):
    for height, message in ((None, "must hold train-images-idx3-ubyte"), (40, "must be at most 32 x 32, got 40 x 6")):
        folder = tmp_path / str(height)
        if height:
            write_mnist(folder, height=height)
        with pytest.raises(SystemExit) as stopped:
            glow.main(["--quick", "--data", str(folder), "--out", str(Path(tmp_path / "out"))])
        assert stopped.value.code == 2
        assert message in " ".join(capsys.readouterr().err.split())

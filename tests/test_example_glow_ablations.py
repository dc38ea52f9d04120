"""The ablations of Glow run, go on from what is there, and show what they say."""

from __future__ import annotations

import json
from types import ModuleType

import pytest
import torch

from .examples import load, write_mnist

for name in ("matplotlib", "rich", "safetensors", "sklearn"):
    pytest.importorskip(name)

pytestmark = pytest.mark.usefixtures("one_thread", "wide")
SMALL = ["--quick", "--threads", "1", "--mixings", "lu", "reverse"]


@pytest.fixture
def wide(monkeypatch) -> None:
    """No line of a table is broken, whatever the terminal."""
    monkeypatch.setenv("COLUMNS", "130")


@pytest.fixture(scope="module")
def ablations() -> ModuleType:
    return load("glow_ablations")


@pytest.fixture(scope="module")
def flow(ablations):
    """Of one step a level, with its actnorms set."""
    digits = ablations.small_digits()
    run = ablations.Run(ablations.Variant("lu", "affine", 1, 2), 0, "", 0, 1, 8)
    flow = ablations.new_flow(digits, run)
    flow.log_prob(digits.train[:64])
    return flow.eval()


def test_all_variants_and_pictures(ablations, tmp_path, capsys):
    ablations.main([*SMALL, "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert "16 runs" in said  # two mixings, two couplings, two depths, two seeds
    assert "reverse, additive, 2 x 2 steps, seed 1: " in said
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "glow_ablations.jsonl", "glow_ablations.png", "glow_ablations.safetensors", "glow_ablations_latent.png",
    ]  # fmt: skip
    found = ablations.read(tmp_path / "glow_ablations.jsonl")
    assert len(found) == 16
    assert all(0 < bits < 10 for bits, _ in found.values())


def test_goes_on(ablations, tmp_path, capsys, monkeypatch):
    """After an interruption only what is missing is trained, to the same figures; a line cut short is none."""
    train, calls = ablations.train, []

    def counted(*given):
        calls.append(given[1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(*given)

    monkeypatch.setattr(ablations, "train", counted)
    command = [*SMALL, "--couplings", "affine", "--seeds", "1", "--out", str(tmp_path)]
    ablations.main(command)
    path = tmp_path / "glow_ablations.jsonl"
    with path.open("a") as file:
        file.write('\n[[["lu", "aff')
    assert len(ablations.read(path)) == 2
    ablations.main(command)
    assert len(calls) == 3 + 6  # of 2 x 2 variants from two seeds, which --quick says, without the two that were there
    assert len(set(calls)) == 8
    ablations.main(command)
    assert len(calls) == 9
    ablations.main([*command, "--levels", "1"])
    assert len(calls) == 17
    assert len(ablations.read(path)) == 16
    assert "± of seeds" in capsys.readouterr().out


def test_a_figure_is_that_of_its_run(ablations):
    args = ablations.parser().parse_args([])
    digits = ablations.small_digits()
    runs = ablations.wanted(digits, args)
    assert len(runs) == len(set(runs)) == 3 * 2 * 2 * 3
    shown = ablations.shown_of(runs)
    assert (shown.variant, shown.seed) == (("lu", "affine", 4, 2), 0)
    other = ablations.wanted(digits._replace(train=digits.train[:100]), args)
    assert not set(runs) & set(other)
    assert json.loads(json.dumps(runs[0]))[0] == ["lu", "affine", 2, 2]


def test_weights_of_another_run_are_not_taken(ablations, tmp_path, flow):
    run, other = (ablations.Run(ablations.Variant("lu", "affine", 1, 2), seed, "", 0, 1, 8) for seed in (0, 1))
    path = tmp_path / "w.safetensors"
    assert ablations.kept(path, run) is None
    ablations.save(path, dict(flow.state_dict()), {"run": json.dumps(run)})
    weights = ablations.kept(path, run)
    assert all(torch.equal(weights[k], v) for k, v in flow.state_dict().items())
    assert ablations.kept(path, other) is None


def test_in_painting_keeps_what_is_known_and_climbs(ablations, flow):
    digits = ablations.small_digits()
    images = digits.test[:3]
    start, end = ablations.filled(flow, digits, images, 40)
    known = ablations.masks(8, 8, torch.Generator().manual_seed(0))[:, None].expand(start.shape)
    assert start.shape == end.shape == (10, 3, 8, 8)
    assert torch.equal(end[known], start[known])
    with torch.no_grad():
        before, after = (ablations.without_noise(flow).log_prob(x.flatten(0, 1)[:, None]) for x in (start, end))
    assert (after > before).all()


def test_the_density_of_images_is_the_flows(ablations, flow):
    digits = ablations.small_digits()
    k = digits.test[:5]
    torch.manual_seed(0)
    whole = flow.log_prob(k)
    torch.manual_seed(0)
    x = (k + torch.rand(k.shape)) / digits.levels
    torch.testing.assert_close(ablations.without_noise(flow).log_prob(x) - 64 * torch.tensor(17.0).log(), whole)


def test_thick_digits_have_more_ink(ablations, flow):
    digits = ablations.small_digits()
    thick, thin = ablations.thick_and_thin(digits.train)
    assert thick.float().mean() > 1.2 * thin.float().mean()
    ink = ablations.moved(flow, digits, digits.test[:20]).flatten(2).mean(2).mean(0)
    assert ink.shape == (len(ablations.MOVES),)
    assert (ink.diff() > 0).all()


def test_mnist_has_room_for_levels(ablations, tmp_path, capsys):
    write_mnist(tmp_path / "digits")
    command = [*SMALL[:3], "--mixings", "lu", "--couplings", "affine", "--levels", "4", "--images", "20"]
    ablations.main([*command, "--data", str(tmp_path / "digits"), "--out", str(tmp_path / "out")])
    assert "1x1, affine, 4 x 2 steps" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"even H and W, got \[8, 1, 1\]"):
        ablations.main([*command[:-4], "--levels", "4", "--out", str(tmp_path / "none")])

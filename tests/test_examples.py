"""The examples run, and what they say about peers is so."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from flowkernels import flows

from .examples import load

for name in ("matplotlib", "nflows", "rich", "safetensors", "sklearn"):
    pytest.importorskip(name)
safetensors = importlib.import_module("safetensors")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tabular() -> ModuleType:
    return load("maf_tabular")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A banana, a third column, one that never varies, and a line with a missing value."""
    x = np.random.default_rng(0).normal(size=(120, 3))
    x[:, 1] += x[:, 0] ** 2
    lines = [",".join([*(f"{v:.6f}" for v in row), "7"]) for row in x]
    path = tmp_path / "some.table.csv"
    path.write_text("\n".join(["u,v,w,same", *lines, "1,,2,7"]))
    return path


def test_digits_nsf(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["digits_nsf", "--epochs", "1", "--repeats", "1", "--out", str(tmp_path)])
    load("digits_nsf").main()
    assert "training step" in capsys.readouterr().out
    assert (tmp_path / "digits_nsf.png").stat().st_size > 0


def test_maf_tabular(tabular, table, tmp_path, capsys):
    out = tmp_path / "made" / "here"
    tabular.main([str(table), "--quick", "--out", str(out), "--samples", "60", "--peer-samples", "20"])
    said = capsys.readouterr().out
    assert "left out 1 rows with missing or infinite values" in said
    assert "left out 1 columns that hold one value only" in said
    assert "autoregressive NSF" in said
    files = sorted(p.name for p in out.iterdir())
    assert len(files) == 4  # and no part of a checkpoint
    assert [f for f in files if f.endswith(".png")] == ["some.table_maf.png", "some.table_nsf.png"]
    for kind, flow_class in (("maf", flows.MAF), ("nsf", flows.NSF)):
        with safetensors.safe_open(out / f"some.table_{kind}.safetensors", "pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  (not a dict)
            settings = json.loads(file.metadata()["settings"])
        assert settings["columns"] == ["u", "v", "w"]
        own = {"bins": 8, "tail_bound": 5.0, "autoregressive": True, "linear": None} if kind == "nsf" else {}
        flow = flow_class(3, transforms=settings["transforms"], hidden=(settings["hidden"],) * 2, **own)
        assert tensors.pop("data.mean").shape == tensors.pop("data.std").shape == (3,)
        flow.load_state_dict(tensors)


def test_maf_tabular_of_every_map(tabular, table, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    arguments = ["--quick", "--models", "all", "--samples", "20", "--peer-samples", "5"]
    tabular.main([str(table), *arguments, "--out", str(tmp_path)])
    said = capsys.readouterr().out
    for kind in tabular.KINDS.values():
        assert kind.title in said
    assert "the maps beside each other" in said
    maps = said.partition("the maps beside each other")[2]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in maps.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == ["normal density", *(kind.title for kind in tabular.KINDS.values())]
    for name, *cells in rows[1:]:
        assert len(cells) == 7 and all(float(c.replace(",", "")) == float(c.replace(",", "")) for c in cells), name
        assert cells[3] == "2"  # epochs
    assert (tmp_path / "some.table_maps.png").stat().st_size > 0


def test_peers_that_are_not_installed_are_skipped(tabular, table, tmp_path, capsys, monkeypatch):
    def without_peers(name):
        if name.split(".")[0] in ("nflows", "zuko"):
            raise ImportError(name)
        return importlib.import_module(name)

    fake = ModuleType("importlib")
    monkeypatch.setattr(fake, "import_module", without_peers, raising=False)
    monkeypatch.setattr(tabular, "importlib", fake)
    tabular.main([str(table), "--quick", "--models", "maf", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert "nflows is not installed: skipped" in said
    assert "zuko is not installed: skipped" in said


@pytest.mark.parametrize("kind", ["maf", "nsf"])
@pytest.mark.parametrize("features", [1, 2, 5, 40])  # 40: wider than the networks, whose degrees are then not nflows'
def test_the_nflows_model_is_ours(tabular, kind, features):
    from flowkernels import compat

    class Args:
        transforms, hidden = 3, 16

    torch.manual_seed(0)
    flow = tabular.new_flow(kind, features, Args).double()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.05 * torch.randn_like(p))
    theirs = tabular.same_in_nflows(kind, flow, Args).double()
    x = torch.randn(20, features, dtype=torch.float64)
    torch.testing.assert_close(theirs.log_prob(x), flow.log_prob(x))
    assert len(compat.accelerate(theirs).accelerated) == 6
    torch.testing.assert_close(theirs.log_prob(x), flow.log_prob(x))
    z = torch.randn(20, features, dtype=torch.float64)
    turned = z.flip(1)  # three reversals
    torch.testing.assert_close(theirs._transform.inverse(turned)[0], flow.transform.inverse(z)[0])


def test_units(tabular):
    """The same rows in other units: nats move by the log of the ratio of the units, and nothing else."""
    rows = torch.randn(400, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    split = [tabular.split(scale * rows, torch.Generator().manual_seed(0)) for scale in (1.0, 1000.0)]
    torch.testing.assert_close(split[0].test, split[1].test)
    assert split[1].log_units - split[0].log_units == pytest.approx(3 * np.log(1000))
    density = tabular.normal_density(split[0]).mean().item() - split[0].log_units
    assert density == pytest.approx(-1.5 * (1 + np.log(2 * np.pi)), abs=0.5)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.csv", "u,v\n1,2\n3,four\n", "row 2 must be 2 numbers, got 3,four"),
        ("a.csv", "", "must have lines of numbers, got none"),
        ("a.csv", "1,2\n", "must have 30 rows of finite numbers or more, got 1"),
        ("a.csv", "1,2\n" * 40, "must have a column that varies, got 2 of one value each"),
        ("a.txt", "1,2\n", "must be one of .npy, .csv, .parquet, got .txt"),
        ("a.parquet", "", "a.parquet"),
        (None, None, "No such file"),
    ],
)
def test_bad_tables(tabular, tmp_path, capsys, file, content, message):
    path = tmp_path / (file or "none.csv")
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit):
        tabular.main([str(path), "--quick", "--out", str(tmp_path)])
    assert message in capsys.readouterr().err


def test_npy_and_parquet(tabular, tmp_path, monkeypatch):
    rows = np.arange(6, dtype=np.int32).reshape(3, 2)
    np.save(tmp_path / "a.npy", rows)
    data = tabular.read(tmp_path / "a.npy")
    assert data.columns == ["column 0", "column 1"]
    assert data.rows.tolist() == rows.tolist()
    np.save(tmp_path / "b.npy", rows[0])
    with pytest.raises(ValueError, match=r"must be numbers \[rows, features\], got int32 \[2\]"):
        tabular.read(tmp_path / "b.npy")
    pandas = pytest.importorskip("pandas")
    frames = iter([pandas.DataFrame({"u": [1, 2], "v": [0.5, None]}), pandas.DataFrame({"u": ["x"]})])
    monkeypatch.setattr(pandas, "read_parquet", lambda path: next(frames))
    columns, rows = tabular.read_parquet(tmp_path / "c.parquet")
    assert columns == ["u", "v"]
    assert rows[0].tolist() == [1, 0.5]
    with pytest.raises(ValueError, match="columns must be numbers, got"):
        tabular.read_parquet(tmp_path / "c.parquet")


# ---- posteriors ----


@pytest.fixture(scope="module")
def vae() -> ModuleType:
    return load("vae_posteriors")


def test_vae_posteriors(vae, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    faces = np.random.default_rng(0).integers(0, 256, (120, 5, 4), dtype=np.uint8)
    np.savez(tmp_path / "faces.npz", faces=faces)
    arguments = ["--quick", "--faces", str(tmp_path / "faces.npz"), "--threads", "1", "--out", str(tmp_path)]
    vae.main(arguments)
    first = capsys.readouterr().out
    assert all(f"│ {kind}" in first for kind in vae.POSTERIORS) and "12 test images" in first
    assert (tmp_path / "vae_posteriors.png").stat().st_size > 0
    vae.main(arguments)  # from its checkpoints
    again = capsys.readouterr().out
    assert [line for line in first.splitlines() if "seed 0:" in line] == [
        line for line in again.splitlines() if "seed 0:" in line
    ]


def test_levels_of_a_pixel_are_a_distribution(vae):
    """A logistic distribution cut into 256 levels, the outermost with its tails."""
    images = vae.split("faces", torch.zeros(30, 1, 1), 5, 256)
    model = vae.VAE(vae.posterior("diagonal", 2, 3, vae.Encoder(1, 256, 4, 3)), 2, images, 4)
    k = torch.arange(256.0)[:, None]
    for mean, log_scale in ((0.0, 0.0), (0.9, -2.0), (-3.0, 1.0), (0.3, -3.0)):
        log_p = model._levels(k, torch.tensor([[mean, log_scale]]).expand(256, 2))
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_vae_of_binary_images_is_seen_as_drawn(vae):
    images = vae.small_digits()
    assert images.levels == 2 and [len(p) for p in images[1:4]] == [1297, 250, 250]
    model = vae.VAE(vae.posterior("IAF", 2, 3, vae.Encoder(64, 2, 4, 3)), 2, images, 4)
    drawn = model.seen(images.test)
    assert set(drawn.unique().tolist()) == {0.0, 1.0} and torch.equal(model.seen(drawn), drawn)


def test_faces_that_are_none(vae, tmp_path):
    np.savez(tmp_path / "other.npz", pictures=np.zeros((3, 2, 2), np.uint8))
    with pytest.raises(ValueError, match=r"faces, got \['pictures'\]"):
        vae.frey_faces(tmp_path / "other.npz")
    np.savez(tmp_path / "real.npz", faces=np.zeros((3, 2, 2)))
    with pytest.raises(ValueError, match="uint8"):
        vae.frey_faces(tmp_path / "real.npz")


# ---- densities of the plane ----


@pytest.fixture(scope="module")
def plane() -> ModuleType:
    return load("densities_2d")


def test_densities_2d(plane, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    plane.main(["--quick", "--densities", "gaussians", "rings", "--threads", "1", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert all(f"│ {model}" in said for model in plane.MODELS)
    for name in ("densities_2d", "densities_2d_ways"):
        assert (tmp_path / f"{name}.png").stat().st_size > 0


def test_ways_end_where_samples_do(plane):
    torch.manual_seed(0)
    flow, z = plane.MODELS["CNF"](8), torch.randn(5, 2)
    moved = plane.ways(flow, z, 4)
    assert moved.shape == (5, 5, 2) and torch.equal(moved[0], z)
    torch.testing.assert_close(moved[-1], flow.decode(z), rtol=1e-4, atol=1e-4)


def test_points_of_the_plane_fill_the_picture(plane):
    torch.manual_seed(0)
    for name, draw in plane.DENSITIES.items():
        x = draw(2000)
        assert x.shape == (2000, 2) and 2 < x.abs().max() < 1.2 * plane.EDGE, name
        assert x.mean(0).abs().max() < 0.3, name


# ---- divergences, and chains in the latent ----


@pytest.fixture(scope="module")
def islands() -> ModuleType:
    return load("which_divergence")


def test_which_divergence(islands, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    islands.main(["--quick", "--threads", "1", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert all(f"│ {name}" in said for name in islands.OBJECTIVES)
    assert (tmp_path / "which_divergence.png").stat().st_size > 0


def test_the_islands_are_drawn_as_their_density_says(islands):
    torch.manual_seed(0)
    x = islands.draw(20_000)
    inside = torch.cdist(x, islands.CENTRES).argmin(1).bincount(minlength=3) / len(x)
    torch.testing.assert_close(inside, islands.WEIGHTS, rtol=0, atol=0.02)
    line = torch.linspace(-6, 6, 400)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1)
    mass = islands.log_target(grid).exp().sum() * (line[1] - line[0]) ** 2
    torch.testing.assert_close(mass, torch.tensor(1.0), rtol=1e-3, atol=0)


@pytest.fixture(scope="module")
def chains() -> ModuleType:
    return load("latent_hmc")


def test_latent_hmc_of_the_example(chains, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    chains.main(["--quick", "--threads", "1", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    for name in chains.TARGETS:
        assert all(f"│ {name} │ {how}" in said for how in ("plain", "latent", "truth"))
    assert (tmp_path / "latent_hmc.png").stat().st_size > 0


@pytest.mark.parametrize("name", ["funnel", "banana"])
def test_the_targets_are_drawn_as_their_density_says(chains, name):
    """log p(x) of draws has the mean that the entropy of normal pieces gives, and coordinates the stated moments."""
    torch.manual_seed(0)
    target = chains.TARGETS[name]
    x = target.draw(200_000)
    assert x.shape == (200_000, target.features)
    assert abs(x[:, 0].mean().item() - target.mean) < 0.02 * target.deviation
    assert x[:, 0].std().item() == pytest.approx(target.deviation, rel=0.03)
    # Volume-preserving but for a scale: entropies of standard normals, and the logarithms of the scales.
    scales = np.log(3.0) if name == "funnel" else np.log(5.0)
    entropy = target.features * 0.5 * np.log(2 * np.pi * np.e) + scales
    assert -target.log_prob(x).mean().item() == pytest.approx(entropy, abs=0.15)  # five of its errors


def test_plain_chains_run_on_the_target_itself(chains):
    flow, x = chains.plain(3), torch.randn(4, 3)
    assert torch.equal(flow.decode(x), x)


# ---- policies of an arm ----


@pytest.fixture(scope="module")
def arm() -> ModuleType:
    return load("arm_policy")


def test_arm_policy(arm, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    arm.main(["--quick", "--threads", "1", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert all(f"│ {kind}" in said for kind in ("Gaussian", "flow"))
    assert (tmp_path / "arm_policy.png").stat().st_size > 0


def test_the_arm_touches_with_either_elbow_what_no_obstacle_closes(arm):
    torch.manual_seed(0)
    state = arm.states(200)
    state[:, 2:] = torch.tensor([-5.0, 0.0])
    angles = arm.solutions(state)
    elbow, hand = arm.joints(angles)
    torch.testing.assert_close(hand, state[:, None, :2].expand_as(hand), rtol=0, atol=1e-5)
    assert (elbow[:, 0, 1] < 0).all() and (elbow[:, 1, 1] > 0).all()
    found = arm.act(state[:, None], angles)
    assert found.touched.all()
    torch.testing.assert_close(found.reward, torch.ones(200, 2), rtol=0, atol=1e-5)
    state[:, 2:] = elbow[:, 0]  # in the way of the first
    reward, touched = arm.act(state[:, None], angles)
    assert (reward[:, 0] == -1).all() and not touched[:, 0].any()


@pytest.mark.parametrize("kind", ["Gaussian", "flow"])
def test_a_policy_climbs_by_the_gradient_of_its_density(arm, monkeypatch, kind):
    """Where a larger first angle is worth more, a step makes it larger; where all are worth the same, there is none."""
    given = SimpleNamespace(entropy=1e-9, steps=10, states=256, actions=16)
    for reward, sign in ((lambda angles: angles[..., 0], 1), (lambda angles: torch.ones_like(angles[..., 0]), 0)):
        torch.manual_seed(0)
        policy = arm.Policy(kind, 8)
        monkeypatch.setattr(arm, "act", lambda state, angles, r=reward: arm.Outcome(r(angles), angles[..., 0] > 0))
        before = policy.draw(arm.states(2000), 8)[0][..., 0].mean()
        arm.loss(policy, given, [0]).backward()
        with torch.no_grad():
            for p in policy.parameters():
                p -= 0.0 if p.grad is None else 0.3 * p.grad
        torch.manual_seed(0)
        arm.Policy(kind, 8)
        moved = policy.draw(arm.states(2000), 8)[0][..., 0].mean() - before
        assert moved > 0.1 if sign else abs(moved) < 1e-3, (sign, moved)


# ---- posteriors of simulators ----


@pytest.fixture(scope="module")
def posteriors() -> ModuleType:
    return load("sbi_c2st")


@pytest.mark.parametrize(
    "methods", [["npe (NSF)"], pytest.param(["sbi maf", "sbi nsf, accelerated"], marks=pytest.mark.slow)], ids=str
)
def test_sbi_c2st(posteriors, methods, tmp_path, capsys, monkeypatch):
    if "npe (NSF)" not in methods:
        pytest.importorskip("sbi")
    monkeypatch.setenv("COLUMNS", "120")
    posteriors.main(["--quick", "--methods", *methods, "--threads", "1", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert all(said.count(f" {method} ") >= 2 for method in methods)
    assert (tmp_path / "sbi_c2st.png").stat().st_size > 0


def test_the_moons_reference_is_the_posterior(posteriors):
    """Of thetas of the prior, those whose data fall near x are draws of the posterior, too: by their moments."""
    torch.manual_seed(0)
    task = posteriors.TASKS["two moons"]
    theta = 2 * torch.rand(2_000_000, 2) - 1
    x = task.simulate(theta)
    observed = torch.tensor([0.1, 0.2])
    near = theta[(x - observed).abs().amax(1) < 0.01]
    drawn = task.reference(observed, len(near))
    assert len(near) > 300
    for of in (lambda t: t, lambda t: t.square(), lambda t: t[:, :1] * t[:, 1:]):
        a, b = of(near), of(drawn)
        error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() < 4.5 * error + 0.01).all()


def test_slcp_has_the_likelihood_of_its_draws(posteriors):
    """E exp(log q - log p) over draws of p is 1: q another theta of the same task."""
    torch.manual_seed(0)
    one, other = torch.tensor([0.5, -1.0, 1.2, 0.9, 0.3]), torch.tensor([0.6, -0.9, 1.1, -0.8, 0.4])
    x = posteriors.slcp(one.expand(4000, 5))
    ratio = torch.stack(
        [posteriors._slcp_log_likelihood(other, row) - posteriors._slcp_log_likelihood(one, row) for row in x]
    ).exp()
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / len(ratio) ** 0.5 and ratio.std() > 0.1


def test_slcp_reference_moments_are_those_of_importance_weights(posteriors):
    torch.manual_seed(0)
    theta = torch.tensor([0.5, -1.0, 1.0, 0.9, 0.3])
    x = posteriors.slcp(theta[None])[0]
    drawn = posteriors.slcp_given(x, 400)
    prior = 6 * torch.rand(400_000, 5) - 3
    weights = torch.softmax(posteriors._slcp_log_likelihood(prior, x), 0)
    ess = 1 / weights.square().sum()
    for of in (lambda t: t, lambda t: t.abs(), lambda t: t.square()):
        wanted, found = (weights[:, None] * of(prior)).sum(0), of(drawn).mean(0)
        spread = of(drawn).std(0)
        assert ess > 100 and ((wanted - found).abs() < 6 * spread * (1 / ess + 1 / 100) ** 0.5).all()
    assert (drawn.abs() <= 3).all() and (drawn[:, 2] < 0).any() and (drawn[:, 2] > 0).any()


# ---- tones ----


@pytest.fixture(scope="module")
def tones() -> ModuleType:
    return load("waveglow_tones")


def test_waveglow_tones(tones, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    arguments = ["--quick", "--threads", "1", "--out", str(tmp_path), "--models"]
    tones.main([*arguments, *tones.MODELS])
    first = capsys.readouterr().out
    assert all(f"│ {row}" in first for row in ("white noise", "normal, mean spectrum", *tones.MODELS))
    assert (tmp_path / "waveglow_tones.png").stat().st_size > 0
    for name in ("data", *tones.MODELS):
        assert (tmp_path / f"waveglow_tones_{name}.wav").stat().st_size == 44 + 2 * 3 * 128
    tones.main([*arguments, "WaveGlow"])  # from its checkpoint
    said = [next(s for s in out.splitlines() if s.startswith("WaveGlow: ")) for out in (first, capsys.readouterr().out)]
    assert said[0] == said[1]


def test_a_tone_is_in_its_band(tones):
    t = torch.arange(1024) / tones.RATE
    edges = tones.filters() @ torch.eye(tones.WINDOW // 2 + 1)
    for hertz in (150.0, 440.0, 1300.0):
        found = tones.mel(torch.sin(2 * np.pi * hertz * t)[None, None])[0]
        assert found.shape == (tones.BANDS, 1024 // tones.HOP)
        band = found[:, 5:-5].mean(1).argmax()
        assert edges[band].argmax().item() * tones.RATE / tones.WINDOW == pytest.approx(hertz, abs=60)


def test_baselines_of_tones(tones):
    """Of white noise itself both are its entropy."""
    noise = [torch.randn(300, 1, 64, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    given = tones.Chords(*[(x, x) for x in noise])
    entropy = 0.5 * np.log(2 * np.pi * np.e)
    assert tones.of_white_noise(given) == pytest.approx(entropy, abs=0.02)
    assert tones.of_mean_spectrum(given) == pytest.approx(entropy, abs=0.02)


# ---- regression ----


def test_regression_heads(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    heads = load("regression_heads")
    arguments = ["--quick", "--tables", "iris", "--out", str(tmp_path)]
    heads.main(arguments)
    first = capsys.readouterr().out
    assert all(f"│ {head}" in first for head in heads.HEADS) and "iris: test nats" in first
    assert (tmp_path / "regression_heads.png").stat().st_size > 0
    assert len(json.loads((tmp_path / "regression_heads.json").read_text())["scores"]) == 2 * len(heads.HEADS)
    monkeypatch.setattr(heads, "draw", lambda *_: None)
    heads.main(arguments)
    assert capsys.readouterr().out == first  # from what was kept, but for the flows of the picture


def test_heads_of_regression_are_what_they_are_called(tmp_path):
    """Normal in y given the features: of one width, and of a width for every row."""
    heads, context = load("regression_heads"), torch.linspace(-1, 1, 5)[:, None]
    for name, widths in (("one width", 1), ("Gaussian", 5)):
        torch.manual_seed(0)
        flow = heads.HEADS[name](1, (8, 8)).double()
        for p in flow.parameters():
            p.data += torch.randn_like(p)
        y = torch.tensor([0.0, 1.0, 3.0]).double().view(3, 1, 1).expand(3, 5, 1)
        z, ladj = flow.transform(y, context.double())
        torch.testing.assert_close(z[2] - z[0], 3 * (z[1] - z[0]))
        assert len(set(ladj[0].detach().numpy().round(9).tolist())) == widths


# ---- strange digits ----


@pytest.fixture(scope="module")
def strange() -> ModuleType:
    return load("one_class_digits")


def test_one_class_digits(strange, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    arguments = ["--quick", "--left-out", "7", "--threads", "1", "--out", str(tmp_path)]
    strange.main(arguments)
    first = capsys.readouterr().out
    assert all(f"│ {kind}" in first for kind in (strange.CLASS, *strange.STRANGE)) and "without 7:" in first
    assert (tmp_path / "one_class_digits.png").stat().st_size > 0
    monkeypatch.setattr(strange, "draw", lambda *_: None)
    strange.main(arguments)  # from its checkpoints
    assert capsys.readouterr().out == first


def test_no_digit_is_trained_on_and_tested(strange):
    data = strange.digits(4)
    assert [len(part) for part in data] == [1289, 327, 37]
    rows = [{tuple(x) for x in part.int().tolist()} for part in data]
    assert not rows[0] & rows[1] and not rows[0] & rows[2] and not rows[1] & rows[2]
    for kind, f in strange.STRANGE.items():
        x = f(data.test).flatten(1)
        assert x.shape == data.test.shape and torch.equal(x, x.round()) and 0 <= x.min() <= x.max() < 17, kind

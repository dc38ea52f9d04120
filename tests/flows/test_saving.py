"""Flows as files: what comes back is the same flow, what cannot be written or read is refused in three parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import save_file
from torch import nn

import flowkernels
from flowkernels import distributions, flows, nets, ops, transforms
from flowkernels.flows import MAF, NSF, CouplingFlow, Flow, Glow
from flowkernels.ops.univariate import Map
from flowkernels.saving import FORMAT, CannotBuildError, CannotDescribeError
from flowkernels.saving.classes import FUNCTIONS, MAPS, MODULES, TORCH
from flowkernels.transforms import Affine, Composite, Coupling, Permutation
from tests.flows import golden

EVERY = pytest.mark.parametrize("name", golden.CASES)
SMALL: dict[str, Any] = {"transforms": 2, "hidden": (4, 4)}


@pytest.fixture(autouse=True)
def _one_thread(one_thread) -> None:
    """Small tensors: a second thread costs more than it gives."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "flow.safetensors"


def contents(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    with safetensors.safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def rewritten(path: Path, change: Any) -> None:
    """The file with other metadata, or other tensors."""
    tensors, metadata = contents(path)
    change(tensors, metadata)
    save_file(tensors, path, metadata)


def config_of(path: Path) -> Any:
    return json.loads(contents(path)[1]["flowkernels.config"])


def with_config(path: Path, change: Any) -> None:
    config = config_of(path)
    change(config)
    rewritten(path, lambda tensors, metadata: metadata.update({"flowkernels.config": json.dumps(config)}))


def saved(path: Path, flow: Flow | None = None) -> Flow:
    flow = NSF(3, bins=3, linear=None, **SMALL) if flow is None else flow
    flow.save(path)
    return flow


# ---- there and back ----


@EVERY
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_a_flow_comes_back_bit_for_bit(name, precision, path) -> None:
    flow = golden.build(name).to(precision)
    flow.save(path)
    state = torch.get_rng_state()
    again = flowkernels.load(path)
    assert torch.equal(torch.get_rng_state(), state)  # loading draws nothing
    assert type(again) is type(flow) and repr(again) == repr(flow)
    x, context = golden.inputs(name, flow)
    x, context = x.to(precision), None if context is None else context.to(precision)
    for call in (lambda f: f.log_prob(x, context), lambda f: f.sample(3, context)):
        torch.manual_seed(2)
        expected = call(flow)
        torch.manual_seed(2)
        assert torch.equal(call(again), expected) and expected.dtype is precision
    assert {k: v.dtype for k, v in again.state_dict().items()} == {k: v.dtype for k, v in flow.state_dict().items()}
    assert [k for k, _ in again.named_parameters()] == [k for k, _ in flow.named_parameters()]
    assert all(p.requires_grad and p.is_leaf for p in again.parameters())
    again.save(path.with_name("again"))
    assert config_of(path.with_name("again")) == config_of(path)


def test_a_loaded_flow_trains_as_the_original(path) -> None:
    flow = saved(path, NSF(3, bins=3, linear="lu", **SMALL))
    x, again = torch.randn(20, 3), flowkernels.load(path)
    for f in (flow, again):
        optimizer = torch.optim.Adam(f.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            (-f.log_prob(x).mean()).backward()
            optimizer.step()
    assert torch.equal(again.log_prob(x), flow.log_prob(x))


def test_modes_frozen_weights_and_precisions_come_back(path) -> None:
    flow = CouplingFlow(3, 4, embedding=nn.Linear(2, 4), dropout=0.5, **SMALL)
    flow.embedding.requires_grad_(False)
    flow.transform[0].eval()
    flow.transform[1].conditioner.bfloat16()
    flow.save(path)
    again = flowkernels.load(path)
    assert [m.training for m in again.modules()] == [m.training for m in flow.modules()]
    assert not all(m.training for m in flow.modules()) and again.training
    assert {n: (p.requires_grad, p.dtype) for n, p in again.named_parameters()} == {
        n: (p.requires_grad, p.dtype) for n, p in flow.named_parameters()
    }


def test_a_flow_without_weights_keeps_its_dtype(path) -> None:
    flow = Flow(Composite([]), distributions.StandardNormal(2)).double()
    saved(path, flow)
    assert flowkernels.load(path).sample(3).dtype is torch.float64


def test_other_masks_and_orders_come_back(path) -> None:
    flow = MAF(5, **SMALL)
    for i, layer in enumerate(flow.transform):
        layer.conditioner.shuffle_order(i)
        layer.conditioner.resample_masks(i)
    x, again = torch.randn(4, 5), flowkernels.load((flow.save(path), path)[1])
    assert torch.equal(again.log_prob(x), flow.log_prob(x)) and not torch.equal(MAF(5, **SMALL).log_prob(x), flow(x))
    assert [layer.conditioner.order.tolist() for layer in again.transform] == [
        layer.conditioner.order.tolist() for layer in flow.transform
    ]


def test_parts_put_in_place_of_others_come_back(path) -> None:
    """A file says what a flow is, not with what its class was called."""
    flow = NSF(3, bins=3, linear=None, **SMALL)
    flow.base = distributions.StandardLogistic(3)
    flow.transform = Composite([*flow.transform, Permutation.reverse(3)])
    x, again = torch.randn(4, 3), flowkernels.load((flow.save(path), path)[1])
    assert torch.equal(again.log_prob(x), flow.log_prob(x)) and type(again) is NSF


def test_what_is_shared_stays_shared(path) -> None:
    act = nn.PReLU()
    layer = Coupling([0, 1], nets.MLP(1, 2, hidden=(3,), activation=act), Affine())
    flow = Flow(Composite([layer, Permutation.reverse(2), layer]), distributions.StandardNormal(2), embedding=act)
    again = flowkernels.load((flow.save(path), path)[1])
    assert again.transform[0] is again.transform[2]
    assert again.embedding is again.transform[0].conditioner.activation
    assert len(list(again.parameters())) == len(list(flow.parameters()))


@pytest.mark.parametrize("flow", ["NSF", "NCSF", "MAF", "NICE"])
def test_a_flow_of_zuko_comes_as_a_native_one(flow, path) -> None:
    zuko = pytest.importorskip("zuko")
    native = flowkernels.convert(getattr(zuko.flows, flow)(3, 0, transforms=2, hidden_features=(8, 8)))
    again = flowkernels.load((native.save(path), path)[1])
    assert torch.equal(again(torch.ones(4, 3)), native(torch.ones(4, 3)))


def test_numpy_numbers_are_numbers(path) -> None:
    np = pytest.importorskip("numpy")
    flow = CouplingFlow(np.int64(3), dropout=np.float32(0.25), **SMALL).eval()
    assert torch.equal(flowkernels.load((flow.save(path), path)[1])(torch.ones(3)), flow(torch.ones(3)))


def test_a_device_and_the_default_device_are_taken(path) -> None:
    flow = saved(path, Glow((1, 4, 4), levels=1, steps=1, hidden=2, classes=2))
    again = flowkernels.load(path, device="meta")
    assert {t.device.type for t in [*again.parameters(), *again.buffers()]} == {"meta"}
    with torch.device("meta"):
        assert {p.device.type for p in flowkernels.load(path).parameters()} == {"meta"}
        assert {p.device.type for p in flowkernels.load(path, "cpu").parameters()} == {"cpu"}
    assert {t.device.type for t in [*flowkernels.load(path).buffers()]} == {"cpu"}
    assert flowkernels.load(os.fspath(path), torch.device("cpu")).event_shape == flow.event_shape


def test_a_default_dtype_changes_nothing(path) -> None:
    flow = saved(path, NSF(3, bins=3, linear="lu", base=distributions.UniformBox([-5.0] * 3, [5.0] * 3), **SMALL))
    torch.set_default_dtype(torch.float64)
    try:
        again = flowkernels.load(path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(again.log_prob(torch.ones(3)), flow.log_prob(torch.ones(3)))
    assert again.sample(2).dtype is torch.float32


def test_every_function_is_written(path) -> None:
    for name, function in FUNCTIONS.items():
        flow = saved(path, CouplingFlow(2, activation=function, **SMALL))
        assert f'{{"function": "{name}"}}' in contents(path)[1]["flowkernels.config"]
        assert torch.equal(flowkernels.load(path)(torch.ones(2)), flow(torch.ones(2)))


# ---- the table knows all ----


def test_every_class_of_flowkernels_can_be_named() -> None:
    """A new class: a row in `flowkernels/saving/classes.py`, and a golden file."""
    for module in (flows, distributions, nets, transforms):
        public = [c for name in module.__all__ if isinstance(c := getattr(module, name), type)]
        abstract = {distributions.Distribution, transforms.Transform, nets.MaskedLinear}  # the last one is a MADE's
        abstract |= {nets.MaskedConv2d}  # and this one a PixelCNN's or a Mint's
        abstract |= {distributions.FromTorch}  # one of torch may be of any class
        known = {part.cls for part in MODULES.values()}
        missing = [c.__name__ for c in public if issubclass(c, nn.Module) and c not in known | abstract]
        assert not missing, module.__name__
    maps = {c for name in ops.__all__ if isinstance(c := getattr(ops, name), type) and issubclass(c, Map)}
    assert maps - {Map} == set(MAPS.values())
    assert all(MODULES[f"torch.nn.{name}"].cls is getattr(nn, name) for name in TORCH)


def test_every_class_has_a_golden_file() -> None:
    text = "".join(contents(file)[1]["flowkernels.config"] for file in golden.FOLDER.glob("*.safetensors"))
    assert not [name for name in (*MODULES, *MAPS) if f'"class": "{name}"' not in text]


# ---- golden files ----


@EVERY
def test_a_golden_file_still_loads(name) -> None:
    flow = flowkernels.load(golden.FOLDER / f"{name}.safetensors")
    expected = json.loads(golden.LOG_PROBS.read_text())[name]
    torch.testing.assert_close(
        golden.log_prob(name, flow), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0
    )


def test_golden_files_are_small() -> None:
    files = list(golden.FOLDER.glob("*.safetensors"))
    assert len(files) == len(golden.CASES) and max(file.stat().st_size for file in files) < 20_000


# ---- what cannot be written ----


class Mine(nn.Linear):
    pass


class MyFlow(NSF):
    pass


def tied() -> Flow:
    flow = CouplingFlow(4, hidden=4, transforms=2)
    flow.transform[0].conditioner.final_layer.weight = flow.transform[1].conditioner.final_layer.weight
    return flow


def replaced() -> Flow:
    flow = CouplingFlow(4, hidden=4, transforms=1)
    flow.transform[0].conditioner.hidden_layers[0] = Mine(2, 4)
    return flow


def mixed() -> Flow:
    flow = NSF(4, linear=None, hidden=(4, 4), transforms=1)
    flow.transform[0].conditioner.blocks[0].activation = torch.tanh
    return flow


def normed() -> Flow:
    flow = CouplingFlow(4, hidden=4, transforms=1)
    nn.utils.parametrizations.weight_norm(flow.transform[0].conditioner.final_layer)
    return flow


def emptied() -> Flow:
    flow = CouplingFlow(4, hidden=4, transforms=1)
    flow.transform[0].conditioner.final_layer = nn.Identity()
    return flow


REFUSED = {
    "embedding": (lambda: NSF(2, 2, embedding=Mine(2, 2), **SMALL), "embedding", "tests.flows.test_saving.Mine"),
    "callable": (lambda: NSF(2, 2, embedding=torch.sinh, **SMALL), "embedding", "sinh"),
    "activation": (
        lambda: NSF(2, activation=lambda x: x, **SMALL), "transform.transforms.0.conditioner.activation", "<lambda>",
    ),
    "conditioner": (lambda: CouplingFlow(2, net=Mine, transforms=1), "transform.transforms.0.conditioner", "Mine"),
    "own flow": (lambda: MyFlow(2, **SMALL), "the flow", "MyFlow"),
    "tied": (tied, "transform.transforms.1.conditioner.final_layer.weight", "the same as"),
    "replaced": (replaced, "transform.transforms.0.conditioner.hidden_layers.0", "Mine"),
    "mixed": (mixed, "transform.transforms.0.conditioner", "other parts"),
    "parametrised": (normed, "transform.transforms.0.conditioner.final_layer", "Parametrized"),
    "emptied": (emptied, "transform.transforms.0.conditioner", "other parts"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_file_cannot_name_is_refused_and_the_weights_still_go(case, path) -> None:
    make, where, given = REFUSED[case]
    flow, other = make(), make()
    with pytest.raises(CannotDescribeError) as raised:
        flow.save(path)
    message = str(raised.value)
    name, contract = message.split(": ", 1)
    assert name == f"flows.{type(flow).__name__}.save" and contract.startswith(f"{where} must be ")
    assert given in contract.split(", got ")[1] and "state_dict() still works" in message
    assert not path.exists() and not list(path.parent.iterdir())

    flow.save(path, config=False)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    assert flowkernels.load(path, flow=other) is other
    for key, value in flow.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)


@pytest.mark.parametrize("config", [None, 1, "no"])
def test_config_is_a_switch(config, path) -> None:
    with pytest.raises(ValueError, match=r"^flows\.NSF\.save: config must be True or False, got"):
        NSF(2, **SMALL).save(path, config=config)


def test_weights_without_values_are_refused(path) -> None:
    with torch.device("meta"):
        flow = NSF(2, **SMALL)
    with pytest.raises(TypeError, match=r"^flows\.NSF\.save: .* must be a tensor with values, got one on the meta"):
        flow.save(path)
    assert not list(path.parent.iterdir())


# ---- atomic ----


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path, monkeypatch) -> None:
    flow = saved(path)
    before = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        NSF(2, **SMALL).save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    assert torch.equal(flowkernels.load(path)(torch.ones(3)), flow(torch.ones(3)))


def test_the_new_file_is_synchronised_before_it_takes_the_name(path, monkeypatch) -> None:
    saved(path)
    order, replace, fsync = [], os.replace, os.fsync

    def watched_replace(source: str, target: str) -> None:
        assert os.path.dirname(source) == os.path.dirname(target) == os.path.realpath(path.parent)
        order.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched_replace)
    monkeypatch.setattr(os, "fsync", lambda descriptor: (order.append("fsync"), fsync(descriptor)))
    saved(path)
    assert order[:2] == ["fsync", "replace"]


@pytest.mark.skipif(os.name != "posix", reason="links and modes of POSIX")
def test_a_link_stays_a_link_and_modes_are_those_of_any_new_file(path) -> None:
    link = path.with_name("latest")
    link.symlink_to(path)
    NSF(2, **SMALL).save(link)
    assert link.is_symlink() and path.exists()
    plain = path.with_name("plain")
    plain.write_bytes(b"")
    assert path.stat().st_mode == plain.stat().st_mode


def test_loaded_weights_do_not_hang_on_the_file(path) -> None:
    flow = saved(path)
    again = flowkernels.load(path)
    with open(path, "r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert torch.equal(again(torch.ones(3)), flow(torch.ones(3)))


# ---- what cannot be read ----


@pytest.mark.parametrize("keep", [0, 4, 100, -8])
def test_a_truncated_file_is_refused(keep, path) -> None:
    flow = saved(path)
    path.write_bytes(path.read_bytes()[:keep])
    for given in (None, flow):
        with pytest.raises(
            ValueError, match=r"^flowkernels\.load: path must be a whole safetensors file, got '.*trunc"
        ):
            flowkernels.load(path, flow=given)


def test_a_pickle_is_refused(path) -> None:
    torch.save(NSF(2, **SMALL).state_dict(), path)
    with pytest.raises(ValueError, match=r"^flowkernels\.load: path must be a whole safetensors file, got"):
        flowkernels.load(path)


def test_no_file_is_the_systems_own_error(path) -> None:
    with pytest.raises(FileNotFoundError, match=r"flow\.safetensors"):
        flowkernels.load(path)
    with pytest.raises(FileNotFoundError):
        NSF(2, **SMALL).save(path / "nowhere" / "flow")


def test_another_kind_of_safetensors_file_is_refused(path) -> None:
    flow = NSF(2, **SMALL)
    save_file(flow.state_dict(), path)
    with pytest.raises(ValueError, match=r"^flowkernels\.load: path must be a file of flow\.save, .*flow=\.\.\."):
        flowkernels.load(path)
    other = flowkernels.load(path, flow=NSF(2, **SMALL))  # but its weights are weights
    assert torch.equal(other(torch.ones(2)), flow(torch.ones(2)))


@pytest.mark.parametrize("version", [str(FORMAT + 1), "99", "0", "-1", "x", ""])
def test_another_format_is_refused(version, path) -> None:
    saved(path)
    rewritten(path, lambda _, metadata: metadata.update({"flowkernels.format": version, "flowkernels.version": "9.9"}))
    with pytest.raises(ValueError, match=rf"must be {FORMAT} at most, got {version} \(written by flowkernels 9\.9\)"):
        flowkernels.load(path)


def test_other_tensors_are_refused_before_any_is_copied(path) -> None:
    flow = saved(path)
    whole = path.read_bytes()
    key = "transform.transforms.0.conditioner.final_layer.bias"
    mask = "transform.transforms.0.split.mask"

    def changed(change: Any, message: str) -> None:
        path.write_bytes(whole)
        rewritten(path, lambda tensors, _: change(tensors))
        for given in (None, NSF(3, bins=3, linear=None, **SMALL)):
            before = {} if given is None else {k: v.clone() for k, v in given.state_dict().items()}
            with pytest.raises(ValueError, match=r"^flowkernels\.load: .* must be .*, got " + message):
                flowkernels.load(path, flow=given)
            assert given is None or all(torch.equal(v, before[k]) for k, v in given.state_dict().items())

    changed(lambda t: t.pop(key), f"no {key}$")
    changed(lambda t: t.update(extra=torch.ones(1)), "also extra$")
    changed(lambda t: t.update(extra=t.pop(key)), f"no {key} and also extra$")
    changed(lambda t: t.clear(), "no .* and 23 more$")
    changed(lambda t: t.update({key: torch.ones(3)}), r"\[3\]$")
    changed(lambda t: t.update({mask: t[mask].float()}), r"torch\.float32$")
    changed(lambda t: t.update({key: t[key].long()}), r"torch\.int64$")
    assert flow is not None


def test_a_given_flow_must_be_one_and_stays_where_it_is(path) -> None:
    flow = saved(path)
    with pytest.raises(TypeError, match=r"^flowkernels\.load: flow must be a flowkernels\.flows\.Flow, got Linear"):
        flowkernels.load(path, flow=nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"^flowkernels\.load: device must be None beside a flow, .*, got cpu"):
        flowkernels.load(path, "cpu", flow=flow)


def set_first(key: str, value: Any) -> Any:
    return lambda config: config["flow"]["transform"]["transforms"][0].__setitem__(key, value)


WRONG: dict[str, tuple[Any, str]] = {
    "a function of Python": (set_first("class", "os.system"), "class must be one .* got 'os.system'"),
    "a class of torch that is not in the table": (set_first("class", "torch.nn.Bilinear"), "class must be one"),
    "a module": (set_first("class", "subprocess.Popen"), "class must be one"),
    "a private name": (set_first("class", "flows.NSF.__init__"), "class must be one"),
    "a class that is no name": (set_first("class", ["flows.NSF"]), "class must be one"),
    "a class of a map for a module": (set_first("class", "ops.RQS"), "ops.RQS must be built from what it says"),
    "a later argument": (set_first("temperature", 2), "transforms.Coupling must be built .* 'temperature'"),
    "a wrong value": (set_first("mask", [2, 0, 1]), "mask must hold only 0 and 1"),
    "a wrong kind": (set_first("conditioner", 3), "conditioner must be"),
    "a function for an activation": (
        lambda c: c["flow"]["transform"]["transforms"][0]["conditioner"].update(activation={"function": "eval"}),
        "function must be one .* got 'eval'",
    ),
    "a place that is not there": (set_first("conditioner", {"same": 99}), "same must be the place of a part before it"),
    "itself": (set_first("conditioner", {"same": 0}), "same must be the place of a part before it"),
    "a size of which no tensor is": (
        lambda c: c["flow"].update(base={"class": "distributions.UniformBox", "features": 10**12}),
        "whole numbers must be at most 16777216, got 1e\\+12",
    ),
    "no flow": (lambda c: c.update(flow={"class": "torch.nn.Identity"}), "flow must be a flow, got Identity"),
    "no module": (lambda c: c.update(flow=3), "flow must be a flow, got int"),
    "nothing": (lambda c: c.clear(), "flow must be a flow, got NoneType"),
    "no mode": (lambda c: c.update(training=1), "training must be a bool, got 1"),
    "frozen of another flow": (lambda c: c.update(frozen=["w"]), "frozen must name parts of the flow, got 'w'"),
    "modes of another flow": (lambda c: c.update(in_other_mode=[["w"]]), "in_other_mode must name parts"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_description_of_something_else_is_refused(case, path) -> None:
    saved(path)
    change, message = WRONG[case]
    with_config(path, change)
    with pytest.raises(
        CannotBuildError, match=rf"^flowkernels\.load: the description in .* must be of a flow .*{message}"
    ):
        flowkernels.load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 100_000], ids=range(6))
def test_a_description_that_is_none_is_refused(text, path) -> None:
    saved(path)
    rewritten(path, lambda _, metadata: metadata.update({"flowkernels.config": text}))
    with pytest.raises(CannotBuildError, match=r"^flowkernels\.load: the description in .* must be of a flow"):
        flowkernels.load(path)


def test_more_numbers_than_a_file_may_count_to_are_fine_where_it_holds_them(path, monkeypatch) -> None:
    monkeypatch.setattr(flowkernels.saving, "_LARGEST", 2)
    flow = saved(path)
    assert torch.equal(flowkernels.load(path)(torch.ones(3)), flow(torch.ones(3)))


def test_nothing_is_imported_by_the_name_in_a_file(path) -> None:
    """In a process of its own, which would tell."""
    saved(path)
    with_config(path, set_first("class", "antigravity.Flow"))
    (path.parent / "antigravity.py").write_text("raise SystemExit('imported')")
    code = (
        "import sys, flowkernels\n"
        "try: flowkernels.load(sys.argv[1])\n"
        "except flowkernels.saving.CannotBuildError: print('refused', 'antigravity' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path.parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code, path], env=environment, capture_output=True, text=True)
    assert done.stdout == "refused False\n", done.stderr


def test_without_safetensors_both_say_what_to_install(path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (lambda: NSF(2, **SMALL).save(path), lambda: flowkernels.load(path)):
        with pytest.raises(ImportError, match=r"safetensors must be installed, got .*'flowkernels\[io\]'"):
            call()

"""Before and after of a user's model: what is compared, what is timed, what is said, and that nothing is touched."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flowkernels
from flowkernels import _calls, compat, flows
from flowkernels.benchmark import closeness, comparison
from flowkernels.benchmark.__main__ import main
from flowkernels.benchmark.result import Benchmark, Row
from flowkernels.benchmark.timing import Times, turn_by_turn
from tests.process import python

normal = pytest.importorskip("nflows.distributions.normal", reason="nflows is not installed")
transforms = pytest.importorskip("nflows.transforms")
Flow = pytest.importorskip("nflows.flows.base").Flow
ResidualNet = pytest.importorskip("nflows.nn.nets").ResidualNet

pytestmark = pytest.mark.usefixtures("one_thread")


def _net(inputs: int, outputs: int) -> nn.Module:
    return ResidualNet(inputs, outputs, hidden_features=8, context_features=2)


def _model() -> Any:
    torch.manual_seed(0)
    layers = [
        transforms.PiecewiseRationalQuadraticCouplingTransform(
            mask=mask, transform_net_create_fn=_net, tails="linear", tail_bound=3.0, num_bins=4
        )
        for mask in ([0, 1, 0, 1], [1, 0, 1, 0])
    ]
    return Flow(transforms.CompositeTransform(layers), normal.StandardNormal([4]))


def _data(rows: int = 32) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(rows, 4, generator=draw), torch.randn(rows, 2, generator=draw)


def _quick(model: Any, *data: Any, **settings: Any) -> Benchmark:
    return flowkernels.benchmark(model, *data, **{"seconds": 0.01, **settings})


# ---- what is found ----


def test_everything_is_checked_and_timed() -> None:
    found = _quick(_model(), *_data())
    assert found.close and not found.notes
    assert [check.quantity for check in found.checks] == ["log_prob", "ladj", "gradient of weights", "gradient of x"]
    assert all(0 < check.error_before < 1e-4 for check in found.checks)
    assert any(check.difference > 0 for check in found.checks)  # other code ran
    assert [row.what for row in found.rows] == ["log_prob", "sample", "train"]
    assert all(0 < t.least <= t.median for row in found.rows for t in (row.before, row.after))
    assert len(found.report.accelerated) == 4
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 100 and "4 of 4 modules accelerated" in lines
    assert lines[0].startswith("flowkernels.benchmark: Flow, x [32, 4]; CPU")


def test_the_result_is_frozen_and_pickles() -> None:
    found = _quick(_model(), *_data(), what="log_prob")
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.rows = ()  # type: ignore[misc]
    assert str(pickle.loads(pickle.dumps(found))) == str(found)


def test_ratios_are_of_medians_and_of_least_times() -> None:
    row = Row("train", Times(6.0, 8.0), Times(3.0, 2.0), 5)
    assert (row.speedup, row.speedup_of_least) == (4.0, 2.0)


@pytest.mark.parametrize("accelerated_before", [False, True])
def test_before_is_the_original_and_after_the_accelerated(monkeypatch, accelerated_before: bool) -> None:
    model, seen = _model(), []
    if accelerated_before:
        compat.accelerate(model)

    def record(before: Any, after: Any, *_: Any) -> tuple[list, list]:
        seen.extend(len(compat.accelerate(copy.deepcopy(m)).accelerated) for m in (before, after))
        seen.extend(type(m._transform._transforms[0]).__module__.startswith("nflows") for m in (before, after))
        seen.extend(type(m._transform._transforms[0]) for m in (before, after))
        return [], []

    monkeypatch.setattr(comparison, "check", record)
    _quick(model, *_data(), what="log_prob")
    assert seen[-2] is transforms.PiecewiseRationalQuadraticCouplingTransform and seen[-1] is not seen[-2]
    assert issubclass(seen[-1], transforms.PiecewiseRationalQuadraticCouplingTransform)


# ---- the rule ----


@pytest.mark.parametrize("amount", [1e-4, float("nan")])
def test_other_numbers_are_seen_and_not_timed(monkeypatch: pytest.MonkeyPatch, amount: float) -> None:
    def wrong(model: Any) -> compat.Report:
        report = compat.accelerate(model)
        with torch.no_grad():
            next(model.parameters()).add_(amount)
        return report

    monkeypatch.setattr(comparison, "accelerate", wrong)
    found = _quick(_model(), *_data())
    assert not found.close and not found.rows
    assert "NOT the same numbers" in str(found) and "NOT CLOSE: log_prob: largest difference" in str(found)
    assert "nothing was timed" in found.notes[-1]


def test_errors_are_measured_in_float64() -> None:
    x, context = _data()
    model = _model()
    checks, notes = closeness.check(model, model, comparison._modules, x, context)
    assert not notes and all(c.difference == 0 and c.close for c in checks)
    with torch.no_grad():
        truth = copy.deepcopy(model).double().log_prob(x.double(), context.double())
        error = (model.log_prob(x, context) - truth).abs().max().item()
    assert error <= checks[0].error_before < 100 * error
    assert checks[0].largest == truth.abs().max().item()
    assert checks[0].allowed == pytest.approx(2 * checks[0].error_before + 4 * 2**-23 * checks[0].largest)


def test_of_float64_the_original_is_the_truth() -> None:
    x, context = _data()
    found = _quick(_model().double(), x.double(), context.double(), what="log_prob")
    assert found.close and all(0 < check.allowed < 1e-12 for check in found.checks), str(found)


class Affine(nn.Module):
    """A transform that returns (z, ladj), in float32 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0, 3.0]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.dtype is not torch.float32:
            raise TypeError("float32 alone")
        return x * self.scale, self.scale.log().sum().expand(len(x))


def test_what_has_no_float64_is_judged_by_its_rounding_and_what_has_no_sample_is_said() -> None:
    found = _quick(Affine(), torch.randn(8, 2))
    assert found.close and [row.what for row in found.rows] == ["log_prob", "train"]
    assert found.checks[0].error_before > 0  # of data that was moved
    nothing, rounding, sample = found.notes
    assert nothing == "nothing of it was accelerated, so before and after are the same code"
    assert "does not run in float64 (TypeError: float32 alone)" in rounding
    assert sample == "sample: not timed, as the original model cannot (Affine has no sample and no inverse)"


def test_a_model_without_weights_has_no_training_step() -> None:
    model = _model()
    for weight in model.parameters():
        weight.requires_grad_(False)
    found = _quick(model, *_data(), what=("train", "log_prob"))
    assert [row.what for row in found.rows] == ["log_prob"]
    assert "train: not timed" in found.notes[0] and "has no weights to train" in found.notes[0]


# ---- nothing of the user's is touched ----


@pytest.mark.parametrize("interrupted", [None, KeyboardInterrupt, RuntimeError])
def test_the_model_stays_as_it_is(monkeypatch: pytest.MonkeyPatch, interrupted: type[BaseException] | None) -> None:
    model, (x, context) = _model().train(), _data()
    x.requires_grad_()
    (-model.log_prob(x, context).mean()).backward()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [p.grad for p in model.parameters()]
    kept = [g.clone() for g in grads if g is not None]
    classes, random = [type(m) for m in model.modules()], torch.get_rng_state()
    if interrupted is not None:

        def stop(*_: Any) -> Any:
            torch.rand(1)
            raise interrupted("stopped")

        monkeypatch.setattr(comparison, "turn_by_turn", stop)
        with pytest.raises(interrupted):
            _quick(model, x, context, what="train")
    else:
        _quick(model, x, context)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(a is p.grad for a, p in zip(grads, model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip((g for g in grads if g is not None), kept, strict=True))
    assert [type(m) for m in model.modules()] == classes and model.training
    assert torch.equal(torch.get_rng_state(), random) and torch.is_grad_enabled()


def test_it_trains_under_no_grad_and_inference_mode_too() -> None:
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert _quick(_model(), *_data(), what="train").rows


def test_steps_do_not_move_the_weights() -> None:
    model, (x, context) = _model(), _data()
    before = copy.deepcopy(model.state_dict())
    step = comparison._CALLS["train"](model, x, context)
    step(), step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is not None for p in model.parameters())


# ---- timing ----


def test_calls_take_turns() -> None:
    calls: list[str] = []
    waits: list[int] = []
    before, after, rounds = turn_by_turn(
        lambda: calls.append("before"), lambda: calls.append("after"), 1e-9, lambda: waits.append(len(calls))
    )
    assert rounds == 3 and before.least > 0 and after.median >= after.least
    turns = [a for a, b in zip(calls, [*calls[1:], ""], strict=True) if a != b]
    assert turns[-6:] == ["before", "after"] * 3
    assert waits[-1] == len(calls)


# ---- how other libraries are asked ----


def _libraries() -> dict[str, Any]:
    def zuko_nsf() -> Any:
        return pytest.importorskip("zuko").flows.NSF(4, 2, transforms=1, hidden_features=(8,))

    def normflows_coupling() -> Any:
        nf = pytest.importorskip("normflows")
        layer = nf.flows.CoupledRationalQuadraticSpline(4, 1, 8, num_context_channels=2)
        return nf.ConditionalNormalizingFlow(nf.distributions.DiagGaussian(4, trainable=False), [layer])

    def glasflow_nsf() -> Any:
        return pytest.importorskip("glasflow").CouplingNSF(
            n_inputs=4, n_transforms=1, n_conditional_inputs=2, n_neurons=8
        )

    def freia_block() -> Any:
        ff, fm = pytest.importorskip("FrEIA.framework"), pytest.importorskip("FrEIA.modules")
        chain = ff.SequenceINN(4)
        net = lambda i, o: nn.Sequential(nn.Linear(i, 8), nn.ReLU(), nn.Linear(8, o))  # noqa: E731
        chain.append(fm.AllInOneBlock, cond=0, cond_shape=(2,), subnet_constructor=net)
        return chain

    def pyro_spline() -> Any:
        T, dist = pytest.importorskip("pyro.distributions.transforms"), pytest.importorskip("pyro.distributions")
        base = dist.Normal(torch.zeros(4), torch.ones(4)).to_event(1)
        layer = T.conditional_spline(4, 2, hidden_dims=[8], count_bins=4)
        return dist.ConditionalTransformedDistribution(base, [layer])

    def sbi_maf() -> Any:
        build = pytest.importorskip("sbi.neural_nets").posterior_nn("maf", hidden_features=8, num_transforms=1)
        return build(torch.randn(50, 4), torch.randn(50, 2))

    def native() -> Any:
        return flows.NSF(4, context=2, transforms=1, hidden=(8,))

    return {
        f.__name__: f for f in (zuko_nsf, normflows_coupling, glasflow_nsf, freia_block, pyro_spline, sbi_maf, native)
    }


@pytest.mark.parametrize("name", list(_libraries()))
def test_models_of_other_libraries(name: str) -> None:
    torch.manual_seed(0)
    model, (x, context) = _libraries()[name](), _data(16)
    found = _quick(model, x, context)
    assert found.close, str(found)
    assert [row.what for row in found.rows] == ["log_prob", "sample", "train"], found.notes
    with torch.no_grad():
        drawn = _calls.sample(model, x, context)
        assert drawn.shape == x.shape and _calls.log_prob(model, drawn, context).shape == (16,)


def test_models_without_a_context() -> None:
    x = _data()[0]
    made = transforms.MaskedAffineAutoregressiveTransform(features=4, hidden_features=8)
    for model in (Flow(made, normal.StandardNormal([4])), made, flows.MAF(4, transforms=1, hidden=(8,))):
        found = _quick(model, x)
        assert found.close and len(found.rows) == 3, str(found)


# ---- what is wrong is said in three parts ----


class NoCopy(nn.Linear):
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("a handle")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": 3}, TypeError, r"model must be a torch.nn.Module, a list .*, got int"),
        ({"model": nn.Linear(4, 4)}, TypeError, r"model must have log_prob\(x, context\), .*, got Linear, of which no"),
        ({"model": NoCopy(4, 4)}, TypeError, "model must be one that copy.deepcopy copies, .*, got NoCopy: a handle"),
        ({"x": [1.0]}, TypeError, "x must be a torch.Tensor, got list"),
        ({"x": torch.zeros(2, 4).long()}, TypeError, "x must be of floating-point numbers, got torch.int64"),
        ({"x": torch.zeros(0, 4)}, ValueError, r"x must be \[B, ...\] with a row at least, got \[0, 4\]"),
        ({"context": torch.zeros(3, 2)}, ValueError, "context must have a row for each of x, 32, got 3"),
        ({"seconds": 0}, ValueError, "seconds must be a number above 0, got 0"),
        ({"what": "sampling"}, ValueError, "what must be some of log_prob, sample, train, got 'sampling'"),
        ({"what": ()}, ValueError, r"what must be some of log_prob, sample, train, got \(\)"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    x, context = _data()
    arguments = {"model": _model(), "x": x, "context": context if "model" not in change else None, **change}
    with pytest.raises(error, match=f"flowkernels.benchmark: {message}"):
        flowkernels.benchmark(**arguments)


# ---- the picture ----


def test_the_chart_has_a_pair_of_bars_a_row(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    rows = (Row("log_prob", Times(0.3, 0.4), Times(0.1, 0.1), 9), Row("sample", Times(1, 1), Times(2, 2), 3))
    found = Benchmark("Flow", (8, 2), "CPU", compat.Report([]), (), rows)
    (ax,) = found.plot(tmp_path / "out.png").axes
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([1, 0.25, 1, 2])
    assert [text.get_text() for text in ax.texts] == [
        "400 ms",
        "100 ms, 4.00× as fast",
        "1.00 s",
        "2.00 s, 0.50× as fast",
    ]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["log_prob", "sample"]
    assert ax.get_xlim()[1] > 2 and "shorter is better" in ax.get_xlabel()
    assert dataclasses.replace(found, rows=()).plot().axes[0].texts[0].get_text() == "nothing was timed"


# ---- the command ----


MODEL = """
import torch
from beside import features
from flowkernels.flows import MAF

def make():
    return MAF(features, context=2, transforms=1, hidden=(8,))

def with_data():
    return make(), torch.randn(20, 4), torch.randn(20, 2)

def many():
    return 1, 2, 3, 4

def broken():
    raise ValueError("of the user's")

number = 3
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    (tmp_path / "beside.py").write_text("features = 4\n")
    (tmp_path / "usermodel.py").write_text(MODEL)
    return tmp_path / "usermodel.py"


def test_the_command_times_a_file(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], threads) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    common = ["--seconds", "0.01", "--threads", "1"]
    out = tmp_path / "out.png"
    made = [f"{file}:make", "--rows", "12", "--features", "4", "--context", "2", "--plot", str(out)]
    assert main([*made, *common]) == 0
    printed = capsys.readouterr().out
    assert "MAF, x [12, 4]" in printed and "train" in printed and out.stat().st_size > 1000
    assert main([f"{file}:with_data", "--rows", "5", "--what", "log_prob", *common]) == 0
    printed = capsys.readouterr().out
    assert "x [5, 4]" in printed and "train" not in printed
    assert main(["usermodel:with_data", "--what", "log_prob", *common]) == 0  # a module that can be imported
    assert "x [20, 4]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["FILE"], "model must be FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION, got '"),
        (["nowhere.py:make"], "model must name a file that exists, got 'nowhere.py'"),
        (["no_such.module:make"], "model must name a module that can be imported, got 'no_such.module'"),
        (["FILE:number"], "got 'number', which is none"),
        (["FILE:nothing"], "got 'nothing', which it lacks"),
        (["FILE:make"], "--features must be given, as "),
        (["FILE:with_data", "--features", "4"], "--features must be left out where "),
        (["FILE:with_data", "--rows", "21"], "--rows must be at most 20, which "),
        (["FILE:make", "--features", "0"], "--features must be at least 1, got 0"),
        (["FILE:many"], "must return a model, (model, x) or (model, x, context), got 4 values"),
        (["FILE:with_data", "--what", "speed"], "what must be some of log_prob, sample, train, got ['speed']"),
    ],
)
def test_the_command_says_what_is_wrong(
    file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([a.replace("FILE", str(file)) for a in arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and not printed.out


def test_the_function_is_a_command_too(file: Path) -> None:
    """Though a package has its name."""
    done = python(
        f"""
        import runpy, sys, flowkernels
        sys.argv = ["benchmark", {str(file)!r} + ":with_data", "--seconds", "0.01", "--threads", "1"]
        assert callable(flowkernels.benchmark)
        runpy.run_module("flowkernels.benchmark", run_name="__main__", alter_sys=True)
        """
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.startswith("flowkernels.benchmark: MAF, x [20, 4]")


def test_errors_of_the_users_function_keep_their_traceback(file: Path) -> None:
    with pytest.raises(ValueError, match="of the user's"):
        main([f"{file}:broken"])

"""Flows in other runtimes: ONNX, AOTInductor; and how the profiler names their ops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import flowkernels
from flowkernels.flows import MAF, NSF
from flowkernels.ops import rqs

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]


class LogProb(nn.Module):
    """What is exported: a module whose forward is the density."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.flow.log_prob(x, context)


def nsf() -> nn.Module:
    return NSF(3, 2, transforms=2, hidden=(8, 8), bins=4, linear="lu")


def maf() -> nn.Module:
    return MAF(3, 2, transforms=2, hidden=(8, 8))


def accelerated_nflows() -> nn.Module:
    pytest.importorskip("nflows")
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.nn.nets import ResidualNet
    from nflows.transforms import CompositeTransform, PiecewiseRationalQuadraticCouplingTransform

    layers = [
        PiecewiseRationalQuadraticCouplingTransform(
            [i, 1 - i, i], lambda i, o: ResidualNet(i, o, hidden_features=8, context_features=2), num_bins=4,
            tails="linear", tail_bound=3.0,
        )
        for i in range(2)
    ]  # fmt: skip
    flow = Flow(CompositeTransform(layers), StandardNormal([3]))
    assert flowkernels.accelerate(flow).accelerated
    return flow


def model(make) -> LogProb:
    torch.manual_seed(0)
    flow = make()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return LogProb(flow).eval()


# ---- ONNX ----


@pytest.mark.parametrize(
    ("make", "backend"),
    [
        pytest.param(nsf, "auto", marks=pytest.mark.slow),
        (maf, "auto"),
        (accelerated_nflows, "auto"),
        pytest.param(nsf, "reference", marks=pytest.mark.slow),
        pytest.param(accelerated_nflows, "reference", marks=pytest.mark.slow),
    ],
)
def test_onnx_gives_the_same_numbers_for_any_batch(make, backend, tmp_path) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    if backend == "auto" and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9):
        pytest.skip("is_in_onnx_export() of this torch may not know of dynamo=True")
    pytest.importorskip("onnxscript")
    module, path = model(make), tmp_path / "flow.onnx"
    batch = torch.export.Dim("batch")
    with flowkernels.use_backend(backend):
        torch.onnx.export(
            module, (torch.randn(5, 3), torch.randn(5, 2)), path, dynamo=True, verbose=False,
            dynamic_shapes=({0: batch}, {0: batch}), input_names=["x", "context"], output_names=["log_prob"],
        )  # fmt: skip
    graph = onnx.load(path)
    kinds = {node.op_type for part in (graph.graph, *graph.functions) for node in part.node}
    assert not kinds & {"NonZero", "GatherND"} and {node.domain for node in graph.graph.node} <= {""}
    session = runtime.InferenceSession(path)
    for n in (2, 300):
        x, context = 3 * torch.randn(n, 3), torch.randn(n, 2)  # inside of the splines' box and outside
        (got,) = session.run(["log_prob"], {"x": x.numpy(), "context": context.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(got), module(x, context), rtol=1e-4, atol=1e-4)


# ---- AOTInductor ----


@pytest.mark.slow
def test_a_package_of_aot_inductor_gives_the_same_numbers(tmp_path) -> None:
    inductor = pytest.importorskip("torch._inductor")
    if not hasattr(inductor, "aoti_compile_and_package"):
        pytest.skip("this torch has no aoti_compile_and_package")
    module, batch = model(nsf), torch.export.Dim("batch", min=2)
    with torch.no_grad(), flowkernels.use_backend("reference"):
        shapes = ({0: batch}, {0: batch})
        exported = torch.export.export(module, (torch.randn(5, 3), torch.randn(5, 2)), dynamic_shapes=shapes)
        assert not [n for n in exported.graph.nodes if "flowkernels" in str(n.target)]  # so it needs no flowkernels
        path = inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "flow.pt2"))
    loaded = inductor.aoti_load_package(path)
    for n in (2, 300):
        x, context = 3 * torch.randn(n, 3), torch.randn(n, 2)
        with torch.no_grad():
            torch.testing.assert_close(loaded(x, context), module(x, context), rtol=1e-4, atol=1e-4)


# ---- the profiler ----


@pytest.mark.parametrize("grad", [False, True])
def test_the_profiler_names_the_op(grad) -> None:
    x, params = torch.randn(8, 3), torch.randn(8, 3, 11, requires_grad=grad)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        y, ladj = rqs(x, params, bins=4)
        if grad:
            (y.sum() + ladj.sum()).backward()
    names = {event.key for event in profile.key_averages()}
    assert "flowkernels::rqs" in names and not [name for name in names if "_Fused" in name]
    assert ("flowkernels::rqsBackward" in names) == grad

"""Every way PyTorch may call an op: the property matrix. One table, for the spline and every later op."""

from __future__ import annotations

import copy
import operator
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo.testing
import torch.autograd.forward_ad as fw
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from flowkernels import BackendUnavailableError, backends, ops, use_backend
from tests.process import python

func = torch.func
OP = torch.ops.flowkernels.rqs.default
OP_BWD = torch.ops.flowkernels.rqs_bwd.default


def rqs(x: Tensor, params: Tensor, *, inverse: bool = False, backend: str | None = None) -> tuple[Tensor, Tensor]:
    return ops.rqs(x, params, bins=3, inverse=inverse, backend=backend)


def plain(x: Tensor, params: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """The truth of this file: plain PyTorch, which every mode of PyTorch knows."""
    return rqs(x, params, inverse=inverse, backend="reference")


def scalar(x: Tensor, params: Tensor, f=rqs) -> Tensor:
    y, ladj = f(x, params)
    return y.sin().sum() + (ladj * ladj).sum()


def inputs(n: int = 3, d: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = 5 * torch.rand(n, d, generator=g, dtype=torch.float64) - 2.5
    return x.requires_grad_(), torch.randn(n, d, 8, generator=g, dtype=torch.float64).requires_grad_()


def close(a, b) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Each test compiles for itself; also hides an earlier test's guards."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# ---- autograd ----


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(rqs, inputs())


@pytest.mark.parametrize("inverse", [False, True])
def test_gradgradcheck(inverse) -> None:
    assert torch.autograd.gradgradcheck(lambda x, p: rqs(x, p, inverse=inverse), inputs(2, 1))


def test_gradcheck_in_forward_mode_and_batched() -> None:
    assert torch.autograd.gradcheck(rqs, inputs(2, 1), check_forward_ad=True, check_batched_grad=True,
                                    check_batched_forward_grad=True)  # fmt: skip


def test_first_and_second_gradients_agree_with_plain() -> None:
    x, p = inputs()
    for f in (rqs, plain):
        (g,) = torch.autograd.grad(scalar(x, p, f), x, create_graph=True)
        second = torch.autograd.grad((g * g).sum(), (x, p))
        if f is rqs:
            mine = (g.detach(), *second)
    close(mine, (g.detach(), *second))


@pytest.mark.parametrize("create_graph", [False, True])
def test_params_that_depend_on_x(create_graph) -> None:
    """Autoregressive: x reaches the op twice, directly and through its params."""
    x, p = inputs()
    w = p.detach()

    def f(route):
        v = x.detach().requires_grad_()
        return torch.autograd.grad(scalar(v, v.roll(1, -1)[..., None] * w, route), v, create_graph=create_graph)[0]

    close(f(rqs).detach(), f(plain).detach())


def test_hessian_where_params_depend_on_x() -> None:
    x, p = inputs(2, 2)
    w = p.detach()

    def of(route):
        return torch.autograd.functional.hessian(lambda v: scalar(v, v.roll(1, -1)[..., None] * w, route), x.detach())

    close(of(rqs), of(plain))


def test_x_and_params_that_share_storage() -> None:
    base = torch.randn(4, 3, 9, dtype=torch.float64)
    grads = []
    for f in (rqs, plain):
        b = base.clone().requires_grad_()
        grads.append(torch.autograd.grad(scalar(b[..., 0], b[..., 1:], f), b, create_graph=True)[0].detach())
    close(*grads)


def test_forward_mode() -> None:
    x, p = (t.detach() for t in inputs())
    found = []
    for f in (rqs, plain):
        with fw.dual_level():
            out = f(fw.make_dual(x, torch.ones_like(x)), fw.make_dual(p, torch.ones_like(p)))
            found.append([fw.unpack_dual(o).tangent for o in out])
    assert all(t is not None for t in found[0])
    close(*found)


def test_forward_over_reverse() -> None:
    x, p = inputs()
    v = torch.ones_like(x)
    found = []
    for f in (rqs, plain):
        with fw.dual_level():
            (g,) = torch.autograd.grad(scalar(fw.make_dual(x, v), p, f), x, create_graph=True)
            found.append(fw.unpack_dual(g).tangent)
    assert found[0] is not None
    close(*found)


def test_a_dual_gradient_of_a_graph_built_before() -> None:
    """The tangent enters in the backward only: it must not be dropped."""
    x, p = inputs()
    found = []
    for f in (rqs, plain):
        y, _ = f(x, p)
        with fw.dual_level():
            given = fw.make_dual(torch.ones_like(y), torch.full_like(y, 2.0))
            (g,) = torch.autograd.grad(y, x, given)
            found.append(fw.unpack_dual(g).tangent)
    assert found[1] is not None and found[0] is not None, "the tangent was dropped"
    close(*found)


def test_batched_gradients() -> None:
    x, p = inputs()
    g = torch.randn(5, *x.shape, dtype=torch.float64)
    found = [torch.autograd.grad(f(x, p)[0], (x, p), g, is_grads_batched=True) for f in (rqs, plain)]
    close(*found)


def test_vmap_over_autograd_grad() -> None:
    """The recipe for a Jacobian in torch.vmap's own documentation."""
    x, p = inputs()
    found = []
    for f in (rqs, plain):
        y, _ = f(x, p)
        eye = torch.eye(y.numel(), dtype=y.dtype).reshape(-1, *y.shape)
        found.append(func.vmap(lambda v, y=y: torch.autograd.grad(y, (x, p), v, retain_graph=True))(eye))
    close(*found)


@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_functional_jacobian_and_hessian(strategy) -> None:
    x, p = (t.detach() for t in inputs())
    functional = torch.autograd.functional
    close(
        functional.jacobian(lambda v: rqs(v, p)[0], x, vectorize=True, strategy=strategy),
        functional.jacobian(lambda v: plain(v, p)[0], x),
    )
    close(
        functional.hessian(lambda v: scalar(v, p, rqs), x, vectorize=True, outer_jacobian_strategy=strategy),
        functional.hessian(lambda v: scalar(v, p, plain), x),
    )


def test_no_grad_and_inference_mode() -> None:
    x, p = inputs()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y, ladj = rqs(x, p)
        assert not y.requires_grad and not ladj.requires_grad
        close((y.clone(), ladj.clone()), tuple(t.detach() for t in plain(x, p)))


def test_inference_tensors_as_inputs() -> None:
    with torch.inference_mode():
        x, p = (t.detach().clone() for t in inputs())
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    y, _ = rqs(x.clone() * weight, p.clone())
    y.sum().backward()
    assert weight.grad is not None


def test_retain_graph_and_a_second_backward() -> None:
    x, p = inputs()
    y, ladj = rqs(x, p)
    first = torch.autograd.grad([y, ladj], (x, p), [y.detach(), ladj.detach()], retain_graph=True)
    second = torch.autograd.grad([y, ladj], (x, p), [y.detach(), ladj.detach()])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# ---- torch.func ----

TRANSFORMS = {
    "vmap": lambda f: lambda x, p: func.vmap(f)(x, p),
    "vmap-in-dims": lambda f: lambda x, p: func.vmap(f, in_dims=(1, None))(x[..., None].expand(-1, -1, 4), p),
    "vmap-params-only": lambda f: lambda x, p: func.vmap(f, in_dims=(None, 0))(x[0], p),
    "vmap-vmap": lambda f: lambda x, p: func.vmap(func.vmap(f))(x[None, :, :, None], p[None, :, :, None]),
    "grad": lambda f: lambda x, p: func.grad(lambda a, b: scalar(a, b, f), argnums=(0, 1))(x, p),
    "vmap-grad": lambda f: lambda x, p: func.vmap(func.grad(lambda a, b: scalar(a, b, f), argnums=(0, 1)))(x, p),
    "vjp": lambda f: lambda x, p: func.vjp(f, x, p)[1]((torch.ones_like(x), torch.ones_like(x[:, 0]))),
    "jvp": lambda f: lambda x, p: func.jvp(f, (x, p), (torch.ones_like(x), torch.ones_like(p))),
    "jacfwd": lambda f: lambda x, p: func.jacfwd(f, argnums=(0, 1))(x, p),
    "jacrev": lambda f: lambda x, p: func.jacrev(f, argnums=(0, 1))(x, p),
    "jacrev-jacrev": lambda f: lambda x, p: func.jacrev(func.jacrev(lambda v: f(v, p)[0]))(x),
    "jacfwd-jacrev": lambda f: lambda x, p: func.jacfwd(func.jacrev(lambda v: f(v, p)[1]))(x),
    "hessian": lambda f: lambda x, p: func.hessian(lambda v: scalar(v, p, f))(x),
    "linearize": lambda f: lambda x, p: func.linearize(f, x, p)[1](torch.ones_like(x), torch.ones_like(p)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_torch_func(name, inverse) -> None:
    x, p = (t.detach() for t in inputs())
    if name == "vmap-in-dims":
        x, p = x[:, :1].expand(3, 2).contiguous(), p[:, :1].expand(3, 4, 8).contiguous()
    mine, truth = (TRANSFORMS[name](lambda a, b, f=f: f(a, b, inverse=inverse))(x, p) for f in (rqs, plain))
    close(mine, truth)


def test_torch_func_where_autograd_is_on_too() -> None:
    """An outer graph around a transform: both gradients arrive."""
    x, p = inputs()
    found = []
    for f in (rqs, plain):
        out = func.vmap(func.grad(lambda a, b, f=f: scalar(a, b, f)))(x, p)
        found.append(torch.autograd.grad(out.square().sum(), (x, p)))
    close(*found)


# ---- torch.compile ----


def compiled_matches(f, *args, **options) -> None:
    torch._dynamo.reset()
    g = torch.compile(f, fullgraph=True, **options)
    close(g(*args), f(*args))


@pytest.mark.parametrize("dynamic", [None, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("compiler", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile_forward_and_backward(compiler, dynamic) -> None:
    def step(x, p):
        y, ladj = rqs(x * 1.1, p)
        return y.sin().sum() + ladj.square().sum()

    x, p = inputs(5, 2)
    truth = torch.autograd.grad(step(x, p), (x, p))
    compiled = torch.compile(step, backend=compiler, fullgraph=True, dynamic=dynamic)
    out = compiled(x, p)
    close(out, step(x, p))
    close(torch.autograd.grad(out, (x, p)), truth)


def test_compiled_without_gradients_and_in_inference_mode() -> None:
    x, p = (t.detach() for t in inputs())
    compiled_matches(rqs, x, p, backend="aot_eager")
    with torch.inference_mode():
        close(torch.compile(rqs, backend="aot_eager", fullgraph=True)(x, p), rqs(x, p))


def test_compiled_graph_holds_one_opaque_call() -> None:
    graphs = []

    def spy(gm, _):
        graphs.append(gm)
        return gm

    x, p = (t.detach() for t in inputs())
    torch.compile(rqs, backend=spy, fullgraph=True)(x, p)
    assert len(graphs) == 1
    targets = [n.target for n in graphs[0].graph.nodes if n.op == "call_function"]
    assert targets.count(OP) == 1
    # Dynamo leaves unused reads of attributes behind, which no backend keeps; arithmetic would be used.
    used = [n for n in graphs[0].graph.nodes if n.op in ("call_function", "call_method") and n.users]
    assert {n.target for n in used} == {OP, operator.getitem}, f"plain PyTorch was traced beside the op: {used}"


def test_no_graph_breaks() -> None:
    x, p = inputs()
    explained = torch._dynamo.explain(rqs)(x, p)
    assert explained.graph_count == 1 and explained.graph_break_count == 0, explained


@pytest.mark.parametrize("dynamic", [None, True], ids=["automatic", "dynamic"])
def test_a_new_batch_size_does_not_recompile(dynamic) -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(rqs, backend=counter, fullgraph=True, dynamic=dynamic)
    counts = []
    for n in (5, 7, 9, 33):
        x, p = inputs(n)
        close(compiled(x, p), rqs(x, p))
        counts.append(counter.frame_count)
    # "automatic" learns from the second size that the size varies
    first = 0 if dynamic else 1
    assert counts[first:] == [counts[first]] * len(counts[first:]), f"compilations after each size: {counts}"


def test_a_setting_is_a_constant_of_the_graph() -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")

    @torch.compile(backend=counter, fullgraph=True)
    def f(x, p, bound):
        return ops.rqs(x, p, bins=3, tail_bound=bound)

    x, p = (t.detach() for t in inputs())
    for bound in (3.0, 2.0, 3.0):
        close(f(x, p, bound), ops.rqs(x, p, bins=3, tail_bound=bound))


def test_compiled_settings_are_checked() -> None:
    x, p = inputs()
    with pytest.raises(Exception, match=r"bins must be an integer|Observed exception"):  # torch 2.6 says no more
        torch.compile(lambda x, p: ops.rqs(x, p, bins=0), backend="eager", fullgraph=True)(x, p)


def test_compile_follows_use_backend() -> None:
    graphs = []

    def spy(gm, _):
        graphs.append([n.target for n in gm.graph.nodes])
        return gm

    compiled = torch.compile(lambda x, p: rqs(x, p), backend=spy, fullgraph=True)
    x, p = (t.detach() for t in inputs())
    compiled(x, p)
    with use_backend("reference"):
        compiled(x, p)
    assert OP in graphs[0] and len(graphs) == 2 and OP not in graphs[1]


@pytest.mark.parametrize(
    "name",
    [
        "vmap-grad",
        "jvp",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("vmap", "grad", "jacrev", "jacfwd", "hessian")),
    ],
)
def test_compile_of_a_transform(name) -> None:
    x, p = (t.detach() for t in inputs())
    easy = TRANSFORMS[name](lambda x, p: (x.sin() * p[..., 0], x.sum(-1)))
    try:
        torch.compile(easy, backend="aot_eager", fullgraph=True)(x, p)
    except torch._dynamo.exc.TorchDynamoException as why:
        pytest.skip(f"this torch compiles the transform of no function with two outputs: {str(why)[:80]}")
    found = torch.compile(TRANSFORMS[name](rqs), backend="aot_eager", fullgraph=True)(x, p)
    close(found, TRANSFORMS[name](plain)(x, p))


def test_transform_of_a_compiled_function() -> None:
    x, p = (t.detach() for t in inputs())
    compiled = torch.compile(rqs, backend="aot_eager")
    close(func.vmap(compiled)(x, p), func.vmap(plain)(x, p))


def test_compiled_autograd() -> None:
    x, p = inputs()
    truth = torch.autograd.grad(scalar(x, p), (x, p))

    def step():
        scalar(x, p).backward()

    with compiled_autograd._enable(torch.compile(backend="aot_eager")):
        step()
    close((x.grad, p.grad), truth)


def test_compile_of_mixed_dtypes_and_strides() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, generator=g).t().requires_grad_()
    p = torch.randn(5, 2, 8, generator=g).bfloat16().requires_grad_()
    truth = torch.autograd.grad(scalar(x, p).float(), (x, p))
    out = torch.compile(scalar, backend="aot_eager", fullgraph=True)(x, p)
    found = torch.autograd.grad(out, (x, p))
    assert [t.dtype for t in found] == [torch.float32, torch.bfloat16]
    torch.testing.assert_close(found, truth)


# ---- export and tracing ----


class Module(torch.nn.Module):
    def forward(self, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        return rqs(x, p)


@pytest.mark.parametrize("dynamic", [False, True])
def test_export(dynamic, tmp_path) -> None:
    x, p = (t.detach() for t in inputs(5))
    dims = {"x": {0: torch.export.Dim("rows")}, "p": {0: torch.export.Dim("rows")}} if dynamic else None
    program = torch.export.export(Module(), (x, p), dynamic_shapes=dims)
    assert [n.target for n in program.graph.nodes].count(OP) == 1
    torch.export.save(program, tmp_path / "spline.pt2")
    loaded = torch.export.load(tmp_path / "spline.pt2").module()
    if dynamic:
        x, p = (t.detach() for t in inputs(11))
    close(loaded(x, p), rqs(x, p))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(mode) -> None:
    x, p = (t.detach() for t in inputs())
    traced = make_fx(lambda x, p: rqs(x, p), tracing_mode=mode)(x, p)
    assert OP in [n.target for n in traced.graph.nodes]
    x, p = (t.detach() for t in inputs(seed=1))
    close(traced(x, p), rqs(x, p))


@pytest.mark.parametrize("mode", ["real", "fake"])
def test_make_fx_of_the_gradient(mode) -> None:
    def step(x, p):
        x, p = x.detach().requires_grad_(), p.detach().requires_grad_()
        return torch.autograd.grad(scalar(x, p), (x, p))

    x, p = (t.detach() for t in inputs())
    traced = make_fx(step, tracing_mode=mode)(x, p)
    x, p = (t.detach() for t in inputs(seed=1))
    close(traced(x, p), step(x, p))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_jit_trace() -> None:
    x, p = (t.detach() for t in inputs())
    traced: Any = torch.jit.trace(rqs, (x, p))
    x, p = (t.detach() for t in inputs(seed=1))
    close(traced(x, p), rqs(x, p))


# ---- what others may observe ----


def test_a_dispatch_mode_sees_the_op() -> None:
    class Spy(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            self.seen.append(op)
            return op(*args, **(kwargs or {}))

    x, p = inputs()
    truth = torch.autograd.grad(scalar(x, p), (x, p))
    with Spy() as spy:
        found = torch.autograd.grad(scalar(x, p), (x, p))
    assert OP in spy.seen and OP_BWD in spy.seen
    close(found, truth)


def test_flop_counter_runs() -> None:
    x, p = inputs()
    with FlopCounterMode(display=False):
        scalar(x, p).backward()
    assert x.grad is not None


def test_second_gradients_under_a_mode() -> None:
    """The op's own backward is opaque: differentiated again it must be right or raise, never silent."""
    x, p = inputs()
    found = []
    for f in (rqs, plain):
        with FlopCounterMode(display=False), warnings.catch_warnings():
            warnings.simplefilter("error")
            (g,) = torch.autograd.grad(scalar(x, p, f), x, create_graph=True)
            found.append(torch.autograd.grad(g.square().sum(), (x, p)))
    close(*found)


def test_a_tensor_subclass() -> None:
    class Named(Tensor):
        pass

    x, p = inputs()
    named = x.detach().as_subclass(Named).requires_grad_()
    found = torch.autograd.grad(scalar(named, p), (named, p))
    truth = torch.autograd.grad(scalar(x, p), (x, p))
    for a, b in zip(found, truth, strict=True):
        close(a.as_subclass(Tensor), b)


def test_second_gradients_of_a_tensor_subclass() -> None:
    class Named(Tensor):
        pass

    x, p = inputs()
    found = []
    for v in (x.detach().as_subclass(Named).requires_grad_(), x):
        (g,) = torch.autograd.grad(scalar(v, p), v, create_graph=True)
        found.append([t.as_subclass(Tensor) for t in torch.autograd.grad(g.square().sum(), (v, p))])
    close(*found)


def test_a_parameter_and_a_buffer() -> None:
    x, p = inputs()
    weight = torch.nn.Parameter(p.detach().clone())
    y, _ = rqs(x, weight)
    y.sum().backward()
    assert weight.grad is not None and type(y) is Tensor


def test_fake_tensors() -> None:
    with FakeTensorMode():
        x, p = torch.empty(4, 2, requires_grad=True), torch.empty(4, 2, 8, dtype=torch.bfloat16)
        y, ladj = rqs(x, p)
        y.sum().backward()
        assert (y.shape, y.dtype, ladj.shape, ladj.dtype) == ((4, 2), torch.float32, (4,), torch.float32)
        assert x.grad is not None and x.grad.shape == (4, 2)


def test_fake_tensors_outside_of_their_mode() -> None:
    """No mode is active then, and their pointer is still none."""
    with FakeTensorMode():
        x, p = torch.empty(4, 2), torch.empty(4, 2, 8)
    y, ladj = rqs(x, p)
    assert type(y) is type(x) and (y.shape, ladj.shape) == ((4, 2), (4,))


def test_meta_tensors() -> None:
    """Shapes without data, as when a model is built on meta; nothing to warn about."""
    x = torch.empty(4, 2, device="meta", dtype=torch.bfloat16)
    p = torch.empty(4, 2, 8, device="meta", dtype=torch.bfloat16)
    y, ladj = rqs(x, p)
    assert y.device.type == "meta" and (y.shape, ladj.shape) == ((4, 2), (4,)) and ladj.dtype == torch.float32


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoint(reentrant) -> None:
    x, p = inputs()
    truth = torch.autograd.grad(scalar(x, p), (x, p))
    checkpoint(scalar, x, p, use_reentrant=reentrant).backward()
    close((x.grad, p.grad), truth)


def test_selective_checkpoint_can_keep_the_op() -> None:
    from functools import partial

    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

    def policy(ctx, op, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE if op is OP else CheckpointPolicy.PREFER_RECOMPUTE

    x, p = inputs()
    truth = torch.autograd.grad(scalar(x, p), (x, p))
    context = partial(create_selective_checkpoint_contexts, policy)
    checkpoint(scalar, x, p, use_reentrant=False, context_fn=context).backward()
    close((x.grad, p.grad), truth)


def test_checkpoint_under_compile() -> None:
    x, p = inputs()
    truth = torch.autograd.grad(scalar(x, p), (x, p))
    compiled = torch.compile(
        lambda x, p: checkpoint(scalar, x, p, use_reentrant=False), backend="aot_eager", fullgraph=True
    )
    close(torch.autograd.grad(compiled(x, p), (x, p)), truth)


def test_saved_tensors_on_cpu_hook() -> None:
    x, p = inputs()
    truth = torch.autograd.grad(scalar(x, p), (x, p))
    with torch.autograd.graph.save_on_cpu():
        out = scalar(x, p)
    close(torch.autograd.grad(out, (x, p)), truth)


@pytest.mark.parametrize("bound", ["op", "bwd"])
def test_opcheck(bound) -> None:
    x, p = inputs()
    settings = (3, "linear", -3.0, 3.0, -3.0, 3.0, 1e-3, 1e-3, 1e-3, 1.0, 0.0, False, 1.0, 0.0, "cpu")
    if bound == "op":
        torch.library.opcheck(OP, (x, p, *settings))
        torch.library.opcheck(OP, (x.detach().float(), p.detach().bfloat16(), *settings))
        return
    x, p = x.detach(), p.detach()
    y, ladj = rqs(x, p)
    # Its gradient is not a gradient of the op: the router takes the reference for that.
    utils = ("test_schema", "test_faketensor")
    for grads in ([y, ladj], [y, None], [None, ladj]):
        for needs in ([True, True], [True, False], [False, True]):
            torch.library.opcheck(OP_BWD, (grads, [x, p], needs, *settings), test_utils=utils)


@pytest.mark.parametrize("wide", [torch.float32, torch.bfloat16])
def test_autocast(wide) -> None:
    """A conditioner under autocast gives bfloat16 params beside a float32 x."""
    torch.manual_seed(0)
    net = torch.nn.Linear(2, 2 * 8)
    x = torch.randn(6, 2).to(wide)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        p = net(x).reshape(6, 2, 8)
        y, ladj = rqs(x, p)
        (y.float().sum() + ladj.sum()).backward()
    assert p.dtype == torch.bfloat16 and y.dtype == wide and ladj.dtype == torch.float32
    with torch.no_grad():
        expected = rqs(x, p)
    assert torch.equal(y, expected[0]) and net.weight.grad is not None


def test_autocast_inside_compile() -> None:
    x, p = torch.randn(6, 2), torch.randn(6, 2, 8)

    def f(x, p):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return rqs(x, p)

    a, b = torch.compile(f, backend="aot_eager", fullgraph=True)(x, p), f(x, p)
    assert [t.dtype for t in a] == [t.dtype for t in b]
    torch.testing.assert_close(a, b)


# ---- backends ----


def test_auto_tries_backends_in_one_order_for_every_op(monkeypatch) -> None:
    monkeypatch.setattr(backends, "_tables", {})
    monkeypatch.setattr(backends, "_ops", {})

    def backend(why_not: str | None) -> backends.Backend:
        return backends.Backend(fwd=lambda spec, *tensors: tensors, why_not=lambda spec, *tensors: why_not)

    op: Any = SimpleNamespace(name="op")
    reference, cuda, triton = backend(None), backend("no"), backend(None)
    backends.register(op, {"reference": reference, "triton": triton, "cuda": cuda})
    assert list(backends.table()["op"]) == ["cuda", "triton", "reference"]
    assert backends.pick("op", "auto", None, ()) is triton
    with pytest.raises(ValueError):
        backends.register(op, {"gpu": reference})


def test_use_backend_nests_and_is_undone_by_an_error() -> None:
    from flowkernels import backends

    before = backends.default()
    with pytest.raises(KeyError), use_backend("cpu"), use_backend("reference"):
        assert backends.default() == "reference"
        raise KeyError
    assert backends.default() == before


def test_use_backend_reference_gives_the_reference() -> None:
    x, p = (t.detach().float() for t in inputs(50))
    with use_backend("reference"):
        y, _ = ops.rqs(x, p, bins=3)
    assert torch.equal(y, plain(x, p)[0])


def test_unknown_and_unavailable_backends() -> None:
    x, p = inputs()
    with pytest.raises(ValueError, match=r"must be auto or one of .*, got 'gpu'"), use_backend("gpu"):
        pass
    with use_backend("cuda"), pytest.raises(BackendUnavailableError, match="rqs"):
        ops.rqs(x, p, bins=3)
    with pytest.raises(BackendUnavailableError, match=r"rqs .*'cpu'.*meta"):
        ops.rqs(x.detach().to("meta"), p.detach().to("meta"), bins=3, backend="cpu")


def test_environment_chooses_the_backend() -> None:
    code = """
        import torch
        from flowkernels import backends, ops
        assert backends.default() == "reference"
        y, _ = ops.rqs(torch.zeros(2, 2), torch.zeros(2, 2, 8), bins=3)
        print("ran")
    """
    done = python(code, FLOWKERNELS_BACKEND="reference")
    assert done.stdout == "ran\n", done.stderr
    done = python("import flowkernels", FLOWKERNELS_BACKEND="gpu")
    assert done.returncode != 0 and "must be auto or one of" in done.stderr and "'gpu'" in done.stderr


def test_without_the_compiled_module() -> None:
    """The package works, slower, and says so once with the reason."""
    code = """
        import sys, warnings
        sys.modules["flowkernels._C"] = None
        import torch, flowkernels
        from flowkernels import ops
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for _ in range(3):
                x = torch.zeros(2, 2, requires_grad=True)
                y, ladj = ops.rqs(x, torch.zeros(2, 2, 8), bins=3)
                (y.sum() + ladj.sum()).backward()
        slow = [w for w in seen if w.category is flowkernels.SlowPathWarning]
        assert len(slow) == 1, [str(w.message) for w in seen]
        assert "_C" in str(slow[0].message) and "install" in str(slow[0].message), slow[0].message
        assert slow[0].filename == "<string>", slow[0].filename  # points at the caller, not into the package
        try:
            ops.rqs(x, torch.zeros(2, 2, 8), bins=3, backend="cpu")
        except flowkernels.BackendUnavailableError as e:
            assert "_C" in str(e), e
        else:
            raise SystemExit("backend=cpu ran without a kernel")
        compiled = torch.compile(lambda x, p: ops.rqs(x, p, bins=3), backend="eager", fullgraph=True)
        compiled(torch.zeros(2, 2), torch.zeros(2, 2, 8))
        print("ran")
    """
    done = python(code)
    assert done.stdout == "ran\n", done.stderr


def test_import_compiles_nothing_and_is_quiet() -> None:
    done = python("import warnings; warnings.simplefilter('error'); import flowkernels")
    assert done.returncode == 0 and done.stdout == done.stderr == ""


def test_a_model_with_the_op_can_be_copied() -> None:
    x, p = (t.detach() for t in inputs())
    close(copy.deepcopy(Module())(x, p), rqs(x, p))


# ---- several processes ----

DDP = """
    import os, sys
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from flowkernels import ops

    class Flow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(2, 2 * 23)

        def forward(self, x):
            y, ladj = ops.rqs(x, self.net(x.flip(-1)).reshape(*x.shape, 23), bins=8)
            return (0.5 * y.square().sum(-1) - ladj).mean()

    def train(model, rank, world):
        g = torch.Generator().manual_seed(1)
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            x = torch.randn(64, 2, generator=g)
            opt.zero_grad()
            model(x[rank::world]).backward()
            opt.step()
        return torch.cat([q.detach().flatten() for q in model.parameters()])

    def work(rank, port):
        torch.set_num_threads(1)
        dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"tcp://127.0.0.1:{port}")
        torch.manual_seed(0)
        mine = train(DistributedDataParallel(Flow()), rank, 2)  # gone before the group is, which must not end with it
        torch.manual_seed(0)
        alone = train(Flow(), 0, 1)
        # written so that NaN fails
        assert (mine - alone).abs().max().item() <= 1e-6 and alone.isfinite().all()
        dist.destroy_process_group()

    if __name__ == "__main__":
        import socket
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        torch.multiprocessing.spawn(work, (port,), nprocs=2)
        print("equal")
"""


@pytest.mark.slow
def test_distributed_data_parallel(tmp_path) -> None:
    done = python(DDP, tmp_path / "ddp.py", timeout=180)
    assert done.stdout.strip() == "equal", done.stderr

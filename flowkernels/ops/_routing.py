"""How a differentiable op reaches its kernel. Every op is one `Op`; this file is the only router.

| caller                                                     | path                                      |
|------------------------------------------------------------|-------------------------------------------|
| eager, plain tensors                                       | kernel, under `_Fused` if a grad is needed |
| torch.onnx.export                                          | the reference: no runtime of ONNX has our ops |
| torch.compile, export, make_fx, fake or subclass tensors   | `torch.ops.flowkernels.<op>`, same kernel  |
| torch.func transforms, forward mode, jit.trace             | the reference, which is plain PyTorch      |
| backward under `create_graph=True`, batched gradients      | the gradient of the reference              |

The raw `torch.ops.flowkernels.*` are private: under dual numbers they would drop tangents silently.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_type_hints

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd import profiler as _profiler

from flowkernels import backends
from flowkernels._backend import Backend

Tensors = tuple[Tensor, ...]
_lib = torch.library.Library("flowkernels", "DEF")
_PLAIN = (Tensor, torch.nn.Parameter)

# Private names of torch, kept in one place; each has a public-behaviour fallback.
_transforms_active: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
_dispatch_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
_jit_tracing: Callable[[], bool] = torch._C._is_tracing
_trace_to: Callable[[Any], None] = getattr(torch._C, "_set_tracing_state")  # noqa: B009  (no stub has it)


def _dual_level_active() -> bool:
    return getattr(forward_ad, "_current_level", -1) >= 0


def _opaque(tensors: Sequence[Tensor | None]) -> bool:
    """True where a raw pointer would lie: fake or subclass tensors, tracing, dispatch modes."""
    if _dispatch_modes() > 0:
        return True
    for t in tensors:  # noqa: SIM110  (any() over a generator takes twice as long, on every call)
        if type(t) not in _PLAIN and t is not None:
            return True
    return False


@contextlib.contextmanager
def untraced() -> Iterator[None]:
    """`torch.jit.trace` looks away: sizes are numbers, and what is read once, and kept, is in no graph."""
    state = torch._C._get_tracing_state() if _jit_tracing() else None
    if state is None:
        yield
        return
    _trace_to(None)
    try:
        yield
    finally:
        _trace_to(state)


def in_transform(tensors: Sequence[Tensor | None]) -> bool:
    """True where the router would not call a kernel directly: compilers, torch.func, dual numbers, subclasses."""
    return (
        torch.compiler.is_compiling()
        or _transforms_active()
        or _dual_level_active()
        or _jit_tracing()
        or _opaque(tensors)
    )


def _is_batched(t: Tensor | None) -> bool:
    """True for the tensors of `is_grads_batched=True`, which look plain but have no storage."""
    return t is not None and torch._C._functorch.is_legacy_batchedtensor(t)  # type: ignore[attr-defined]


def needs_reference(grads: Sequence[Tensor | None]) -> bool:
    """True where a backward pass is differentiated, batched or dual, which kernels are not."""
    return (
        torch.is_grad_enabled()
        or _transforms_active()
        or _dual_level_active()
        or any(g is not None and _is_batched(g) for g in grads)
    )


def contiguous_like(t: Tensor) -> Tensor:
    return torch.empty(t.shape, dtype=t.dtype, device=t.device)


class Op:
    """An op named `name` with tensor inputs, settings `spec_type` and tensor outputs.

    reference(spec, *tensors) -> outputs   plain PyTorch, differentiable any number of times
    table                                  backend name -> `Backend`, or a module that defines one
    fake(spec, *tensors) -> outputs        shapes, dtypes and strides only

    An input whose name ends in ? may be None, and one that ends in [] is all tensors there are. `grad_like(t)` is an
    empty tensor as the backends' gradient of t is laid out. `first(spec, tensors)` names the backend that `auto` tries
    first. Where `keeps_outputs(spec)`, the library op keeps its outputs for the backward pass, for `saved_of`. With
    `saves` there is a second library op, which returns what `fwd_saving` saves too, one tensor: `saves(spec, *tensors)`
    is an empty one of its size. Without
    `inputs` and `fake` there is no library op: compilers then trace the reference, which is right for an op whose parts
    (matrix products) a compiler already runs well, or a composed backend. The library op's settings are the fields of
    `spec_type`, or those of `schema`: `pack(spec)` are their values, and `unpack(*values)` is the spec again; a type of
    settings may have the three itself, as `schema`, `packed` and `from_packed`.
    `missing` says of backends that are not in the table why; `sample()` is a small call, spec and float32 tensors.
    """

    def __init__(
        self,
        name: str,
        spec_type: type,
        reference: Callable[..., Tensors],
        table: dict[str, Any],
        inputs: Sequence[str] = (),
        n_outputs: int = 0,
        fake: Callable[..., Tensors] | None = None,
        grad_like: Callable[[Tensor], Tensor] = contiguous_like,
        keeps_outputs: Callable[[Any], bool] | None = None,
        saves: Callable[..., Tensor] | None = None,
        first: Callable[[Any, Sequence[Tensor]], str] | None = None,
        schema: Sequence[str] = (),
        pack: Callable[[Any], list[Any]] = list,
        unpack: Callable[..., Any] | None = None,
        missing: dict[str, str] | None = None,
        sample: Callable[[], tuple[Any, Sequence[Tensor | None]]] | None = None,
    ) -> None:
        self.name, self.n_inputs, self.n_outputs = name, len(inputs), n_outputs
        self.listed = [n.endswith("[]") for n in inputs] == [True]
        self.keeps_outputs, self.saves = keeps_outputs, saves
        self.spec_type, self.reference, self.fake, self.grad_like = spec_type, reference, fake, grad_like
        self._library: Any = None
        self._library_saving: Any = None
        self._library_bwd: Any = None
        declared: dict[str, type] | None = getattr(spec_type, "schema", None)
        if declared is not None:
            schema = [f"{t.__name__} {field}" for field, t in declared.items()]
            pack, unpack = spec_type.packed, spec_type.from_packed  # type: ignore[attr-defined]
        self.schema, self.pack, self.unpack = schema, pack, unpack or spec_type
        self.missing, self.sample = missing or {}, sample
        self.title = f"flowkernels::{name}"
        self._fused: Any = type(self.title, (_Fused,), {"__module__": __name__})  # profilers print its name
        backends.register(self, table, first)
        if fake is not None:
            self._define(inputs)

    # ---- the router ----

    def __call__(self, spec: Any, backend: str | None, *tensors: Tensor) -> Tensors:
        if torch.compiler.is_compiling():
            if _transforms_active() or _dual_level_active():
                return self.reference(spec, *tensors)
            return self._call_library(spec, backend, tensors)
        if _transforms_active() or _dual_level_active() or _jit_tracing():
            return self.reference(spec, *tensors)
        if _opaque(tensors):
            return self._call_library(spec, backend, tensors)
        module = backends.pick(self.name, backend, spec, tensors)
        if module.bwd is None:  # the reference differentiates itself
            return module.fwd(spec, *tensors)
        if torch.is_grad_enabled() and True in [t is not None and t.requires_grad for t in tensors]:
            return self._fused.apply(self, module, spec, *tensors)  # type: ignore[return-value]
        return self._named(module, spec, tensors) if _profiler._is_profiler_enabled else module.fwd(spec, *tensors)

    def backend(self, name: str) -> Backend:
        """The backend of this name, which is in the table."""
        return backends.table()[self.name][name]

    def run(self, module: Backend, spec: Any, tensors: Tensors) -> Tensors:
        """A call of plain tensors, in no transform, on a kernel that can run them: for who has asked it already."""
        if torch.is_grad_enabled() and True in [t is not None and t.requires_grad for t in tensors]:
            return self._fused.apply(self, module, spec, *tensors)  # type: ignore[return-value]
        return self._named(module, spec, tensors) if _profiler._is_profiler_enabled else module.fwd(spec, *tensors)

    def _named(self, module: Backend, spec: Any, tensors: Tensors) -> Tensors:
        """A call without gradients where a profiler runs, which would not see it: no op of torch is in it."""
        with torch.profiler.record_function(self.title):
            return module.fwd(spec, *tensors)

    def library(self, tensors: Sequence[Any], *packed: Any) -> Tensors:
        """The library op of settings as a schema has them, for a graph that is run; on the default backend."""
        wanted = torch.is_grad_enabled() and True in [t.requires_grad for t in tensors]
        library = self._library_saving if wanted and self.saves is not None else self._library
        return library(*self._as_list(tensors), *packed, backends.default())[: self.n_outputs]

    def _call_library(self, spec: Any, backend: str | None, tensors: Tensors) -> Tensors:
        if torch.onnx.is_in_onnx_export():
            return self.reference(spec, *tensors)
        module = backends.pick(self.name, backend, spec, tensors)
        if self._library is None:
            return module.fwd(spec, *tensors) if module.composed else self.reference(spec, *tensors)
        if module.bwd is None:  # plain PyTorch is better traced than hidden
            return module.fwd(spec, *tensors)
        name = backends.default() if backend is None else backend
        out = self._library(*self._as_list(tensors), *self.pack(spec), name)
        return (out,) if self.n_outputs == 1 else out

    def backward(
        self,
        module: Backend,
        spec: Any,
        grads: Sequence[Tensor | None],
        tensors: Tensors,
        needs: Sequence[bool],
        saved: Tensors,
    ) -> Sequence[Tensor | None]:
        if needs_reference(grads):
            return self.reference_grad(spec, grads, tensors, needs)
        if torch.compiler.is_compiling() or _opaque([*grads, *tensors]):
            if self._library_bwd is None:
                return self.reference_grad(spec, grads, tensors, needs)
            rest = (*self.pack(spec), backends.default())
            out = self._library_bwd(list(grads), list(tensors), list(needs), *rest)
            return [g if n else None for g, n in zip(out, needs, strict=True)]
        assert module.bwd is not None
        return module.bwd(spec, grads, tensors, needs, **({"saved": saved} if saved else {}))

    def reference_grad(
        self, spec: Any, grads: Sequence[Tensor | None], tensors: Tensors, needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """The gradient of the reference, itself differentiable where grad mode is on."""
        if _transforms_active():  # vmap of a backward pass: only torch.func may differentiate here

            def of_wanted(*wanted: Tensor) -> Tensors:
                rest = iter(wanted)
                return self.reference(spec, *(next(rest) if n else t for t, n in zip(tensors, needs, strict=True)))

            outputs, pull = torch.func.vjp(of_wanted, *(t for t, n in zip(tensors, needs, strict=True) if n))[:2]
            given = tuple(torch.zeros_like(o) if g is None else g for o, g in zip(outputs, grads, strict=True))
            found = iter(pull(given))
            return [next(found) if n else None for n in needs]
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            if create_graph:
                # Aliases: where params depend on x, the gradient of x must not come through params a second time.
                tensors = tuple(t.view_as(t) if n else t for t, n in zip(tensors, needs, strict=True))
            else:
                tensors = tuple(t.detach().requires_grad_() if n else t for t, n in zip(tensors, needs, strict=True))
            outputs = self.reference(spec, *tensors)
            wanted = [t for t, n in zip(tensors, needs, strict=True) if n]
            used = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
            found = iter(
                torch.autograd.grad(
                    [o for o, _ in used], wanted, [g for _, g in used], create_graph=create_graph, allow_unused=True
                )
                if used
                else [None] * len(wanted)
            )
        return [next(found) if n else None for n in needs]

    # ---- the torch.library op ----

    def _define(self, inputs: Sequence[str]) -> None:
        fields = self.schema or [f"{t.__name__} {f}" for f, t in get_type_hints(self.spec_type).items()]
        self._n_settings = len(fields)
        kinds = [("[]", "Tensor[]"), ("?", "Tensor?"), ("", "Tensor")]
        tensors = [next(f"{kind} {n.removesuffix(end)}" for end, kind in kinds if n.endswith(end)) for n in inputs]
        extra = [*fields, "str backend"]
        bwd_args = ["Tensor?[] grads", "Tensor?[] tensors", "bool[] needs", *extra]

        def declare(name: str, args: Sequence[str], results: str, impl: Any, fake: Any, has_grad: bool = True) -> Any:
            _lib.define(f"{name}({', '.join(args)}) -> {results}", tags=(torch.Tag.pt2_compliant_tag,))
            _lib.impl(name, impl, "CompositeExplicitAutograd")
            full = f"flowkernels::{name}"
            torch.library.register_fake(full, fake, lib=_lib)
            if has_grad:
                torch.library.register_autograd(full, self._autograd_bwd, setup_context=self._autograd_setup, lib=_lib)
            return getattr(torch.ops.flowkernels, name).default

        def of(n: int) -> str:
            return "(" + ", ".join(["Tensor"] * n) + ")"

        name, n, args = self.name, self.n_outputs, tensors + extra
        self._library_bwd = declare(
            f"{name}_bwd", bwd_args, "Tensor[]", self._library_bwd_impl, self._library_bwd_fake, False
        )
        self._library = declare(name, args, of(n), self._library_fwd_impl, self._library_fwd_fake)
        if self.saves is not None:
            saving = self._library_saving_impl, self._library_saving_fake
            self._library_saving = declare(f"{name}_saving", args, of(n + 1), *saving)

    # Between the op's own tensors, settings and outputs, and those that a schema can say.

    def _as_list(self, tensors: Sequence[Any]) -> Sequence[Any]:
        return (list(tensors),) if self.listed else tensors

    def _unpack(self, args: Sequence[Any]) -> tuple[Tensors, Any, str]:
        tensors = args[0] if self.listed else args[: self.n_inputs]
        return tuple(tensors), self.unpack(*args[self.n_inputs : -1]), args[-1]

    def _results(self, outputs: Tensors) -> Any:
        return outputs[0] if self.n_outputs == 1 else outputs

    # What the dispatcher calls.

    def _library_fwd_impl(self, *args: Any) -> Any:
        tensors, spec, backend = self._unpack(args)
        return self._results(backends.pick(self.name, backend, spec, tensors).fwd(spec, *tensors))

    def _library_fwd_fake(self, *args: Any) -> Any:
        tensors, spec, _ = self._unpack(args)
        assert self.fake is not None
        return self._results(self.fake(spec, *tensors))

    def _library_saving_impl(self, *args: Any) -> Any:
        tensors, spec, backend = self._unpack(args)
        module = backends.pick(self.name, backend, spec, tensors)
        if module.fwd_saving is None:  # nor reads its bwd what was saved
            assert self.saves is not None
            return (*module.fwd(spec, *tensors), self.saves(spec, *tensors))
        outputs, saved = module.fwd_saving(spec, *tensors)
        return (*outputs, *saved)

    def _library_saving_fake(self, *args: Any) -> Any:
        tensors, spec, _ = self._unpack(args)
        assert self.fake is not None and self.saves is not None
        return (*self.fake(spec, *tensors), self.saves(spec, *tensors))

    def _library_bwd_impl(self, grads: Any, tensors: Any, needs: Any, *rest: Any) -> list[Tensor]:
        spec, backend = self.unpack(*rest[:-1]), rest[-1]
        tensors, outputs = tensors[: len(needs)], tensors[len(needs) :]  # what was kept, if anything
        module = backends.pick(self.name, backend, spec, tuple(tensors))
        run = module.bwd or self.reference_grad
        saved = {"saved": module.saved_of(spec, outputs)} if outputs and module.saved_of is not None else {}
        out = run(spec, grads, tuple(tensors), needs, **saved)
        contiguous = self.grad_like is contiguous_like  # the reference's gradients lie as its operations leave them
        out = [tensors[0].new_empty(0) if g is None else g.contiguous() if contiguous else g for g in out]
        # A sum passes its gradient on; a library op must not return what it was given.
        given = {t.untyped_storage().data_ptr() for t in grads if t is not None}
        return [g.clone() if g.untyped_storage().data_ptr() in given and g.numel() > 0 else g for g in out]

    def _library_bwd_fake(self, grads: Any, tensors: Any, needs: Any, *rest: Any) -> list[Tensor]:
        return [self.grad_like(t) if n else tensors[0].new_empty(0) for t, n in zip(tensors, needs, strict=False)]

    def _autograd_setup(self, ctx: Any, inputs: Any, output: Any) -> None:
        tensors, ctx.spec, ctx.backend = self._unpack(inputs)
        kept = () if self.keeps_outputs is None or not self.keeps_outputs(ctx.spec) else output
        if isinstance(output, tuple) and len(output) > self.n_outputs:
            kept = output[self.n_outputs :]
            ctx.mark_non_differentiable(*kept)
        ctx.save_for_backward(*tensors, *((kept,) if isinstance(kept, Tensor) else kept))
        ctx.set_materialize_grads(False)

    def _autograd_bwd(self, ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        needs = list(ctx.needs_input_grad[0] if self.listed else ctx.needs_input_grad[: self.n_inputs])
        saved, grads = ctx.saved_tensors, grads[: self.n_outputs]
        rest = (None,) * (self._n_settings + 1)
        if not torch.compiler.is_compiling() and needs_reference(grads):
            return (*self._as_list(self.reference_grad(ctx.spec, grads, saved[: len(needs)], needs)), *rest)
        out = self._library_bwd(list(grads), list(saved), needs, *self.pack(ctx.spec), ctx.backend)
        return (*self._as_list([g if n else None for g, n in zip(out, needs, strict=True)]), *rest)


class _Fused(torch.autograd.Function):
    """The eager path of every op. Saves its inputs, and more only where a backend asks for it."""

    @staticmethod
    def forward(ctx: Any, op: Op, module: Backend, spec: Any, *tensors: Tensor) -> Tensors:  # type: ignore[override]
        ctx.op, ctx.module, ctx.spec = op, module, spec
        ctx.set_materialize_grads(False)
        ctx.n_tensors = len(tensors)
        if module.fwd_saving is not None:
            outputs, saved = module.fwd_saving(spec, *tensors)
            ctx.save_for_backward(*tensors, *saved)
            return outputs
        ctx.save_for_backward(*tensors)
        return module.fwd(spec, *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        needs, n, kept = (
            ctx.needs_input_grad[3:],
            ctx.n_tensors,
            ctx.saved_tensors,
        )  # read once: checkpoint unpacks once
        tensors, saved = kept[:n], kept[n:]
        return (None, None, None, *ctx.op.backward(ctx.module, ctx.spec, grads, tensors, needs, saved))

"""What models are asked to do besides being called: each ability is a function of a `Subject`, original or accelerated.

It returns tensors, which have to agree, and raises where the model cannot do it. `EAGER` ones cost milliseconds and
`GRAPHS` ones up to a second.
"""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, prune

from tests.compat.ability_cases import Case, Run, build, data

Prepare = Callable[[nn.Module], Any]  # accelerates, or does nothing


class Subject(NamedTuple):
    """A direction of a case, original or accelerated."""

    case: Case
    inverse: bool
    prepare: Prepare

    def original(self) -> Run:
        return Run(build(self.case), self.case.call, self.inverse)

    def run(self) -> Run:
        found = self.original()
        self.prepare(found)
        return found

    def x(self, rows: int = 12) -> Tensor:
        return data(self.case, rows)


Ability = Callable[[Subject], Sequence[Tensor]]


def loss(outputs: Sequence[Tensor]) -> Tensor:
    """A number that depends on every output unevenly; of one row as of many."""
    weighted = [(t * torch.linspace(-1, 1.5, t[0].numel(), dtype=t.dtype, device=t.device).view(t[0].shape)).sum()
                if t.dim() > 0 else t for t in outputs]  # fmt: skip
    return torch.stack([t.to(weighted[0].dtype) for t in weighted]).sum()


def gradients(run: nn.Module, x: Tensor, value: Tensor | None = None) -> list[Tensor]:
    """Of the parameters and, if it asks for one, x; zeros where there is none."""
    value = loss(run(x)) if value is None else value
    leaves = [*(p for p in run.parameters() if p.requires_grad), *([x] if x.requires_grad else [])]
    if not leaves or not value.requires_grad:
        return []
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, found, strict=True)]


def values_and_gradients(run: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.detach().clone().requires_grad_()
    outputs = run(x)
    return [*(t.detach().clone() for t in outputs), *gradients(run, x, loss(outputs))]


EAGER: dict[str, Ability] = {}
# Recorded graphs, and what the same returns without one: a graph of the library's may be of other roundings.
GRAPHS: dict[str, tuple[Ability, Ability]] = {}
# Outputs in another precision (gradients are asked to be finite), and the same in float64 of the same weights.
ROUNDED: dict[str, tuple[Ability, Ability]] = {}


def ability(function: Ability) -> Ability:
    EAGER[function.__name__] = function
    return function


# ---- modes of autograd ----


@ability
def training(s: Subject) -> Sequence[Tensor]:
    return values_and_gradients(s.run(), s.x())


@ability
def inference_then_training(s: Subject) -> Sequence[Tensor]:
    run = s.run()
    with torch.inference_mode():
        run(s.x())
    return values_and_gradients(run, s.x())


@ability
def accelerated_in_inference_then_training(s: Subject) -> Sequence[Tensor]:
    run = s.original()
    with torch.inference_mode():
        s.prepare(run)
        run(s.x())
    return values_and_gradients(run, s.x())


@ability
def no_grad_then_training(s: Subject) -> Sequence[Tensor]:
    run = s.run()
    with torch.no_grad():
        first = [t.clone() for t in run(s.x())]
    return [*first, *values_and_gradients(run, s.x())]


@ability
def frozen_weights(s: Subject) -> Sequence[Tensor]:
    run = s.run().requires_grad_(False)
    return values_and_gradients(run, s.x())


@ability
def writing_to_outputs(s: Subject) -> Sequence[Tensor]:
    """Between forward and backward; samples are often rescaled in place."""
    run, x = s.run(), s.x().requires_grad_()
    outputs = run(x)
    for t in outputs:
        t.mul_(1.5)
    return gradients(run, x, loss(outputs))


@ability
def double_backward(s: Subject) -> Sequence[Tensor]:
    run, x = s.run(), s.x().requires_grad_()
    (g,) = torch.autograd.grad(loss([t.square() for t in run(x)]), x, create_graph=True)
    return [g.detach(), *gradients(run, x, g.square().sum())]


@ability
def forward_mode(s: Subject) -> Sequence[Tensor]:
    run, x = s.run(), s.x()
    with forward_ad.dual_level():
        found = [forward_ad.unpack_dual(t) for t in run(forward_ad.make_dual(x, x.cos()))]
    return [t for pair in found for t in pair if t is not None]


# ---- torch.func ----


def _functional(run: Run) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return ({n: t.detach() for n, t in named} for named in (run.named_parameters(), run.named_buffers()))  # type: ignore


@ability
def jvp(s: Subject) -> Sequence[Tensor]:
    x = s.x()
    outputs, tangents = torch.func.jvp(s.run(), (x,), (x.cos(),))
    return [*outputs, *tangents]


@ability
def vmap_over_rows(s: Subject) -> Sequence[Tensor]:
    run = s.run()
    return torch.func.vmap(lambda row: tuple(t[0] for t in run(row[None])))(s.x())


@ability
def vmap_over_models(s: Subject) -> Sequence[Tensor]:
    run, x = s.run(), s.x()
    parameters, buffers = _functional(run)
    stacked = {n: torch.stack([p, p * 1.1 if p.is_floating_point() else p]) for n, p in parameters.items()}
    return torch.func.vmap(lambda p: torch.func.functional_call(run, (p, buffers), (x,)))(stacked)


@ability
def gradients_per_row(s: Subject) -> Sequence[Tensor]:
    run = s.run()
    parameters, buffers = _functional(run)
    parameters = {n: p for n, p in parameters.items() if p.is_floating_point()}

    def of_row(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        return loss(torch.func.functional_call(run, (parameters, buffers), (row[None],)))

    found = torch.func.vmap(torch.func.grad(of_row), (None, 0))(parameters, s.x())
    return list(found.values())


# ---- graphs ----

SIZES = (5, 9, 300)  # of batches; a graph is recorded with the first


def _values(s: Subject) -> Sequence[Tensor]:
    run = s.run()
    with torch.no_grad():
        return [t for rows in SIZES for t in run(s.x(rows))]


def _exported(s: Subject, strict: bool) -> Sequence[Tensor]:
    rows = ({0: torch.export.Dim("rows")},)
    program = torch.export.export(s.run(), (s.x(SIZES[0]),), dynamic_shapes=rows, strict=strict).module()
    with torch.no_grad():
        return [t for rows in SIZES for t in program(s.x(rows))]


def _traced(s: Subject) -> Sequence[Tensor]:
    traced: Any = torch.jit.trace(s.run(), s.x(SIZES[0]))  # and once more, to the same graph
    with torch.no_grad():
        return [t for rows in SIZES for t in traced(s.x(rows))]


def _compiled(s: Subject, **settings: Any) -> Sequence[Tensor]:
    torch.compiler.reset()
    try:
        return values_and_gradients(torch.compile(s.run(), backend="aot_eager", **settings), s.x())  # type: ignore
    finally:
        torch.compiler.reset()


def _compiled_for_all_sizes(s: Subject) -> Sequence[Tensor]:
    torch.compiler.reset()
    counter = CompileCounter()
    try:
        compiled: Any = torch.compile(s.run(), backend=counter, dynamic=True, fullgraph=True)
        with torch.no_grad():
            found = [t for rows in SIZES for t in compiled(s.x(rows))]
    finally:
        torch.compiler.reset()
    if counter.frame_count != 1:
        raise RuntimeError(f"{counter.frame_count} graphs for batches of {SIZES}")
    return found


GRAPHS |= {
    "jit trace": (_traced, _values),
    "export of any batch": (lambda s: _exported(s, False), _values),
    "strict export of any batch": (lambda s: _exported(s, True), _values),
    "compile": (_compiled, EAGER["training"]),
    "compile without a break": (lambda s: _compiled(s, fullgraph=True), EAGER["training"]),
    "compile once for all batches": (_compiled_for_all_sizes, _values),
}


# ---- other precisions ----


def _in(dtype: torch.dtype) -> tuple[Ability, Ability]:
    def rounded(s: Subject) -> Sequence[Tensor]:
        run, x = s.run().to(dtype), s.x().to(dtype)
        outputs = run(x)
        assert all(g.isfinite().all() for g in gradients(run, x, loss(outputs)))
        return [t.detach() for t in outputs]

    def exact(s: Subject) -> Sequence[Tensor]:
        return [t.detach() for t in s.run().to(dtype).double()(s.x().to(dtype).double())]

    return rounded, exact


def _autocast(s: Subject) -> Sequence[Tensor]:
    run, x = s.run().float(), s.x().float()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = run(x)
    assert all(g.isfinite().all() for g in gradients(run, x, loss([t.float() for t in outputs])))
    return [t.detach() for t in outputs]


ROUNDED |= {
    "bfloat16": _in(torch.bfloat16),
    "float16": _in(torch.float16),
    "autocast": (_autocast, _in(torch.float32)[1]),
}


PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "autocast": torch.bfloat16}


# ---- devices without memory ----


@ability
def shapes_on_meta(s: Subject) -> Sequence[Tensor]:
    return [torch.tensor(t.shape) for t in s.run().to("meta")(s.x().to("meta"))]


@ability
def training_on_meta(s: Subject) -> Sequence[Tensor]:
    run = s.run().to("meta")
    found = values_and_gradients(run, s.x().to("meta"))
    return [torch.tensor(t.shape) for t in found]


@ability
def made_on_meta(s: Subject) -> Sequence[Tensor]:
    """Accelerated while it has no memory, which it is given later."""
    state, run = s.original().state_dict(), s.original().to("meta")
    s.prepare(run)
    with contextlib.suppress(Exception):  # what is read there must not stay; whether it can be called is not asked
        run(s.x().to("meta"))
    run.to_empty(device="cpu").load_state_dict(state)
    return values_and_gradients(run, s.x())


# ---- hooks ----


@ability
def hook_of_the_layer(s: Subject) -> Sequence[Tensor]:
    run, seen = s.run(), []
    run.layer.register_forward_pre_hook(lambda m, args: seen.append(len(args)))
    run.layer.register_forward_hook(lambda m, args, output: seen.append(-1))
    run.layer.register_full_backward_hook(lambda m, grads, of: seen.append(-2))
    found = values_and_gradients(run, s.x())
    return [torch.tensor(seen), *found]


def _linears(run: nn.Module) -> list[Any]:
    return [m for m in run.modules() if isinstance(m, nn.Linear)]


@ability
def forward_hooks_within(s: Subject) -> Sequence[Tensor]:
    run = s.run()
    for linear in _linears(run):
        linear.register_forward_hook(lambda m, args, output: output * 0.9)
    return values_and_gradients(run, s.x())


@ability
def forward_pre_hooks_within(s: Subject) -> Sequence[Tensor]:
    run = s.run()
    for linear in _linears(run):
        linear.register_forward_pre_hook(lambda m, args: (args[0] * 0.9, *args[1:]))
    return values_and_gradients(run, s.x())


@ability
def backward_hooks_within(s: Subject) -> Sequence[Tensor]:
    run = s.run()
    for linear in _linears(run):
        linear.register_full_backward_hook(lambda m, grads, of: tuple(None if g is None else 2 * g for g in grads))
    return values_and_gradients(run, s.x())


@ability
def hooks_that_go(s: Subject) -> Sequence[Tensor]:
    run = s.run()
    handles = [m.register_forward_hook(lambda m, args, output: None) for m in run.layer.modules()]
    run(s.x())
    for handle in handles:
        handle.remove()
    return values_and_gradients(run, s.x())


# ---- weights that are computed ----


def _with(s: Subject, apply: Callable[[Any], Any]) -> Sequence[Tensor]:
    run = s.run()
    for linear in _linears(run):
        apply(linear)
    return values_and_gradients(run.eval(), s.x())


def _shrunk(linear: Any) -> None:
    class Shrunk(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 0.5 * weight

    nn.utils.parametrize.register_parametrization(linear, "weight", Shrunk())


@ability
def old_weight_norm(s: Subject) -> Sequence[Tensor]:
    return _with(s, nn.utils.weight_norm)


@ability
def weight_norm(s: Subject) -> Sequence[Tensor]:
    return _with(s, parametrizations.weight_norm)


@ability
def old_spectral_norm(s: Subject) -> Sequence[Tensor]:
    torch.manual_seed(1)

    def apply(linear: Any) -> None:
        nn.utils.spectral_norm(linear, n_power_iterations=50)
        linear.train()(linear.weight.new_zeros(1, linear.in_features))  # found here: a poor guess makes weights huge

    return _with(s, apply)


@ability
def spectral_norm(s: Subject) -> Sequence[Tensor]:
    torch.manual_seed(1)
    return _with(s, parametrizations.spectral_norm)


@ability
def parametrized_weights(s: Subject) -> Sequence[Tensor]:
    return _with(s, _shrunk)


@ability
def pruned_weights(s: Subject) -> Sequence[Tensor]:
    return _with(s, lambda linear: prune.l1_unstructured(linear, "weight", 0.3))


# ---- copies and states ----


@ability
def deep_copy(s: Subject) -> Sequence[Tensor]:
    run = s.run()
    twin = copy.deepcopy(run)
    with torch.no_grad():
        for p in run.parameters():
            p.zero_()
    return values_and_gradients(twin, s.x())


@ability
def shallow_copy(s: Subject) -> Sequence[Tensor]:
    run = s.run()
    run.layer = copy.copy(run.layer)
    return values_and_gradients(run, s.x())


@ability
def pickled(s: Subject) -> Sequence[Tensor]:
    run = s.run()
    run.layer = pickle.loads(pickle.dumps(run.layer))
    return values_and_gradients(run, s.x())


@ability
def another_state(s: Subject) -> Sequence[Tensor]:
    run = s.run()
    before = run(s.x())
    weights = {n: 1.1 * p for n, p in run.named_parameters() if p.is_floating_point()}
    run.load_state_dict(weights, strict=False)
    return [*(t.detach() for t in before), *values_and_gradients(run, s.x())]


@ability
def weights_by_data(s: Subject) -> Sequence[Tensor]:
    run = s.run()
    run(s.x())
    for p in run.parameters():
        if p.is_floating_point():
            p.data = p.data * 1.1
    return values_and_gradients(run, s.x())


# ---- inputs ----


def _values_and_gradients_at(run: nn.Module, x: Tensor) -> list[Tensor]:
    """With x as it is, whose strides or dtype are what it is about."""
    outputs = run(x)
    found = [t.detach() for t in outputs]
    return [*found, *gradients(run, x, loss(outputs))] if x.shape[0] else found


def _of(change: Callable[[Tensor], Tensor]) -> Ability:
    return lambda s: _values_and_gradients_at(s.run(), change(s.x()))


# Those of another width: an error of the original's has to stay one, and one in place of what it returns is no fault.
WIDTHS = ("x: wider", "x: narrower", "x: one feature")
EAGER |= {
    "x: no rows": _of(lambda x: x[:0]),
    "x: one row": _of(lambda x: x[:1]),
    "x: leading dims": _of(lambda x: x.unflatten(0, (2, -1))),
    "x: no leading dims": _of(lambda x: x[0]),
    "x: expanded": _of(lambda x: x[:1].expand_as(x)),
    "x: transposed": _of(lambda x: x.transpose(0, -1).contiguous().transpose(0, -1)),
    "x: every second": _of(lambda x: torch.stack([x, x + 1], -1).flatten(-2)[..., ::2]),
    "x: asking for a gradient": _of(lambda x: x.clone().requires_grad_()),
    "x: wider": _of(lambda x: torch.cat([x, x], -1)),
    "x: narrower": _of(lambda x: x[..., :-1]),
    "x: one feature": _of(lambda x: x[..., :1]),
    "x: integers": _of(lambda x: (2 * x).round().long()),
    "x: booleans": _of(lambda x: x > 0),
    "x: float64": _of(Tensor.double),
    "x: float32": _of(Tensor.float),
}


@ability
def float64_data_of_a_float32_model(s: Subject) -> Sequence[Tensor]:
    return _values_and_gradients_at(s.run().float(), s.x().double())


@ability
def integers_of_a_float32_model(s: Subject) -> Sequence[Tensor]:
    return _values_and_gradients_at(s.run().float(), (2 * s.x()).round().long())


# ---- masks ----


@ability
def soft_masks(s: Subject) -> Sequence[Tensor]:
    """Masks whose entries are other than 0 and 1, set after a call."""
    run = s.run()
    run(s.x())
    masks = [t for n, t in run.named_buffers() if t.is_floating_point() and set(t.unique().tolist()) <= {0.0, 1.0}]
    if not masks:
        return []
    for mask in masks:
        mask.mul_(0.7)
    return values_and_gradients(run, s.x())

"""What runs a model of the grid: ours, plain PyTorch, the libraries, and the rivals that are no torch modules.

A rival of another library: a function (model, features, batch) → `Entry`, in `RIVALS`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench import calls
from bench.grid import plain
from bench.suite import LOG_PROB, SAMPLE, STEP
from bench.suites.dropin_models import calls_of
from bench.suites.model import Inputs, Model, bind, learned, truth_of, worst_error
from flowkernels import flows, transforms
from flowkernels.compat import accelerate

LAYERS, HIDDEN, BLOCKS, BINS, TAIL_BOUND = 6, 128, 2, 8, 3.0
MODELS = ("NICE", "Real NVP", "NSF", "NSF autoregressive", "MAF")
OPS = (LOG_PROB, SAMPLE, STEP)
OURS = "flowkernels"
BY_TENSOR = f"{OURS}, tensor by tensor"


class Entry(NamedTuple):
    """A rival's model on its inputs: its call of each op, and the error of it, which raises where it is wrong."""

    call: Callable[[str], Callable[[], Any]]
    error: Callable[[str], float]
    n_params: int  # that are learned


class Rival(NamedTuple):
    """One row of a cell: for which models, made how."""

    name: str
    package: str | None
    models: tuple[str, ...]
    make: Callable[[str, int, int], Entry]
    base: str = ""  # of the row that it is to be compared with as well


def n_params(module: nn.Module) -> int:
    return sum(p.numel() for p in learned(module))


# ---- torch modules ----


def ours(model: str, features: int, layers: int = LAYERS) -> flows.Flow:
    """The native flow; its weights are moved, so that no layer is the identity."""
    sizes: dict[str, Any] = {"transforms": layers, "hidden": (HIDDEN,) * BLOCKS}
    spline = transforms.RQS(bins=BINS, tail_bound=TAIL_BOUND)
    made: dict[str, Callable[[], flows.Flow]] = {
        "NICE": lambda: flows.NICE(features, **sizes),
        "Real NVP": lambda: flows.RealNVP(features, **sizes),
        "NSF": lambda: flows.CouplingFlow(features, univariate=spline, **sizes),
        "NSF autoregressive": lambda: flows.MAF(features, univariate=spline, **sizes),
        "MAF": lambda: flows.MAF(features, **sizes),
    }
    torch.manual_seed(0)
    return _moved(made[model]())


def _moved(module: Any) -> Any:
    with torch.no_grad():
        for p in learned(module):
            p.add_(0.02 * torch.randn_like(p))
    return module


def torch_entry(name: str, model: Model, truly: nn.Module, wrap: Callable[[Any], Model], inputs: Inputs) -> Entry:
    """The entry of a torch model; its truth is `truly`, the same weights without any of our kernels, in float64."""

    @functools.cache
    def truth(op: str) -> Tensor:
        return truth_of(wrap(copy.deepcopy(truly).double()), inputs, op)

    return Entry(
        lambda op: bind(model, op, inputs.x),
        lambda op: worst_error(model._replace(name=name), op, inputs, truth(op)),
        n_params(truly),
    )


def inputs_of(features: int, batch: int) -> Inputs:
    x, z = Inputs.make(features, batch)
    return Inputs(x, z[:64])  # a float64 inverse of an autoregressive model is D passes of its networks


def _native(module: Any) -> Model:
    return Model("", module, module.log_prob, module.sample, module.transform.inverse)


def native(model: str, features: int, batch: int) -> Entry:
    """Training steps as the manual has them where they are short: on one flat parameter."""
    module = ours(model, features)
    inputs = inputs_of(features, batch)
    entry = torch_entry(OURS, _native(module), module, _native, inputs)

    def call(op: str) -> Callable[[], Any]:
        if op != STEP:
            return entry.call(op)
        flow = copy.deepcopy(module)
        flat = flow.flatten_parameters(direct=True)
        return calls.training_step(flow, lambda: -flow.log_prob(inputs.x).mean(), 1e-4, flat)

    return entry._replace(call=call)


def tensor_by_tensor(model: str, features: int, batch: int) -> Entry:
    """The same flow, whose training steps keep the parameters as they are."""
    module = ours(model, features)
    entry = torch_entry(BY_TENSOR, _native(module), module, _native, inputs_of(features, batch))

    def call(op: str) -> Callable[[], Any]:
        if op != STEP:
            raise LookupError("the same as ours")
        return entry.call(op)

    return entry._replace(call=call)


def _plain(module: Any) -> Model:
    return Model("", module, module.log_prob, module.sample, module.inverse)


def plain_torch(model: str, features: int, batch: int, how: str = "") -> Entry:
    """The same flow as nothing but PyTorch's own operations, with the same weights."""
    module = plain.PlainFlow(ours(model, features))
    return torch_entry(
        f"plain torch {how}".strip(), _run(_plain(module), how), module, _plain, inputs_of(features, batch)
    )


def _run(model: Model, how: str) -> Model:
    """The model's calls, from now on compiled, each for its own shapes."""
    if how != "compiled":
        return model
    torch.compiler.reset()
    return model._replace(**{f: torch.compile(getattr(model, f)) for f in ("log_prob", "sample", "inverse")})


# ---- the libraries ----


def _nflows(model: str, features: int) -> nn.Module:
    from nflows import transforms as T
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.nn.nets import ResidualNet

    def net(n_in: int, n_out: int) -> nn.Module:  # its couplings' usual net: a layer of 128 more than the other rows
        return ResidualNet(n_in, n_out, hidden_features=HIDDEN, num_blocks=BLOCKS - 1)

    spline: dict[str, Any] = {"num_bins": BINS, "tails": "linear", "tail_bound": TAIL_BOUND}
    made: dict[str, Any] = {"hidden_features": HIDDEN, "num_blocks": BLOCKS - 1, "use_residual_blocks": False}
    layers: dict[str, Callable[[list[int]], list[nn.Module]]] = {
        "NICE": lambda mask: [T.AdditiveCouplingTransform(mask, net)],
        "Real NVP": lambda mask: [T.AffineCouplingTransform(mask, net)],
        "NSF": lambda mask: [T.PiecewiseRationalQuadraticCouplingTransform(mask, net, **spline)],
        "NSF autoregressive": lambda mask: [
            T.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(features, **made, **spline),
            T.ReversePermutation(features),
        ],
        "MAF": lambda mask: [T.MaskedAffineAutoregressiveTransform(features, **made), T.ReversePermutation(features)],
    }
    parts = [part for i in range(LAYERS) for part in layers[model]([(i + j) % 2 for j in range(features)])]
    return Flow(T.CompositeTransform(parts), StandardNormal([features]))


def _zuko(model: str, features: int) -> nn.Module:
    from zuko import flows as zf
    from zuko.transforms import AdditiveTransform, MonotonicRQSTransform

    sizes: dict[str, Any] = {"transforms": LAYERS, "hidden_features": (HIDDEN,) * BLOCKS}
    shapes = [(BINS,), (BINS,), (BINS - 1,)]
    made: dict[str, Callable[[], nn.Module]] = {
        "NICE": lambda: zf.NICE(features, univariate=AdditiveTransform, shapes=[()], **sizes),
        "Real NVP": lambda: zf.NICE(features, **sizes),
        "NSF": lambda: zf.NICE(features, univariate=MonotonicRQSTransform, shapes=shapes, **sizes),
        "NSF autoregressive": lambda: zf.NSF(features, bins=BINS, **sizes),
        "MAF": lambda: zf.MAF(features, **sizes),
    }
    return made[model]()


def _normflows(model: str, features: int) -> nn.Module:
    import normflows as nf

    first = (features + 1) // 2
    n_out = 2 * (features - first)
    parts = []
    for _ in range(LAYERS):
        net = nf.nets.MLP([first, *[HIDDEN] * BLOCKS, n_out], init_zeros=True)
        parts += [nf.flows.AffineCouplingBlock(net), nf.flows.Permute(features, mode="swap")]
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(features, trainable=False), parts)


def _freia(model: str, features: int) -> nn.Module:
    from bench.suites import dropin_layers

    # A block of it is a coupling of both halves.
    block = "NICECouplingBlock" if model == "NICE" else "GLOWCouplingBlock"
    return dropin_layers.freia(block)(features, HIDDEN, LAYERS // 2)


def library(make: Callable[[str, int], nn.Module], name: str, how: str, model: str, features: int, batch: int) -> Entry:
    """A library's model as it is, compiled, or accelerated; the same weights each time."""
    torch.manual_seed(0)
    original = _moved(make(model, features))
    module = copy.deepcopy(original)
    if how == "accelerated" and not accelerate(module).accelerated:
        raise LookupError("nothing to accelerate")
    wrap = functools.partial(calls_of, name, f"{name} {how}".strip())
    return torch_entry(f"{name} {how}".strip(), _run(wrap(module), how), original, wrap, inputs_of(features, batch))


_LIBRARIES: dict[str, tuple[Callable[[str, int], nn.Module], tuple[str, ...]]] = {
    "nflows": (_nflows, MODELS),
    "zuko": (_zuko, MODELS),
    "normflows": (_normflows, ("Real NVP",)),
    "FrEIA": (_freia, ("NICE", "Real NVP")),
}


# ---- everything ----


def _flowjax(model: str, features: int, batch: int) -> Entry:
    from bench.grid import jax_rivals

    return jax_rivals.flowjax(model, features, batch)


def _rivals() -> list[Rival]:
    rows = [
        Rival(OURS, None, MODELS, native),
        Rival(BY_TENSOR, None, MODELS, tensor_by_tensor),
        Rival("plain torch", None, MODELS, plain_torch),
        Rival("plain torch compiled", None, MODELS, functools.partial(plain_torch, how="compiled")),
    ]
    for name, (make, models) in _LIBRARIES.items():
        # None of them compiled: masks that are indices break their graphs at every layer, and where they do not, in
        # zuko's, inductor of torch 2.13 writes past its buffers in backward, which ends the process.
        for how in ("", "accelerated"):
            row = functools.partial(library, make, name, how)
            rows.append(Rival(f"{name} {how}".strip(), name, models, row, name if how == "accelerated" else ""))
    rows.append(Rival("flowjax jit", "flowjax", ("Real NVP", "NSF", "NSF autoregressive", "MAF"), _flowjax))
    return rows


RIVALS = {rival.name: rival for rival in _rivals()}

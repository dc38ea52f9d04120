"""zuko's free-form Jacobian transforms, the layers of CNF, on `flowkernels.ops.ode_flow`: read off in every call."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from zuko import transforms
from zuko.nn import MLP, Linear

from flowkernels import ops
from flowkernels._arguments import is_number
from flowkernels.compat.engine.reads import CachedRead
from flowkernels.compat.reading.operands import mixed
from flowkernels.nets.reading import hooked, hooked_globally, of_parameters
from flowkernels.ops.net.activations import name_of

TRACE_SCALE = 1e-2  # of zuko's ladj in its solver's error, and of ours
# Of zuko's tolerances. Its worst row has all of them, the others stay below, as all share the steps of the batch. With
# this share the error of a log density is that of zuko's or less, in the root of the mean square of 256 rows and more.
SHARE = 0.4
_MOST = 3  # layers of a network whose exact trace has a kernel


class Field(NamedTuple):
    """The network of a layer: its linear layers, and the activation between them."""

    linears: list[Any]
    activation: str

    def features(self) -> int:
        return self.linears[-1].weight.shape[0]

    def layers(self, waves: int, training: bool) -> list[tuple[Tensor, Tensor]]:
        """Weights and biases as the op has them: of the first x in front of time. Evaluation is without gradients."""
        pairs = [(m.weight, m.bias) if training else (m.weight.detach(), m.bias.detach()) for m in self.linears]
        (weight, bias), *rest = pairs
        of_time, of_x, of_context = weight.tensor_split((2 * waves, 2 * waves + self.features()), 1)
        return [(torch.cat((of_x, of_time, of_context), 1), bias), *rest]


def _activation(module: Any) -> str | None:
    """As `name_of` has it, and softplus, which goes over into a line where rounding no longer tells it from one."""
    if type(module) is nn.Softplus and module.beta == 1 and module.threshold >= 20:
        return "softplus"
    return name_of(module)


def field_of(layer: Any) -> Field | str:
    """The network of a layer, or why no kernel has it."""
    net = layer._modules.get("ode")
    if type(net) is not MLP:
        return f"its network is a {type(net).__name__}, not zuko's MLP"
    modules = [*net._modules.values()]
    linears, activations = modules[::2], modules[1::2]
    if any(map(hooked, (net, *modules))) or hooked_globally():
        return "its network has hooks"
    if any(type(m) is not Linear for m in linears) or len(activations) != len(linears) - 1:
        return "its network has other layers than linear ones and an activation between them"
    if not all(map(of_parameters, linears)):
        return "a layer of its network has no weight matrix or no bias as a parameter"
    names = {_activation(a) or "" for a in activations}
    if len(names) > 1 or "" in names:
        return f"the activation of its network is {activations[0]!r}"
    return Field(linears, names.pop() if names else "identity")


class Times(NamedTuple):
    """Where time begins and ends, and how many frequencies the network sees of it."""

    t0: float
    t1: float
    waves: int


def _read_times(times: Tensor, freqs: Tensor) -> Times | str:
    if times.requires_grad or freqs.requires_grad:
        return "its times or its frequencies are learned"
    n = len(freqs)
    wanted = math.pi * torch.arange(1, n + 1, dtype=torch.float64, device=freqs.device)
    if (freqs.double() - wanted).abs().gt(2 * torch.finfo(freqs.dtype).eps * wanted).any():
        return "its frequencies are not the multiples of pi"
    t0, t1 = times.double().tolist()
    return Times(t0, t1, n)


_times_of = CachedRead[Times | str](_read_times)


def times_of(layer: Any) -> Times | str | None:
    """What a layer's buffers say, why no kernel has that, or None where they cannot be read now."""
    return _times_of(layer, (layer.times, layer.freqs))


def refusal(layer: Any) -> object:
    """Why a layer gains nothing, if that is a string."""
    found = field_of(layer)
    if not isinstance(found, str) and layer.exact and len(found.linears) > _MOST:
        return "no kernel for exact traces of a network with more than two hidden layers"
    return found if isinstance(found, str) else times_of(layer)


class FreeFormTransform(transforms.FreeFormJacobianTransform):
    """`zuko.transforms.FreeFormJacobianTransform` of a layer and a context."""

    def __init__(self, layer: Any, context: Tensor | None, plain: Any, turned: bool = False) -> None:
        """``plain``: zuko's own; ``turned``: whether that is the inverse of the layer's."""
        super().__init__(plain.f, plain.t0, plain.t1, plain.phi, plain.atol, plain.rtol, plain.exact)
        self.layer, self.context, self.turned = layer, context, turned
        self.training = layer.training  # zuko's weights are constants in evaluation
        self._ends = plain.t0, plain.t1

    @property
    def inv(self) -> transforms.Transform:
        return FreeFormTransform(self.layer, self.context, super().inv, not self.turned)

    def _run(self, x: Tensor, inverse: bool, trace: bool = True) -> tuple[Tensor, Tensor] | None:
        if torch.compiler.is_compiling():  # between graphs, as zuko's solver is, which reads its errors
            return _between_graphs(self, x, inverse, trace)
        return self._op(x, inverse, trace)

    def _op(self, x: Tensor, inverse: bool, trace: bool) -> tuple[Tensor, Tensor] | None:
        """y and ladj; None where zuko is to run. ``trace``: whether anybody asked for ladj."""
        field, times = field_of(self.layer), times_of(self.layer)
        if isinstance(field, str) or not isinstance(times, Times) or self._is_another():
            return None
        layers, context = field.layers(times.waves, self.training), self.context
        D, n_in = field.features(), layers[0][0].shape[1]
        n_context = n_in - D - 2 * times.waves
        given = [t for pair in layers for t in pair] + ([] if context is None else [context])
        if x.dim() == 0 or x.shape[-1] != D or any(t.device != x.device or mixed(x, t) for t in given):
            return None
        if n_context != (0 if context is None else context.shape[-1]):
            return None
        if context is not None:
            lead = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])
            x = x.expand(*lead, D)
        if trace and self.exact and len(layers) > _MOST:
            return None
        noise = None
        if trace and not self.exact:
            noise = torch.randn_like(x)
        elif not trace and len(layers) > _MOST:  # a trace of nothing has one
            noise = x.new_zeros(())
        return ops.ode_flow(
            x, layers, t0=times.t0, t1=times.t1, solver="dopri5", rtol=SHARE * self.rtol, atol=SHARE * self.atol,
            trace="exact" if noise is None else "hutchinson", noise=noise, activation=field.activation,
            time="sinusoidal" if times.waves else "none", frequencies=times.waves or 1, context=context,
            inverse=inverse is not self.turned,
        )  # fmt: skip

    def _is_another(self) -> bool:
        """Whether somebody gave this transform other settings than a layer's."""
        own = isinstance(self.f, functools.partial) and getattr(self.f.func, "__self__", None) is self.layer
        known = own and self._ends[0] is self.t0 and self._ends[1] is self.t1 and self.trace_scale == TRACE_SCALE
        return not known or not is_number(self.rtol) or not is_number(self.atol)

    def _call(self, x: Tensor) -> Tensor:
        found = self._run(x, False, False)
        return super()._call(x) if found is None else found[0]

    def _inverse(self, y: Tensor) -> Tensor:
        found = self._run(y, True, False)
        return super()._inverse(y) if found is None else found[0]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self._run(x, False)
        return super().call_and_ladj(x) if found is None else found


def _eagerly(transform: Any, x: Tensor, inverse: bool, trace: bool) -> Any:
    return transform._op(x, inverse, trace)


_between_graphs: Any = torch.compiler.disable(_eagerly)

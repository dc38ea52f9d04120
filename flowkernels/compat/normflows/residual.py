"""normflows' residual blocks of Lipschitz networks on `flowkernels.ops.residual_flow`.

Its determinant is exact where normflows estimates it; random are steps of training of large layers alone.
"""

from __future__ import annotations

import importlib
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkernels import ops
from flowkernels._arguments import is_number
from flowkernels.compat.engine.patch import FastMethods, or_theirs
from flowkernels.compat.reading.operands import mixed
from flowkernels.nets.reading import hooked, hooked_globally
from flowkernels.ops._checks import in_autocast
from flowkernels.ops.residual_flow.native import MOST_FEATURES

# Features times units of a step of training up to which the exact determinant is as fast as normflows' few products.
MOST_IN_TRAINING = 1536
# For the inverse, of which it bounds the steps alone: normflows' power iterations may lag behind the weights.
LIPSCHITZ = 0.98


class Net(NamedTuple):
    """A Lipschitz network: an activation in front of every layer."""

    linears: list[Any]
    swishes: list[Any]

    def features(self) -> int:
        return self.linears[-1].weight.shape[0]

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weights whose norms are bounded as normflows does, which notes the norm of each; and biases."""
        return [(m.compute_weight(update=False), m.bias) for m in self.linears]

    def betas(self) -> Tensor:
        return F.softplus(torch.cat([m.beta for m in self.swishes]))


def _is(module: Any, name: str) -> bool:
    cls = type(module)
    return f"{cls.__module__}.{cls.__qualname__}" == f"normflows.{name}"


def net_of(layer: Any) -> Net | str:
    """The network of a residual layer, or why no kernel has it."""
    block = layer._modules["iresblock"]
    if not _is(block, "flows.residual.iResBlock"):
        return f"its block is a {type(block).__name__}, not normflows' iResBlock"
    net = block._modules["nnet"]
    inner = net._modules["net"] if _is(net, "nets.lipschitz.LipschitzMLP") else net
    if type(inner) is not nn.Sequential:
        return f"its network is a {type(net).__name__}, not normflows' LipschitzMLP"
    modules: list[Any] = [*inner._modules.values()]
    swishes, linears = modules[::2], modules[1::2]
    if any(map(hooked, (net, inner, *modules))) or hooked_globally():
        return "its network has hooks"
    known = all(_is(m, "nets.lipschitz.Swish") for m in swishes) and len(swishes) == len(linears) > 0
    if not known or not all(_is(m, "nets.lipschitz.InducedNormLinear") for m in linears):
        return "its network has other layers than normflows' Swish and InducedNormLinear by turns"
    if any(m._parameters.get(name) is None for m in linears for name in ("weight", "bias")):
        return "a layer of its network has no weight or no bias as a parameter"
    if any(not is_number(p) or p != 2 for m in linears for p in (m.domain, m.codomain)):
        return "the norms of its network are not spectral"
    if not math.prod(m.coeff for m in linears) < 1:
        return "the norms of its network do not make it a contraction"
    found = Net(linears, swishes)
    if found.features() > MOST_FEATURES:
        return f"no kernel for determinants of more than {MOST_FEATURES} features"
    return found


def refusal(layer: Any) -> str | None:
    found = net_of(layer)
    return found if isinstance(found, str) else None


# ---- normflows' estimate ----


def _draws(block: Any) -> tuple[list[float], Any]:
    """The weights of the terms of a series, and the numbers of terms that were drawn for them, as normflows does."""
    module = importlib.import_module(type(block).__module__)
    if block.n_power_series is not None:
        return [1.0] * block.n_power_series, None
    if block.n_dist == "geometric":
        p = torch.sigmoid(block.geom_p).item()
        drawn, tail = module.geometric_sample(p, block.n_samples), lambda k: module.geometric_1mcdf(p, k, sure)
    else:
        lamb = block.lamb.item()
        drawn, tail = module.poisson_sample(lamb, block.n_samples), lambda k: module.poisson_1mcdf(lamb, k, sure)
    sure = block.n_exact_terms
    shares = [float((drawn >= k - sure).mean()) for k in range(1, int(drawn.max()) + sure + 1)]
    return [share / tail(k + 1) for k, share in enumerate(shares)], drawn


def _settings(block: Any, net: Net, x: Tensor) -> tuple[dict[str, Any], Any]:
    """How the op is to find the determinant, and what was drawn for it."""
    width = max(m.weight.shape[0] for m in net.linears)
    costly = block.training and torch.is_grad_enabled() and net.features() * width > MOST_IN_TRAINING
    if not costly or block.exact_trace or torch.compiler.is_compiling():
        return {"log_det": "exact"}, None
    weights, drawn = _draws(block)
    given = {"weights": x.new_tensor(weights), "noise": torch.randn_like(x).unsqueeze(0)}
    return {"log_det": "roulette", "neumann": bool(block.neumann_grad), **given}, drawn


@torch.no_grad()
def _note(block: Any, ladj: Tensor, drawn: Any) -> None:
    """Moments of what a step of training found, which normflows keeps in buffers."""
    if not block.training or block.n_power_series is not None:
        return
    if drawn is not None:
        block.last_n_samples.copy_(torch.from_numpy(drawn))
    block.last_firmom.copy_(ladj.mean())
    block.last_secmom.copy_(ladj.square().mean())


def _run(layer: Any, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """y and ladj; None where normflows' own code is called for. ``inverse``: of the method, not of the map."""
    net = net_of(layer)
    if isinstance(net, str) or x.dim() != 2 or x.shape[1] != net.features() or in_autocast(x):
        return None
    given = [t for m in net.linears for t in (m.weight, m.bias)] + [m.beta for m in net.swishes]
    if any(t.device != x.device or mixed(x, t) for t in given):
        return None
    block, back = layer.iresblock, bool(layer.reverse) is not inverse
    how, drawn = _settings(block, net, x)
    y, ladj = ops.residual_flow(
        x, net.layers(), activation="lipswish", betas=net.betas(), preactivated=True, lipschitz=LIPSCHITZ, inverse=back,
        **how,
    )  # fmt: skip
    _note(block, -ladj if back else ladj, drawn)
    return y, ladj


class Residual(FastMethods):
    """The methods of an accelerated Residual."""

    @or_theirs
    def forward(self: Any, z: Tensor) -> Any:
        return _run(self, z, False)

    @or_theirs
    def inverse(self: Any, z: Tensor) -> Any:
        return _run(self, z, True)

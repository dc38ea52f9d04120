"""The models, in families of equal weights: ours as they are made by default and with an argument, and the libraries'.

Another row is an entry in `MODELS`: its family, its package, and a function (features, hidden) → module.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.grid.rivals import n_params
from bench.suites import dropin_models
from flowkernels import flows, transforms

LAYERS, HIDDEN, WIDEST = 4, 64, 512
OURS = "flowkernels"
Make = Callable[[int, int], Any]


class Model(NamedTuple):
    """One row of a table's results."""

    family: str
    library: str
    make: Make


def _native(cls: Callable[..., flows.Flow], **settings: Any) -> Make:
    return lambda features, hidden: cls(features, transforms=LAYERS, hidden=(hidden, hidden), **settings)


def _library(name: str) -> Model:
    row = dropin_models.MODELS[name]
    kind = name.removeprefix(row.library).strip()
    return Model(_KINDS[kind], row.library, lambda features, hidden: row.make(features, hidden, LAYERS))


COUPLINGS, AUTOREGRESSIVE, MAF, REAL_NVP = FAMILIES = ("spline couplings", "autoregressive splines", "MAF", "Real NVP")
_KINDS = {
    "spline coupling": COUPLINGS, "CouplingNSF": COUPLINGS, "autoregressive spline": AUTOREGRESSIVE, "MAF": MAF,
    "Real NVP": REAL_NVP, "RealNVP": REAL_NVP,
}  # fmt: skip
_RESIDUAL: dict[str, Any] = {"univariate": transforms.Affine("tanh"), "net": "residual"}
# The first of a family is the one whose number of weights the others have.
MODELS: dict[str, Model] = {
    "NSF, no linear layers": Model(COUPLINGS, OURS, _native(flows.NSF, linear=None)),
    "NSF": Model(COUPLINGS, OURS, _native(flows.NSF)),
    "NSF, lu_permutation": Model(COUPLINGS, OURS, _native(flows.NSF, linear="lu_permutation")),
    "NSF, box 5, no linear layers": Model(COUPLINGS, OURS, _native(flows.NSF, tail_bound=5.0, linear=None)),
    "NSF, box 5": Model(COUPLINGS, OURS, _native(flows.NSF, tail_bound=5.0)),
    "NSF autoregressive, no linear layers": Model(
        AUTOREGRESSIVE, OURS, _native(flows.NSF, autoregressive=True, linear=None)
    ),
    "NSF autoregressive": Model(AUTOREGRESSIVE, OURS, _native(flows.NSF, autoregressive=True)),
    "MAF": Model(MAF, OURS, _native(flows.MAF)),
    "MAF, lu": Model(MAF, OURS, _native(flows.MAF, linear="lu")),
    "RealNVP": Model(REAL_NVP, OURS, _native(flows.RealNVP)),
    "RealNVP, lu": Model(REAL_NVP, OURS, _native(flows.RealNVP, linear="lu")),
    "RealNVP, residual": Model(REAL_NVP, OURS, _native(flows.CouplingFlow, **_RESIDUAL)),
    "RealNVP, residual, lu": Model(REAL_NVP, OURS, _native(flows.CouplingFlow, linear="lu", **_RESIDUAL)),
    **{
        name: _library(name)
        for name in (
            "nflows spline coupling", "zuko spline coupling", "normflows spline coupling", "glasflow CouplingNSF",
            "nflows autoregressive spline", "zuko autoregressive spline", "normflows autoregressive spline",
            "nflows MAF", "zuko MAF", "normflows MAF",
            "nflows Real NVP", "zuko Real NVP", "normflows Real NVP", "glasflow RealNVP",
        )
    },
}  # fmt: skip


def first_of(family: str) -> str:
    return next(name for name, model in MODELS.items() if model.family == family)


@functools.cache
def width(name: str, features: int) -> int:
    """Of the hidden layers with which a model has as many weights as the first of its family, as near as can be."""
    model = MODELS[name]
    wanted = n_params(MODELS[first_of(model.family)].make(features, HIDDEN))
    low, high = 1, WIDEST  # the answer is one of them or between
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if n_params(model.make(features, middle)) <= wanted else (low, middle)
    return min((low, high), key=lambda w: abs(n_params(model.make(features, w)) - wanted))


def build(name: str, features: int, seed: int) -> nn.Module:
    hidden = width(name, features)  # which makes models too, the first time
    torch.manual_seed(seed)
    return MODELS[name].make(features, hidden)


def log_prob_of(name: str, module: nn.Module) -> Callable[[Tensor], Tensor]:
    library = MODELS[name].library
    return module.log_prob if library == OURS else dropin_models.calls_of(library, name, module).log_prob  # type: ignore[return-value]

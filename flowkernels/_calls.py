"""How the model of any library is asked for densities, log-determinants and draws: one row of context a row of x."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

from flowkernels.flows import Flow


class CannotAskError(TypeError):
    """The model offers no such call, as far as is known here."""


def log_prob(model: Any, x: Tensor, context: Tensor | None) -> Tensor:
    """Log-densities ``[B]``; of a bare transform, those of a standard normal in its latent space.

    Raises:
        CannotAskError: the model has no ``log_prob`` and gives no ``(z, ladj)``.
    """
    density, given = _density(model, context)
    if density is not None:
        if "sbi" in _packages(density):  # whose data has a dim of samples before the rows
            return density.log_prob(x[None], *given)[0]
        return density.log_prob(x, *given)
    z, ladj = _latent(model, x, context)
    z = z.flatten(1)
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi)) + ladj


def ladj(model: Any, x: Tensor, context: Tensor | None) -> Tensor:
    """The log-determinant of data → latent, ``[B]``.

    Raises:
        CannotAskError: no transform of the model is known.
    """
    return _latent(model, x, context)[1]


def sample(model: Any, x: Tensor, context: Tensor | None) -> Tensor:
    """As many draws as ``x`` has rows, each for its row of the context; bare transforms read ``x`` for the shape of z.

    Raises:
        CannotAskError: the model can draw nothing.
    """
    density, given = _density(model, context)
    n = x.shape[0]
    if density is None:
        return _decode(model, torch.randn_like(_latent(model, x, context)[0]), context)
    if not hasattr(density, "sample"):
        raise CannotAskError(f"{type(model).__name__} has no sample")
    if isinstance(density, td.Distribution):
        drawn = density.sample(() if density.batch_shape[:1] == (n,) else (n,))
    elif isinstance(density, Flow):
        drawn = density.sample((n,)) if context is None else density.sample((), context)
    elif "sbi" in _packages(density):
        drawn = density.sample((1,), *given)[0]
    elif "nflows" in _packages(density) and given:  # so many for each row of the context
        drawn = density.sample(1, *given).squeeze(1)
    else:
        drawn = density.sample(n, *given)
    return drawn[0] if isinstance(drawn, tuple) else drawn  # normflows' has the log-densities too


def _density(model: Any, context: Tensor | None) -> tuple[Any, tuple[Tensor, ...]]:
    """What has ``log_prob``, and what of the context it is still to be given; None: of a bare transform."""
    if hasattr(model, "log_prob"):
        return model, () if context is None else (context,)
    if "zuko" in _packages(model):
        return (model() if context is None else model(context)), ()
    if context is not None and hasattr(model, "condition"):  # Pyro's
        return model.condition(context), ()
    return None, ()


def _latent(model: Any, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    given = () if context is None else (context,)
    if isinstance(model, Flow):
        return model._encode(x, model.embed(context))
    if "freia" in _packages(model):
        found = model(x, c=None if context is None else [context])
    elif "zuko" in _packages(model):
        made = model(*given)
        found = getattr(made, "transform", made).call_and_ladj(x)
    elif hasattr(model, "inverse_and_log_det"):  # normflows'
        found = model.inverse_and_log_det(x, *given)
    elif hasattr(model, "_transform"):  # nflows' and glasflow's
        embed = getattr(model, "_embedding_net", lambda c: c)
        found = model._transform(x, context=embed(context))
    elif callable(model) and not hasattr(model, "log_prob"):
        found = model(x, *given)
    else:
        found = None
    if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(t, Tensor) for t in found)):
        raise CannotAskError(f"no transform of {type(model).__name__} is known that gives (z, ladj)")
    return found


def _decode(model: Any, z: Tensor, context: Tensor | None) -> Tensor:
    if "freia" in _packages(model):
        found = model(z, c=None if context is None else [context], rev=True)
    elif hasattr(model, "inverse"):
        found = model.inverse(z, *(() if context is None else (context,)))
    else:
        raise CannotAskError(f"{type(model).__name__} has no sample and no inverse")
    return found[0] if isinstance(found, tuple) else found


def _packages(model: object) -> set[str]:
    """The top-level packages of a model's classes, in lower case."""
    return {cls.__module__.partition(".")[0].lower() for cls in type(model).__mro__}

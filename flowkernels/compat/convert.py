"""Flows of other libraries as native ones, with the same weights, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flowkernels.flows import Flow
from flowkernels.transforms import ActNorm, Composite, Transform

from .engine.patch import original_class

__all__ = ["convert", "to_nflows", "to_zuko"]


class CannotConvert(ValueError):
    """A part that the other side has no layer for; says which and why."""


def convert(model: nn.Module) -> Flow:
    """The same density as a native flow, with copies of the weights.

    ``convert(model).log_prob(x, context)`` is the model's, within rounding, and so are samples for the same noise; the
    training mode, dtype and device are the model's. Layers: of nflows spline, affine and additive couplings on
    ``ResidualNet``, masked autoregressive affine and spline layers, ``LULinear``, ``ActNorm``, permutations, fixed
    affine maps and inverses; of zuko masked autoregressive, coupling and elementwise layers with splines (circular ones
    too) or affine maps, continuous layers, permutations and fixed affine maps. An accelerated model is converted as its
    original.

    Args:
        model: a flow of nflows or of zuko; of an estimator made by sbi its ``net``.

    Raises:
        TypeError: ``model`` is no such flow.
        ValueError: a layer has no native counterpart; the message says which and why.

    Reference:
        Papamakarios et al.: Normalizing Flows for Probabilistic Modeling and Inference, JMLR 2021, arXiv:1912.02762.

    Example:
        >>> import torch, zuko
        >>> import flowkernels
        >>> theirs = zuko.flows.NSF(3, transforms=2)
        >>> ours = flowkernels.convert(theirs)
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(ours.log_prob(x), theirs().log_prob(x), atol=1e-4)
        True
    """
    names = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(model).__mro__}
    if "nflows.flows.base.Flow" in names:
        from .nflows.convert import flow_of
    elif "zuko.lazy.Flow" in names:
        from .zuko.convert import flow_of
    else:
        raise TypeError(f"convert: model must be a flow of nflows or of zuko, got {type(model).__name__}")
    flow = flow_of(model)
    return placed(flow, model)


def to_nflows(flow: Flow) -> Any:
    """An ``nflows.flows.Flow`` with the same density and copies of the weights.

    Args:
        flow: of couplings on ``nets.ResidualNet`` and autoregressive layers on ``nets.MADE``, with ``RQS`` of softmax
            bins or the affine maps that nflows has, ``LULinear`` with a positive diagonal and no permutation,
            ``ActNorm``, ``Permutation``, ``Inverse``, on a ``StandardNormal``.

    Raises:
        TypeError: ``flow`` is not a `Flow`.
        ValueError: nflows has no layer for a part; the message says which and why.

    Reference:
        Durkan, Bekasov, Murray, Papamakarios: nflows: normalizing flows in PyTorch, 2020, doi:10.5281/zenodo.4296287.

    Example:
        >>> import torch
        >>> from flowkernels import flows, to_nflows
        >>> flow = flows.NSF(4, transforms=2)
        >>> x = torch.randn(5, 4)
        >>> torch.allclose(to_nflows(flow).log_prob(x), flow.log_prob(x), atol=1e-4)
        True
    """
    from .nflows.convert import theirs_of

    return placed(theirs_of(_checked("to_nflows", flow)), flow)


def to_zuko(flow: Flow) -> Any:
    """A ``zuko.flows.Flow`` with the same density and copies of the weights.

    Args:
        flow: of couplings on ``nets.MLP`` and autoregressive layers on plain ``nets.MADE`` (with a context:
            ``context_activation=False``), with ``RQS(parametrization="soft_clip")`` or ``Affine("soft_clip")``, and
            ``Permutation``, on a ``StandardNormal`` or a ``UniformBox``; couplings that map every feature are zuko's
            elementwise layers, there on ``nets.Constant`` too; ``Continuous`` by dopri5 that sees sinusoidal time.

    Raises:
        TypeError: ``flow`` is not a `Flow`.
        ValueError: zuko has no layer for a part; the message says which and why.

    Reference:
        Rozet et al.: Zuko: Normalizing flows in PyTorch, 2022, doi:10.5281/zenodo.7625672.

    Example:
        >>> import torch
        >>> from flowkernels import flows, to_zuko
        >>> from flowkernels.transforms import Affine
        >>> flow = flows.MAF(4, transforms=2, univariate=Affine("soft_clip"))
        >>> x = torch.randn(5, 4)
        >>> torch.allclose(to_zuko(flow)().log_prob(x), flow.log_prob(x), atol=1e-4)
        True
    """
    from .zuko.convert import theirs_of

    return placed(theirs_of(_checked("to_zuko", flow)), flow)


def _checked(name: str, flow: object) -> Flow:
    if not isinstance(flow, Flow):
        raise TypeError(f"{name}: flow must be a flowkernels.flows.Flow, got {type(flow).__name__}")
    return flow


# ---- what both directions and libraries share: everything is made in float64, so that no weight is rounded ----


def as_native(root: str, table: Mapping[str, Callable[[Any, int], Transform]], module: Any, features: int) -> Transform:
    """The native transform of a module, as the table of the classes below a library's root says."""
    make = table.get(class_name(module).removeprefix(f"{root}."))
    if make is None:
        raise cannot("convert", module)
    return make(module, features)


def cannot(call: str, part: Any, why: str = "") -> CannotConvert:
    """The error of a layer that the other side has not."""
    contract = {"convert": "native flows have", "to_nflows": "nflows has", "to_zuko": "zuko has"}[call]
    given = f"{type(part).__name__} {why}".strip()
    return CannotConvert(f"{call}: every layer must be one that {contract}, got {given}")


def placed(module: Any, like: nn.Module) -> Any:
    """In the dtype, on the device and in the mode of another module."""
    tensors = [t for t in (*like.parameters(), *like.buffers()) if t.is_floating_point()]
    return (module.to(tensors[0]) if tensors else module).train(like.training)


def class_name(module: Any) -> str:
    cls = original_class(module)
    return f"{cls.__module__}.{cls.__qualname__}"


def parts_of(transform: Transform) -> list[Transform]:
    """The transforms of a flow, compositions opened."""
    if isinstance(transform, Composite):
        return [part for t in transform for part in parts_of(t)]
    return [transform]


@torch.no_grad()
def copied(to: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Copies the weights of a linear layer; no bias is one of zeros."""
    to.weight.copy_(weight)  # type: ignore[operator]
    if bias is None:
        to.bias.zero_()  # type: ignore[operator]
    else:
        to.bias.copy_(bias)  # type: ignore[operator]


@torch.no_grad()
def act_norm(features: int, log_scale: Tensor, shift: Tensor, initialised: Any = True) -> ActNorm:
    layer = ActNorm(features).double()
    layer.log_scale.copy_(log_scale)
    layer.shift.copy_(shift)
    layer.initialised.fill_(bool(initialised))
    return layer


def fixed_affine(features: int, scale: Tensor, shift: Tensor) -> ActNorm:
    """``y = scale x + shift`` that is not learned; the scale is positive."""
    if not bool((scale > 0).all()):
        raise CannotConvert("convert: a fixed scale must be positive, got one that is not")
    return act_norm(features, scale.log(), shift).requires_grad_(False)

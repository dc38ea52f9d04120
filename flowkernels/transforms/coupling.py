"""Coupling: part of the features chooses the map of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from flowkernels.nets.dense import Constant
from flowkernels.nets.reading import Walk
from flowkernels.ops.split import Split
from flowkernels.ops.univariate import Univariate, can_fuse, n_params_of

from . import own_steps
from .base import Transform, check_features
from .own_steps import OwnPart
from .parts import Part, is_taken, read_part, run_alone
from .split import FeatureSplit
from .univariate import check_univariate


def as_conditioner(name: str, given: nn.Module | Callable[[int, int], nn.Module], n_in: int, n_out: int) -> nn.Module:
    """A layer's network: the one given, or what the function given makes for these sizes."""
    conditioner = given(n_in, n_out) if not isinstance(given, nn.Module) and callable(given) else given
    if not isinstance(conditioner, nn.Module):
        found = type(conditioner).__name__
        raise TypeError(f"{name}: conditioner must be a module or a function to one, got {found}")
    return conditioner


class Coupling(Transform):
    r"""Transforms some features one by one, with parameters computed from the others.

    With :math:`a` the features where the mask is 0 and :math:`b` those where it is 1,

    .. math:: y_a = x_a, \qquad y_b = f(x_b; \mathrm{conditioner}(x_a, \mathrm{context}))

    and ``ladj`` is :math:`\sum_b \log|f'(x_b)|` in nats. Both directions cost one pass of the conditioner.
    ``x [..., D]`` in the dtype of the conditioner's weights, or under autocast; ``y`` the same, ``ladj [...]``.

    Args:
        mask: D flags, True or 1 where the feature is transformed. Alternating masks and halves are the cheap ones.
            Every feature may be transformed: the conditioner then sees no features, only the context.
        conditioner: a module, called as ``conditioner(x_a, context)``, that returns ``[..., n_transformed * P]``; or
            a function ``(in_features, out_features) -> module``.
        univariate: the map of one feature and its P parameters, e.g. `RQS` or `Affine`.

    Raises:
        ValueError: ``mask`` is not one row of 0 and 1 with at least one 1; ``x`` does not have D features; the
            conditioner returns another number of parameters.
        TypeError: ``conditioner`` is neither a module nor a function that returns one.

    Reference:
        Dinh, Krueger, Bengio: NICE, arXiv:1410.8516; Dinh, Sohl-Dickstein, Bengio: Real NVP, arXiv:1605.08803.

    Example:
        >>> import torch
        >>> from flowkernels.nets import MLP
        >>> from flowkernels.transforms import RQS, Coupling
        >>> layer = Coupling([0, 1, 0, 1], MLP, RQS(bins=8))
        >>> x = torch.randn(5, 4)
        >>> y, ladj = layer(x)
        >>> y.shape, ladj.shape, torch.equal(y[:, ::2], x[:, ::2])
        (torch.Size([5, 4]), torch.Size([5]), True)
    """

    def __init__(
        self,
        mask: Sequence[bool] | Sequence[int] | Tensor,
        conditioner: nn.Module | Callable[[int, int], nn.Module],
        univariate: Univariate,
    ) -> None:
        super().__init__()
        self.split = FeatureSplit(mask)
        check_univariate("transforms.Coupling", univariate)
        self.univariate = univariate
        self.features = self.split.features
        n_params = self.split.n_transformed * n_params_of(univariate)
        self.conditioner = as_conditioner("transforms.Coupling", conditioner, self.split.n_identity, n_params)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._couple(x, context, inverse=False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._couple(y, context, inverse=True)

    def _couple(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        check_features("transforms.Coupling", x, self.features)
        fused = run_alone(self, x, context, inverse, read)
        if fused is not None:
            return fused
        split, n_params = self.split, n_params_of(self.univariate)
        identity, transformed = split.split(x)
        params = self.conditioner(identity, context)
        if params.shape[-1] != split.n_transformed * n_params:
            expected = split.n_transformed * n_params
            raise ValueError(
                f"transforms.Coupling: conditioner must return [..., {expected}], got {list(params.shape)}"
            )
        params = params.reshape(*params.shape[:-1], split.n_transformed, n_params)
        transformed, ladj = self.univariate(transformed, params, inverse)
        return split.merge(identity, transformed), ladj

    def extra_repr(self) -> str:
        return "" if isinstance(self.univariate, nn.Module) else f"univariate={self.univariate}"


def read(walk: Walk, layer: Coupling, inverse: bool, has_context: bool) -> Part | OwnPart | None:
    """The layer for one op with its conditioner; None where its parts are to be run in turn."""
    parts: Any = layer._modules
    split = parts.get("split")
    if type(split) is not FeatureSplit or split.value is None:
        return None
    walk.enter(split, attributes=("value",), is_called=True)
    if not walk.enter(layer, attributes=("univariate",)):
        return None
    univariate: Any = layer.__dict__.get("univariate")
    turned = univariate.inverted() if inverse and can_fuse(type(univariate)) else univariate
    conditioner = parts.get("conditioner")
    if type(conditioner) is Constant:
        return None if has_context else _of_features(walk, turned, conditioner, split.value)
    return read_part(walk, turned, conditioner, split.value, has_context)


def _of_features(walk: Walk, univariate: Any, conditioner: Constant, split: Split) -> OwnPart | None:
    """The map by parameters that no row sees."""
    taken = can_fuse(type(univariate)) and is_taken(univariate) and walk.enter(conditioner, parameters=("value",))
    value, shape = conditioner.value, (len(split.outputs), univariate.n_params if taken else 0)
    if not taken or value.shape != (shape[0] * shape[1],):
        return None
    return own_steps.elementwise(univariate, lambda: value.view(shape), split.features, split.outputs)

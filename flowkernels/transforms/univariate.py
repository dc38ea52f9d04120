"""What a layer does to one feature: a monotone map with P parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from flowkernels._arguments import flag
from flowkernels.ops.affine import affine
from flowkernels.ops.affine.spec import AffineSpec
from flowkernels.ops.affine.spec import make_spec as make_affine_spec
from flowkernels.ops.rqs import rqs
from flowkernels.ops.rqs.spec import RqsSpec, make_spec
from flowkernels.ops.rqs.turn import half_turn


class Univariate(Protocol):
    """A monotone map of every feature, with its own P parameters; an `nn.Module` if it has weights.

    If it has a ``spec`` (an RqsSpec or an AffineSpec, of the direction data → latent), an autoregressive layer
    inverts it in one sweep; with a true ``half_turn``, after half a turn of the spline's box.
    """

    @property
    def params_per_feature(self) -> int:
        """P."""
        ...

    @property
    def identity(self) -> tuple[float, ...]:
        """The P parameters at which the map is the identity, or as near to it as it gets."""
        ...

    def __call__(
        self, x: Tensor, params: Tensor, inverse: bool, event_dims: int = 1, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``x [..., *event]``, ``params [..., *event, P]`` → ``y [..., *event]`` and ``ladj [...]``, summed over it.

        The event is the last dim, or the last three of images. With a ``mask`` over it, False leaves an element as it
        is. Layers on features pass neither of the two.
        """
        ...


def check_univariate(name: str, univariate: object) -> None:
    """Raises unless it can be the map of a layer."""
    if isinstance(univariate, type) or not callable(univariate) or not hasattr(univariate, "params_per_feature"):
        given = univariate.__qualname__ if isinstance(univariate, type) else repr(univariate)
        raise TypeError(f"{name}: univariate must be a map of one feature, e.g. RQS() or Affine(), got {given:.60}")


@dataclass(frozen=True)
class RQS:
    r"""The monotonic rational spline of `flowkernels.ops.rqs`, quadratic or linear, as a choice for a layer.

    ``RQS(...)(x, params, inverse)`` is ``ops.rqs(x, params, ..., inverse=inverse)``: ``x [..., D]``,
    ``params [..., D, P]`` → ``y [..., D]``, ``ladj [...]`` in nats; formula, dtypes and settings are written there.
    P = ``params_per_feature`` = 3K-1 (linear tails), 3K (circular), 3K+1 (no tails), K = ``bins``; K more of order
    ``"linear"``.

    Args:
        half_turn: the box's side in x is a circle, and the map is the spline after half a turn of it (zuko's circular
            splines). Data lie in the box, and latents too: a tail's would come back into it.

    Raises:
        ValueError: a setting breaks the contract of `flowkernels.ops.rqs`.

    Reference:
        Durkan, Bekasov, Murray, Papamakarios: Neural Spline Flows, NeurIPS 2019, arXiv:1906.04032.

    Example:
        >>> import torch
        >>> from flowkernels.transforms import RQS
        >>> spline = RQS(bins=8, tail_bound=5.0)
        >>> y, ladj = spline(torch.randn(4, 2), torch.randn(4, 2, spline.params_per_feature), inverse=False)
        >>> y.shape, ladj.shape
        (torch.Size([4, 2]), torch.Size([4]))
    """

    bins: int = 8
    tails: str | None = "linear"
    tail_bound: float = 3.0
    box: tuple[float, float, float, float] | None = None
    min_bin_width: float = 1e-3
    min_bin_height: float = 1e-3
    min_derivative: float = 1e-3
    logit_scale: float = 1.0
    parametrization: str = "softmax"
    slope: float = 1e-3
    half_turn: bool = False
    order: str = "quadratic"
    params_per_feature: int = field(init=False, repr=False, compare=False)
    identity: tuple[float, ...] = field(init=False, repr=False, compare=False)
    spec: RqsSpec = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        flag("transforms.RQS", "half_turn", self.half_turn)
        spec = make_spec(
            self.bins, self.tails, self.tail_bound, self.box, self.min_bin_width, self.min_bin_height,
            self.min_derivative, self.logit_scale, self.parametrization, self.slope, False, order=self.order,
        )  # fmt: skip
        n_splits = self.bins if spec.splits else 0
        n_slopes = spec.n_params - 2 * self.bins - n_splits
        reachable = spec.clipped or self.min_derivative < 1  # slope 1 is, for free ends, not always
        slope_one = spec.edge_logit if reachable else 0.0
        zeros = (0.0,) * (2 * self.bins)
        # The way to set a field of a frozen dataclass. Equal bins with slope 1 at every knot are a straight line.
        object.__setattr__(self, "spec", spec)
        object.__setattr__(self, "params_per_feature", spec.n_params)
        object.__setattr__(self, "identity", zeros + (slope_one,) * n_slopes + (0.0,) * n_splits)

    def __call__(
        self, x: Tensor, params: Tensor, inverse: bool, event_dims: int = 1, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if mask is not None:  # as events of one element each, whose ladj can be masked
            y, ladj = self(x.unsqueeze(-1), params.unsqueeze(-2), inverse)
            y, ladj = torch.where(mask, y.squeeze(-1), x), torch.where(mask, ladj, ladj.new_zeros(()))
            return y, ladj.sum(tuple(range(-event_dims, 0)))
        if event_dims > 1:
            y, ladj = self(x, params, inverse)
            return y, ladj.sum(tuple(range(1 - event_dims, 0)))
        y, ladj = rqs(
            half_turn(x, self.spec) if self.half_turn and not inverse else x,
            params,
            bins=self.bins,
            tails=self.tails,
            tail_bound=self.tail_bound,
            box=self.box,
            min_bin_width=self.min_bin_width,
            min_bin_height=self.min_bin_height,
            min_derivative=self.min_derivative,
            logit_scale=self.logit_scale,
            parametrization=self.parametrization,
            slope=self.slope,
            order=self.order,
            inverse=inverse,
        )
        return (half_turn(y, self.spec) if self.half_turn and inverse else y), ladj


@dataclass(frozen=True)
class Affine:
    r"""The affine map of `flowkernels.ops.affine`, as a choice for a layer.

    ``Affine(...)(x, params, inverse)`` is ``ops.affine(x, params, ..., inverse=inverse)``: ``x [..., D]``,
    ``params [..., D, P]`` → ``y [..., D]``, ``ladj [...]`` in nats; formulas and dtypes are written there.
    P = ``params_per_feature`` = 2, or 1 for ``"additive"``.

    Args:
        scale: ``"softplus"`` or ``"sigmoid"``, which keep the scale above ``min_scale``; ``"tanh"``, ``"atan"`` or
            ``"soft_clip"``, which keep it between exp(-clamp) and exp(clamp); ``"per_sigmoid"``, which keeps it above
            1; ``"exp"`` (the papers'); or ``"additive"``.
        min_scale: None stands for 1e-3 where the scale has a floor, and 0 elsewhere.
        clamp: None stands for 2 where the scale has bounds.

    Raises:
        ValueError: a setting breaks the contract of `flowkernels.ops.affine`.

    Reference:
        Papamakarios, Pavlakou, Murray: Masked Autoregressive Flow for Density Estimation, NeurIPS 2017,
        arXiv:1705.07057.

    Example:
        >>> import torch
        >>> from flowkernels.transforms import Affine
        >>> affine = Affine()
        >>> x = torch.randn(4, 2)
        >>> y, ladj = affine(x, torch.tensor(affine.identity).expand(4, 2, 2), inverse=False)
        >>> torch.allclose(y, x)
        True
    """

    scale: str = "softplus"
    min_scale: float | None = None
    clamp: float | None = None
    params_per_feature: int = field(init=False, repr=False, compare=False)
    identity: tuple[float, ...] = field(init=False, repr=False, compare=False)
    spec: AffineSpec = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        floored = self.scale in ("softplus", "sigmoid")
        floor = (1e-3 if floored else 0.0) if self.min_scale is None else self.min_scale
        spec = make_affine_spec(self.scale, floor, False, self.clamp)
        rest = 1 - spec.min_scale
        # Where the floor is 1 or more the identity is out of reach; logits of 0 are as good as any.
        logit = 0.0
        if self.scale == "softplus" and rest > 0:
            logit = math.log(math.expm1(rest))
        elif self.scale == "sigmoid" and 0 < rest < 1:
            logit = math.log(rest / spec.min_scale) - 2
        elif self.scale == "per_sigmoid" or (self.scale == "sigmoid" and rest == 1):
            logit = 4.0  # a sigmoid never is 1; here it is 0.9975
        object.__setattr__(self, "spec", spec)
        object.__setattr__(self, "params_per_feature", spec.n_params)
        object.__setattr__(self, "identity", (0.0,) if self.scale == "additive" else (logit, 0.0))

    def __call__(
        self,
        x: Tensor,
        params: Tensor,
        inverse: bool,
        event_dims: int = 1,
        mask: Tensor | None = None,
        part: slice | None = None,
    ) -> tuple[Tensor, Tensor]:
        return affine(
            x,
            params,
            scale=self.scale,
            min_scale=self.spec.min_scale,
            clamp=self.clamp,
            part=part,
            mask=mask,
            event_dims=event_dims,
            inverse=inverse,
        )

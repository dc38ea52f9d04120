"""Autoregressive layers: every feature is transformed given the features before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowkernels import ops
from flowkernels.nets import MADE, RecurrentNet
from flowkernels.nets.reading import Walk
from flowkernels.ops.autoregressive_inverse import run_inverse
from flowkernels.ops.flow_layer import every
from flowkernels.ops.net import Net
from flowkernels.ops.recurrent_inverse.reference import by_steps
from flowkernels.ops.univariate import Univariate, can_fuse, n_params_of

from .base import Transform, check_features, zero_ladj
from .parts import Part, read_part, run_alone
from .univariate import check_univariate


class Autoregressive(Transform):
    r"""Transforms every feature, with parameters computed from the features before it in the conditioner's order.

    .. math:: y_d = f(x_d; \mathrm{conditioner}_d(x_{<d}, \mathrm{context}))

    and ``ladj`` is :math:`\sum_D \log|f'(x_d)|` in nats. ``forward`` (data → latent: densities) costs one pass of the
    conditioner. ``inverse`` (latent → data: samples) is solved feature by feature: in one sweep over the hidden units
    where the conditioner is a `flowkernels.nets.MADE` that one kernel can run, in D steps of the cell where it is a
    `flowkernels.nets.RecurrentNet`, in D passes where it has active dropout or hooks, or is another module. Wrap the
    layer in `Inverse` to exchange the two.
    ``x [..., D]`` in the dtype of the conditioner's weights, or under autocast; ``y`` the same, ``ladj [...]``.

    Args:
        conditioner: `flowkernels.nets.MADE` or `flowkernels.nets.RecurrentNet`; or any module, called as
            ``conditioner(x, context)``, that returns ``[..., D * P]`` (feature-major), where a feature's parameters
            depend on the features before it only, and that has ``order``, the D features from the one that sees none
            on.
        univariate: the map of one feature and its P parameters, e.g. `Affine` or `RQS`.

    Raises:
        ValueError: ``x`` does not have D features; the conditioner returns another number of parameters.
        TypeError: ``conditioner`` is not a module with an ``order``.

    Reference:
        Papamakarios, Pavlakou, Murray: Masked Autoregressive Flow for Density Estimation, NeurIPS 2017,
        arXiv:1705.07057.

    Example:
        >>> import torch
        >>> from flowkernels.nets import MADE
        >>> from flowkernels.transforms import RQS, Autoregressive
        >>> spline = RQS(bins=8)
        >>> layer = Autoregressive(MADE(4, spline.n_params), spline)
        >>> x = torch.randn(5, 4)
        >>> y, ladj = layer(x)
        >>> torch.allclose(layer.inverse(y)[0], x, atol=1e-3)
        True
    """

    def __init__(self, conditioner: nn.Module, univariate: Univariate) -> None:
        super().__init__()
        order: Any = getattr(conditioner, "order", None)
        if not isinstance(conditioner, nn.Module) or order is None:
            given = type(conditioner).__name__
            raise TypeError(f"transforms.Autoregressive: conditioner must be a module with an order, got {given}")
        self.features = len(order)
        self.conditioner = conditioner
        check_univariate("transforms.Autoregressive", univariate)
        self.univariate = univariate
        if isinstance(conditioner, (MADE, RecurrentNet)):
            self._check_params(conditioner.features * conditioner.params_per_feature)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_features("transforms.Autoregressive", x, self.features)
        fused = run_alone(self, x, context, False, read)
        return self.univariate(x, self._params(x, context), False) if fused is None else fused

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_features("transforms.Autoregressive", y, self.features)
        univariate: Any = self.univariate
        net = self._network(y, context)
        # A sweep solves maps of the direction data → latent.
        found = None if net is None or univariate.inverse else run_inverse(y, net, univariate)
        return self._feature_by_feature(y, context) if found is None else found

    def _network(self, x: Tensor, context: Tensor | None) -> Net | None:
        """The network as the ops that fuse it with the map take it; None where the two must be called."""
        if not isinstance(self.conditioner, MADE) or not can_fuse(type(self.univariate)):
            return None
        return self.conditioner.as_net(x, context)

    def _params(self, x: Tensor, context: Tensor | None) -> Tensor:
        params = self.conditioner(x, context)
        self._check_params(params.shape[-1])
        return params.unflatten(-1, (self.features, n_params_of(self.univariate)))

    def _check_params(self, given: int) -> None:
        expected = self.features * n_params_of(self.univariate)
        if given != expected:
            raise ValueError(
                f"transforms.Autoregressive: conditioner must return [..., {expected}], got [..., {given}]"
            )

    def _feature_by_feature(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        net = self.conditioner
        if isinstance(net, RecurrentNet) and net.can_step:
            return self._step_by_step(net, y, context)
        x = torch.zeros_like(y)
        ladj = zero_ladj(y)
        for d in self._order():
            value, part = self._solve(d, y, self._params(x, context)[..., d : d + 1, :])
            x = x.slice_scatter(value, -1, d, d + 1)  # a copy: the last pass needs its own x in backward
            ladj = ladj + part
        return x, ladj

    def _step_by_step(self, net: RecurrentNet, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        univariate: Any = self.univariate
        given = net.as_op(y, context)
        if given is not None and can_fuse(type(univariate)) and not univariate.inverse:
            x, ladj = ops.recurrent_inverse(net.in_steps(y), *given, univariate)
            return net.in_place(x), ladj
        state = net.start(y, context)  # which checks the context
        gates = net.gates_of(context)
        return by_steps(
            net.steps, state, lambda d, state: self._solve(d, y, net.final_layer(state).unsqueeze(-2)),
            lambda x, state: net.step(x, state, gates),
        )  # fmt: skip

    def _solve(self, d: int, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """One feature, ``[..., 1]``, of its parameters ``[..., 1, P]``."""
        given = y[..., d : d + 1], params, True
        of_feature = getattr(self.univariate, "of_feature", None)  # of a map with weights for each
        value, ladj = self.univariate(*given) if of_feature is None else of_feature(d, *given)
        return value.to(y.dtype), ladj

    def _order(self) -> list[int]:
        if isinstance(self.conditioner, MADE):  # a compiler cannot read a tensor
            return [d for group in self.conditioner.plan.groups for d in group]
        if isinstance(self.conditioner, RecurrentNet):
            return self.conditioner.steps
        order: Any = self.conditioner.order
        return order.tolist() if isinstance(order, Tensor) else list(order)

    def extra_repr(self) -> str:
        return "" if isinstance(self.univariate, nn.Module) else f"univariate={self.univariate}"


def read(walk: Walk, layer: Autoregressive, inverse: bool, has_context: bool) -> Part | None:
    """The layer for one op with its network, in its slow direction a sweep; None where it is to be called."""
    made = layer._modules.get("conditioner")
    if not isinstance(made, MADE) or not walk.enter(layer, attributes=("univariate", "features")):
        return None
    univariate: Any = layer.__dict__.get("univariate")
    return read_part(walk, univariate, made, every(layer.features), has_context, sweeps=inverse)

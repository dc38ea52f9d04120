"""Maps of one feature that are small networks of it and of a signal."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkernels._arguments import count, generator, widths
from flowkernels.nets.degrees import Seed
from flowkernels.ops.monotone_net import MonotoneSpec, checked, run_monotone
from flowkernels.ops.univariate import refuse_tensors

_NAME = "transforms.MonotoneNet"


class MonotoneNet(nn.Module):
    r"""Maps each feature by a small increasing network of it and of a signal, which is the parameters it is given.

    :math:`y_d = \int_0^{x_d} g_d(t; s_d)\,dt + c_d` or :math:`y_d = u_d(x_d; s_d)`, as `flowkernels.ops.monotone_net`
    has them, where the formula in nats, shapes and dtypes are written. A `Univariate` with weights of its own: a
    network for each of the D features, which a conditioner modulates by the signal s (and the constant c). Each layer
    of a flow has one. In an `Autoregressive` layer the inverse looks for each root once, after D passes of the
    conditioner.

    The derivative of the integral is taken to be g, see there. Untrained it is near to the identity.

    Args:
        features: D, of the features that are mapped.
        form: ``"integral"`` (UMNN) or ``"positive"`` (the monotone network of NAF).
        signal: S, numbers of the signal.
        hidden: widths of the hidden layers of the networks.
        activation, nodes, log_bound, bound: see `flowkernels.ops.monotone_net`.
        seed: of the weights; a number, a generator on the CPU, or None for torch's global one.

    Raises:
        ValueError: a setting breaks its contract; ``params`` are not ``[..., D, n_params]``.

    Reference:
        Wehenkel, Louppe: Unconstrained Monotonic Neural Networks, NeurIPS 2019, arXiv:1908.05164. Huang, Krueger,
        Lacoste, Courville: Neural Autoregressive Flows, ICML 2018, arXiv:1804.00779.

    Example:
        >>> import torch
        >>> from flowkernels.nets import MADE
        >>> from flowkernels.transforms import Autoregressive, MonotoneNet
        >>> univariate = MonotoneNet(3, signal=4, hidden=(16, 16), seed=0)
        >>> layer = Autoregressive(MADE(3, univariate.n_params), univariate)
        >>> x = torch.randn(5, 3)
        >>> y, ladj = layer(x)
        >>> torch.allclose(layer.inverse(y)[0], x, atol=1e-4)
        True
    """

    def __init__(
        self,
        features: int,
        *,
        form: str = "integral",
        signal: int = 16,
        hidden: int | Sequence[int] = (64, 64),
        activation: str = "elu",
        nodes: int = 32,
        log_bound: float = 7.0,
        bound: float = 10.0,
        seed: Seed = None,
    ) -> None:
        super().__init__()
        self.features = count(_NAME, "features", features)
        self.signal = count(_NAME, "signal", signal, 0)
        units = [1 + self.signal, *widths(_NAME, "hidden", hidden, 1), 1]
        shift = form == "integral"
        given = (form, activation, nodes, "integrand", log_bound, shift, bound)
        self.spec: MonotoneSpec = checked(_NAME, *given, False)
        self._inverse: MonotoneSpec = checked(_NAME, *given, True)
        draws, like = generator(_NAME, seed), torch.empty(())  # the default dtype and device
        for k, (a, b) in enumerate(itertools.pairwise(units)):
            for name, shape in (("weight", (b, a)), ("bias", (b,))):
                drawn = torch.rand(self.features, *shape, generator=draws, device="cpu", dtype=torch.float64)
                value = (2 * drawn - 1) / math.sqrt(a)
                self.register_parameter(f"{name}_{k}", nn.Parameter(value.to(like)))
        self.layers = len(units) - 1
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """Scales the last layer: of an integrand to nearly 1, of a network to a slope of 1 at 0."""
        weight, bias = self.tensors()[-2:]
        if self.spec.form == "integral":
            weight.mul_(0.01)
            bias.zero_()
            return
        zero = weight.new_zeros(1, self.features, dtype=torch.float64)
        tensors = [t.double() for t in self.tensors()]
        slope = [
            run_monotone(self.spec, zero[:, d : d + 1], zero.new_zeros(1, 1, self.signal), self._of(tensors, d))[
                1
            ].exp()
            for d in range(self.features)
        ]
        weight.div_(torch.cat(slope).to(weight)[:, None, None])
        value, _ = run_monotone(
            self.spec, zero, zero.new_zeros(1, self.features, self.signal), [t.double() for t in self.tensors()]
        )
        bias.sub_(value[0, :, None].to(bias))

    def tensors(self) -> list[Any]:
        """Weight and bias of each layer, ``[D, out, in]`` and ``[D, out]``."""
        own = self._parameters
        return [own[f"{name}_{k}"] for k in range(self.layers) for name in ("weight", "bias")]

    @property
    def hidden(self) -> list[int]:
        """Widths of the hidden layers."""
        return [t.shape[-1] for t in self.tensors()[1:-1:2]]

    @staticmethod
    def _of(tensors: Sequence[Tensor], d: int) -> list[Tensor]:
        return [t[d : d + 1] for t in tensors]

    @property
    def n_params(self) -> int:
        """S, and one more of an integral: its constant."""
        return self.signal + self.spec.shift

    @property
    def identity(self) -> tuple[float, ...]:
        """A signal of zeros, at which the map starts near the identity."""
        return (0.0,) * self.n_params

    def _run(self, x: Tensor, params: Tensor, inverse: bool, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        refuse_tensors(_NAME, x, params, self.n_params)
        D = tensors[0].shape[0]
        if x.shape[-1] != D:
            raise ValueError(f"{_NAME}: x must be [..., {D}], got {list(x.shape)}")
        tensors = [t.to(x.dtype) for t in tensors] if tensors[0].dtype is not x.dtype else tensors
        return run_monotone(self._inverse if inverse else self.spec, x, params.to(x.dtype), tensors)

    def forward(
        self, x: Tensor, params: Tensor, inverse: bool = False, event_dims: int = 1, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``x [..., D]``, ``params [..., D, P]`` → ``y [..., D]`` and ``ladj [...]``; features only."""
        if event_dims != 1 or mask is not None:
            raise ValueError(f"{_NAME}: event_dims must be 1 and mask None, got {event_dims} and {type(mask).__name__}")
        return self._run(x, params, inverse, self.tensors())

    def of_feature(self, d: int, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """The map of feature d alone: ``x [..., 1]``, ``params [..., 1, P]``."""
        return self._run(x, params, inverse, self._of(self.tensors(), d))

    def extra_repr(self) -> str:
        s = self.spec
        rest = f", nodes={s.nodes}, log_bound={s.log_bound:g}" if s.form == "integral" else ""
        return (
            f"{self.features}, form={s.form!r}, signal={self.signal}, hidden={tuple(self.hidden)}, "
            f"activation={s.activation!r}{rest}, bound={s.bound:g}"
        )

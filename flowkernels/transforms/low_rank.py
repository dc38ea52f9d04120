"""Planar, radial and Sylvester layers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from flowkernels import ops
from flowkernels._arguments import choice, count, generator
from flowkernels.nets.common import check_context, check_dtypes
from flowkernels.ops.low_rank.reference import ACTIVATIONS, POSITIVE

from .base import Transform, check_features

Seed = int | torch.Generator | None


class LowRank(nn.Module):
    """What planar, radial and Sylvester layers have in common: n of them as one op, and whose parameters they are.

    Without a context the parameters are the module's own, `names`, one tensor each; with one they are what a linear
    layer makes of it, for every row its own, beginning with those that the module would have.
    """

    kind: str
    names: tuple[str, ...]

    def __init__(self, features: int, layers: int, context: int, seed: Seed) -> None:
        super().__init__()
        name = f"transforms.{type(self).__name__}"
        self.features, self.layers = count(name, "features", features), count(name, "layers", layers)
        self.context = count(name, "context", context, 0)
        draws = generator(name, seed)
        like = torch.empty(())  # the default dtype and device
        made = [t.to(like) for t in self._drawn(lambda *shape: _uniform(draws, *shape))]
        self._shapes = [tuple(t.shape) for t in made]
        if not self.context:
            for of, t in zip(self.names, made, strict=True):
                setattr(self, of, nn.Parameter(t))
            self.conditioner = None
            return
        flat = torch.cat([t.flatten() for t in made])
        self.conditioner = nn.Linear(self.context, flat.numel())
        with torch.no_grad():
            drawn = _uniform(draws, flat.numel(), self.context) * (0.1 / math.sqrt(self.context))
            self.conditioner.weight.copy_(drawn)
            self.conditioner.bias.copy_(flat)

    def _drawn(self, uniform: Any) -> list[Tensor]:
        """The parameters at first; ``uniform(*shape)`` are numbers from -1 to 1."""
        raise NotImplementedError

    def _settings(self) -> dict[str, Any]:
        return {}

    def _params(self, x: Tensor, context: Tensor | None) -> list[Tensor]:
        name = f"transforms.{type(self).__name__}"
        check_context(name, context, self.context, x.shape[:-1])
        if self.conditioner is None:
            return [getattr(self, of) for of in self.names]
        check_dtypes(name, self.conditioner, self.conditioner._parameters.get("weight"), x, context)
        parts = self.conditioner(context).split([math.prod(shape) for shape in self._shapes], -1)
        return [part.unflatten(-1, shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def _run(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        check_features(f"transforms.{type(self).__name__}", x, self.features)
        return ops.low_rank(x, self._params(x, context), kind=self.kind, inverse=inverse, **self._settings())

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(x, context, False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(y, context, True)

    def _said(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._settings().items())

    def extra_repr(self) -> str:
        text = f"{self.features}, layers={self.layers}"
        text += f", context={self.context}" * (self.context > 0)
        return f"{text}, {self._said()}" if self._said() else text


def _uniform(draws: torch.Generator | None, *shape: int) -> Tensor:
    return 2 * torch.rand(*shape, generator=draws, device="cpu", dtype=torch.float64) - 1


class Planar(LowRank, Transform):
    r"""Maps all features by a chain of planar layers, which move them along one direction each.

    .. math:: y = x + \hat u\, h(w^\top x + b)

    with :math:`\hat u` from u such that :math:`w^\top \hat u > -1`, as `flowkernels.ops.low_rank` has it. ``forward``
    is this formula, ``inverse`` the root of one number a layer: where sampling is to be the formula, as in variational
    inference, use `Inverse`. ``x [..., D]``, ``ladj [...]`` in nats.

    Args:
        features: D.
        layers: n, in one call.
        activation: h: ``"tanh"`` or ``"leaky_relu"``, whose slope below 0 is 0.2.
        context: C; above 0 a linear layer makes every row's parameters from its ``context [..., C]``, as an encoder
            does those of a posterior.
        seed: of the parameters; a number, a generator on the CPU, or None for torch's global one.

    Raises:
        ValueError: an argument breaks its contract; ``x`` does not have D features, or ``context`` not C.

    Reference:
        Rezende, Mohamed: Variational Inference with Normalizing Flows, ICML 2015, arXiv:1505.05770.

    Example:
        >>> import torch
        >>> from flowkernels.transforms import Planar
        >>> layer, x = Planar(3, layers=4, seed=0), torch.randn(7, 3)
        >>> y, ladj = layer(x)
        >>> back, neg = layer.inverse(y)
        >>> torch.allclose(back, x, atol=1e-4), torch.allclose(neg, -ladj, atol=1e-4)
        (True, True)
    """

    kind, names = "planar", ("u", "w", "b")

    def __init__(
        self, features: int, layers: int = 1, *, activation: str = "tanh", context: int = 0, seed: Seed = None
    ) -> None:
        self.activation = choice("transforms.Planar", "activation", activation, ACTIVATIONS)
        super().__init__(features, layers, context, seed)

    def _drawn(self, uniform: Any) -> list[Tensor]:
        n, D = self.layers, self.features
        u, w = (uniform(n, D) / math.sqrt(D) for _ in range(2))
        return [u, w, torch.zeros(n, dtype=u.dtype)]

    def _settings(self) -> dict[str, Any]:
        return {"activation": self.activation}


class Radial(LowRank, Transform):
    r"""Maps all features by a chain of radial layers, which draw them to a center each or push them away.

    .. math:: y = x + \frac{\beta}{\alpha + r}\,(x - c), \qquad r = \lVert x - c \rVert

    with :math:`\alpha > 0` and :math:`\beta > -\alpha`, as `flowkernels.ops.low_rank` has it. ``inverse`` is a
    quadratic a layer. ``x [..., D]``, ``ladj [...]`` in nats.

    Args:
        features: D.
        layers: n, in one call.
        alpha: what makes it positive: ``"softplus"`` or ``"abs"``.
        context: C; above 0 a linear layer makes every row's parameters from its ``context [..., C]``.
        seed: of the parameters; a number, a generator on the CPU, or None for torch's global one.

    Raises:
        ValueError: an argument breaks its contract; ``x`` does not have D features, or ``context`` not C.

    Reference:
        Rezende, Mohamed: Variational Inference with Normalizing Flows, ICML 2015, arXiv:1505.05770.

    Example:
        >>> import torch
        >>> from flowkernels.transforms import Radial
        >>> layer, x = Radial(3, layers=4, seed=0), torch.randn(7, 3)
        >>> y, ladj = layer(x)
        >>> torch.allclose(layer.inverse(y)[0], x, atol=1e-4)
        True
    """

    kind, names = "radial", ("center", "alpha", "beta")

    def __init__(
        self, features: int, layers: int = 1, *, alpha: str = "softplus", context: int = 0, seed: Seed = None
    ) -> None:
        self.positive = choice("transforms.Radial", "alpha", alpha, POSITIVE)
        super().__init__(features, layers, context, seed)

    def _drawn(self, uniform: Any) -> list[Tensor]:
        n, D = self.layers, self.features
        return [uniform(*shape) / math.sqrt(D) for shape in ((n, D), (n,), (n,))]

    def _settings(self) -> dict[str, Any]:
        return {"alpha": self.positive}


class Sylvester(LowRank, Transform):
    r"""Maps all features by a chain of Sylvester layers, each a small network of M units with residual.

    .. math:: y = x + Q R\, h(S Q^\top x + b)

    with orthonormal columns of Q ``[D, M]`` and upper triangles R and S, as `flowkernels.ops.low_rank` has it: a
    planar layer is M = 1. ``forward`` is this formula, ``inverse`` M roots of one number by back substitution.
    ``x [..., D]``, ``ladj [...]`` in nats.

    Args:
        features: D.
        width: M, from 1 to D.
        layers: n, in one call.
        reflections: H of the product of Householder reflections that Q is the first M columns of (the paper's H-SNF);
            0: the orthogonal factor of a matrix, by QR (its O-SNF makes the same by iterations).
        activation: h: ``"tanh"`` or ``"leaky_relu"``, whose slope below 0 is 0.2.
        context: C; above 0 a linear layer makes every row's parameters from its ``context [..., C]``: reflections are
            then the cheaper form.
        seed: of the parameters; a number, a generator on the CPU, or None for torch's global one.

    Raises:
        ValueError: an argument breaks its contract; ``x`` does not have D features, or ``context`` not C.

    Reference:
        van den Berg, Hasenclever, Tomczak, Welling: Sylvester Normalizing Flows for Variational Inference, UAI 2018,
        arXiv:1803.05649.

    Example:
        >>> import torch
        >>> from flowkernels.transforms import Sylvester
        >>> layer, x = Sylvester(5, width=3, layers=2, seed=0), torch.randn(7, 5)
        >>> y, ladj = layer(x)
        >>> torch.allclose(layer.inverse(y)[0], x, atol=1e-4)
        True
    """

    kind, names = "sylvester", ("q", "r", "s", "b")

    def __init__(
        self,
        features: int,
        width: int,
        layers: int = 1,
        *,
        reflections: int = 0,
        activation: str = "tanh",
        context: int = 0,
        seed: Seed = None,
    ) -> None:
        self.activation = choice("transforms.Sylvester", "activation", activation, ACTIVATIONS)
        self.width = count("transforms.Sylvester", "width", width)
        self.reflections = count("transforms.Sylvester", "reflections", reflections, 0)
        if self.width > count("transforms.Sylvester", "features", features):
            raise ValueError(f"transforms.Sylvester: width must be at most features = {features}, got {width}")
        super().__init__(features, layers, context, seed)

    def _drawn(self, uniform: Any) -> list[Tensor]:
        n, D, M, H = self.layers, self.features, self.width, self.reflections
        q = uniform(n, H, D) if H else torch.linalg.qr(uniform(n, D, M))[0]
        scale = 1 / math.sqrt(M)
        return [q, scale * uniform(n, M, M).triu(), scale * uniform(n, M, M).triu(), torch.zeros(n, M, dtype=q.dtype)]

    def _settings(self) -> dict[str, Any]:
        return {"activation": self.activation, "orthogonal": "householder" if self.reflections else "qr"}

    def _said(self) -> str:
        return f"width={self.width}, reflections={self.reflections}, activation={self.activation!r}"

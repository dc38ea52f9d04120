"""The neural spline flow, in its coupling and in its autoregressive form."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import torch.nn.functional as F
from torch import nn

from flowkernels._arguments import flag
from flowkernels.distributions import Base, StandardNormal
from flowkernels.nets import Activation
from flowkernels.nets.degrees import Seed
from flowkernels.transforms import RQS, Composite, Transform, Univariate

from .autoregressive import autoregressive_layers
from .coupling import Net, coupling_layers
from .flow import Flow

if TYPE_CHECKING:
    from typing_extensions import Unpack


class _Layers(TypedDict, total=False):
    """What couplings and autoregressive layers both take."""

    net: str | Net
    activation: Activation
    dropout: float
    batch_norm: bool
    linear: str | None
    seed: Seed


class _Settings(_Layers, total=False):
    """These and the splines'."""

    min_bin_width: float
    min_bin_height: float
    min_derivative: float
    parametrization: str


# Features with linear layers by default: as many as tables have; of images the matrices would outgrow the networks.
_LINEAR = range(3, 129)


class NSF(Flow):
    r"""The neural spline flow: rational-quadratic splines in a `CouplingFlow`, or in autoregressive layers.

    :math:`\log p(x) = \log p_\mathrm{base}(z) + \sum_i \mathrm{ladj}_i` in nats; layer i transforms the features
    j with i + j odd, given the others, or, where ``autoregressive``, every feature given those before it.
    Outside [-tail_bound, tail_bound] a layer leaves a feature as it is, so scale the data to unit size first. An
    untrained model is nearly the identity, or, with other ``linear`` layers than ``"lu"``, nearly a permutation of the
    features. Shapes, dtypes and context: see `Flow`.

    The paper's model is ``NSF(D, C, transforms=10, hidden=(256, 256), linear="lu_permutation")``. The default has
    linear layers, too, which start at the identity: they train to more nats on all tables of ``bench.quality`` with
    three features or more, for a sixth more time.

    Args:
        features: D. With D = 1 the networks see the context only; without a context they are learned constants.
        context: C, the number of context features the layers see (after ``embedding``), 0 for none.
        transforms: number of spline layers; from two couplings on every feature is transformed.
        bins: K, bins of each spline.
        hidden: widths of the hidden layers, a number for one; for ``net="residual"`` one equal width per block.
        tail_bound: half the width of the box.
        net: ``"residual"`` (the paper's), ``"mlp"``, or a function ``(in_features, out_features) -> module`` of your
            own (started near the identity if it has ``start_at(values)``; coupling layers only).
        activation, dropout: of the networks, and ``batch_norm`` of the residual ones (coupling layers only).
        univariate: the map of one feature, in place of the spline that ``bins``, ``tail_bound`` and the last four
            settings say, e.g. ``RQS(order="linear")``.
        autoregressive: autoregressive layers instead of coupling layers; see `flowkernels.flows.MAF`, also for
            ``order`` (``"reversed"`` or ``"random"``), which couplings ignore.
        linear: a layer before each spline layer and one after the last: ``"lu"``, ``"lu_permutation"`` as in the
            paper, ``"permutation"``, ``"reverse"`` or None; see `flowkernels.flows.CouplingFlow`. By default ``"lu"``
            of 3 to 128 features, else None.
        seed: of what ``order`` and ``linear`` draw, a number or a generator on the CPU.
        base: density of the latent; standard normal by default.
        embedding: a module applied to the context first.
        min_bin_width, min_bin_height, min_derivative, parametrization: see `flowkernels.ops.rqs`.

    Raises:
        ValueError: ``features`` or ``transforms`` is less than 1; ``net``, ``order`` or ``linear`` is unknown or not
            possible; ``hidden`` does not fit ``net``; or there are a ``univariate`` and settings of a spline.
        TypeError: a part is of another kind.

    Reference:
        Durkan, Bekasov, Murray, Papamakarios: Neural Spline Flows, NeurIPS 2019, arXiv:1906.04032.

    Example:
        >>> import torch
        >>> from flowkernels.flows import NSF
        >>> flow = NSF(features=3, context=2, transforms=4, hidden=(64, 64))
        >>> x, context = torch.randn(10, 3), torch.randn(10, 2)
        >>> loss = -flow.log_prob(x, context).mean()
        >>> loss.backward()
        >>> flow.sample(100, context).shape
        torch.Size([100, 10, 3])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 5,
        bins: int = 8,
        hidden: int | Sequence[int] = (128, 128),
        tail_bound: float = 3.0,
        *,
        univariate: Univariate | None = None,
        autoregressive: bool = False,
        order: str = "reversed",
        base: Base | None = None,
        embedding: nn.Module | None = None,
        **settings: Unpack[_Settings],
    ) -> None:
        for name in settings.keys() - _Settings.__annotations__.keys():
            raise TypeError(f"flows.NSF: keywords must be of its own settings, got {name}={settings[name]!r:.60}")
        linear = "lu" if features in _LINEAR else None
        given: dict[str, Any] = {"net": "residual", "activation": F.relu, "linear": linear, **settings}
        layers = {name: given.pop(name) for name in _Layers.__annotations__ if name in given}
        spline = RQS(bins=bins, tail_bound=tail_bound, **given)
        if univariate is not None and spline != RQS():
            raise ValueError(f"flows.NSF: univariate must come without settings of a spline, got both, {spline!r:.60}")
        build: Callable[..., list[Transform]] = coupling_layers
        if flag("flows.NSF", "autoregressive", autoregressive):
            build = functools.partial(autoregressive_layers, order=order)
        univariate = spline if univariate is None else univariate
        steps = build("NSF", features, context, transforms, hidden, univariate, **layers)
        super().__init__(Composite(steps), StandardNormal(features) if base is None else base, embedding)

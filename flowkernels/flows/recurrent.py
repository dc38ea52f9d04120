"""The recurrent autoregressive flow."""

from __future__ import annotations

import torch
from torch import nn

from flowkernels._arguments import count
from flowkernels.distributions import Base, StandardNormal
from flowkernels.nets import RecurrentNet
from flowkernels.nets.degrees import Seed
from flowkernels.ops.univariate import n_params_of
from flowkernels.transforms import Affine, Autoregressive, Composite, Univariate

from .autoregressive import orders
from .coupling import check_layers
from .flow import Flow
from .linear import interleaved


class RecurrentFlow(Flow):
    r"""The autoregressive flow with recurrent conditioners: densities and samples both take D steps of a GRU.

    .. math:: z_i = f(x_i; W s_i + b), \quad s_i = \mathrm{GRU}([x_{i-1}, c], s_{i-1})

    in every layer, and :math:`\log p(x) = \log p_\mathrm{base}(z) + \sum_i \mathrm{ladj}_i` in nats. The order of the
    features changes from layer to layer. The steps share their weights, whose number does not depend on D: for features
    that follow each other in time, and for many of them. A sample costs about what a density does, but neither is one
    pass: see `MAF`. An untrained model is nearly the identity, or, with other ``linear`` layers than ``"lu"``, nearly a
    permutation of the features. Shapes, dtypes and context: see `Flow`.

    Args:
        features: D. With D = 1 the parameters depend on the context only.
        context: C, the number of context features the layers see (after ``embedding``), 0 for none.
        transforms: number of layers.
        hidden: H, the size of the state.
        univariate: the map of one feature: `flowkernels.transforms.Affine` by default, or ``RQS``.
        order: ``"reversed"``: natural in the first layer, then turned round from layer to layer; ``"random"``.
        linear: a layer before each autoregressive one and one after the last: ``"lu"``, ``"lu_permutation"``,
            ``"permutation"``, ``"reverse"`` or None; see `flowkernels.flows.CouplingFlow`.
        seed: of the random orders and of what ``linear`` draws, a number or a generator on the CPU.
        base: density of the latent; standard normal by default.
        embedding: a module applied to the context first.

    Raises:
        ValueError: ``features``, ``transforms`` or ``hidden`` is less than 1, or ``order`` or ``linear`` is unknown.
        TypeError: a part is of another kind.

    Reference:
        Papamakarios, Nalisnick, Rezende, Mohamed, Lakshminarayanan: Normalizing Flows for Probabilistic Modeling and
        Inference, JMLR 2021, arXiv:1912.02762, section 3.1; Oliva et al.: Transformation Autoregressive Networks, ICML
        2018, arXiv:1801.09819; Kingma et al.: Improving Variational Inference with Inverse Autoregressive Flow, NeurIPS
        2016, arXiv:1606.04934.

    Example:
        >>> import torch
        >>> from flowkernels.flows import RecurrentFlow
        >>> flow = RecurrentFlow(features=5, context=2, transforms=2, hidden=16)
        >>> x, context = torch.randn(10, 5), torch.randn(10, 2)
        >>> loss = -flow.log_prob(x, context).mean()
        >>> loss.backward()
        >>> flow.sample(100, context).shape
        torch.Size([100, 10, 5])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 4,
        hidden: int = 64,
        *,
        univariate: Univariate | None = None,
        order: str = "reversed",
        linear: str | None = None,
        seed: Seed = None,
        base: Base | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        name, of_layer = "RecurrentFlow", Affine() if univariate is None else univariate
        draws = check_layers(name, features, context, transforms, of_layer, False, seed)
        count(f"flows.{name}", "hidden", hidden)
        layers = []
        for kind in orders(name, order, linear, transforms):
            net = RecurrentNet(features, n_params_of(of_layer), hidden, context=context, order=kind, seed=draws)
            net.start_at(torch.tensor(of_layer.identity))
            layers.append(Autoregressive(net, of_layer))
        transform = Composite(interleaved(name, linear, layers, features, draws))
        super().__init__(transform, StandardNormal(features) if base is None else base, embedding)

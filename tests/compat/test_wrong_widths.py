"""Where a library refuses an input or a context of another width, so does its accelerated module: it never returns
numbers that are nobody's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import normflows as nf
import pytest
import torch
import zuko
from nflows.nn.nets import ResidualNet
from nflows.transforms import made
from torch import Tensor, nn

from tests.compat import glasflow_models, nflows_models
from tests.compat.parity import accelerated_copy, fuse_small_ones

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
D, C, ROWS = 6, 3, 5


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch):
    fuse_small_ones(monkeypatch)


class Case(NamedTuple):
    make: Callable[[], Any]
    run: Callable[..., Any]  # (module, x, context) → a tensor, or y and ladj
    context: bool = True
    fits: bool = True  # as it is built


def call(module, x, context):
    return module(x) if context is None else module(x, context)


def inverse(module, x, context):
    return module.inverse(x) if context is None else module.inverse(x, context)


def plain(module, x, context):
    return module(x)


def density(flow, x, context):
    return flow(context).log_prob(x)


def residual(context=None, width=D):
    return ResidualNet(width, 8, hidden_features=16, context_features=context, num_blocks=1)


def net_of_other_width(by):
    """A coupling layer into which a network for other features was put."""
    layer = nflows_models.coupling()
    layer.transform_net = ResidualNet(D // 2 + by, 3 * 14, hidden_features=16, num_blocks=1)
    return layer


def nflows_coupling():
    return nflows_models.coupling(net=nflows_models.dense(C))


def nflows_maf():
    return nflows_models.MaskedAffineAutoregressiveTransform(D, 16, context_features=C, num_blocks=1)


def glasflow(name):
    return glasflow_models.flow(name, n_inputs=D)


def glasflow_density(flow, x, context):
    return flow.log_prob(x, conditional=context)


def normflows_spline(kind):
    torch.manual_seed(0)
    return kind(D, num_blocks=1, num_hidden_channels=16, num_bins=5, num_context_channels=C)


def zuko_flow(kind):
    torch.manual_seed(0)
    return kind(D, C, transforms=2, hidden_features=(16, 16))


SPLINES = nf.flows.CoupledRationalQuadraticSpline, nf.flows.AutoregressiveRationalQuadraticSpline
CASES = {
    "nflows, network": Case(residual, call, context=False),
    "nflows, network and context": Case(lambda: residual(C), call),
    "nflows, masked network": Case(
        lambda: made.MADE(D, 16, C, num_blocks=1, output_multiplier=2, use_residual_blocks=True), call
    ),
    "nflows, coupling": Case(nflows_coupling, call),
    "nflows, coupling, inverse": Case(nflows_coupling, inverse),
    "nflows, coupling, a narrow network": Case(lambda: net_of_other_width(-1), call, False, False),
    "nflows, coupling, a wide network": Case(lambda: net_of_other_width(1), call, False, False),
    "nflows, autoregressive": Case(nflows_maf, call),
    "nflows, autoregressive, inverse": Case(nflows_maf, inverse),
    "glasflow, coupling": Case(lambda: glasflow("nsf, context"), glasflow_density),
    "glasflow, autoregressive": Case(lambda: glasflow("maf, context"), glasflow_density),
    "normflows, coupling": Case(lambda: normflows_spline(SPLINES[0]), call),
    "normflows, coupling, inverse": Case(lambda: normflows_spline(SPLINES[0]), inverse),
    "normflows, autoregressive": Case(lambda: normflows_spline(SPLINES[1]), call),
    "normflows, autoregressive, inverse": Case(lambda: normflows_spline(SPLINES[1]), inverse),
    "normflows, affine coupling": Case(
        lambda: nf.flows.AffineCouplingBlock(nf.nets.MLP([D // 2, 16, D])), plain, context=False
    ),
    "normflows, masked affine": Case(
        lambda: nf.flows.MaskedAffineFlow(
            torch.tensor([0.0, 1] * 3), nf.nets.MLP([D, 16, D]), nf.nets.MLP([D, 16, D])
        ),
        plain, context=False,
    ),
    "zuko, splines": Case(lambda: zuko_flow(functools.partial(zuko.flows.NSF, bins=5)), density),
    "zuko, autoregressive": Case(lambda: zuko_flow(zuko.flows.MAF), density),
    "zuko, coupling": Case(lambda: zuko_flow(zuko.flows.NICE), density),
}  # fmt: skip


def _pyro() -> None:
    try:
        from pyro.distributions import transforms as pyro
        from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN, DenseNN
    except ImportError:
        return
    half = D // 2

    def conditioned(transform, x, context):
        return transform.condition(context)(x)

    def of_plain(module, x, context):
        y = module(x)
        return y, module.log_abs_det_jacobian(x, y)

    CASES["pyro, affine coupling"] = Case(
        lambda: pyro.AffineCoupling(half, DenseNN(half, [16], [half, half])), of_plain, context=False
    )
    CASES["pyro, spline coupling"] = Case(
        lambda: pyro.SplineCoupling(D, half, DenseNN(half, [16], [half * n for n in (5, 5, 4)]), 5, order="quadratic"),
        of_plain, context=False,
    )  # fmt: skip
    CASES["pyro, conditional affine coupling"] = Case(
        lambda: pyro.conditional_affine_coupling(D, C, [16], half), conditioned
    )
    CASES["pyro, autoregressive"] = Case(
        lambda: pyro.AffineAutoregressive(AutoRegressiveNN(D, [16])), of_plain, context=False
    )
    CASES["pyro, conditional autoregressive"] = Case(
        lambda: pyro.ConditionalAffineAutoregressive(ConditionalAutoRegressiveNN(D, C, [16])), conditioned
    )


def _freia() -> None:
    try:
        from FrEIA import modules as freia
    except ImportError:
        return

    def dense(a, b):
        return nn.Sequential(nn.Linear(a, 16), nn.ReLU(), nn.Linear(16, b))

    def run(block, x, context):
        (y,), ladj = block([x], [] if context is None else [context])
        return y, ladj

    for block in (freia.GLOWCouplingBlock, freia.RNVPCouplingBlock, freia.NICECouplingBlock):
        make = functools.partial(block, [(D,)], [(C,)], subnet_constructor=dense)
        CASES[f"FrEIA, {block.__name__}"] = Case(make, run)
    CASES["FrEIA, all in one"] = Case(
        lambda: freia.AllInOneBlock([(64,)], [(C,)], subnet_constructor=dense),
        lambda block, x, context: run(block, torch.nn.functional.pad(x, (0, 64 - D)), context),
    )


_pyro()
_freia()
# name → (width of x, width of the context, rows of the context)
ODD = {
    "narrow": (D - 1, C, ROWS), "wide": (D + 1, C, ROWS), "narrow context": (D, C - 1, ROWS),
    "wide context": (D, C + 1, ROWS), "one context": (D, C, 1), "too many contexts": (D, C, ROWS + 1),
    "as built": (D, C, ROWS),
}  # fmt: skip


PAIRS = [(name, odd) for name, case in CASES.items() for odd in ODD if case.context or "context" not in odd]


def outcome(case: Case, module: Any, sizes: tuple[int, int, int], grad: bool) -> list[Tensor] | Exception:
    """What comes out, and the gradient of x; or what was raised."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, sizes[0], generator=g, requires_grad=grad)
    context = torch.randn(sizes[2], sizes[1], generator=g) if case.context else None
    try:
        with torch.set_grad_enabled(grad):
            found = case.run(module, x, context)
            found = [t for t in (found if isinstance(found, tuple) else (found,)) if isinstance(t, Tensor)]
            if grad:
                found += torch.autograd.grad(torch.cat([t.flatten() for t in found]).sum(), x)
    except Exception as error:
        return error
    return [t.detach() for t in found]


@pytest.mark.thinned(2)
@pytest.mark.parametrize("grad", [False, True], ids=["", "grad"])
@pytest.mark.parametrize(("name", "odd"), PAIRS)
def test_refused_where_the_library_refuses(name, odd, grad) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    module = case.make()
    fast = accelerated_copy(module)
    theirs, ours = (outcome(case, m, ODD[odd], grad) for m in (module, fast))
    assert isinstance(theirs, list) or odd != "as built" or not case.fits, theirs
    if isinstance(theirs, Exception):
        assert isinstance(ours, Exception), (theirs, ours)
        return
    assert isinstance(ours, list), ours  # a width that the library takes, by broadcasting
    for mine, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)

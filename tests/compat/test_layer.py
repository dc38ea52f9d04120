"""A layer of another library as a value: what it says is what accelerated layers run and `convert` makes."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
import zuko
from nflows import transforms as nf
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.nn.nets import ResidualNet

import flowkernels
from flowkernels import flows
from flowkernels.compat.engine.patch import FastMethods, or_theirs, swap
from flowkernels.compat.layer import Layer, by_feature, has_settings, in_our_order, native_rows, or_reason
from flowkernels.compat.nflows import describe as of_nflows
from flowkernels.compat.zuko import describe as of_zuko
from flowkernels.ops import RQS, Affine
from flowkernels.ops.net.net import dense_net
from flowkernels.ops.split import split_of

D = 4

# ---- the order of parameters ----


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("groups", [(1,), (1, 1), (1, 1, 1), (3,), (2, 1), (3, 3, 2)])
@pytest.mark.parametrize("shape", [(), (5,)], ids=["bias", "weight"])
def test_rows_feature_by_feature(groups, turned, shape):
    features = 3
    rows = torch.randn(features * sum(groups), *shape)
    parts = rows.split([features * n for n in groups])
    parts = parts[::-1] if turned else parts
    sizes = groups[::-1] if turned else groups
    expected = [
        part[f * n + i] for f in range(features) for part, n in zip(parts, sizes, strict=True) for i in range(n)
    ]
    assert torch.equal(by_feature(rows, features, groups, turned), torch.stack(expected))


MAPS = {
    "spline": RQS(3),
    "scale, shift": Affine("exp"),
    "shift, scale": Affine("soft_clip", shift_first=True),
    "shift": Affine("additive"),
}


@pytest.mark.parametrize("grouped", [False, True], ids=["by feature", "by parameter"])
@pytest.mark.parametrize("name", MAPS)
def test_a_native_map_of_native_rows_is_the_librarys(name, grouped):
    theirs, x = MAPS[name], torch.randn(7, D)
    P = theirs.n_params
    ours, _ = in_our_order(theirs)
    assert has_settings(ours, inverse=False) and in_our_order(ours)[0] is ours
    raw = torch.randn(7, D * P)  # as the library's network returns it
    params = raw.view(7, P, D).mT if grouped else raw.view(7, D, P)
    native = raw[:, native_rows(theirs, D, (1,) * P if grouped else ())].view(7, D, P)
    torch.testing.assert_close(ours(x, native), theirs(x, params.contiguous()), rtol=0, atol=0)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("univariate", [Affine("tanh"), Affine("tanh", shift_first=True)])
def test_a_coupling_runs_with_the_librarys_rows(univariate, inverse):
    """As its own map does, of parameters that the network returns group by group."""
    split = split_of(D, (0, 2), (1, 3))
    layers = [(torch.randn(8, 2), torch.randn(8)), (torch.randn(4, 8), torch.randn(4))]
    x = torch.randn(6, D)
    layer = Layer(univariate, split=split, groups=(1, 1))
    found = layer.run(x, dense_net(layers, False, "relu", 2, (6,), None), inverse)
    if found is None:
        pytest.skip("no kernel of a whole layer on this backend")
    (first, b0), (last, b1) = layers
    params = (torch.relu(x[:, [0, 2]] @ first.T + b0) @ last.T + b1).view(6, 2, 2).mT.contiguous()
    y, ladj = univariate(x[:, [1, 3]].contiguous(), params, inverse)
    torch.testing.assert_close(found[0][:, [1, 3]], y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], ladj, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[0][:, [0, 2]], x[:, [0, 2]])


def test_without_a_map_nothing_runs():
    net = dense_net([(torch.randn(4, 2), torch.randn(4))], False, "relu", 2, (6,), None)
    assert Layer(None, split=split_of(D, (0, 2), (1, 3))).run(torch.randn(6, D), net, False) is None


def test_a_reason_is_what_the_error_says():
    assert or_reason(RQS, 8) == RQS(8)
    assert or_reason(RQS, 0) == "ops.rqs: bins must be an integer from 1 to 128, got 0"


# ---- what is converted is what was described ----

SPLINE = {"num_bins": 5, "tails": "linear", "tail_bound": 2.5}
NET = functools.partial(ResidualNet, hidden_features=9)
MASK = [0, 1, 1, 0]
NFLOWS = {
    "spline": (nf.PiecewiseRationalQuadraticCouplingTransform(MASK, NET, **SPLINE), of_nflows.spline_coupling),
    "affine": (nf.AffineCouplingTransform(MASK, NET), of_nflows.affine_coupling),
    "additive": (nf.AdditiveCouplingTransform(MASK, NET), of_nflows.additive_coupling),
    "MAF": (nf.MaskedAffineAutoregressiveTransform(D, 9), of_nflows.affine_autoregressive),
    "autoregressive": (
        nf.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(D, 9, **SPLINE), of_nflows.spline_autoregressive
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NFLOWS)
def test_nflows_layers_are_converted_as_described(name):
    module, describe = NFLOWS[name]
    layer, ours = describe(module), flowkernels.convert(Flow(module, StandardNormal([D]))).transform
    assert ours.univariate == in_our_order(layer.map)[0]
    assert layer.net is (module.autoregressive_net if layer.split is None else module.transform_net)
    if layer.split is not None:
        assert layer.split.outputs == (1, 2) == tuple(ours.split.mask.nonzero().flatten().tolist())


@pytest.mark.parametrize("make", [zuko.flows.NSF, zuko.flows.NCSF, zuko.flows.MAF, zuko.flows.NICE])
def test_zuko_layers_are_converted_as_described(make):
    flow = make(D, transforms=1)
    layer = of_zuko.describe(flow.transform.transforms[0])
    assert isinstance(layer, Layer)
    assert flowkernels.convert(flow).transform[0].univariate == in_our_order(layer.map)[0]


def test_a_scale_without_a_kernel_is_no_map():
    module = nf.AffineCouplingTransform(MASK, NET)
    module.scale_activation = torch.nn.functional.softplus  # as nflows' forks and later versions have it
    assert of_nflows.affine_coupling(module).map is None
    with pytest.raises(ValueError, match="got a scale_activation"):
        flowkernels.convert(Flow(module, StandardNormal([D])))


# Settings that the other side has not; each was left out in silence once.
UNSAID = {
    "slope at the edge": (flowkernels.to_nflows, RQS(edge_slope=0.9)),
    "zero outside": (flowkernels.to_nflows, RQS(zero_outside=True)),
    "shift first": (flowkernels.to_nflows, Affine("softplus", shift_first=True)),
    "zero outside, zuko": (flowkernels.to_zuko, RQS(parametrization="soft_clip", zero_outside=True)),
}


@pytest.mark.parametrize("case", UNSAID)
def test_settings_that_the_library_has_not_are_refused(case):
    to, univariate = UNSAID[case]
    with pytest.raises(ValueError, match="got Autoregressive with"):
        to(flows.MAF(D, univariate=univariate))


# ---- methods that leave a call to the library ----


class Theirs(torch.nn.Module):
    def forward(self, x, by=1):
        return x * by


class Ours(FastMethods):
    @or_theirs
    def forward(self, x, by=1):
        return None if by == 1 else ("ours", x, by)


def test_a_call_that_is_not_taken_is_the_librarys():
    module, x = Theirs(), torch.ones(2)
    swap(module, Ours)
    assert torch.equal(module(x), x) and torch.equal(module(x=x, by=1), x)
    assert module(x, by=2) == ("ours", x, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert type(module).forward.__name__ == "forward"

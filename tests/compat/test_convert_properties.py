"""Conversions of architectures that nobody chose: the same density, there and back, or a refusal with a reason."""

from __future__ import annotations

import functools

import nflows.flows
import pytest
import torch
import zuko
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nflows import transforms as nf
from nflows.distributions import StandardNormal
from nflows.nn.nets import ResidualNet
from torch import nn

import flowkernels
from flowkernels import flows
from flowkernels.transforms import RQS, Affine
from tests.compat.nflows_models import shaken

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
EXAMPLES = settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
ACTIVATIONS = {nn.functional.relu: nn.ReLU, torch.tanh: nn.Tanh, nn.functional.elu: nn.ELU}
EVERY_ACTIVATION = st.sampled_from([*ACTIVATIONS])
FEATURES, CONTEXT = st.integers(1, 6), st.sampled_from([0, 1, 3])


def draw_numbers(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def assert_same(ours, log_prob, inverse, features, context):
    x, c = draw_numbers(7, features), draw_numbers(7, context) if context else None
    with torch.no_grad():
        torch.testing.assert_close(ours.log_prob(x, c), log_prob(x, c), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(ours.transform.inverse(x, c)[0], inverse(x, c), rtol=1e-7, atol=1e-7)


# ---- nflows ----


def spline_settings(draw):
    """Without tails nflows raises for data outside of its box."""
    return {
        "num_bins": draw(st.integers(1, 6)), "tails": "linear", "tail_bound": draw(st.sampled_from([0.5, 3.0])),
        "min_bin_width": draw(st.sampled_from([1e-3, 0.05])), "min_derivative": draw(st.sampled_from([1e-3, 0.1])),
    }  # fmt: skip


@st.composite
def nflows_layers(draw, features, context):
    kind = draw(st.sampled_from(["coupling", "autoregressive", "LU", "actnorm", "permutation", "inverse", "several"]))
    if kind == "inverse":
        return nf.InverseTransform(draw(nflows_layers(features, context)))
    if kind == "several":
        return nf.CompositeTransform([draw(nflows_layers(features, context)) for _ in range(draw(st.integers(0, 2)))])
    if kind == "LU":
        return nf.LULinear(features, identity_init=draw(st.booleans()))
    if kind == "permutation":
        return draw(st.sampled_from([nf.RandomPermutation, nf.ReversePermutation]))(features)
    if kind == "actnorm":
        layer = nf.ActNorm(features)
        layer.initialized.fill_(True)
        return layer
    net = {
        "hidden_features": draw(st.integers(features, 12)), "context_features": context or None,
        "num_blocks": draw(st.integers(0, 2)), "activation": draw(EVERY_ACTIVATION),
    }  # fmt: skip
    spline = draw(st.booleans())
    if kind == "autoregressive":
        net["use_residual_blocks"] = draw(st.booleans())
        net["num_blocks"] += (
            net["use_residual_blocks"] and not net["num_blocks"]
        )  # of none native flows have no network
        net["random_mask"] = not net["use_residual_blocks"] and draw(st.booleans())
        if spline:
            return nf.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(features, **net, **spline_settings(draw))
        return nf.MaskedAffineAutoregressiveTransform(features, **net)
    if features == 1:
        return nf.IdentityTransform()
    mask = draw(st.lists(st.integers(0, 1), min_size=features, max_size=features).filter(lambda m: 0 < sum(m) < len(m)))
    make = functools.partial(ResidualNet, **net)
    if spline:
        return nf.PiecewiseRationalQuadraticCouplingTransform(mask, make, **spline_settings(draw))
    return draw(st.sampled_from([nf.AffineCouplingTransform, nf.AdditiveCouplingTransform]))(mask, make)


@st.composite
def nflows_flows(draw):
    features, context = draw(FEATURES), draw(CONTEXT)
    torch.manual_seed(draw(st.integers(0, 9)))
    layers = [draw(nflows_layers(features, context)) for _ in range(draw(st.integers(1, 3)))]
    flow = nflows.flows.Flow(nf.CompositeTransform(layers), StandardNormal([features]))
    return shaken(flow, 0.1).double().eval(), features, context


@EXAMPLES
@given(nflows_flows())
def test_nflows(case):
    theirs, features, context = case
    ours = flowkernels.convert(theirs)
    assert_same(ours, theirs.log_prob, lambda z, c: theirs._transform.inverse(z, c)[0], features, context)
    back = flowkernels.to_nflows(ours)
    assert_same(ours, back.log_prob, lambda z, c: back._transform.inverse(z, c)[0], features, context)
    again = flowkernels.convert(back)
    assert_same(again, theirs.log_prob, lambda z, c: theirs._transform.inverse(z, c)[0], features, context)


# ---- zuko ----


@st.composite
def zuko_flows(draw):
    features, context = draw(FEATURES), draw(CONTEXT)
    torch.manual_seed(draw(st.integers(0, 9)))
    kind = draw(st.sampled_from(["NSF", "MAF", "NICE"] if features > 1 else ["NSF", "MAF"]))
    least = 1 if features > 1 and kind != "NICE" else 0  # of none native masked networks are made
    settings = {
        "transforms": draw(st.integers(1, 3)), "activation": ACTIVATIONS[draw(EVERY_ACTIVATION)],
        "hidden_features": draw(st.lists(st.integers(1, 9), min_size=least, max_size=3)),
    }  # fmt: skip
    if kind == "NICE":
        settings["randmask"] = draw(st.booleans())
    else:
        settings["randperm"] = draw(st.booleans())
        settings["passes"] = draw(st.sampled_from([None, 2])) if features > 1 else None
    if kind == "NSF":
        settings["bins"] = draw(st.integers(1, 6))
    flow = getattr(zuko.flows, kind)(features, context, **settings)
    return shaken(flow, 0.1).double(), features, context


@EXAMPLES
@given(zuko_flows())
def test_zuko(case):
    theirs, features, context = case
    ours = flowkernels.convert(theirs)
    assert_same(ours, lambda x, c: theirs(c).log_prob(x), lambda z, c: theirs(c).transform.inv(z), features, context)
    back = flowkernels.to_zuko(ours)
    assert_same(ours, lambda x, c: back(c).log_prob(x), lambda z, c: back(c).transform.inv(z), features, context)
    again = flowkernels.convert(back)
    assert_same(again, lambda x, c: theirs(c).log_prob(x), lambda z, c: theirs(c).transform.inv(z), features, context)


# ---- native ----


@st.composite
def native_flows(draw):
    features, parametrization = draw(st.integers(2, 6)), draw(st.sampled_from(["softmax", "soft_clip"]))
    # zuko, which has the second, has another way with a context than these flows.
    context = draw(CONTEXT) if parametrization == "softmax" else 0
    torch.manual_seed(draw(st.integers(0, 9)))
    settings = {"context": context, "transforms": draw(st.integers(1, 3)),
                "hidden": (draw(st.integers(features, 12)),) * draw(st.integers(1, 2))}  # fmt: skip
    kind = draw(st.sampled_from(["MAF", "MAF", "NSF", "RealNVP", "IAF"]))
    if kind == "NSF":
        settings |= {"parametrization": parametrization, "bins": draw(st.integers(1, 6))}
    elif kind != "RealNVP":
        spline = RQS(bins=draw(st.integers(1, 6)), parametrization=parametrization)
        affine = Affine("soft_clip" if parametrization == "soft_clip" else "softplus")
        settings |= {"univariate": draw(st.sampled_from([affine, spline])), "seed": draw(st.integers(0, 9)),
                     "order": draw(st.sampled_from(["reversed", "random"]))}  # fmt: skip
    flow = getattr(flows, kind)(features, **settings)
    return shaken(flow, 0.1).double().eval(), features, context


@EXAMPLES
@given(native_flows())
def test_native(case):
    """Each of the two other libraries has it or says why not, and what it has is the same."""
    ours, features, context = case
    for name, convert in (("to_nflows", flowkernels.to_nflows), ("to_zuko", flowkernels.to_zuko)):
        try:
            theirs = convert(ours)
        except ValueError as error:
            assert str(error).startswith(f"{name}: every layer must be one that")
            continue
        again = flowkernels.convert(theirs)
        assert_same(ours, again.log_prob, lambda z, c, again=again: again.transform.inverse(z, c)[0], features, context)

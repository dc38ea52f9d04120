"""Accelerated masked autoregressive layers of normflows: which op runs them, and what they still leave to normflows.

That they compute what they computed is in `test_parity.py`.
"""

from __future__ import annotations

import copy

import normflows as nf
import pytest
import torch

from flowkernels.compat import layer as compat_layer
from flowkernels.compat.engine import thresholds
from flowkernels.compat.nflows import circular as nflows_circular
from flowkernels.compat.nflows import made as nflows_made
from flowkernels.ops.flow_layer import op as layer_op
from tests.compat import normflows_models as models
from tests.compat.nflows_models import normal
from tests.compat.parity import accelerated_copy, fuse_small_ones, watch

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = {name: case for name, case in models.cases().items() if "autoregressive" in name or "maf" in name}


@pytest.fixture
def ran(monkeypatch):
    """The names of the ops that accelerated layers reached, in order."""
    fuse_small_ones(monkeypatch)
    names = []
    watch(monkeypatch, names, nflows_made, "run_made", "made")
    for module in (compat_layer, nflows_circular):
        watch(monkeypatch, names, module, "run_inverse", "autoregressive_inverse")
    watch(monkeypatch, names, layer_op, "run", "flow_layer")
    return names


def autoregressive(layer):
    """The layer itself, whose forward goes from data to latents, without normflows' wrapper."""
    return getattr(layer, "mprqat", layer)


@pytest.mark.parametrize("case", CASES)
def test_the_ops_are_reached(case, ran):
    layer, x, context = CASES[case]
    layer = autoregressive(accelerated_copy(layer)).double()
    layer(x, context)
    assert ran == ["flow_layer"]
    layer.inverse(x, context)
    assert ran == ["flow_layer", "autoregressive_inverse"]


def periodic(**settings):
    """A layer whose circular features come to the network in another way."""
    torch.manual_seed(0)
    layer = models.F.CircularAutoregressiveRationalQuadraticSpline(6, 1, 16, ind_circ=[1, 4], num_bins=5).mprqat
    layer.autoregressive_net.preprocessing = nf.utils.nn.PeriodicFeaturesElementwise(6, [4, 1], **settings)
    return models.shaken(layer, 0.2).double()


@pytest.mark.parametrize(
    ("settings", "sweeps"),
    [
        ({"scale": 0.7, "bias": True}, True),
        ({"scale": torch.tensor([0.7, 0.3])}, True),
        ({"activation": torch.nn.Tanh()}, False),
    ],
    ids=["bias", "scales", "activation"],
)
def test_what_comes_before_the_network(settings, sweeps, ran):
    layer = periodic(**settings)
    fast, x = accelerated_copy(layer), normal(6)
    for direction in ("forward", "inverse"):
        for a, b in zip(getattr(fast, direction)(x), getattr(layer, direction)(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert ran == ["flow_layer", "autoregressive_inverse"] if sweeps else ["flow_layer", *["made"] * 6]


def test_hooks_before_the_network_are_called(ran):
    fast, x, seen = accelerated_copy(periodic()), normal(6), []
    fast.autoregressive_net.preprocessing.register_forward_hook(lambda m, a, out: seen.append(m))
    fast(x)
    assert ran == ["flow_layer"] and len(seen) == 1
    fast.inverse(x)
    assert ran == ["flow_layer", *["made"] * 6] and len(seen) == 7


def test_a_list_of_tails_returns_0_outside_and_keeps_nan(ran):
    fast, x = accelerated_copy(periodic()), normal(6)
    x[3, 2], x[4, 0], x[5, 0] = 3.5, -4.0, float("nan")
    for run in (fast, fast.inverse):
        y, ladj = run(x)
        assert y[3, 2] == y[4, 0] == 0 and ladj[3:5].isfinite().all()
        assert y[5, 0].isnan() and ladj[5].isnan() and y[6:].isfinite().all()


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_made_with_a_context(blocks, ran):
    torch.manual_seed(0)
    net = nf.nets.MADE(5, 16, context_features=3, num_blocks=blocks, output_multiplier=3, permute_mask=True).double()
    fast, x, context = accelerated_copy(net), normal(5), normal(3)
    for rows, given in ((x, context), (x, None), (x.view(4, 16, 5), context.view(4, 16, 3))):
        torch.testing.assert_close(fast(rows, given), net(rows, given))
    assert ran == ["made"] * 3


def test_the_layers_of_a_context_are_called(ran):
    """With their hooks; and a context that normflows does not take is refused by normflows."""
    net = nf.nets.MADE(5, 16, context_features=3, output_multiplier=2).double()
    fast, seen = accelerated_copy(net), []
    for module in (fast.context_layer, *(block.context_layer for block in fast.blocks)):
        module.register_forward_hook(lambda m, a, out: seen.append(m) or 2 * out)
    with torch.no_grad():
        doubled = copy.deepcopy(net)
        for module in (doubled.context_layer, *(block.context_layer for block in doubled.blocks)):
            module.weight *= 2
            module.bias *= 2
    torch.testing.assert_close(fast(normal(5), normal(3)), doubled(normal(5), normal(3)))
    assert ran == ["made"] and len(seen) == 3
    for x, context in ((normal(5), normal(3)[:1]), (normal(5)[0], normal(3)), (normal(5), normal(4))):
        with pytest.raises(RuntimeError) as theirs:
            net(x, context)
        with pytest.raises(RuntimeError) as ours:
            fast(x, context)
        assert str(ours.value) == str(theirs.value)


def test_small_batches_of_plain_blocks_stay_with_normflows_forward(ran, monkeypatch):
    monkeypatch.setattr(thresholds, "MERGED_ROWS", 128)
    layer, x, _ = CASES["maf, feed-forward"]
    fast = accelerated_copy(layer).double()
    fast(x)
    fast.autoregressive_net(x)
    assert ran == []
    fast.inverse(x)
    fast(torch.cat((x, x)))
    assert ran == ["autoregressive_inverse", "flow_layer"]

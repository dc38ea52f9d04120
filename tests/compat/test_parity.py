"""Every class that is accelerated, of nflows, glasflow and normflows, computes what it computed.

Both directions, values and gradients by inputs, weights and context, in float32 and in float64. nflows' splines and
autoregressive layers have files of their own.
"""

from __future__ import annotations

import pytest

from tests.compat import glasflow_models, nflows_models, normflows_models
from tests.compat.nflows_models import assert_numbers, results
from tests.compat.parity import accelerated_copy, fuse_small_ones

pytestmark = pytest.mark.usefixtures("one_thread")
CASES = {
    **{f"nflows, {name}": case for name, case in nflows_models.other_cases().items()},
    **{f"glasflow, {name}": case for name, case in glasflow_models.cases().items()},
    **{f"normflows, {name}": case for name, case in normflows_models.cases().items()},
}


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch):
    """Layers that leave small inputs to the library run them fused here."""
    fuse_small_ones(monkeypatch)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("case", CASES)
def test_numbers(case, direction):
    layer, inputs, context = CASES[case]

    def theirs(layer, x, dtype):
        return results(layer, x, context, direction, dtype)

    def ours(layer, x, dtype):
        return theirs(accelerated_copy(layer), x, dtype)

    assert_numbers(theirs, ours, layer, inputs.float())

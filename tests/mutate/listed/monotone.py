"""Monotone networks: the tile, the root, and Python's plain form of positive weights."""

from tests.mutate.mutation import Of

_monotone = Of("monotone", "tests/ops/test_monotone_net.py -k not export and not compilers")
_DIR = "csrc/monotone_net/"
_TILE, _CPU, _ROOT = _DIR + "monotone_tile.h", _DIR + "monotone_net_cpu.cpp", _DIR + "monotone_root.h"
_SPEC = "flowkernels/ops/monotone_net/spec.py"

MUTATIONS = (
    _monotone("slope far out", _TILE, "return «exp_(min_(in, V{}))»;", "out + 1", "a slope of 1e-10 is 0"),
    _monotone("bend", _TILE, "«slope * g_a + bend * dz * g_da»", "slope * g_a", "the slope's own slope"),
    _monotone("log slope", _CPU, "return «q * q»;", "q", "the derivative of the soft clip"),
    _monotone("sign of an inverse", _CPU, "g_ladj = inverse ? «-g_given» : g_given;", "g_given", "sign"),
    _monotone("short step", _CPU, "«left * abs_(s.before) <= Seeker<V>::kUlp * (1 + abs_(s.at))»",
              "(abs_(s.before) <= 1)", "the whole rule is asked once"),
    _monotone("flat end", _ROOT, "better = «nearer | ended»;", "nearer", "an end that is no nearer is the answer"),
    _monotone("halves", _SPEC, "< «(units + 1) // 2», 1.0, -1.0", "units // 2", "the larger half is the other"),
    _monotone("sign of a weight", _SPEC, "g_weight = g_weight * «weight.sign()»", "1", "of abs"),
)  # fmt: skip

"""Monotone networks: the tile, the root, and Python's plain form of positive weights."""

from tests.mutate.mutation import Of

_monotone = Of("monotone", "tests/ops/test_monotone_net.py -k not export and not compilers")
_DIR = "csrc/monotone_net/"
_TILE, _CPU, _ROOT = _DIR + "monotone_tile.h", _DIR + "monotone_net_cpu.cpp", _DIR + "monotone_root.h"
_MATH, _NET, _CUDA = _DIR + "monotone_math.h", _DIR + "net_cuda.cuh", _DIR + "monotone_net_cuda.cu"
_cuda = Of("cuda monotone", "tests/cuda/test_monotone.py tests/ops/test_monotone_net.py -k cuda or emulated or slices")
_SPEC = "flowkernels/ops/monotone_net/spec.py"

MUTATIONS = (
    _monotone("slope far out", _MATH, "return «exp_(min_(in, V{}))»;", "out + 1", "a slope of 1e-10 is 0"),
    _monotone("bend", _TILE, "«slope * g_a + bend * dz * g_da»", "slope * g_a", "the slope's own slope"),
    _monotone("log slope", _CPU, "return «q * q»;", "q", "the derivative of the soft clip"),
    _monotone("sign of an inverse", _CPU, "g_ladj = inverse ? «-g_given» : g_given;", "g_given", "sign"),
    _monotone("short step", _CPU, "«left * abs_(s.before) <= Seeker<V>::kUlp * (1 + abs_(s.at))»",
              "(abs_(s.before) <= 1)", "the whole rule is asked once"),
    _monotone("last step", _CPU,
              "«shortened & (abs_(by) <= (abs_(at) + S(1)) * (4 * kLittle)) & (slope_end > 0)»",
              "shortened", "a step on a plateau is taken for the last"),
    _monotone("flat end", _ROOT, "better = «nearer | ended»;", "nearer", "an end that is no nearer is the answer"),
    _cuda("barrier before a pass", _NET, "«__syncthreads();»  // what was there has been read", "",
          "units are overwritten before they are summed"),
    _cuda("barrier behind a layer", _NET, "          }\n        }\n      }\n      «__syncthreads();»\n    }", "",
          "units are read before they are written"),
    _cuda("bend", _NET, "«slope * g0 + curvature(act, a0, S(1)) * a1 * g1»", "slope * g0", "the slope's own slope"),
    _cuda("last unit", _NET, "const int64_t unit = «first + u < l.n_out ? first + u : l.n_out - 1»;", "first + u",
          "weights past the last are read", equivalent="they are of what lies behind, and what they give is dropped"),
    _cuda("bias of a slope", _NET, "«plan.both ? of_first + sum_of_row<S>(row(l.a + l.width + j), nullptr) : of_first»",
          "of_first", "the second of two points is lost"),
    _cuda("rows past the end", _CUDA, "valid(«row < call.a.rows»)", "row <= call.a.rows", "one more is written"),
    _cuda("log slope", _CUDA, "return «q * q»;", "q", "the derivative of the soft clip"),
    _cuda("share of a step", _CUDA, "«left * abs_(s.before)» <= Search", "0 * abs_(s.before)",
          "the whole rule is asked once"),
    _cuda("slices", _CUDA, "i < features * c.row_blocks; i += «slices»", "slices + 1", "row blocks are left out"),
    _monotone("halves", _SPEC, "< «(units + 1) // 2», 1.0, -1.0", "units // 2", "the larger half is the other"),
    _monotone("sign of a weight", _SPEC, "g_weight = g_weight * «weight.sign()»", "1", "of abs"),
)  # fmt: skip

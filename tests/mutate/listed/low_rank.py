"""Planar, radial and Sylvester maps on the CPU, and their gate."""

from tests.mutate.mutation import Of

_low_rank = Of(
    "low_rank",
    "tests/ops/test_low_rank.py tests/ops/test_low_rank_kernel.py -k not avx and (direction or exact or large or few)",
)
_gate = Of("gate of low_rank", "tests/ops/test_low_rank_kernel.py -k gate")
_PLANAR, _RADIAL, _SYLVESTER = (f"csrc/low_rank/{name}.h" for name in ("planar", "radial", "sylvester"))

MUTATIONS = (
    _low_rank(
        "no direction", _PLANAR, "const auto some = «!(square < kTiny<S>)»;  // of a w", "square == square", "0 / 0"
    ),
    _low_rank("quadratic", _RADIAL, "r = select(«q < S(0)», S(0.5) * both", "q > S(0)", "the form that cancels"),
    _low_rank(
        "bounded diagonals",
        _SYLVESTER,
        "return «max_(min_(tanh_(v), all_lanes(kLimit)), all_lanes(-kLimit))»;",
        "tanh_(v)",
        "log 0",
    ),
    _low_rank(
        "rows past the end",
        "csrc/low_rank/low_rank_cpu.cpp",
        "«clear_past_end(rows, D, room.g);»",
        "",
        "counted in sums",
    ),
    _gate(
        "rows of parameters",
        "csrc/low_rank/low_rank_args.cpp",
        "a.type, «a.shared ? 1 : a.rows»,",
        "v.size[0]",
        "one set is read as many",
    ),
)

"""Block autoregressive maps on the CPU, and their gate."""

from tests.mutate.mutation import Of

_TESTS = "tests/ops/test_block_made_kernel.py tests/ops/test_block_made.py -k not avx"
_block = Of("block_made", _TESTS)
_gate = Of("gate of block_made", "tests/ops/test_block_made_kernel.py -k gate")
_BLOCKS, _NET = (f"csrc/block_made/{name}.h" for name in ("blocks", "block_net"))
_INVERSE, _INCREASING, _ARGS = (
    "csrc/block_made/inverse.h", "csrc/block_made/increasing.h", "csrc/block_made/block_made_args.cpp"
)  # fmt: skip

MUTATIONS = (
    _block(
        "terms far apart",
        _BLOCKS,
        "out = «select(lost, largest + b.shift_of(d * m + i) + log_(rest), out)»;",
        "out",
        "a sum of terms that vanish is 0",
    ),
    _block(
        "gated slope near 1",
        _BLOCKS,
        "return select(«(l < S(4)) & (u > S(-0.5))»,",
        "l < S(-1e6)",
        "shares of 1 cancel in the logarithm",
    ),
    _block(
        "infinite ladj", "csrc/univariate/map_cpu.h", "return «select(exact == exact, exact, sum)»;", "exact", "NaN"
    ),
    _block("eps, shift", _NET, "less = «square / (square + args.eps)»;", "1.0", "norms' gradients know no eps"),
    _block("slope of log slope", _INCREASING, "return «S(-2) * h»;", "S(-1) * h", "constant"),
    _block("no root", _INVERSE, "if («any_(doubtful)»)", "false", "beyond the map's bounds x is a number"),
    _block("plateau", _INVERSE, "if («any_(flat)») root =", "false", "any point of a plateau, 1e9 and more"),
    _block("end of a plateau", _INVERSE, "nearer = «abs_(off) <= least»,", "abs_(off) < least", "the far one"),
    _block(
        "features behind",
        _INVERSE,
        "behind = «(d + 1) * b.after()»;",
        "d * b.after()",
        "a feature's own units count as those behind it",
    ),
    _block(
        "gate of an inverse", _INVERSE, "*gate -= «double(sum_lanes(of_gate.a))» +", "0 * sum_lanes(of_gate.a)", "half"
    ),
    _gate("groups", _ARGS, "if («n_out % D») refuse(", "false", "units of no feature"),
    _gate("end", _ARGS, "if («layers_.back().after != 1»)", "false", "y of several units a feature"),
    _gate("norms", _ARGS, "if («v.log_norm.given()») check", "false", "a short norm"),
    _gate("y of an inverse", _ARGS, "if («a.inverse») check_dense", "false", "no y"),
)

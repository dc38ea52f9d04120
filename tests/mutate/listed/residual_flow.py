"""Residual maps on the CPU: their determinants, the iteration, the way back, and their gate."""

from tests.mutate.mutation import Of

_residual = Of(
    "residual_flow",
    "tests/ops/test_residual_flow_kernel.py tests/ops/test_residual_flow.py "
    "-k not avx and not compilers and not export and not refused",
)
_gate = Of("gate of residual_flow", "tests/ops/test_residual_flow_kernel.py -k refused")
_LU, _CONTRACTION, _BACKWARD, _TILE = (
    f"csrc/residual_flow/{name}.h" for name in ("lu", "contraction", "backward", "tile")
)
_ARGS = "csrc/residual_flow/residual_flow_args.cpp"

MUTATIONS = (
    _residual("pivots", _LU, "const auto small = own < «S(0.25) * most»;", "own", "none changes its place"),
    _residual("blocks of columns", _LU, "const int64_t end = «i < last ? i : last»;", "last", "not yet decomposed"),
    _residual(
        "rows of an inverse",
        _LU,
        "«if (some[k]) exchange_rows(k, g);»",
        "",
        "those that changed places are not put back",
    ),
    _residual(
        "rows of a solution", _LU, "«exchange(k, x, 1);»", "", "what is solved for does not change places as the matrix"
    ),
    _residual(
        "far out", _CONTRACTION, "return «max_(min_(t, both<T>(S(kFlat))), both<T>(S(-kFlat)))»;", "t", "inf * 0"
    ),
    _residual(
        "bend", _CONTRACTION, "/ S(kSteepest), «by_t * beta», z * both_shares", "by_t", "a slope's derivative by z"
    ),
    _residual(
        "rows that rest",
        _TILE,
        "const T following = select(«moves > S(0)», load_pair",
        "x == x",
        "they move on with their neighbours",
    ),
    _residual(
        "sign of an inverse",
        _BACKWARD,
        "inverse_transposed(«r.inverse ? -load_pair(of) : load_pair(of)»,",
        "load_pair(of)",
        "sign",
    ),
    _residual("rows past the end", _BACKWARD, "«clear_past_end(rows, D, to);»", "", "counted in sums"),
    _gate(
        "last weight",
        _ARGS,
        "layers_.back().n_out, args.features, «args.features»);",
        "int64_t(INT32_MAX)",
        "more outputs than features",
    ),
    _gate(
        "root",
        _ARGS,
        'if («a.inverse») check_dense("residual_flow: y"',
        "false",
        "an inverse's backward pass reads a y of any size",
    ),
)

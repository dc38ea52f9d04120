"""Residual maps on the CPU: their determinants, the iteration, the way back, and their gate."""

from tests.mutate.mutation import Of

_residual = Of(
    "residual_flow",
    "tests/ops/test_residual_flow_kernel.py tests/ops/test_residual_flow_series.py tests/ops/test_residual_flow.py "
    "-k not avx and not compilers and not export and not refused",
)
_gate = Of("gate of residual_flow", "tests/ops/test_residual_flow_kernel.py -k refused")
_LU, _CONTRACTION, _BACKWARD, _TILE, _SERIES, _TANGENTS = (
    f"csrc/residual_flow/{name}.h" for name in ("lu", "contraction", "backward", "tile", "series", "tangents")
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
        "const T times = «r.inverse ? -load_pair(of) : load_pair(of)»;",
        "load_pair(of)",
        "sign",
    ),
    _residual("rows past the end", _BACKWARD, "«clear_past_end(rows, D, to);»", "", "counted in sums"),
    _residual("draws", _SERIES, "return total.total() / «S(r.draws)»;", "S(1)", "a sum in place of their mean"),
    _residual("gradient of draws", _SERIES, "times = «times / S(r.draws)»;", "times", "that of their sum"),
    _residual("signs of powers", _SERIES, "k < r.terms ? «-sign» * weights[k]", "sign", "those of terms"),
    _residual("weights of powers", _SERIES, "-sign * weights[«k»] : S(0)", "k - 1", "of the term before"),
    _residual(
        "first power",
        _SERIES,
        "before = «k == 1 ? weights[0] * of : load_pair(t.inner + i * R)»;",
        "load_pair(t.inner + i * R)",
        "what lay there is added to",
    ),
    _residual(
        "draws of a batch", _SERIES, "static_cast<S*>(r.inner) + «(from + d)»", "d", "later draws over the first"
    ),
    _residual(
        "terms without weight",
        _ARGS,
        "while («terms > 1 && static_cast<const S*>(weights)[terms - 1] == S(0)») --terms;",
        "terms > 1",
        "one",
    ),
    _residual(
        "bends", _TANGENTS, "bend = «bend + of * tangent(j, d)»;", "of * tangent(j, d)", "of the last direction alone"
    ),
    _residual("bends of a block", _BACKWARD, "«clear_bends(net, t);»", "", "those of the block before are added to"),
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
    _gate("sums", _ARGS, "if («a.estimated() && !a.inner») refuse", "false", "null is read"),
    _gate(
        "draws",
        _ARGS,
        'check_contiguous("residual_flow: noise", noise, args.type, {args.draws, args.rows, «args.features»});',
        "noise.size[2]",
        "noise of fewer features",
    ),
)

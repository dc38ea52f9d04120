"""The spline on the CPU, and its settings."""

from tests.mutate.mutation import Of

_rqs = Of("rqs", "tests/ops/test_rqs_edges.py tests/ops/test_rqs_memory.py tests/ops/test_rqs.py -k not emulated")
_linear = "tests/ops/test_rqs.py -k linear and not emulated"
_edges = "tests/ops/test_rqs_edges.py -k (no_param or far_larger or nearly or minimum_size) and not emulated"
_memory = "tests/ops/test_rqs_memory.py -k (view_gives or negative) and not emulated"
_wide = "tests/ops/test_rqs.py tests/ops/test_rqs_memory.py -k not emulated"
_MATH, _BIN, _LANES = "csrc/rqs/rqs_math.h", "csrc/rqs/rqs_bin.h", "csrc/rqs/rqs_lanes.h"
_LINEAR, _WALK = "csrc/rqs/rqs_linear.h", "csrc/univariate/walk.h"
_SPEC, _NATIVE = "flowkernels/ops/rqs/spec.py", "flowkernels/ops/_row_params.py"

MUTATIONS = (
    # ---- formulas ----
    _rqs("unit", _MATH, "return «min_(max_(theta, T{}), T{} + 1)»;", "theta", "a position in the bin is not clamped"),
    _rqs(
        "last bin of x",
        _MATH,
        "unit(«select(last, 1 - (right - x) * b.inv_w, (x - b.x0) * b.inv_w)»)",
        "(x - b.x0) * b.inv_w",
        "the last bin is measured from its lower knot",
    ),
    _rqs(
        "last bin of y",
        _MATH,
        "const T below = «select(last, b.h - (top - y), y - b.y0)»,",
        "y - b.y0",
        "the last bin is measured from its lower knot",
    ),
    _rqs(
        "mirrored bin",
        _MATH,
        "const auto mirrored = «above < below»;",
        "above < above",
        "the root is counted from the farther knot",
        _edges,
    ),
    _rqs(
        "discriminant",
        _MATH,
        "sqrt_(«max_(qb * qb + 4 * qa * s * rise, T{})»)",
        "qb * qb + 4 * qa * s * rise",
        "a discriminant below 0 by rounding has no root",
        "tests/ops/test_rqs_edges.py -k inverse and not emulated",
        equivalent="rounded one by one, in steps of the slopes' spacing, the terms give 0 at least; fused they may not",
    ),
    _rqs(
        "no root", _MATH, "unit(«select(den == 0, T{}, quotient(num, den))»)", "quotient(num, den)", "0 / 0 at a knot"
    ),
    _rqs("order of a product", _MATH, "return «q * (q * p.slope_num)»;", "q * q * p.slope_num", "q q underflows"),
    _rqs(
        "nearer end",
        _MATH,
        "select(«p.theta > 0.5f», 1 - (p.s",
        "p.theta > 2.f",
        "1 - r cancels at the upper knot",
        _edges,
    ),
    _rqs("grad w", _MATH, "g.w = «-(g_s * p.s * iw + g_x * p.theta)»;", "-(g_s * p.s) * iw", "a term is dropped"),
    _rqs("ladj of the inverse", _MATH, "*ladj = «-log_slope(p)»;", "log_slope(p)", "sign"),
    _rqs(
        "logistic",
        _MATH,
        "return «select(u >= 0, q, e * q)»;",
        "select(u >= 0, q, 1 - q)",
        "1 - q cancels",
        _edges,
    ),
    _rqs("minimum slope", _MATH, "return min_(«min_slope + max_(u, T{})» + log1p", "max_(u, T{})", "no minimum"),
    # ---- from logits to the bin ----
    _rqs("least size", _BIN, "* («mn[i] > kLeast ? mn[i] : kLeast»)", "mn[i]", "a bin may have no width", _edges),
    _rqs(
        "compensation",
        _BIN,
        "«part -= total - done;»",
        "part = V{};",
        "what the upper level rounds away is lost",
        tests="tests/ops/test_rqs.py -k not emulated",
    ),
    _rqs(
        "outer knot",
        _BIN,
        "corner[i] = «select(last, c.high[i] - size[i], corner[i])»;",
        "corner[i]",
        "the outer knot is where rounding put it",
        _edges,
    ),
    _rqs("outside, y", _BIN, "*out = «select(inside, y, v)»;", "y", "outside of the box x is mapped"),
    _rqs("outside, ladj", _BIN, "*ladj = «select(inside, l, T{})»;", "l", "outside of the box ladj is not 0"),
    _rqs(
        "y in the box",
        _BIN,
        "«y = min_(max_(y, T{} + c.low[!inverse]), T{} + c.high[!inverse]);»",
        "",
        "y may leave the box by an ulp",
    ),
    _rqs(
        "mass after the last bin",
        _BIN,
        "= «select(last, zero, 1 - (f.before[i] + f.in[i]) * f.inv_sum[i])»;",
        "1 - (f.before[i] + f.in[i]) * f.inv_sum[i]",
        "what cancels in exact arithmetic is formed",
        _edges,
    ),
    _rqs(
        "scale of logits",
        _BIN,
        "f.inv_sum[i] * «(c.logit_scale * c.free_size[i])»;",
        "(c.free_size[i] * 1)",
        "the gradient knows no logit_scale",
        tests=_wide,
    ),
    # ---- in lanes ----
    _rqs("scan", _LANES, "for (int k = 1; «k < K»; ++k) {\n    const V sa", "k < K - 1", "the last bin is never found"),
    _rqs(
        "search", _LANES, "while («2 * step < K») step", "4 * step < K", "half of the bins are never found", tests=_wide
    ),
    _rqs("clipped gradient", _LANES, "«out[j] *= q * q;»", "out[j] *= q;", "derivative of the soft clip", tests=_wide),
    _rqs(
        "circular gradient",
        _LANES,
        "if (c.tails == Tails::circular) «out[0] += out[K];»",
        "",
        "the shared slope's second gradient is lost",
        tests=_wide,
    ),
    _rqs("circular edge", _LANES, "«b.raw[3 * K] = b.raw[2 * K];»", "", "the last slope is whatever was there"),
    # ---- linear rational splines ----
    _rqs(
        "linear: box", _LINEAR, "piece_at(s, theta_of_x(s, v, last, «high[inverse]»))", "high[0]", "other axis", _linear
    ),
    _rqs("linear: share", _LINEAR, "g.lambda = select(p.upper, «-g_lambda», g_lambda)", "g_lambda", "sign", _linear),
    # ---- memory ----
    _rqs(
        "overlap",
        _LANES,
        "const int s = «p <= P - Q ? p : P - Q»;\n      V v[Q];\n      for",
        "p",
        "the last block writes past the end",
        _wide,
    ),
    _rqs("next row", _WALK, "«cur.next();»", "", "every row is the first", _memory),
    _rqs(
        "long row",
        _WALK,
        "long_row += sum_of(buffer, «n»);",
        "2 * L",
        "idle lanes are summed",
        "tests/ops/test_rqs.py -k group+1 and not emulated",
    ),
    _rqs("row of ladj", _WALK, "d = 0;\n          «++row;»", "", "all rows have the gradient of one", _wide),
    # ---- Python ----
    _rqs(
        "largest minimum",
        _SPEC,
        "if not 0 <= least * n «<=» 1:",
        "<",
        "bins that are all of the minimum width are refused",
        "tests/ops/test_rqs_arguments.py",
    ),
    _rqs("most bins", _SPEC, "not 1 <= bins «<=» MAX_BINS", "<", "128 are refused", "tests/ops/test_rqs.py -k 128"),
    _rqs(
        "edge logit",
        _SPEC,
        "softplus = slope« - self.min_derivative»",
        "",
        "slope 1 at the edge is not 1",
        "tests/ops/test_rqs.py -k agrees_with_nflows and not emulated",
    ),
    _rqs(
        "hash of a setting",
        "flowkernels/ops/rqs/__init__.py",
        "_kept = functools.lru_cache(maxsize=1024, typed=«True»",
        "False",
        "8.0 bins pass",
        "tests/ops/test_rqs_arguments.py",
    ),
    _rqs(
        "strides of params",
        "csrc/univariate/map_args.cpp",
        "== n * a && «r.stride_b[last] == n * b»;",
        "true",
        "a stride is not looked at",
        _memory,
    ),
    _rqs(
        "negative view",
        _NATIVE,
        "x.dtype is not params.dtype« or x.is_neg() or params.is_neg()»:",
        "",
        "a sign that is not in memory",
        _memory,
    ),
    _rqs("leading dims", _NATIVE, "return len(dims) «<= _MAX_LEADING»", "<= 9", "nine dims are not merged", _memory),
    _rqs(
        "circle shift",
        "flowkernels/ops/rqs/box.py",
        "spline.right - spline.left)« + spline.left»",
        "",
        "not into the box",
        "flowkernels/ops/rqs/box.py tests/ops/test_autoregressive_inverse.py -k 'shifted or circle'",
    ),
)

"""The affine map on the CPU, and its settings."""

from tests.mutate.mutation import Of

_affine = Of("affine", "tests/ops/test_affine.py -k not emulated")
_MATH, _CPU = "csrc/affine/affine_math.h", "csrc/affine/affine_cpu.cpp"
_SPEC, _NATIVE = "flowkernels/ops/affine/spec.py", "flowkernels/ops/affine/native.py"

MUTATIONS = (
    # ---- scales ----
    _affine(
        "slope goes on",
        _MATH,
        "«select(abs_(log_s) <= kBound, slope, T{})»",
        "slope",
        "where the exponential has stopped its slope goes on",
    ),
    _affine("bound", _MATH, "+ «kBound»);\n    return {exp_", "kBound * S(1.02)", "exp stops where it is inf already"),
    _affine("softplus log", _MATH, ": «select(u >= -37, log_(s), u)»", "log_(s)", "log of a scale that underflows"),
    _affine(
        "softplus stops", _MATH, "«select(u >= -kBound, slope, T{})»", "slope", "slope where the scale has stopped"
    ),
    _affine("sigmoid stops", _MATH, "«select(z >= -kBound, slope, T{})»", "slope", "slope where the scale has stopped"),
    _affine("sigmoid tail", _MATH, "below = «select(up, e * q, q)», s = above", "1 - above", "1 - sigmoid cancels"),
    _affine("reciprocal_sigmoid slope", _MATH, "log1p_unit(e) - min_(z, T{}), «-below»,", "below", "sign"),
    _affine("clip", _MATH, "T{} + high), «one»);", "select(u <= high, one, T{})", "the gradient sees the upper bound"),
    _affine("tanh slope", _MATH, "«1 - h * h»", "1 - h", "power"),
    _affine("atan slope", _MATH, "atan_(r), «1 / (1 + r * r)»", "1 / (1 + r)", "power"),
    _affine("soft clip slope", _MATH, "exponential(u * q, «q * q»)", "q", "power"),
    _affine("ladj of the inverse", _MATH, "*ladj = «inverse ? -k.log_s : k.log_s»;", "k.log_s", "sign"),
    _affine("grad t of the inverse", _MATH, "*g_t = «inverse ? -g_v : g_out»;", "inverse ? g_v : g_out", "sign"),
    # ---- tiles ----
    _affine("masked ladj", _CPU, "«ladj = select(on, ladj, T{});»", "", "what is masked adds to ladj"),
    _affine("masked logits", _CPU, "«g_u = select(on, g_u, T{});»", "", "what is masked has a gradient"),
    _affine("masked gradient", _CPU, "«g_x = select(on, g_x, g);»", "", "what passes has the gradient of a map"),
    _affine(
        "mask of the rest",
        _CPU,
        "rest_mask[l] = mask[«i + l»]",
        "l",
        "the last elements have the first ones' mask",
        "tests/ops/test_affine_edges.py -k last_elements",
    ),
    _affine(
        "jump",
        _CPU,
        "b.runs > 1 ? «a.nest.stride[outer][k]» : b.run",
        "b.run",
        "runs are taken for neighbours in memory",
    ),
    _affine("row of several tiles", _CPU, "total = «(before ? total : 0)» +", "total", "ladj of the rows before"),
    _affine(
        "gradient of ladj", _CPU, "tile.ladj[i] = ladj[«row + r»]", "row", "all rows of a tile have the first one's"
    ),
    _affine("what passes, before", _CPU, "«pass(r, p.begin);»", "", "features before the part are not written"),
    _affine(
        "what passes, behind", _CPU, "pass(r + p.end, «p.row - p.end»)", "0", "features behind the part are not written"
    ),
    _affine(
        "carry",
        _CPU,
        "at[k] += «nest.stride[d - 1][k] - index[d] * nest.stride[d][k]»;",
        "nest.stride[d - 1][k]",
        "the inner loop goes on where it ended",
    ),
    _affine(
        "alternating params", _CPU, "return «step(k) == 2»;", "step(k) >= 2", "neighbours four apart are read two apart"
    ),
    # ---- Python ----
    _affine(
        "part of",
        "csrc/affine/affine_args.cpp",
        "+= spec.start * «t.stride[m.part]» *",
        "t.stride[m.ndim - 1]",
        "the part begins elsewhere",
    ),
    _affine(
        "order of params",
        "csrc/affine/affine_args.cpp",
        "*u = as_it_lies(m, params, «spec.shift_first ? apart : 0»);",
        "0",
        "logit for shift",
    ),
    _affine(
        "what passes, dtype",
        _NATIVE,
        "(x.is_contiguous()« and x.dtype is out.dtype»)",
        "",
        "bytes of another dtype",
        equivalent="x and y have one dtype by then, and so have their gradients",
    ),
    _affine("dtype of ladj", _NATIVE, "dtype=«torch.promote_types(x.dtype, torch.float32)»)", "x.dtype", "16-bit ladj"),
    _affine(
        "minimum of exp",
        "flowkernels/ops/affine/scales.py",
        r'Scale("sigmoid", r"\sigma(u + 2)"«, floored=True»)',
        "",
        "sigmoid has none",
    ),
    _affine("order of bounds", _SPEC, "if not -1e30 <= low «<» high <= 1e30", "<=", "an empty interval"),
    _affine(
        "hash of a setting",
        "flowkernels/ops/affine/__init__.py",
        "maxsize=256, typed=«True»",
        "False",
        "True passes for 1",
    ),
)

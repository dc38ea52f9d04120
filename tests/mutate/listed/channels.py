"""Ops on channels, actnorm and lu_linear, on the CPU."""

from tests.mutate.mutation import Of

_actnorm = Of("actnorm", "tests/ops/test_actnorm.py -k not emulated")
_lu = Of("lu_linear", "tests/ops/test_lu_linear.py -k not emulated")
_ACTNORM, _LADJ = "csrc/actnorm/actnorm_cpu.cpp", "csrc/common/channel_ladj.h"
_CPU, _MAP, _OUTER = "csrc/lu_linear/lu_linear_cpu.cpp", "csrc/lu_linear/map.h", "csrc/lu_linear/outer.h"
_BACKWARD = "csrc/lu_linear/backward.h"
_TRIANGLE, _PIXELS = "csrc/lu_linear/triangle.h", "csrc/lu_linear/pixels.h"
_CHANNELS = "flowkernels/ops/_channels.py"

MUTATIONS = (
    # ---- what both have ----
    _actnorm(
        "ladj in float",
        _LADJ,
        "«sum += double(log_scale(c));»",
        "sum = double(S(sum) + S(log_scale(c)));",
        "ladj is summed in float",
    ),
    _lu(
        "ladj's gradient in float",
        _LADJ,
        "«sum += double(static_cast<const S*>(a.grad_ladj)[i]);»",
        "sum = double(S(sum) + static_cast<const S*>(a.grad_ladj)[i]);",
        "the gradient of ladj is summed in float",
    ),
    _actnorm("ladj's gradient", _LADJ, "double(«a.inverse ? -a.ladj_pixels : a.ladj_pixels»)", "a.ladj_pixels", "sign"),
    # ---- actnorm ----
    _actnorm("shift of the inverse", _ACTNORM, "before[i] = «a.inverse ? shift[i % C] : S(0)»;", "S(0)", "no shift"),
    _actnorm(
        "chains",
        _ACTNORM,
        "«to_gx[l] += double(gx[l]);»",
        "to_gx[l] = double(typename ScalarOf<V>::S(to_gx[l]) + gx[l]);",
        "endless chains of float sums",
    ),
    _actnorm(
        "chains of g",
        _ACTNORM,
        "«to_g[l] += double(g[l]);»",
        "to_g[l] = double(typename ScalarOf<V>::S(to_g[l]) + g[l]);",
        "endless chains of float sums",
    ),
    _actnorm(
        "last rows",
        _ACTNORM,
        "«r < w.count * w.repeats + w.rest»; ++r) row",
        "r + 1 < w.count * w.repeats + w.rest",
        "the last row is not written",
    ),
    _actnorm(
        "last rows' sums",
        _ACTNORM,
        "«if (w.rest) rows(shared.sums, w.count * w.repeats, w.count * w.repeats + w.rest, C, 1);»",
        "",
        "the rows past the last joined one have no gradient",
    ),
    _actnorm(
        "grad shift", _ACTNORM, "S(«a.inverse ? -scale * g : g»)", "g", "the inverse's gradient is that of forward"
    ),
    _actnorm(
        "strides of the gradient", _ACTNORM, "«dense(a.grad_y)» && C <", "true", "rows of gradients are taken for dense"
    ),
    _actnorm(
        "all parts", _ACTNORM, "for (int p = 0; «p < w.parts»; ++p)", "p < 1", "what other threads summed is lost"
    ),
    # ---- lu_linear: triangles ----
    _lu(
        "pad rows",
        _TRIANGLE,
        "«i < to * kRowBlock<S>»; ++i) z[i] = 0",
        "i < 0",
        "a NaN of an earlier row block spreads",
    ),
    _lu(
        "order of panels",
        _TRIANGLE,
        "ascending = «p.t.lower == p.inverse»;",
        "p.t.lower",
        "panels are overwritten, then read",
    ),
    _lu(
        "pad of a solve",
        _TRIANGLE,
        "k != m && «first + m < t.size» && first",
        "true",
        "pads of the block on the diagonal",
    ),
    _lu(
        "packed panels",
        _TRIANGLE,
        "const S v = «first + m < t.size ? t.at(first + m, k) : S(0)»;",
        "t.at(first + m, k)",
        "reads past the matrix",
    ),
    # ---- lu_linear: the whole matrix ----
    _lu("transposed", _MAP, "transposed ? «matrix[k * C + i]» :", "matrix[i * C + k]", "swapped stride"),
    _lu("order of bias", _MAP, "bias[i] = f.bias[«f.at(i)»];", "i", "the bias is not permuted"),
    _lu("sign of the diagonal", _MAP, "«diagonal[i] *= sign[i];»", "", "signs are left out"),
    # ---- lu_linear: sums over pixels ----
    _lu(
        "upper blocks",
        _OUTER,
        "Part::upper ? «i * kOuterG / kOuterX» : 0",
        "(i * kOuterG + kOuterX - 1) / kOuterX",
        "a block on the diagonal is left out",
    ),
    _lu(
        "lower blocks",
        _OUTER,
        "below = «((i + 1) * kOuterG + kOuterX - 1) / kOuterX»;",
        "(i + 1) * kOuterG / kOuterX",
        "a block on the diagonal is left out",
    ),
    # ---- lu_linear: forward and backward ----
    _lu("bias of the inverse", _MAP, "add_bias(f.bias, f.C, «S(-1)», z)", "S(1)", "sign"),
    _lu("bias of the inverse, again", _BACKWARD, "add_bias(B.f.bias, C, «S(-1)», h)", "S(1)", "sign"),
    _lu(
        "rows past a solve",
        _BACKWARD,
        "«clear_rows(g_h, C, t.rows);»  // after",
        "",
        "after a NaN a solve leaves NaN there",
    ),
    _lu("diagonal of grad lower", _BACKWARD, "to = «j >= i» ? S(0)", "j > i", "the diagonal has a gradient"),
    _lu("diagonal of grad upper", _BACKWARD, "to = «j <= i» ? S(0)", "j < i", "the diagonal has a gradient"),
    _lu(
        "grad sign",
        _BACKWARD,
        "= diagonal * «size» + (a.grad_ladj",
        "-size",
        "sign",
    ),
    _lu("grad of ladj", _BACKWARD, "B.f.diagonal[i] + «S(of_ladj)»;", "S(0)", "ladj has no gradient"),
    _lu("parts", _BACKWARD, "for (int p = 0; «p < parts»; ++p) total", "p < 1", "what other threads summed is lost"),
    _lu(
        "bias in double",
        _BACKWARD,
        "«lanes[l] += double(g[s * stride + c * R + l]);»",
        "lanes[l] = double(S(lanes[l]) + g[s * stride + c * R + l]);",
        "the gradient of the bias is summed in float",
    ),
    _lu(
        "parts of the bias", _BACKWARD, "for (int p = 0; «p < parts»; ++p) sum", "p < 1", "other threads' sums are lost"
    ),
    # ---- lu_linear: pixels ----
    _lu(
        "end of an image",
        _PIXELS,
        "const int64_t here = «pixels - pixel»;",
        "left",
        "a run crosses into the next image",
    ),
    _lu(
        "past the end",
        _PIXELS,
        "«for (; lane + l < end; ++l) to[l] = 0;»",
        "",
        "lanes past the end hold what they held",
    ),
    # ---- Python ----
    _actnorm(
        "evenly apart", _CHANNELS, "if expected is not None and «s != expected»:", "False", "dims that do not merge do"
    ),
    _actnorm(
        "sign of pixels", _CHANNELS, "return «-pixels(x, channel_dim)» if inverse", "pixels(x, channel_dim)", "sign"
    ),
    _actnorm(
        "one pixel",
        _CHANNELS,
        "pixel = «image if channel == 1 else 1»",
        "1",
        "images of one pixel lie elsewhere",
        equivalent="only Triton's launches read it, and their tests run in its interpreter alone",
    ),
    _lu(
        "channel dim",
        "flowkernels/_arguments.py",
        "numbers.Integral)« and not isinstance(value, bool)»",
        "",
        "True is 1",
        "tests/ops/test_settings.py -k channel_dim",
    ),
)

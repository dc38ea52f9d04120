// The formulas of the affine map, written once for a value type T: SIMD vectors on the CPU, float or double in CUDA.
// Derivations are in flowkernels/ops/affine/README.md. Included inside each instruction set's namespace, after the
// header that defines exp_, log_, log1p_unit, tanh_, atan_, abs_, max_, min_, select.
#pragma once
#include "affine.h"

namespace fk::FK_ISA {

// AffineSpec in the arithmetic type.
template <class S>
struct Affine {
  // Logits at which a scale stops: beyond, it or its inverse would be inf, and inf * 0 NaN.
  static constexpr S kBound = sizeof(S) == 4 ? 87 : 708;
  AffineScale scale;
  bool inverse;
  S min_scale, clamp, per_clamp, low, high;  // an arc tangent's clamp is what stands before it

  explicit Affine(const AffineSpec& s)
      : scale(s.scale),
        inverse(s.inverse),
        min_scale(S(s.min_scale)),
        clamp(S(unit(s))),
        per_clamp(S(1 / unit(s))),
        low(S(s.low)),
        high(S(s.high)) {}

  // The logit that counts as 1.
  static constexpr double unit(const AffineSpec& s) {
    return s.scale == AffineScale::atan ? s.clamp * 0.63661977236758134308 : s.clamp;
  }

  template <class T>
  struct At {
    T factor;     // s, or 1 / s for the inverse
    T log_s;      // of s
    T log_slope;  // d log s / d u, finite where s underflows; 0 where a floor is all that is left of it
    T slope;      // the same of the s that stops
  };

  // exp of log_s = log s, where log_s has slope `slope`.
  template <class T>
  FK_INLINE At<T> exponential(T log_s, T slope) const {
    const T stopped = min_(max_(log_s, T{} - kBound), T{} + kBound);
    return {exp_(inverse ? -stopped : stopped), log_s, slope, select(abs_(log_s) <= kBound, slope, T{})};
  }

  template <class T>
  FK_INLINE At<T> at(T u) const {
    const T one = T{} + S(1);
    switch (scale) {
      case AffineScale::exp: return exponential(u, one);
      case AffineScale::tanh: {
        const T h = tanh_(u * per_clamp);
        return exponential(clamp * h, 1 - h * h);
      }
      case AffineScale::atan: {
        const T r = u * per_clamp;
        return exponential(clamp * atan_(r), 1 / (1 + r * r));
      }
      case AffineScale::clip: return exponential(min_(max_(u, T{} + low), T{} + high), one);
      case AffineScale::soft_clip: {
        const T q = 1 / (1 + abs_(u * per_clamp));
        return exponential(u * q, q * q);
      }
      case AffineScale::softplus: {
        const T c = max_(u, T{} - kBound), e = exp_(-abs_(c)), q = 1 / (1 + e);
        const T s = max_(c, T{}) + log1p_unit(e) + min_scale, slope = select(c >= 0, q, e * q) / s;
        // Below -37 a softplus is e^u, to the last bit of a double.
        const T log_s = min_scale > 0 ? log_(s) : select(u >= -37, log_(s), u);
        const T stops = select(u >= -kBound, slope, T{});
        return {inverse ? 1 / s : s, log_s, min_scale > 0 ? stops : slope, stops};
      }
      case AffineScale::sigmoid: {
        const T z = u + S(2), c = max_(z, T{} - kBound), e = exp_(-abs_(c)), q = 1 / (1 + e);
        const auto up = c >= 0;
        const T above = select(up, q, e * q), below = select(up, e * q, q), s = above + min_scale;
        const T log_s = min_scale > 0 ? log_(s) : min_(z, T{}) - log1p_unit(e);
        const T slope = min_scale > 0 ? above * below / s : below, stops = select(z >= -kBound, slope, T{});
        return {inverse ? 1 / s : s, log_s, min_scale > 0 ? stops : slope, stops};
      }
      case AffineScale::reciprocal_sigmoid: {
        const T z = u + S(2), c = max_(z, T{} - kBound), e = exp_(-abs_(c)), q = 1 / (1 + e);
        const auto up = c >= 0;
        const T below = select(up, e * q, q), s = select(up, 1 + e, (1 + e) / e);
        return {inverse ? select(up, q, e * q) : s, log1p_unit(e) - min_(z, T{}), -below,
                select(z >= -kBound, -below, T{})};
      }
      default: return {one, T{}, T{}, T{}};
    }
  }

  template <class T>
  FK_INLINE void eval(T u, T t, T v, T* out, T* ladj) const {
    const At<T> k = at(u);
    *out = inverse ? (v - t) * k.factor : v * k.factor + t;
    *ladj = inverse ? -k.log_s : k.log_s;
  }

  // Gradients of u, t and, returned, v, from those of out and ladj. Where out has no gradient, or the scale has
  // stopped, u has none by way of out, whatever out is: it may be inf, and inf * 0 NaN.
  template <class T>
  FK_INLINE T grad(T u, T t, T v, T g_out, T g_ladj, T* g_u, T* g_t) const {
    const At<T> k = at(u);
    const T of_ladj = g_ladj * k.log_slope;
    const T moved = inverse ? (v - t) * k.factor * k.slope : v * (k.factor * k.slope);
    const T g_v = select(g_out == 0, g_out, g_out * k.factor);
    const T of_out = select(g_out == 0, g_out, select(k.slope == 0, T{}, g_out * moved));
    *g_t = inverse ? -g_v : g_out;
    *g_u = inverse ? -(of_out + of_ladj) : of_out + of_ladj;
    return g_v;
  }
};

}  // namespace fk::FK_ISA

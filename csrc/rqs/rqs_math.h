// The formulas of the rational-quadratic spline (Durkan et al. 2019, Gregory & Delbourgo 1982),
// written once for a value type T: a SIMD vector on the CPU, float or double in CUDA.
// Derivations are in flowkernels/ops/rqs/README.md. Included inside each instruction set's
// namespace, after the header that defines exp_, log_, log_short, log1p_short, sqrt_, abs_, max_, min_, select, splat,
// reciprocal, quotient, any_.
#pragma once

namespace fk::FK_ISA {

// The bin a value fell into: corner (x0, y0), sizes, slopes at its two knots; and, of a linear spline's only, the share
// of its width at which it is split.
template <class T>
struct Bin {
  T x0, w, inv_w, y0, h, d0, d1, lambda;
};

// What every pass needs at relative position theta of a bin.
template <class T>
struct Shape {
  T theta, s, t, beta, inv_den, num, slope_num;
};

template <class T>
FK_INLINE Shape<T> shape_at(const Bin<T>& b, T theta) {
  Shape<T> r;
  r.theta = theta;
  r.s = b.h * b.inv_w;
  r.t = theta * (1 - theta);
  r.beta = b.d0 + b.d1 - 2 * r.s;
  r.inv_den = reciprocal(r.s + r.beta * r.t);
  r.num = r.s * theta * theta + b.d0 * r.t;
  const T rest = 1 - theta;
  r.slope_num = b.d1 * theta * theta + 2 * r.s * r.t + b.d0 * rest * rest;
  return r;
}

template <class T>
FK_INLINE T unit(T theta) {
  return min_(max_(theta, T{}), T{} + 1);
}

// The last bin hangs from the box's upper edge, where distances are exact; measured from below they
// would carry the rounding of its lower knot.
template <class B, class T, class M, class S>
FK_INLINE T theta_of_x(const B& b, T x, M last, S right) {
  return unit(select(last, 1 - (right - x) * b.inv_w, (x - b.x0) * b.inv_w));
}

// The root in [0, 1] of qa theta^2 + qb theta - s rise = 0, in the form that adds numbers of one sign,
// and counted from the nearer knot: mirrored at its centre the bin is a bin with its slopes exchanged.
// `rise` is a share of the bin's height, so that no square depends on how large the box is.
template <class T, class M, class S>
FK_INLINE T theta_of_y(const Bin<T>& b, T y, M last, S top) {
  const T below = select(last, b.h - (top - y), y - b.y0), above = select(last, top - y, b.h - below);
  const auto mirrored = above < below;
  const T rise = quotient(select(mirrored, above, below), b.h), sum = b.d0 + b.d1;
  // Slopes that have no squares count in smaller units, and s with them.
  constexpr bool kWide = sizeof(S) == 8;
  const T unit_of = select(sum > S(kWide ? 0x1p500 : 0x1p60), T{} + S(kWide ? 0x1p-520 : 0x1p-64), T{} + 1);
  const T d = select(mirrored, b.d1, b.d0) * unit_of, s = b.h * b.inv_w * unit_of;
  const T bend = rise * (sum * unit_of - 2 * s);
  const T qb = d - bend, qa = bend + (s - d);
  const T root = sqrt_(max_(qb * qb + 4 * qa * s * rise, T{}));
  const auto up = qb >= 0;
  const T num = select(up, 2 * s * rise, root - qb), den = select(up, qb + root, 2 * qa);
  const T theta = unit(select(den == 0, T{}, quotient(num, den)));
  return select(mirrored, 1 - theta, theta);
}

// dy/dx = s^2 slope_num / den^2
template <class T>
FK_INLINE T slope_of(const Shape<T>& p) {
  const T q = p.s * p.inv_den;
  return q * (q * p.slope_num);  // in this order: q^2 underflows where a slope is 1e30
}

// log dy/dx. A bin without a least height may be so flat that its slope is no number, though each factor is one.
template <class T>
FK_INLINE T log_slope(const Shape<T>& p) {
  using S = typename ScalarOf<T>::S;
  const T slope = slope_of(p), log_of = log_short(slope);
  const auto flat = slope < (sizeof(S) == 8 ? S(0x1p-1022) : S(0x1p-126));
  if (__builtin_expect(!any_(flat), 1)) return log_of;
  return select(flat, 2 * (log_(p.s) + log_(p.inv_den)) + log_(p.slope_num), log_of);
}

// d loss / d (bin, x), from d loss / d (y, ladj) of the forward direction.
template <class T>
struct BinGrad {
  T x0, w, y0, h, d0, d1, lambda, x;
};

// d ladj / d x of the forward direction.
template <class T>
FK_INLINE T ladj_slope(const Bin<T>& b, const Shape<T>& p) {
  const T one_2theta = 1 - 2 * p.theta;
  const T of_num = (b.d1 * p.theta + p.s * one_2theta - b.d0 * (1 - p.theta)) * reciprocal(p.slope_num);
  // Per x before it is multiplied: beside a slope of 1e30, of a box far wider than high, 1 / den alone is too large.
  return 2 * (of_num * b.inv_w - p.beta * one_2theta * (p.inv_den * b.inv_w));
}

template <class T>
FK_INLINE BinGrad<T> grad_of(const Bin<T>& b, const Shape<T>& p, T gy, T gl, T g_x) {
  const T iden = p.inv_den, inum = reciprocal(p.slope_num), iw = b.inv_w;
  const T one_2t = 1 - 2 * p.t, rest = 1 - p.theta;
  // (y - y0) / h, from the nearer end: at the upper knot it is 1 exactly, and the terms below that
  // vanish there vanish.
  const T r = select(p.theta > 0.5f, 1 - (p.s * rest * rest + b.d1 * p.t) * iden, p.num * iden);
  const T gyh = gy * b.h * iden;
  const T g_s = gyh * (p.theta * p.theta - r * one_2t) + gl * 2 * (reciprocal(p.s) + p.t * inum - one_2t * iden);
  const T common = gl * 2 * p.t * iden;
  BinGrad<T> g;
  g.d0 = gyh * p.t * (1 - r) + gl * rest * rest * inum - common;
  g.d1 = gl * p.theta * p.theta * inum - gyh * p.t * r - common;
  g.x = g_x;
  g.x0 = -g.x;
  g.h = gy * r + g_s * iw;
  g.w = -(g_s * p.s * iw + g_x * p.theta);
  g.y0 = gy;
  return g;
}

// What a spline is between its knots: here, and `Linear` in rqs_linear.h. v is x, or y where `inverse`.
struct Quadratic {
  static constexpr bool kSplits = false;

  template <class T, class M, class S>
  static FK_INLINE void eval(const Bin<T>& b, bool inverse, T v, M last, const S (&high)[2], T* out, T* ladj) {
    if (inverse) {
      const Shape<T> p = shape_at(b, theta_of_y(b, v, last, high[1]));
      *out = b.x0 + b.w * p.theta;
      *ladj = -log_slope(p);
    } else {
      const Shape<T> p = shape_at(b, theta_of_x(b, v, last, high[0]));
      *out = b.y0 + b.h * (p.num * p.inv_den);
      *ladj = log_slope(p);
    }
  }

  // d loss / d (bin, v)
  template <class T, class M, class S>
  static FK_INLINE BinGrad<T> grad(const Bin<T>& b, bool inverse, T v, M last, const S (&high)[2], T g_out, T g_ladj) {
    const Shape<T> p = shape_at(b, inverse ? theta_of_y(b, v, last, high[1]) : theta_of_x(b, v, last, high[0]));
    if (!inverse) return grad_of(b, p, g_out, g_ladj, g_out * slope_of(p) + g_ladj * ladj_slope(b, p));
    // Implicit function theorem: see the derivation. x moves with its bin, and ladj does not: what in g_x is of ladj
    // cancels, and in a bin that is all but gone its rounding would be all that is left.
    const T g_v = quotient(g_out - g_ladj * ladj_slope(b, p), slope_of(p));
    BinGrad<T> g = grad_of(b, p, -g_v, -g_ladj, -g_out);
    g.x = g_v;  // x0 keeps the rounding of w's: on the upper edge, which no parameter moves, they cancel to 0
    return g;
  }
};

template <class T, class S>
FK_INLINE T soft_clip(T u, S clip) {
  return quotient(u, 1 + clip * abs_(u));
}

// 1 / (1 + e^-u), from the smaller of the two exponentials.
template <class T>
FK_INLINE T logistic(T u) {
  const T e = exp_(-abs_(u)), q = reciprocal(1 + e);
  return select(u >= 0, q, e * q);
}

// Slope logit -> slope. It stops where the sum of two has a reciprocal that is no denormal, on a GPU too.
template <bool Clipped, class T, class S>
FK_INLINE T slope_value(T u, S min_slope, S clip) {
  if constexpr (Clipped) {
    return exp_(soft_clip(u, clip));
  } else {
    constexpr S kMost = sizeof(S) == 4 ? S(0x1p124) : S(0x1p1020);
    return min_(min_slope + max_(u, T{}) + log1p_short(exp_(-abs_(u))), T{} + kMost);
  }
}

// d slope / d logit.
template <bool Clipped, class T, class S>
FK_INLINE T slope_grad(T value, T u, S clip) {
  if constexpr (Clipped) {
    const T k = 1 - clip * abs_(soft_clip(u, clip));
    return value * k * k;
  } else {
    return logistic(u);
  }
}

}  // namespace fk::FK_ISA

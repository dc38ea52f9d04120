// The formulas of the linear rational spline (Dolatabadi et al. 2020), for a value type T as in rqs_math.h. A bin is
// two Moebius pieces, which meet at a share lambda of its width. Derivation: flowkernels/ops/rqs/README.md.
#pragma once
#include "rqs_math.h"

namespace fk::FK_ISA {

// A bin with the roots of its slopes and the shares of the width that its lower and its upper piece have.
template <class T>
struct SplitBin {
  T x0, w, inv_w, y0, h, root0, root1, inv_mean, lambda, rest;
};

template <class T>
FK_INLINE SplitBin<T> split_bin(const Bin<T>& b) {
  const T root0 = sqrt_(b.d0), root1 = sqrt_(b.d1), rest = 1 - b.lambda;
  const T inv_mean = reciprocal(b.lambda * root0 + rest * root1);
  return {b.x0, b.w, b.inv_w, b.y0, b.h, root0, root1, inv_mean, b.lambda, rest};
}

// The bin of the inverse map: a linear rational one as well, split at the height at which this one is.
template <class T>
FK_INLINE SplitBin<T> inverse_of(const SplitBin<T>& b) {
  const T inv = reciprocal(b.root0 * b.root1), q = b.inv_mean;
  return {b.y0,
          b.h,
          reciprocal(b.h),
          b.x0,
          b.w,
          b.root1 * inv,
          b.root0 * inv,
          reciprocal(q),
          b.lambda * b.root0 * q,
          b.rest * b.root1 * q};
}

// A position on the piece it fell into, counted from that piece's outer knot: mirrored at the bin's centre the
// upper piece of a bin is the lower one of a bin with its shares, and its slopes, exchanged.
template <class T>
struct Piece {
  decltype(T{} < T{}) upper;
  T lambda, rest;       // shares of the bin's width: the piece's, the other's
  T near, far, middle;  // roots of the slopes at its outer knot, at the bin's other knot, at the split
  T height;             // its share of the bin's height
  T t;                  // distance from its knot, of the bin's width
  T inv_den;            // 1 / (middle (lambda - t) + near t)
  T before, after;  // shares of the second and the first of these two terms: 0 and 1 at the knot, 1 and 0 at the split
  T root;           // of the slope
};

template <class T>
FK_INLINE Piece<T> piece_at(const SplitBin<T>& b, T theta) {
  Piece<T> p;
  p.upper = b.lambda < theta;
  p.lambda = select(p.upper, b.rest, b.lambda);
  p.rest = select(p.upper, b.lambda, b.rest);
  p.near = select(p.upper, b.root1, b.root0);
  p.far = select(p.upper, b.root0, b.root1);
  p.middle = b.h * b.inv_w * b.inv_mean;
  p.height = p.lambda * p.near * b.inv_mean;
  p.t = select(p.upper, 1 - theta, theta);
  const T left = p.middle * max_(p.lambda - p.t, T{}), passed = p.near * p.t;
  p.inv_den = reciprocal(left + passed);
  p.before = passed * p.inv_den;
  p.after = left * p.inv_den;
  p.root = quotient(p.near * p.middle * p.lambda, left + passed);  // 1 where the spline is the identity
  return p;
}

// (y - y0) / h
template <class T>
FK_INLINE T rise_of(const Piece<T>& p) {
  const T rise = p.height * p.before;
  return select(p.upper, 1 - rise, rise);
}

// d loss / d (bin, x), from d loss / d (y, ladj). Of the roots: d loss / d log root.
template <class T>
struct SplitGrad {
  T x0, w, y0, h, log0, log1, lambda, x;
};

template <class T>
FK_INLINE SplitGrad<T> grad_of(const SplitBin<T>& b, const Piece<T>& p, T theta, T gy, T gl) {
  const T rising = gy * b.h * p.height * p.before, g_rise = select(p.upper, -rising, rising);
  const T both = g_rise + 2 * gl, g_mean = -p.before * both;  // of the mean's log, as g_s is of that of h / w
  const T g_s = 2 * gl * p.before - g_rise * p.after;
  const T log_near = g_rise + p.after * both + p.height * g_mean, log_far = p.rest * p.far * b.inv_mean * g_mean;
  const T g_lambda =
      both * p.t * (p.near - p.middle) * quotient(p.inv_den, p.lambda) + g_mean * (p.near - p.far) * b.inv_mean;
  const T g_steepness = 2 * gl * (p.middle - p.near) * p.inv_den;
  const T g_theta = gy * b.w * (p.root * p.root) + select(p.upper, -g_steepness, g_steepness);
  SplitGrad<T> g;
  g.log0 = select(p.upper, log_far, log_near);
  g.log1 = select(p.upper, log_near, log_far);
  g.lambda = select(p.upper, -g_lambda, g_lambda);
  g.x = g_theta * b.inv_w;
  g.x0 = -g.x;
  g.h = gy * rise_of(p) + g_s * reciprocal(b.h);
  g.w = -(g_s + g_theta * theta) * b.inv_w;
  g.y0 = gy;
  return g;
}

struct Linear {
  static constexpr bool kSplits = true;

  template <class T>
  static FK_INLINE SplitBin<T> bin(const Bin<T>& b, bool inverse) {
    const SplitBin<T> s = split_bin(b);
    return inverse ? inverse_of(s) : s;
  }

  template <class T, class M, class S>
  static FK_INLINE void eval(const Bin<T>& b, bool inverse, T v, M last, const S (&high)[2], T* out, T* ladj) {
    const SplitBin<T> s = bin(b, inverse);
    const Piece<T> p = piece_at(s, theta_of_x(s, v, last, high[inverse]));
    *out = s.y0 + s.h * rise_of(p);
    *ladj = 2 * log_(p.root);  // whose square may be no number
  }

  template <class T, class M, class S>
  static FK_INLINE BinGrad<T> grad(const Bin<T>& b, bool inverse, T v, M last, const S (&high)[2], T g_out, T g_ladj) {
    const SplitBin<T> s = bin(b, inverse);
    const T theta = theta_of_x(s, v, last, high[inverse]);
    SplitGrad<T> g = grad_of(s, piece_at(s, theta), theta, g_out, g_ladj);
    if (inverse) {  // from the inverse's bin to the bin
      const T of_split = g.lambda * s.lambda * s.rest;
      g = {g.y0, g.h, g.x0, g.w, of_split - g.log0, -of_split - g.log1, quotient(of_split, b.lambda * (1 - b.lambda)),
           g.x};
    }
    const T g_d0 = quotient(0.5f * g.log0, b.d0), g_d1 = quotient(0.5f * g.log1, b.d1);
    return {g.x0, g.w, g.y0, g.h, g_d0, g_d1, g.lambda, g.x};
  }
};

}  // namespace fk::FK_ISA

// Between a spline's logits and its bin, and from the bin to the results: written once for a value type T, a pair of
// SIMD vectors on the CPU, float or double in CUDA. How the bin is found is each machine's own.
#pragma once
#include "rqs.h"
#include "rqs_math.h"

namespace fk::FK_ISA {

constexpr int kMaxBins = 128;

// RqsSpec in the arithmetic type.
//
// kLeast: the smallest bin, as a fraction of the box, where the setting allows none: far below the
// spacing of x, and large enough that h / w and its square stay finite.
template <class Scalar, bool Clip>
struct Constants {
  using S = Scalar;
  static constexpr bool kClipped = Clip;
  static constexpr double kLeast = sizeof(S) == 4 ? 1e-12 : 1e-24;
  int bins;
  Tails tails;
  S min_size[2], free_size[2], low[2], high[2];  // [0] widths / x, [1] heights / y
  S min_slope, logit_scale, exp2_scale, clip_size, clip_slope, edge_logit;

  explicit Constants(const RqsSpec& s) : bins(s.bins), tails(s.tails) {
    const double lo[2] = {s.left, s.bottom}, hi[2] = {s.right, s.top}, mn[2] = {s.min_width, s.min_height};
    for (int i = 0; i < 2; ++i) {
      low[i] = S(lo[i]);
      high[i] = S(hi[i]);
      min_size[i] = S((hi[i] - lo[i]) * (mn[i] > kLeast ? mn[i] : kLeast));
      free_size[i] = S((hi[i] - lo[i]) * (1 - mn[i] * s.bins));
    }
    min_slope = S(s.min_slope);
    logit_scale = S(s.logit_scale);
    exp2_scale = S((Clip ? 1 : s.logit_scale) * 1.4426950408889634);
    clip_size = S(s.clip_size);
    clip_slope = S(s.clip_slope);
    edge_logit = S(s.edge_logit);
  }

  // What a mass of 1 is in the box, of a softmax's inverse sum; i: of x or y.
  template <class T>
  FK_INLINE T unit_size(int i, T inv_sum) const {
    return inv_sum * free_size[i];
  }
};

// Where the value lies: bin number (as a real), and for x and y the unnormalised mass before
// and in the bin; slope logits at its two knots; the logit of the bin's split, where it has one.
template <class T>
struct Found {
  T k, before[2], in[2], u0, u1, inv_sum[2], u_lambda;
};

template <class V>
FK_INLINE Found<V> normalised(V sum_x, V sum_y) {
  const V inv = reciprocal(sum_x * sum_y);  // one division for both; each sum is between 1 and K
  Found<V> f = {};
  f.inv_sum[0] = sum_y * inv;
  f.inv_sum[1] = sum_x * inv;
  return f;
}

// Soft-clips the K logits in place where the parametrisation says so; returns their maximum.
template <class C, class V>
FK_INLINE V clip_and_max(const C& c, V* u) {
  if constexpr (C::kClipped) {
    // Far out the clip is at its limit, to the last digit; beyond, the product would be infinite, and its clip NaN.
    using S = typename ScalarOf<V>::S;
    const V far = splat<V>(S(0x1p60));
    for (int k = 0; k < c.bins; ++k) u[k] = soft_clip(min_(max_(u[k] * c.logit_scale, -far), far), c.clip_size);
  }
  V top = u[0];
  for (int k = 1; k < c.bins; ++k) top = max_(top, u[k]);
  return top;
}

// The sum of rows 0 .. k in two levels, eight rows at a time, what the upper level rounds away
// starting the next eight: its error is that of a few additions for any K. (A knot is such a sum, and
// a thin bin magnifies a knot's error by up to 1000.)
template <class V>
struct RunningSum {
  V done = {}, part = {};
  FK_INLINE V add(int k, V e) {
    part += e;
    const V total = done + part;
    if ((k & 7) == 7) {
      part -= total - done;
      done = total;
    }
    return total;
  }
  // The same sums where k is known once loops are unrolled: without additions of 0.
  FK_INLINE V add_unrolled(int k, V e) {
    part = k == 0 ? e : part + e;
    const V total = k < 8 ? part : done + part;
    if ((k & 7) == 7) {
      part = k < 8 ? V{} : part - (total - done);
      done = total;
    }
    return total;
  }
};

template <class Curve, class C, class T, class M>
FK_INLINE Bin<T> bin_of(const C& c, const Found<T>& f, M last) {
  T corner[2], size[2];
  for (int i = 0; i < 2; ++i) {
    const T unit_size = c.unit_size(i, f.inv_sum[i]);
    size[i] = unit_size * f.in[i] + c.min_size[i];
    corner[i] = f.k * c.min_size[i] + f.before[i] * unit_size + c.low[i];
    // The outer knot is the box's corner, exactly.
    corner[i] = select(last, c.high[i] - size[i], corner[i]);
  }
  Bin<T> r;
  r.x0 = corner[0];
  r.w = size[0];
  r.inv_w = reciprocal(size[0]);
  r.y0 = corner[1];
  r.h = size[1];
  r.d0 = slope_value<C::kClipped>(f.u0, c.min_slope, c.clip_slope);
  r.d1 = slope_value<C::kClipped>(f.u1, c.min_slope, c.clip_slope);
  if constexpr (Curve::kSplits) r.lambda = c.min_lambda + c.free_lambda * logistic(f.u_lambda);
  return r;
}

template <class Curve = Quadratic, class C, class T>
FK_INLINE void eval_found(const C& c, const Found<T>& f, bool inverse, T v, T* out, T* ladj) {
  using S = typename C::S;
  const auto inside = (v >= c.low[inverse]) & (v <= c.high[inverse]);
  const auto last = f.k == S(c.bins - 1);
  const Bin<T> bin = bin_of<Curve>(c, f, last);
  T y, l;
  Curve::eval(bin, inverse, v, last, c.high, &y, &l);
  y = min_(max_(y, T{} + c.low[!inverse]), T{} + c.high[!inverse]);
  *out = select(inside, y, v);
  *ladj = select(inside, l, T{});
}

// d loss / d v and / d logits of slopes and split; for widths and heights, what a bin's exponential is multiplied by to
// give the gradient of its logit: before, in and after the bin that was found.
template <class T>
struct FoundGrad {
  T v, u0, u1, u_lambda, before[2], in[2], after[2];
};

template <class Curve = Quadratic, class C, class T>
FK_INLINE FoundGrad<T> grad_found(const C& c, const Found<T>& f, bool inverse, T v, T g_out, T g_ladj) {
  using S = typename C::S;
  const auto inside = (v >= c.low[inverse]) & (v <= c.high[inverse]);
  const auto last = f.k == S(c.bins - 1);
  const Bin<T> bin = bin_of<Curve>(c, f, last);
  const BinGrad<T> g = Curve::grad(bin, inverse, v, last, c.high, g_out, g_ladj);

  const T zero = {};
  // The first bin's corner is the box's, which no parameter moves: it would only cancel, and leave its rounding.
  const auto moves = inside & (f.k > 0);
  const T g_corner[2] = {select(moves, g.x0, zero), select(moves, g.y0, zero)};
  const T g_size[2] = {select(inside, g.w, zero), select(inside, g.h, zero)};
  FoundGrad<T> r;
  for (int i = 0; i < 2; ++i) {
    const T scale = f.inv_sum[i] * (c.logit_scale * c.free_size[i]);
    // Softmax backward of a_j = corner before the bin, size in it, 0 after: a_j minus its mean, with the masses after
    // and in the bin rather than before it: in the last bin the one is 0, and what cancels in exact arithmetic is never
    // formed.
    const T after_mass = select(last, zero, 1 - (f.before[i] + f.in[i]) * f.inv_sum[i]);
    const T excess = g_corner[i] - g_size[i];
    const T low = g_corner[i] * after_mass + excess * (f.in[i] * f.inv_sum[i]);
    r.before[i] = low * scale;
    r.in[i] = (low - excess) * scale;
    r.after[i] = (low - g_corner[i]) * scale;
  }
  r.u0 = select(inside, g.d0 * slope_grad<C::kClipped>(bin.d0, f.u0, c.clip_slope), zero);
  r.u1 = select(inside, g.d1 * slope_grad<C::kClipped>(bin.d1, f.u1, c.clip_slope), zero);
  if constexpr (Curve::kSplits) {
    const T of_logit = c.free_lambda * logistic(f.u_lambda) * logistic(-f.u_lambda);
    r.u_lambda = select(inside, g.lambda * of_logit, zero);
  }
  r.v = select(inside, g.x, g_out);
  return r;
}

}  // namespace fk::FK_ISA

// The bin of one element on a GPU, by one thread, from the row of its params.
#pragma once
#include "../common/scalar.cuh"

#include "rqs_bin.h"

namespace fk::cuda {

// Rows R are pointers to S, or read as such.

// The logit of the slope at a knot, in the row that holds it; the tails decide the outer ones.
template <class C, class R, class S = typename C::S>
__device__ __forceinline__ S slope_logit(const C& c, const R& row, int knot) {
  const auto slopes = row + 2 * c.bins;
  if (c.tails == Tails::none) return slopes[knot];
  if (c.tails == Tails::circular) return slopes[knot == c.bins ? 0 : knot];
  return knot == 0 || knot == c.bins ? c.edge_logit : S(slopes[knot - 1]);
}

// What the bin number decides: the exponentials in it, and the slope logits at its knots. Widths and heights are less
// their largest, `top`.
template <class C, class R, class S = typename C::S>
__device__ __forceinline__ void read_bin(const C& c, const R& row, int bin, const S (&top)[2], Found<S>& f) {
  f.k = S(bin);
#pragma unroll
  for (int i = 0; i < 2; ++i) f.in[i] = exp2_nonpositive((row[i * c.bins + bin] - top[i]) * c.exp2_scale);
  f.u0 = slope_logit(c, row, bin);
  f.u1 = slope_logit(c, row, bin + 1);
}

// Sums of exponentials go to `sums`, one number in every `apart`, and are searched there. Leaves the widths and heights
// clipped, and their largest in `top`.
template <class C, class S = typename C::S>
__device__ __forceinline__ Found<S> find(const C& c, S* row, S* sums, int apart, int dir, S v, S (&top)[2]) {
  const int K = c.bins;
  S sum[2] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    S* u = row + i * K;
    top[i] = clip_and_max(c, u);
    RunningSum<S> running;
    for (int k = 0; k < K; ++k) {
      sum[i] = running.add(k, exp2_nonpositive((u[k] - top[i]) * c.exp2_scale));
      sums[(i * K + k) * apart] = sum[i];
    }
  }
  Found<S> f = normalised(sum[0], sum[1]);
  const S unit_size = (dir ? f.inv_sum[1] : f.inv_sum[0]) * c.free_size[dir];
  const S* searched = sums + dir * K * apart;
  int lo = 0, step = 1;  // the last knot known to be at or before v
  while (2 * step < K) step *= 2;
  for (; step > 0; step /= 2) {
    const int k = lo + step;
    if (k < K && v >= searched[(k - 1) * apart] * unit_size + (c.low[dir] + c.min_size[dir] * S(k))) lo = k;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) f.before[i] = lo > 0 ? sums[(i * K + lo - 1) * apart] : S(0);
  read_bin(c, row, lo, top, f);
  return f;
}

// Constants of a spline whose bins and tails the compiler knows.
template <int K, bool Clip>
struct FixedConstants : Constants<float, Clip> {
  static constexpr int bins = K, params = 3 * K - 1;
  static constexpr Tails tails = Tails::linear;
  using Constants<float, Clip>::Constants;
};

// With these, exponentials and their sums stay in registers, and the value is compared with every knot. Clipped widths
// and heights are left in the row.
template <class C, class R, class S = typename C::S>
__device__ __forceinline__ Found<S> find_fixed(const C& c, const R& row, int dir, S v, S (&exponentials)[2][C::bins]) {
  constexpr int K = C::bins;
  S top[2], sums[2][K];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    S u[K];
#pragma unroll
    for (int k = 0; k < K; ++k) u[k] = row[i * K + k];
    top[i] = clip_and_max(c, u);
    RunningSum<S> running;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if constexpr (C::kClipped) row[i * K + k] = u[k];
      exponentials[i][k] = exp2_nonpositive((u[k] - top[i]) * c.exp2_scale);
      sums[i][k] = running.add_unrolled(k, exponentials[i][k]);
    }
  }
  Found<S> f = normalised(sums[0][K - 1], sums[1][K - 1]);
  const S unit_size = (dir ? f.inv_sum[1] : f.inv_sum[0]) * c.free_size[dir];
  int bin = 0;
#pragma unroll
  for (int k = 1; k < K; ++k) {
    const S before = dir ? sums[1][k - 1] : sums[0][k - 1];
    const bool past = v >= before * unit_size + (c.low[dir] + c.min_size[dir] * S(k));
    bin = past ? k : bin;
#pragma unroll
    for (int i = 0; i < 2; ++i) f.before[i] = past ? sums[i][k - 1] : f.before[i];
  }
  read_bin(c, row, bin, top, f);
  return f;
}

}  // namespace fk::cuda

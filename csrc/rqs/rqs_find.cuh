// The bin of one element on a GPU, by one thread, from the row of its params.
#pragma once
#include "../common/scalar.cuh"

#include "rqs_bin.h"

namespace fk::cuda {

// The logit of the slope at a knot, in the row that holds it; the tails decide the outer ones.
template <class C, class S = typename C::S>
__device__ __forceinline__ S slope_logit(const C& c, const S* row, int knot) {
  const S* slopes = row + 2 * c.bins;
  if (c.tails == Tails::none) return slopes[knot];
  if (c.tails == Tails::circular) return slopes[knot == c.bins ? 0 : knot];
  return knot == 0 || knot == c.bins ? c.edge_logit : slopes[knot - 1];
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
  f.k = S(lo);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    f.before[i] = lo > 0 ? sums[(i * K + lo - 1) * apart] : S(0);
    f.in[i] = exp2_nonpositive((row[i * K + lo] - top[i]) * c.exp2_scale);
  }
  f.u0 = slope_logit(c, row, lo);
  f.u1 = slope_logit(c, row, lo + 1);
  return f;
}

}  // namespace fk::cuda

// The gradient of one element's row of params on a GPU, left in the row's place by the thread that has found its bin.
#pragma once
#include "rqs_find.cuh"

namespace fk::cuda {

// exponential(i, j): of the width or height in bin j; the row's are clipped, as `find` leaves them.
template <class C, class R, class F, class S = typename C::S>
__device__ __forceinline__ void replace_by_gradient(const C& c, const R& row, const Found<S>& f, const FoundGrad<S>& g,
                                                    const F& exponential) {
  const int K = c.bins, found = int(f.k);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const auto u = row + i * K;
    const auto of_logit = [&](int j, S e, S a) {
      if constexpr (C::kClipped) {
        const S q = 1 - c.clip_size * abs_(u[j]);
        a *= q * q;
      }
      return e * a;
    };
    const S in = of_logit(found, f.in[i], g.in[i]);
    for (int j = 0; j < K; ++j) u[j] = of_logit(j, exponential(i, j), j < found ? g.before[i] : g.after[i]);
    u[found] = in;
  }
  const auto slopes = row + 2 * K;
  const int n = K + (c.tails == Tails::linear ? -1 : c.tails == Tails::none ? 1 : 0);
  for (int j = 0; j < n; ++j) slopes[j] = 0;
  const auto add = [&](int knot, S of_knot) {
    if (c.tails == Tails::linear) {
      if (knot > 0 && knot < K) slopes[knot - 1] = of_knot;
    } else {
      slopes[c.tails == Tails::circular && knot == K ? 0 : knot] += of_knot;  // one bin: both
    }
  };
  add(found, g.u0);
  add(found + 1, g.u1);
}

// Of a row that `find` has left with its `top`.
template <class C, class R, class S = typename C::S>
__device__ __forceinline__ void replace_by_gradient(const C& c, const R& row, const Found<S>& f, const FoundGrad<S>& g,
                                                    const S (&top)[2]) {
  replace_by_gradient(c, row, f, g,
                      [&](int i, int j) { return exp2_nonpositive((row[i * c.bins + j] - top[i]) * c.exp2_scale); });
}

}  // namespace fk::cuda

// The gradient of one element's row of params on a GPU, left in the row's place by the thread that has found its bin.
#pragma once
#include "rqs_find.cuh"

namespace fk::cuda {

// `row` as `find` has left it, with its `top`.
template <class C, class S = typename C::S>
__device__ __forceinline__ void replace_by_gradient(const C& c, S* row, const Found<S>& f, const FoundGrad<S>& g,
                                                    const S (&top)[2]) {
  const int K = c.bins, found = int(f.k);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    S* u = row + i * K;
    for (int j = 0; j < K; ++j) {
      const S a = j == found ? g.in[i] : j < found ? g.before[i] : g.after[i];
      S out = exp2_nonpositive((u[j] - top[i]) * c.exp2_scale) * a;
      if constexpr (C::kClipped) {
        const S q = 1 - c.clip_size * abs_(u[j]);
        out *= q * q;
      }
      u[j] = out;
    }
  }
  const auto of_knot = [&](int knot) { return knot == found ? g.u0 : knot == found + 1 ? g.u1 : S(0); };
  S* slopes = row + 2 * K;
  const bool linear = c.tails == Tails::linear;
  const int n = K + (linear ? -1 : c.tails == Tails::none ? 1 : 0);
  for (int j = 0; j < n; ++j) slopes[j] = of_knot(j + (linear ? 1 : 0));
  if (c.tails == Tails::circular) slopes[0] += of_knot(K);
}

}  // namespace fk::cuda

// Products of a few units whose weights are used where they lie, for row blocks: of layers that are done a part at a
// time, so that no part fills panels, and small enough to be read as they are.
#pragma once
#include "../common/pair.h"
#include "gemm.h"

namespace fk::FK_ISA {

// acc[m] += sum over k of w[k * k_stride + m * m_stride] * a[k], for N units and a row block of activations, in chains
// as those of a panel.
template <int N, class S, class V = typename Simd<S>::V>
FK_INLINE void multiply_units(const S* w, int64_t k_stride, int64_t m_stride, const S* a, int64_t depth, V acc[N][2]) {
  for (int64_t from = 0; from < depth; from += kChain) {
    const int64_t end = from + kChain < depth ? from + kChain : depth;
    V part[N][2] = {};
    for (int64_t k = from; k < end; ++k) {
      const V b0 = load<V>(a + k * kRowBlock<S>), b1 = load<V>(a + k * kRowBlock<S> + kLanes<S>);
#pragma GCC unroll 4
      for (int m = 0; m < N; ++m) {
        const V s = splat<V>(w[k * k_stride + m * m_stride]);
        part[m][0] += s * b0;
        part[m][1] += s * b1;
      }
    }
    for (int m = 0; m < N; ++m) {
      acc[m][0] += part[m][0];
      acc[m][1] += part[m][1];
    }
  }
}

// The same for `units` units, each given to put(m, sum). As many at once as fill the pipeline.
template <class S, class Put>
FK_INLINE void products(const S* w, int64_t k_stride, int64_t m_stride, const S* a, int64_t depth, int64_t units,
                        const Put& put) {
  using V = typename Simd<S>::V;
  const auto some = [&](auto count, int64_t from) {
    constexpr int N = sizeof(count);
    V acc[N][2] = {};
    multiply_units<N>(w + from * m_stride, k_stride, m_stride, a, depth, acc);
    for (int m = 0; m < N; ++m) put(from + m, Pair<V>{acc[m][0], acc[m][1]});
  };
  int64_t m = 0;
  for (; m + 4 <= units; m += 4) some(int32_t(), m);
  for (; m + 2 <= units; m += 2) some(int16_t(), m);
  if (m < units) some(char(), m);
}

}  // namespace fk::FK_ISA

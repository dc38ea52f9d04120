// The product at the bottom of every masked layer: a panel of kPanel units against a block of kRowBlock rows.
//
// Activations live feature-major, [feature][kRowBlock rows], so that SIMD lanes are rows of the batch: a unit is then
// one broadcast weight per input, permuting units costs nothing, and whatever follows (bias, activation, residual,
// a spline) works on whole vectors. kPanel x 2 sums stay in registers: 24 of AVX-512's 32, 12 of AVX2's 16.
#pragma once
#include "../common/simd.h"

namespace fk::FK_ISA {

#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kPanel = 12;
#else
inline constexpr int kPanel = 6;
#endif
template <class S>
inline constexpr int kRowBlock = 2 * kLanes<S>;

// acc[m] += sum over k of w[k * KStride + m * MStride] * a[k * a_stride .. + kRowBlock].
template <int KStride, int MStride, class S, class V = typename Simd<S>::V>
FK_INLINE void multiply(const S* w, const S* a, int64_t a_stride, int64_t depth, V acc[kPanel][2]) {
  for (int64_t k = 0; k < depth; ++k) {
    const V b0 = load<V>(a), b1 = load<V>(a + kLanes<S>);
#pragma GCC unroll 12
    for (int m = 0; m < kPanel; ++m) {
      const V s = splat<V>(w[m * MStride]);
      acc[m][0] += s * b0;
      acc[m][1] += s * b1;
    }
    w += KStride;
    a += a_stride;
  }
}

// Products added up in one chain before they join the sum of the others: the error of a chain grows with its length.
// (At a depth of 1024 one chain errs by 7 times what torch's product does.)
constexpr int64_t kChain = 128;

// A panel of packed weights [depth][kPanel] against a row block of activations [depth][kRowBlock].
template <class S, class V = typename Simd<S>::V>
FK_INLINE void multiply_panel(const S* w, const S* a, int64_t depth, V acc[kPanel][2]) {
  multiply<kPanel, 1>(w, a, kRowBlock<S>, depth < kChain ? depth : kChain, acc);
  for (int64_t k = kChain; k < depth; k += kChain) {
    V part[kPanel][2] = {};
    multiply<kPanel, 1>(w + k * kPanel, a + k * kRowBlock<S>, kRowBlock<S>, depth - k < kChain ? depth - k : kChain,
                        part);
    for (int m = 0; m < kPanel; ++m) {
      acc[m][0] += part[m][0];
      acc[m][1] += part[m][1];
    }
  }
}

// The same for a block of which only the first half of the rows is wanted, as when people sample one point at a time:
// the sums of the other half stay as they are. In the same order: a row's bits do not depend on the batch it is in.
template <class S, class V = typename Simd<S>::V>
FK_INLINE void multiply_half_panel(const S* w, const S* a, int64_t depth, V acc[kPanel][2]) {
  V sum[kPanel];
  for (int m = 0; m < kPanel; ++m) sum[m] = acc[m][0];
  for (int64_t from = 0; from < depth; from += kChain) {
    const int64_t end = from + kChain < depth ? from + kChain : depth;
    V part[kPanel];
    for (int m = 0; m < kPanel; ++m) part[m] = from == 0 ? sum[m] : V{};
    for (int64_t k = from; k < end; ++k) {
      const V b = load<V>(a + k * kRowBlock<S>);
#pragma GCC unroll 12
      for (int m = 0; m < kPanel; ++m) part[m] += splat<V>(w[k * kPanel + m]) * b;
    }
    for (int m = 0; m < kPanel; ++m) sum[m] = from == 0 ? part[m] : sum[m] + part[m];
  }
  for (int m = 0; m < kPanel; ++m) acc[m][0] = sum[m];
}

// Gradients g [kPanel][kRowBlock] of a panel against the row-major activations [rows][..] of the same rows, the first
// of the block: the weight gradients of the panel for 2 L inputs.
template <class S, class V = typename Simd<S>::V>
FK_INLINE void multiply_rows(const S* g, const S* a, int64_t a_stride, int64_t rows, V acc[kPanel][2]) {
  multiply<1, kRowBlock<S>>(g, a, a_stride, rows, acc);
}

}  // namespace fk::FK_ISA

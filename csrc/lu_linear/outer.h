// Sums over pixels of the outer product of two row blocks: the gradient of a matrix. Both lie [channel][pixel], so
// lanes are pixels and every lane keeps a sum of its own; a block of kOuterG x kOuterX sums stays in registers for a
// whole tile, and only then are lanes added up, as far as the 128-bit groups (the rest once per call).
#pragma once
#include "../net/row_blocks.h"

namespace fk::FK_ISA {

inline constexpr int kOuterG = kPanel == 12 ? 4 : 3, kOuterX = kPanel == 12 ? 6 : 4;

// kQuad vectors -> one whose 128-bit groups hold, for each of them, the sum over its own group.
FK_INLINE f32 group_sums(const f32* v) {
  const f32 ab = zip_lo(v[0], v[1]) + zip_hi(v[0], v[1]), cd = zip_lo(v[2], v[3]) + zip_hi(v[2], v[3]);
  return (f32)zip_lo((f64)ab, (f64)cd) + (f32)zip_hi((f64)ab, (f64)cd);
}
FK_INLINE f64 group_sums(const f64* v) { return zip_lo(v[0], v[1]) + zip_hi(v[0], v[1]); }

enum class Part { all, lower, upper };

// The sums of one thread: [block of g][block of x][kOuterG * kOuterX / kQuad vectors].
template <class S>
struct OuterSums {
  S* data;
  int64_t g_blocks, x_blocks;
  static constexpr int kBlock = kOuterG * kOuterX / kQuad<S> * kLanes<S>;

  static int64_t g_width(int64_t channels) { return round_up(channels, kOuterG); }
  static int64_t x_width(int64_t channels) { return round_up(channels, kOuterX); }
  OuterSums(S* data, int64_t channels)
      : data(data), g_blocks(g_width(channels) / kOuterG), x_blocks(x_width(channels) / kOuterX) {}
  int64_t size() const { return g_blocks * x_blocks * kBlock; }

  // Adds sum over pixels of g[i] x[j], for all i and j or (in whole blocks) those of a triangle. Row blocks are
  // g_stride and x_stride apart; rows past the channels are read.
  void add(Part part, const S* g, int64_t g_stride, const S* x, int64_t x_stride, int64_t blocks) const {
    using V = typename Simd<S>::V;
    constexpr int L = kLanes<S>, R = kRowBlock<S>, Q = kQuad<S>;
    for (int64_t i = 0; i < g_blocks; ++i) {
      const int64_t begin = part == Part::upper ? i * kOuterG / kOuterX : 0;
      const int64_t below = ((i + 1) * kOuterG + kOuterX - 1) / kOuterX;
      const int64_t end = part == Part::lower && below < x_blocks ? below : x_blocks;
      S* to = data + (i * x_blocks + begin) * kBlock;
      for (int64_t j = begin; j < end; ++j) {
        V acc[kOuterG * kOuterX] = {};
        const S *gs = g + i * kOuterG * R, *xs = x + j * kOuterX * R;
        for (int64_t s = 0; s < blocks; ++s, gs += g_stride, xs += x_stride)
          for (int h = 0; h < R; h += L) {
            V b[kOuterX];
#pragma GCC unroll 6
            for (int n = 0; n < kOuterX; ++n) b[n] = load<V>(xs + n * R + h);
#pragma GCC unroll 4
            for (int m = 0; m < kOuterG; ++m) {
              const V a = load<V>(gs + m * R + h);
#pragma GCC unroll 6
              for (int n = 0; n < kOuterX; ++n) acc[m * kOuterX + n] += a * b[n];
            }
          }
#pragma GCC unroll 12
        for (int q = 0; q < kOuterG * kOuterX / Q; ++q, to += L) store(to, load<V>(to) + group_sums(acc + q * Q));
      }
    }
  }

  // Element (i, j) of the sum.
  double at(int64_t i, int64_t j) const {
    const int64_t e = i % kOuterG * kOuterX + j % kOuterX;
    const S* from = data + ((i / kOuterG) * x_blocks + j / kOuterX) * kBlock + e / kQuad<S> * kLanes<S> + e % kQuad<S>;
    double sum = 0;
    for (int l = 0; l < kLanes<S>; l += kQuad<S>) sum += double(from[l]);
    return sum;
  }
};

}  // namespace fk::FK_ISA

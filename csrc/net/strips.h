// Moves rows of a row-major matrix to strips and back: memory holds [row][feature], kernels compute on
// [strip][feature][kStrip rows]. A strip may hold its features in any order, at no cost.
#pragma once
#include "../common/transpose.h"
#include "gemm.h"

namespace fk::FK_ISA {

FK_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Rows [first, first + rows) of the batch, as strips.
struct RowTile {
  int64_t first, rows;
  template <class S>
  FK_INLINE int64_t strips() const {
    return (rows + kStrip<S> - 1) / kStrip<S>;
  }
  // One vector holds them all.
  template <class S>
  FK_INLINE bool half() const {
    return rows <= kLanes<S>;
  }
};

// The kStrip row pointers of a strip. Rows past the end: `past`, or the tile's first row where that is null.
template <class S>
FK_INLINE void strip_rows(const RowTile& t, int64_t strip, S* base, int64_t stride, S* past, S** rows) {
  for (int l = 0; l < kStrip<S>; ++l) {
    const int64_t r = strip * kStrip<S> + l;
    rows[l] = r < t.rows ? base + (t.first + r) * stride : past ? past : base + t.first * stride;
  }
}

// A strip of n features from the rows it is made of; feature j lands in row rank[j] (j where rank is null).
template <class S>
FK_INLINE void load_strip(const S* const* rows, int64_t n, const int32_t* rank, S* out) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>, Q = kQuad<S>;
  int64_t j = 0;
  for (; j + Q <= n; j += Q)
    for (int g = 0; g < 2; ++g) {
      V v[Q];
      gather_block(rows + g * L, j, v);
      for (int i = 0; i < Q; ++i) store(out + (rank ? rank[j + i] : j + i) * kStrip<S> + g * L, v[i]);
    }
  for (; j < n; ++j)
    for (int l = 0; l < kStrip<S>; ++l) out[(rank ? rank[j] : j) * kStrip<S> + l] = rows[l][j];
}

// The way back.
template <class S>
FK_INLINE void store_strip(const S* in, int64_t n, const int32_t* rank, S* const* rows) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>, Q = kQuad<S>;
  int64_t j = 0;
  for (; j + Q <= n; j += Q)
    for (int g = 0; g < 2; ++g) {
      V v[Q];
      for (int i = 0; i < Q; ++i) v[i] = load<V>(in + (rank ? rank[j + i] : j + i) * kStrip<S> + g * L);
      scatter_block(rows + g * L, j, v);
    }
  for (; j < n; ++j)
    for (int l = 0; l < kStrip<S>; ++l) rows[l][j] = in[(rank ? rank[j] : j) * kStrip<S> + l];
}

// x [.., n] -> strips of `width` rows.
template <class S>
void load_strips(const RowTile& t, const S* x, int64_t stride, int64_t n, const int32_t* rank, int64_t width, S* out) {
  for (int64_t s = 0; s < t.strips<S>(); ++s, out += width * kStrip<S>) {
    const S* rows[kStrip<S>];
    strip_rows<const S>(t, s, x, stride, nullptr, rows);
    load_strip(rows, n, rank, out);
  }
}

// Strips -> y [.., n], rows n apart. `spare`: n scalars where rows past the end go.
template <class S>
void store_strips(const RowTile& t, const S* in, int64_t width, const int32_t* rank, int64_t n, S* y, S* spare) {
  for (int64_t s = 0; s < t.strips<S>(); ++s, in += width * kStrip<S>) {
    S* rows[kStrip<S>];
    strip_rows<S>(t, s, y, n, spare, rows);
    store_strip(in, n, rank, rows);
  }
}

// Strips of n features -> [n / kStrip][rows][kStrip features]: row-major again, in the strips' order, cut into
// columns as wide as a register block so that no two rows of a block share a cache set.
template <class S>
void turn_strips(const RowTile& t, const S* in, int64_t width, int64_t n, S* out) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>, Q = kQuad<S>;
  const int64_t strips = t.strips<S>(), block = strips * kStrip<S> * kStrip<S>;
  for (int64_t s = 0; s < strips; ++s, in += width * kStrip<S>)
    for (int64_t j = 0; j < n; j += Q) {
      S* to = out + j / kStrip<S> * block + s * kStrip<S> * kStrip<S> + j % kStrip<S>;
      for (int g = 0; g < 2; ++g) {
        S* rows[L];
        for (int l = 0; l < L; ++l) rows[l] = to + (g * L + l) * kStrip<S>;
        V v[Q];
        for (int i = 0; i < Q; ++i)  // the last block repeats the last feature: a strip may end there
          v[i] = load<V>(in + (j + i < n ? j + i : n - 1) * kStrip<S> + g * L);
        scatter_block(rows, 0, v);
      }
    }
}

}  // namespace fk::FK_ISA

// Moves rows of a row-major matrix to row blocks and back: memory holds [row][feature], kernels compute on
// [row block][feature][kRowBlock rows]. A row block may hold its features in any order, at no cost.
#pragma once
#include "../common/transpose.h"
#include "gemm.h"

namespace fk::FK_ISA {

FK_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Rows [first, first + rows) of the batch, as row blocks.
struct RowTile {
  int64_t first, rows;
  template <class S>
  FK_INLINE int64_t blocks() const {
    return (rows + kRowBlock<S> - 1) / kRowBlock<S>;
  }
  // One vector holds them all.
  template <class S>
  FK_INLINE bool half() const {
    return rows <= kLanes<S>;
  }
};

// The kRowBlock row pointers of a row block. Rows past the end: `past`, or the tile's first row where that is null.
template <class S>
FK_INLINE void row_pointers(const RowTile& t, int64_t block, S* base, int64_t stride, S* past, S** rows) {
  for (int l = 0; l < kRowBlock<S>; ++l) {
    const int64_t r = block * kRowBlock<S> + l;
    rows[l] = r < t.rows ? base + (t.first + r) * stride : past ? past : base + t.first * stride;
  }
}

// A row block of n features from the rows it is made of; feature j lands in row rank[j] (j where rank is null).
template <class S>
FK_INLINE void load_row_block(const S* const* rows, int64_t n, const int32_t* rank, S* out) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>, Q = kQuad<S>;
  int64_t j = 0;
  for (; j + Q <= n; j += Q)
    for (int g = 0; g < 2; ++g) {
      V v[Q];
      gather_block(rows + g * L, j, v);
      for (int i = 0; i < Q; ++i) store(out + (rank ? rank[j + i] : j + i) * kRowBlock<S> + g * L, v[i]);
    }
  for (; j < n; ++j)
    for (int l = 0; l < kRowBlock<S>; ++l) out[(rank ? rank[j] : j) * kRowBlock<S> + l] = rows[l][j];
}

// The way back.
template <class S>
FK_INLINE void store_row_block(const S* in, int64_t n, const int32_t* rank, S* const* rows) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>, Q = kQuad<S>;
  int64_t j = 0;
  for (; j + Q <= n; j += Q)
    for (int g = 0; g < 2; ++g) {
      V v[Q];
      for (int i = 0; i < Q; ++i) v[i] = load<V>(in + (rank ? rank[j + i] : j + i) * kRowBlock<S> + g * L);
      scatter_block(rows + g * L, j, v);
    }
  for (; j < n; ++j)
    for (int l = 0; l < kRowBlock<S>; ++l) rows[l][j] = in[(rank ? rank[j] : j) * kRowBlock<S> + l];
}

// x [.., n] -> row blocks of `width` rows.
template <class S>
void load_row_blocks(const RowTile& t, const S* x, int64_t stride, int64_t n, const int32_t* rank, int64_t width,
                     S* out) {
  for (int64_t s = 0; s < t.blocks<S>(); ++s, out += width * kRowBlock<S>) {
    const S* rows[kRowBlock<S>];
    row_pointers<const S>(t, s, x, stride, nullptr, rows);
    load_row_block(rows, n, rank, out);
  }
}

// Row blocks -> y [.., n], rows n apart. `spare`: n scalars where rows past the end go.
template <class S>
void store_row_blocks(const RowTile& t, const S* in, int64_t width, const int32_t* rank, int64_t n, S* y, S* spare) {
  for (int64_t s = 0; s < t.blocks<S>(); ++s, in += width * kRowBlock<S>) {
    S* rows[kRowBlock<S>];
    row_pointers<S>(t, s, y, n, spare, rows);
    store_row_block(in, n, rank, rows);
  }
}

// Row blocks of n features -> [n / kRowBlock][rows][kRowBlock features]: row-major again, in the row blocks' order, cut
// into columns as wide as a register block so that no two rows of a block share a cache set.
template <class S>
void transpose_row_blocks(const RowTile& t, const S* in, int64_t width, int64_t n, S* out) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>, Q = kQuad<S>;
  const int64_t blocks = t.blocks<S>(), block = blocks * kRowBlock<S> * kRowBlock<S>;
  for (int64_t s = 0; s < blocks; ++s, in += width * kRowBlock<S>)
    for (int64_t j = 0; j < n; j += Q) {
      S* to = out + j / kRowBlock<S> * block + s * kRowBlock<S> * kRowBlock<S> + j % kRowBlock<S>;
      for (int g = 0; g < 2; ++g) {
        S* rows[L];
        for (int l = 0; l < L; ++l) rows[l] = to + (g * L + l) * kRowBlock<S>;
        V v[Q];
        for (int i = 0; i < Q; ++i)  // the last block repeats the last feature: a row block may end there
          v[i] = load<V>(in + (j + i < n ? j + i : n - 1) * kRowBlock<S> + g * L);
        scatter_block(rows, 0, v);
      }
    }
}

}  // namespace fk::FK_ISA

// Products with triangular matrices, and their inverses, on row blocks of pixels, in place. Panels of kPanel rows of
// the matrix against the rows of the block they depend on, as in the masked layers' product; inside a panel a solve is
// kPanel steps on sums that stay in registers.
#pragma once
#include "../common/arena.h"
#include "../net/gemm.h"
#include "../net/row_blocks.h"

namespace fk::FK_ISA {

// A triangular matrix in the caller's memory: element (i, j) off the diagonal at data[i * row + j * column].
template <class S>
struct Triangle {
  const S* data;
  int64_t row, column, size;
  bool lower;
  const S* diagonal;  // null: ones

  Triangle transposed() const { return {data, column, row, size, !lower, diagonal}; }
  Triangle or_none(bool wanted) const { return {data, row, column, wanted ? size : 0, lower, diagonal}; }
  S at(int64_t i, int64_t j) const {
    if (i == j) return diagonal ? diagonal[i] : S(1);
    return (i > j) == lower ? data[i * row + j * column] : S(0);
  }
};

// Packed for `product` or `solve`.
template <class S>
struct PackedTriangle {
  Triangle<S> t;
  bool inverse;
  S* panels;   // [panel][depth][kPanel]; negated for a solve
  S* blocks;   // solve: [panel][kPanel][kPanel], the negated triangle on the diagonal, column by column
  S* reverse;  // solve: [width], 1 / diagonal

  int64_t width() const { return round_up(t.size, kPanel); }
  int64_t count() const { return width() / kPanel; }
  // The rows of the block that panel p takes in: [begin, end).
  int64_t begin(int64_t p) const { return t.lower ? 0 : inverse ? end_of(p) : p * kPanel; }
  int64_t end(int64_t p) const { return !t.lower ? t.size : inverse ? p * kPanel : end_of(p); }
  int64_t end_of(int64_t p) const { return (p + 1) * kPanel < t.size ? (p + 1) * kPanel : t.size; }

  // `reversed`: 1 / diagonal where the caller knows it better than by dividing; null: ones.
  PackedTriangle(const Triangle<S>& t, bool inverse, const S* reversed, Arena& arena) : t(t), inverse(inverse) {
    int64_t size = 0;
    for (int64_t p = 0; p < count(); ++p) size += (end(p) - begin(p)) * kPanel;
    panels = arena.take<S>(size_t(size));
    blocks = inverse ? arena.take<S>(size_t(width() * kPanel)) : nullptr;
    reverse = inverse ? arena.take<S>(size_t(width())) : nullptr;
    if (arena.counts()) return;
    S* to = panels;
    for (int64_t p = 0; p < count(); ++p) {
      const int64_t first = p * kPanel;
      for (int64_t k = begin(p); k < end(p); ++k, to += kPanel)
        for (int m = 0; m < kPanel; ++m) {
          const S v = first + m < t.size ? t.at(first + m, k) : S(0);
          to[m] = inverse ? -v : v;
        }
      for (int k = 0; inverse && k < kPanel; ++k)
        for (int m = 0; m < kPanel; ++m) {
          const bool inside = k != m && first + m < t.size && first + k < t.size;
          blocks[(first + k) * kPanel + m] = inside ? -t.at(first + m, first + k) : S(0);
        }
    }
    for (int64_t i = 0; inverse && i < width(); ++i) reverse[i] = reversed && i < t.size ? reversed[i] : S(1);
  }
};

// Rows [from, to) of a row block <- 0.
template <class S>
FK_INLINE void clear_rows(S* z, int64_t from, int64_t to) {
  for (int64_t i = from * kRowBlock<S>; i < to * kRowBlock<S>; ++i) z[i] = 0;
}

// sums <- the panel's rows of T^-1 sums, given that everything outside the panel has been taken off.
template <bool Lower, class S, class V = typename Simd<S>::V>
FK_INLINE void solve_block(const S* block, const S* reverse, V acc[kPanel][2]) {
#pragma GCC unroll 12
  for (int i = 0; i < kPanel; ++i) {
    const int k = Lower ? i : kPanel - 1 - i;
    const V r = splat<V>(reverse[k]);
    acc[k][0] *= r;
    acc[k][1] *= r;
#pragma GCC unroll 12
    for (int m = Lower ? k + 1 : 0; m < (Lower ? kPanel : k); ++m) {
      const V w = splat<V>(block[k * kPanel + m]);
      acc[m][0] += w * acc[k][0];
      acc[m][1] += w * acc[k][1];
    }
  }
}

// z [width][kRowBlock] <- T z, or T^-1 z. Rows past the matrix's are 0 before: a NaN of an earlier block would spread.
template <class S>
void apply(const PackedTriangle<S>& p, S* z) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>, R = kRowBlock<S>;
  // A product must not overwrite what later panels read, a solve reads what earlier ones wrote.
  const bool ascending = p.t.lower == p.inverse;
  const S* w = p.panels;
  if (!ascending)
    for (int64_t i = 0; i < p.count(); ++i) w += (p.end(i) - p.begin(i)) * kPanel;
  for (int64_t i = 0; i < p.count(); ++i) {
    const int64_t panel = ascending ? i : p.count() - 1 - i, depth = p.end(panel) - p.begin(panel);
    if (!ascending) w -= depth * kPanel;
    S* const at = z + panel * kPanel * R;
    V acc[kPanel][2];
#pragma GCC unroll 12
    for (int m = 0; m < kPanel; ++m)
      for (int g = 0; g < 2; ++g) acc[m][g] = p.inverse ? load<V>(at + m * R + g * L) : V{};
    multiply_panel(w, z + p.begin(panel) * R, depth, acc);
    if (p.inverse) {
      const S *block = p.blocks + panel * kPanel * kPanel, *reverse = p.reverse + panel * kPanel;
      p.t.lower ? solve_block<true>(block, reverse, acc) : solve_block<false>(block, reverse, acc);
    }
#pragma GCC unroll 12
    for (int m = 0; m < kPanel; ++m)
      for (int g = 0; g < 2; ++g) store(at + m * R + g * L, acc[m][g]);
    if (ascending) w += depth * kPanel;
  }
}

}  // namespace fk::FK_ISA

// The linear map of a call, packed: one product with the whole matrix, or one step per triangle.
#pragma once
#include <cmath>

#include "../common/parallel.h"
#include "lu_linear.h"
#include "pixels.h"
#include "triangle.h"

namespace fk::FK_ISA {

// W = P L U with the diagonal in U. Row blocks hold channels in the order that L and U know; `rank` says where a
// channel of the permuted side stands in it.
template <class S>
struct Factors {
  int64_t C;
  int32_t* rank = nullptr;  // null: no permutation
  S *diagonal, *reverse;    // of U, and 1 / that
  S* bias = nullptr;        // by rank
  Triangle<S> L, U;

  Factors(const LuArgs& a, Arena& arena) : C(a.channels) {
    using V = typename Simd<S>::V;
    const int64_t room = round_up(C, kLanes<S>);
    diagonal = arena.take<S>(size_t(room));
    reverse = arena.take<S>(size_t(room));
    if (a.permutation) rank = arena.take<int32_t>(size_t(C));
    if (a.bias) bias = arena.take<S>(size_t(C));
    L = {static_cast<const S*>(a.lower), C, 1, C, true, nullptr};
    U = {static_cast<const S*>(a.upper), C, 1, C, false, diagonal};
    if (arena.counts()) return;
    const S *log_s = static_cast<const S*>(a.log_s), *sign = static_cast<const S*>(a.sign_s);
    for (int64_t i = 0; i < room; ++i) diagonal[i] = i < C ? log_s[i] : S(0);
    for (int64_t i = 0; i < room; i += kLanes<S>) {
      const V v = load<V>(diagonal + i);
      store(diagonal + i, exp_(v));
      store(reverse + i, exp_(-v));
    }
    for (int64_t i = 0; i < C; ++i) {
      diagonal[i] *= sign[i];
      reverse[i] /= sign[i];
      if (rank) rank[i] = int32_t(a.permutation[i]);
    }
    for (int64_t i = 0; bias && i < C; ++i) bias[at(i)] = static_cast<const S*>(a.bias)[i];
  }
  int64_t at(int64_t channel) const { return rank ? rank[channel] : channel; }
};

// A row-major matrix as pixels of channels: pixels are its columns, or its rows.
template <class S>
Channels by_columns(S* matrix, int64_t C) {
  return {matrix, 0, C, 1};
}
template <class S>
Channels by_rows(S* matrix, int64_t C) {
  return {matrix, 0, 1, C};
}

// out <- T in, for C pixels.
template <class S>
void multiply_square(const PackedTriangle<S>& T, const Channels& in, const Channels& out, int threads) {
  const int64_t C = T.t.size, blocks = (C + kRowBlock<S> - 1) / kRowBlock<S>;
  parallel_for(blocks, 1 + kGrainWork / (C * C * kRowBlock<S>), threads, [&](int64_t b, int64_t e) {
    struct Tile {
      S *z, *spare;
    };
    const Tile tile = in_scratch(Scratch::tile, [&](Arena& arena) {
      return Tile{arena.take<S>(size_t(T.width() * kRowBlock<S>)), arena.take<S>(size_t(C))};
    });
    for (; b < e; ++b) {
      const PixelBlock<S> block(b * kRowBlock<S>, 1, C);
      block.load_from(in, C, nullptr, tile.z);
      clear_rows(tile.z, C, T.width());
      apply(T, tile.z);
      block.store_to(out, tile.z, C, nullptr, tile.spare);
    }
  });
}

// y = W x as one product, rows in the order of y; or x = W^T y.
template <class S>
struct Whole {
  int64_t C = 0;
  S* panels = nullptr;  // [panel][C][kPanel]
  S* bias = nullptr;    // [width], in the order of the rows
  S* matrix = nullptr;  // L U, by rows

  int64_t count() const { return (C + kPanel - 1) / kPanel; }

  Whole() = default;
  Whole(const Factors<S>& f, Arena& arena, int threads) : C(f.C) {
    const int64_t width = round_up(C, kPanel);
    matrix = arena.take<S>(size_t(C * C));
    S* const upper = arena.take<S>(size_t(C * C));
    const PackedTriangle<S> L(f.L, false, nullptr, arena);
    panels = arena.take<S>(size_t(width * C));
    bias = arena.take<S>(size_t(width));
    if (arena.counts()) return;
    for (int64_t i = 0; i < C; ++i)
      for (int64_t j = 0; j < C; ++j) upper[i * C + j] = f.U.at(i, j);
    multiply_square(L, by_columns(upper, C), by_columns(matrix, C), threads);
    for (int64_t i = 0; i < width; ++i) bias[i] = S(0);
  }

  void pack(const Factors<S>& f, bool transposed) {
    S* to = panels;
    for (int64_t first = 0; first < C; first += kPanel)
      for (int64_t k = 0; k < C; ++k, to += kPanel)
        for (int64_t m = 0; m < kPanel; ++m) {
          const int64_t i = first + m;
          to[m] = i >= C ? S(0) : transposed ? matrix[k * C + i] : matrix[f.at(i) * C + k];
        }
    for (int64_t i = 0; f.bias && !transposed && i < C; ++i) bias[i] = f.bias[f.at(i)];
  }

  // z [C][kRowBlock], rows `stride` apart -> out, rows out_stride apart.
  void apply(const S* z, int64_t stride, S* out, int64_t out_stride) const {
    using V = typename Simd<S>::V;
    constexpr int L = kLanes<S>, R = kRowBlock<S>;
    for (int64_t first = 0; first < C; first += kPanel) {
      V acc[kPanel][2];
#pragma GCC unroll 12
      for (int m = 0; m < kPanel; ++m) acc[m][0] = acc[m][1] = splat<V>(bias[first + m]);
      const S* w = panels + first * C;
      if (stride == R)
        multiply_panel(w, z, C, acc);
      else
        multiply<kPanel, 1>(w, z, stride, C, acc);  // C <= kPanel: one chain
      const int rows = C - first < kPanel ? int(C - first) : kPanel;
      for (int m = 0; m < rows; ++m)
        for (int g = 0; g < 2; ++g) store(out + (first + m) * out_stride + g * L, acc[m][g]);
    }
  }
};

template <class S>
void add_bias(const S* bias, int64_t C, S sign, S* z) {
  for (int64_t c = 0; c < C; ++c)
    for (int l = 0; l < kRowBlock<S>; ++l) z[c * kRowBlock<S> + l] += sign * bias[c];
}

// Whether the whole matrix is formed. The products with the two triangles take as many multiply-adds a pixel, plus
// those on the wrong side of the diagonal and a pass over the pixels; forming costs C^3 / 2 once, and backward saves
// one product more by it. Measured, see the op's README.
inline bool forms_matrix(const LuArgs& a, bool backward) {
  const int64_t square = a.channels * a.channels;
  return !a.inverse && a.count() >= (backward ? 32 + square / 80 : 64 + square / 20);
}

// The logarithm of element c of the diagonal's size. Of signs that are 1 and -1 it is log_s.
template <class S>
double log_of_diagonal(const LuArgs& a, int64_t c) {
  const double size = std::abs(double(static_cast<const S*>(a.sign_s)[c]));
  const double log_s = double(static_cast<const S*>(a.log_s)[c]);
  return size == 1 ? log_s : log_s + std::log(size);
}

// log |det| of the call's map.
template <class S>
S log_determinant(const LuArgs& a) {
  double sum = 0;
  for (int64_t c = 0; c < a.channels; ++c) sum += log_of_diagonal<S>(a, c);
  return S(a.inverse ? -sum : sum);
}

// Everything of a forward call, or an inverse, that is not one block's: the whole matrix, or its triangles.
template <class S>
struct LuForward {
  Factors<S> f;
  bool whole;
  Whole<S> W;
  PackedTriangle<S> L, U;

  LuForward(const LuArgs& a, int threads, Arena& arena)
      : f(a, arena),
        whole(forms_matrix(a, false)),
        W(whole ? Whole<S>(f, arena, threads) : Whole<S>()),
        L(f.L.or_none(!whole), a.inverse, nullptr, arena),
        U(f.U.or_none(!whole), a.inverse, f.reverse, arena) {
    if (whole && !arena.counts()) W.pack(f, false);
  }

  // z, by rank of the side that is permuted, through both triangles.
  void apply_triangles(S* z) const {
    if (L.inverse && f.bias) add_bias(f.bias, f.C, S(-1), z);
    apply(L.inverse ? L : U, z);
    apply(L.inverse ? U : L, z);
    if (!L.inverse && f.bias) add_bias(f.bias, f.C, S(1), z);
  }
};

}  // namespace fk::FK_ISA

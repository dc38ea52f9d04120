// Gradients of the LU linear map: what a call packs and sums, and what its sums become.
//
// With h = U x and y = P L h: g_h = L^T P^T g_y, g_x = U^T g_h, g_L = P^T g_y h^T and g_U = g_h x^T. Where L U has been
// formed, its gradient P^T g_y x^T is summed instead, which is one product a pixel, and the triangles' follow from it.
// The inverse has g_h = U^-T g_x, g_y = P L^-T g_h and the same two products, negated.
#pragma once
#include <cmath>

#include "../common/channel_ladj.h"
#include "map.h"
#include "outer.h"

namespace fk::FK_ISA {

// to <- T from.
template <class S>
void apply(const PackedTriangle<S>& T, const S* from, int64_t rows, S* to) {
  memcpy(to, from, size_t(rows * kRowBlock<S>) * sizeof(S));
  apply(T, to);
}

// sums[c] += the sum of row c over blocks, in double: what remains of a sum of gradients may be far below its terms.
template <class S>
void add_rows(const S* g, int64_t stride, int64_t blocks, int64_t C, double* sums) {
  constexpr int R = kRowBlock<S>;
  for (int64_t c = 0; c < C; ++c) {
    double lanes[R] = {};
    for (int64_t s = 0; s < blocks; ++s)
      for (int l = 0; l < R; ++l) lanes[l] += double(g[s * stride + c * R + l]);
    for (int l = 0; l < R; ++l) sums[c] += lanes[l];
  }
}

// The row blocks of a tile, `rows` rows each.
template <class S>
struct LuTile {
  int64_t rows;
  S *g_y, *g_h, *h, *x;  // inner gradients and values; g_h and h only where L U is not formed
  S *out, *spare;

  LuTile() = default;
  LuTile(int64_t C, bool whole, bool weights, int64_t blocks, Arena& arena) : rows(rows_of(C)) {
    const auto take = [&](bool wanted, int64_t n) {
      S* const p = wanted ? arena.take<S>(size_t(n * rows * kRowBlock<S>)) : nullptr;
      if (p && !arena.counts()) memset(p, 0, size_t(n * rows * kRowBlock<S>) * sizeof(S));  // rows past the channels
      return p;
    };
    g_y = take(true, blocks);
    g_h = take(!whole, blocks);
    h = take(!whole && weights, blocks);
    x = take(weights, blocks);
    out = take(true, 1);
    spare = arena.take<S>(size_t(C));
  }
  static int64_t rows_of(int64_t C) { return round_up(round_up(round_up(C, kPanel), kOuterG), kOuterX); }
  S* at(S* buffer, int64_t block) const { return buffer + block * rows * kRowBlock<S>; }
};

// Everything of a backward call that is not one tile's.
template <class S>
struct LuBackward {
  Factors<S> f;
  bool weights, whole;
  Whole<S> W;                      // transposed
  PackedTriangle<S> Ut, Lt, U, L;  // products, or solves of the inverse; those not needed are empty
  int64_t sums_size;
  S* sums;       // [parts][lower, upper][sums_size]; of the whole matrix in the first
  double* bias;  // [parts][C], by rank
  S *G, *upper;  // [C, C]; upper: where the gradient of the diagonal is wanted alone

  LuBackward(const LuArgs& a, bool wants_x, int parts, int threads, Arena& arena)
      : f(a, arena),
        weights(a.grad_lower || a.grad_upper || a.grad_log_s || a.grad_sign_s),
        whole(forms_matrix(a, true)),
        W(whole && wants_x ? Whole<S>(f, arena, threads) : Whole<S>()),
        Ut(f.U.transposed().or_none(!whole), a.inverse, f.reverse, arena),
        Lt(f.L.transposed().or_none(weights || !whole), a.inverse, nullptr, arena),
        U(f.U.or_none(weights && !(a.inverse && a.y.data)), a.inverse, f.reverse, arena),
        L(f.L.or_none(weights && a.inverse), true, nullptr, arena),
        sums_size(OuterSums<S>(nullptr, f.C).size()),
        sums(weights ? arena.take<S>(size_t(2 * parts * sums_size)) : nullptr),
        bias(a.grad_bias ? arena.take<double>(size_t(parts * f.C)) : nullptr) {
    G = whole && weights ? arena.take<S>(size_t(f.C * f.C)) : nullptr;
    upper = whole && weights && !a.grad_upper ? arena.take<S>(size_t(f.C * f.C)) : nullptr;
    if (!arena.counts() && W.C) W.pack(f, true);
  }

  OuterSums<S> sum(int part, bool of_upper) const { return {sums + (2 * part + of_upper) * sums_size, f.C}; }
  // This part's sums, set to zero by the thread that will use them.
  void clear(int part) const {
    if (weights) memset(sum(part, false).data, 0, size_t(2 * sums_size) * sizeof(S));
    if (bias) memset(bias + part * f.C, 0, size_t(f.C) * sizeof(double));
  }
  // Adds those of a tile's blocks, each `size` numbers.
  void add(const LuArgs& a, int part, const LuTile<S>& t, int64_t blocks) const {
    const int64_t size = t.rows * kRowBlock<S>;
    if (weights && whole) sum(part, false).add(Part::all, t.g_y, size, t.x, size, blocks);
    if (weights && !whole) {
      if (a.grad_lower) sum(part, false).add(Part::lower, t.g_y, size, t.h, size, blocks);
      sum(part, true).add(Part::upper, t.g_h, size, t.x, size, blocks);
    }
    if (bias) add_rows(t.g_y, size, blocks, f.C, bias + part * f.C);
  }
  // Element (i, j) over all parts.
  double total(int parts, bool of_upper, int64_t i, int64_t j) const {
    double total = 0;
    for (int p = 0; p < parts; ++p) total += sum(p, of_upper).at(i, j);
    return total;
  }
};

// One block: its gradients of values, and what the gradients of weights are summed from. `io` moves rows of the block,
// by rank where it is given one: load_x, load_grad_y, load_y (false where it has none) and store_grad_x, which is asked
// for where wants_grad_x(); direct_grad_x says where the block may be written without it, and how far apart rows lie.
template <class S, class IO>
void backward_block(bool inverse, const LuBackward<S>& B, const LuTile<S>& t, const IO& io, int64_t i) {
  const int64_t C = B.f.C;
  S *const g_y = t.at(t.g_y, i), *const g_h = t.at(t.g_h, i), *const h = t.at(t.h, i), *const x = t.at(t.x, i);
  if (inverse) {
    io.load_grad_y(nullptr, g_h);
    clear_rows(g_h, C, t.rows);  // after a NaN a solve leaves NaN there
    apply(B.Ut, g_h);
    apply(B.Lt, g_h, t.rows, g_y);
    if (io.wants_grad_x()) io.store_grad_x(g_y, B.f.rank);
    if (!B.weights) return;
    io.load_x(B.f.rank, h);
    clear_rows(h, C, t.rows);
    if (B.f.bias) add_bias(B.f.bias, C, S(-1), h);
    apply(B.L, h);
    if (!io.load_y(x)) apply(B.U, h, t.rows, x);
    return;
  }
  io.load_grad_y(B.f.rank, g_y);
  if (B.weights) io.load_x(nullptr, x);
  if (!B.whole) {
    apply(B.Lt, g_y, t.rows, g_h);
    if (B.weights) apply(B.U, x, t.rows, h);
  }
  if (!io.wants_grad_x()) return;
  int64_t stride = kRowBlock<S>;
  S* const to = B.whole ? io.direct_grad_x(&stride) : nullptr;
  if (B.whole)
    B.W.apply(g_y, kRowBlock<S>, to ? to : t.out, stride);
  else
    apply(B.Ut, g_h, t.rows, t.out);
  if (!to) io.store_grad_x(t.out, nullptr);
}

// The gradients of the triangles from the sums, or from that of their product.
template <class S>
void finish_triangles(const LuArgs& a, const LuBackward<S>& B, int parts, int threads) {
  const int64_t C = a.channels, grain = 1 + kGrainWork / (32 * C);
  const double sign = a.inverse ? -1 : 1, of_ladj = a.grad_ladj ? ladj_gradient<S>(a) : 0;
  const S *const log_s = static_cast<const S*>(a.log_s), *const signs = static_cast<const S*>(a.sign_s);
  S *const lower = static_cast<S*>(a.grad_lower), *const given = static_cast<S*>(a.grad_upper);
  S* const upper = given ? given : B.upper;
  if (B.whole) {
    parallel_for(C, grain, threads, [&](int64_t i, int64_t end) {
      for (; i < end; ++i)
        for (int64_t j = 0; j < C; ++j) B.G[i * C + j] = S(B.total(parts, false, i, j));
    });
    if (lower) multiply_square(B.U, by_rows(B.G, C), by_rows(lower, C), threads);
    multiply_square(B.Lt, by_columns(B.G, C), by_columns(upper, C), threads);
  }
  parallel_for(C, grain, threads, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      for (int64_t j = 0; lower && j < C; ++j) {
        S& to = lower[i * C + j];
        to = j >= i ? S(0) : B.whole ? to : S(sign * B.total(parts, false, i, j));
      }
      const S diagonal = B.whole ? upper[i * C + i] : S(sign * B.total(parts, true, i, i));
      if (a.grad_log_s) static_cast<S*>(a.grad_log_s)[i] = diagonal * B.f.diagonal[i] + S(of_ladj);
      if (a.grad_sign_s) {
        const S size = signs[i] == 0 ? S(std::exp(double(log_s[i]))) : B.f.diagonal[i] / signs[i];
        static_cast<S*>(a.grad_sign_s)[i] = diagonal * size + (a.grad_ladj ? S(of_ladj) / signs[i] : S(0));
      }
      for (int64_t j = 0; given && j < C; ++j) {
        S& to = given[i * C + j];
        to = j <= i ? S(0) : B.whole ? to : S(sign * B.total(parts, true, i, j));
      }
    }
  });
}

// All of a call's, once every part has summed its own.
template <class S>
void finish_lu(const LuArgs& a, const LuBackward<S>& B, int parts, int threads) {
  if (B.weights) finish_triangles(a, B, parts, threads);
  for (int64_t i = 0; a.grad_bias && i < B.f.C; ++i) {
    double sum = 0;
    for (int p = 0; p < parts; ++p) sum += B.bias[p * B.f.C + B.f.at(i)];
    static_cast<S*>(a.grad_bias)[i] = S(a.inverse ? -sum : sum);
  }
}

}  // namespace fk::FK_ISA

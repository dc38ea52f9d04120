// The LU linear map on row blocks of pixels, forward, inverse and backward.
#include <cmath>

#include "../common/by_type.h"
#include "../common/channel_ladj.h"
#include "../common/kernels.h"
#include "lu_linear.h"
#include "map.h"
#include "outer.h"

namespace fk::FK_ISA {
namespace {

// Whether the whole matrix is formed. The products with the two triangles take as many multiply-adds a pixel, plus
// those on the wrong side of the diagonal and a pass over the pixels; forming costs C^3 / 2 once, and backward saves
// one product more by it. Measured, see the op's README.
bool forms_matrix(const LuArgs& a, bool backward) {
  const int64_t square = a.channels * a.channels;
  return !a.inverse && a.count() >= (backward ? 32 + square / 80 : 64 + square / 20);
}

// Row blocks of all images, dealt out to threads in ranges.
template <class S>
struct Deal {
  int64_t blocks;
  int parts;

  Deal(const LuArgs& a, int threads) : blocks((a.count() + kRowBlock<S> - 1) / kRowBlock<S>) {
    const int64_t work = a.channels * (a.channels + 16), useful = 1 + a.count() * work / kGrainWork;
    parts = int(threads < blocks ? threads : blocks);
    parts = int(parts < useful ? parts : useful);
  }
  // Calls f(part, first block, last block + 1), each part on a thread: what is summed is summed in one order.
  template <class F>
  void run(const F& f) const {
    parallel_for(parts, 1, parts, [&](int64_t part, int64_t end) {
      for (; part < end; ++part) f(int(part), blocks * part / parts, blocks * (part + 1) / parts);
    });
  }
};

template <class S>
void add_bias(const S* bias, int64_t C, S sign, S* z) {
  for (int64_t c = 0; c < C; ++c)
    for (int l = 0; l < kRowBlock<S>; ++l) z[c * kRowBlock<S> + l] += sign * bias[c];
}

// ---- forward and inverse ----

template <class S>
struct Buffers {
  S *z, *out, *spare;
  Buffers(int64_t C, Arena& arena) {
    const size_t size = size_t(round_up(C, kPanel) * kRowBlock<S>);
    z = arena.take<S>(size);
    out = arena.take<S>(size);
    spare = arena.take<S>(size_t(C));
  }
};

// One block through the whole matrix, without a copy where memory lies as blocks do.
template <class S>
void apply_whole(const Whole<S>& W, const PixelBlock<S>& block, const Channels& x, const Channels& y,
                 const Buffers<S>& b) {
  constexpr int R = kRowBlock<S>;
  const S* from = W.count() == 1 ? block.direct(x) : nullptr;  // every panel reads it again: from memory only once
  S* const to = block.direct(y);
  if (!from) block.load_from(x, W.C, nullptr, b.z);
  if (to) block.template prefetch_next<true>(y, W.C);
  W.apply(from ? from : b.z, from ? x.channel : R, to ? to : b.out, to ? y.channel : R);
  if (!to) block.store_to(y, b.out, W.C, nullptr, b.spare);
}

template <class S>
void fwd(const LuArgs& a, int threads) {
  const int64_t C = a.channels, width = round_up(C, kPanel);
  const Deal<S> deal(a, threads);
  const auto each = [&](const auto& f) {
    deal.run([&](int, int64_t b, int64_t e) {
      const auto buffers = in_scratch(Scratch::tile, [&](Arena& arena) { return Buffers<S>(C, arena); });
      for (; b < e; ++b) f(PixelBlock<S>(b * kRowBlock<S>, a.images, a.pixels), buffers);
    });
  };
  if (forms_matrix(a, false)) {
    const auto W = in_scratch(Scratch::shared, [&](Arena& arena) {
      const Factors<S> f(a, arena);
      Whole<S> W(f, arena, threads);
      if (!arena.counts()) W.pack(f, false);
      return W;
    });
    each([&](const PixelBlock<S>& block, const Buffers<S>& b) { apply_whole(W, block, a.x, a.y, b); });
    return;
  }
  struct Steps {
    Factors<S> f;
    PackedTriangle<S> L, U;
    Steps(const LuArgs& a, Arena& arena)
        : f(a, arena), L(f.L, a.inverse, nullptr, arena), U(f.U, a.inverse, f.reverse, arena) {}
  };
  const auto s = in_scratch(Scratch::shared, [&](Arena& arena) { return Steps(a, arena); });
  each([&](const PixelBlock<S>& block, const Buffers<S>& b) {
    block.load_from(a.x, C, a.inverse ? s.f.rank : nullptr, b.z);
    clear_rows(b.z, C, width);
    if (a.inverse && s.f.bias) add_bias(s.f.bias, C, S(-1), b.z);
    apply(a.inverse ? s.L : s.U, b.z);
    apply(a.inverse ? s.U : s.L, b.z);
    if (!a.inverse && s.f.bias) add_bias(s.f.bias, C, S(1), b.z);
    block.store_to(a.y, b.z, C, a.inverse ? nullptr : s.f.rank, b.spare);
  });
}

// ---- backward ----
//
// With h = U x and y = P L h: g_h = L^T P^T g_y, g_x = U^T g_h, g_L = P^T g_y h^T and g_U = g_h x^T. Where L U has been
// formed, its gradient P^T g_y x^T is summed instead, which is one product a pixel, and the triangles' follow from it.
// The inverse has g_h = U^-T g_x, g_y = P L^-T g_h and the same two products, negated.

// A tile's row blocks should stay in the second-level cache.
constexpr int64_t kTileBytes = 384 << 10;

// Everything of a backward call that is not one tile's.
template <class S>
struct Backward {
  Factors<S> f;
  bool weights, whole;
  Whole<S> W;                      // transposed
  PackedTriangle<S> Ut, Lt, U, L;  // products, or solves of the inverse; those not needed are empty
  int64_t sums_size;
  S* sums;       // [parts][lower, upper][sums_size]; of the whole matrix in the first
  double* bias;  // [parts][C], by rank
  S *G, *upper;  // [C, C]; upper: where the gradient of the diagonal is wanted alone

  Backward(const LuArgs& a, int parts, int threads, Arena& arena)
      : f(a, arena),
        weights(a.grad_lower || a.grad_upper || a.grad_log_s || a.grad_sign_s),
        whole(forms_matrix(a, true)),
        W(whole && a.grad_x.data ? Whole<S>(f, arena, threads) : Whole<S>()),
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
  // Element (i, j) over all parts.
  double total(int parts, bool of_upper, int64_t i, int64_t j) const {
    double total = 0;
    for (int p = 0; p < parts; ++p) total += sum(p, of_upper).at(i, j);
    return total;
  }
};

// The row blocks of a tile, `rows` rows each.
template <class S>
struct Tile {
  int64_t rows;
  S *g_y, *g_h, *h, *x;  // inner gradients and values; g_h and h only where L U is not formed
  S *out, *spare;

  Tile(const Backward<S>& B, int64_t rows, int64_t blocks, Arena& arena) : rows(rows) {
    const auto take = [&](bool wanted, int64_t n) {
      S* const p = wanted ? arena.take<S>(size_t(n * rows * kRowBlock<S>)) : nullptr;
      if (p && !arena.counts()) memset(p, 0, size_t(n * rows * kRowBlock<S>) * sizeof(S));  // rows past the channels
      return p;
    };
    g_y = take(true, blocks);
    g_h = take(!B.whole, blocks);
    h = take(!B.whole && B.weights, blocks);
    x = take(B.weights, blocks);
    out = take(true, 1);
    spare = arena.take<S>(size_t(B.f.C));
  }
  static int64_t rows_of(int64_t C) { return round_up(round_up(round_up(C, kPanel), kOuterG), kOuterX); }
  S* at(S* buffer, int64_t block) const { return buffer + block * rows * kRowBlock<S>; }
};

// to <- T from.
template <class S>
void apply(const PackedTriangle<S>& T, const S* from, int64_t rows, S* to) {
  memcpy(to, from, size_t(rows * kRowBlock<S>) * sizeof(S));
  apply(T, to);
}

// One block: its gradients of values, and what the gradients of weights are summed from.
template <class S>
void backward_block(const LuArgs& a, const Backward<S>& B, const Tile<S>& t, const PixelBlock<S>& block, int64_t i) {
  const int64_t C = a.channels;
  S *const g_y = t.at(t.g_y, i), *const g_h = t.at(t.g_h, i), *const h = t.at(t.h, i), *const x = t.at(t.x, i);
  if (a.inverse) {
    block.load_from(a.grad_y, C, nullptr, g_h);
    clear_rows(g_h, C, t.rows);  // after a NaN a solve leaves NaN there
    apply(B.Ut, g_h);
    apply(B.Lt, g_h, t.rows, g_y);
    if (a.grad_x.data) block.store_to(a.grad_x, g_y, C, B.f.rank, t.spare);
    if (!B.weights) return;
    block.load_from(a.x, C, B.f.rank, h);
    clear_rows(h, C, t.rows);
    if (B.f.bias) add_bias(B.f.bias, C, S(-1), h);
    apply(B.L, h);
    if (a.y.data)
      block.load_from(a.y, C, nullptr, x);
    else
      apply(B.U, h, t.rows, x);
    return;
  }
  block.load_from(a.grad_y, C, B.f.rank, g_y);
  if (B.weights) block.load_from(a.x, C, nullptr, x);
  if (!B.whole) {
    apply(B.Lt, g_y, t.rows, g_h);
    if (B.weights) apply(B.U, x, t.rows, h);
  }
  if (!a.grad_x.data) return;
  S* const to = B.whole ? block.direct(a.grad_x) : nullptr;
  if (to) block.template prefetch_next<true>(a.grad_x, C);
  if (B.whole)
    B.W.apply(g_y, kRowBlock<S>, to ? to : t.out, to ? a.grad_x.channel : kRowBlock<S>);
  else
    apply(B.Ut, g_h, t.rows, t.out);
  if (!to) block.store_to(a.grad_x, t.out, C, nullptr, t.spare);
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

// The gradients of the triangles from the sums, or from that of their product.
template <class S>
void finish(const LuArgs& a, const Backward<S>& B, int parts, int threads) {
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

template <class S>
void bwd(const LuArgs& a, int threads) {
  const int64_t C = a.channels, rows = Tile<S>::rows_of(C), size = rows * kRowBlock<S>;
  const Deal<S> deal(a, threads);
  const auto B = in_scratch(Scratch::shared, [&](Arena& arena) { return Backward<S>(a, deal.parts, threads, arena); });
  int64_t most = kTileBytes / ((B.whole ? 2 : 4) * size * int64_t(sizeof(S)));
  most = most < 1 ? 1 : most > 32 ? 32 : most;
  deal.run([&](int part, int64_t b, int64_t e) {
    const int64_t room = e - b < most ? e - b : most;
    const Tile<S> t = in_scratch(Scratch::tile, [&](Arena& arena) { return Tile<S>(B, rows, room, arena); });
    if (B.weights) memset(B.sum(part, false).data, 0, size_t(2 * B.sums_size) * sizeof(S));
    double* const bias = B.bias ? B.bias + part * C : nullptr;
    if (bias) memset(bias, 0, size_t(C) * sizeof(double));
    for (; b < e; b += most) {
      const int64_t n = e - b < most ? e - b : most;
      for (int64_t i = 0; i < n; ++i)
        backward_block(a, B, t, PixelBlock<S>((b + i) * kRowBlock<S>, a.images, a.pixels), i);
      if (B.weights && B.whole) B.sum(part, false).add(Part::all, t.g_y, size, t.x, size, n);
      if (B.weights && !B.whole) {
        if (a.grad_lower) B.sum(part, false).add(Part::lower, t.g_y, size, t.h, size, n);
        B.sum(part, true).add(Part::upper, t.g_h, size, t.x, size, n);
      }
      if (bias) add_rows(t.g_y, size, n, C, bias);
    }
  });
  if (B.weights) finish(a, B, deal.parts, threads);
  for (int64_t i = 0; a.grad_bias && i < C; ++i) {
    double sum = 0;
    for (int p = 0; p < deal.parts; ++p) sum += B.bias[p * C + B.f.at(i)];
    static_cast<S*>(a.grad_bias)[i] = S(a.inverse ? -sum : sum);
  }
}

template <class S>
void fwd_and_ladj(const LuArgs& a, int threads) {
  fwd<S>(a, threads);
  const S *log_s = static_cast<const S*>(a.log_s), *sign = static_cast<const S*>(a.sign_s);
  fill_ladj<S>(a, [&](int64_t c) {
    const double size = std::abs(double(sign[c]));
    return size == 1 ? double(log_s[c]) : double(log_s[c]) + std::log(size);
  });
}

void fwd_any(const LuArgs& a, int threads) {
  by_scalar(a.type, [&](auto s) { fwd_and_ladj<decltype(s)>(a, threads); });
}
void bwd_any(const LuArgs& a, int threads) {
  by_scalar(a.type, [&](auto s) { bwd<decltype(s)>(a, threads); });
}

}  // namespace

extern const Kernels<LuArgs> lu_kernels;
const Kernels<LuArgs> lu_kernels = {fwd_any, bwd_any};

}  // namespace fk::FK_ISA

// The blocks on a layer's diagonal: the exponentials of their logarithms, and how logarithms of slopes pass through
// them.
//
// A slope is carried as its logarithm L, one for each unit of a feature: through a block of logarithms W it becomes
//   M_i = log sum_j exp(W_ij + L_j) = most_i + c + log t_i,   t_i = sum_j ratio_ij v_j,
// ratio_ij = exp(W_ij - most_i) with most_i the largest of row i, v_j = exp(L_j - c) with c the largest L. So there is
// one exponential for each j and one logarithm for each i, not one for each pair. Where all products are so small that
// t has lost digits (no W and no L of ordinary size does that), the sum is taken pair by pair.
#pragma once
#include "../net/net_tile.h"
#include "../net/unpacked.h"
#include "../univariate/map_cpu.h"
#include "increasing.h"

namespace fk::FK_ISA {

// Below, digits of t may be missing: terms below the smallest number are nothing beside it.
template <class S>
inline constexpr S kVanishing = sizeof(S) == 4 ? S(0x1p-60) : S(0x1p-500);

// A layer's weights as products take them, and what its blocks are made of.
template <class S>
struct Blocks {
  const BlockLayer* layer;
  int64_t n_in, n_out;
  S* weight;  // [n_out, n_in]: exponentials on the diagonal blocks; nothing above them
  S* ratio;   // [n_out, before]
  S* most;    // [n_out]
  S* shift;   // [n_out] what row norms add to logarithms; `scale`: and what they multiply values with
  S* scale;
  double* square;  // [n_out] of rows before they are scaled; all null: they are not
  int32_t* limit;  // [n_out] inputs that each unit sees

  int64_t before() const { return layer->before; }
  int64_t after() const { return layer->after; }
  S shift_of(int64_t unit) const { return shift ? shift[unit] : S(0); }
  // Row i of feature d's block: of logarithms as given, of weights, of ratios.
  const S* logs(int64_t d, int64_t i) const {
    return static_cast<const S*>(layer->weight) + (d * after() + i) * layer->weight_stride + d * before();
  }
  const S* own(int64_t d, int64_t i) const { return weight + (d * after() + i) * n_in + d * before(); }
  const S* ratios(int64_t d, int64_t i) const { return ratio + (d * after() + i) * before(); }
};

// One number at a time, as in lanes.
template <class S>
FK_INLINE S exp_one(S v) {
  return exp_(splat<typename Simd<S>::V>(v))[0];
}
template <class S>
FK_INLINE S log_one(S v) {
  return log_(splat<typename Simd<S>::V>(v))[0];
}

template <class S>
Blocks<S> lay_out_blocks(const BlockArgs& a, int k, Arena& arena) {
  Blocks<S> b = {};
  b.layer = &a.layers[k];
  b.n_in = a.in(k), b.n_out = a.out(k);
  b.weight = arena.take<S>(size_t(b.n_out * b.n_in));
  b.ratio = arena.take<S>(size_t(b.n_out * b.before()));
  b.most = arena.take<S>(size_t(b.n_out));
  b.limit = arena.take<int32_t>(size_t(b.n_out));
  b.shift = b.layer->log_norm ? arena.take<S>(size_t(b.n_out)) : nullptr;
  b.scale = b.layer->log_norm ? arena.take<S>(size_t(b.n_out)) : nullptr;
  b.square = b.layer->log_norm ? arena.take<double>(size_t(b.n_out)) : nullptr;
  return b;
}

// Weights and ratios of one unit.
template <class S>
void fill_unit(const Blocks<S>& b, double eps, int64_t unit) {
  const int64_t d = unit / b.after(), own = d * b.before(), end = own + b.before();
  const S* const from = static_cast<const S*>(b.layer->weight) + unit * b.layer->weight_stride;
  S* const to = b.weight + unit * b.n_in;
  S most = from[own], shift = 0, scale = 1, log_scale = 0;
  for (int64_t j = own; j < end; ++j) most = from[j] > most || from[j] != from[j] ? from[j] : most;
  if (b.shift) {
    double square = 0;
    for (int64_t j = 0; j < own; ++j) square += double(from[j]) * double(from[j]);
    for (int64_t j = own; j < end; ++j) square += exp_one(2 * double(from[j]));
    b.square[unit] = square;
    const double norm = double(static_cast<const S*>(b.layer->log_norm)[unit]);
    b.shift[unit] = shift = S(norm - 0.5 * log_one(square + eps));
    log_scale = S(norm - log_one(__builtin_sqrt(square) + eps));
    b.scale[unit] = scale = exp_one(log_scale);
  }
  for (int64_t j = 0; j < own; ++j) to[j] = from[j] * scale;
  for (int64_t j = own; j < end; ++j) to[j] = exp_one(from[j] + log_scale);
  // Products are formed in whole panels: what lies above is not read, but it must be numbers.
  memset(to + end, 0, size_t(b.n_in - end) * sizeof(S));
  most = most > -__builtin_inff() || most != most ? most : S(0);  // of none but zeros
  b.most[unit] = most + shift;
  for (int64_t j = own; j < end; ++j) b.ratio[unit * b.before() + j - own] = exp_one(from[j] - most);
}

// ---- logarithms of slopes ----

// The largest term W_ij + L_j of row i, and the sum of exponentials beside it.
template <class S, class T = PairOf<S>>
FK_INLINE void exact_sum(const S* row, int64_t n, const S* logs, T* largest, T* sum) {
  T m = both<T>(-S(3e38f));
  for (int64_t j = 0; j < n; ++j) m = max_(row[j] + load_pair(logs + j * kRowBlock<S>), m);
  T s = {};
  for (int64_t j = 0; j < n; ++j) s = s + exp_(row[j] + load_pair(logs + j * kRowBlock<S>) - m);
  *largest = m, *sum = s;
}

// Logarithms of feature d's slopes through a layer: of what enters (logs [before]) to those of what comes out, in
// order, given to put(i, M). Leaves v [before] and t [after].
template <class S, class Put>
FK_INLINE void through_block(const Blocks<S>& b, int64_t d, const S* logs, S* v, S* t, const Put& put) {
  using T = PairOf<S>;
  constexpr int R = kRowBlock<S>;
  const int64_t n = b.before(), m = b.after();
  const S* const most = b.most + d * m;
  if (n == 1) {
    const T one = both<T>(S(1)), in = load_pair(logs);
    store_pair(v, one);
    for (int64_t i = 0; i < m; ++i) {
      store_pair(t + i * R, one);
      put(i, in + (*b.logs(d, i) + b.shift_of(d * m + i)));
    }
    return;
  }
  T c = both<T>(-S(3e38f));
  for (int64_t j = 0; j < n; ++j) c = max_(load_pair(logs + j * R), c);
  for (int64_t j = 0; j < n; ++j) store_pair(v + j * R, exp_(load_pair(logs + j * R) - c));
  products(b.ratios(d, 0), 1, n, v, n, m, [&](int64_t i, T sum) {
    T out = (c + most[i]) + log_(sum);
    const auto lost = sum < kVanishing<S>;
    if (any_(lost)) {
      T largest, rest;
      exact_sum(b.logs(d, i), n, logs, &largest, &rest);
      out = select(lost, largest + b.shift_of(d * m + i) + log_(rest), out);
    }
    store_pair(t + i * R, sum);
    put(i, out);
  });
}

// Sums over rows for the gradient of a block's logarithms, [features][after][before].
template <class S>
struct BlockSums {
  S* outer;    // [..][kLanes]: of u_i v_j, which the ratios multiply
  S* by_pair;  // of terms taken pair by pair
};

// The way back: from the gradients of M, in g [after], which become u = g / t, to those of L, given to put(j, G).
template <class S, class Put>
FK_INLINE void back_through_block(const Blocks<S>& b, int64_t d, const S* logs, const S* v, const S* t, S* g,
                                  const BlockSums<S>& sums, S* spare, const Put& put) {
  using T = PairOf<S>;
  constexpr int R = kRowBlock<S>;
  const int64_t n = b.before(), m = b.after();
  bool by_pair = false;
  for (int64_t j = 0; j < n; ++j) store_pair(spare + j * R, T{});
  for (int64_t i = 0; i < m; ++i) {
    const T sum = load_pair(t + i * R), of_m = load_pair(g + i * R);
    const auto lost = sum < kVanishing<S>;
    if (any_(lost)) {
      by_pair = true;
      T largest, rest;
      const S* const row = b.logs(d, i);
      exact_sum(row, n, logs, &largest, &rest);
      for (int64_t j = 0; j < n; ++j) {
        const T share = exp_(row[j] + load_pair(logs + j * R) - largest) / rest;
        const T term = select(lost, of_m * share, T{});
        store_pair(spare + j * R, load_pair(spare + j * R) + term);
        if (sums.by_pair) sums.by_pair[(d * m + i) * n + j] += sum_lanes(term.a) + sum_lanes(term.b);
      }
    }
    store_pair(g + i * R, select(lost, T{}, of_m / sum));
  }
  products(b.ratios(d, 0), n, 1, g, m, n, [&](int64_t j, T sum) {
    sum = sum * load_pair(v + j * R);
    put(j, by_pair ? sum + load_pair(spare + j * R) : sum);
  });
}

// Adds the products u_i v_j of a tile's rows.
template <class S>
void add_outer(const Blocks<S>& b, int64_t features, int64_t blocks, const S* u, int64_t u_width, const S* v,
               int64_t v_width, const BlockSums<S>& sums) {
  using V = typename Simd<S>::V;
  constexpr int L = kLanes<S>, R = kRowBlock<S>;
  const int64_t n = b.before(), m = b.after();
  S* to = sums.outer;
  for (int64_t unit = 0; unit < features * m; ++unit)
    for (int64_t j = 0; j < n; ++j, to += L) {
      const S *ui = u + unit * R, *vj = v + (unit / m * n + j) * R;
      V total = load<V>(to), other = {};
      for (int64_t s = 0; s < blocks; ++s, ui += u_width * R, vj += v_width * R) {
        total += load<V>(ui) * load<V>(vj);
        other += load<V>(ui + L) * load<V>(vj + L);
      }
      store(to, total + other);
    }
}

// What comes behind the last layer: y of f, and the slope's logarithm.
template <class S>
struct Residual {
  using T = PairOf<S>;
  BlockResidual kind;
  S kept = 0, passed = 1;              // y = kept x + passed f
  S log_kept = 0, log_passed = 0;      // of a gate
  S slope_kept = 0, slope_passed = 0;  // of these by the gate
  S twice_eps = 0;
  explicit Residual(const BlockArgs& a) : kind(a.residual) {
    if (kind == BlockResidual::sum) kept = 1;
    if (kind != BlockResidual::gated) return;
    using V = typename Simd<S>::V;
    const V g = splat<V>(*static_cast<const S*>(a.gate)), e = exp_(-abs_(g)), rest = log1p_unit(e);
    const S share = (e / (1 + e))[0], other = (1 / (1 + e))[0];
    const bool up = g[0] >= 0;
    kept = up ? other : share, passed = up ? share : other;
    log_kept = (min_(g, V{}) - rest)[0], log_passed = (min_(-g, V{}) - rest)[0];
    twice_eps = S(2 * a.eps);
    if (a.eps > 0) log_kept = log_one(kept + S(a.eps)), log_passed = log_one(passed + S(a.eps));
    slope_kept = kept * passed / (kept + S(a.eps)), slope_passed = -kept * passed / (passed + S(a.eps));
    if (a.eps == 0) slope_kept = passed, slope_passed = -kept;
    if (g[0] != g[0]) kept = passed = log_kept = log_passed = g[0];
  }

  FK_INLINE T value(T x, T f) const {
    if (kind == BlockResidual::none) return f;
    return kind == BlockResidual::sum ? x + f : kept * x + passed * f;
  }
  // The logarithm of kept + passed e^l.
  FK_INLINE T log_slope(T l) const {
    if (kind == BlockResidual::none) return l;
    const T of_kept = both<T>(log_kept), of_f = l + log_passed;
    const T high = select(of_f > log_kept, of_f, of_kept), low = select(of_f > log_kept, of_kept, of_f);
    const T far = select(l == l, high + log1p_unit(exp_(low - high)), l);
    if (kind == BlockResidual::sum) return far;
    // Shares of 1 cancel in the logarithm where the slope is near 1: log(1 + u), u = passed (e^l - 1).
    const T shrunk = expm1_nonpositive(-abs_(l)), grown = -shrunk / (S(1) + shrunk);
    const T u = twice_eps + (passed + twice_eps / 2) * select(l > S(0), grown, shrunk), one = S(1) + u;
    return select((l < S(4)) & (u > S(-0.5)), log_(one) + (u - (one - S(1))) / one, far);
  }
  // How much of the slope is f's, and the rest.
  FK_INLINE void shares(T l, T* of_f, T* rest) const {
    const T d = (l + log_passed) - log_kept, e = exp_(-abs_(d)), q = S(1) / (S(1) + e);
    *of_f = select(d >= S(0), q, e * q), *rest = select(d >= S(0), e * q, q);
  }
};

}  // namespace fk::FK_ISA

// The spline in SIMD lanes: one lane per element (row, feature), two blocks of lanes at a time: the way to the bin is
// wide (K independent exponentials), what follows is one long chain. Here for any number of bins, params as
// [param][lane] in L1; for the usual numbers of bins, in registers, in rqs_known.h.
#pragma once
#include "../common/pair.h"
#include "../common/short_math.h"
#include "../univariate/param_lanes.h"
#include "rqs_bin.h"
#include "rqs_linear.h"

namespace fk::FK_ISA {

// Bins from which the binary search is no slower than selecting while the knots are summed: a
// search is log2 K + 7 gathers over lanes, the scan 7 blends a knot, at half a cycle each, beside
// exponentials that are computed anyway (K = 8: 11 against 23 ns an element, K = 64: a tie).
constexpr int kSearchBins = 64;

// Row layout of a block in scratch: widths K | heights K | slopes at all K + 1 knots | splits K.
constexpr int kMaxParams = 4 * kMaxBins + 1;
template <class S>
struct Block {
  using V = typename Simd<S>::V;
  V raw[kMaxParams];
  V e[2 * kMaxBins];  // exp(logit - max), or their running sums
  V grad[kMaxParams];
};

// Where the params lie in a block. With linear tails the first and the last slope, with circular tails the last one,
// are not parameters: set_edges fills these rows of the block.
struct ParamLayout {
  int bins, params;
  Tails tails;
  int first_gap, second_gap;  // the params before which such a row lies

  FK_INLINE int row(int p) const { return p + (p >= first_gap) + (p >= second_gap); }
};

FK_INLINE ParamLayout layout_of(const RqsSpec& s) {
  const int P = s.params();
  return {s.bins, P, s.tails, s.tails == Tails::linear ? 2 * s.bins : P,
          s.tails == Tails::none ? P : s.before_splits()};
}

// A spline's constants, and where its params lie in a block.
template <class Scalar, bool Clip>
struct Consts : Constants<Scalar, Clip>, ParamLayout {
  using S = Scalar;
  using V = typename Simd<S>::V;
  using Constants<S, Clip>::bins;
  using Constants<S, Clip>::tails;
  S offset[2][kMaxBins];  // of knot k without the softmax part
  S free_rest[2];         // what rounding took from free_size
  bool splits;
  S min_lambda, free_lambda;

  // Whether the kernel that knows its bins may run: 0 bins where it does not.
  static constexpr bool kMayBeKnown = kFused && sizeof(S) == 4 && !Clip;
  int known_bins;
  S least_logit, largest_logit;  // between which it takes exponentials as they are

  explicit Consts(const RqsSpec& s)
      : Constants<S, Clip>(s),
        ParamLayout(layout_of(s)),
        splits(s.min_lambda != 0),
        min_lambda(S(s.min_lambda)),
        free_lambda(S(1 - 2 * s.min_lambda)),
        known_bins(splits || !(s.logit_scale > 0) ? 0 : s.bins),
        least_logit(-125 / this->exp2_scale),
        largest_logit(126 / this->exp2_scale) {
    using Wide = long double;  // where it is no wider than double, nothing is left
    const Wide range[2] = {s.right - s.left, s.top - s.bottom}, least[2] = {s.min_width, s.min_height};
    for (int i = 0; i < 2; ++i) {
      for (int k = 0; k < s.bins; ++k) offset[i][k] = this->low[i] + this->min_size[i] * S(k);
      free_rest[i] = S(range[i] * (1 - least[i] * s.bins) - this->free_size[i]);
    }
  }

  // In double with free_size's rounding put back: it moves all knots of all elements one way.
  template <class T>
  FK_INLINE T unit_size(int i, T inv_sum) const {
    if constexpr (sizeof(S) == 4) return inv_sum * this->free_size[i];
    return inv_sum * this->free_size[i] + inv_sum * free_rest[i];
  }
};

// Out of line: one for all parametrisations.
template <class S>
__attribute__((noinline)) void load_block(const ParamLayout& layout, const ParamLanes<S>& params, int i, Block<S>& b) {
  using V = typename Simd<S>::V;
  constexpr int Q = kQuad<S>;
  const int P = layout.params;
  params.visit([&](const auto& from) {
    if (P < Q) {  // one bin: too few params for a quad
      for (int p = 0; p < P; ++p)
        for (int l = 0; l < kLanes<S>; ++l) b.raw[layout.row(p)][l] = from.at(i, p, l);
      return;
    }
    for (int p = 0; p < P; p += Q) {
      const int s = p <= P - Q ? p : P - Q;  // the last quad overlaps instead of reading past the end
      V v[Q];
      from.load_quad(i, s, v);
      for (int j = 0; j < Q; ++j) b.raw[layout.row(s + j)] = v[j];
    }
  });
}

template <class S>
__attribute__((noinline)) void store_block(const ParamLayout& layout, const Block<S>& b, int i,
                                           const ParamLanes<S>& grads) {
  using V = typename Simd<S>::V;
  constexpr int Q = kQuad<S>;
  const int P = layout.params;
  grads.visit([&](const auto& to) {
    if (P < Q) {
      for (int p = 0; p < P; ++p)
        for (int l = 0; l < kLanes<S>; ++l) to.at(i, p, l) = b.grad[layout.row(p)][l];
      return;
    }
    for (int p = 0; p < P; p += Q) {
      const int s = p <= P - Q ? p : P - Q;
      V v[Q];
      for (int j = 0; j < Q; ++j) v[j] = b.grad[layout.row(s + j)];
      to.store_quad(i, s, v);
    }
  });
}

// Of some lanes only.
template <class S, class M>
__attribute__((noinline)) void store_lanes(const ParamLayout& layout, const Block<S>& b, int i, M lanes,
                                           const ParamLanes<S>& grads) {
  grads.visit([&](const auto& to) {
    for (int l = 0; l < kLanes<S>; ++l)
      if (lanes[l])
        for (int p = 0; p < layout.params; ++p) to.at(i, p, l) = b.grad[layout.row(p)][l];
  });
}

// The rows that are not params: the outer slopes, which the tails decide.
template <class C, class S = typename C::S>
FK_INLINE void set_edges(const C& c, Block<S>& b) {
  using V = typename C::V;
  const int K = c.bins;
  if (c.tails == Tails::linear) b.raw[2 * K] = b.raw[3 * K] = splat<V>(c.edge_logit);
  if (c.tails == Tails::circular) b.raw[3 * K] = b.raw[2 * K];
}

// ---- from logits to the bin ----

// e[k] = exp(u[k] - max u); returns their sum.
template <class C, class V = typename C::V>
FK_INLINE V exp_rows(const C& c, V* u, V* e) {
  const V top = clip_and_max(c, u);
  RunningSum<V> sum;
  V total = {};
  for (int k = 0; k < c.bins; ++k) {
    e[k] = exp2_nonpositive((u[k] - top) * c.exp2_scale);
    total = sum.add(k, e[k]);
  }
  return total;
}

// In double a division for each sum: two roundings less, which all knots would share.
template <class V>
FK_INLINE Found<V> found_of_sums(V sum_x, V sum_y) {
  if constexpr (sizeof(typename ScalarOf<V>::S) == 4) return normalised(sum_x, sum_y);
  Found<V> f = {};
  f.inv_sum[0] = reciprocal(sum_x);
  f.inv_sum[1] = reciprocal(sum_y);
  return f;
}

// Selects while accumulating: no gather, cost proportional to K.
template <class C, class S = typename C::S, class V = typename C::V>
FK_INLINE Found<V> scan(const C& c, Block<S>& b, int dir, V v) {
  const int K = c.bins;
  const V sum_x = exp_rows(c, b.raw, b.e), sum_y = exp_rows(c, b.raw + K, b.e + K);
  Found<V> f = found_of_sums(sum_x, sum_y);
  const V unit_size = c.unit_size(dir, f.inv_sum[dir]);
  const V *ea = b.e + dir * K, *eb = b.e + (1 - dir) * K, *u = b.raw + 2 * K;
  f.in[0] = ea[0];
  f.in[1] = eb[0];
  f.u0 = u[0];
  f.u1 = u[1];
  RunningSum<V> sum_a, sum_b;
  for (int k = 1; k < K; ++k) {
    const V sa = sum_a.add(k - 1, ea[k - 1]), sb = sum_b.add(k - 1, eb[k - 1]);
    const auto past = v >= sa * unit_size + c.offset[dir][k];
    f.before[0] = select(past, sa, f.before[0]);
    f.before[1] = select(past, sb, f.before[1]);
    f.in[0] = select(past, ea[k], f.in[0]);
    f.in[1] = select(past, eb[k], f.in[1]);
    f.u0 = select(past, u[k], f.u0);
    f.u1 = select(past, u[k + 1], f.u1);
    f.k = select(past, splat<V>(S(k)), f.k);
  }
  if (dir) {  // back to the order x, y
    V t = f.before[0];
    f.before[0] = f.before[1];
    f.before[1] = t;
    t = f.in[0];
    f.in[0] = f.in[1];
    f.in[1] = t;
  }
  return f;
}

// rows[k[lane]][lane]
template <class V, class I>
FK_INLINE V gather_rows(const V* rows, I k) {
  using S = typename ScalarOf<V>::S;
  constexpr int L = kLanes<S>;
  const S* base = reinterpret_cast<const S*>(rows);
  I i = k * L;
  for (int l = 0; l < L; ++l) i[l] += l;
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4)
    return (V)_mm512_i32gather_ps((__m512i)i, base, 4);
  else
    return (V)_mm512_i64gather_pd((__m512i)i, base, 8);
#else
  V r;
  for (int l = 0; l < L; ++l) r[l] = base[i[l]];
  return r;
#endif
}

// Branch-free binary search: the rows of e hold running sums instead of exponentials, one gather
// per halving, and the two exponentials of the bin found are computed again.
template <class C, class S = typename C::S, class V = typename C::V>
FK_INLINE Found<V> search(const C& c, Block<S>& b, int dir, V v) {
  using I = typename Simd<S>::I;
  using Int = typename Simd<S>::Int;
  const int K = c.bins;
  V top[2], sum[2];
  for (int i = 0; i < 2; ++i) {
    const V* u = b.raw + i * K;
    top[i] = clip_and_max(c, b.raw + i * K);
    RunningSum<V> running;
    for (int k = 0; k < K; ++k) {
      sum[i] = running.add(k, exp2_nonpositive((u[k] - top[i]) * c.exp2_scale));
      b.e[i * K + k] = sum[i];
    }
  }
  Found<V> f = found_of_sums(sum[0], sum[1]);
  const V unit_size = c.unit_size(dir, f.inv_sum[dir]);
  I lo = {};  // the last knot known to be at or before v
  int step = 1;
  while (2 * step < K) step *= 2;
  for (; step > 0; step /= 2) {
    const I next = lo + Int(step), k = next < Int(K) ? next : I{} + Int(K - 1);
    const V knot =
        gather_rows(b.e + dir * K - 1, k) * unit_size + (c.low[dir] + c.min_size[dir] * __builtin_convertvector(k, V));
    lo = ((v >= knot) & (next < Int(K))) ? k : lo;
  }
  f.k = __builtin_convertvector(lo, V);
  for (int i = 0; i < 2; ++i) {
    const V sum_before = gather_rows(b.e + i * K, lo > 0 ? lo - 1 : lo);
    f.before[i] = select(lo > 0, sum_before, V{});
    f.in[i] = exp2_nonpositive((gather_rows(b.raw + i * K, lo) - top[i]) * c.exp2_scale);
  }
  f.u0 = gather_rows(b.raw + 2 * K, lo);
  f.u1 = gather_rows(b.raw + 2 * K, lo + 1);
  return f;
}

template <class T>
FK_INLINE FoundGrad<T> first_of(const FoundGrad<Pair<T>>& g) {
  return {g.v.a,
          g.u0.a,
          g.u1.a,
          g.u_lambda.a,
          {g.before[0].a, g.before[1].a},
          {g.in[0].a, g.in[1].a},
          {g.after[0].a, g.after[1].a}};
}
template <class T>
FK_INLINE FoundGrad<T> second_of(const FoundGrad<Pair<T>>& g) {
  return {g.v.b,
          g.u0.b,
          g.u1.b,
          g.u_lambda.b,
          {g.before[0].b, g.before[1].b},
          {g.in[0].b, g.in[1].b},
          {g.after[0].b, g.after[1].b}};
}

template <class T>
FK_INLINE Found<Pair<T>> zip(const Found<T>& f, const Found<T>& g) {
  return {{f.k, g.k},
          {{f.before[0], g.before[0]}, {f.before[1], g.before[1]}},
          {{f.in[0], g.in[0]}, {f.in[1], g.in[1]}},
          {f.u0, g.u0},
          {f.u1, g.u1},
          {{f.inv_sum[0], g.inv_sum[0]}, {f.inv_sum[1], g.inv_sum[1]}},
          {f.u_lambda, g.u_lambda}};
}

// Raw logits and a value -> where it lies. dir 0 searches in x, 1 in y. Backward needs the
// exponentials of all bins, so it always scans.
template <bool Backward, class C, class S = typename C::S, class V = typename C::V>
FK_INLINE Found<V> find(const C& c, Block<S>& b, int dir, V v) {
  Found<V> f = !Backward && c.bins >= kSearchBins ? search(c, b, dir, v) : scan(c, b, dir, v);
  if (c.splits) f.u_lambda = gather_rows(b.raw + 3 * c.bins + 1, __builtin_convertvector(f.k, typename Simd<S>::I));
  return f;
}

// ---- two blocks of lanes ----

template <class C, class S = typename C::S>
FK_INLINE void load_blocks(const C& c, const ParamLanes<S>& params, Block<S>* b) {
  for (int i = 0; i < 2; ++i) {
    load_block(c, params, i, b[i]);
    set_edges(c, b[i]);
  }
}

template <class C, class S = typename C::S, class T = Pair<typename C::V>>
__attribute__((noinline)) void eval_any(const C& c, const ParamLanes<S>& params, Block<S>* b, bool inverse, T v, T* out,
                                        T* ladj) {
  load_blocks(c, params, b);
  const Found<T> f = zip(find<false>(c, b[0], inverse, v.a), find<false>(c, b[1], inverse, v.b));
  if (c.splits)
    eval_found<Linear>(c, f, inverse, v, out, ladj);
  else
    eval_found<Quadratic>(c, f, inverse, v, out, ladj);
}

// Softmax backward: rows of one block.
template <class C, class S = typename C::S, class V = typename C::V>
FK_INLINE void size_grads(const C& c, Block<S>& b, int i, V k, V a_before, V a_in, V a_after) {
  const int K = c.bins;
  const V *e = b.e + i * K, *u = b.raw + i * K;
  V* out = b.grad + i * K;
  for (int j = 0; j < K; ++j) {
    const V a = select(k == S(j), a_in, select(k > S(j), a_before, a_after));
    out[j] = e[j] * a;
    if constexpr (C::kClipped) {
      const V q = 1 - c.clip_size * abs_(u[j]);
      out[j] *= q * q;
    }
  }
}

template <class C, class S = typename C::S, class V = typename C::V>
FK_INLINE void slope_grads(const C& c, Block<S>& b, V k, V g0, V g1) {
  const int K = c.bins;
  const V zero = {};
  V* out = b.grad + 2 * K;
  out[0] = select(k == S(0), g0, zero);
  for (int j = 1; j <= K; ++j) out[j] = select(k == S(j), g0, select(k == S(j - 1), g1, zero));
  if (c.tails == Tails::circular) out[0] += out[K];
}

template <class C, class S = typename C::S, class V = typename C::V>
FK_INLINE void split_grads(const C& c, Block<S>& b, V k, V g) {
  V* out = b.grad + 3 * c.bins + 1;
  for (int j = 0; j < c.bins; ++j) out[j] = select(k == S(j), g, V{});
}

// Leaves d loss / d params in the blocks' grad and returns d loss / d v.
template <class C, class S = typename C::S, class T = Pair<typename C::V>>
__attribute__((noinline)) T grad_any(const C& c, const ParamLanes<S>& params, Block<S>* b, bool inverse, T v, T g_out,
                                     T g_ladj) {
  load_blocks(c, params, b);
  const Found<T> f = zip(find<true>(c, b[0], inverse, v.a), find<true>(c, b[1], inverse, v.b));
  const FoundGrad<T> g = c.splits ? grad_found<Linear>(c, f, inverse, v, g_out, g_ladj)
                                  : grad_found<Quadratic>(c, f, inverse, v, g_out, g_ladj);
  for (int i = 0; i < 2; ++i) {
    size_grads(c, b[0], i, f.k.a, g.before[i].a, g.in[i].a, g.after[i].a);
    size_grads(c, b[1], i, f.k.b, g.before[i].b, g.in[i].b, g.after[i].b);
  }
  slope_grads(c, b[0], f.k.a, g.u0.a, g.u1.a);
  slope_grads(c, b[1], f.k.b, g.u0.b, g.u1.b);
  if (c.splits) {
    split_grads(c, b[0], f.k.a, g.u_lambda.a);
    split_grads(c, b[1], f.k.b, g.u_lambda.b);
  }
  return g.v;
}

}  // namespace fk::FK_ISA

// The way from logits to the bin where the number of bins is known when this is compiled: exponentials and their sums
// stay in registers, no maximum is taken away from the logits first, and halves of the bins are left out until one
// remains. Derivation and measurements: flowkernels/ops/rqs/README.md.
//
// Without the maximum a lane whose logits are far from 0 has no sums in a float's range: such lanes, and those with a
// NaN, take the results of the kernel for any number of bins. Chosen lane by lane, so that a lane's bits never depend
// on its neighbours.
//
// Rows of the op and strips of a fused layer must give the same bits, and their code up to the bin is compiled apart.
// So nothing there is left to the compiler to fuse or not: products meet sums in fused() alone.
#pragma once
#include "rqs_lanes.h"

namespace fk::FK_ISA {

// The range of both sums in which their reciprocals, and the products of those, are normal numbers.
constexpr float kLeastSum = 0x1p-60f, kLargestSum = 0x1p60f;

template <int N, class V>
FK_INLINE V tree_sum(const V* e) {
  if constexpr (N == 1)
    return e[0];
  else
    return tree_sum<N / 2>(e) + tree_sum<N - N / 2>(e + N / 2);
}

// ---- search by halves ----

// Of N candidates the upper N - N / 2, or as many of the lower ones: of an odd number the middle one stays among them,
// though no value is found in it. `Beside`: how many more knots there are than bins.
template <int N, int Beside = 0, class V, class M>
FK_INLINE void keep_half(V* e, M past) {
  constexpr int H = N / 2;
  for (int j = 0; j < N - H + Beside; ++j) e[j] = select(past, e[j + H], e[j]);
}

// Narrows exponentials e to that of the bin at whose knots v lies, and leaves in `past` which halves were kept.
// `before` is the sum of all that lie before the candidates and `left`, if there are any, k their number.
template <int N, bool First = true, class V, class S, class M>
FK_INLINE void search_halves(V* e, V left, V v, V unit, S low, S min_size, V& before, V& k, M* past) {
  constexpr int H = N / 2;
  const V sum = First ? left : before + left, next = First ? splat<V>(S(H)) : k + S(H);
  *past = v >= fused(sum, unit, fused(next, splat<V>(min_size), splat<V>(low)));
  before = select(*past, sum, First ? V{} : before);
  k = select(*past, next, First ? V{} : k);
  keep_half<N>(e, *past);
  if constexpr (N - H > 1)
    search_halves<N - H, false>(e, tree_sum<(N - H) / 2>(e), v, unit, low, min_size, before, k, past + 1);
}

// The same bin of the other axis.
template <int N, bool First = true, class V, class M>
FK_INLINE void follow_halves(V* e, V left, V& before, const M* past) {
  constexpr int H = N / 2;
  before = First ? select(*past, left, V{}) : select(*past, before + left, before);
  keep_half<N>(e, *past);
  if constexpr (N - H > 1) follow_halves<N - H, false>(e, tree_sum<(N - H) / 2>(e), before, past + 1);
}

// And its slopes.
template <int N, class V, class M>
FK_INLINE void follow_slopes(V* u, const M* past) {
  keep_half<N, 1>(u, *past);
  if constexpr (N - N / 2 > 1) follow_slopes<N - N / 2>(u, past + 1);
}

// ---- params ----

// u[0 .. K], the slope logits of all knots. With linear tails neither of the outer ones is a param, and what lies
// before the slopes is read in the first one's place: as many whole quads.
template <int K, bool Linear, class C, class P, class V>
FK_INLINE void load_slopes(const C& c, const P& params, int i, V* u) {
  constexpr int Q = kQuad<typename C::S>;
  if (Linear || c.tails == Tails::linear) {
    load_run<K>(params, i, 2 * K - 1, u);
    u[0] = u[K] = splat<V>(c.edge_logit);
    return;
  }
  load_run<K>(params, i, 2 * K, u);
  if (c.tails == Tails::circular) {
    u[K] = u[0];
  } else {
    V last[Q];
    params.load_quad(i, 3 * K + 1 - Q, last);
    u[K] = last[Q - 1];
  }
}

template <int K, bool Linear, class C, class P, class V>
FK_INLINE void store_slopes(const C& c, const P& grads, int i, V last_height, V* u) {
  constexpr int Q = kQuad<typename C::S>;
  if (Linear || c.tails == Tails::linear) {
    u[0] = last_height;
    store_run<K>(grads, i, 2 * K - 1, u);
    return;
  }
  if (c.tails == Tails::circular) u[0] += u[K];
  store_run<K>(grads, i, 2 * K, u);
  if (c.tails == Tails::none) grads.store_quad(i, 3 * K + 1 - Q, u + K + 1 - Q);
}

// f(where params lie, LinearTails<..>()): the usual cases with what is known of them, the others with any tails.
template <bool Linear>
struct LinearTails {
  static constexpr bool value = Linear;
};
template <int K, class C, class S, class F>
FK_INLINE void with_layout(const C& c, const ParamLanes<S>& params, const F& f) {
  constexpr int kDense = 3 * K - 1;
  const bool linear = c.tails == Tails::linear;
  if (linear && params.stride == kDense)
    f(EvenRows<S, kDense>{params.base, kDense}, LinearTails<true>());
  else if (linear && params.stride == 0)
    f(params.strips(), LinearTails<true>());
  else
    params.visit([&](const auto& p) __attribute__((always_inline)) { f(p, LinearTails<false>()); });
}

// K logits -> their exponentials; returns the sum.
template <int K, class C, class P, class V>
FK_INLINE V exp_run(const C& c, const P& params, int i, int p, V* e) {
  load_run<K>(params, i, p, e);
  for (int j = 0; j < K; ++j) e[j] = exp2_scaled(e[j], c.exp2_scale, c.least_logit, c.largest_logit);
  return tree_sum<K>(e);
}

// ---- the bin ----

// Also of a NaN.
template <class T>
FK_INLINE auto out_of_range(T sum) {
  return ~((sum >= kLeastSum) & (sum <= kLargestSum));
}

// `bad`: the lanes of which nothing here is to be believed. `kept`, of [2 K]: where the exponentials of widths and
// heights go for backward, or null.
template <int K, bool Inverse, bool Linear, class C, class P, class V, class M>
FK_INLINE Found<V> find_known(const C& c, const P& params, int i, V v, V* kept, M* bad) {
  constexpr int kMostHalvings = 7;
  constexpr int A = Inverse, B = !Inverse;  // the axis that is searched, and the other
  M past[kMostHalvings];
  Found<V> f = {};
  V a[K], b[K], u[K + 1];
  const V sum_a = exp_run<K>(c, params, i, A * K, a);
  if (kept)
    for (int j = 0; j < K; ++j) kept[A * K + j] = a[j];
  f.inv_sum[A] = reciprocal(sum_a);
  search_halves<K>(a, tree_sum<K / 2>(a), v, f.inv_sum[A] * c.free_size[A], c.low[A], c.min_size[A], f.before[A], f.k,
                   past);
  f.in[A] = a[0];

  const V sum_b = exp_run<K>(c, params, i, B * K, b);
  if (kept)
    for (int j = 0; j < K; ++j) kept[B * K + j] = b[j];
  f.inv_sum[B] = reciprocal(sum_b);
  follow_halves<K>(b, tree_sum<K / 2>(b), f.before[B], past);
  f.in[B] = b[0];

  load_slopes<K, Linear>(c, params, i, u);
  follow_slopes<K>(u, past);
  f.u0 = u[0];
  f.u1 = u[1];
  *bad = out_of_range(sum_a) | out_of_range(sum_b);
  return f;
}

template <int K, bool Inverse, class C, class S, class V, class M>
FK_INLINE Found<Pair<V>> find_known(const C& c, const ParamLanes<S>& params, Pair<V> v, V* kept, Pair<M>* bad) {
  Found<V> a, b;
  with_layout<K>(c, params, [&](const auto& p, auto linear) __attribute__((always_inline)) {
    a = find_known<K, Inverse, decltype(linear)::value>(c, p, 0, v.a, kept, &bad->a);
    b = find_known<K, Inverse, decltype(linear)::value>(c, p, 1, v.b, kept ? kept + 2 * K : kept, &bad->b);
  });
  return zip(a, b);
}

// ---- two blocks of lanes ----

template <int K, bool Inverse, class C, class S = typename C::S, class V = typename C::V, class T = Pair<V>>
__attribute__((noinline)) void eval_known(const C& c, const ParamLanes<S>& params, Block<S>* scratch, T v, T* out,
                                          T* ladj) {
  decltype(v < v) bad;
  const Found<T> f = find_known<K, Inverse>(c, params, v, static_cast<V*>(nullptr), &bad);
  eval_found<Quadratic>(c, f, Inverse, v, out, ladj);
  if (__builtin_expect(!any_(bad), 1)) return;
  T slow_out, slow_ladj;
  eval_any(c, params, scratch, Inverse, v, &slow_out, &slow_ladj);
  *out = select(bad, slow_out, *out);
  *ladj = select(bad, slow_ladj, *ladj);
}

// The gradient of what bin j's exponential is multiplied by: bin k was found, and j is before it, in it or after it.
template <int K, class V>
FK_INLINE V of_bin(V k, int j, V before, V in, V after) {
  using S = typename ScalarOf<V>::S;
  const V g = j == 0 ? in : select(k > S(j - 1), in, after);
  return j == K - 1 ? g : select(k > S(j), before, g);
}

// That of knot j's slope logit: u0 at knot k, u1 at the next one.
template <int K, class V>
FK_INLINE V of_knot(V k, int j, V u0, V u1) {
  using S = typename ScalarOf<V>::S;
  V g = j == 0 ? V{} : j == 1 ? u1 : select(k > S(j - 2), u1, V{});
  if (j < K) g = j == 0 ? u0 : select(k > S(j - 1), u0, g);
  return j < K - 1 ? select(k > S(j), V{}, g) : g;
}

// The gradients of K sizes, quad after quad: none waits in memory for the others.
template <int K, int J = 0, class P, class V>
FK_INLINE V store_size_grads(const P& grads, int i, int p, V k, V before, V in, V after, const V* e) {
  constexpr int Q = kQuad<typename ScalarOf<V>::S>, at = J <= K - Q ? J : K - Q;
  V g[Q];
  for (int q = 0; q < Q; ++q) g[q] = e[at + q] * of_bin<K>(k, at + q, before, in, after);
  grads.store_quad(i, p + at, g);
  if constexpr (J + Q < K)
    return store_size_grads<K, J + Q>(grads, i, p, k, before, in, after, e);
  else
    return g[Q - 1];
}

// The gradients of block i's params, from the exponentials in `kept`.
template <int K, bool Linear, class C, class P, class V>
FK_INLINE void store_grads(const C& c, const P& grads, int i, V k, const FoundGrad<V>& g, const V* kept) {
  store_size_grads<K>(grads, i, 0, k, g.before[0], g.in[0], g.after[0], kept);
  const V last = store_size_grads<K>(grads, i, K, k, g.before[1], g.in[1], g.after[1], kept + K);
  V u[K + 1];
  for (int j = 0; j <= K; ++j) u[j] = of_knot<K>(k, j, g.u0, g.u1);
  store_slopes<K, Linear>(c, grads, i, last, u);
}

template <int K, bool Inverse, class C, class S = typename C::S, class V = typename C::V, class T = Pair<V>>
__attribute__((noinline)) T grad_known(const C& c, const ParamLanes<S>& params, const ParamLanes<S>& grads,
                                       Block<S>* scratch, T v, T g_out, T g_ladj) {
  decltype(v < v) bad;
  V kept[4 * K];
  const Found<T> f = find_known<K, Inverse>(c, params, v, kept, &bad);
  const FoundGrad<T> g = grad_found<Quadratic>(c, f, Inverse, v, g_out, g_ladj);
  const bool some_bad = any_(bad);
  T g_v = g.v;
  // First, since the gradients may go where the params are.
  if (__builtin_expect(some_bad, 0)) g_v = select(bad, grad_any(c, params, scratch, Inverse, v, g_out, g_ladj), g_v);
  with_layout<K>(c, grads, [&](const auto& to, auto linear) __attribute__((always_inline)) {
    store_grads<K, decltype(linear)::value>(c, to, 0, f.k.a, first_of(g), kept);
    store_grads<K, decltype(linear)::value>(c, to, 1, f.k.b, second_of(g), kept + 2 * K);
  });
  if (__builtin_expect(some_bad, 0)) {
    store_lanes(c, scratch[0], 0, bad.a, grads);
    store_lanes(c, scratch[1], 1, bad.b, grads);
  }
  return g_v;
}

}  // namespace fk::FK_ISA

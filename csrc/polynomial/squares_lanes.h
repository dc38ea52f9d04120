// Integrals of sums of squared polynomials, in lanes; coefficients lie as [k][j][lane]. See ops/polynomial/README.md.
#pragma once
#include "../univariate/root_lanes.h"
#include "polynomial.h"

namespace fk::FK_ISA {

template <class S>
struct Squares {
  using V = typename Simd<S>::V;
  using T = Pair<V>;
  static constexpr int N = 2 * kLanes<S>, kMost = PolynomialSpec::kMaxNodes + 1;
  static constexpr S kFar = sizeof(S) == 4 ? S(1e37) : S(1e300);  // from where on squares are no numbers

  int n, terms;  // n: coefficients of a polynomial, and nodes
  bool shift;
  S bound, slope, centre, weight, stop;
  S nodes[kMost], weights[kMost];

  explicit Squares(const PolynomialSpec& s)
      : n(s.degree + 1),
        terms(s.terms),
        shift(s.shift),
        bound(S(s.bound)),
        slope(S(s.slope)),
        centre(S(s.centre)),
        weight(S(s.weight)),
        stop(s.bounded ? S(s.bound) : kFar) {
    for (int i = 0; i < n; ++i) nodes[i] = S(s.nodes[i]), weights[i] = S(s.weights[i]);
    nodes[n] = 1, weights[n] = 0;
  }

  FK_INLINE T shift_of(const S* c) const { return shift ? load_pair(c + terms * n * N) : T{}; }

  // p_k(u), with its centre.
  FK_INLINE T polynomial(const S* c, T u) const {
    T p = load_pair(c + (n - 1) * N);
    for (int j = n - 2; j >= 0; --j) p = p * u + load_pair(c + j * N);
    return p + centre;
  }
  FK_INLINE T density(const S* c, T u) const {
    T sum = {};
    for (int k = 0; k < terms; ++k) {
      const T p = polynomial(c + k * n * N, u);
      sum = sum + p * p;
    }
    return sum * weight + slope;
  }
  // The mean of the density from 0 to x.
  FK_INLINE T mean(const S* c, T u) const {
    T sum = {};
    for (int i = 0; i < n; ++i) sum = sum + density(c, u * nodes[i]) * weights[i];
    return sum;
  }

  void eval(const S* c, T x, T* y, T* ladj) const {
    const T u = x / bound;
    *y = x * mean(c, u) + shift_of(c);
    *ladj = log_(density(c, u));
  }

  T solve(const S* c, T y) const {
    const T off = y - shift_of(c), size = abs_(off), zero = {};
    const auto negative = off < 0;
    const T sign = select(negative, zero - S(1), zero + S(1));
    const T high = min_(size / (zero + slope), zero + stop);
    const T root = find_root(
        size, zero, high, min_(size, high),
        [&](T m, T* f, T* g) {
          const T u = sign * m / bound;
          *f = m * mean(c, u);
          *g = density(c, u);
        },
        // Of the logarithms: the bracket has many powers of ten.
        [&](V low, V top) { return sqrt_(max_(low, splat<V>(1 / kFar))) * sqrt_(top); });
    return sign * select(size == 0, size, root);
  }

  // The density at x, and its derivative.
  FK_INLINE void slopes(const S* c, T u, T* g, T* g_x) const {
    T sum = {}, of = {};
    for (int k = 0; k < terms; ++k) {
      const S* a = c + k * n * N;
      T p = load_pair(a + (n - 1) * N), d = {};
      for (int j = n - 2; j >= 0; --j) {
        d = d * u + p;
        p = p * u + load_pair(a + j * N);
      }
      p = p + centre;
      sum = sum + p * p;
      of = of + p * d;
    }
    *g = sum * weight + slope;
    *g_x = of * (2 * weight / bound);
  }

  // The gradients of the coefficients at x, of y and of the logarithm of the density g.
  void put_grads(const S* c, S* to, T x, T g, T of_y, T of_log) const {
    const T u = x / bound, per_node = of_y * x * (2 * weight);
    T at[kMost], w[kMost], q[kMost];
    for (int i = 0; i < n; ++i) at[i] = u * nodes[i], w[i] = per_node * weights[i];
    at[n] = u, w[n] = of_log * (2 * weight) / g;
    for (int k = 0; k < terms; ++k) {
      for (int i = 0; i <= n; ++i) q[i] = w[i] * polynomial(c + k * n * N, at[i]);
      for (int j = 0; j < n; ++j) {
        T sum = q[n];
        for (int i = 0; i < n; ++i) sum = sum + q[i];
        store_pair(to + (k * n + j) * N, sum);
        if (j + 1 < n)
          for (int i = 0; i <= n; ++i) q[i] = q[i] * at[i];
      }
    }
    if (shift) store_pair(to + terms * n * N, of_y);
  }
};

}  // namespace fk::FK_ISA

// Integrals of sums of squared polynomials, written once for lanes and for a thread of a GPU; coefficients lie as
// [k][j]. See ops/polynomial/README.md. Included after Numbers and find_root of either.
#pragma once
#include "polynomial.h"

namespace fk::FK_ISA {

template <class S>
struct Squares {
  using C = Numbers<S>;
  using T = typename C::T;
  static constexpr int kMost = PolynomialSpec::kMaxNodes + 1;
  static constexpr S kFar = sizeof(S) == 4 ? S(1e37) : S(1e300);  // from where on squares are no numbers
  static constexpr S kEnd = sizeof(S) == 4 ? S(1e30) : S(1e290);  // where y ends: networks of it still have numbers

  int n, terms;  // n: coefficients of a polynomial, and nodes
  bool shift, inverse;
  S bound, slope, centre, weight, stop;
  S nodes[kMost], weights[kMost];

  explicit Squares(const PolynomialSpec& s)
      : n(s.degree + 1),
        terms(s.terms),
        shift(s.shift),
        inverse(s.inverse),
        bound(S(s.bound)),
        slope(S(s.slope)),
        centre(S(s.centre)),
        weight(S(s.weight)),
        stop(s.bounded ? S(s.bound) : kFar) {
    for (int i = 0; i < n; ++i) nodes[i] = S(s.nodes[i]), weights[i] = S(s.weights[i]);
    nodes[n] = 1, weights[n] = 0;
  }

  static FK_INLINE T stopped(T v, S most) { return min_(max_(v, T{} - most), T{} + most); }

  FK_INLINE T shift_of(C c) const { return shift ? c.get(terms * n) : T{}; }

  // p_k(u), with its centre.
  FK_INLINE T polynomial(C c, T u) const {
    T p = c.get(n - 1);
    for (int j = n - 2; j >= 0; --j) p = p * u + c.get(j);
    return p + centre;
  }
  FK_INLINE T density(C c, T u) const {
    T sum = {};
    for (int k = 0; k < terms; ++k) {
      const T p = polynomial(c.from(k * n), u);
      sum = sum + p * p;
    }
    return sum * weight + slope;
  }
  // The mean of the density from 0 to x.
  FK_INLINE T mean(C c, T u) const {
    T sum = {};
    for (int i = 0; i < n; ++i) sum = sum + density(c, u * nodes[i]) * weights[i];
    return sum;
  }

  FK_FUNCTION T solve(C c, T y) const {
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
        [&](auto low, auto top) { return sqrt_(max_(low, splat<decltype(low)>(1 / kFar))) * sqrt_(top); });
    return sign * select(size == 0, size, root);
  }

  FK_FUNCTION void map(C c, C, T v, T* out, T* ladj) const {
    if (!inverse) {
      const T far = T{} + kFar, at = stopped(v, kFar), u = at / bound;
      *out = stopped(at * min_(mean(c, u), far) + shift_of(c), kEnd);
      *ladj = log_(min_(density(c, u), far));
      return;
    }
    const T x = solve(c, v);
    *ladj = -log_(density(c, x / bound));
    *out = select(*ladj == *ladj, x, *ladj);  // a search leaves out what is no number
  }

  // The density at x, and its derivative.
  FK_INLINE void slopes(C c, T u, T* g, T* g_x) const {
    T sum = {}, of = {};
    for (int k = 0; k < terms; ++k) {
      const C a = c.from(k * n);
      T p = a.get(n - 1), d = {};
      for (int j = n - 2; j >= 0; --j) {
        d = d * u + p;
        p = p * u + a.get(j);
      }
      p = p + centre;
      sum = sum + p * p;
      of = of + p * d;
    }
    *g = sum * weight + slope;
    *g_x = of * (2 * weight / bound);
  }

  // The gradients of the coefficients at x, of y and of the logarithm of the density g; `to` may be where they are.
  FK_FUNCTION void put_grads(C c, C to, C q, T x, T g, T of_y, T of_log) const {
    const T u = x / bound, per_node = of_y * x * (2 * weight), last = of_log * (2 * weight) / g;
    for (int k = 0; k < terms; ++k) {
      const C a = c.from(k * n), of = to.from(k * n);
      for (int i = 0; i < n; ++i) q.put(i, per_node * weights[i] * polynomial(a, u * nodes[i]));
      q.put(n, last * polynomial(a, u));
      for (int j = 0; j < n; ++j) {
        T sum = q.get(n);
        for (int i = 0; i < n; ++i) sum = sum + q.get(i);
        of.put(j, sum);
        if (j + 1 < n)
          for (int i = 0; i <= n; ++i) q.put(i, q.get(i) * (u * nodes[i]));
      }
    }
    if (shift) to.put(terms * n, of_y);
  }

  // Puts the gradients of the coefficients and returns that of v, of an inverse by the implicit function theorem.
  FK_FUNCTION T grad(C c, C to, C room, T v, T g_out, T g_ladj) const {
    const T x = inverse ? solve(c, v) : v;
    T g, g_x, g_v;
    slopes(c, x / bound, &g, &g_x);
    if (inverse) {
      g_v = (g_out - g_ladj * (g_x / g)) / g;
      put_grads(c, to, room, x, g, -g_v, -g_ladj);
    } else {
      g_v = g_out * g + g_ladj * (g_x / g);
      put_grads(c, to, room, x, g, g_out, g_ladj);
    }
    return g_v;
  }
};

}  // namespace fk::FK_ISA

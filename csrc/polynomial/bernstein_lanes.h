// Bernstein polynomials on a box, in lanes, each seen from the nearer end of the box. See ops/polynomial/README.md.
#pragma once
#include "../univariate/root_lanes.h"
#include "polynomial.h"

namespace fk::FK_ISA {

// Where a lane stands: at u of the box from the nearer end, or inside as far as the polynomial goes.
template <class T, class M>
struct BernsteinPlace {
  M mirrored, outside;
  T u, inside;
};

template <class S>
struct Bernstein {
  using V = typename Simd<S>::V;
  using T = Pair<V>;
  using M = Pair<typename Simd<S>::I>;
  static constexpr int N = 2 * kLanes<S>, kMost = PolynomialSpec::kMaxSteps;
  // Far below the spacing of y, and large enough that its logarithm is a number: softplus is 0 at -1e4.
  static constexpr S kLeast = sizeof(S) == 4 ? S(1e-12) : S(1e-24);

  int params, n;  // n: steps
  bool linear;
  S bound, width, end, free, lowered, edge;
  S choose[kMost];  // n - 1 over i

  // Room to work in, [n][N] each.
  S *steps, *near, *before, *grads;  // the steps; from the nearer end, and their sums; gradients of the former

  Bernstein(const PolynomialSpec& s, Arena& arena)
      : params(s.params()),
        n(s.steps()),
        linear(s.linear_tails),
        bound(S(s.bound)),
        width(S(2 * s.bound)),
        end(S(2 * s.bound / (s.params() + 4))),
        free(S(2 * s.bound - 8 * s.bound / (s.params() + 4))),
        lowered(S(0.69314718055994530942 * s.params() / 2)),
        edge(S(s.edge)),
        steps(arena.take<S>(size_t(n) * N)),
        near(arena.take<S>(size_t(n) * N)),
        before(arena.take<S>(size_t(n) * N)),
        grads(arena.take<S>(size_t(n) * N)) {
    double c = 1;
    for (int i = 0; i < n; ++i) {
      choose[i] = S(c);
      c = c * (n - 1 - i) / (i + 1);
    }
  }

  static FK_INLINE T softplus(T u) {
    const T e = exp_(-abs_(u)), zero = {};
    return max_(u, zero) + T{log1p_unit(e.a), log1p_unit(e.b)};
  }

  // The steps, and the first and the last coefficient.
  void read(const S* p, T* first, T* last) const {
    const T zero = {};
    if (!linear) {
      for (int i : {0, 1, n - 2, n - 1}) store_pair(steps + i * N, zero + end);
      T most = load_pair(p), sum = {};
      for (int i = 1; i < params; ++i) most = max_(most, load_pair(p + i * N));
      for (int i = 0; i < params; ++i) {
        const T e = exp_(load_pair(p + i * N) - most);
        store_pair(steps + (i + 2) * N, e);
        sum = sum + e;
      }
      const T share = free / sum;
      for (int i = 2; i < params + 2; ++i) store_pair(steps + i * N, load_pair(steps + i * N) * share);
      *last = zero + bound, *first = zero - bound;
      return;
    }
    T sum = {};
    for (int i = 1; i < params; ++i) {
      const T step = max_(softplus(load_pair(p + i * N)), zero + kLeast);
      store_pair(steps + i * N, step);
      sum = sum + step;
    }
    const T low = load_pair(steps + N), high = load_pair(steps + (params - 1) * N);
    store_pair(steps, low);
    store_pair(steps + params * N, high);
    *first = load_pair(p) - lowered;
    *last = *first + (sum + low + high);
  }

  FK_INLINE T step_at(int i, M mirrored) const {
    return select(mirrored, load_pair(steps + (n - 1 - i) * N), load_pair(steps + i * N));
  }

  // The steps as the nearer end has them, and their sums, both times the binomials.
  void order(M mirrored) const {
    T sum = {};
    for (int i = 0; i < n; ++i) {
      const T step = step_at(i, mirrored);
      store_pair(near + i * N, step * choose[i]);
      store_pair(before + i * N, sum * choose[i]);
      sum = sum + step;
    }
  }

  // In powers of r = u/(1 - u), (1 - u)^(n - 1) apart: even ones and odd ones, in half as many steps, which round half
  // as often.
  struct Sums {
    T low, of_before, of_near;
  };
  FK_INLINE Sums sums(T u) const {
    const T rest = S(1) - u, r = u / rest, square = r * r;
    const int top = (n - 1) / 2;
    T b0 = load_pair(before + 2 * top * N), s0 = load_pair(near + 2 * top * N), b1 = {}, s1 = {}, low = T{} + S(1);
    if (n % 2 == 0) b1 = load_pair(before + (n - 1) * N), s1 = load_pair(near + (n - 1) * N);
    for (int i = top - 1; i >= 0; --i) {
      b0 = b0 * square + load_pair(before + 2 * i * N);
      s0 = s0 * square + load_pair(near + 2 * i * N);
      b1 = b1 * square + load_pair(before + (2 * i + 1) * N);
      s1 = s1 * square + load_pair(near + (2 * i + 1) * N);
      low = low * rest * rest;  // not by squares, each of which would double the errors before it
    }
    if (n % 2 == 0) low = low * rest;
    return {low, b0 + r * b1, s0 + r * s1};
  }

  // How far y is above the coefficient of the nearer end, u of the box away from it, and the slope by u.
  FK_INLINE void rise(T u, T* y, T* slope) const {
    const Sums at = sums(u);
    *y = at.low * (at.of_before + u * at.of_near);
    *slope = S(n) * (at.low * at.of_near);
  }

  FK_INLINE BernsteinPlace<T, M> place(T x) const {
    BernsteinPlace<T, M> p;
    p.mirrored = x > 0;
    p.u = (bound - abs_(x)) / width;
    p.outside = p.u <= edge;
    p.inside = max_(p.u, T{} + edge);
    return p;
  }
  FK_INLINE T identity(T x, M mirrored) const {
    const T beyond = T{} + 2 * bound * edge;
    return x + select(mirrored, beyond, -beyond);
  }

  void eval(const S* c, T x, T* y, T* ladj) const {
    T first, last, up, slope;
    read(c, &first, &last);
    const auto p = place(x);
    order(p.mirrored);
    rise(p.inside, &up, &slope);
    if (linear) up = up + slope * (p.u - p.inside);
    const T from = select(p.mirrored, -last, first) + up;
    *y = select(p.mirrored, -from, from);
    *ladj = log_(slope / width);
    if (!linear) {
      *y = select(p.outside, identity(x, p.mirrored), *y);
      *ladj = select(p.outside, T{}, *ladj);
    }
  }

  T solve(const S* c, T y) const {
    T first, last, up, slope;
    read(c, &first, &last);
    const T zero = {}, half = zero + S(0.5);
    order(first < first);  // none mirrored
    rise(half, &up, &slope);
    const M mirrored = (y - first) - up > 0;
    order(mirrored);
    const T from = select(mirrored, -last, first), target = select(mirrored, -y, y) - from, low = zero + edge;
    T at_low, of_low;
    rise(low, &at_low, &of_low);
    rise(half, &up, &slope);
    const M outside = (linear ? target - at_low : target) <= 0;
    const T goal = select(outside, up, target);
    T u = find_root(
        goal, low, half, min_(max_(half * (goal / up), low), half), [&](T m, T* f, T* g) { rise(m, f, g); },
        [](V a, V b) { return S(0.5) * (a + b); });
    if (linear) u = select(outside, low + (target - at_low) / of_low, u);
    const T size = bound - u * (2 * bound), x = select(mirrored, size, -size);
    if (linear) return x;
    const T beyond = zero + 2 * bound * edge;
    return select(outside, y - select(mirrored, beyond, -beyond), x);
  }

  // Of the polynomial at x, whose steps are read and in order: the slope, and its logarithm's derivative.
  void slopes(const BernsteinPlace<T, M>& p, T* g, T* log_g_x) const {
    T up, slope;
    rise(p.inside, &up, &slope);
    // Of the steps' differences, which a polynomial of one degree less has.
    const T rest = S(1) - p.inside, r = p.inside / rest;
    T d = {}, low = T{} + S(1);
    S c = 1;  // n - 2 over i
    for (int i = n - 2; i >= 0; --i) {
      const T differs = step_at(i + 1, p.mirrored) - step_at(i, p.mirrored);
      d = d * r + differs * c;
      c = c * S(i) / S(n - 1 - i);
      if (i > 0) low = low * rest;
    }
    const T of_u = S(n) * S(n - 1) * (low * d) / slope;
    const T along = select(p.mirrored, -of_u, of_u) / width;
    *g = slope / width;
    *log_g_x = select(p.u < edge, T{}, along);
    if (!linear) {
      *g = select(p.outside, T{} + S(1), *g);
      *log_g_x = select(p.outside, T{}, *log_g_x);
    }
  }

  // The gradients of the parameters, of y and of the logarithm of the slope.
  void put_grads(const S* c, S* to, const BernsteinPlace<T, M>& p, T of_y, T of_log) const {
    const T zero = {}, r = p.inside / (S(1) - p.inside);
    const Sums at = sums(p.inside);
    const T sum = at.low * at.of_near, own = p.inside + S(n) * (p.u - p.inside),
            along = select(p.mirrored, -of_y, of_y);
    const T all = linear ? of_y : zero;  // of every step where the far end's coefficient is what y is seen from
    const T of_slope = of_log / sum;
    T basis = at.low;
    for (int i = 0; i < n; ++i) {
      store_pair(near + i * N, basis * choose[i]);
      basis = basis * r;
    }
    T tail = {};
    for (int i = n - 1; i >= 0; --i) {
      const T b = load_pair(near + i * N);
      T g = along * (tail + own * b) + of_slope * b + select(p.mirrored, all, zero);
      if (!linear) g = select(p.outside, zero, g);
      store_pair(grads + i * N, g);
      tail = tail + b;
    }
    const auto of_step = [&](int i) {
      return select(p.mirrored, load_pair(grads + (n - 1 - i) * N), load_pair(grads + i * N));
    };
    if (!linear) {
      T mean = {};
      for (int i = 2; i < params + 2; ++i) mean = mean + load_pair(steps + i * N) * of_step(i);
      mean = mean / (zero + free);
      for (int i = 0; i < params; ++i) store_pair(to + i * N, load_pair(steps + (i + 2) * N) * (of_step(i + 2) - mean));
      return;
    }
    store_pair(to, of_y);
    for (int i = 1; i < params; ++i) {
      T g = of_step(i);
      if (i == 1) g = g + of_step(0);
      if (i == params - 1) g = g + of_step(params);
      const T u = load_pair(c + i * N), e = exp_(-abs_(u)), logistic = select(u < 0, e, zero + S(1)) / (S(1) + e);
      store_pair(to + i * N, select(load_pair(steps + i * N) <= kLeast, zero, g * logistic));
    }
  }
};

}  // namespace fk::FK_ISA

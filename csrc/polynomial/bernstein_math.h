// Bernstein polynomials on a box, each seen from the nearer end of it; written once for lanes and for a thread of a
// GPU. See ops/polynomial/README.md. Included after Numbers and find_root of either.
#pragma once
#include "polynomial.h"

namespace fk::FK_ISA {

// Where a value stands: at u of the box from the nearer end, or inside as far as the polynomial goes.
template <class T, class M>
struct BernsteinPlace {
  M mirrored, outside;
  T u, inside;
};

// Room to work in: the steps; from the nearer end, and their sums, or gradients of the former.
template <class C>
struct BernsteinRoom {
  C steps, near, before;
};

template <class S>
struct Bernstein {
  using C = Numbers<S>;
  using T = typename C::T;
  using M = decltype(T{} < T{});
  using Room = BernsteinRoom<C>;
  static constexpr int kMost = PolynomialSpec::kMaxSteps;
  // Far below the spacing of y, and large enough that its logarithm is a number: softplus is 0 at -1e4.
  static constexpr S kLeast = sizeof(S) == 4 ? S(1e-12) : S(1e-24);

  int params, n;  // n: steps
  bool linear, inverse;
  S bound, width, end, free, lowered, edge;
  S choose[kMost];  // n - 1 over i

  explicit Bernstein(const PolynomialSpec& s)
      : params(s.params()),
        n(s.steps()),
        linear(s.linear_tails),
        inverse(s.inverse),
        bound(S(s.bound)),
        width(S(2 * s.bound)),
        end(S(2 * s.bound / (s.params() + 4))),
        free(S(2 * s.bound - 8 * s.bound / (s.params() + 4))),
        lowered(S(0.69314718055994530942 * s.params() / 2)),
        edge(S(s.edge)) {
    double c = 1;
    for (int i = 0; i < n; ++i) {
      choose[i] = S(c);
      c = c * (n - 1 - i) / (i + 1);
    }
  }

  FK_INLINE Room rooms(C of) const { return {of, of.from(n), of.from(2 * n)}; }

  static FK_INLINE T softplus(T u) {
    const T e = exp_(-abs_(u)), zero = {};
    return max_(u, zero) + log1p_unit(e);
  }

  // The steps, and the first and the last coefficient.
  FK_FUNCTION void read(Room room, C p, T* first, T* last) const {
    const T zero = {};
    if (!linear) {
      for (int i = 0; i < 2; ++i) room.steps.put(i, zero + end), room.steps.put(n - 2 + i, zero + end);
      T most = p.get(0), sum = {};
      for (int i = 1; i < params; ++i) most = max_(most, p.get(i));
      for (int i = 0; i < params; ++i) {
        const T e = exp_(p.get(i) - most);
        room.steps.put(i + 2, e);
        sum = sum + e;
      }
      const T share = free / sum;
      for (int i = 2; i < params + 2; ++i) room.steps.put(i, room.steps.get(i) * share);
      *last = zero + bound, *first = zero - bound;
      return;
    }
    T sum = {};
    for (int i = 1; i < params; ++i) {
      const T step = max_(softplus(p.get(i)), zero + kLeast);
      room.steps.put(i, step);
      sum = sum + step;
    }
    const T low = room.steps.get(1), high = room.steps.get(params - 1);
    room.steps.put(0, low);
    room.steps.put(params, high);
    *first = p.get(0) - lowered;
    *last = *first + (sum + low + high);
  }

  FK_INLINE T step_at(Room room, int i, M mirrored) const {
    return select(mirrored, room.steps.get(n - 1 - i), room.steps.get(i));
  }

  // The steps as the nearer end has them, and their sums, both times the binomials.
  FK_FUNCTION void order(Room room, M mirrored) const {
    T sum = {};
    for (int i = 0; i < n; ++i) {
      const T step = step_at(room, i, mirrored);
      room.near.put(i, step * choose[i]);
      room.before.put(i, sum * choose[i]);
      sum = sum + step;
    }
  }

  // In powers of r = u/(1 - u), (1 - u)^(n - 1) apart: even ones and odd ones, in half as many steps, which round half
  // as often.
  struct Sums {
    T low, of_before, of_near;
  };
  FK_INLINE Sums sums(Room room, T u) const {
    const T rest = S(1) - u, r = u / rest, square = r * r;
    const int top = (n - 1) / 2;
    T b0 = room.before.get(2 * top), s0 = room.near.get(2 * top), b1 = {}, s1 = {}, low = T{} + S(1);
    if (n % 2 == 0) b1 = room.before.get(n - 1), s1 = room.near.get(n - 1);
    for (int i = top - 1; i >= 0; --i) {
      b0 = b0 * square + room.before.get(2 * i);
      s0 = s0 * square + room.near.get(2 * i);
      b1 = b1 * square + room.before.get(2 * i + 1);
      s1 = s1 * square + room.near.get(2 * i + 1);
      low = low * rest * rest;  // not by squares, each of which would double the errors before it
    }
    if (n % 2 == 0) low = low * rest;
    return {low, b0 + r * b1, s0 + r * s1};
  }

  // How far y is above the coefficient of the nearer end, u of the box away from it, and the slope by u.
  FK_INLINE void rise(Room room, T u, T* y, T* slope) const {
    const Sums at = sums(room, u);
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

  FK_FUNCTION void eval(Room room, C c, T x, T* y, T* ladj) const {
    T first, last, up, slope;
    read(room, c, &first, &last);
    const auto p = place(x);
    order(room, p.mirrored);
    rise(room, p.inside, &up, &slope);
    if (linear) up = up + slope * (p.u - p.inside);
    const T from = select(p.mirrored, -last, first) + up;
    *y = select(p.mirrored, -from, from);
    *ladj = log_(slope / width);
    if (!linear) {
      *y = select(p.outside, identity(x, p.mirrored), *y);
      *ladj = select(p.outside, T{}, *ladj);
    }
  }

  FK_FUNCTION T solve(Room room, C c, T y) const {
    T first, last, up, slope;
    read(room, c, &first, &last);
    const T zero = {}, half = zero + S(0.5);
    order(room, first < first);  // none mirrored
    rise(room, half, &up, &slope);
    const M mirrored = (y - first) - up > 0;
    order(room, mirrored);
    const T from = select(mirrored, -last, first), target = select(mirrored, -y, y) - from, low = zero + edge;
    T at_low, of_low;
    rise(room, low, &at_low, &of_low);
    rise(room, half, &up, &slope);
    const M outside = (linear ? target - at_low : target) <= 0;
    const T goal = select(outside, up, target);
    T u = find_root(
        goal, low, half, min_(max_(half * (goal / up), low), half), [&](T m, T* f, T* g) { rise(room, m, f, g); },
        [](auto a, auto b) { return S(0.5) * (a + b); });
    if (linear) u = select(outside, low + (target - at_low) / of_low, u);
    const T size = bound - u * (2 * bound), x = select(mirrored, size, -size);
    if (linear) return x;
    const T beyond = zero + 2 * bound * edge;
    return select(outside, y - select(mirrored, beyond, -beyond), x);
  }

  FK_FUNCTION void map(C c, C of, T v, T* out, T* ladj) const {
    const Room room = rooms(of);
    if (!inverse) return eval(room, c, v, out, ladj);
    const T x = solve(room, c, v);
    T y;
    eval(room, c, x, &y, ladj);
    *out = x, *ladj = -*ladj;
  }

  // Of the polynomial at x, whose steps are read and in order: the slope, and its logarithm's derivative.
  FK_FUNCTION void slopes(Room room, const BernsteinPlace<T, M>& p, T* g, T* log_g_x) const {
    T up, slope;
    rise(room, p.inside, &up, &slope);
    // Of the steps' differences, which a polynomial of one degree less has.
    const T rest = S(1) - p.inside, r = p.inside / rest;
    T d = {}, low = T{} + S(1);
    S c = 1;  // n - 2 over i
    for (int i = n - 2; i >= 0; --i) {
      const T differs = step_at(room, i + 1, p.mirrored) - step_at(room, i, p.mirrored);
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

  // The gradients of the parameters, of y and of the logarithm of the slope; `to` may be where they are.
  FK_FUNCTION void put_grads(Room room, C c, C to, const BernsteinPlace<T, M>& p, T of_y, T of_log) const {
    const T zero = {}, r = p.inside / (S(1) - p.inside);
    const Sums at = sums(room, p.inside);
    const T sum = at.low * at.of_near, own = p.inside + S(n) * (p.u - p.inside),
            along = select(p.mirrored, -of_y, of_y);
    const T all = linear ? of_y : zero;  // of every step where the far end's coefficient is what y is seen from
    const T of_slope = of_log / sum;
    T basis = at.low;
    for (int i = 0; i < n; ++i) {
      room.near.put(i, basis * choose[i]);
      basis = basis * r;
    }
    T tail = {};
    for (int i = n - 1; i >= 0; --i) {
      const T b = room.near.get(i);
      T g = along * (tail + own * b) + of_slope * b + select(p.mirrored, all, zero);
      if (!linear) g = select(p.outside, zero, g);
      room.before.put(i, g);
      tail = tail + b;
    }
    const auto of_step = [&](int i) { return select(p.mirrored, room.before.get(n - 1 - i), room.before.get(i)); };
    if (!linear) {
      T mean = {};
      for (int i = 2; i < params + 2; ++i) mean = mean + room.steps.get(i) * of_step(i);
      mean = mean / (zero + free);
      for (int i = 0; i < params; ++i) to.put(i, room.steps.get(i + 2) * (of_step(i + 2) - mean));
      return;
    }
    to.put(0, of_y);
    for (int i = 1; i < params; ++i) {
      T g = of_step(i);
      if (i == 1) g = g + of_step(0);
      if (i == params - 1) g = g + of_step(params);
      const T u = c.get(i), e = exp_(-abs_(u)), logistic = select(u < 0, e, zero + S(1)) / (S(1) + e);
      to.put(i, select(room.steps.get(i) <= kLeast, zero, g * logistic));
    }
  }

  // Puts the gradients of the parameters and returns that of v, of an inverse by the implicit function theorem.
  FK_FUNCTION T grad(C c, C to, C of, T v, T g_out, T g_ladj) const {
    const Room room = rooms(of);
    const T x = inverse ? solve(room, c, v) : v;
    const auto at = place(x);
    T first, last, g, log_g_x, g_v;
    read(room, c, &first, &last);
    order(room, at.mirrored);
    slopes(room, at, &g, &log_g_x);
    if (inverse) {
      g_v = (g_out - g_ladj * log_g_x) / g;
      put_grads(room, c, to, at, -g_v, -g_ladj);
    } else {
      g_v = g_out * g + g_ladj * log_g_x;
      put_grads(room, c, to, at, g_out, g_ladj);
    }
    return g_v;
  }
};

}  // namespace fk::FK_ISA

// The mixture map, written once for lanes and for a thread of a GPU: components one after another. Derivations are in
// flowkernels/ops/mixture/README.md. Included after Numbers and normal_tail of either.
//
// Sums over components are taken twice where they have to be: of plain numbers, with the largest weight as 1, which is
// right for lanes whose sums are all far from underflow; and, for the others, of logarithms.
#pragma once
#include <math.h>

#include <type_traits>

#include "mixture.h"

namespace fk::FK_ISA {

// The settings in the arithmetic type.
template <class Scalar>
struct MixtureConsts {
  using S = Scalar;
  static constexpr S kFar = S(1e18);                                 // where z stops: its square is a number
  static constexpr S kTiny = sizeof(S) == 4 ? S(1e-20) : S(1e-200);  // of sums: the smallest that have all their digits
  static constexpr S kEps = sizeof(S) == 4 ? S(0x1p-23) : S(0x1p-52);
  int K, params;
  MixtureOuter outer;
  S low, high;
  bool normal, inverse;

  explicit MixtureConsts(const MixtureSpec& s)
      : K(s.components),
        params(s.params()),
        outer(s.outer),
        low(S(s.low)),
        high(S(s.high)),
        normal(s.kernel == MixtureKernel::normal),
        inverse(s.inverse) {}
};

// What follows asks of a room R of a value type T: its parameters, raw(i), which gradients replace, put(i, v); numbers
// of each component, weight(k) and per_scale(k), e^(w - max w) and e^-s; top and total, max w and the sum of weights.
// One that keeps what it is told of the components at the last x, R::kKeeps, returns it; another computes it anew.

// Sums over components, with the largest weight as 1: of the distribution function, what it lacks, the density.
template <class T>
struct MixtureSums {
  T below, above, density;
};

// The slopes of log below and of -log above.
template <class T>
struct MixtureSlopes {
  T below, above;
};

// One component at x: its place there, its two sides and its density.
template <class T>
struct MixtureComponent {
  T z, small, big, density;
};

// Logarithms of a component's terms in the sums, and its density over either side.
template <class T>
struct MixtureTerms {
  MixtureSums<T> of;
  MixtureSlopes<T> hazard;
};

template <class C, class R, class T = typename R::T>
FK_FUNCTION void prepare(const C& c, R& r) {
  r.top = r.raw(0);
  for (int k = 1; k < c.K; ++k) r.top = max_(r.top, r.raw(k));
  r.total = T{};
  for (int k = 0; k < c.K; ++k) {
    const T weight = exp_(r.raw(k) - r.top);
    r.total = r.total + weight;
    r.put_weight(k, weight);
    r.put_per_scale(k, exp_(-min_(max_(r.raw(2 * c.K + k), T{} + c.low), T{} + c.high)));
  }
}

template <bool Normal, class C, class R, class T = typename R::T>
FK_INLINE MixtureComponent<T> component_at(const C& c, const R& r, int k, T x) {
  using S = typename C::S;
  const T z = min_(max_((x - r.raw(c.K + k)) * r.per_scale(k), T{} - c.kFar), T{} + c.kFar);
  if constexpr (Normal) {
    const auto tail = normal_tail(z);
    const T e = exp_(S(-0.5) * z * z);  // with the same rounding in both, whose ratio matters
    const T small = S(0.5) * tail.t * exp_(tail.rest) * e;
    return {z, small, 1 - small, S(0.39894228040143268) * e};
  } else {
    const T e = exp_(-abs_(z)), q = 1 / (1 + e), small = e * q;
    return {z, small, q, small * q};
  }
}

// At the x of the last sums.
template <class C, class R, class T = typename R::T>
FK_INLINE MixtureComponent<T> component_of(const C& c, const R& r, int k) {
  if constexpr (R::kKeeps)
    return r.component(k);
  else
    return c.normal ? component_at<true>(c, r, k, r.x) : component_at<false>(c, r, k, r.x);
}

template <bool Normal, class C, class R, class T = typename R::T>
FK_INLINE MixtureSums<T> plain_sums(const C& c, R& r, T x) {
  MixtureSums<T> s = {T{}, T{}, T{}};
  for (int k = 0; k < c.K; ++k) {
    const MixtureComponent<T> of = component_at<Normal>(c, r, k, x);
    r.keep(k, of);
    const T w = r.weight(k);
    const auto up = of.z >= 0;
    s.below = s.below + w * select(up, of.big, of.small);
    s.above = s.above + w * select(up, of.small, of.big);
    s.density = s.density + w * (of.density * r.per_scale(k));
  }
  return s;
}

template <class C, class R, class T = typename R::T>
FK_INLINE MixtureTerms<T> terms_at(const C& c, const R& r, int k) {
  using S = typename C::S;
  const MixtureComponent<T> at = component_of(c, r, k);
  const T z = at.z, w = r.raw(k) - r.top;
  T small, big, density, of_small, of_big;  // logarithms; density over the sides
  if (c.normal) {
    const auto tail = normal_tail(z);
    const T square = S(0.5) * z * z;
    small = log_(S(0.5) * tail.t) + (tail.rest - square);
    big = log_(1 - at.small);
    density = -square - S(0.91893853320467274);
    of_small = S(0.79788456080286536) / tail.t * exp_(-tail.rest);
    of_big = at.density / (1 - at.small);
  } else {
    const T e = exp_(-abs_(z));
    big = -log1p_unit(e);
    small = big - abs_(z);
    density = small + big;
    of_small = 1 - at.small;
    of_big = at.small;
  }
  const auto up = z >= 0;
  const T scale = min_(max_(r.raw(2 * c.K + k), T{} + c.low), T{} + c.high);
  return {{w + select(up, big, small), w + select(up, small, big), w + (density - scale)},
          {select(up, of_big, of_small) * r.per_scale(k), select(up, of_small, of_big) * r.per_scale(k)}};
}

template <class C, class R, class T = typename R::T>
FK_INLINE MixtureTerms<T> terms_of(const C& c, const R& r, int k) {
  if constexpr (R::kKeeps)
    return r.terms(k);
  else
    return terms_at(c, r, k);
}

// Logarithms of the same sums.
template <class C, class R, class T = typename R::T>
FK_NOINLINE MixtureSums<T> log_sums(const C& c, R& r, MixtureSlopes<T>* slopes) {
  using S = typename C::S;
  const T none = T{} - S(INFINITY);
  MixtureSums<T> most = {none, none, none}, sum = {T{}, T{}, T{}};
  for (int k = 0; k < c.K; ++k) {
    const MixtureTerms<T> t = terms_at(c, r, k);
    r.keep(k, t);
    most = {max_(t.of.below, most.below), max_(t.of.above, most.above), max_(t.of.density, most.density)};
  }
  MixtureSlopes<T> slope = {T{}, T{}};
  for (int k = 0; k < c.K; ++k) {
    const MixtureTerms<T> t = terms_of(c, r, k);
    const T below = exp_(t.of.below - most.below), above = exp_(t.of.above - most.above);
    sum = {sum.below + below, sum.above + above, sum.density + exp_(t.of.density - most.density)};
    slope = {slope.below + below * t.hazard.below, slope.above + above * t.hazard.above};
  }
  *slopes = {slope.below / sum.below, slope.above / sum.above};
  return {most.below + log_(sum.below), most.above + log_(sum.above), most.density + log_(sum.density)};
}

// What is known of the mixture at x. The logarithms are right where `far` holds, the plain sums elsewhere.
template <class T, class M>
struct MixtureAt {
  MixtureSums<T> plain, logs;
  MixtureSlopes<T> slopes;
  M far;
  bool any_far;
};

template <class C, class R, class T = typename R::T>
FK_INLINE auto mixture_at(const C& c, R& r, T x) {
  r.x = x;
  const MixtureSums<T> s = c.normal ? plain_sums<true>(c, r, x) : plain_sums<false>(c, r, x);
  const auto far = min_(min_(s.below, s.above), s.density) < c.kTiny;
  MixtureSlopes<T> g = {s.density / s.below, s.density / s.above};
  MixtureAt<T, std::decay_t<decltype(far)>> at = {s, s, g, far, any_(far)};
  if (at.any_far) {
    at.logs = log_sums(c, r, &g);
    at.slopes = {select(far, g.below, at.slopes.below), select(far, g.above, at.slopes.above)};
  }
  return at;
}

// log p for p <= 1/2 as -L: t >= 0 with Phi(-t) = p. Halley's steps on -log Phi(-t); slope: its derivative there.
template <class T>
FK_NOINLINE T normal_quantile(T L, T* slope) {
  using S = typename ScalarOf<T>::S;
  const T rest = max_(L - S(0.69314718055994531), T{});
  T t = S(1.2533141373155003) * rest / sqrt_(1 + S(0.78539816339744831) * rest);
  for (int i = 0; i < (sizeof(S) == 4 ? 3 : 4); ++i) {
    const auto tail = normal_tail(t);
    const T rate = S(0.79788456080286536) / tail.t * exp_(-tail.rest);
    const T miss = (S(0.5) * t * t - tail.rest - log_(S(0.5) * tail.t)) - L;
    t = max_(t - miss / (rate - S(0.5) * miss * (rate - t)), T{});
    *slope = rate;
  }
  return t;
}

// y, the logarithm of dy/dx; of probit how fast log of the smaller side falls with |y|, of unit the smaller side.
template <class T>
struct MixtureOut {
  T y, ladj, side;
};

template <class C, class R, class At, class T = typename R::T>
FK_INLINE MixtureOut<T> outer_of(const C& c, const R& r, const At& at) {
  using S = typename C::S;
  const MixtureSums<T>&s = at.plain, &l = at.logs;
  if (c.outer == MixtureOuter::logit) {
    T y = log_(s.below / s.above), ladj = log_(s.density / s.below * (r.total / s.above));
    if (at.any_far) {
      y = select(at.far, l.below - l.above, y);
      ladj = select(at.far, (l.density - l.below) + (log_(r.total) - l.above), ladj);
    }
    return {y, ladj, T{}};
  }
  const auto low = at.any_far ? select(at.far, l.below - l.above, s.below - s.above) < S(0) : s.below < s.above;
  if (c.outer == MixtureOuter::unit) {
    T half = select(low, s.below, s.above) / r.total, ladj = log_(s.density / r.total);
    if (at.any_far) {
      const T log_total = log_(r.total);
      half = select(at.far, exp_(select(low, l.below, l.above) - log_total), half);
      ladj = select(at.far, l.density - log_total, ladj);
    }
    return {select(low, half, 1 - half), ladj, half};
  }
  T log_p = log_(select(low, s.below, s.above) / r.total);
  if (at.any_far) log_p = select(at.far, select(low, l.below, l.above) - log_(r.total), log_p);
  T rate;
  const T t = normal_quantile(-log_p, &rate);
  // Not log density - log phi(y), whose squares cancel, but where the density itself has no digits left.
  T ladj = log_(select(low, at.slopes.below, at.slopes.above) / rate);
  if (at.any_far) ladj = select(at.far, l.density - log_(r.total) + (S(0.5) * t * t + S(0.91893853320467274)), ladj);
  return {select(low, -t, t), ladj, rate};
}

// The logit of the distribution function that y asks for, and where a component of mean 0 and scale 1 has it.
template <class C, class T>
FK_INLINE T target_of(const C& c, T y, T* quantile) {
  using S = typename C::S;
  T target = y;
  if (c.outer == MixtureOuter::unit) target = log_(y) - log_(1 - y);
  if (c.outer == MixtureOuter::probit) {
    const auto tail = normal_tail(y);
    const T small = log_(S(0.5) * tail.t) + (tail.rest - S(0.5) * y * y), rise = log_(1 - exp_(small)) - small;
    target = select(y < S(0), -rise, rise);
  }
  *quantile = target;
  if (c.normal && c.outer == MixtureOuter::probit) *quantile = y;
  if (c.normal && c.outer != MixtureOuter::probit) {
    const T size = abs_(target), e = exp_(-size);
    T rate;
    const T t = normal_quantile(size + log1p_unit(e), &rate);
    *quantile = select(target < S(0), -t, t);
  }
  return target;
}

// The root x of the map at y: bracketed Newton, lanes together; one that is done stays where it is.
template <class C, class R, class T = typename R::T>
FK_NOINLINE T mixture_root(const C& c, R& r, T y) {
  using S = typename C::S;
  T quantile;
  const T target = target_of(c, y, &quantile);
  constexpr S kLeast = sizeof(S) == 4 ? S(1e-37) : S(1e-300);  // of slopes: of plateaus it is 0
  T low = T{} + S(INFINITY), high = T{} - S(INFINITY), steepest = {};
  for (int k = 0; k < c.K; ++k) {
    const T at = r.raw(c.K + k) + quantile / r.per_scale(k);
    low = min_(at, low), high = max_(at, high);
    steepest = max_(r.per_scale(k), steepest);
  }
  // Steps over which no component's slope changes much.
  const T short_step = S(0x1p-6) / steepest;
  T x = low + S(0.5) * (high - low), last = T{} + S(INFINITY);
  x = select(low < high, x, low);
  const T enough = (1 + abs_(target)) * (4 * c.kEps);
  auto done = T{} < T{};
  for (int step = 0; step < 128; ++step) {
    const auto at = mixture_at(c, r, x);
    T logit = log_(at.plain.below / at.plain.above);
    if (at.any_far) logit = select(at.far, at.logs.below - at.logs.above, logit);
    const MixtureSlopes<T> g = at.slopes;
    const T miss = logit - target, size = abs_(miss), slope = max_(g.below + g.above, T{} + kLeast);
    low = select(miss < S(0), x, low), high = select(miss > S(0), x, high);
    const T tangent = x - miss / slope, inside = min_(max_(tangent, low), high);
    const auto small = size <= enough;
    const auto halved = size < S(0.5) * last;
    const auto within = inside == tangent;
    // At a root the tangent gives the last digits; of a plateau it leads away from it.
    const auto last_digits = within & (abs_(tangent - x) <= short_step);
    const T middle = low + S(0.5) * (high - low);
    const T on = select(halved & within, inside, middle);
    const T next = select(done, x, select(small, select(last_digits, inside, x), on));
    // NaN is never equal to itself, and done at once.
    done = done | small | (abs_(next - x) <= c.kEps * abs_(x)) | (miss != miss);
    x = select(miss != miss, miss, next), last = size;
    if (!any_(!done)) break;
  }
  return select(abs_(target) > S(sizeof(S) == 4 ? 3e38 : 1e308), target, x);
}

template <class C, class R, class T = typename R::T>
FK_FUNCTION void eval_mixture(const C& c, R& r, T v, T* out, T* ladj) {
  prepare(c, r);
  const T x = c.inverse ? mixture_root(c, r, v) : v;
  const MixtureOut<T> found = outer_of(c, r, mixture_at(c, r, x));
  *out = c.inverse ? x : found.y;
  *ladj = c.inverse ? -found.ladj : found.ladj;
}

// The share of a component in the density.
template <class C, class R, class At, class T = typename R::T>
FK_INLINE T share_at(const C& c, const R& r, const At& at, int k, const MixtureComponent<T>& of) {
  T share = r.weight(k) * (of.density * r.per_scale(k)) / at.plain.density;
  if (at.any_far) share = select(at.far, exp_(terms_of(c, r, k).of.density - at.logs.density), share);
  return share;
}

// Puts d loss / d params where the params are, and returns d loss / d v.
template <class C, class R, class T = typename R::T>
FK_FUNCTION T grad_mixture(const C& c, R& r, T v, T g_out, T g_ladj) {
  using S = typename C::S;
  prepare(c, r);
  const T x = c.inverse ? mixture_root(c, r, v) : v;
  const auto at = mixture_at(c, r, x);
  const MixtureOut<T> found = outer_of(c, r, at);
  const MixtureSlopes<T> g = at.slopes;
  T bend = {};  // the derivative of the density's logarithm
  for (int k = 0; k < c.K; ++k) {
    const MixtureComponent<T> of = component_of(c, r, k);
    const T share = share_at(c, r, at, k, of);
    r.keep_share(k, share);
    const T big_less_small = of.big - of.small;
    const T rho = c.normal ? -of.z : select(of.z >= 0, -big_less_small, big_less_small);
    bend = bend + share * (r.per_scale(k) * rho);
  }
  T slope = exp_(found.ladj), of_ladj = bend;
  if (c.outer == MixtureOuter::logit) slope = g.below + g.above, of_ladj = bend + (g.above - g.below);
  if (c.outer == MixtureOuter::probit) {
    slope = select(found.y < S(0), g.below, g.above) / found.side;
    of_ladj = bend + found.y * slope;
  }
  T g_y = g_out, g_l = g_ladj, g_v = g_out * slope + g_ladj * of_ladj;
  if (c.inverse) {
    g_v = (g_out - g_ladj * of_ladj) / slope;
    g_y = -g_v, g_l = -g_ladj;
  }
  // Gradients of log below, of log above; g_l is that of the density's logarithm.
  T below = g_y - g_l, above = -g_y - g_l;
  if (c.outer != MixtureOuter::logit) {
    const bool unit = c.outer == MixtureOuter::unit;
    const auto low = unit ? found.y < S(0.5) : found.y < S(0);
    const T of_side = unit ? g_y * found.side : (g_y + g_l * found.y) / found.side;
    below = select(low, of_side, T{}), above = select(low, T{}, -of_side);
  }
  const T all = (below + above + g_l) / r.total, moved = above * g.above - below * g.below;
  for (int k = 0; k < c.K; ++k) {
    const MixtureComponent<T> of = component_of(c, r, k);
    const T z = of.z, small = of.small, big = of.big, w = r.weight(k), per_scale = r.per_scale(k);
    T share;
    if constexpr (R::kKeeps)
      share = r.share(k);
    else
      share = share_at(c, r, at, k, of);
    const auto up = z >= 0;
    T in_below = w * select(up, big, small) / at.plain.below;
    T in_above = w * select(up, small, big) / at.plain.above;
    if (at.any_far) {
      const MixtureTerms<T> t = terms_of(c, r, k);
      in_below = select(at.far, exp_(t.of.below - at.logs.below), in_below);
      in_above = select(at.far, exp_(t.of.above - at.logs.above), in_above);
    }
    const T rho = c.normal ? -z : select(up, small - big, big - small);
    const T of_mean = share * moved, of_scale = r.raw(2 * c.K + k);
    r.put(k, below * in_below + above * in_above + (g_l * share - all * w));
    r.put(c.K + k, of_mean - g_l * (share * (per_scale * rho)));
    const T g_s = of_mean * (z / per_scale) - g_l * (share * (1 + z * rho));
    r.put(2 * c.K + k, select((of_scale >= c.low) & (of_scale <= c.high), g_s, T{}));
  }
  return g_v;
}

}  // namespace fk::FK_ISA

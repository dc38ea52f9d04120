// The mixture map in SIMD lanes: one lane per element, two blocks of lanes at a time, components one after another.
// Derivations are in flowkernels/ops/mixture/README.md.
//
// Sums over components are taken twice where they have to be: of plain numbers, with the largest weight as 1, which is
// right for lanes whose sums are all far from underflow; and, for the others, of logarithms.
#pragma once
#include "../common/pair.h"
#include "../net/normal_cdf.h"
#include "../univariate/param_lanes.h"
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

// What a thread needs for two blocks of lanes, by component.
template <class S>
struct MixtureRoom {
  using T = Pair<typename Simd<S>::V>;
  static constexpr int N = MixtureSpec::kMostComponents;
  T raw[3 * N];                          // parameters, or their gradients
  T weight[N], per_scale[N];             // e^(w - max w), e^-s
  T z[N], small[N], big[N], density[N];  // at the last x
  T terms[3][N];                         // logarithms
  T hazard[2][N];                        // the density over either side
  T top, total;                          // max w; sum of weights
};

template <class S, class T>
FK_INLINE void load_params(int n, const ParamLanes<S>& params, T* out) {
  constexpr int Q = kQuad<S>;
  params.visit([&](const auto& from) {
    for (int p = 0; p < n; p += n < Q ? 1 : Q) {
      if (n < Q) {
        for (int l = 0; l < kLanes<S>; ++l) out[p].a[l] = from.at(0, p, l), out[p].b[l] = from.at(1, p, l);
        continue;
      }
      const int s = p <= n - Q ? p : n - Q;  // the last quad overlaps instead of reading past the end
      typename Simd<S>::V a[Q], b[Q];
      from.load_quad(0, s, a);
      from.load_quad(1, s, b);
      for (int j = 0; j < Q; ++j) out[s + j] = {a[j], b[j]};
    }
  });
}

template <class S, class T>
FK_INLINE void store_params(int n, const T* in, const ParamLanes<S>& to_lanes) {
  constexpr int Q = kQuad<S>;
  to_lanes.visit([&](const auto& to) {
    for (int p = 0; p < n; p += n < Q ? 1 : Q) {
      if (n < Q) {
        for (int l = 0; l < kLanes<S>; ++l) to.at(0, p, l) = in[p].a[l], to.at(1, p, l) = in[p].b[l];
        continue;
      }
      const int s = p <= n - Q ? p : n - Q;
      typename Simd<S>::V a[Q], b[Q];
      for (int j = 0; j < Q; ++j) a[j] = in[s + j].a, b[j] = in[s + j].b;
      to.store_quad(0, s, a);
      to.store_quad(1, s, b);
    }
  });
}

template <class C, class S = typename C::S>
FK_INLINE void prepare(const C& c, const ParamLanes<S>& params, MixtureRoom<S>& r) {
  using T = typename MixtureRoom<S>::T;
  load_params(c.params, params, r.raw);
  r.top = r.raw[0];
  for (int k = 1; k < c.K; ++k) r.top = max_(r.top, r.raw[k]);
  r.total = T{};
  for (int k = 0; k < c.K; ++k) {
    r.weight[k] = exp_(r.raw[k] - r.top);
    r.total = r.total + r.weight[k];
    r.per_scale[k] = exp_(-min_(max_(r.raw[2 * c.K + k], T{} + c.low), T{} + c.high));
  }
}

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

// The two sides of one component at z, and its density.
template <bool Normal, class T>
FK_INLINE void component(T z, T* small, T* big, T* density) {
  using S = typename ScalarOf<T>::S;
  if constexpr (Normal) {
    const auto tail = normal_tail(z);
    const T e = exp_(S(-0.5) * z * z);  // with the same rounding in both, whose ratio matters
    *small = S(0.5) * tail.t * exp_(tail.rest) * e;
    *big = 1 - *small;
    *density = S(0.39894228040143268) * e;
  } else {
    const T e = exp_(-abs_(z)), q = 1 / (1 + e);
    *small = e * q, *big = q;
    *density = *small * q;
  }
}

template <bool Normal, class C, class S = typename C::S, class T = typename MixtureRoom<S>::T>
FK_INLINE MixtureSums<T> plain_sums(const C& c, MixtureRoom<S>& r, T x) {
  MixtureSums<T> s = {T{}, T{}, T{}};
  for (int k = 0; k < c.K; ++k) {
    const T z = min_(max_((x - r.raw[c.K + k]) * r.per_scale[k], T{} - c.kFar), T{} + c.kFar);
    T small, big, density;
    component<Normal>(z, &small, &big, &density);
    r.z[k] = z, r.small[k] = small, r.big[k] = big, r.density[k] = density;
    const T w = r.weight[k];
    const auto up = z >= 0;
    s.below = s.below + w * select(up, big, small);
    s.above = s.above + w * select(up, small, big);
    s.density = s.density + w * (density * r.per_scale[k]);
  }
  return s;
}

// Logarithms of the same terms, into r.terms, and of their sums.
template <class C, class S = typename C::S, class T = typename MixtureRoom<S>::T>
__attribute__((noinline)) MixtureSums<T> log_sums(const C& c, MixtureRoom<S>& r, MixtureSlopes<T>* slopes) {
  T most[3] = {T{} - S(__builtin_inff()), T{} - S(__builtin_inff()), T{} - S(__builtin_inff())};
  for (int k = 0; k < c.K; ++k) {
    const T z = r.z[k], w = r.raw[k] - r.top;
    T small, big, density, of_small, of_big;  // logarithms; density over the sides
    if (c.normal) {
      const auto tail = normal_tail(z);
      const T square = S(0.5) * z * z;
      small = log_(S(0.5) * tail.t) + (tail.rest - square);
      big = log_(1 - r.small[k]);
      density = -square - S(0.91893853320467274);
      of_small = S(0.79788456080286536) / tail.t * exp_(-tail.rest);
      of_big = r.density[k] / (1 - r.small[k]);
    } else {
      const T e = exp_(-abs_(z));
      big = -(T{log1p_unit(e.a), log1p_unit(e.b)});
      small = big - abs_(z);
      density = small + big;
      of_small = 1 - r.small[k];
      of_big = r.small[k];
    }
    const auto up = z >= 0;
    const T scale = min_(max_(r.raw[2 * c.K + k], T{} + c.low), T{} + c.high);
    const T of[3] = {w + select(up, big, small), w + select(up, small, big), w + (density - scale)};
    for (int i = 0; i < 3; ++i) {
      r.terms[i][k] = of[i];
      most[i] = max_(of[i], most[i]);
    }
    r.hazard[0][k] = select(up, of_big, of_small) * r.per_scale[k];
    r.hazard[1][k] = select(up, of_small, of_big) * r.per_scale[k];
  }
  T sum[3] = {T{}, T{}, T{}}, slope[2] = {T{}, T{}};
  for (int i = 0; i < 3; ++i) {
    for (int k = 0; k < c.K; ++k) {
      const T e = exp_(r.terms[i][k] - most[i]);
      sum[i] = sum[i] + e;
      if (i < 2) slope[i] = slope[i] + e * r.hazard[i][k];
    }
    if (i < 2) slope[i] = slope[i] / sum[i];
    sum[i] = most[i] + log_(sum[i]);
  }
  *slopes = {slope[0], slope[1]};
  return {sum[0], sum[1], sum[2]};
}

// What is known of the mixture at x. The logarithms are right where `far` holds, the plain sums elsewhere.
template <class T, class M>
struct MixtureAt {
  MixtureSums<T> plain, logs;
  MixtureSlopes<T> slopes;
  M far;
  bool any_far;
};

template <class C, class S = typename C::S, class T = typename MixtureRoom<S>::T>
FK_INLINE auto mixture_at(const C& c, MixtureRoom<S>& r, T x) {
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
__attribute__((noinline)) T normal_quantile(T L, T* slope) {
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

template <class C, class At, class S = typename C::S, class T = typename MixtureRoom<S>::T>
FK_INLINE MixtureOut<T> outer_of(const C& c, const MixtureRoom<S>& r, const At& at) {
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
template <class C, class S = typename C::S, class T = typename MixtureRoom<S>::T>
FK_INLINE T target_of(const C& c, T y, T* quantile) {
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
    const T t = normal_quantile(size + T{log1p_unit(e.a), log1p_unit(e.b)}, &rate);
    *quantile = select(target < S(0), -t, t);
  }
  return target;
}

// The root x of the map at y: bracketed Newton, lanes together; one that is done stays where it is.
template <class C, class S = typename C::S, class T = typename MixtureRoom<S>::T>
__attribute__((noinline)) T mixture_root(const C& c, MixtureRoom<S>& r, T y) {
  T quantile;
  const T target = target_of(c, y, &quantile);
  constexpr S kLeast = sizeof(S) == 4 ? S(1e-37) : S(1e-300);  // of slopes: of plateaus it is 0
  T low = T{} + S(__builtin_inff()), high = T{} - S(__builtin_inff()), steepest = {};
  for (int k = 0; k < c.K; ++k) {
    const T at = r.raw[c.K + k] + quantile / r.per_scale[k];
    low = min_(at, low), high = max_(at, high);
    steepest = max_(r.per_scale[k], steepest);
  }
  // Steps over which no component's slope changes much.
  const T short_step = S(0x1p-6) / steepest;
  T x = low + S(0.5) * (high - low), last = T{} + S(__builtin_inff());
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

template <class C, class S = typename C::S, class T = typename MixtureRoom<S>::T>
__attribute__((noinline)) void eval_mixture(const C& c, const ParamLanes<S>& params, MixtureRoom<S>& r, T v, T* out,
                                            T* ladj) {
  prepare(c, params, r);
  const T x = c.inverse ? mixture_root(c, r, v) : v;
  const MixtureOut<T> found = outer_of(c, r, mixture_at(c, r, x));
  *out = c.inverse ? x : found.y;
  *ladj = c.inverse ? -found.ladj : found.ladj;
}

// Puts d loss / d params into `grads`, which may be where the params are, and returns d loss / d v.
template <class C, class S = typename C::S, class T = typename MixtureRoom<S>::T>
__attribute__((noinline)) T grad_mixture(const C& c, const ParamLanes<S>& params, const ParamLanes<S>& grads,
                                         MixtureRoom<S>& r, T v, T g_out, T g_ladj) {
  prepare(c, params, r);
  const T x = c.inverse ? mixture_root(c, r, v) : v;
  const auto at = mixture_at(c, r, x);
  const MixtureOut<T> found = outer_of(c, r, at);
  const MixtureSlopes<T> g = at.slopes;
  // Shares of the components in the density, into r.density, and the derivative of its logarithm.
  T bend = {};
  for (int k = 0; k < c.K; ++k) {
    T share = r.weight[k] * (r.density[k] * r.per_scale[k]) / at.plain.density;
    if (at.any_far) share = select(at.far, exp_(r.terms[2][k] - at.logs.density), share);
    r.density[k] = share;
    const T big_less_small = r.big[k] - r.small[k];
    const T rho = c.normal ? -r.z[k] : select(r.z[k] >= 0, -big_less_small, big_less_small);
    bend = bend + share * (r.per_scale[k] * rho);
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
    const T z = r.z[k], share = r.density[k], small = r.small[k], big = r.big[k];
    const auto up = z >= 0;
    T in_below = r.weight[k] * select(up, big, small) / at.plain.below;
    T in_above = r.weight[k] * select(up, small, big) / at.plain.above;
    if (at.any_far) {
      in_below = select(at.far, exp_(r.terms[0][k] - at.logs.below), in_below);
      in_above = select(at.far, exp_(r.terms[1][k] - at.logs.above), in_above);
    }
    const T rho = c.normal ? -z : select(up, small - big, big - small);
    const T of_mean = share * moved, of_scale = r.raw[2 * c.K + k];
    r.raw[k] = below * in_below + above * in_above + (g_l * share - all * r.weight[k]);
    r.raw[c.K + k] = of_mean - g_l * (share * (r.per_scale[k] * rho));
    const T g_s = of_mean * (z / r.per_scale[k]) - g_l * (share * (1 + z * rho));
    r.raw[2 * c.K + k] = select((of_scale >= c.low) & (of_scale <= c.high), g_s, T{});
  }
  store_params(c.params, r.raw, grads);
  return g_v;
}

}  // namespace fk::FK_ISA

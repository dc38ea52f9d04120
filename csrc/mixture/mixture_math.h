// The mixture map, written once for lanes and for a thread of a GPU: components one after another. Derivations are in
// flowkernels/ops/mixture/README.md. Included after Numbers, normal_tail, exp_near and reciprocal_near of either: e^u
// for |u| <= 87 (double: 700) and 1 / a of ordinary numbers, for which lanes have shorter forms.
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
  static constexpr bool kWide = sizeof(S) == 8;
  static constexpr S kFar = S(1e18);                        // where z stops for logarithms: its square is a number
  static constexpr S kTiny = kWide ? S(1e-200) : S(1e-20);  // of sums: the smallest that have all their digits
  static constexpr S kEps = kWide ? S(0x1p-52) : S(0x1p-23);
  static constexpr S kInfinite = kWide ? S(1e308) : S(3e38);  // from here on
  int K, params, of_mean, of_scale;                           // where means and log-scales begin
  MixtureOuter outer;
  S low, high, near;     // near: where z stops for plain sums, of which the rest is next to nothing
  S drawn, kept, bound;  // of shrunk ones: half of what is drawn off both sides, and the share that is not
  bool normal, inverse, shifts, shrinks, affine;

  explicit MixtureConsts(const MixtureSpec& s)
      : K(s.components),
        params(s.params()),
        of_mean(s.shifts ? 0 : K),
        of_scale(of_mean + K),
        outer(s.outer),
        low(S(s.low)),
        high(S(s.high)),
        near(s.kernel == MixtureKernel::normal ? S(kWide ? 37 : 13) : S(kWide ? 680 : 80)),
        drawn(S(0.5 * s.shrink)),
        kept(S(1 - s.shrink)),
        bound(S(s.bound)),
        normal(s.kernel == MixtureKernel::normal),
        inverse(s.inverse),
        shifts(s.shifts),
        shrinks(s.shrink > 0),
        affine(K == 1 && !shrinks && s.outer == (normal ? MixtureOuter::probit : MixtureOuter::logit)) {}
};

// What follows asks of a room R of a value type T: its parameters, raw(i), which gradients replace, put(i, v); numbers
// of each component, weight(k) and per_scale(k), e^(w - max w) and e^-s; top and total, max w and the sum of weights.
// One that can keep what it is told of the components at a point, R::kKeeps, returns it; another knows that point, x,
// and has it computed anew. Keep, of functions: that it is told, where what comes next asks for it.

template <class T, class S>
FK_INLINE T clamp_(T v, S low, S high) {
  return min_(max_(v, T{} + low), T{} + high);
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

// One component at x: its place there, both sides of its distribution function, and its density.
template <class T>
struct MixtureComponent {
  T z, below, above, density;
};

// Logarithms of a component's terms in the sums, and its density over either side.
template <class T>
struct MixtureTerms {
  MixtureSums<T> of;
  MixtureSlopes<T> hazard;
};

// A component's mean, or its shift; the logarithm of its scale; its place at x.
template <class C, class R, class T = typename R::T>
FK_INLINE T mean_of(const C& c, const R& r, int k) {
  return r.raw(c.of_mean + k);
}
template <class C, class R, class T = typename R::T>
FK_INLINE T log_scale_of(const C& c, const R& r, int k) {
  const T given = r.raw(c.of_scale + k);
  return clamp_(c.shifts ? -given : given, c.low, c.high);
}
template <class C, class R, class T = typename R::T>
FK_INLINE T place_of(const C& c, const R& r, int k, T x) {
  const T mean = mean_of(c, r, k), per_scale = r.per_scale(k);
  return c.shifts ? x * per_scale + mean : (x - mean) * per_scale;
}

template <class C, class R, class T = typename R::T>
FK_INLINE void prepare(const C& c, R& r) {
  using S = typename C::S;
  r.top = c.shifts ? T{} : r.raw(0);
  for (int k = 1; k < c.K && !c.shifts; ++k) r.top = max_(r.top, r.raw(k));
  r.total = T{};
  for (int k = 0; k < c.K; ++k) {
    const T weight = c.shifts ? T{} + S(1) : exp_near(max_(r.raw(k) - r.top, T{} - S(87)));
    r.put_weight(k, weight);
    r.put_per_scale(k, exp_near(-log_scale_of(c, r, k)));
    r.total = r.total + weight;
  }
}

// Its sides and its density are those of where z stops for plain sums.
template <bool Normal, class C, class R, class T = typename R::T>
FK_INLINE MixtureComponent<T> component_at(const C& c, const R& r, int k, T x) {
  using S = typename C::S;
  const T far = place_of(c, r, k, x), z = clamp_(far, -c.near, c.near);
  const T place = clamp_(far, -c.kFar, c.kFar);
  if constexpr (Normal) {
    const auto tail = normal_tail(z);
    const T e = exp_near(S(-0.5) * z * z);  // with the same rounding in both, whose ratio matters
    const T small = S(0.5) * tail.t * exp_near(tail.rest) * e, big = 1 - small;
    const auto up = z >= 0;
    return {place, select(up, big, small), select(up, small, big), S(0.39894228040143268) * e};
  } else {
    const T e = exp_near(-z), q = reciprocal_near(1 + e), above = e * q;  // each with all its digits
    return {place, q, above, q * above};
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

// The derivative of the logarithm of a component's density, by z.
template <class T>
FK_INLINE T bend_of(bool normal, const MixtureComponent<T>& of) {
  return normal ? -of.z : of.above - of.below;
}

// bend: the derivative of the density, where it is asked for.
template <bool Normal, bool Keep, class C, class R, class T = typename R::T>
FK_INLINE MixtureSums<T> plain_sums(const C& c, R& r, T x, T* bend) {
  MixtureSums<T> s = {T{}, T{}, T{}};
  for (int k = 0; k < c.K; ++k) {
    const MixtureComponent<T> of = component_at<Normal>(c, r, k, x);
    if constexpr (Keep) r.keep(k, of);
    const T w = r.weight(k);
    s.below = s.below + w * of.below;
    s.above = s.above + w * of.above;
    const T density = w * (of.density * r.per_scale(k));
    s.density = s.density + density;
    if (bend) *bend = *bend + density * (r.per_scale(k) * bend_of(Normal, of));
  }
  return s;
}

template <class C, class R, class T = typename R::T>
FK_INLINE MixtureTerms<T> terms_at(const C& c, const R& r, int k) {
  using S = typename C::S;
  const MixtureComponent<T> at = component_of(c, r, k);
  const T z = at.z, w = c.shifts ? T{} : r.raw(k) - r.top, less = min_(at.below, at.above);
  T small, big, density, of_small, of_big;  // logarithms; density over the sides
  if (c.normal) {
    const auto tail = normal_tail(z);
    const T square = S(0.5) * z * z;
    small = log_(S(0.5) * tail.t) + (tail.rest - square);
    big = log_(1 - less);
    density = -square - S(0.91893853320467274);
    of_small = S(0.79788456080286536) / tail.t * exp_(-tail.rest);
    of_big = at.density / (1 - less);
  } else {
    const T e = exp_(-abs_(z));
    big = -log1p_unit(e);
    small = big - abs_(z);
    density = small + big;
    of_small = 1 - less;
    of_big = less;
  }
  const auto up = z >= 0;
  const T scale = log_scale_of(c, r, k);
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
  T per_below, per_above;  // where not far
};

template <bool Keep, class C, class R, class T = typename R::T>
FK_INLINE MixtureSums<T> sums_at(const C& c, R& r, T x, T* bend = nullptr) {
  return c.normal ? plain_sums<true, Keep>(c, r, x, bend) : plain_sums<false, Keep>(c, r, x, bend);
}

template <bool Keep, class C, class R, class T = typename R::T>
FK_INLINE auto mixture_at(const C& c, R& r, T x, T* bend = nullptr) {
  if constexpr (!R::kKeeps) r.x = x;
  const MixtureSums<T> s = sums_at<Keep>(c, r, x, bend);
  const auto far = min_(min_(s.below, s.above), s.density) < c.kTiny;
  const T per_below = reciprocal_near(s.below), per_above = reciprocal_near(s.above);
  MixtureSlopes<T> g = {s.density * per_below, s.density * per_above};
  MixtureAt<T, std::decay_t<decltype(far)>> at = {s, s, g, far, any_(far), per_below, per_above};
  if (at.any_far) {
    if constexpr (R::kKeeps && !Keep) sums_at<true>(c, r, x);
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
    T y = log_short(s.below * at.per_above), ladj = log_short(at.slopes.below * (r.total * at.per_above));
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
  const T half = select(low, s.below, s.above) / r.total;
  T log_p = log_(half), of_half = T{} + S(1);  // of_half: how fast log p moves with log half
  if (at.any_far) log_p = select(at.far, select(low, l.below, l.above) - log_(r.total), log_p);
  if (c.shrinks) {
    const T own = c.kept * (at.any_far ? select(at.far, exp_(log_p), half) : half), p = own + c.drawn;
    log_p = log_(p), of_half = own / p;
  }
  T rate;
  const T t = normal_quantile(-log_p, &rate);
  // Not log density - log phi(y), whose squares cancel, but where the slope itself has no digits left.
  const T slope = select(low, at.slopes.below, at.slopes.above) * of_half;
  T ladj = log_(slope / rate);
  if (at.any_far) {
    T log_density = l.density - log_(r.total);
    if (c.shrinks) log_density = log_density + log_(T{} + c.kept);
    const T by_squares = log_density + (S(0.5) * t * t + S(0.91893853320467274));
    ladj = select(at.far & (slope < c.kTiny), by_squares, ladj);
  }
  return {select(low, -t, t), ladj, c.shrinks ? rate / of_half : rate};
}

// The logit of the distribution function that y asks for, and where a component of mean 0 and scale 1 has it. What no
// shrunk mixture reaches is infinite.
template <class C, class T>
FK_INLINE T target_of(const C& c, T y, T* quantile) {
  using S = typename C::S;
  T target = y;
  if (c.outer == MixtureOuter::unit) target = log_(y) - log_(1 - y);
  if (c.outer == MixtureOuter::probit) {
    const auto tail = normal_tail(y);
    T small = log_(S(0.5) * tail.t) + (tail.rest - S(0.5) * y * y), half = exp_(small);
    if (c.shrinks) half = (half - c.drawn) / c.kept, small = log_(max_(half, T{}));
    const T rise = log_(1 - half) - small;
    target = select(y < S(0), -rise, rise);
  }
  *quantile = target;
  const bool is_y = c.outer == MixtureOuter::probit && !c.shrinks;
  if (c.normal && is_y) *quantile = y;
  if (c.normal && !is_y) {
    const T size = abs_(target), e = exp_(-size);
    T rate;
    const T t = normal_quantile(size + log1p_unit(e), &rate);
    *quantile = select(target < S(0), -t, t);
  }
  return target;
}

// Halley's step for f off by `miss`, of Newton's length u: bend is f'' / f'. Newton's where the two differ much.
template <class T>
FK_INLINE T halley(T u, T bend) {
  using S = typename ScalarOf<T>::S;
  const T by = 1 - S(0.5) * u * bend;
  return u / select((by > S(0.5)) & (by < S(2)), by, T{} + S(1));
}

// The root x of the map at y, within a bracket, lanes together; one that is done stays where it is.
template <class C, class R, class T = typename R::T>
FK_NOINLINE T mixture_root(const C& c, R& r, T y) {
  using S = typename C::S;
  T quantile;
  const T target = target_of(c, y, &quantile);
  constexpr S kLeast = sizeof(S) == 4 ? S(1e-37) : S(1e-300);  // of slopes: of plateaus it is 0
  T low = T{} + S(INFINITY), high = T{} - S(INFINITY), steepest = {}, first = {}, shares = {};
  for (int k = 0; k < c.K; ++k) {
    const T mean = mean_of(c, r, k);
    const T at = c.shifts ? (quantile - mean) / r.per_scale(k) : mean + quantile / r.per_scale(k);
    low = min_(at, low), high = max_(at, high);
    steepest = max_(r.per_scale(k), steepest);
    const T share = r.weight(k) * sqrt_(r.per_scale(k));
    first = first + share * at, shares = shares + share;
  }
  // Steps over which no component's slope changes much.
  const T short_step = S(0x1p-6) / steepest;
  T x = min_(max_(first / shares, low), high), last = T{} + S(INFINITY);
  const T enough = (1 + abs_(target)) * (4 * c.kEps);
  T before = {};  // the error that a step of Halley's came from; 0: none did
  auto done = T{} < T{};
  for (int step = 0; step < 128; ++step) {
    T bend = {};
    const auto at = mixture_at<false>(c, r, x, &bend);
    T logit = log_short(at.plain.below / at.plain.above);
    if (at.any_far) logit = select(at.far, at.logs.below - at.logs.above, logit);
    const MixtureSlopes<T> g = at.slopes;
    const T miss = logit - target, size = abs_(miss), slope = max_(g.below + g.above, T{} + kLeast);
    low = select(miss < S(0), x, low), high = select(miss > S(0), x, high);
    bend = bend / at.plain.density + (g.above - g.below);
    if (at.any_far) bend = select(at.far, T{}, bend);
    const T straight = miss / slope, tangent = x - halley(straight, bend), inside = min_(max_(tangent, low), high);
    const auto small = size <= enough;
    const auto halved = size < S(0.5) * last;
    const auto within = inside == tangent;
    // At a root the tangent gives the last digits; of a plateau it leads away from it.
    const auto last_digits = within & (abs_(tangent - x) <= short_step);
    const T middle = low + S(0.5) * (high - low);
    // Where the steps shrink so fast that nothing is left behind this one, it is the last; not a long one, behind which
    // another component may begin.
    const T shorter = size / before, turned = straight * bend;
    auto ends = last_digits & (size * max_(shorter * shorter, turned * turned) <= S(0x1p-6) * enough);
    if (at.any_far) ends = ends & !at.far;
    const auto goes_on = halved & within;
    const T on = select(goes_on | ends, inside, middle);
    const T next = select(done, x, select(small, select(last_digits, inside, x), on));
    // NaN is never equal to itself, and done at once.
    done = done | small | ends | (abs_(next - x) <= c.kEps * abs_(x)) | (miss != miss);
    before = select(goes_on, size, T{});
    x = select(miss != miss, miss, next), last = size;
    if (!any_(!done)) break;
  }
  x = select(abs_(target) > c.kInfinite, target, x);
  return c.shrinks ? clamp_(x, -c.bound, c.bound) : x;
}

// Puts the gradient of a log-scale where it does not stop.
template <class C, class R, class T = typename R::T>
FK_INLINE void put_scale(const C& c, R& r, int k, T g) {
  const T given = c.shifts ? -r.raw(c.of_scale + k) : r.raw(c.of_scale + k);
  r.put(c.of_scale + k, select((given >= c.low) & (given <= c.high), g, T{}));
}

// One component of the distribution that `outer` is the quantile of: y = z. s: its log-scale.
template <class C, class R, class T = typename R::T>
FK_INLINE T affine_scale(const C& c, const R& r, T* s) {
  *s = log_scale_of(c, r, 0);
  return exp_(c.inverse ? *s : -*s);
}

template <class C, class R, class T = typename R::T>
FK_INLINE void eval_affine(const C& c, const R& r, T v, T* out, T* ladj) {
  T s;
  const T scale = affine_scale(c, r, &s), w = r.raw(0), m = mean_of(c, r, 0), none = (w - w) + (m - m);
  if (c.shifts)
    *out = (c.inverse ? (v - m) * scale : v * scale + m) + none;
  else
    *out = (c.inverse ? m + v * scale : (v - m) * scale) + none;
  *ladj = select(v == v, (c.inverse ? s : -s) + none, v);
}

template <class C, class R, class T = typename R::T>
FK_INLINE T grad_affine(const C& c, R& r, T v, T g_out, T g_ladj) {
  T s;
  const T scale = affine_scale(c, r, &s), g_v = g_out * scale, m = mean_of(c, r, 0);
  if (c.shifts) {  // of -s, and of the shift, which adds to y
    put_scale(c, r, 0, c.inverse ? (m - v) * g_v - g_ladj : g_v * v + g_ladj);
    r.put(0, c.inverse ? -g_v : g_out);
    return g_v;
  }
  put_scale(c, r, 0, c.inverse ? g_v * v + g_ladj : (m - v) * g_v - g_ladj);
  r.put(0, T{});
  r.put(1, c.inverse ? g_out : -g_v);
  return g_v;
}

template <class C, class R, class T = typename R::T>
FK_FUNCTION void eval_mixture(const C& c, R& r, T v, T* out, T* ladj) {
  if (c.affine) return eval_affine(c, r, v, out, ladj);
  prepare(c, r);
  const T x = c.inverse ? mixture_root(c, r, v) : v;
  const MixtureOut<T> found = outer_of(c, r, mixture_at<false>(c, r, x));
  *out = c.inverse ? x : found.y;
  if (!c.inverse && c.outer != MixtureOuter::unit && !c.shrinks) *out = select(abs_(x) > c.kInfinite, x, *out);
  *ladj = c.inverse ? -found.ladj : found.ladj;
}

// The share of a component in the density.
template <class C, class R, class At, class T = typename R::T>
FK_INLINE T share_at(const C& c, const R& r, const At& at, T per_density, int k, const MixtureComponent<T>& of) {
  T share = r.weight(k) * (of.density * r.per_scale(k)) * per_density;
  if (at.any_far) share = select(at.far, exp_(terms_of(c, r, k).of.density - at.logs.density), share);
  return share;
}

// Puts d loss / d params where the params are, and returns d loss / d v.
template <class C, class R, class T = typename R::T>
FK_FUNCTION T grad_mixture(const C& c, R& r, T v, T g_out, T g_ladj) {
  using S = typename C::S;
  if (c.affine) return grad_affine(c, r, v, g_out, g_ladj);
  prepare(c, r);
  const T x = c.inverse ? mixture_root(c, r, v) : v;
  const auto at = mixture_at<true>(c, r, x);
  const MixtureOut<T> found = outer_of(c, r, at);
  const MixtureSlopes<T> g = at.slopes;
  T bend = {};  // the derivative of the density's logarithm
  const T per_density = 1 / at.plain.density;
  for (int k = 0; k < c.K; ++k) {
    const MixtureComponent<T> of = component_of(c, r, k);
    const T share = share_at(c, r, at, per_density, k, of);
    const T rho = bend_of(c.normal, of);
    bend = bend + share * (r.per_scale(k) * rho);
    r.keep_share(k, share);
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
    if (c.shrinks) g_v = select(abs_(x) >= c.bound, T{}, g_v);  // where an end is the answer
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
    const T w = r.weight(k), mean = mean_of(c, r, k), per_scale = r.per_scale(k);
    T share;
    if constexpr (R::kKeeps)
      share = r.share(k);
    else
      share = share_at(c, r, at, per_density, k, of);
    const T rho = bend_of(c.normal, of), of_mean = share * moved;
    if (c.shifts) {
      const T g_shift = g_l * (share * rho) - of_mean / per_scale;
      put_scale(c, r, k, g_shift * (x * per_scale) + g_l * share);
      r.put(k, g_shift);
      continue;
    }
    T in_below = w * of.below * at.per_below, in_above = w * of.above * at.per_above;
    if (at.any_far) {
      const MixtureTerms<T> t = terms_of(c, r, k);
      in_below = select(at.far, exp_(t.of.below - at.logs.below), in_below);
      in_above = select(at.far, exp_(t.of.above - at.logs.above), in_above);
    }
    // The weight of one component is 1 whatever its logit.
    r.put(k, c.K == 1 ? share - share : below * in_below + above * in_above + (g_l * share - all * w));
    r.put(c.of_mean + k, of_mean - g_l * (share * (per_scale * rho)));
    put_scale(c, r, k, of_mean * (x - mean) - g_l * (share * (1 + of.z * rho)));
  }
  return g_v;
}

}  // namespace fk::FK_ISA

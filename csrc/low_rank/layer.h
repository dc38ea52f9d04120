// What the layers share: parameters of all rows or of each, an activation, sums, the root of one number.
//
// Lanes are rows. A row block of numbers is [number][kRowBlock rows].
#pragma once
#include "../net/net_tile.h"
#include "../univariate/map_cpu.h"
#include "../univariate/root_lanes.h"
#include "low_rank.h"

namespace fk::FK_ISA {

template <class S>
using PairOf = Pair<typename Simd<S>::V>;

template <class S>
FK_INLINE PairOf<S> all_lanes(S v) {
  return {splat<typename Simd<S>::V>(v), splat<typename Simd<S>::V>(v)};
}

// What has to be positive is at least this, so that its logarithm is a number.
template <class S>
inline constexpr S kFloor = sizeof(S) == 4 ? S(1e-30) : S(1e-280);
// The length below which, squared, a vector is none.
template <class S>
inline constexpr S kTiny = sizeof(S) == 4 ? S(0x1p-126) : S(0x1p-1022);

// Numbers of a layer: one for all rows, or a row block of them.
template <class S, bool kShared>
struct Values {
  const S* first;

  FK_INLINE PairOf<S> operator[](int64_t i) const {
    if constexpr (kShared)
      return all_lanes(first[i]);
    else
      return load_pair(first + i * kRowBlock<S>);
  }
  FK_INLINE Values from(int64_t i) const { return {first + (kShared ? i : i * kRowBlock<S>)}; }
};

// Gradients of the same: what each row adds, or has.
template <class S, bool kShared>
struct Gradients {
  S* first;

  FK_INLINE void put(int64_t i, PairOf<S> v) const {
    S* const at = first + i * kRowBlock<S>;
    store_pair(at, kShared ? load_pair(at) + v : v);
  }
};

// sum of f(i), i < n, in two chains: one alone waits for its additions.
template <class S, class F>
FK_INLINE PairOf<S> sum_of(int64_t n, const F& f) {
  PairOf<S> even = {}, odd = {};
  int64_t i = 0;
  for (; i + 1 < n; i += 2) even = even + f(i), odd = odd + f(i + 1);
  if (i < n) even = even + f(i);
  return even + odd;
}

// h of z, its slope, 1 less that, and the slope of the slope.
template <class T>
struct Bent {
  T value, slope, rest, curve;
};

template <class S>
FK_INLINE Bent<PairOf<S>> bent(const LowRankArgs& a, PairOf<S> z) {
  using T = PairOf<S>;
  if (a.activation == LowRankActivation::tanh) {
    const T h = tanh_(z), rest = h * h, slope = S(1) - rest;
    return {h, slope, rest, S(-2) * (h * slope)};
  }
  const T slope = select(z == z, select(z < S(0), all_lanes(S(a.negative_slope)), all_lanes(S(1))), z);
  return {slope * z, slope, S(1) - slope, T{}};
}

template <class S>
FK_INLINE PairOf<S> softplus(PairOf<S> m) {
  return max_(m, PairOf<S>{}) + log1p_unit(exp_(-abs_(m)));
}
// Its slope.
template <class S>
FK_INLINE PairOf<S> logistic(PairOf<S> m) {
  const PairOf<S> e = exp_(-abs_(m));
  return select(m < S(0), e, all_lanes(S(1))) / (S(1) + e);
}

// z of z + (plus - 1) h(z) = s, which grows with z.
template <class S>
FK_INLINE PairOf<S> bent_root(const LowRankArgs& a, PairOf<S> plus, PairOf<S> s) {
  using V = typename Simd<S>::V;
  using T = PairOf<S>;
  if (a.activation != LowRankActivation::tanh) {
    const Bent<T> of_s = bent<S>(a, s);  // z has its sign
    return s / (of_s.rest + plus * of_s.slope);
  }
  const T target = abs_(s), c = plus - S(1), high = target + max_(-c, T{});
  // A side from which Newton's steps come monotonously: before the root where f is concave, else behind it.
  const T first = select(c > S(0), max_(target / plus, target - c), min_(target / plus, high));
  const auto value = [&](T z, T* f, T* slope) {
    const Bent<T> h = bent<S>(a, z);
    *f = z + c * h.value;
    *slope = h.rest + plus * h.slope;
  };
  const T z = find_root<V>(target, T{}, high, first, value, [](V low, V most) { return low + S(0.5) * (most - low); });
  return select(s < S(0), -z, z);
}

// What a call lays out once: numbers of all layers that the rows share.
template <class S>
struct Prepared {
  S* of[4];
};

// Where a row block's parameters lie, and what their gradients are added to or written to: [layers * size] of each.
template <class S>
struct Blocks {
  const S* params[kMostLowRankParams];
  S* grads[kMostLowRankParams + 1];  // null without
};

}  // namespace fk::FK_ISA

// The mixture map in SIMD lanes: one lane per element, two blocks of lanes at a time.
#pragma once
#include "../net/normal_cdf.h"
#include "../univariate/numbers_lanes.h"
#include "../univariate/param_lanes.h"

#include "near_lanes.h"

#include "mixture_math.h"

namespace fk::FK_ISA {

// What is known of a component: side by side, since arrays of the same number would share the sets of the cache.
template <class T>
struct MixturePart {
  T weight, per_scale;     // e^(w - max w), e^-s
  MixtureComponent<T> at;  // at the last x that was kept
  MixtureTerms<T> terms;
};

// What a thread needs for two blocks of lanes.
template <class Scalar>
struct MixtureRoom {
  using T = Pair<typename Simd<Scalar>::V>;
  static constexpr bool kKeeps = true;
  T params[3 * MixtureSpec::kMostComponents];  // or their gradients
  MixturePart<T> parts[MixtureSpec::kMostComponents];
  T top, total;

  FK_INLINE T raw(int i) const { return params[i]; }
  FK_INLINE void put(int i, T v) { params[i] = v; }
  FK_INLINE T weight(int k) const { return parts[k].weight; }
  FK_INLINE void put_weight(int k, T v) { parts[k].weight = v; }
  FK_INLINE T per_scale(int k) const { return parts[k].per_scale; }
  FK_INLINE void put_per_scale(int k, T v) { parts[k].per_scale = v; }
  FK_INLINE const MixtureComponent<T>& component(int k) const { return parts[k].at; }
  FK_INLINE void keep(int k, const MixtureComponent<T>& v) { parts[k].at = v; }
  FK_INLINE const MixtureTerms<T>& terms(int k) const { return parts[k].terms; }
  FK_INLINE void keep(int k, const MixtureTerms<T>& v) { parts[k].terms = v; }
  // Into the density's place, which nothing asks for any more.
  FK_INLINE T share(int k) const { return parts[k].at.density; }
  FK_INLINE void keep_share(int k, T v) { parts[k].at.density = v; }
};

template <class S, class T>
FK_INLINE void load_params(int n, const ParamLanes<S>& params, T* out) {
  constexpr int Q = kQuad<S>;
  params.visit([&](const auto& from) {
    if (n < Q) {
      for (int p = 0; p < n; ++p)
        for (int l = 0; l < kLanes<S>; ++l) out[p].a[l] = from.at(0, p, l), out[p].b[l] = from.at(1, p, l);
      return;
    }
    for (int i = 0; i < 2; ++i) {
      for (int p = 0; p < n; p += Q) {
        const int s = p <= n - Q ? p : n - Q;  // the last quad overlaps instead of reading past the end
        typename Simd<S>::V q[Q];
        from.load_quad(i, s, q);
        for (int j = 0; j < Q; ++j) (i ? out[s + j].b : out[s + j].a) = q[j];
      }
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

template <class S, class T = typename MixtureRoom<S>::T>
FK_NOINLINE void eval_mixture(const MixtureConsts<S>& c, const ParamLanes<S>& params, MixtureRoom<S>& r, T v, T* out,
                              T* ladj) {
  load_params(c.params, params, r.params);
  eval_mixture(c, r, v, out, ladj);
}

// Puts d loss / d params into `grads`, which may be where the params are, and returns d loss / d v.
template <class S, class T = typename MixtureRoom<S>::T>
FK_NOINLINE T grad_mixture(const MixtureConsts<S>& c, const ParamLanes<S>& params, const ParamLanes<S>& grads,
                           MixtureRoom<S>& r, T v, T g_out, T g_ladj) {
  load_params(c.params, params, r.params);
  const T g_v = grad_mixture(c, r, v, g_out, g_ladj);
  store_params(c.params, r.params, grads);
  return g_v;
}

}  // namespace fk::FK_ISA

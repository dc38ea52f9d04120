// The mixture map in SIMD lanes: one lane per element, two blocks of lanes at a time.
#pragma once
#include "../net/normal_cdf.h"
#include "../univariate/numbers_lanes.h"
#include "../univariate/param_lanes.h"

#include "mixture_math.h"

namespace fk::FK_ISA {

// What a thread needs for two blocks of lanes, by component; what is known of the last x is kept.
template <class Scalar>
struct MixtureRoom {
  using T = Pair<typename Simd<Scalar>::V>;
  static constexpr bool kKeeps = true;
  static constexpr int N = MixtureSpec::kMostComponents;
  T params[3 * N], weights[N], scales[N], shares[N];  // scales: e^-s
  MixtureComponent<T> components[N];
  MixtureTerms<T> logs[N];
  T top, total, x;

  FK_INLINE T raw(int i) const { return params[i]; }
  FK_INLINE void put(int i, T v) { params[i] = v; }
  FK_INLINE T weight(int k) const { return weights[k]; }
  FK_INLINE void put_weight(int k, T v) { weights[k] = v; }
  FK_INLINE T per_scale(int k) const { return scales[k]; }
  FK_INLINE void put_per_scale(int k, T v) { scales[k] = v; }
  FK_INLINE const MixtureComponent<T>& component(int k) const { return components[k]; }
  FK_INLINE void keep(int k, const MixtureComponent<T>& v) { components[k] = v; }
  FK_INLINE const MixtureTerms<T>& terms(int k) const { return logs[k]; }
  FK_INLINE void keep(int k, const MixtureTerms<T>& v) { logs[k] = v; }
  FK_INLINE T share(int k) const { return shares[k]; }
  FK_INLINE void keep_share(int k, T v) { shares[k] = v; }
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

// The mixture map of a feature, as its op and fused layers on a GPU call it.
#pragma once
#include "../common/normal_tail.cuh"
#include "../univariate/numbers.cuh"

namespace fk::cuda {

// What has shorter forms in lanes (near_lanes.h) has none here.
template <class S>
FK_INLINE S exp_near(S u) {
  return exp_(u);
}
template <class S>
FK_INLINE S reciprocal_near(S a) {
  return reciprocal(a);
}

}  // namespace fk::cuda

#include "mixture_math.h"

namespace fk::cuda {

// What a thread keeps: the row of its params, two numbers of each component, and where it stands. All else of the
// components is computed anew where it is asked for: exponentials cost less than memory.
template <class S>
struct MixtureRow {
  using T = S;
  static constexpr bool kKeeps = false;
  S* params;
  Numbers<S> room;
  int K;
  S top, total, x;

  __device__ __forceinline__ S raw(int i) const { return params[i]; }
  __device__ __forceinline__ void put(int i, S v) { params[i] = v; }
  __device__ __forceinline__ S weight(int k) const { return room.get(k); }
  __device__ __forceinline__ void put_weight(int k, S v) { room.put(k, v); }
  __device__ __forceinline__ S per_scale(int k) const { return room.get(K + k); }
  __device__ __forceinline__ void put_per_scale(int k, S v) { room.put(K + k, v); }
  __device__ __forceinline__ void keep(int, const MixtureComponent<S>&) {}
  __device__ __forceinline__ void keep(int, const MixtureTerms<S>&) {}
  __device__ __forceinline__ void keep_share(int, S) {}
};

template <class S>
struct MixtureMap : MixtureConsts<S> {
  using MixtureConsts<S>::MixtureConsts;

  __device__ __forceinline__ void operator()(S* params, S* room, int apart, S v, S* out, S* ladj) const {
    MixtureRow<S> r = {params, {room, apart}, this->K, 0, 0, 0};
    eval_mixture(static_cast<const MixtureConsts<S>&>(*this), r, v, out, ladj);
  }
  // Leaves the gradients where the params are.
  __device__ __forceinline__ S grad(S* params, S* room, int apart, S v, S g_out, S g_ladj) const {
    MixtureRow<S> r = {params, {room, apart}, this->K, 0, 0, 0};
    return grad_mixture(static_cast<const MixtureConsts<S>&>(*this), r, v, g_out, g_ladj);
  }
};

template <class S, class F>
void with_map(const MixtureSpec& s, const F& f) {
  f(MixtureMap<S>(s));
}

}  // namespace fk::cuda

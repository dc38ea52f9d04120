// The affine map of a feature, as fused layers on a GPU call it.
#pragma once
#include "../common/scalar.cuh"

#include "affine_math.h"

namespace fk::cuda {

template <class S>
struct AffineMap : Affine<S> {
  bool additive;
  int at_logit, at_shift;

  explicit AffineMap(const AffineSpec& s)
      : Affine<S>(s),
        additive(s.scale == AffineScale::additive),
        at_logit(s.shift_first),
        at_shift(!additive && !s.shift_first) {}

  __device__ __forceinline__ S logit(const S* params) const { return additive ? S(0) : params[at_logit]; }

  __device__ __forceinline__ void operator()(S* params, S*, int, S v, S* out, S* ladj) const {
    this->eval(logit(params), params[at_shift], v, out, ladj);
  }
  __device__ __forceinline__ S grad(S* params, S*, int, S v, S g_out, S g_ladj) const {
    S g_logit, g_shift;
    const S g_v = Affine<S>::grad(logit(params), params[at_shift], v, g_out, g_ladj, &g_logit, &g_shift);
    params[at_shift] = g_shift;
    if (!additive) params[at_logit] = g_logit;
    return g_v;
  }
};

template <class S, class F>
void with_map(const AffineSpec& s, const F& f) {
  f(AffineMap<S>(s));
}

}  // namespace fk::cuda

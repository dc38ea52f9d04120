// The inverse map of a feature on a GPU, by one thread, from the row of its parameters in shared memory. Forward may
// overwrite the row; backward leaves the gradient there, and returns that of the value.
#pragma once
#include "../common/scalar.cuh"

#include "../affine/affine_math.h"
#include "../rqs/rqs_row_grad.cuh"
#include "map.h"

namespace fk::cuda {

template <class S>
struct AffineMap : Affine<S> {
  bool additive;
  int at_logit, at_shift;

  explicit AffineMap(const UnivariateMap& m)
      : Affine<S>(m.affine),
        additive(m.affine.scale == AffineScale::additive),
        at_logit(m.affine.shift_first),
        at_shift(!additive && !m.affine.shift_first) {}

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

// `sums`: room for 2K numbers, `apart` from each other.
template <class S, bool Clip>
struct SplineMap : Constants<S, Clip> {
  explicit SplineMap(const UnivariateMap& m) : Constants<S, Clip>(m.rqs) {}

  __device__ __forceinline__ void operator()(S* params, S* sums, int apart, S v, S* out, S* ladj) const {
    const Constants<S, Clip>& c = *this;
    S top[2];
    eval_found(c, find(c, params, sums, apart, 1, v, top), true, v, out, ladj);
  }
  __device__ __forceinline__ S grad(S* params, S* sums, int apart, S v, S g_out, S g_ladj) const {
    const Constants<S, Clip>& c = *this;
    S top[2];
    const Found<S> f = find(c, params, sums, apart, 1, v, top);
    const FoundGrad<S> g = grad_found(c, f, true, v, g_out, g_ladj);
    replace_by_gradient(c, params, f, g, top);
    return g.v;
  }
};

}  // namespace fk::cuda

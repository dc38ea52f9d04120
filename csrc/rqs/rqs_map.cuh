// The spline of a feature, as its op and fused layers on a GPU call it.
#pragma once
#include "rqs_row_grad.cuh"

namespace fk::cuda {

// Either: inverse or not; else inverse, as in all that a sweep does. `sums`: room for 2K numbers, `apart` from each
// other.
template <class S, bool Clip, bool Either>
struct SplineMap : Constants<S, Clip> {
  bool inverse_;

  explicit SplineMap(const RqsSpec& s) : Constants<S, Clip>(s), inverse_(s.inverse) {}

  __device__ __forceinline__ bool inverse() const { return !Either || inverse_; }

  __device__ __forceinline__ void operator()(S* params, S* sums, int apart, S v, S* out, S* ladj) const {
    const Constants<S, Clip>& c = *this;
    S top[2];
    eval_found(c, find(c, params, sums, apart, inverse(), v, top), inverse(), v, out, ladj);
  }
  __device__ __forceinline__ S grad(S* params, S* sums, int apart, S v, S g_out, S g_ladj) const {
    const Constants<S, Clip>& c = *this;
    S top[2];
    const Found<S> f = find(c, params, sums, apart, inverse(), v, top);
    const FoundGrad<S> g = grad_found(c, f, inverse(), v, g_out, g_ladj);
    replace_by_gradient(c, params, f, g, top);
    return g.v;
  }
};

template <class S, class F>
void with_map(const RqsSpec& s, const F& f) {
  if (s.clip_size != 0)
    f(SplineMap<S, true, false>(s));
  else
    f(SplineMap<S, false, false>(s));
}

}  // namespace fk::cuda

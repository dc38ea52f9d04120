// The affine map of one feature on a row block, as fused layers call it.
#pragma once
#include "../univariate/map_cpu.h"
#include "affine_lanes.h"

namespace fk::FK_ISA {

template <class S>
struct AffineMap {
  using T = Pair<typename Simd<S>::V>;
  Affine<S> map;
  bool additive;
  int at_logit, at_shift;

  AffineMap(const AffineSpec& s, Arena&)
      : map(s),
        additive(s.scale == AffineScale::additive),
        at_logit(s.shift_first),
        at_shift(!additive && !s.shift_first) {}

  FK_INLINE T logit(const ParamRows<S>& p) const { return additive ? T{} : load_pair(p.row(at_logit)); }
  FK_INLINE T shift(const ParamRows<S>& p) const { return load_pair(p.row(at_shift)); }

  FK_INLINE void eval(const ParamRows<S>& params, T v, T* out, T* ladj) const {
    map.eval(logit(params), shift(params), v, out, ladj);
  }

  // Puts the gradients of the parameters into `grads` and returns that of v.
  FK_INLINE T grad(const ParamRows<S>& params, const ParamRows<S>& grads, T v, T g_out, T g_ladj) const {
    T g_logit, g_shift;
    const T g_v = map.grad(logit(params), shift(params), v, g_out, g_ladj, &g_logit, &g_shift);
    store_pair(grads.row(at_shift), g_shift);
    if (!additive) store_pair(grads.row(at_logit), g_logit);
    return g_v;
  }
};

}  // namespace fk::FK_ISA

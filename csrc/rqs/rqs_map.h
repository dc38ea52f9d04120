// The spline of one feature on a row block, as fused layers call it.
#pragma once
#include "../univariate/map_cpu.h"
#include "rqs_blocks.h"

namespace fk::FK_ISA {

template <class S, bool Clip>
struct SplineMap {
  using T = Pair<typename Simd<S>::V>;
  Consts<S, Clip> c;
  Block<S>* blocks;  // [2]
  bool inverse;

  SplineMap(const RqsSpec& s, Arena& arena) : c(s), blocks(arena.take<Block<S>>(2)), inverse(s.inverse) {}

  static FK_INLINE ParamLanes<S> lanes_of(const ParamRows<S>& p) { return {p.block, 0, p.rank, p.first}; }

  FK_INLINE void eval(const ParamRows<S>& params, T v, T* out, T* ladj) const {
    eval_blocks(c, lanes_of(params), blocks, inverse, v, out, ladj);
  }

  // Puts the gradients of the parameters into `grads` and returns that of v.
  FK_INLINE T grad(const ParamRows<S>& params, const ParamRows<S>& grads, T v, T g_out, T g_ladj) const {
    return grad_blocks(c, lanes_of(params), lanes_of(grads), blocks, inverse, v, g_out, g_ladj);
  }
};

}  // namespace fk::FK_ISA

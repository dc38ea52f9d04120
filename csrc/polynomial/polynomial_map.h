// A polynomial of one feature on a row block, as fused layers call it, and as a call by itself does.
#pragma once
#include "../univariate/map_cpu.h"
#include "../univariate/root_lanes.h"

#include "bernstein_math.h"
#include "squares_math.h"

namespace fk::FK_ISA {

// Of formulas F, which want a feature's parameters one after another: where they lie, or copied.
template <class S, class F>
struct PolynomialMap {
  using T = Pair<typename Simd<S>::V>;
  using C = Numbers<S>;
  F f;
  int params;
  C room, params_room, grads_room;

  static C take(Arena& arena, int n) { return {arena.take<S>(size_t(n) * C::N)}; }

  PolynomialMap(const PolynomialSpec& s, Arena& arena)
      : f(s),
        params(s.params()),
        room(take(arena, shared_numbers(s))),
        params_room(take(arena, params)),
        grads_room(take(arena, params)) {}

  FK_INLINE C in_order(const ParamRows<S>& p) const {
    if (!p.rank) return {p.row(0)};
    for (int i = 0; i < params; ++i) params_room.put(i, load_pair(p.row(i)));
    return params_room;
  }

  FK_INLINE void eval(const ParamRows<S>& p, T v, T* out, T* ladj) const { f.map(in_order(p), room, v, out, ladj); }
  FK_INLINE T grad(const ParamRows<S>& p, const ParamRows<S>& grads, T v, T g_out, T g_ladj) const {
    const C to = grads.rank ? grads_room : C{grads.row(0)};
    const T g_v = f.grad(in_order(p), to, room, v, g_out, g_ladj);
    if (grads.rank)
      for (int i = 0; i < params; ++i) store_pair(grads.row(i), to.get(i));
    return g_v;
  }
};

}  // namespace fk::FK_ISA
